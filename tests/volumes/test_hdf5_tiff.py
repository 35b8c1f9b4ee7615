"""HDF5 and TIFF: cutouts equal what h5py and tifffile read at once, and errors say what to do."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.hdf5_tiff import is_file_volume, open_file_volume
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (6, 300, 210)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


def check(volume, voxels: np.ndarray) -> None:
    """Check that a volume holds exactly these voxels, read at once and in part."""
    assert volume.bounds == Box((0, 0, 0), voxels.shape)
    assert volume.dtype == voxels.dtype
    assert volume.dtype.isnative
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    box = Box((0, 50, 7), (voxels.shape[0], 290, 200))
    cut = volume.read(box)
    np.testing.assert_array_equal(cut, voxels[box.slices()])
    assert cut.flags.c_contiguous
    assert not volume.remote


@pytest.mark.parametrize(
    ("uri", "is_file"),
    [
        ("x.h5:em", True),
        ("/d/x.HDF5:/a/b", True),
        ("x.h5", True),
        ("a.b/x.tif", True),
        ("x.ome.TIFF", True),
        ("file:///d/x.h5:em", True),
        ("s3://b/x.h5:em", True),
        ("x.zarr/em", False),
        ("s3://b/p/|neuroglancer-precomputed:", False),
        ("file:///x.h5/|zarr3:", False),
        ("x.h5.zarr", False),
        ("tiff", False),
    ],
)
def test_files_are_recognized_by_their_names(uri, is_file):
    assert is_file_volume(uri) is is_file


@pytest.mark.parametrize("chunks", [None, (2, 64, 64)])
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32", ">u2", "int32"])
def test_an_hdf5_dataset_is_read_as_it_was_written(tmp_path, voxels, dtype, chunks):
    stored = voxels.astype(dtype)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        item = file.create_dataset("volumes/raw", data=stored, chunks=chunks, compression=chunks and "gzip")
        item.attrs["resolution"] = [40.0, 4.0, 4.0]
    for uri in (f"{tmp_path}/x.h5:volumes/raw", f"{tmp_path}/x.h5:/volumes/raw", f"file://{tmp_path}/x.h5"):
        volume = open_volume(uri)
        check(volume, stored.astype(stored.dtype.newbyteorder("=")))
        assert volume.voxel_size_nm == (40, 4, 4)
        assert volume.chunk == (chunks or (1, 300, 210))


def test_the_voxel_size_of_hdf5_is_read_from_several_attributes(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["none"] = voxels
        file["zyx"] = voxels
        file["zyx"].attrs["voxel_size_nm_zyx"] = [30, 6, 6]
        file["ilastik"] = voxels
        file["ilastik"].attrs["element_size_um"] = [0.05, 0.01, 0.01]
        file.create_group("group").attrs["voxel_size_nm_zyx"] = [1, 2, 3]
        file["group/em"] = voxels
    sizes = {
        name: open_file_volume(f"{tmp_path}/x.h5:{name}").voxel_size_nm
        for name in ("none", "zyx", "ilastik", "group/em")
    }
    assert sizes == {"none": None, "zyx": (30, 6, 6), "ilastik": (50, 10, 10), "group/em": (1, 2, 3)}


def test_an_hdf5_file_with_several_datasets_needs_a_dataset_name(tmp_path, voxels):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["one"] = voxels[None, None]
        file["numbers"] = np.arange(5)
    check(open_file_volume(str(path)), voxels)
    path = tmp_path / "y.h5"
    with h5py.File(path, "w") as file:
        file["one"] = voxels
        file["numbers"] = np.arange(5)
        file["g/two"] = np.stack([voxels, voxels])
    with pytest.raises(ValueError, match=r"holds 2 datasets of three axes; name one: y.h5:g/two, y.h5:one"):
        open_file_volume(str(path))
    with pytest.raises(ValueError, match=r"y.h5 has no dataset 'three'; name one: y.h5:g/two, y.h5:one"):
        open_file_volume(f"{path}:three")
    with pytest.raises(ValueError, match=r"has no dataset 'g'"):
        open_file_volume(f"{path}:g")
    with pytest.raises(ValueError, match=r"y.h5:g/two has 2 channels, shape \(2, 6, 300, 210\); a volume has one"):
        open_file_volume(f"{path}:g/two")
    with pytest.raises(ValueError, match=r"y.h5:numbers has 1 axes, shape \(5,\)"):
        open_file_volume(f"{path}:numbers")
    with pytest.raises(ValueError, match="has one resolution, mip 0; mip 1 does not exist"):
        open_file_volume(f"{path}:one", mip=1)


def test_a_broken_chunk_is_a_volume_error(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        item = file.create_dataset("em", data=voxels, chunks=(1, 300, 210), compression="gzip")
        broken = item.id.get_chunk_info(2)
    with open(tmp_path / "x.h5", "r+b") as raw:
        raw.seek(broken.byte_offset)
        raw.write(b"\xff" * 64)
    volume = open_file_volume(f"{tmp_path}/x.h5:em")
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (2, 300, 210))), voxels[:2])
    with pytest.raises(VolumeError, match=r"x.h5:em: the cutout 2:3,0:9,0:9 \(z,y,x\) could not be read"):
        volume.read(Box((2, 0, 0), (3, 9, 9)))


def write_pages(path: Path, voxels: np.ndarray, **more: object) -> None:
    with tifffile.TiffWriter(path) as file:
        for page in voxels:
            file.write(page, contiguous=False, **more)


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [
        ("contiguous", (1, 300, 210)),
        ("big-endian", (1, 300, 210)),
        ("compressed", (1, 300, 210)),
        ("strips", (1, 256, 210)),
        ("tiled", (1, 64, 128)),
        ("big", (1, 300, 210)),
        ("page by page", (1, 300, 210)),
        ("plain pages", (1, 300, 210)),
        ("float", (1, 300, 210)),
    ],
)
def test_a_tiff_stack_is_read_as_it_was_written(tmp_path, voxels, kind, chunk):
    path = tmp_path / "x.tif"
    gray = {"photometric": "minisblack"}
    if kind == "page by page":
        write_pages(path, voxels, compression="zlib")
    elif kind == "plain pages":
        write_pages(path, voxels, metadata=None)
    elif kind == "big-endian":
        tifffile.imwrite(path, voxels.astype(">u2"), byteorder=">", **gray)
    else:
        more: dict[str, dict] = {
            "compressed": {"compression": "zlib"},
            "strips": {"compression": "zlib", "rowsperstrip": 16},
            "tiled": {"compression": "zlib", "tile": (64, 128)},
            "big": {"bigtiff": True},
        }
        voxels = voxels.astype(np.float32) if kind == "float" else voxels
        tifffile.imwrite(path, voxels, **gray, **more.get(kind, {}))
    volume = open_volume(str(path))
    check(volume, voxels)
    assert volume.chunk == chunk
    assert volume.voxel_size_nm is None
    with ThreadPoolExecutor(4) as threads:
        boxes = [Box((z, y, 5), (z + 1, y + 100, 205)) for z in range(6) for y in range(0, 200, 50)]
        for box, cut in zip(boxes, threads.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(cut, voxels[box.slices()])


def test_the_voxel_size_of_tiff_is_read_from_imagej_ome_and_our_metadata(tmp_path, voxels):
    metadata = {"spacing": 0.03, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "ij.tif", voxels, imagej=True, resolution=(1 / 0.004, 1 / 0.005), metadata=metadata)
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (4, 5, 0.03), strict=True)}
    metadata |= {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "x.ome.tif", voxels, metadata=metadata)
    tifffile.imwrite(tmp_path / "zyx.tif", voxels, metadata={"voxel_size_nm_zyx": [30, 5, 4]})
    tifffile.imwrite(tmp_path / "dpi.tif", voxels, resolution=(300, 300))
    for name, size in {"ij.tif": (30, 5, 4), "x.ome.tif": (30, 5, 4), "zyx.tif": (30, 5, 4), "dpi.tif": None}.items():
        volume = open_file_volume(str(tmp_path / name))
        check(volume, voxels)
        assert volume.voxel_size_nm == (size and pytest.approx(size, rel=1e-6))


def test_one_page_is_one_section_and_color_images_are_refused(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "one.tif", voxels[0])
    check(open_file_volume(str(tmp_path / "one.tif")), voxels[:1])
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((6, 30, 40, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match=r"rgb.tif has axes QYXS of shape \(6, 30, 40, 3\); a volume has one channel"):
        open_file_volume(str(tmp_path / "rgb.tif"))
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(voxels[0])
        file.write(voxels[0, :50])
    with pytest.raises(ValueError, match=r"two.tif holds 2 images, shapes \(300, 210\), \(50, 210\); a volume is one"):
        open_file_volume(str(tmp_path / "two.tif"))


def test_a_single_channel_is_dropped(tmp_path, voxels):
    data = voxels[:, None]
    tifffile.imwrite(tmp_path / "c.ome.tif", data, metadata={"axes": "ZCYX"})
    check(open_file_volume(str(tmp_path / "c.ome.tif")), voxels)


def test_missing_remote_and_incomplete_files_are_refused(tmp_path, voxels):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/none.tif"):
        open_file_volume(str(tmp_path / "none.tif"))
    with pytest.raises(ValueError, match="are read from a local disk only; copy the file, or convert it to zarr"):
        open_file_volume("s3://bucket/x.h5:em")
    for name, kind in {"x.tif": "TIFF", "x.h5": "HDF5"}.items():
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=rf"{name} is not a complete {kind} file"):
            open_file_volume(str(tmp_path / name))


def test_a_truncated_stack_is_an_error_and_never_zeros(tmp_path, voxels):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, voxels, photometric="minisblack")
    path.write_bytes(path.read_bytes()[: voxels.nbytes // 2])
    volume = open_file_volume(str(path))
    with pytest.raises(VolumeError, match=r"x\.tif: the cutout 5:6,0:300,0:210 \(z,y,x\) could not be read"):
        volume.read(Box((5, 0, 0), (6, 300, 210)))


def test_a_missing_codec_is_named_with_how_to_install_it(tmp_path, voxels, monkeypatch):
    class Missing(dict):
        def __getitem__(self, key):
            raise KeyError(f"{tifffile.COMPRESSION(key)!r} requires the 'imagecodecs' package")

    tifffile.imwrite(tmp_path / "x.tif", voxels, compression="zlib", photometric="minisblack")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", Missing())
    with pytest.raises(ValueError, match=r"x.tif: .*requires the 'imagecodecs' package: install it \(pip install"):
        open_file_volume(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("name", ["x.h5:em", "x.tif"])
def test_a_volume_pickles_and_reads_in_another_process(tmp_path, voxels, name):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = voxels
    tifffile.imwrite(tmp_path / "x.tif", voxels, compression="zlib", photometric="minisblack")
    volume = open_file_volume(f"{tmp_path}/{name}")
    volume.read(volume.bounds)
    assert len(pickle.dumps(volume)) < 2000
    code = "import sys, pickle; v = pickle.load(sys.stdin.buffer); print(int(v.read(v.bounds).sum()))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(volume), capture_output=True, timeout=60)
    assert int(done.stdout) == int(voxels.sum(dtype=np.int64)), done.stderr


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_memory_does_not_grow_with_the_size_of_the_stack(tmp_path, compression):
    path = tmp_path / "x.tif"
    page = np.zeros((2048, 2048), np.uint16)
    with tifffile.TiffWriter(path) as file:
        for _ in range(24):
            file.write(page, contiguous=compression is None, compression=compression)
    code = """
import resource, sys
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.hdf5_tiff import open_file_volume
volume = open_file_volume(sys.argv[1])
volume.read(Box((0, 0, 0), (1, 64, 64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for z in range(volume.bounds.shape[0]):
    volume.read(Box((z, 100, 100), (z + 1, 356, 356)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 120_000, done.stderr  # kB; the stack is 201 MB, the cache of pages 64
