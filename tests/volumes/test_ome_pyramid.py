"""OME-Zarr metadata of every version and in odd forms: what is read, and what is refused with the way out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place

AXES = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
SCALE = {"type": "scale", "scale": [0.03, 0.006, 0.004]}
TRANSLATION = {"type": "translation", "translation": [1.5, 0.6, 0.4]}
SIZE_NM = (30, 6, 4)
PLACE = Place((1500, 600, 400), "middle", "OME translation")


def level(path: Any, *transformations: Any) -> dict[str, Any]:
    return {"path": path, "coordinateTransformations": list(transformations)}


def write(path: Path, multiscales: Any, **arrays: np.ndarray) -> str:
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": multiscales}})
    for name, array in arrays.items():
        group.create_array(name, data=array, chunks=(4, 16, 16))
    return str(path)


@pytest.mark.parametrize("order", ["zyx", "xyz"])
@pytest.mark.parametrize("form", ["sequence", "list"])
def test_coordinate_systems_and_sequences_of_version_0_6_are_read(tmp_path, voxels, check, order, form):
    """https://github.com/ome/ome-zarr-py/issues/595: a reader of 0.5 finds neither axes nor scale."""
    kept = ["zyx".index(axis) for axis in order]
    scale = {**SCALE, "scale": [SCALE["scale"][axis] for axis in kept]}
    translation = {**TRANSLATION, "translation": [TRANSLATION["translation"][axis] for axis in kept]}
    names = {"input": "s0", "output": "physical"}
    sequence = {"type": "sequence", "transformations": [scale, translation], **names}
    systems = [{"name": "other", "axes": AXES[:1] * 3}, {"name": "physical", "axes": [AXES[axis] for axis in kept]}]
    transformations = [sequence] if form == "sequence" else [scale | names, translation | names]
    to_world = {"type": "scale", "scale": [9, 9, 9], "input": "physical", "output": "other"}
    multiscale = {"coordinateSystems": systems, "coordinateTransformations": [to_world]}
    multiscale["datasets"] = [level("s0", *transformations)]
    volume = open_volume(write(tmp_path / "x.zarr", [multiscale], s0=voxels.transpose(kept)))
    check(volume, voxels)
    assert volume.voxel_size_nm == SIZE_NM
    assert volume.place == PLACE


@pytest.mark.parametrize(
    ("transformation", "problem"),
    [
        ({"type": "affine", "affine": [[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0]]}, "of the type 'affine'"),
        ({"type": "rotation", "rotation": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]}, "of the type 'rotation'"),
        ({"type": "scale", "path": "scale"}, "of the type 'scale', which is not read"),
        ({"type": "sequence", "transformations": [{"type": "mapAxis"}]}, "of the type 'mapAxis'"),
        ({"type": "scale", "scale": [1, -1, 1]}, r"the scale \[1, -1, 1\].*mirrored axes are not read"),
        ({"type": "scale", "scale": [1, 0, 1]}, r"the scale \[1, 0, 1\].*positive"),
        ({"type": "scale", "scale": ["1", "1", "1"]}, "expected a number for each of the axes z,y,x"),
        (None, "the transformation None"),
    ],
)
def test_transformations_that_are_not_read_are_refused_with_the_way_out(
    tmp_path, voxels, check, transformation, problem
):
    """https://github.com/hms-dbmi/vizarr/issues/297: a mirrored image is shown as it is stored."""
    path = write(tmp_path / "x.zarr", [{"axes": AXES, "datasets": [level("s0", SCALE, transformation)]}], s0=voxels)
    for name in (path, f"{path}/s0"):
        with pytest.raises(InputError, match=rf"its OME metadata give .*{problem}.*\?voxel_size_nm=z,y,x"):
            open_volume(name)
        check(open_volume(f"{name}?voxel_size_nm=30,6,4"), voxels)


def test_an_identity_changes_nothing(tmp_path, voxels):
    datasets = [level("s0", {"type": "identity"}, SCALE, TRANSLATION)]
    volume = open_volume(write(tmp_path / "x.zarr", [{"axes": AXES, "datasets": datasets}], s0=voxels))
    assert (volume.voxel_size_nm, volume.place) == (SIZE_NM, PLACE)


@pytest.mark.parametrize("path", ["./s0", "s0/", "/s0"])
def test_paths_of_levels_may_be_written_in_other_ways(tmp_path, voxels, path):
    group = write(tmp_path / "x.zarr", [{"axes": AXES, "datasets": [level(path, SCALE, TRANSLATION)]}], s0=voxels)
    for name in (group, f"{group}/s0"):
        assert open_volume(name).place == PLACE


def test_of_several_pyramids_in_a_group_none_is_chosen(tmp_path, voxels, check):
    """https://github.com/ome/ZarrReader/issues/44: most readers show the first one and say nothing."""
    multiscales = [{"axes": AXES, "datasets": [level(name, SCALE, TRANSLATION)]} for name in ("em", "ct")]
    path = write(tmp_path / "x.zarr", multiscales, em=voxels, ct=voxels + 1)
    with pytest.raises(InputError, match=r"x.zarr holds 2 images; name an array: em, ct"):
        open_volume(path)
    volume = open_volume(f"{path}/ct")
    check(volume, voxels + 1)
    assert (volume.voxel_size_nm, volume.place) == (SIZE_NM, PLACE)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("format", [2, 3])
def test_of_several_images_of_bioformats2raw_none_is_chosen(tmp_path, voxels, check, listed, format):
    """https://github.com/bioio-devs/bioio-ome-zarr/issues/121: readers should not default to the first image."""
    wrap = (lambda attributes: {"ome": attributes}) if format == 3 else dict
    group = zarr.create_group(tmp_path / "x.zarr", attributes=wrap({"bioformats2raw.layout": 3}), zarr_format=format)
    ome = wrap({"multiscales": [{"axes": AXES, "datasets": [level("0", SCALE, TRANSLATION)]}]})
    group.create_group("0", attributes=ome).create_array("0", data=voxels, chunks=(4, 16, 16))
    path = str(tmp_path / "x.zarr")
    check(open_volume(path), voxels)
    group.create_group("1", attributes=ome).create_array("0", data=voxels + 1, chunks=(4, 16, 16))
    if listed:
        group.create_group("OME", attributes=wrap({"series": ["0", "1"]}))
    with pytest.raises(InputError, match=r"x.zarr holds 2 images; name one: 0, 1"):
        open_volume(path)
    volume = open_volume(f"{path}/1")
    check(volume, voxels + 1)
    assert (volume.voxel_size_nm, volume.place) == (SIZE_NM, PLACE)


def test_the_only_image_of_bioformats2raw_is_the_one_that_it_lists(tmp_path, voxels, check):
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": {"bioformats2raw.layout": 3}})
    group.create_group("OME", attributes={"ome": {"series": ["em"]}})
    group.create_group("em", attributes={"ome": {"multiscales": [{"axes": AXES, "datasets": [level("0", SCALE)]}]}})
    group["em"].create_array("0", data=voxels, chunks=(4, 16, 16))
    check(open_volume(str(tmp_path / "x.zarr")), voxels)


@pytest.mark.parametrize(
    "multiscales",
    [[{"axes": AXES}], [{"axes": AXES, "datasets": [{"coordinateTransformations": [SCALE]}]}], {"axes": AXES}, [None]],
)
def test_a_group_whose_metadata_name_no_array_is_no_pyramid(tmp_path, voxels, multiscales):
    with pytest.raises(InputError, match=r"x.zarr is a group, not an array; name one: s0"):
        open_volume(write(tmp_path / "x.zarr", multiscales, s0=voxels))


def test_scale_and_translation_go_with_their_axis_where_the_uri_names_the_axes(tmp_path, voxels, check):
    path = write(tmp_path / "x.zarr", [{"axes": AXES, "datasets": [level("0", SCALE, TRANSLATION)]}], **{"0": voxels.T})
    volume = open_volume(f"{path}?axes=xyz")
    check(volume, voxels)
    assert volume.voxel_size_nm == SIZE_NM[::-1]
    assert volume.place.origin_nm == PLACE.origin_nm[::-1]
    assert open_volume(f"{path}?axes=zyx").voxel_size_nm == open_volume(path).voxel_size_nm == SIZE_NM
    given = open_volume(f"{path}?axes=xyz&voxel_size_nm=1,2,3&offset_nm=4,5,6")
    assert (given.voxel_size_nm, given.place.origin_nm) == ((1, 2, 3), (4, 5, 6))
