"""TIFF stacks as tifffile, ImageJ, OME writers and Pillow write them: layouts, compression, memory."""

import itertools
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.file_formats import is_file_volume, open_file_volume
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.uri_options import UriOptions

SHAPE = (6, 300, 210)
GREY = {"photometric": "minisblack"}


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


@pytest.fixture(autouse=True)
def without_warnings_of_tifffile(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


@pytest.mark.parametrize(
    ("uri", "is_file"),
    [
        ("x.h5:em", True),
        ("/d/x.HDF5:/a/b", True),
        ("x.h5", True),
        ("a.b/x.tif", True),
        ("x.ome.TIFF", True),
        ("x.ome.btf", True),
        ("x.map", True),
        ("file:///d/x.h5:em", True),
        ("s3://b/x.h5:em", True),
        ("x.mrc", True),
        ("x.rec", True),
        ("x.png", True),
        ("d/sections.txt", True),
        ("d/*.tif", True),
        ("d/s[0-9]*", True),
        ("x.zarr/em", False),
        ("s3://b/p/|neuroglancer-precomputed:", False),
        ("file:///x.h5/|zarr3:", False),
        ("x.h5.zarr", False),
        ("tiff", False),
    ],
)
def test_files_are_recognized_by_their_names(uri, is_file):
    assert is_file_volume(uri) is is_file


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [
        ("contiguous", (1, 300, 210)),
        ("big-endian", (1, 300, 210)),
        ("compressed", (1, 300, 210)),
        ("strips", (1, 256, 210)),
        ("tiled", (1, 64, 128)),
        ("tiled, uncompressed", (1, 64, 128)),
        ("big", (1, 300, 210)),
        ("page by page", (1, 300, 210)),
        ("plain pages", (1, 300, 210)),
        ("float", (1, 300, 210)),
        ("volumetric", (1, 64, 128)),
    ],
)
def test_a_stack_is_read_as_it_was_written(tmp_path, voxels, check_file, write_pages, kind, chunk):
    path = tmp_path / "x.tif"
    if kind == "page by page":
        write_pages(path, voxels, compression="zlib")
    elif kind == "plain pages":
        write_pages(path, voxels, metadata=None)
    elif kind == "big-endian":
        tifffile.imwrite(path, voxels.astype(">u2"), byteorder=">", **GREY)
    else:
        more: dict[str, dict] = {
            "compressed": {"compression": "zlib"},
            "strips": {"compression": "zlib", "rowsperstrip": 16},
            "tiled": {"compression": "zlib", "tile": (64, 128)},
            "tiled, uncompressed": {"tile": (64, 128)},
            "big": {"bigtiff": True},
            "volumetric": {"volumetric": True, "tile": (4, 64, 128), "compression": "zlib"},
        }
        voxels = voxels.astype(np.float32) if kind == "float" else voxels
        tifffile.imwrite(path, voxels, **GREY, **more.get(kind, {}))
    volume = open_volume(str(path))
    check_file(volume, voxels)
    assert volume.chunk == chunk
    assert volume.voxel_size_nm is None
    assert volume.place is None
    assert volume.notes == ()
    with ThreadPoolExecutor(4) as threads:
        boxes = [Box((z, y, 5), (z + 1, y + 100, 205)) for z in range(6) for y in range(0, 200, 50)]
        for box, cut in zip(boxes, threads.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(cut, voxels[box.slices()])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "raw"])
@pytest.mark.parametrize("mode", ["L", "I;16", "F"])
def test_compressed_stacks_of_pillow_are_read(tmp_path, voxels, check_file, compression, mode):
    dtype = {"L": np.uint8, "I;16": np.uint16, "F": np.float32}[mode]
    voxels = voxels.astype(dtype)
    pages = [Image.fromarray(page) for page in voxels]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], compression=compression)
    check_file(open_volume(str(tmp_path / "x.tif")), voxels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize(("mode", "predictor"), [("L", 2), ("I;16", 2), ("F", 3)])
def test_rows_that_are_stored_as_differences_are_read(tmp_path, voxels, check_file, compression, mode, predictor):
    dtype = {"L": np.uint8, "I;16": np.uint16, "F": np.float32}[mode]
    voxels = (voxels / 7).astype(dtype)
    pages = [Image.fromarray(page) for page in voxels]
    options = {"compression": compression, "tiffinfo": {317: predictor}}
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], **options)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert file.pages.first.predictor == predictor
    check_file(open_volume(str(tmp_path / "x.tif")), voxels)


@pytest.mark.parametrize("codec", ["lzw", "zlib", "zstd"])
def test_what_imagecodecs_writes_is_read_without_it(tmp_path, voxels, check_file, monkeypatch, codec):
    pytest.importorskip("imagecodecs")
    monkeypatch.setattr("kasthuri_ray.volumes.tiff_pages._tifffile_decoder", lambda page: lambda *arguments: 1 / 0)
    for dtype, byteorder in itertools.product(("u2", "i4", "f4", "f8"), "<>"):
        path, predictor = tmp_path / f"{dtype}{ord(byteorder)}.tif", 3 if dtype[0] == "f" else 2
        written = voxels.astype(byteorder + dtype)
        tifffile.imwrite(path, written, byteorder=byteorder, compression=codec, predictor=predictor, **GREY)
        check_file(open_volume(str(path)), voxels.astype(dtype))


def test_the_limit_of_pillow_on_pixels_does_not_count(tmp_path, voxels, check_file, monkeypatch):
    Image.fromarray(voxels[0]).save(tmp_path / "x.tif", compression="tiff_lzw")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    check_file(open_volume(str(tmp_path / "x.tif")), voxels[:1])


@pytest.mark.parametrize("colours", [False, True])
def test_a_hyperstack_of_imagej_with_one_header_for_all_sections_is_read(tmp_path, voxels, check_file, colours):
    stack = (voxels // 256).astype(np.uint8)
    stored = np.repeat(stack[..., None], 3, -1) if colours else stack
    tifffile.imwrite(tmp_path / "x.tif", stored, imagej=True, metadata={"axes": "ZYXS" if colours else "ZYX"})
    content = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        first = file.pages.first
        end = first.offset + 2 + 12 * len(first.tags)
        assert len(file.pages) == 6
    content[end : end + 4] = bytes(4)  # as ImageJ ends the chain of pages of a stack above 4 GB
    (tmp_path / "x.tif").write_bytes(content)
    check_file(open_volume(str(tmp_path / "x.tif")), stack)
    (tmp_path / "x.tif").write_bytes(content[: first.dataoffsets[0] + 4 * stored[0].nbytes])
    with pytest.raises(InputError, match=r"x.tif is incomplete: 4 of 6 sections are there"):
        open_volume(str(tmp_path / "x.tif"))


def test_the_finest_resolution_of_a_pyramid_is_read(tmp_path, voxels, check_file):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", bigtiff=True) as file:
        file.write(voxels, subifds=1, tile=(64, 64), metadata={"axes": "ZYX"}, **GREY)
        file.write(voxels[:, ::2, ::2], subfiletype=1, tile=(64, 64), **GREY)
    check_file(open_file_volume(str(tmp_path / "x.ome.tif")), voxels)


def test_a_codec_that_nothing_here_decodes_is_named_with_how_to_install_it(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "x.tif", voxels, compression="zlib", **GREY)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        places = [page.tags["Compression"].valueoffset for page in file.pages]
    content = bytearray((tmp_path / "x.tif").read_bytes())
    for place in places:
        content[place : place + 2] = (34887).to_bytes(2, "little")
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"x.tif is compressed by LERC .*: pip install imagecodecs, or convert"):
        open_file_volume(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("name", ["x.h5:em", "x.tif"])
def test_a_volume_pickles_and_reads_in_another_process(tmp_path, voxels, name):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = voxels
    tifffile.imwrite(tmp_path / "x.tif", voxels, compression="zlib", **GREY)
    volume = open_file_volume(f"{tmp_path}/{name}", options=UriOptions(axes="zyx"))
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
from kasthuri_ray.volumes.file_formats import open_file_volume
volume = open_file_volume(sys.argv[1])
volume.read(Box((0, 0, 0), (1, 64, 64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for z in range(volume.bounds.shape[0]):
    volume.read(Box((z, 100, 100), (z + 1, 356, 356)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 120_000, done.stderr  # kB; the stack is 201 MB, the cache of pages 64
