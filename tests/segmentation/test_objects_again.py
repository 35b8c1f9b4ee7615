"""Objects of a finished output that are found again with other settings: nothing else is made again."""

from functools import cache

import pytest

from kasthuri_ray.output.ledger import Ledger

CUT = ("--shard", "2,32,32", "--block", "2,32,64")
OBJECTS = ("--objects",)
OTHER = ("--object-threshold", "0.9", "--object-extent", "0.5", "--min-size-nm3", 8 * 1080, "--bridge-sections", 1)


@pytest.fixture(scope="module")
def fresh(local_ray, run_segment, tmp_path_factory):
    """Return `fresh(*flags)`: the folder of an output of one command, which is run once."""
    folder = tmp_path_factory.mktemp("fresh")

    @cache
    def write(*flags):
        path = folder / str(len(list(folder.iterdir())))
        assert run_segment("--output", path / "out.zarr", *CUT, *flags) == 0
        return path

    return write


@pytest.fixture
def all_files(read_files):
    """Return `all_files(folder)`: the files of an output, of its ledger and its table, but not of its progress."""

    def read(folder):
        return {
            name: data for name, data in read_files(folder).items() if not name.endswith(("progress.json", "lock.json"))
        }

    return read


def voxel_times(folder):
    """Return when each file of voxels and each record of a segmented block was written."""
    files = [*(folder / "out.zarr/s0").rglob("*"), *(folder / "out.zarr.ledger/s0").rglob("*")]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


@pytest.mark.slow
def test_other_object_settings_make_only_the_table_again_as_a_fresh_output_has_it(segment, fresh, all_files, tmp_path):
    flags = ("--output", tmp_path / "out.zarr", *CUT, "--objects")
    segment(*flags)
    first, times = all_files(tmp_path), voxel_times(tmp_path)
    again = segment(*flags, *OTHER)
    (line,) = [line for line in again.lines if line.startswith("objects are found again with other settings")]
    assert "the voxels stay: objects.bridge_sections: 0 -> 1; objects.extent: [0.4] -> [0.5]" in line
    assert "objects.min_size: [0.0] -> [8640.0]" in line
    assert voxel_times(tmp_path) == times
    assert all_files(tmp_path) == all_files(fresh(*OBJECTS, *OTHER)) != first
    assert not any("found again" in line for line in segment(*flags, *OTHER).lines), "these settings stand now"
    segment(*flags)
    assert all_files(tmp_path) == first == all_files(fresh(*OBJECTS))
    assert voxel_times(tmp_path) == times


@pytest.mark.slow
def test_the_label_image_is_made_again_too_or_removed(segment, fresh, all_files, tmp_path):
    flags = ("--output", tmp_path / "out.zarr", *CUT)
    segment(*flags, "--save-objects")
    segment(*flags, "--save-objects", *OTHER)
    assert all_files(tmp_path) == all_files(fresh("--save-objects", *OTHER))
    removed = segment(*flags, "--objects")
    assert "the label image of the earlier objects is removed; --save-objects writes one of these" in removed.lines
    assert all_files(tmp_path) == all_files(fresh(*OBJECTS))


@pytest.mark.slow
def test_a_mask_stays_listed_when_the_label_image_of_objects_goes(segment, read_json, tmp_path):
    flags = ("--output", tmp_path / "out.zarr", *CUT, "--save-mask")
    segment(*flags, "--save-objects")
    segment(*flags, "--objects", *OTHER)
    labels = read_json(tmp_path / "out.zarr/labels/zarr.json")["attributes"]["ome"]["labels"]
    assert labels == ["synapse"]
    assert not (tmp_path / "out.zarr/labels/synapse_objects").exists()


@pytest.mark.slow
def test_a_stop_while_the_earlier_objects_are_removed_leaves_both_commands_possible(
    segment, fresh, all_files, tmp_path, monkeypatch
):
    flags = ("--output", tmp_path / "out.zarr", *CUT, "--objects")
    segment(*flags)
    for more in ((), OTHER):
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "restart", lambda *_: (_ for _ in ()).throw(OSError("no answer")))
            segment(*flags, *OTHER, code=1)
        assert not (tmp_path / "out.zarr.synapses.csv").exists()
        segment(*flags, *more)
        assert all_files(tmp_path) == all_files(fresh(*OBJECTS, *more))


def test_other_object_settings_without_objects_and_other_settings_of_voxels_are_refused(segment, fresh):
    flags = ("--output", fresh(*OBJECTS) / "out.zarr", *CUT)
    assert "objects.seed: missing -> [0.9]" in segment(*flags, *OTHER, code=2).err
    refused = segment(*flags, "--objects", *OTHER, "--threshold", "0.7", code=2)
    assert "threshold: 0.4 -> 0.7" in refused.err


@pytest.mark.slow
def test_a_precomputed_copy_stays_that_of_its_output(segment, tmp_path):
    flags = ("--output", tmp_path / "out.zarr", *CUT, "--objects", "--precomputed", tmp_path / "copy")
    segment(*flags)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "copy").rglob("*") if "-" in file.name}
    assert times
    segment(*flags, *OTHER)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert "0.9" in (tmp_path / "copy/provenance").read_text()
