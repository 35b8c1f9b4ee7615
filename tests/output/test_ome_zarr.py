"""The OME-Zarr that a segmentation leaves: its metadata, its bytes, its pyramid, and what others read of it."""

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from kasthuri_ray.geometry import Box
from kasthuri_ray.output.existing_output import find_existing_output, remove_output
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec, label_image
from kasthuri_ray.output.pyramid import downsample, downsample_labels, plan_layout, plan_levels
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (10, 600, 90)
SIZE = (30.0, 12.0, 12.0)
START = (2, 10, 7)


def make_spec(channels=("synapse",), mask=None, size=SIZE, shape=SHAPE, **record):
    return OutputSpec(
        levels=tuple(plan_levels(shape, size, START)),
        layout=plan_layout(shape, (4, 128, 64), (4, 64, 32)),
        nanometers=size is not None,
        channels=tuple(channels),
        name="synapse",
        mask=mask,
        record={"image": "file:///em", "box": "2:12,10:610,7:97", **record},
    )


def probabilities(shape=SHAPE, channels=1, seed=0):
    """Random values, with whole shards of zeros among them."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 256, (channels, *shape), dtype=np.uint8)
    voxels[:, :4, 128:256] = 0
    return voxels


def fill(output, voxels, masks=True, order=1):
    """Write all of an output, block by block: every level, and the mask."""
    grid = output.grid(0, (4, 256, 64))
    for index in list(grid)[::order]:
        box = grid.box(index)
        part = voxels[(..., *box.slices())]
        output.write_block(0, box, part)
        if output.spec.mask and masks:
            output.write_mask(0, box, label_image(part, 0.5))
    for level in output.spec.levels[1:]:
        grid = output.grid(level.number)
        for index in list(grid)[::order]:
            output.build_block(level.number, grid.box(index))
    return output


def digests(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An output of two classes with a mask, and its voxels."""
    folder = tmp_path_factory.mktemp("filled") / "out.zarr"
    voxels = probabilities(channels=2)
    return fill(OmeZarrOutput.create(str(folder), make_spec(("pre", "post"), "synapse")), voxels), voxels


def whole(output, level, mask=False):
    return (output.read_mask if mask else output.read)(level, output.spec.levels[level].box)


def test_what_is_written_is_read(filled):
    output, voxels = filled
    np.testing.assert_array_equal(whole(output, 0), voxels)
    box = Box((3, 100, 5), (7, 300, 70))
    np.testing.assert_array_equal(output.read(0, box), voxels[(..., *box.slices())])
    np.testing.assert_array_equal(whole(output, 0, mask=True), label_image(voxels, 0.5))


def test_levels_are_means_and_majorities_of_the_level_before(filled):
    output, _ = filled
    assert [level.shape for level in output.spec.levels] == [SHAPE, (10, 300, 45)]
    for level in output.spec.levels[1:]:
        np.testing.assert_array_equal(
            whole(output, level.number), downsample(whole(output, level.number - 1), level.step)
        )
        np.testing.assert_array_equal(
            whole(output, level.number, True), downsample_labels(whole(output, level.number - 1, True), level.step)
        )


def test_a_published_validator_finds_nothing_wrong(filled):
    from ome_zarr_models.v05 import Image, ImageLabel, Labels

    group = zarr.open_group(filled[0].path, mode="r")
    image = Image.from_zarr(group)
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["c", "z", "y", "x"]
    assert [axis.unit for axis in image.attributes.ome.multiscales[0].axes[1:]] == ["nanometer"] * 3
    assert Labels.from_zarr(group["labels"]).label_paths == ["synapse"]
    label = ImageLabel.from_zarr(group["labels/synapse"])
    assert [color.label_value for color in label.attributes.ome.image_label.colors] == [1, 2]


def test_the_validator_accepts_an_output_without_voxel_size(tmp_path):
    from ome_zarr_models.v05 import Image

    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(size=None))
    scales = Image.from_zarr(zarr.open_group(output.path, mode="r")).attributes.ome.multiscales[0]
    assert [axis.unit for axis in scales.axes] == [None] * 4
    assert scales.datasets[0].coordinateTransformations[0].scale == [1.0] * 4
    assert scales.datasets[0].coordinateTransformations[1].translation == [0.0, *START]


def test_zarr_python_reads_it(filled):
    output, voxels = filled
    group = zarr.open_group(output.path, mode="r")
    array = group["s0"]
    np.testing.assert_array_equal(array[:], voxels)
    assert array.metadata.dimension_names == ("c", "z", "y", "x")
    assert (array.shards, array.chunks, array.fill_value) == ((1, 4, 128, 64), (1, 4, 64, 32), 0)
    assert group.attrs["kasthuri_ray"] == {"image": "file:///em", "box": "2:12,10:610,7:97"}
    np.testing.assert_array_equal(group["labels/synapse/s0"][:], label_image(voxels, 0.5))
    omero = group.attrs["ome"]["omero"]["channels"]
    assert [(shown["label"], shown["window"]["end"]) for shown in omero] == [("pre", 255.0), ("post", 255.0)]


def test_tensorstore_reads_it_and_notices_a_flipped_bit(filled, tmp_path):
    output, voxels = filled
    folder = shutil.copytree(output.path, tmp_path / "copy")

    def read():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/s0/"}}
        return ts.open(spec).result().read().result()

    np.testing.assert_array_equal(read(), voxels)
    shard = folder / "s0/c/0/1/1/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)zstd|checksum|corrupt"):
        read()


@pytest.mark.parametrize("mip", [0, 1])
def test_our_own_reader_finds_it_where_the_image_was(tmp_path, mip):
    output = fill(OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(mask="synapse")), probabilities())
    level = output.spec.levels[mip]
    for name, mask in ((output.path, False), (f"{output.path}/labels/synapse", True)):
        volume = open_volume(name, mip=mip)
        assert volume.voxel_size_nm == level.scale
        assert volume.translation_nm == level.translation
        expected = whole(output, mip, mask)
        np.testing.assert_array_equal(volume.read(volume.bounds), expected if mask else expected[0])
    assert output.spec.levels[0].translation == (60.0, 120.0, 84.0)


def test_the_same_spec_and_voxels_give_the_same_bytes(filled, tmp_path):
    output, voxels = filled
    again = OmeZarrOutput.create(str(tmp_path / "again.zarr"), make_spec(("pre", "post"), "synapse"))
    fill(again, voxels, order=-1)
    assert digests(again.path) == digests(output.path)
    fill(again, voxels)  # over what is there
    assert digests(again.path) == digests(output.path)
    assert OmeZarrOutput.create(again.path, again.spec) == again
    assert digests(again.path) == digests(output.path)


def test_another_process_writes_the_same_bytes(tmp_path):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    voxels, box = probabilities(), Box((0, 0, 0), (4, 128, 64))
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((output, box, voxels[(..., *box.slices())])))
    code = f"import pickle; o, b, v = pickle.load(open({str(work)!r}, 'rb')); o.write_block(0, b, v)"
    subprocess.run([sys.executable, "-c", code], check=True)
    first = digests(output.path)
    assert "s0/c/0/0/0/0" in first
    output.write_block(0, box, voxels[(..., *box.slices())])
    assert digests(output.path) == first


def test_shards_of_zeros_are_not_stored_and_read_as_zeros(tmp_path):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    box = output.grid(0).box((0, 0, 0))
    assert output.write_block(0, box, np.ones((1, *box.shape), np.uint8))
    assert (Path(output.path) / "s0/c/0/0/0/0").exists()
    assert not output.write_block(0, box, np.zeros((1, *box.shape), np.uint8))
    assert not (Path(output.path) / "s0/c/0/0/0/0").exists()
    assert not output.read(0, box).any()
    assert not output.build_block(1, output.grid(1).box((0, 0, 0)))
    assert not (Path(output.path) / "s1/c").exists()


def test_what_a_killed_writer_left_is_cleared_away_by_the_next(tmp_path):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    box, voxels = output.grid(0).box((0, 0, 0)), probabilities()
    part = np.ascontiguousarray(voxels[(..., *box.slices())])
    output.write_block(0, box, part)
    clean = digests(output.path)
    folder = Path(output.path) / "s0/c/0/0/0"

    def leave():
        """As a killed writer does, of this shard; and one that still writes, of the shard beside it."""
        (folder / "0_363e0538331b0256.__lock").write_bytes(b"torn" * 50_000)
        (folder / "1_363e0538331b0256.__lock").write_bytes(b"torn")

    leave()
    output.write_block(0, box, part)
    (folder / "1_363e0538331b0256.__lock").unlink()
    assert digests(output.path) == clean
    leave()
    output.write_block(0, box, np.zeros_like(part))
    assert [name for name in digests(output.path) if "s0/c" in name] == ["s0/c/0/0/0/1_363e0538331b0256.__lock"]


def test_a_block_that_cuts_a_shard_is_refused(tmp_path):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    for box in (Box((0, 0, 0), (4, 100, 64)), Box((1, 0, 0), (4, 128, 64)), Box((8, 512, 64), (12, 600, 90))):
        with pytest.raises(ValueError, match="is not whole shards"):
            output.write_block(0, box, np.zeros((1, *box.shape), np.uint8))
    last = Box((8, 512, 64), (10, 600, 90))
    assert output.write_block(0, last, np.ones((1, *last.shape), np.uint8))


def test_each_shard_is_written_once(tmp_path, monkeypatch):
    """A writer that is killed leaves old shards or new ones: each comes by one rename of a file that is on the disk."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    work = tmp_path / "work.pickle"
    box = Box((0, 0, 0), (4, 256, 90))
    work.write_bytes(pickle.dumps((output, box, probabilities()[(..., *box.slices())])))
    code = f"import pickle; o, b, v = pickle.load(open({str(work)!r}, 'rb')); o.write_block(0, b, v)"
    log = tmp_path / "log"
    calls = "trace=rename,renameat,renameat2,fsync,fdatasync"
    run = subprocess.run([strace, "-f", "-y", "-e", calls, "-o", log, sys.executable, "-c", code], check=False)
    if run.returncode:
        pytest.skip("strace may not trace here")
    lines = log.read_text().splitlines()
    renamed = [line.rsplit('"', 2)[1] for line in lines if "rename" in line and "s0/c/" in line]
    assert sorted(renamed) == [f"{output.path}/s0/c/0/0/0/{x}" for x in (0, 1)]
    for name in renamed:
        assert any(re.search(rf"fsync.*{name}_[0-9a-f]+\.__lock", line) for line in lines)
        assert any("fsync" in line and line.split(">")[0].endswith("s0/c/0/0/0") for line in lines)


def test_an_output_is_opened_again(filled):
    output, _ = filled
    again = OmeZarrOutput.open(output.path)
    assert again == output
    assert again.spec.record == output.spec.record
    np.testing.assert_array_equal(whole(again, 1), whole(output, 1))


def test_opening_what_is_no_output_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no output of a segmentation"):
        OmeZarrOutput.open(str(tmp_path / "nothing.zarr"))
    zarr.create_group(tmp_path / "other.zarr").create_array("s0", shape=(2, 2, 2), dtype="u1")
    with pytest.raises(ValueError, match="is not an output of a segmentation"):
        OmeZarrOutput.open(str(tmp_path / "other.zarr"))


def test_an_array_that_is_gone_is_said_so(tmp_path):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    shutil.rmtree(f"{output.path}/s1")
    with pytest.raises(FileNotFoundError, match=r"s1.* could not be opened"):
        output.read(1, output.spec.levels[1].box)


def test_a_mask_needs_a_good_name():
    with pytest.raises(ValueError, match="'a/b' is no name of a label image"):
        make_spec(mask="a/b")


def test_a_mask_is_where_the_value_reaches_the_threshold_exactly():
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for threshold, least in ((0.5, 128), (0.2, 51), (0.6, 153), (1.0, 255), (0.0, 0), (1 / 1024, 1)):
        mask = label_image(values, threshold)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask.ravel(), np.arange(256) >= least)


def test_a_mask_of_several_classes_is_the_highest_where_they_reach_the_threshold_together():
    values = np.array([[60, 70, 200, 30, 0], [70, 58, 55, 200, 127]], np.uint8).reshape(2, 1, 1, 5)
    assert label_image(values, 0.5).ravel().tolist() == [2, 1, 1, 2, 0]
    assert label_image(values[:, ..., :1] // 2 * 2, 0.52).ravel().tolist() == [0]
    assert label_image(np.full((2, 1, 1, 1), 64, np.uint8), 0.5).ravel().tolist() == [1]


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (1, 1, 1), (3, 2, 5)])
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (1, 1, 2), (2, 1, 1), (1, 1, 1)])
def test_downsampling_is_the_exact_mean_of_what_a_cell_holds(shape, factors):
    voxels = np.random.default_rng(1).integers(0, 256, (2, *shape), dtype=np.uint8)
    expected = np.empty((2, *(-(-n // f) for n, f in zip(shape, factors, strict=True))), np.uint8)
    for index in np.ndindex(*expected.shape[1:]):
        cell = voxels[(..., *(slice(i * f, i * f + f) for i, f in zip(index, factors, strict=True)))]
        expected[(slice(None), *index)] = np.rint(cell.astype(float).mean(axis=(1, 2, 3)))
    result = downsample(voxels, factors)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result, ts.downsample(ts.array(voxels), [1, *factors], "mean").read().result())


def test_downsampling_has_no_bias():
    voxels = np.random.default_rng(1).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    assert abs(downsample(voxels, (1, 2, 2)).mean() - voxels.mean()) < 0.01


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9)])
@pytest.mark.parametrize("highest", [1, 3])
def test_labels_go_to_the_majority_and_to_the_foreground_where_even(shape, highest):
    labels = np.random.default_rng(1).integers(0, highest + 1, shape, dtype=np.uint8)
    labels *= np.random.default_rng(2).random(shape) < 0.7
    result = downsample_labels(labels, (2, 2, 2))
    for index in np.ndindex(*result.shape):
        cell = labels[tuple(slice(2 * i, 2 * i + 2) for i in index)].ravel()
        counts = np.bincount(cell, minlength=2)
        expected = 0 if counts[0] > cell.size / 2 else 1 + counts[1:].argmax()
        assert result[index] == expected, (index, cell)


def test_what_is_there_is_told(tmp_path):
    assert find_existing_output(str(tmp_path / "nothing")) is None
    (tmp_path / "empty").mkdir()
    assert find_existing_output(str(tmp_path / "empty")) is None
    (tmp_path / "file").write_text("a")
    assert "is a file" in find_existing_output(str(tmp_path / "file")).words
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(weights="abc"))
    found = find_existing_output(f"file://{output.path}")
    assert found.ours
    assert found.record == output.spec.record
    zarr.create_group(tmp_path / "other.zarr", attributes={"a": 1})
    found = find_existing_output(str(tmp_path / "other.zarr"))
    assert (found.ours, found.record) == (False, None)
    assert "a zarr group that no segmentation wrote" in found.words
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/letter.txt").write_text("dear")
    assert "a folder that holds letter.txt" in find_existing_output(str(tmp_path / "folder")).words


def test_an_output_is_removed_and_nothing_else(tmp_path):
    output = fill(OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(mask="synapse")), probabilities())
    (tmp_path / "out.zarr/notes.txt").write_text("mine")
    remove_output(output.path)
    assert [path.name for path in (tmp_path / "out.zarr").iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match=r"a folder that holds notes\.txt: it is not removed; choose another output"):
        remove_output(output.path)
    (tmp_path / "out.zarr/notes.txt").unlink()
    remove_output(output.path)
    OmeZarrOutput.create(output.path, output.spec)
    remove_output(output.path)
    assert not (tmp_path / "out.zarr").exists()
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="no segmentation wrote: it is not removed"):
        remove_output(str(tmp_path / "other.zarr"))


def test_a_creation_that_was_cut_off_is_completed(tmp_path):
    spec = make_spec(mask="synapse")
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), spec)
    documents = digests(output.path)
    for name in ("s1", "labels"):
        shutil.rmtree(tmp_path / "out.zarr" / name)
    assert find_existing_output(output.path).ours
    OmeZarrOutput.create(output.path, spec)
    assert digests(output.path) == documents


def keys_of(client, prefix):
    return [item["Key"] for item in client.list_objects_v2(Bucket="some-bucket", Prefix=prefix).get("Contents", [])]


def test_an_output_on_s3_has_the_bytes_of_one_on_the_disk(s3, tmp_path):
    shape = (4, 520, 64)
    voxels = probabilities(shape, channels=2)
    local = fill(
        OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(("pre", "post"), "synapse", shape=shape)), voxels
    )
    output = fill(OmeZarrOutput.create("s3://some-bucket/deep/out.zarr", local.spec), voxels)
    expected = digests(local.path)
    assert sorted(keys_of(s3, "deep/out.zarr/")) == sorted(f"deep/out.zarr/{name}" for name in expected)
    for name, digest in expected.items():
        data = s3.get_object(Bucket="some-bucket", Key=f"deep/out.zarr/{name}")["Body"].read()
        assert hashlib.sha256(data).hexdigest() == digest, name
    again = OmeZarrOutput.open("s3://some-bucket/deep/out.zarr")
    assert again == output
    np.testing.assert_array_equal(again.read(1, again.spec.levels[1].box), whole(local, 1))
    assert find_existing_output(output.path).ours
    remove_output(output.path)
    assert keys_of(s3, "") == []
    assert find_existing_output(output.path) is None


def test_what_is_there_on_s3_is_told(s3):
    s3.put_object(Bucket="some-bucket", Key="a/letter.txt", Body=b"dear")
    assert "a folder that holds letter.txt" in find_existing_output("s3://some-bucket/a").words
    assert find_existing_output("s3://some-bucket/b") is None
    with pytest.raises(ValueError, match="it is not removed"):
        remove_output("s3://some-bucket/a")
    with pytest.raises(FileNotFoundError, match="no-bucket"):
        OmeZarrOutput.create("s3://no-bucket/a", make_spec())


def test_a_full_disk_is_said_in_words_and_leaves_what_is_done(tmp_path):
    """On a disk of 1 MB of its own, in a namespace of its own."""
    unshare = shutil.which("unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk}"
    if unshare is None or subprocess.run([unshare, "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a disk of its own cannot be mounted here")
    spec = make_spec(shape=(64, 256, 256))
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((str(disk / "out.zarr"), spec)))
    code = f"""
import errno, json, pickle, numpy as np
from pathlib import Path
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
path, spec = pickle.load(open({str(work)!r}, "rb"))
output, ledger = OmeZarrOutput.create(path, spec), Ledger.beside(path)
rng, grid, said = np.random.default_rng(0), output.grid(0), []
written = {{}}
for index in grid:
    box = grid.box(index)
    voxels = rng.integers(0, 256, (1, *box.shape), dtype=np.uint8)
    try:
        output.write_block(0, box, voxels)
        ledger.record("s0", "_".join(map(str, index)))
        written[index] = voxels
    except OSError as error:
        said.append((error.errno, str(error)))
        break
while True:
    try:
        ledger.record("s1", str(len(said)), {{"a": "b" * 60000}})
        said.append(0)
    except OSError as error:
        said.append((error.errno, str(error)))
        break
same = [bool((output.read(0, grid.box(i)) == v).all()) for i, v in written.items()]
parts = [str(p) for p in Path(path).rglob("*") if p.is_file() and p.name.isdigit()]
done = len(ledger.done("s0")), len(ledger.done("s1"))
print(json.dumps([said[0], said[-1], same, len(parts), done, said.count(0), errno.ENOSPC]))
"""
    (tmp_path / "fill.py").write_text(code)
    command = f"{mount} && exec {sys.executable} {tmp_path / 'fill.py'}"
    run = subprocess.run([unshare, "-rm", "sh", "-c", command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    block, record, same, parts, done, records, full = json.loads(run.stdout)
    for number, words in (block, record):
        assert number == full
        assert "the disk is full" in words
        assert "Free some space" in words
    assert all(same)
    assert len(same) >= 5
    assert parts == len(same) == done[0]
    assert done[1] == records
