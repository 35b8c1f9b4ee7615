"""Metadata of stores: axes, voxel sizes, translations and pyramids of zarr, OME-Zarr and N5, read by `open_store`."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from kasthuri_ray.volumes.stores import open_store

SHAPE = (12, 40, 50)


def write(driver: str, path: Path, stored: np.ndarray, **more: object) -> None:
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}, **more}
    store = ts.open(spec, create=True, dtype=stored.dtype.name, shape=stored.shape).result()
    store[...] = stored


def write_attributes(path: Path, name: str, attributes: dict) -> None:
    document = json.loads((path / name).read_text()) if (path / name).exists() else {}
    (path / name).write_text(json.dumps({**document, **attributes}))


def ome(paths: list[str], scales: list, axes: str = "zyx", unit: str = "nanometer", **more: object) -> dict:
    """Return OME-Zarr metadata of a pyramid with these paths and scales."""
    kinds = {"c": "channel", "t": "time"}
    named = [{"name": a, "type": kinds.get(a, "space")} | ({} if a in kinds else {"unit": unit}) for a in axes]
    datasets = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": list(scale)}]}
        for path, scale in zip(paths, scales, strict=True)
    ]
    return {"multiscales": [{"name": "em", "axes": named, "datasets": datasets, **more}]}


@pytest.mark.parametrize("names", ["xyz", "cxyz", "yxz"])
def test_axes_that_are_named_in_another_order_are_transposed(tmp_path, voxels, names, check):
    order = ["zyx".index(name) for name in names if name != "c"]
    stored = voxels.transpose(order).reshape([1] * names.count("c") + [SHAPE[axis] for axis in order])
    zarr.create_array(tmp_path / "x.zarr", data=stored, chunks=stored.shape, dimension_names=list(names))
    check(open_store(str(tmp_path / "x.zarr")), voxels)


def test_axis_names_of_xarray_in_zarr_2_are_used(tmp_path, voxels, check):
    array = zarr.create_array(tmp_path / "x.zarr", data=voxels.transpose(2, 1, 0), zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = ["x", "y", "z"]
    check(open_store(str(tmp_path / "x.zarr")), voxels)


@pytest.mark.parametrize("format", [2, 3])
def test_an_ome_zarr_group_opens_as_its_pyramid(tmp_path, voxels, format, check):
    levels = [voxels, voxels[:, ::2, ::2]]
    scales = [(1, 0.030, 0.004, 0.005), (1, 0.030, 0.008, 0.010)]
    metadata = ome(["s0", "s1"], scales, axes="czyx", unit="micrometer")
    metadata["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(
        {"type": "translation", "translation": [0, 1, 0.002, 0.0025]}
    )
    attributes = {"ome": {"version": "0.5", **metadata}} if format == 3 else metadata
    group = zarr.create_group(tmp_path / "x.zarr", attributes=attributes, zarr_format=format)
    for name, level in zip(("s0", "s1"), levels, strict=True):
        group.create_array(name, data=level[None], chunks=(1, 4, 16, 16))
    path = str(tmp_path / "x.zarr")
    for mip in (0, 1):
        volume = open_store(path, mip=mip)
        check(volume, levels[mip])
        assert volume.voxel_size_nm == pytest.approx((30, 4 << mip, 5 << mip))
        assert volume.chunk == (4, 16, 16)
        check(open_store(volume.uri), levels[mip])
        named = open_store(f"{path}/s{mip}")
        check(named, levels[mip])
        assert named.voxel_size_nm == pytest.approx((30, 4 << mip, 5 << mip))
        check(open_store(f"file://{path}/|{'zarr3' if format == 3 else 'zarr2'}:s{mip}"), levels[mip])
    assert open_store(path, mip=1).translation_nm == pytest.approx((1000, 2, 2.5))
    named = [path, f"{path}#mip=1", f"{path}/s1", f"file://{path}/|{'zarr3' if format == 3 else 'zarr2'}:s1"]
    assert len({open_store(name).pyramid for name in named} - {None}) == 1
    assert len({open_store(name).identity for name in named}) == 2
    assert open_store(path).uri == path
    with pytest.raises(ValueError, match=r"x.zarr has 2 resolutions, mip 0 to 1; mip 2 does not exist"):
        open_store(path, mip=2)
    with pytest.raises(ValueError, match=r"x.zarr/s1 has one resolution, mip 0; mip 1 does not exist"):
        open_store(f"{path}/s1", mip=1)


def test_ome_scales_of_the_pyramid_multiply_those_of_its_levels(tmp_path, voxels):
    whole = [{"type": "scale", "scale": [10, 10, 10]}, {"type": "translation", "translation": [5, 0, 0]}]
    metadata = ome(["0"], [(3, 0.4, 0.5)], coordinateTransformations=whole)
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": metadata})
    group.create_array("0", data=voxels)
    volume = open_store(str(tmp_path / "x.zarr"))
    assert volume.voxel_size_nm == pytest.approx((30, 4, 5))
    assert volume.translation_nm == pytest.approx((5, 0, 0))
    assert volume.bounds.start == (0, 0, 0)


def test_ome_metadata_without_units_have_no_voxel_size(tmp_path, voxels):
    metadata = ome(["0"], [(3, 0.4, 0.5)])
    for axis in metadata["multiscales"][0]["axes"]:
        del axis["unit"]
    group = zarr.create_group(tmp_path / "x.zarr", attributes=metadata, zarr_format=2)
    group.create_array("0", data=voxels)
    assert open_store(str(tmp_path / "x.zarr")).voxel_size_nm is None


def test_the_groups_around_an_ome_zarr_image_lead_to_it(tmp_path, voxels, check):
    """bioformats2raw writes the image as the group `0`; label images are in a group that lists them."""
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": {"bioformats2raw.layout": 3}})
    image = group.create_group("0", attributes={"ome": ome(["0", "1"], [(1, 30, 4, 5), (1, 30, 8, 10)], axes="czyx")})
    image.create_array("0", data=voxels[None])
    image.create_array("1", data=np.stack([voxels, voxels]))
    group.create_group("labels", attributes={"ome": {"labels": ["membrane", "synapse"]}})
    check(open_store(str(tmp_path / "x.zarr")), voxels)
    with pytest.raises(ValueError, match=r"2 channels along axis 0 of its shape \(2, 12, 40, 50\)"):
        open_store(str(tmp_path / "x.zarr"), mip=1)
    with pytest.raises(ValueError, match="labels is a group, not an array; name one: membrane, synapse"):
        open_store(str(tmp_path / "x.zarr" / "labels"))
    (tmp_path / "x.zarr" / "0" / "1" / "zarr.json").unlink()
    with pytest.raises(FileNotFoundError, match="says that its mip 1 is '1', but there is no array"):
        open_store(str(tmp_path / "x.zarr" / "0"), mip=1)


def test_n5_is_transposed_from_x_y_z(tmp_path, voxels, check):
    path = tmp_path / "x.n5"
    metadata = {"blockSize": [16, 16, 4], "compression": {"type": "gzip"}}
    write("n5", path / "em", voxels.transpose(2, 1, 0), metadata=metadata)
    write_attributes(path / "em", "attributes.json", {"pixelResolution": {"dimensions": [4, 5, 30], "unit": "nm"}})
    for name in (f"{path}/em", f"file://{path}/|n5:em"):
        volume = open_store(name)
        check(volume, voxels)
        assert volume.voxel_size_nm == (30, 5, 4)
        assert volume.chunk == (4, 16, 16)


def test_n5_with_several_scales_is_a_pyramid(tmp_path, voxels, check):
    path = tmp_path / "x.n5" / "em"
    levels = [voxels, voxels[:, ::2, ::2]]
    for index, level in enumerate(levels):
        write("n5", path / f"s{index}", level.transpose(2, 1, 0))
        factors = {"downsamplingFactors": [1 << index, 1 << index, 1]}
        write_attributes(path / f"s{index}", "attributes.json", factors)
    for attributes in ({}, {"resolution": [0.004, 0.005, 0.03], "units": ["um"] * 3}):
        write_attributes(path, "attributes.json", attributes)
        for mip, level in enumerate(levels):
            volume = open_store(str(path), mip=mip)
            check(volume, level)
            assert volume.voxel_size_nm == ((30, 5 << mip, 4 << mip) if attributes else None)
    with pytest.raises(ValueError, match="2 resolutions, mip 0 to 1; mip 7 does not exist"):
        open_store(str(path), mip=7)


def test_the_transform_of_cosems_n5_is_the_voxel_size_of_the_level(tmp_path, voxels):
    write("n5", tmp_path / "x.n5" / "s1", voxels.transpose(2, 1, 0))
    transform = {"axes": ["z", "y", "x"], "scale": [30, 8, 10], "units": ["nm"] * 3, "translate": [0, 0, 0]}
    attributes = {"transform": transform, "downsamplingFactors": [2, 2, 1], "pixelResolution": [1, 1, 1]}
    write_attributes(tmp_path / "x.n5" / "s1", "attributes.json", attributes)
    assert open_store(str(tmp_path / "x.n5" / "s1")).voxel_size_nm == (30, 8, 10)
