"""Exported files: what tifffile, h5py and our own reader find in them, and what an interrupted export leaves."""

import errno
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tifffile

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.output import tiff_export
from kasthuri_ray.output.export_file import create_export, read_export_provenance
from kasthuri_ray.output.export_spec import ExportSpec
from kasthuri_ray.volumes.opening import open_volume

SIZE_NM, ORIGIN_NM = (45.0, 4.6, 4.6), (90.0, -23.0, 46.0)
NAMES = ["x.tif", "x.ome.tif", "x.h5"]


def make_spec(voxels: np.ndarray, **changes) -> ExportSpec:
    channels = tuple(f"class {number}" for number in range(len(voxels)))
    provenance = {"output": "/data/out.zarr", "box": "0:1,0:1,0:1", "what": "µ <probabilities>"}
    spec = ExportSpec(voxels.shape[1:], channels, voxels.dtype, SIZE_NM, ORIGIN_NM, 255, provenance)
    return replace(spec, **changes)


def random_voxels(*shape: int, dtype="uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def export(path, voxels: np.ndarray, piece=(4, 30, 90), **changes) -> None:
    """Write voxels in pieces, the last one first."""
    with create_export(str(path), make_spec(voxels, **changes)) as file:
        for box in reversed(list(Box((0, 0, 0), voxels.shape[1:]).cells(piece))):
            file.write(box, voxels[(slice(None), *box.slices())])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("piece", [(4, 30, 90), (3, 16, 40), (7, 70, 90)])
@pytest.mark.parametrize("name", NAMES)
def test_our_own_reader_finds_voxels_size_and_place_again(tmp_path, name, piece, dtype):
    voxels = random_voxels(1, 7, 70, 90, dtype=dtype)
    export(tmp_path / name, voxels, piece)
    volume = open_volume(str(tmp_path / name))
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels[0])
    assert volume.dtype == dtype
    assert volume.voxel_size_nm == SIZE_NM
    assert volume.place.origin_nm == pytest.approx(ORIGIN_NM, rel=1e-12)
    assert volume.place.stated
    assert volume.notes == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_place_of_0_is_stated_too(tmp_path, name):
    export(tmp_path / name, random_voxels(1, 3, 20, 30), origin_nm=(0.0, 0.0, 0.0))
    volume = open_volume(str(tmp_path / name))
    assert volume.place.stated
    assert volume.place.origin_nm == (0, 0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_voxel_size_neither_size_nor_place_is_stated(tmp_path, name):
    voxels = random_voxels(1, 3, 20, 30)
    export(tmp_path / name, voxels, voxel_size_nm=None)
    volume = open_volume(str(tmp_path / name))
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels[0])
    assert (volume.voxel_size_nm, volume.place) == (None, None)


def test_imagej_finds_a_hyperstack(tmp_path):
    voxels = random_voxels(1, 3, 20, 30)
    export(tmp_path / "x.tif", voxels)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert (file.is_imagej, file.is_bigtiff) == (True, False)
        assert (file.series[0].axes, len(file.pages)) == ("ZYX", 3)
        np.testing.assert_array_equal(file.asarray(), voxels[0])
        metadata = file.imagej_metadata
        assert (metadata["unit"], metadata["spacing"]) == ("nm", 45)
        assert (metadata["min"], metadata["max"]) == (0, 255)
        assert [metadata[f"{axis}origin"] for axis in "zyx"] == [-2, 5, -10]
        for name in ("XResolution", "YResolution"):
            pixels, units = file.pages[0].tags[name].value
            assert units / pixels == pytest.approx(4.6, rel=1e-12)


@pytest.mark.parametrize("name", ["x.tif", "x.ome.tif"])
def test_several_classes_are_channels_of_a_tiff(tmp_path, name):
    voxels = random_voxels(3, 4, 20, 30)
    export(tmp_path / name, voxels, (2, 20, 30))
    with tifffile.TiffFile(tmp_path / name) as file:
        assert file.series[0].axes == "ZCYX"
        np.testing.assert_array_equal(file.asarray(), voxels.swapaxes(0, 1))
        if file.is_ome:
            assert 'Name="class 2"' in file.ome_metadata
        else:
            assert file.imagej_metadata["Labels"][:4] == ["class 0", "class 1", "class 2", "class 0"]


def test_ilastik_finds_its_dataset_with_axes_and_size(tmp_path):
    voxels = random_voxels(2, 4, 20, 30)
    export(tmp_path / "x.h5", voxels)
    with h5py.File(tmp_path / "x.h5") as file:
        stored = file["exported_data"]
        np.testing.assert_array_equal(stored[...], np.moveaxis(voxels, 0, -1))
        axes = json.loads(stored.attrs["axistags"])["axes"]
        assert [(axis["key"], axis["typeFlags"]) for axis in axes] == [("z", 2), ("y", 2), ("x", 2), ("c", 1)]
        assert stored.attrs["element_size_um"].tolist() == pytest.approx([0.045, 0.0046, 0.0046])
        assert stored.attrs["resolution"].tolist() == list(SIZE_NM)
        assert stored.attrs["offset"].tolist() == list(ORIGIN_NM)
        assert stored.compression == "gzip"
        assert stored.chunks == (4, 20, 30, 2)


def test_what_imagej_cannot_hold_becomes_a_bigtiff_of_ome(tmp_path, monkeypatch):
    voxels = random_voxels(1, 3, 20, 30)
    monkeypatch.setattr(tiff_export, "MAX_IMAGEJ_BYTES", voxels.size - 1)
    export(tmp_path / "x.tif", voxels)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert (file.is_ome, file.is_bigtiff, file.is_imagej) == (True, True, False)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == list(SIZE_NM)
        assert [plane["PositionZ"] for plane in pixels["Plane"]] == [90, 135, 180]
        assert {plane["PositionY"] for plane in pixels["Plane"]} == {-23}
    volume = open_volume(str(tmp_path / "x.tif"))
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels[0])


def test_a_file_of_more_than_4_gb_keeps_its_last_voxel(tmp_path):
    shape = (1, 3, 40_000, 40_000)  # sparse: only a corner is written
    spec = make_spec(np.broadcast_to(np.uint8(0), shape))
    with create_export(str(tmp_path / "x.tif"), spec) as file:
        file.write(Box((2, 39_999, 39_990), (3, 40_000, 40_000)), np.full((1, 1, 1, 10), 9, np.uint8))
    volume = open_volume(str(tmp_path / "x.tif"))
    assert volume.shape == shape[1:]
    assert volume.read(Box((2, 39_999, 39_985), (3, 40_000, 40_000))).ravel().tolist() == [0] * 5 + [9] * 10


@pytest.mark.parametrize("name", NAMES)
def test_the_provenance_is_in_the_file(tmp_path, name):
    voxels = random_voxels(1, 3, 20, 30)
    export(tmp_path / name, voxels)
    assert read_export_provenance(str(tmp_path / name)) == make_spec(voxels).provenance
    if name == "x.h5":
        with h5py.File(tmp_path / "y.h5", "w") as file:
            file["exported_data"] = voxels[0]
    else:
        tifffile.imwrite(tmp_path / f"y{name[1:]}", voxels[0], photometric="minisblack")
    assert read_export_provenance(str(tmp_path / f"y{name[1:]}")) is None
    (tmp_path / name).write_bytes(b"something else")
    assert read_export_provenance(str(tmp_path / name)) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), ValueError])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_export_leaves_what_was_there_before(tmp_path, name, error):
    export(tmp_path / name, random_voxels(1, 3, 20, 30))
    before = (tmp_path / name).read_bytes()
    spec, expected = make_spec(random_voxels(1, 9, 20, 30)), error if isinstance(error, type) else OSError
    with pytest.raises(expected) as raised, create_export(str(tmp_path / name), spec) as file:  # noqa: PT012
        file.write(Box((0, 0, 0), (1, 20, 30)), random_voxels(1, 1, 20, 30))
        raise error
    if isinstance(error, OSError):
        assert "the disk is full" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_a_name_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the name ends in \.tif or \.tiff or \.h5 or \.hdf5"):
        export(tmp_path / "x.png", random_voxels(1, 3, 20, 30))
