"""The grey levels of TIFF pages with colours, palettes, single bits, or white stored as 0."""

import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (6, 300, 210)
GREY = {"photometric": "minisblack"}


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


@pytest.fixture(autouse=True)
def without_warnings_of_tifffile(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


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
