"""Exports of an output: the voxels of its arrays, mask and objects, their place, and what is refused."""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cc3d
import h5py
import numpy as np
import pytest
import zarr

from kasthuri_ray import cli
from kasthuri_ray.config.loading import GivenSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.export_file import read_export_provenance
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.progress import Reporter
from kasthuri_ray.segmentation import export_source
from kasthuri_ray.segmentation.export import export_finished_output
from kasthuri_ray.segmentation.export_source import piece_shape
from kasthuri_ray.volumes.alignment import align_volumes
from kasthuri_ray.volumes.opening import open_volume

START, SHAPE = (3, 10, 20), (6, 70, 90)
BOX = "3:9,10:80,20:110"
PART = "4:8,31:77,25:101"  # of the image
CUT = {"shard": [2, 32, 32], "block": [2, 32, 64], "chunk": [2, 32, 32]}


@pytest.fixture(scope="module")
def image_path(tmp_path_factory, stores) -> str:
    path = tmp_path_factory.mktemp("image") / "em.zarr"
    stores.zarr(path, stores.image((12, 90, 120)), None)
    zarr.open_array(path, mode="r+").attrs.update({"resolution": [30, 6, 6], "offset": [300, 0, 60]})
    return str(path)


@pytest.fixture
def segmented(tmp_path, write_run, make_job, run_job_here, image_path):
    """Return `segmented(task, network, **segment)`: segments the box without Ray and with everything; returns the path.

    The table of objects is written as the job does at its end.
    """

    def segment(classes=2, **settings) -> Path:
        run = write_run(tmp_path / f"run{classes}", classes=classes)
        output = tmp_path / f"out{classes}.zarr"
        job = make_job(run, output, image=image_path, box=BOX, **CUT, **settings)
        finished = run_job_here(job)
        from kasthuri_ray.segmentation.phases import job_phases

        for phase in job_phases(job):
            phase.finish(finished.written(phase))
        return output

    return segment


def export(output: Path, file: Path | str, **settings: object) -> SimpleNamespace:
    """Export without weights; return what was said and the result."""
    lines = io.StringIO()
    given = {"output": str(output), "export": str(file), **settings}
    result = export_finished_output(GivenSettings(flags={"segment": given}), Reporter(lines))
    return SimpleNamespace(lines=lines.getvalue(), result=result)


def part_of(array: np.ndarray) -> np.ndarray:
    return array[..., 1:5, 21:67, 5:81]


@pytest.mark.parametrize("name", ["x.tif", "x.h5"])
def test_probabilities_of_a_box_lie_on_the_image_and_on_the_output(segmented, tmp_path, image_path, name, capsys):
    output = segmented()
    exported = export(output, tmp_path / name, export_box=PART)
    assert exported.result.export_path == str(tmp_path / name)
    assert capsys.readouterr().out.split() == [str(output)] * 2
    volume = open_volume(str(tmp_path / name))
    expected = part_of(np.asarray(zarr.open_group(output, mode="r")["s0"])[0])
    assert expected.any()
    np.testing.assert_array_equal(volume.read(volume.bounds), expected)
    assert volume.voxel_size_nm == (30, 6, 6)
    assert volume.place.origin_nm == pytest.approx((300 + 4 * 30, 31 * 6, 60 + 25 * 6), rel=1e-12)
    for fixed, box in ((open_volume(image_path), PART), (open_volume(str(output)), "1:5,21:67,5:81")):
        aligned = align_volumes(fixed, volume)
        assert (str(aligned.overlap), aligned.notes) == (box, ())


@pytest.mark.parametrize("save_mask", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_mask_is_that_of_save_mask_also_if_it_was_not_saved(segmented, tmp_path, save_mask, classes):
    output = segmented(classes, save_mask=save_mask, threshold=0.6)
    export(output, tmp_path / "x.h5", export_what="mask")
    probabilities = np.asarray(zarr.open_group(output, mode="r")["s0"])
    expected = classes_at(probabilities, [0.6] * len(probabilities))
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["exported_data"][...], expected)
    assert len(np.unique(expected)) == classes


def test_several_classes_are_exported_as_channels(segmented, tmp_path):
    output = segmented(3)
    export(output, tmp_path / "x.h5", export_box=PART)
    with h5py.File(tmp_path / "x.h5") as file:
        expected = part_of(np.asarray(zarr.open_group(output, mode="r")["s0"]))
        np.testing.assert_array_equal(np.moveaxis(file["exported_data"][...], -1, 0), expected)


@pytest.mark.parametrize("box", [None, PART])
def test_objects_have_the_ids_of_the_table_and_the_voxels_of_the_whole_mask(segmented, tmp_path, box):
    output = segmented(objects=True, threshold=0.6)
    export(output, tmp_path / "x.tif", export_what="objects", export_box=box)
    mask = np.asarray(zarr.open_group(output, mode="r")["s0"])[0] >= 0.6 * 255
    whole, number = cc3d.connected_components(mask, connectivity=26, return_N=True)
    with open(f"{output}.synapses.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == number > 5
    volume = open_volume(str(tmp_path / "x.tif"), labels=True)
    ids = volume.read(volume.bounds)
    expected = whole if box is None else part_of(whole)
    np.testing.assert_array_equal(ids > 0, expected > 0)
    pairs = set(zip(ids[ids > 0].tolist(), expected[expected > 0].tolist(), strict=True))
    assert len(pairs) == len({id for id, _ in pairs}) == len({label for _, label in pairs})
    for id, label in pairs:
        assert int(rows[id - 1]["id"]) == id
        assert int(rows[id - 1]["size_voxels"]) == (whole == label).sum()


def test_without_a_table_of_objects_the_error_says_how_to_get_one(segmented, tmp_path):
    with pytest.raises(InputError, match="the same command with --objects adds them to a finished output"):
        export(segmented(), tmp_path / "x.tif", export_what="objects")
    assert not (tmp_path / "x.tif").exists()


def test_unfinished_blocks_of_the_box_are_refused_and_those_outside_of_it_are_not(segmented, tmp_path):
    output = segmented()
    ledger = Path(f"{output}.ledger/s0")
    (ledger / "0_0_0.json").unlink()
    with pytest.raises(InputError, match=r"1 of 18 blocks to export are not segmented yet"):
        export(output, tmp_path / "x.tif")
    assert "x.tif" not in os.listdir(tmp_path)
    export(output, tmp_path / "x.tif", export_box="5:9,:,:")
    shutil.rmtree(f"{output}.ledger")
    assert "is gone: it is not known whether" in export(output, tmp_path / "y.tif").lines


def test_the_same_export_again_writes_nothing_and_another_one_is_refused(segmented, tmp_path):
    output = segmented()
    file = tmp_path / "x.tif"
    assert f"probabilities of {BOX}: {file}" in export(output, file).lines
    written = file.stat().st_mtime_ns
    assert f"{file} holds probabilities of {BOX} already" in export(output, file).lines
    assert file.stat().st_mtime_ns == written
    with pytest.raises(InputError, match=f"holds another export \\(probabilities of {BOX} of {output}\\)"):
        export(output, file, export_what="mask")
    assert file.stat().st_mtime_ns == written
    export(output, file, export_what="mask", overwrite=True)
    assert read_export_provenance(str(file))["what"] == "mask"


def test_a_file_that_no_export_wrote_is_never_replaced(segmented, tmp_path, image_path):
    output = segmented()
    (tmp_path / "mine.h5").write_bytes(b"mine")
    (tmp_path / "folder.tif").mkdir()
    for name in ("mine.h5", "folder.tif"):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="is no export of a segmentation; choose another --export"):
                export(output, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "mine.h5").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"file": "x.png"}, "the name ends in"),
        ({"file": "s3://bucket/x.tif"}, "the file is written to a disk"),
        ({"export_box": "0:4,:,:"}, "--export-box 0:4,:,: is outside the volume that is segmented, 3:9,10:80,20:110"),
        ({"file": "{output}/x.tif"}, "is in the folder of the output"),
        ({"output": "none.zarr"}, "there is no output of a segmentation"),
        ({"box": BOX}, "--box does not apply"),
        ({"image": "x.zarr", "tta": True}, "--image, --tta does not apply"),
        ({"export_what": "sections"}, "--export-what sections: expected"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(segmented, tmp_path, settings, message):
    output = segmented()
    before = sorted(os.listdir(tmp_path))
    given = {"output": output, "file": tmp_path / "x.tif", **settings}
    with pytest.raises(InputError) as error:
        export(**{**given, "file": str(given["file"]).format(output=output)})
    assert message in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_disk_without_space_is_refused_unless_hdf5_shrinks_enough(segmented, tmp_path, monkeypatch):
    output = segmented()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=500_000_000 + 30_000))
    with pytest.raises(InputError, match=r"0.00 GB free, 0.00 GB needed for .*x.tif; free some space"):
        export(output, tmp_path / "x.tif")
    monkeypatch.setattr(export_source.ExportSource, "read", lambda self, piece: np.zeros((1, *piece.shape), np.uint8))
    export(output, tmp_path / "x.h5")


def test_pieces_are_whole_rows_of_limited_size():
    assert piece_shape((64, 2048, 2048), (64, 256, 256), 1) == (64, 1792, 2048)
    assert piece_shape((64, 20_000, 20_000), (64, 256, 256), 1) == (32, 256, 20_000)
    assert piece_shape((64, 200_000, 200_000), (64, 256, 256), 2) == (16, 256, 200_000)
    assert piece_shape((3, 20, 30), (2, 16, 16), 1)[2] == 30


# with the command


@pytest.fixture(scope="module")
def exported(local_ray, run_segment, tmp_path_factory) -> Path:
    """Segment a part of the large image and export it with the same command; return the folder."""
    folder = tmp_path_factory.mktemp("exported")
    assert run_segment(*arguments_in(folder)) == 0
    return folder


def arguments_in(folder: Path) -> list[object]:
    box = ["--box", "0:4,0:64,0:128", "--shard", "2,32,32", "--actors", 1]
    return ["--output", folder / "out.zarr", *box, "--export", folder / "out.h5", "--export-box", "1:3,:,10:100"]


def test_a_segmentation_exports_at_its_end_and_the_same_command_again_exports_nothing_new(
    exported, segment, run, large_em
):
    group = np.asarray(zarr.open_group(exported / "out.zarr", mode="r")["s0"])[0]
    volume = open_volume(str(exported / "out.h5"))
    np.testing.assert_array_equal(volume.read(volume.bounds), group[1:3, :, 10:100])
    provenance = read_export_provenance(str(exported / "out.h5"))
    assert provenance["run"] == f"{run}/checkpoint/best.pt"
    assert provenance["segmentation"]["image"] == large_em
    assert provenance["output"] == str(exported / "out.zarr")
    written = (exported / "out.h5").stat().st_mtime_ns
    lines = segment(*arguments_in(exported)).lines
    assert lines[0] == lines[-1] == str(exported / "out.zarr")
    assert f"{exported / 'out.h5'} holds probabilities of 1:3,0:64,10:100 already" in lines
    assert (exported / "out.h5").stat().st_mtime_ns == written


def test_a_finished_output_is_exported_by_the_command_without_weights(exported, segment_main, capsys, tmp_path):
    arguments = ["--output", exported / "out.zarr", "--export", tmp_path / "x.tif", "--export-what", "mask"]
    assert cli.run_job(segment_main, list(map(str, arguments))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == str(exported / "out.zarr")
    volume = open_volume(str(tmp_path / "x.tif"))
    group = np.asarray(zarr.open_group(exported / "out.zarr", mode="r")["s0"])[0]
    np.testing.assert_array_equal(volume.read(volume.bounds), group >= 0.4 * 255)


def test_the_same_output_is_exported_from_s3(exported, s3, segment_main, tmp_path):
    for path in exported.rglob("*"):
        if path.is_file() and "out.zarr" in str(path.relative_to(exported)):
            s3.upload_file(str(path), "some-bucket", str(path.relative_to(exported)))
    arguments = ["--output", "s3://some-bucket/out.zarr", "--export", str(tmp_path / "x.h5")]
    assert cli.run_job(segment_main, arguments) == 0
    volume = open_volume(str(tmp_path / "x.h5"))
    expected = np.asarray(zarr.open_group(exported / "out.zarr", mode="r")["s0"])[0]
    np.testing.assert_array_equal(volume.read(volume.bounds), expected)


def test_an_export_that_cannot_be_is_refused_before_the_segmentation(segment, tmp_path, local_ray):
    (tmp_path / "mine.tif").write_bytes(b"mine")
    for name, message in (("x.png", "the name ends in"), ("mine.tif", "is no export of a segmentation")):
        refused = segment("--output", tmp_path / "out.zarr", "--export", tmp_path / name, code=2)
        assert message in refused.err
    refused = segment("--output", tmp_path / "out.zarr", "--export-box", "0:1,:,:", code=2)
    assert "--export-box: there is no file" in refused.err
    objects = ["--export", tmp_path / "x.tif", "--export-what", "objects"]
    assert "add --objects" in segment("--output", tmp_path / "out.zarr", *objects, code=2).err
    assert os.listdir(tmp_path) == ["mine.tif"]


def test_blocks_that_were_set_aside_are_not_exported(run_job_here, make_job, run, image_path, tmp_path):
    from kasthuri_ray.segmentation.export import ExportRequest
    from kasthuri_ray.segmentation.segment import _export
    from kasthuri_ray.segmentation.segmentation_run import SegmentResult

    job = make_job(run, tmp_path / "out.zarr", image=image_path, box=BOX, **CUT)
    run_job_here(job)
    Ledger.beside(job.output).storage.delete("s0/0_0_0.json")
    lines = io.StringIO()
    request = ExportRequest(str(tmp_path / "x.tif"), "probabilities", job.box, False)
    result = _export(request, SegmentResult(job.output, num_set_aside=1), Reporter(lines), "the same call")
    assert result.export_path is None
    assert "not exported: 1 of 18 blocks to export" in lines.getvalue()
    assert not (tmp_path / "x.tif").exists()
    assert json.loads((tmp_path / "out.zarr/zarr.json").read_text())
