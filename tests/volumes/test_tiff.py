"""TIFF stacks as tifffile, ImageJ, OME writers and Pillow write them: voxels, axes, grey levels."""

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

from kasthuri_ray.errors import InputError, VolumeError
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


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_lzw", None])
def test_masks_of_one_bit_are_read(tmp_path, voxels, check_file, compression):
    mask = voxels > 30_000
    pages = [Image.fromarray(page) for page in mask]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], compression=compression)
    check_file(open_volume(str(tmp_path / "x.tif")), mask)


def test_the_grey_levels_of_jpeg_are_those_of_pillow(tmp_path, voxels):
    page = Image.fromarray((voxels[0] // 256).astype(np.uint8))
    page.save(tmp_path / "x.tif", compression="jpeg")
    volume = open_volume(str(tmp_path / "x.tif"))
    np.testing.assert_array_equal(volume.read(volume.bounds)[0], np.asarray(Image.open(tmp_path / "x.tif")))


@pytest.mark.parametrize(
    "more",
    [
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"metadata": {"axes": "SYX"}},
        {"metadata": {"axes": "IYX"}},
    ],
)
def test_the_only_long_axis_beside_y_and_x_is_z(tmp_path, voxels, check_file, more):
    tifffile.imwrite(tmp_path / "x.tif", voxels, **GREY, **more)
    volume = open_volume(str(tmp_path / "x.tif"))
    check_file(volume, voxels)
    assert ("is read as z" in " ".join(volume.notes)) == (more["metadata"]["axes"] != "IYX")


def test_two_long_axes_beside_y_and_x_are_refused(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "x.tif", voxels.reshape(3, 2, 300, 210), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ValueError, match=r"has 2 channels, shape \(3, 2, 300, 210\); a volume has one channel"):
        open_volume(str(tmp_path / "x.tif"))


def test_axes_of_the_uri_win_over_the_file(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "x.tif", voxels, **GREY)
    for order in ("zxy", "xyz", "yzx"):
        turned = voxels.transpose([order.index(axis) for axis in "zyx"])
        check_file(open_volume(f"{tmp_path}/x.tif?axes={order}"), turned)
        assert open_volume(f"{tmp_path}/x.tif?axes={order}").uri.endswith(f"x.tif?axes={order}")
    tifffile.imwrite(tmp_path / "one.tif", voxels[0])
    check_file(open_volume(f"{tmp_path}/one.tif?axes=xy"), voxels[:1].transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"axes=tzyx names 4 axes, but the shape is \(6, 300, 210\)"):
        open_volume(f"{tmp_path}/x.tif?axes=tzyx")


def test_a_stack_of_three_that_was_saved_as_colours_is_refused_with_what_to_type(tmp_path, voxels, check_file):
    stack = (voxels[:3] // 256).astype(np.uint8)
    tifffile.imwrite(tmp_path / "planar.tif", stack, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match=r"it holds colours.* if its 3 planes are sections, .*\?axes=zyx"):
        open_volume(str(tmp_path / "planar.tif"))
    check_file(open_volume(f"{tmp_path}/planar.tif?axes=zyx"), stack)
    tifffile.imwrite(tmp_path / "zip.tif", stack, photometric="rgb", planarconfig="separate", compression="zlib")
    check_file(open_volume(f"{tmp_path}/zip.tif?axes=zyx"), stack)
    tifffile.imwrite(tmp_path / "last.tif", np.moveaxis(stack, 0, 2), photometric="rgb")
    check_file(open_volume(f"{tmp_path}/last.tif?axes=yxz"), stack)
    tifffile.imwrite(tmp_path / "cyx.tif", stack, photometric="rgb", metadata={"axes": "CYX"})
    with pytest.raises(InputError, match=r"it holds colours.* if its 3 planes are sections, .*\?axes=zyx"):
        open_volume(str(tmp_path / "cyx.tif"))
    check_file(open_volume(f"{tmp_path}/cyx.tif?axes=zyx"), stack)


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_three_equal_channels_are_grey_and_other_colours_refused(tmp_path, voxels, check_file, layout, compression):
    stack = (voxels // 256).astype(np.uint8)
    axis = 1 if layout == "separate" else -1
    colours = np.stack([stack] * 3, axis)
    more = {"photometric": "rgb", "planarconfig": layout, "compression": compression}
    tifffile.imwrite(tmp_path / "grey.tif", colours, **more)
    check_file(open_volume(str(tmp_path / "grey.tif")), stack)
    colours = colours.copy()
    colours[1].reshape(-1)[-1] ^= 1
    tifffile.imwrite(tmp_path / "late.tif", colours, **more)
    with pytest.raises(VolumeError, match="it holds colours; an image is grey"):
        open_volume(str(tmp_path / "late.tif")).read(Box((0, 0, 0), SHAPE))
    colours[0] = np.random.default_rng(1).integers(0, 255, colours[0].shape, np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", colours, **more)
    with pytest.raises(InputError, match=r"rgb.tif, section 0: it holds colours; an image is grey"):
        open_volume(str(tmp_path / "rgb.tif"))


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


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool", "float32", "int16"])
def test_white_stored_as_0_is_turned_in_images_of_unsigned_integers_only(tmp_path, voxels, check_file, dtype):
    stored = voxels > 30_000 if dtype == "bool" else (voxels // 256).astype(dtype)
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite", compression=compression)
        image = open_volume(str(tmp_path / "x.tif"))
        labels = open_volume(str(tmp_path / "x.tif"), labels=True)
        maximum = {"uint8": 255, "uint16": 65535}.get(dtype)
        check_file(image, ~stored if dtype == "bool" else stored if maximum is None else maximum - stored)
        check_file(labels, stored)
        assert "white is stored as 0 (MINISWHITE)" in image.notes[0]
        assert "as labels the values are read as they are stored" in labels.notes[0]
        assert image.identity != labels.identity


def test_a_palette_is_grey_for_an_image_and_indices_for_labels(tmp_path, voxels, check_file):
    stored = (voxels // 256).astype(np.uint8)
    falling = np.repeat(np.arange(255, -1, -1, dtype=np.uint16)[None] * 257, 3, 0)
    tifffile.imwrite(tmp_path / "grey.tif", stored, photometric="palette", colormap=falling)
    check_file(open_volume(str(tmp_path / "grey.tif")), 255 - stored)
    check_file(open_volume(str(tmp_path / "grey.tif"), labels=True), stored)
    fire = np.random.default_rng(0).integers(0, 65535, (3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "fire.tif", stored, photometric="palette", colormap=fire)
    with pytest.raises(InputError, match=r"fire.tif has a palette of colours; an image is grey. .*Fiji"):
        open_volume(str(tmp_path / "fire.tif"))
    check_file(open_volume(str(tmp_path / "fire.tif"), labels=True), stored)


def test_one_page_is_one_section(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "one.tif", voxels[0])
    check_file(open_file_volume(str(tmp_path / "one.tif")), voxels[:1])


def test_a_single_channel_is_dropped(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "c.ome.tif", voxels[:, None], metadata={"axes": "ZCYX"})
    check_file(open_file_volume(str(tmp_path / "c.ome.tif")), voxels)


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


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["XYZ", "YXZ", "ZXY", "YZX", "XZY"])
def test_pages_of_other_axes_than_y_and_x_are_read_by_the_names_in_the_file(tmp_path, check_file, order, compression):
    voxels = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)
    stored = voxels.transpose(["ZYX".index(axis) for axis in order])
    metadata = {"axes": order, "voxel_size_nm_zyx": [40, 5, 4]}
    tifffile.imwrite(tmp_path / "x.tif", stored, metadata=metadata, compression=compression, **GREY)
    for options in ("", f"?axes={order.lower()}"):
        volume = open_volume(f"{tmp_path}/x.tif{options}")
        check_file(volume, voxels)
        assert volume.stored_axes == ",".join(order.lower())
        assert volume.voxel_size_nm == (40, 5, 4)
    plain = open_volume(f"{tmp_path}/x.tif?axes=zyx")  # the first stored axis is z, whatever the file says
    check_file(plain, stored)
    assert plain.voxel_size_nm == tuple({"Z": 40, "Y": 5, "X": 4}[axis] for axis in order)


def test_one_page_with_the_axes_x_and_y_is_one_section(tmp_path, voxels, check_file):
    tifffile.imwrite(tmp_path / "x.tif", voxels[0].T, metadata={"axes": "XY"}, **GREY)
    check_file(open_volume(str(tmp_path / "x.tif")), voxels[:1])


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_size_and_place_go_with_their_axis_where_the_uri_names_the_axes(tmp_path, voxels, check_file, kind):
    if kind == "ome":
        sizes = {"PhysicalSizeZ": 4, "PhysicalSizeY": 5, "PhysicalSizeX": 40}
        more = {f"{name}Unit": "nm" for name in sizes}
        plane = {f"Position{axis}": [n] * 210 for axis, n in (("Z", 1), ("Y", 2), ("X", 3))}
        plane |= {f"Position{axis}Unit": ["nm"] * 210 for axis in "ZYX"}
        options = {"metadata": {"axes": "ZYX", **sizes, **more, "Plane": plane}}
        origin = (3, 2, 1)
    else:
        place = {"zorigin": -1, "yorigin": -2, "xorigin": -3}
        metadata = {"axes": "ZYX", "unit": "nm", "spacing": 4, **place}
        options = {"resolution": (1 / 40, 1 / 5), "metadata": metadata}
        origin = (120, 10, 4)
    tifffile.imwrite(tmp_path / "x.tif", voxels.T, **{kind: True}, **GREY, **options)
    volume = open_volume(f"{tmp_path}/x.tif?axes=xyz")
    check_file(volume, voxels)
    assert volume.voxel_size_nm == pytest.approx((40, 5, 4))
    assert volume.place.origin_nm == pytest.approx(origin)
    assert open_volume(f"{tmp_path}/x.tif").voxel_size_nm == pytest.approx((4, 5, 40))


@pytest.mark.parametrize(
    ("stored", "shape"),
    [((6, 20, 30, 1), (6, 20, 30)), ((6, 20, 1), (1, 6, 20)), ((6, 1, 1), (1, 6, 1)), ((6, 1, 30), (6, 1, 30))],
)
def test_axes_of_length_1_beside_those_of_a_page_are_dropped(tmp_path, stored, shape):
    voxels = np.arange(np.prod(stored), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", voxels.reshape(stored), **GREY)
    volume = open_volume(str(tmp_path / "x.tif"))
    assert volume.shape == shape
    np.testing.assert_array_equal(volume.read(volume.bounds).ravel(), voxels)
