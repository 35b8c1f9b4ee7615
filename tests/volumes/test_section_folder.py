"""Folders of sections as microscopes and Fiji leave them: one TIFF, PNG or JPEG a section, in natural order."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kasthuri_ray.errors import InputError, InputNotFound, VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.chunk_cache import ChunkCache
from kasthuri_ray.volumes.opening import VolumeOpener, open_volume
from kasthuri_ray.volumes.section_files import PictureSection
from kasthuri_ray.volumes.section_names import gap_notes, natural_key

SHAPE = (12, 40, 52)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, SHAPE, np.uint8)


def write_sections(folder: Path, voxels: np.ndarray, ending: str = ".png", name: str = "s{}") -> None:
    """Write one file a section, numbered from 1."""
    folder.mkdir(exist_ok=True)
    for number, section in enumerate(voxels, 1):
        path = folder / f"{name.format(number)}{ending}"
        if ending.startswith(".tif"):
            tifffile.imwrite(path, section)
        else:
            Image.fromarray(section).save(path)


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".TIF", ".png", ".PNG"])
def test_a_folder_a_pattern_and_a_text_file_are_a_volume_in_natural_order(tmp_path, voxels, check_file, ending):
    folder = tmp_path / "em"
    write_sections(folder, voxels, ending)
    lines = "\r\n".join(f"em/s{number}{ending}" for number in range(1, 13))
    (tmp_path / "sections.txt").write_text(f"\ufeff{lines}\n\n", encoding="utf-8")
    for uri in (folder, f"{folder}/", f"file://{folder}", folder / f"s*{ending}", tmp_path / "sections.txt"):
        volume = open_volume(str(uri))
        check_file(volume, voxels)
        assert volume.uri == str(uri)
        assert volume.notes == ()
    check_file(open_volume(f"{folder}/s[1-9]{ending}"), voxels[:9])
    given = open_volume(f"{folder}?voxel_size_nm=40,4,4&offset_nm=400,0,8")
    assert (given.voxel_size_nm, given.place.origin_nm) == ((40, 4, 4), (400, 0, 8))
    check_file(open_volume(f"{folder}?axes=zxy"), voxels.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("I;16", "uint16"), ("1", "bool"), ("float", "float32"), ("int16", "int16"), ("LZW", "uint16")]
)
def test_types_of_voxels_are_those_of_the_files(tmp_path, voxels, check_file, kind, dtype):
    stored = voxels > 128 if kind == "1" else voxels.astype(dtype) * 100
    if kind == "LZW":
        for number, section in enumerate(stored):
            Image.fromarray(section).save(tmp_path / f"s{number:02}.tif", compression="tiff_lzw")
    else:
        write_sections(tmp_path, stored, ".png" if kind in ("I;16", "1") else ".tif")
    check_file(open_volume(str(tmp_path)), stored)


def test_the_folder_of_a_run_is_not_taken_for_sections(tmp_path, voxels):
    write_sections(tmp_path / "run", voxels)
    (tmp_path / "run/checkpoint").mkdir()
    (tmp_path / "run/checkpoint/best.pt").touch()
    with pytest.raises(InputError, match="is the folder of a training run; give a volume"):
        open_volume(str(tmp_path / "run"))


def test_a_gap_in_the_numbers_is_one_line_that_names_them(tmp_path, voxels):
    write_sections(tmp_path, voxels)
    for number in (3, 7, 8):
        (tmp_path / f"s{number}.png").unlink()
    volume = open_volume(str(tmp_path))
    assert volume.shape[0] == 9
    (note,) = volume.notes
    assert "the numbers of the sections have gaps, 3 are missing: 3, 7-8" in note


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["a0.tif", "a10.tif", "a20.tif"], None),
        (["a0.tif", "a10.tif", "a30.tif", "a40.tif"], "20"),
        (["w1_z01.tif", "w1_z02.tif", "w1_z04.tif"], "3"),
        (["a.tif", "b.tif"], None),
        (["r1_c1.tif", "r1_c2.tif", "r2_c1.tif"], None),
        (["s5.tif"], None),
    ],
)
def test_gaps_are_found_where_one_number_differs(names, missing):
    notes = gap_notes("em", names)
    assert (missing is None) == (notes == ())
    assert missing is None or f"missing: {missing};" in notes[0]


def test_numbers_are_sorted_by_value():
    names = ["s10.tif", "s9.tif", "s1.tif", "s01b.tif", "t0.tif"]
    assert sorted(names, key=natural_key) == ["s1.tif", "s01b.tif", "s9.tif", "s10.tif", "t0.tif"]


def test_other_files_are_ignored_and_counted(tmp_path, voxels, check_file):
    write_sections(tmp_path, voxels, ".tif")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "preview.jpg").write_bytes(b"x")
    (tmp_path / "._s1.tif").write_bytes(b"what macOS leaves on other disks")
    (tmp_path / "old").mkdir()
    volume = open_volume(str(tmp_path))
    check_file(volume, voxels)
    assert volume.notes == (f"{tmp_path}: 3 files that are no TIFF are ignored (.jpg, .tif, .txt)",)


def test_tiff_and_png_in_one_folder_are_refused_unless_a_pattern_chooses(tmp_path, voxels, check_file):
    write_sections(tmp_path, voxels, ".tif")
    write_sections(tmp_path, voxels[:3], ".png")
    with pytest.raises(InputError, match=r"holds 12 TIFF and 3 PNG files; name the sections by a quoted pattern"):
        open_volume(str(tmp_path))
    check_file(open_volume(f"{tmp_path}/*.png"), voxels[:3])


@pytest.mark.parametrize("other", ["size", "type"])
@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_a_section_of_another_size_or_type_is_named(tmp_path, voxels, other, ending):
    write_sections(tmp_path, voxels, ending)
    section = voxels[0, :-1] if other == "size" else voxels[0].astype(np.uint16)
    write_sections(tmp_path, section[None], ending, "s4")
    found = "39 x 52 uint8" if other == "size" else "40 x 52 uint16"
    with pytest.raises(InputError, match=rf"11 are 40 x 52 uint8 .* but .*s4{ending} {found}"):
        open_volume(str(tmp_path))


def test_a_pattern_without_files_and_a_folder_without_sections_are_not_found(tmp_path):
    with pytest.raises(InputNotFound, match=r"no file matches .*/\*.tif"):
        open_volume(f"{tmp_path}/*.tif")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(InputError, match="is not an array or a pyramid"):
        open_volume(str(tmp_path))
    with pytest.raises(InputError, match="holds no TIFF or PNG files"):
        open_volume(f"{tmp_path}/*.md")
    with pytest.raises(InputNotFound, match=r"there is no .*none.png"):
        open_volume(f"{tmp_path}/none.png")


def test_a_text_file_keeps_its_order_and_says_so(tmp_path, voxels, check_file):
    write_sections(tmp_path, voxels)
    order = [3, 2, 2, 11]
    (tmp_path / "sections.txt").write_text("# lost: 4\n" + "\n".join(f"s{number}.png" for number in order))
    volume = open_volume(str(tmp_path / "sections.txt"))
    check_file(volume, voxels[[number - 1 for number in order]])
    assert "in the order of its lines, which is not that of their numbers" in volume.notes[0]
    (tmp_path / "sections.txt").write_text("s1.png\ns77.png\n")
    with pytest.raises(InputNotFound, match=r"1 of 2 sections are not there: .*s77.png"):
        open_volume(str(tmp_path / "sections.txt"))
    (tmp_path / "sections.txt").write_text("what this folder holds\n")
    with pytest.raises(InputError, match=r"names 'what this folder holds'; it should name one TIFF or PNG file a line"):
        open_volume(str(tmp_path / "sections.txt"))


@pytest.mark.parametrize("ending", [".tif", ".png", ".jpg"])
def test_a_truncated_section_is_refused_or_an_error_and_never_zeros(tmp_path, voxels, ending):
    write_sections(tmp_path, voxels, ending)
    path = tmp_path / f"s5{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    if ending == ".jpg":
        volume = open_volume(str(tmp_path))
        with pytest.raises(VolumeError, match=r"could not be read: .*truncated"):
            volume.read(volume.bounds)
    else:
        with pytest.raises(InputError, match=rf"s5{ending} is incomplete"):
            open_volume(str(tmp_path))


def test_a_stack_in_a_folder_of_sections_is_refused_by_name(tmp_path, voxels):
    write_sections(tmp_path, voxels, ".tif")
    tifffile.imwrite(tmp_path / "s6.tif", voxels[:2], photometric="minisblack")
    with pytest.raises(
        InputError,
        match=r"s6.tif holds 2 pages; a section is a file of one page; a stack is opened by itself",
    ):
        open_volume(str(tmp_path))


def test_one_picture_is_a_volume_of_one_section(tmp_path, voxels, check_file):
    Image.fromarray(voxels[0]).save(tmp_path / "x.png")
    check_file(open_volume(str(tmp_path / "x.png")), voxels[:1])
    check_file(open_volume(f"{tmp_path}/x.png?axes=xy"), voxels[:1].swapaxes(1, 2))
    Image.fromarray(voxels[0]).save(tmp_path / "x.jpg", quality=95)
    volume = open_volume(str(tmp_path / "x.jpg"))
    np.testing.assert_array_equal(volume.read(volume.bounds)[0], np.asarray(Image.open(tmp_path / "x.jpg")))


def test_grey_colours_and_transparency_are_read_and_other_colours_refused(tmp_path, voxels, check_file):
    Image.fromarray(voxels[0]).convert("RGB").save(tmp_path / "grey.png")
    Image.fromarray(voxels[0]).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(voxels[0]).convert("LA").save(tmp_path / "la.png")
    for name in ("grey", "alpha", "la"):
        volume = open_volume(str(tmp_path / f"{name}.png"))
        check_file(volume, voxels[:1])
        assert ("its transparency is ignored" in " ".join(volume.notes)) == (name != "grey")
    Image.fromarray(np.moveaxis(voxels[:3], 0, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb.png: it holds colours; an image is grey"):
        open_volume(str(tmp_path / "rgb.png"))
    Image.fromarray(voxels[0]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    with pytest.raises(InputError, match=r"cmyk.jpg has pixels of the kind CMYK"):
        open_volume(str(tmp_path / "cmyk.jpg"))


def test_a_palette_is_grey_for_an_image_and_indices_for_labels(tmp_path, voxels, check_file):
    section = Image.fromarray(voxels[0] % 4)
    section = Image.frombytes("P", section.size, section.tobytes())
    section.putpalette([level for index in range(4) for level in (80 * index,) * 3])
    section.save(tmp_path / "grey.png")
    section.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    section.save(tmp_path / "colours.png")
    labels = voxels[:1] % 4
    check_file(open_volume(str(tmp_path / "grey.png")), (labels * 80).astype(np.uint8))
    check_file(open_volume(str(tmp_path / "grey.png"), labels=True), labels)
    check_file(open_volume(str(tmp_path / "colours.png"), labels=True), labels)
    with pytest.raises(InputError, match=r"colours.png has a palette of colours; an image is grey"):
        open_volume(str(tmp_path / "colours.png"))


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits_keep_their_values_in_png(tmp_path, voxels, check_file, bits):
    labels = voxels[:1] % np.uint8(2**bits)
    write_png_of_few_bits(tmp_path / "x.png", labels[0], bits)
    check_file(open_volume(str(tmp_path / "x.png"), labels=True), labels)
    check_file(open_volume(str(tmp_path / "x.png")), labels * np.uint8(255 // (2**bits - 1)))


def write_png_of_few_bits(path: Path, values: np.ndarray, bits: int) -> None:
    """Write a grey PNG, which Pillow itself writes with 1, 8 or 16 bits only."""
    unpacked = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(unpacked, axis=1))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_what_is_said_about_many_sections_is_one_line(tmp_path, voxels, check_file):
    for number, section in enumerate(voxels):
        is_white = number % 2 == 1
        tifffile.imwrite(
            tmp_path / f"s{number:02}.tif", 255 - section if is_white else section,
            photometric="miniswhite" if is_white else "minisblack",
        )  # fmt: skip
    volume = open_volume(str(tmp_path))
    check_file(volume, voxels)
    assert volume.notes == (
        f"{tmp_path}, 6 of 12 sections: white is stored as 0 (MINISWHITE); a value v is read as 255 - v",
    )


def test_voxel_size_and_place_are_those_of_the_first_tiff(tmp_path, voxels):
    for number, section in enumerate(voxels):
        metadata = {"axes": "YX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 5}
        metadata |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 40, "PhysicalSizeZUnit": "nm"}
        metadata["Plane"] = {f"Position{axis}": value for axis, value in (("X", 8), ("Y", 10), ("Z", 40 * number))}
        metadata["Plane"] |= {f"Position{axis}Unit": "nm" for axis in "XYZ"}
        tifffile.imwrite(tmp_path / f"s{number:02}.ome.tif", section, metadata=metadata)
    volume = open_volume(str(tmp_path))
    assert volume.voxel_size_nm == (40, 5, 4)
    assert volume.place.origin_nm == (0, 10, 8)


def test_pictures_are_decoded_once_a_node_into_the_chunk_cache(tmp_path, voxels, monkeypatch):
    large = np.random.default_rng(0).integers(0, 255, (2, 2100, 1500), np.uint8)
    write_sections(tmp_path / "em", large)
    decoded = []
    read = PictureSection.read
    monkeypatch.setattr(PictureSection, "read", lambda self: decoded.append(self.header.path) or read(self))
    opener = VolumeOpener(None, str(tmp_path / "cache"), "1GB")
    volume = opener.open(str(tmp_path / "em"))
    assert volume.decode_shape == (1, 2100, 1500)
    np.testing.assert_array_equal(volume.read(Box((0, 1000, 1000), (2, 1100, 1100))), large[:, 1000:1100, 1000:1100])
    np.testing.assert_array_equal(volume.read(volume.bounds), large)
    again = open_volume(str(tmp_path / "em"), cache=ChunkCache(tmp_path / "cache", 10**9))
    np.testing.assert_array_equal(again.read(again.bounds), large)
    assert sorted(decoded) == [str(tmp_path / "em" / name) for name in ("s1.png", "s2.png")]
    write_sections(tmp_path / "em", large[::-1])
    os.utime(tmp_path / "em" / "s1.png", ns=(1, 1))
    replaced = open_volume(str(tmp_path / "em"), cache=ChunkCache(tmp_path / "cache", 10**9))
    np.testing.assert_array_equal(replaced.read(replaced.bounds), large[::-1])


def test_tiled_sections_are_read_by_tile_and_large_strips_through_the_cache(tmp_path):
    large = np.random.default_rng(0).integers(0, 3, (1, 3000, 3100), np.uint8)
    tifffile.imwrite(tmp_path / "tiled.tif", large[0], tile=(256, 256), compression="zlib")
    tifffile.imwrite(tmp_path / "strip.tif", large[0], rowsperstrip=3000, compression="zlib")
    tifffile.imwrite(tmp_path / "plain.tif", large[0], rowsperstrip=3000)
    tiled, strip, plain = (open_volume(f"{tmp_path}/{name}*.tif") for name in ("tiled", "strip", "plain"))
    assert (tiled.decode_shape, tiled.chunk) == (None, (1, 256, 256))
    assert (strip.decode_shape, strip.chunk) == ((1, 3000, 3100), (1, 1024, 1024))
    assert (plain.decode_shape, plain.chunk) == (None, (1, 256, 3100))
    cached = open_volume(f"{tmp_path}/strip*.tif", cache=ChunkCache(tmp_path / "cache", 10**9))
    for volume in (tiled, strip, plain, cached):
        np.testing.assert_array_equal(volume.read(Box((0, 900, 0), (1, 1200, 3100))), large[:, 900:1200])


def test_a_section_larger_than_the_limit_of_pillow_is_read_in_little_more_than_its_size(tmp_path):
    shape = (13_600, 13_300)
    assert shape[0] * shape[1] > 178_956_970, "Pillow refuses it"
    section = np.zeros(shape, np.uint8)
    section[12_000, 12_000:12_010] = range(10)
    image = Image.fromarray(section)
    image.save(tmp_path / "s1.png", compress_level=1)
    del section, image
    code = """
import resource, sys
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.chunk_cache import ChunkCache
from kasthuri_ray.volumes.opening import open_volume
from pathlib import Path
volume = open_volume(sys.argv[1], cache=ChunkCache(Path(sys.argv[2]), 10**9))
assert volume.shape == (1, 13600, 13300), volume.shape
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(volume.read(Box((0, 12000, 12000), (1, 12001, 12010))).ravel().tolist())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    arguments = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    values, memory_kb = done.stdout.splitlines()
    assert values == str(list(range(10))), done.stderr
    assert int(memory_kb) * 1024 < 2.3 * shape[0] * shape[1]


def test_a_volume_of_many_sections_is_small_when_it_is_sent(tmp_path, voxels):
    write_sections(tmp_path / "em", voxels[:1], name="section_{:05}")
    for number in range(2, 200):
        os.link(tmp_path / "em" / "section_00001.png", tmp_path / "em" / f"section_{number:05}.png")
    volume = open_volume(str(tmp_path / "em"))
    assert volume.shape[0] == 199
    sent = pickle.dumps(volume)
    assert len(sent) < 199 * 30 + 2000
    np.testing.assert_array_equal(pickle.loads(sent).read(Box((198, 0, 0), (199, 40, 52))), voxels[:1])


def test_a_relative_folder_with_a_zarr_in_it_is_a_store(tmp_path, voxels, monkeypatch):
    write_sections(tmp_path / "em.zarr", voxels)
    (tmp_path / "em.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(InputError, match="is a group, not an array"):
        open_volume(str(tmp_path / "em.zarr"))
    shutil.rmtree(tmp_path / "em.zarr")
    write_sections(tmp_path / "em", voxels)
    monkeypatch.chdir(tmp_path)
    assert open_volume("em").shape == SHAPE


def test_the_size_of_imagej_goes_with_its_axis_where_the_uri_names_the_axes(tmp_path, voxels, check_file):
    for number, section in enumerate(voxels):
        options = {"resolution": (1 / 4, 1 / 5), "metadata": {"unit": "nm", "spacing": 40}}
        tifffile.imwrite(tmp_path / f"s{number}.tif", section, imagej=True, **options)
    assert open_volume(str(tmp_path)).voxel_size_nm == pytest.approx((40, 5, 4))
    volume = open_volume(f"{tmp_path}?axes=zxy")
    check_file(volume, voxels.swapaxes(1, 2))
    assert volume.voxel_size_nm == pytest.approx((40, 4, 5))


def test_a_section_whose_metadata_name_its_rows_x_is_a_line(tmp_path, voxels, check_file):
    for number, section in enumerate(voxels):
        tifffile.imwrite(tmp_path / f"s{number}.tif", section.T, photometric="minisblack", metadata={"axes": "XY"})
    (note,) = open_volume(str(tmp_path)).notes
    assert "it states the axes XY; its rows are read as y, its columns as x, unless ?axes=zxy turns them" in note
    check_file(open_volume(f"{tmp_path}?axes=zxy"), voxels)
