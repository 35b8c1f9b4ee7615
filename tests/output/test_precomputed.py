"""The Neuroglancer precomputed copy of an output."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from kasthuri_ray.output.existing_output import find_existing_output, remove_output
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.precomputed import PrecomputedCopy, voxel_offset
from kasthuri_ray.output.pyramid import plan_levels
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (6, 600, 90)
START = (2, 12, 8)


def make_spec(channels=("synapse",), size=(30.0, 12.0, 12.0), start=START, **more):
    return OutputSpec(
        levels=tuple(plan_levels(SHAPE, size, start, **more)),
        layout=plan_layout(SHAPE, (4, 256, 64), (4, 128, 32)),
        nanometers=size is not None,
        channels=tuple(channels),
        name="synapse",
        record={"image": "bossdb://a/b/c"},
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return outputs of one and of two classes, with chunks and whole shards of zeros."""
    outputs = {}
    for channels in (("synapse",), ("pre", "post")):
        output = OmeZarrOutput.create(str(tmp_path_factory.mktemp("out") / "out.zarr"), make_spec(channels))
        voxels = np.random.default_rng(0).integers(0, 256, (len(channels), *SHAPE), dtype=np.uint8)
        voxels[:, :4, :256, :64] = 0
        output.probabilities.write_block(0, output.spec.levels[0].box, voxels)
        output.probabilities.downsample_block(1, output.spec.levels[1].box)
        outputs[len(channels)] = output
    return outputs


def copy_output(path, output, encoding="raw"):
    copy = PrecomputedCopy.create(path, output.spec, encoding)
    for level in output.spec.levels:
        grid = output.probabilities.grid(level.number)
        for index in grid:
            copy.copy_block(output.probabilities, level.number, grid.box(index))
    return copy


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_open_volume_reads_every_level_at_the_position_of_the_image(outputs, tmp_path, encoding):
    output = outputs[1]
    copy = copy_output(str(tmp_path / "copy"), output, encoding)
    for level, start in zip(output.spec.levels, (START, (2, 6, 4)), strict=True):
        volume = open_volume(copy.path, mip=level.number)
        assert volume.voxel_size_nm == level.scale
        assert (volume.bounds.start, volume.bounds.shape) == (start, level.shape)
        assert volume.chunk == output.probabilities.level_layout(level.number).chunk
        np.testing.assert_array_equal(volume.read(volume.bounds), output.probabilities.read(level.number, level.box)[0])


def test_tensorstore_reads_every_class_in_the_order_x_y_z(outputs, tmp_path):
    output = outputs[2]
    copy = copy_output(str(tmp_path / "copy"), output)
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{copy.path}/"}}
    store = ts.open(spec).result()
    assert store.domain.inclusive_min == (*START[::-1], 0)
    np.testing.assert_array_equal(store.read().result().T, output.probabilities.read(0, output.spec.levels[0].box))


def test_info_has_the_fields_that_the_format_requires(outputs, tmp_path):
    copy = PrecomputedCopy.create(str(tmp_path / "copy"), outputs[1].spec)
    info = json.loads((tmp_path / "copy/info").read_text())
    assert {key: info[key] for key in ("@type", "type", "data_type", "num_channels")} == {
        "@type": "neuroglancer_multiscale_volume",
        "type": "image",
        "data_type": "uint8",
        "num_channels": 1,
    }
    assert info["scales"][0] == {
        "key": "12_12_30",
        "size": [90, 600, 6],
        "resolution": [12.0, 12.0, 30.0],
        "voxel_offset": [8, 12, 2],
        "chunk_sizes": [[32, 128, 4]],
        "encoding": "raw",
    }
    assert info["scales"][1]["key"] == "24_24_30"
    provenance = json.loads((tmp_path / "copy/provenance").read_text())
    assert provenance["sources"] == ["bossdb://a/b/c"]
    assert copy == PrecomputedCopy.create(copy.path, copy.spec)


def test_chunks_of_zeros_are_not_stored_and_the_same_voxels_have_the_same_bytes(outputs, tmp_path):
    def content(folder):
        return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

    first, second = (content(copy_output(str(tmp_path / name), outputs[1]).path) for name in "ab")
    assert first == second
    names = {path.name for path in first}
    assert "8-40_268-396_2-6" in names  # x, y, z of the second shard along y
    assert "8-40_12-140_2-6" not in names


def test_partial_files_of_a_killed_writer_are_removed_by_the_next(outputs, tmp_path):
    copy = copy_output(str(tmp_path / "copy"), outputs[1])
    before = sorted(Path(copy.path).rglob("*"))
    partial = Path(copy.path) / "12_12_30/8-40_268-396_2-6_363e0538331b0256.__lock"
    assert partial.with_name("8-40_268-396_2-6").exists()
    partial.write_bytes(b"torn" * 50_000)
    probabilities = outputs[1].probabilities
    grid = probabilities.grid(0)
    copy.copy_block(probabilities, 0, grid.box((0, 0, 0)))
    assert partial.exists()
    copy.copy_block(probabilities, 0, grid.box((0, 1, 0)))
    assert sorted(Path(copy.path).rglob("*")) == before


def test_scales_of_an_output_off_the_coarser_grid_are_at_most_half_a_voxel_off():
    spec = make_spec(start=(1, 13, 7), translation_nm=(15.0, 5.0, 0.0))
    for level in spec.levels:
        offset = voxel_offset(spec, level)
        for axis in range(3):
            corner = spec.levels[0].translation[axis]
            assert abs(offset[axis] * level.scale[axis] - corner) <= level.scale[axis] / 2


def test_a_voxel_size_that_is_not_known_is_written_as_one_nm(tmp_path):
    copy = PrecomputedCopy.create(str(tmp_path / "copy"), make_spec(size=None))
    assert open_volume(copy.path).voxel_size_nm == (1.0, 1.0, 1.0)
    assert open_volume(copy.path, mip=1).bounds.start == (2, 6, 4)


def test_an_unknown_encoding_is_refused(tmp_path):
    with pytest.raises(ValueError, match="precomputed encoding 'jpeg': expected one of raw, png"):
        PrecomputedCopy.create(str(tmp_path / "copy"), make_spec(), "jpeg")


def test_a_copy_is_recognized_and_removed(outputs, tmp_path):
    copy = copy_output(str(tmp_path / "copy"), outputs[1])
    found = find_existing_output(copy.path)
    assert found.is_segmentation
    assert found.record == {"image": "bossdb://a/b/c"}
    (tmp_path / "copy/provenance").write_text(json.dumps({"processing": [{"method": "by hand", "by": "me"}]}))
    assert not find_existing_output(copy.path).is_segmentation
    PrecomputedCopy.create(copy.path, copy.spec)
    remove_output(copy.path)
    assert not (tmp_path / "copy").exists()


def test_a_copy_on_s3_is_read_and_removed(outputs, s3):
    output = outputs[1]
    copy = copy_output("s3://some-bucket/copies/one", output)
    volume = open_volume(copy.path, mip=1)
    np.testing.assert_array_equal(
        volume.read(volume.bounds), output.probabilities.read(1, output.spec.levels[1].box)[0]
    )
    assert find_existing_output(copy.path).is_segmentation
    remove_output(copy.path)
    assert "Contents" not in s3.list_objects_v2(Bucket="some-bucket")
