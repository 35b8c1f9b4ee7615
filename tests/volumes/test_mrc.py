"""MRC stacks as mrcfile and IMOD write them: types, size, place, and headers that promise too much."""

import struct
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place

SHAPE = (5, 40, 52)
STAMP = 1146047817


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-120, 120, SHAPE, np.int8)


def write(path: Path, voxels: np.ndarray, **header: object) -> str:
    """Write a stack and set fields of its header."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(voxels)
        for name, value in header.items():
            if name in ("voxel_size", "origin"):
                setattr(file if name == "voxel_size" else file.header, name, value)
            else:
                file.header[name] = value
    return str(path)


def patch(path: str, offset: int, *values: int, order: str = "<") -> str:
    """Replace integers of the header."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(f"{order}{len(values)}i", *values))
    return path


@pytest.mark.parametrize("ending", ["mrc", "rec", "st", "mrcs", "MRC", "map", "ali", "preali"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
def test_a_stack_is_read_as_it_was_written(tmp_path, voxels, check_file, dtype, ending):
    stored = voxels.astype(dtype) if dtype != "uint16" else voxels.view(np.uint8).astype(dtype)
    volume = open_volume(write(tmp_path / f"x.{ending}", stored))
    check_file(volume, stored)
    assert (volume.voxel_size_nm, volume.place) == (None, None)
    assert len(volume.notes) == (dtype == "int8")


def test_one_image_is_one_section(tmp_path, voxels, check_file):
    check_file(open_volume(write(tmp_path / "x.mrc", voxels[0].astype(np.int16))), voxels[:1].astype(np.int16))


def test_size_and_origin_are_in_angstrom(tmp_path, voxels):
    size, origin = (40.0, 50.0, 400.0), (80.0, -100.0, 1200.0)  # x, y, z
    volume = open_volume(write(tmp_path / "x.mrc", voxels.astype(np.int16), voxel_size=size, origin=origin))
    assert volume.voxel_size_nm == (40, 5, 4)
    assert volume.place == Place((120, -10, 8), "corner", "MRC origin")
    started = write(tmp_path / "y.mrc", voxels.astype(np.int16), voxel_size=size, nxstart=2, nystart=0, nzstart=-3)
    assert open_volume(started).place == Place((-120, 0, 8), "corner", "MRC nxstart")


def test_a_size_of_1_angstrom_is_taken_for_none_and_said(tmp_path, voxels):
    volume = open_volume(write(tmp_path / "x.mrc", voxels.astype(np.int16), voxel_size=1.0))
    assert volume.voxel_size_nm is None
    assert "a voxel size of 1 Angstrom is taken for one that is not known" in volume.notes[0]


def test_bytes_are_unsigned_where_imod_says_so_and_otherwise_signed_with_a_line(tmp_path, voxels, check_file):
    unsigned = voxels.view(np.uint8)
    path = write(tmp_path / "x.mrc", voxels)
    (note,) = open_volume(path).notes
    assert "its bytes are read as signed, -128 to 127; if they are unsigned, end the URI in ?dtype=uint8" in note
    check_file(open_volume(path), voxels)
    for flags, expected in ((0, unsigned), (1, voxels), (4, unsigned), (5, voxels)):
        patch(path, 152, STAMP, flags)
        volume = open_volume(path)
        check_file(volume, expected)
        assert volume.notes == ()
    patch(path, 152, 0, 0)
    given = open_volume(f"{path}?dtype=uint8")
    check_file(given, unsigned)
    assert given.notes == ()


@pytest.mark.parametrize(("flags", "sign"), [(None, 1), (0, -1), (1, -1), (4, 1)])
def test_the_origin_of_imod_has_the_other_sign_unless_a_flag_inverts_it(tmp_path, voxels, flags, sign):
    path = write(tmp_path / "x.mrc", voxels.astype(np.int16), voxel_size=40.0, origin=(80.0, 100.0, 1200.0))
    if flags is not None:
        patch(path, 152, STAMP, flags)
    assert open_volume(path).place.origin_nm == (sign * 120, sign * 10, sign * 8)


def test_a_big_endian_file_and_an_extended_header_are_read(tmp_path, voxels, check_file):
    stored = voxels.astype(">i2")
    path = write(tmp_path / "x.mrc", stored)
    with mrcfile.open(path, "r+") as file:
        file.set_extended_header(np.zeros(100, "V8"))
    volume = open_volume(path)
    check_file(volume, voxels.astype(np.int16))
    assert volume.byteorder == ">"
    assert volume.offset == 1024 + 800


def test_the_order_of_axes_is_that_of_the_header_and_of_the_uri(tmp_path, voxels, check_file):
    stored = voxels.astype(np.int16)
    path = write(tmp_path / "x.mrc", stored, mapc=2, mapr=1)
    check_file(open_volume(path), stored.swapaxes(1, 2))
    check_file(open_volume(f"{path}?axes=zyx"), stored)
    check_file(open_volume(write(tmp_path / "y.mrc", stored, mapc=0, mapr=0, maps=0)), stored)


def test_a_truncated_stack_is_refused_with_both_counts(tmp_path, voxels):
    path = Path(write(tmp_path / "x.mrc", voxels.astype(np.int16)))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"x.mrc is incomplete: 4 of 5 sections are there"):
        open_volume(str(path))
    path.write_bytes(content + bytes(7))
    assert "7 bytes follow the 5 sections that its header states" in open_volume(str(path)).notes[0]
    path.write_bytes(content[:500])
    with pytest.raises(InputError, match="is not a complete MRC file"):
        open_volume(str(path))
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(InputError, match=r"x\.mrc"):
        open_volume(str(path))


def test_colours_complex_values_and_several_volumes_are_refused(tmp_path, voxels):
    with pytest.raises(InputError, match="of mode 4; the modes 0, 1, 2, 6, 12 are read"):
        open_volume(write(tmp_path / "x.mrc", voxels.astype(np.complex64)))
    path = write(tmp_path / "y.mrc", np.zeros((6, 4, 5), np.int16), mz=3, ispg=401)
    with pytest.raises(InputError, match="holds 2 volumes of 3 sections"):
        open_volume(path)
    path = patch(write(tmp_path / "z.mrc", voxels), 152, STAMP, 16)
    with pytest.raises(InputError, match="holds values of 4 bits"):
        open_volume(path)


@pytest.mark.parametrize("stamp", [b"\x44\x44\0\0", b"\x44\x11\0\0", b"\x44\x20\x20\x20", bytes(4), b"\x11\x11\0\0"])
@pytest.mark.parametrize("map_id", [b"MAP ", bytes(4)])
def test_machine_stamps_and_map_ids_of_other_programs_do_not_matter(tmp_path, voxels, check_file, stamp, map_id):
    """https://github.com/ccpem/mrcfile/issues/7, /44 and /47: of EMDB, Amira and IMOD."""
    path = write(tmp_path / "x.mrc", voxels.astype(np.float32), voxel_size=(40, 60, 300))
    with open(path, "r+b") as file:
        file.seek(208)
        file.write(map_id + stamp)
    volume = open_volume(path)
    check_file(volume, voxels.astype(np.float32))
    assert volume.voxel_size_nm == (30, 6, 4)


def test_an_extended_header_that_is_stated_and_not_there_is_said(tmp_path, voxels, check_file):
    """https://github.com/ccpem/mrcfile/issues/51: cryoCARE copies the header without it."""
    path = patch(write(tmp_path / "x.mrc", voxels.astype(np.float32)), 92, 1024)
    volume = open_volume(path)
    check_file(volume, voxels.astype(np.float32))
    assert "the extended header of 1024 bytes that it states is not there" in volume.notes[0]


def test_size_origin_and_start_go_with_their_axes(tmp_path, voxels):
    stored, size = voxels.astype(np.int16), (40.0, 50.0, 400.0)  # Angstrom, x, y, z
    header = {"mapc": 3, "mapr": 2, "maps": 1}
    started = write(tmp_path / "x.mrc", stored, nxstart=5, nystart=6, nzstart=7, **header)
    with mrcfile.open(started, "r+") as file:  # sections are x, rows y, columns z
        file.header.mx, file.header.my, file.header.mz = SHAPE
        file.header.cella = tuple(n * length for n, length in zip(SHAPE, size, strict=True))
    volume = open_volume(started)
    np.testing.assert_array_equal(volume.read(volume.bounds), stored.T)
    assert volume.voxel_size_nm == (40, 5, 4)
    assert volume.place.origin_nm == (5 * 40, 6 * 5, 7 * 4)
    plain = write(tmp_path / "y.mrc", stored, voxel_size=size[::-1], origin=(30.0, 20.0, 10.0))
    for options, lengths, origin in (("", (4, 5, 40), (1, 2, 3)), ("?axes=xyz", (40, 5, 4), (3, 2, 1))):
        opened = open_volume(plain + options)
        assert (opened.voxel_size_nm, opened.place.origin_nm) == (lengths, origin)
