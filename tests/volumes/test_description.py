"""What is understood of a volume of each format, and of a sparse one of any size."""

import h5py
import mrcfile
import numpy as np
import pytest
import tensorstore as ts
import tifffile
import zarr
from PIL import Image

from kasthuri_ray.volumes.description import describe_volume, share_text
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (4, 30, 40)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, SHAPE, np.uint8)


def write_zarr2(path, voxels):
    stored = zarr.create_array(path / "x.zarr", data=voxels, chunks=(2, 16, 16), zarr_format=2)
    stored.attrs.update({"resolution": [40, 4, 4], "offset": [80, 0, 400]})
    return path / "x.zarr"


def write_ome_zarr(path, voxels):
    group = zarr.open_group(path / "x.zarr", mode="w")
    group.create_array("0", data=voxels[None], chunks=(1, 2, 16, 16))
    scale, shift = {"type": "scale", "scale": [1, 40, 4, 4]}, {"type": "translation", "translation": [0, 80, 0, 400]}
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "nanometer"} for n in "zyx")]
    datasets = [{"path": "0", "coordinateTransformations": [scale, shift]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path / "x.zarr"


def write_n5(path, voxels):
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path / "x.n5")}}
    metadata = {"dimensions": voxels.shape[::-1], "blockSize": [16, 16, 2], "dataType": "uint8"}
    metadata |= {"compression": {"type": "gzip"}, "pixelResolution": {"dimensions": [4, 4, 40], "unit": "nm"}}
    store = ts.open({**spec, "metadata": {**metadata, "offset": [400, 0, 80]}}, create=True).result()
    store[...].write(voxels.T).result()
    return path / "x.n5"


def write_precomputed(path, voxels):
    scale = {"size": voxels.shape[::-1], "encoding": "raw", "chunk_size": [16, 16, 2], "resolution": [4, 4, 40]}
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(path / "x")},
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {**scale, "voxel_offset": [100, 0, 2]},
        },
        create=True,
    ).result()
    store[ts.d["channel"][0]][ts.d["z", "y", "x"].transpose[:]].write(voxels).result()
    return path / "x"


def write_hdf5(path, voxels):
    with h5py.File(path / "x.h5", "w") as file:
        stored = file.create_dataset("volumes/raw", data=voxels, chunks=(2, 16, 16))
        stored.attrs["resolution"], stored.attrs["offset"] = [40.0, 4.0, 4.0], [80.0, 0.0, 400.0]
    return f"{path}/x.h5:volumes/raw"


def write_imagej(path, voxels):
    metadata = {"axes": "ZYX", "spacing": 40.0, "unit": "nm", "xorigin": -100, "yorigin": 0, "zorigin": -2}
    tifffile.imwrite(path / "x.tif", voxels, imagej=True, resolution=(0.25, 0.25), metadata=metadata)
    return path / "x.tif"


def write_ome_tiff(path, voxels):
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
    metadata |= {"PhysicalSizeX": 4, "PhysicalSizeY": 4, "PhysicalSizeZ": 40}
    positions = {"X": 402.0, "Y": 2.0, "Z": 100.0}
    plane = {f"Position{axis}": [value] * 4 for axis, value in positions.items()}
    plane |= {f"Position{axis}Unit": ["nm"] * 4 for axis in positions}
    tifffile.imwrite(path / "x.ome.tif", voxels, metadata={**metadata, "Plane": plane})
    return path / "x.ome.tif"


def write_mrc(path, voxels):
    with mrcfile.new(path / "x.mrc", data=voxels.astype(np.int16)) as file:
        file.voxel_size = (40.0, 40.0, 400.0)
        file.header.origin.x, file.header.origin.z = 4000.0, 800.0
    return path / "x.mrc"


@pytest.mark.parametrize(
    ("write", "format", "axes", "size_source", "place_source"),
    [
        (write_zarr2, "zarr 2", "z,y,x", "resolution", "offset"),
        (write_ome_zarr, "OME-Zarr, zarr 3", "-,z,y,x", "OME scale", "OME translation"),
        (write_n5, "N5", "x,y,z", "pixelResolution", "offset"),
        (write_precomputed, "Neuroglancer precomputed, raw", "x,y,z,-", "resolution", "voxel_offset"),
        (write_hdf5, "HDF5", "z,y,x", "resolution", "offset"),
        (write_imagej, "ImageJ TIFF", "z,y,x", "ImageJ's unit, spacing and resolution", "ImageJ's origin"),
        (write_ome_tiff, "OME-TIFF", "z,y,x", "OME PhysicalSizeX/Y/Z", "OME PositionX/Y/Z"),
        (write_mrc, "MRC", "z,y,x", "MRC cell and grid", "MRC origin"),
    ],
)
def test_format_axes_size_and_place_are_described_with_where_they_were_found(
    tmp_path, voxels, write, format, axes, size_source, place_source
):
    described = describe_volume(open_volume(str(write(tmp_path, voxels))))
    assert (described.format, described.stored_axes) == (format, axes)
    assert described.bounds.shape == SHAPE
    assert (described.voxel_size_nm, described.voxel_size_source) == ((40, 4, 4), size_source)
    assert described.place.source == place_source
    middle = write is write_ome_zarr  # states the middle of voxel 0, so that its corner is half a voxel before
    assert described.corner_nm == ((60, -2, 398) if middle else (80, 0, 400))
    assert described.sample.is_whole
    rows = dict(described.rows())
    assert rows["voxel size"] == f"40 x 4 x 4 nm (z,y,x), from {size_source}"
    assert rows["place"].startswith("60, -2, 398 nm" if middle else "80, 0, 400 nm")
    assert place_source in rows["place"]
    assert rows["sample"] == f"all {voxels.size:,} voxels"
    low, median, high = np.percentile(voxels, (1, 50, 99), method="inverted_cdf").astype(int)
    expected = f"{voxels.min()} to {voxels.max()}; percentiles 1, 50, 99: {low}, {median}, {high}"
    assert rows["values"] == expected


def test_sections_options_and_what_is_not_stated_are_described(tmp_path, voxels):
    for z, section in enumerate(voxels):
        Image.fromarray(section).save(tmp_path / f"s{z}.png")
    plain = dict(describe_volume(open_volume(str(tmp_path))).rows())
    assert plain["format"] == "PNG sections"
    assert plain["voxel size"].startswith("not stated")
    assert plain["place"] == "not stated"
    assert plain["absent chunks"] == "the format does not tell"
    volume = open_volume(f"{tmp_path}?voxel_size_nm=40,4,4&offset_nm=80,0,0")
    stated = dict(describe_volume(volume).rows())
    assert stated["voxel size"] == "40 x 4 x 4 nm (z,y,x), from ?voxel_size_nm"
    assert stated["place"] == "80, 0, 0 nm (z,y,x) is the lower corner of the first voxel, from ?offset_nm"
    given = describe_volume(open_volume(str(tmp_path), voxel_size_nm=(30.0, 6.0, 6.0)))
    assert (given.voxel_size_nm, given.voxel_size_source) == ((30, 6, 6), "--voxel-size")


def test_absent_chunks_and_distinct_labels_are_counted(tmp_path):
    labels = zarr.create_array(
        tmp_path / "x.zarr", shape=(8, 64, 64), chunks=(4, 32, 32), dtype="u8", fill_value=0, config={"order": "C"}
    )
    labels[0:4, 0:32, 0:32] = 2**64 - 1
    labels[4:8, 32:64, 0:16] = 5
    rows = dict(describe_volume(open_volume(str(tmp_path / "x.zarr"))).rows())
    assert rows["absent chunks"] == "6 of 8 chunks"
    assert rows["distinct values"] == f"0 (81.2%), 5 (6.25%), {2**64 - 1} (12.5%)"


def test_a_volume_of_which_nothing_is_stored_is_empty_and_one_of_stored_zeros_is_not(tmp_path):
    empty = zarr.create_array(tmp_path / "a.zarr", shape=(8, 64, 64), chunks=(4, 32, 32), dtype="u1", fill_value=0)
    zeros = zarr.create_array(
        tmp_path / "b.zarr", shape=(8, 64, 64), chunks=(4, 32, 32), dtype="u1", config={"write_empty_chunks": True}
    )
    zeros[:] = 0
    assert describe_volume(open_volume(f"{empty.store.root}")).is_empty
    assert not describe_volume(open_volume(f"{zeros.store.root}")).is_empty


def test_a_huge_sparse_volume_is_described_from_what_is_stored(tmp_path):
    stored = zarr.create_array(tmp_path / "x.zarr", shape=(20_000,) * 3, chunks=(64,) * 3, dtype="u2", fill_value=0)
    stored[640:704, 640:704, 640:704] = 700
    described = describe_volume(open_volume(str(tmp_path / "x.zarr")))
    assert not described.is_empty
    assert described.absent == (256, 256)
    rows = dict(described.rows())
    assert rows["absent chunks"] == "256 of 256 chunks that were looked for, of 30,664,297 in all"
    assert rows["sample"].endswith("in 1 cutout of stored chunks alone")
    assert rows["values"].startswith("0 to 700;")


def test_floats_with_nan_are_described(tmp_path, voxels):
    image = voxels.astype(np.float32) / 250
    image[0] = np.nan
    zarr.create_array(tmp_path / "x.zarr", data=image, chunks=(2, 16, 16))
    rows = dict(describe_volume(open_volume(str(tmp_path / "x.zarr"))).rows())
    assert rows["nan"] == "25% of the voxels: not imaged"
    assert rows["values"].startswith("0.004 to 0.996;")


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.99999, ">99.9%"), (0.005591, "0.559%"), (1e-7, "1e-05%")]
)
def test_a_share_never_rounds_to_none_or_all(share, text):
    assert share_text(share) == text
