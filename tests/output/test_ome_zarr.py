"""The OME-Zarr of a segmentation: its metadata, its bytes, its pyramid, and how other programs read it."""

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
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.existing_output import find_existing_output, remove_output
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.pyramid import downsample, downsample_labels
from kasthuri_ray.volumes.opening import open_volume


def digests(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory, make_spec, random_probabilities, write_output):
    """Return an output of two classes with a mask, and its voxels."""
    folder = tmp_path_factory.mktemp("written") / "out.zarr"
    voxels = random_probabilities(channels=2)
    return write_output(OmeZarrOutput.create(str(folder), make_spec(("pre", "post"), "synapse")), voxels), voxels


def read_level(array, level):
    return array.read(level, array.levels[level].box)


def test_written_voxels_are_read_again(written):
    output, voxels = written
    np.testing.assert_array_equal(read_level(output.probabilities, 0), voxels)
    box = Box((3, 100, 5), (7, 300, 70))
    np.testing.assert_array_equal(output.probabilities.read(0, box), voxels[(..., *box.slices())])
    np.testing.assert_array_equal(read_level(output.labels, 0), classes_at(voxels, [0.5] * len(voxels)))


def test_levels_are_means_and_majorities_of_the_level_before(written):
    output, _ = written
    assert [level.shape for level in output.spec.levels] == [(10, 600, 90), (10, 300, 45)]
    for number, level in enumerate(output.spec.levels[1:], 1):
        means = downsample(read_level(output.probabilities, number - 1), level.step)
        np.testing.assert_array_equal(read_level(output.probabilities, number), means)
        majorities = downsample_labels(read_level(output.labels, number - 1), level.step)
        np.testing.assert_array_equal(read_level(output.labels, number), majorities)


def test_a_published_validator_accepts_the_output(written):
    from ome_zarr_models.v05 import Image, ImageLabel, Labels

    group = zarr.open_group(written[0].path, mode="r")
    image = Image.from_zarr(group)
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["c", "z", "y", "x"]
    assert [axis.unit for axis in image.attributes.ome.multiscales[0].axes[1:]] == ["nanometer"] * 3
    assert Labels.from_zarr(group["labels"]).label_paths == ["synapse"]
    label = ImageLabel.from_zarr(group["labels/synapse"])
    assert [color.label_value for color in label.attributes.ome.image_label.colors] == [1, 2]


def test_the_validator_accepts_an_output_without_voxel_size(tmp_path, make_spec):
    from ome_zarr_models.v05 import Image

    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(size=None))
    scales = Image.from_zarr(zarr.open_group(output.path, mode="r")).attributes.ome.multiscales[0]
    assert [axis.unit for axis in scales.axes] == [None] * 4
    assert scales.datasets[0].coordinateTransformations[0].scale == [1.0] * 4
    assert scales.datasets[0].coordinateTransformations[1].translation == [0.0, 2.0, 10.0, 7.0]


def test_zarr_python_reads_the_output(written):
    output, voxels = written
    group = zarr.open_group(output.path, mode="r")
    array = group["s0"]
    np.testing.assert_array_equal(array[:], voxels)
    assert array.metadata.dimension_names == ("c", "z", "y", "x")
    assert (array.shards, array.chunks, array.fill_value) == ((1, 4, 128, 64), (1, 4, 64, 32), 0)
    assert group.attrs["kasthuri_ray"] == {"image": "file:///em", "box": "2:12,10:610,7:97"}
    np.testing.assert_array_equal(group["labels/synapse/s0"][:], classes_at(voxels, [0.5] * len(voxels)))
    omero = group.attrs["ome"]["omero"]["channels"]
    assert [(channel["label"], channel["window"]["end"]) for channel in omero] == [("pre", 255.0), ("post", 255.0)]


def test_tensorstore_reads_the_output_and_detects_a_flipped_bit(written, tmp_path):
    output, voxels = written
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
def test_open_volume_reads_the_output_at_the_position_of_the_image(
    tmp_path, mip, make_spec, random_probabilities, write_output
):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(mask="synapse"))
    write_output(output, random_probabilities())
    level = output.spec.levels[mip]
    for array in output.arrays:
        volume = open_volume(array.path, mip=mip)
        assert volume.voxel_size_nm == level.scale
        assert volume.translation_nm == level.translation
        expected = read_level(array, mip).reshape(level.shape)
        np.testing.assert_array_equal(volume.read(volume.bounds), expected)
    assert output.spec.levels[0].translation == (60.0, 120.0, 84.0)


def test_the_same_spec_and_voxels_have_the_same_bytes(written, tmp_path, make_spec, write_output):
    output, voxels = written
    again = OmeZarrOutput.create(str(tmp_path / "again.zarr"), make_spec(("pre", "post"), "synapse"))
    write_output(again, voxels, order=-1)
    assert digests(again.path) == digests(output.path)
    write_output(again, voxels)  # over the earlier voxels
    assert digests(again.path) == digests(output.path)
    assert OmeZarrOutput.create(again.path, again.spec) == again
    assert digests(again.path) == digests(output.path)


def test_another_process_writes_the_same_bytes(tmp_path, make_spec, random_probabilities):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    voxels, box = random_probabilities(), Box((0, 0, 0), (4, 128, 64))
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((output, box, voxels[(..., *box.slices())])))
    code = f"import pickle; o, b, v = pickle.load(open({str(work)!r}, 'rb')); o.probabilities.write_block(0, b, v)"
    subprocess.run([sys.executable, "-c", code], check=True)
    first = digests(output.path)
    assert "s0/c/0/0/0/0" in first
    output.probabilities.write_block(0, box, voxels[(..., *box.slices())])
    assert digests(output.path) == first


def test_shards_of_zeros_are_not_stored_and_read_as_zeros(tmp_path, make_spec):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    box = output.probabilities.grid(0).box((0, 0, 0))
    assert output.probabilities.write_block(0, box, np.ones((1, *box.shape), np.uint8))
    assert (Path(output.path) / "s0/c/0/0/0/0").exists()
    assert not output.probabilities.write_block(0, box, np.zeros((1, *box.shape), np.uint8))
    assert not (Path(output.path) / "s0/c/0/0/0/0").exists()
    assert not output.probabilities.read(0, box).any()
    assert not output.probabilities.downsample_block(1, output.probabilities.grid(1).box((0, 0, 0)))
    assert not (Path(output.path) / "s1/c").exists()


def test_partial_files_of_a_killed_writer_are_removed_by_the_next(tmp_path, make_spec, random_probabilities):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    box, voxels = output.probabilities.grid(0).box((0, 0, 0)), random_probabilities()
    part = np.ascontiguousarray(voxels[(..., *box.slices())])
    output.probabilities.write_block(0, box, part)
    clean = digests(output.path)
    folder = Path(output.path) / "s0/c/0/0/0"

    def leave_partial_files():
        """Create partial files as of a killed writer of this shard, and as of a live writer of the next shard."""
        (folder / "0_363e0538331b0256.__lock").write_bytes(b"torn" * 50_000)
        (folder / "1_363e0538331b0256.__lock").write_bytes(b"torn")

    leave_partial_files()
    output.probabilities.write_block(0, box, part)
    (folder / "1_363e0538331b0256.__lock").unlink()
    assert digests(output.path) == clean
    leave_partial_files()
    output.probabilities.write_block(0, box, np.zeros_like(part))
    assert [name for name in digests(output.path) if "s0/c" in name] == ["s0/c/0/0/0/1_363e0538331b0256.__lock"]


def test_a_block_that_cuts_a_shard_is_refused(tmp_path, make_spec):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    for box in (Box((0, 0, 0), (4, 100, 64)), Box((1, 0, 0), (4, 128, 64)), Box((8, 512, 64), (12, 600, 90))):
        with pytest.raises(ValueError, match="is not whole shards"):
            output.probabilities.write_block(0, box, np.zeros((1, *box.shape), np.uint8))
    last = Box((8, 512, 64), (10, 600, 90))
    assert output.probabilities.write_block(0, last, np.ones((1, *last.shape), np.uint8))


def test_each_shard_is_written_once(tmp_path, monkeypatch, make_spec, random_probabilities):
    """A killed writer leaves old shards or new ones: each is created by one rename of a file that is on the disk."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    work = tmp_path / "work.pickle"
    box = Box((0, 0, 0), (4, 256, 90))
    work.write_bytes(pickle.dumps((output, box, random_probabilities()[(..., *box.slices())])))
    code = f"import pickle; o, b, v = pickle.load(open({str(work)!r}, 'rb')); o.probabilities.write_block(0, b, v)"
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


def test_an_opened_output_equals_the_created_one(written):
    output, _ = written
    again = OmeZarrOutput.open(output.path)
    assert again == output
    assert again.spec.record == output.spec.record
    np.testing.assert_array_equal(read_level(again.probabilities, 1), read_level(output.probabilities, 1))


def test_opening_anything_but_an_output_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no output of a segmentation"):
        OmeZarrOutput.open(str(tmp_path / "nothing.zarr"))
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    (tmp_path / "run/checkpoint/best.pt").touch()
    with pytest.raises(FileNotFoundError, match="it is the folder of a training run"):
        OmeZarrOutput.open(str(tmp_path / "run"))
    zarr.create_group(tmp_path / "other.zarr").create_array("s0", shape=(2, 2, 2), dtype="u1")
    with pytest.raises(ValueError, match="is not an output of a segmentation"):
        OmeZarrOutput.open(str(tmp_path / "other.zarr"))


def test_a_missing_array_is_an_error_that_names_it(tmp_path, make_spec):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec())
    shutil.rmtree(f"{output.path}/s1")
    with pytest.raises(FileNotFoundError, match=r"s1.* could not be opened"):
        output.probabilities.read(1, output.spec.levels[1].box)


def test_the_name_of_a_label_image_is_checked(make_spec):
    with pytest.raises(ValueError, match="'a/b' cannot name a label image"):
        make_spec(mask="a/b")


def test_an_interrupted_creation_is_completed(tmp_path, make_spec):
    spec = make_spec(mask="synapse")
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), spec)
    documents = digests(output.path)
    for name in ("s1", "labels"):
        shutil.rmtree(tmp_path / "out.zarr" / name)
    assert find_existing_output(output.path).is_segmentation
    OmeZarrOutput.create(output.path, spec)
    assert digests(output.path) == documents


def keys_of(client, prefix):
    return [item["Key"] for item in client.list_objects_v2(Bucket="some-bucket", Prefix=prefix).get("Contents", [])]


def test_an_output_on_s3_has_the_bytes_of_one_on_the_disk(s3, tmp_path, make_spec, random_probabilities, write_output):
    shape = (4, 520, 64)
    voxels = random_probabilities(shape, channels=2)
    local = write_output(
        OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(("pre", "post"), "synapse", shape=shape)), voxels
    )
    output = write_output(OmeZarrOutput.create("s3://some-bucket/deep/out.zarr", local.spec), voxels)
    expected = digests(local.path)
    assert sorted(keys_of(s3, "deep/out.zarr/")) == sorted(f"deep/out.zarr/{name}" for name in expected)
    for name, digest in expected.items():
        data = s3.get_object(Bucket="some-bucket", Key=f"deep/out.zarr/{name}")["Body"].read()
        assert hashlib.sha256(data).hexdigest() == digest, name
    again = OmeZarrOutput.open("s3://some-bucket/deep/out.zarr")
    assert again == output
    np.testing.assert_array_equal(
        again.probabilities.read(1, again.spec.levels[1].box), read_level(local.probabilities, 1)
    )
    assert find_existing_output(output.path).is_segmentation
    remove_output(output.path)
    assert keys_of(s3, "") == []
    assert find_existing_output(output.path) is None


def test_a_full_disk_is_an_error_and_keeps_finished_blocks(tmp_path, make_spec):
    """Run on a disk of 1 MB that is mounted in a namespace of its own."""
    unshare = shutil.which("unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk}"
    if unshare is None or subprocess.run([unshare, "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted in a namespace")
    spec = make_spec(shape=(64, 256, 256))
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((str(disk / "out.zarr"), spec)))
    code = f"""
import errno, json, pickle, numpy as np
from pathlib import Path
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
path, spec = pickle.load(open({str(work)!r}, "rb"))
output, ledger = OmeZarrOutput.create(path, spec), Ledger.beside(path)
rng, grid, caught = np.random.default_rng(0), output.probabilities.grid(0), []
written = {{}}
for index in grid:
    box = grid.box(index)
    voxels = rng.integers(0, 256, (1, *box.shape), dtype=np.uint8)
    try:
        output.probabilities.write_block(0, box, voxels)
        ledger.record("s0", "_".join(map(str, index)))
        written[index] = voxels
    except OSError as error:
        caught.append((error.errno, str(error)))
        break
while True:
    try:
        ledger.record("s1", str(len(caught)), {{"a": "b" * 60000}})
        caught.append(0)
    except OSError as error:
        caught.append((error.errno, str(error)))
        break
same = [bool((output.probabilities.read(0, grid.box(i)) == v).all()) for i, v in written.items()]
parts = [str(p) for p in Path(path).rglob("*") if p.is_file() and p.name.isdigit()]
done = len(ledger.done("s0")), len(ledger.done("s1"))
print(json.dumps([caught[0], caught[-1], same, len(parts), done, caught.count(0), errno.ENOSPC]))
"""
    (tmp_path / "fill.py").write_text(code)
    command = f"{mount} && exec {sys.executable} {tmp_path / 'fill.py'}"
    run = subprocess.run([unshare, "-rm", "sh", "-c", command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    block, record, same, parts, done, records, full = json.loads(run.stdout)
    for number, message in (block, record):
        assert number == full
        assert "the disk is full" in message
        assert "Free some space" in message
    assert all(same)
    assert len(same) >= 5
    assert parts == len(same) == done[0]
    assert done[1] == records
