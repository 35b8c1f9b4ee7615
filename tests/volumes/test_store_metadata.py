"""Metadata of stores: axes, voxel sizes, translations and pyramids of zarr, OME-Zarr and N5, read by `open_store`."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place
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
    with pytest.raises(ValueError, match=r"2 channels, shape \(2, 12, 40, 50\)"):
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


def write_zarr(path: Path, voxels: np.ndarray, attributes: dict, format: int = 2, name: str = "em") -> str:
    group = zarr.open_group(path, mode="a", zarr_format=format)
    group.create_array(name, data=voxels, chunks=(4, 16, 16)).attrs.update(attributes)
    return f"{path}/{name}"


@pytest.mark.parametrize("key", ["resolution", "voxel_size"])
@pytest.mark.parametrize(("units", "factor"), [({}, 1), ({"units": ["nm"] * 3}, 1), ({"units": ["um"] * 3}, 1000)])
def test_offset_and_voxel_size_of_gunpowder_and_funlib_are_the_place_of_a_zarr(
    tmp_path, voxels, check, key, units, factor
):
    attributes = {"offset": [300, 60, 120], key: [30, 6, 4], **units}
    volume = open_volume(write_zarr(tmp_path / "x.zarr", voxels, attributes))
    check(volume, voxels)
    assert volume.voxel_size_nm == (30 * factor, 6 * factor, 4 * factor)
    assert volume.place == Place((300 * factor, 60 * factor, 120 * factor), "corner", "offset")
    assert volume.bounds.start == (0, 0, 0)


def test_offsets_follow_the_stored_axes_and_leave_out_channels(tmp_path, voxels):
    attributes = {"axis_names": ["c^", "x", "y", "z"], "offset": [4, 6, 30], "voxel_size": [4, 6, 30]}
    group = zarr.open_group(tmp_path / "x.zarr", mode="a", zarr_format=3)
    group.create_array("em", data=voxels.transpose(2, 1, 0)[None]).attrs.update(attributes)
    volume = open_volume(str(tmp_path / "x.zarr" / "em"))
    assert (volume.voxel_size_nm, volume.translation_nm) == ((30, 6, 4), (30, 6, 4))
    assert volume.shape == SHAPE


def test_an_offset_of_n5_is_in_the_order_x_y_z(tmp_path, voxels, check):
    write("n5", tmp_path / "x.n5" / "em", voxels.transpose(2, 1, 0))
    attributes = {"offset": [120, 60, 300], "resolution": [4, 6, 30]}
    write_attributes(tmp_path / "x.n5" / "em", "attributes.json", attributes)
    volume = open_volume(str(tmp_path / "x.n5" / "em"))
    check(volume, voxels)
    assert volume.voxel_size_nm == (30, 6, 4)
    assert volume.place == Place((300, 60, 120), "corner", "offset")


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
@pytest.mark.parametrize("driver", ["n5", "zarr"])
def test_the_translate_of_cosem_is_in_the_order_of_its_axes(tmp_path, voxels, axes, driver):
    values = {"z": (30, 315), "y": (6, 63), "x": (4, 122)}
    transform = {
        "axes": list(axes), "units": ["nm"] * 3,
        "scale": [values[name][0] for name in axes], "translate": [values[name][1] for name in axes],
    }  # fmt: skip
    if driver == "n5":
        path = str(tmp_path / "x.n5" / "em")
        write("n5", Path(path), voxels.transpose(2, 1, 0))
        write_attributes(Path(path), "attributes.json", {"transform": transform, "offset": [1, 2, 3]})
    else:
        path = write_zarr(
            tmp_path / "x.zarr", voxels, {"transform": transform, "offset": [1, 2, 3], "resolution": [1, 1, 1]}
        )
    volume = open_volume(path)
    assert volume.voxel_size_nm == (30, 6, 4)
    assert volume.place == Place((315, 63, 122), "middle", "transform")


def test_of_several_places_omes_translation_comes_first(tmp_path, voxels):
    other = {"offset": [1, 2, 3], "resolution": [9, 9, 9]}
    path = write_zarr(tmp_path / "x.zarr", voxels, other, name="s0")
    group = zarr.open_group(tmp_path / "x.zarr", mode="a")
    metadata = ome(["s0"], [(30, 6, 4)])
    group.attrs.update(metadata)
    assert open_volume(path).place == Place((1, 2, 3), "corner", "offset")  # OME states none
    transformations = metadata["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    transformations.append({"type": "translation", "translation": [315, 63, 122]})
    group.attrs.update(metadata)
    volume = open_volume(path)
    assert volume.voxel_size_nm == (30, 6, 4)
    assert volume.place == Place((315, 63, 122), "middle", "OME translation")


def test_an_offset_without_a_voxel_size_has_no_known_unit_and_is_no_place(tmp_path, voxels):
    volume = open_volume(write_zarr(tmp_path / "x.zarr", voxels, {"offset": [1, 2, 3]}))
    assert (volume.voxel_size_nm, volume.place) == (None, None)


@pytest.mark.parametrize("where", ["level", "whole"])
@pytest.mark.parametrize("kind", ["scale", "translation"])
def test_numbers_that_do_not_fit_the_axes_are_refused_with_the_file_and_the_way_out(
    tmp_path, voxels, where, kind, check
):
    metadata = ome(["0"], [(1, 30, 6, 4)], axes="czyx")
    wrong = {"type": kind, kind: [3, 0.4, 0.5]}
    if where == "level":
        metadata["multiscales"][0]["datasets"][0]["coordinateTransformations"].append(wrong)
    else:
        metadata["multiscales"][0]["coordinateTransformations"] = [wrong]
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": metadata})
    group.create_array("0", data=voxels[None])
    path = str(tmp_path / "x.zarr")
    for name in (path, f"{path}/0"):
        with pytest.raises(
            InputError, match=rf"{name}: its OME metadata give the {kind} \[3, 0.4, 0.5\].*c,z,y,x.*\?voxel"
        ):
            open_volume(name)
        volume = open_volume(f"{name}?voxel_size_nm=30,6,4")
        check(volume, voxels)
        assert volume.voxel_size_nm == (30, 6, 4)


def test_options_of_the_uri_win_over_the_file(tmp_path, voxels, check):
    path = write_zarr(
        tmp_path / "x.zarr", voxels.transpose(0, 2, 1), {"offset": [300, 60, 120], "resolution": [1, 1, 1]}
    )
    uri = f"{path}?axes=zxy&voxel_size_nm=30,6,4&offset_nm=-30,0,8"
    volume = open_volume(uri)
    check(volume, voxels)
    assert volume.voxel_size_nm == (30, 6, 4)
    assert volume.place == Place((-30, 0, 8), "corner", "?offset_nm")
    assert volume.uri == uri
    assert volume.identity != open_volume(path).identity
    assert open_volume(f"{path}?dtype=int8").read(Box((0, 0, 0), (1, 1, 1))).dtype == np.int8
    with pytest.raises(InputError, match=r"axes=cxyz names 4 axes, but the shape is \(12, 50, 40\)"):
        open_volume(f"{path}?axes=cxyz")
    with pytest.raises(InputError, match="holds uint8, whose bytes cannot be taken for float32"):
        open_volume(f"{path}?dtype=float32")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 12, 40, 50), SHAPE), ((12, 40, 50, 1), SHAPE), ((1, 1, 12, 40, 50), SHAPE), ((12, 1, 40, 50), SHAPE),
     ((40, 50, 1), (1, 40, 50)), ((40, 50), (1, 40, 50)), ((1, 40, 50), (1, 40, 50))],
)  # fmt: skip
@pytest.mark.parametrize("driver", ["zarr", "zarr3", "n5"])
def test_axes_of_length_1_are_dropped_and_an_image_is_one_section(tmp_path, voxels, shape, expected, driver, check):
    stored = voxels[: expected[0]].reshape(shape)
    write(driver, tmp_path / "x", stored.transpose() if driver == "n5" else stored)
    if driver == "n5" and shape[-1] == 1:
        return  # x of length 1
    volume = open_volume(str(tmp_path / "x"))
    assert volume.shape == expected
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels[: expected[0]])


def test_two_dimensional_ome_zarr_is_one_section_and_colours_are_refused(tmp_path, voxels):
    for name, stored in (("grey", voxels[:1]), ("rgb", voxels[:3])):
        metadata = ome(["0"], [(1, 6, 4)], axes="cyx")
        zarr.create_group(tmp_path / name, attributes={"ome": metadata}).create_array("0", data=stored)
    volume = open_volume(str(tmp_path / "grey"))
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels[:1])
    with pytest.raises(InputError, match="3 channels"):
        open_volume(str(tmp_path / "rgb"))


def test_an_array_inside_a_pyramid_has_the_size_and_the_place_of_its_level(tmp_path, voxels, check):
    """ngff-zarr puts each level into a folder of its own."""
    metadata = ome(["scale0/image", "scale1/image"], [(30, 6, 4), (30, 12, 8)])
    shift = {"type": "translation", "translation": [0, 3, 2]}
    metadata["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(shift)
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": metadata})
    for number, level in enumerate((voxels, voxels[:, ::2, ::2])):
        group.create_array(f"scale{number}/image", data=level)
    path = str(tmp_path / "x.zarr")
    for mip, factor in ((0, 1), (1, 2)):
        for name in (f"{path}#mip={mip}", f"{path}/scale{mip}/image"):
            volume = open_volume(name)
            check(volume, voxels[:, ::factor, ::factor])
            assert volume.voxel_size_nm == (30, 6 * factor, 4 * factor)
            assert volume.place == Place((0, 3 * mip, 2 * mip), "middle", "OME translation", stated=bool(mip))
            assert volume.pyramid == open_volume(path).pyramid


def test_a_transform_goes_with_its_axes_where_the_uri_names_the_axes(tmp_path):
    transform = {"axes": ["z", "y", "x"], "scale": [4, 5, 40], "translate": [1, 2, 3], "units": ["nm"] * 3}
    array = zarr.create_array(tmp_path / "x.zarr", data=np.zeros((4, 5, 6), np.uint8), zarr_format=2)
    array.attrs["transform"] = transform
    volume = open_volume(f"{tmp_path}/x.zarr?axes=xyz")
    assert (volume.shape, volume.voxel_size_nm, volume.place.origin_nm) == ((6, 5, 4), (40, 5, 4), (3, 2, 1))
    array.attrs.update(transform=None, resolution=[4, 5, 40], offset=[1, 2, 3], voxel_size_nm_zyx=[7, 8, 9])
    unnamed = open_volume(f"{tmp_path}/x.zarr?axes=xyz")  # without names in the file the size is that of z, y, x
    assert (unnamed.voxel_size_nm, unnamed.place.origin_nm) == ((7, 8, 9), (3, 2, 1))
    array.attrs["_ARRAY_DIMENSIONS"] = ["z", "y", "x"]
    assert open_volume(f"{tmp_path}/x.zarr?axes=xyz").voxel_size_nm == (9, 8, 7)


@pytest.mark.parametrize("offset", [[0, float("nan"), 0], [float("inf"), 0, 0], [0, 10**400, 0], [1, 2], "x"])
@pytest.mark.parametrize("format", ["zarr", "n5"])
def test_an_offset_that_is_not_three_numbers_is_a_line(tmp_path, format, offset):
    spec = {"driver": format, "kvstore": {"driver": "file", "path": str(tmp_path / "x")}}
    ts.open(spec, create=True, dtype=ts.uint8, shape=(4, 5, 6)).result()[...] = 1
    attributes = tmp_path / "x" / (".zattrs" if format == "zarr" else "attributes.json")
    stated = json.loads(attributes.read_text()) if attributes.exists() else {}
    attributes.write_text(json.dumps(stated | {"resolution": [4, 4, 4], "offset": offset}))
    if format == "n5" and offset not in ([1, 2], "x"):
        with pytest.raises(InputError, match="Invalid JSON"):
            open_volume(str(tmp_path / "x"))
        return
    volume = open_volume(str(tmp_path / "x"))
    assert (volume.voxel_size_nm, volume.place) == ((4, 4, 4), None)
    (note,) = volume.notes
    assert "its offset is not three lengths and does not count; give the place: ?offset_nm=z,y,x" in note
    assert open_volume(f"{tmp_path}/x?offset_nm=1,2,3").notes == ()
