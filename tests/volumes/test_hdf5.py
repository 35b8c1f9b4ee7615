"""HDF5: datasets as h5py, ilastik, CREMI and gunpowder write them, and errors that say what to do."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.absent_chunks import check_any_chunk
from kasthuri_ray.volumes.file_formats import open_file_volume
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place

SHAPE = (6, 300, 210)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


@pytest.mark.parametrize("chunks", [None, (2, 64, 64)])
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32", ">u2", "int32"])
def test_a_dataset_is_read_as_it_was_written(tmp_path, voxels, check_file, dtype, chunks):
    stored = voxels.astype(dtype)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        item = file.create_dataset("volumes/raw", data=stored, chunks=chunks, compression=chunks and "gzip")
        item.attrs["resolution"] = [40.0, 4.0, 4.0]
    for uri in (f"{tmp_path}/x.h5:volumes/raw", f"{tmp_path}/x.h5:/volumes/raw", f"file://{tmp_path}/x.h5"):
        volume = open_volume(uri)
        check_file(volume, stored.astype(stored.dtype.newbyteorder("=")))
        assert volume.voxel_size_nm == (40, 4, 4)
        assert volume.chunk == (chunks or (1, 300, 210))


def test_the_voxel_size_is_read_from_several_attributes(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["none"] = voxels
        file["zyx"] = voxels
        file["zyx"].attrs["voxel_size_nm_zyx"] = [30, 6, 6]
        file["ilastik"] = voxels
        file["ilastik"].attrs["element_size_um"] = [0.05, 0.01, 0.01]
        file["funlib"] = voxels
        file["funlib"].attrs["voxel_size"] = [0.04, 0.004, 0.004]
        file["funlib"].attrs["units"] = ["um", "um", "um"]
        file.create_group("group").attrs["voxel_size_nm_zyx"] = [1, 2, 3]
        file["group/em"] = voxels
    names = ("none", "zyx", "ilastik", "funlib", "group/em")
    sizes = {name: open_file_volume(f"{tmp_path}/x.h5:{name}").voxel_size_nm for name in names}
    assert sizes == {
        "none": None,
        "zyx": (30, 6, 6),
        "ilastik": (50, 10, 10),
        "funlib": (40, 4, 4),
        "group/em": (1, 2, 3),
    }


def test_the_offset_of_cremi_is_the_place_of_the_corner_of_voxel_0(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["volumes/raw"] = voxels
        file["volumes/labels/clefts"] = voxels
        file["volumes/labels/clefts"].attrs.update(resolution=(40.0, 4.0, 4.0), offset=(1480.0, 3644.0, 3644.0))
        file["group/clefts"] = voxels
        file["group"].attrs["offset"] = (10, 20, 30)
        file["units"] = voxels
        file["units"].attrs.update(offset=(1, 2, 3), units="um", resolution=(1, 1, 1))
        file["seconds"] = voxels
        file["seconds"].attrs.update(offset=(1, 2, 3), units="s")
    places = {
        name: open_volume(f"{tmp_path}/x.h5:{name}").place
        for name in ("volumes/raw", "volumes/labels/clefts", "group/clefts", "units", "seconds")
    }
    assert places == {
        "volumes/raw": None,
        "volumes/labels/clefts": Place((1480, 3644, 3644), "corner", "offset"),
        "group/clefts": Place((10, 20, 30), "corner", "offset"),
        "units": Place((1000, 2000, 3000), "corner", "offset"),
        "seconds": None,
    }
    given = open_volume(f"{tmp_path}/x.h5:volumes/labels/clefts?offset_nm=1,2,3&voxel_size_nm=5,6,7")
    assert (given.place.origin_nm, given.voxel_size_nm) == ((1, 2, 3), (5, 6, 7))


def axistags(order: str) -> str:
    return json.dumps({"axes": [{"key": key, "typeFlags": 2, "resolution": 0, "description": ""} for key in order]})


@pytest.mark.parametrize("order", ["zyx", "xyz", "zyxc", "tzyxc", "czyx", "yxz", "tyx", "xyzc"])
def test_axistags_of_ilastik_say_which_axis_is_which(tmp_path, voxels, check_file, order):
    stored = voxels.transpose(["zyx".index(axis) for axis in order.replace("t", "z" if "z" not in order else "")
                               if axis in "zyx"])  # fmt: skip
    for number, axis in enumerate(order):
        if axis == "c" or (axis == "t" and "z" in order):
            stored = np.expand_dims(stored, number)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = stored
        file["em"].attrs["axistags"] = axistags(order)
        file["labelled"] = stored
        for dimension, axis in zip(file["labelled"].dims, order, strict=True):
            dimension.label = axis
        file["plain"] = stored
    check_file(open_volume(f"{tmp_path}/x.h5:em"), voxels)
    check_file(open_volume(f"{tmp_path}/x.h5:labelled"), voxels)
    if "t" not in order:
        check_file(open_volume(f"{tmp_path}/x.h5:plain?axes={order}"), voxels)


def test_several_channels_are_refused_whatever_their_axis_is(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["zyxc"] = np.stack([voxels, voxels], -1)
        file["zyxc"].attrs["axistags"] = axistags("zyxc")
        file["plain"] = np.stack([voxels, voxels], -1)
    with pytest.raises(ValueError, match=r"x.h5:zyxc has 2 channels, shape \(6, 300, 210, 2\); a volume has one"):
        open_volume(f"{tmp_path}/x.h5:zyxc")
    with pytest.raises(ValueError, match=r"x.h5:plain has 6 channels, shape .* name them: \?axes=zyxc"):
        open_volume(f"{tmp_path}/x.h5:plain")
    with pytest.raises(ValueError, match=r"axes=zyxc: the axis 'c' has the length 2"):
        open_volume(f"{tmp_path}/x.h5:plain?axes=zyxc")


def test_an_image_of_two_axes_is_one_section(tmp_path, voxels, check_file):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = voxels[0]
        file["channel"] = voxels[0, ..., None]
        file["numbers"] = np.arange(5)
    for uri in (f"{tmp_path}/x.h5:em", f"{tmp_path}/x.h5:channel"):
        check_file(open_volume(uri), voxels[:1])
    check_file(open_volume(f"{tmp_path}/x.h5:em?axes=xy"), voxels[:1].transpose(0, 2, 1))


def test_a_file_with_several_datasets_needs_a_dataset_name(tmp_path, voxels, check_file):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["one"] = voxels[None, None]
        file["image"] = voxels[0]
    check_file(open_file_volume(str(path)), voxels)
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


def test_voxels_are_taken_for_another_type_of_the_same_size(tmp_path, voxels, check_file):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = voxels.view(np.int16)
    check_file(open_volume(f"{tmp_path}/x.h5?dtype=uint16"), voxels)
    with pytest.raises(ValueError, match="dtype=uint8 does not fit: the stored voxels are int16"):
        open_volume(f"{tmp_path}/x.h5?dtype=uint8")


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


def write_with_filter(path: str, voxels: np.ndarray, code: int) -> None:
    """Write one chunk as if a filter had compressed it, so that no plugin is needed."""
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(voxels.shape)
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(voxels.shape)
        h5py.h5d.create(file.id, b"em", h5py.h5t.NATIVE_UINT16, space, plist)
        file["em"].id.write_direct_chunk((0, 0, 0), bytes(64), 0)


@pytest.mark.parametrize(("code", "name"), [(32001, "Blosc"), (32015, "Zstandard"), (32008, "Bitshuffle")])
def test_a_filter_that_is_not_installed_is_named_with_the_command(tmp_path, voxels, monkeypatch, code, name):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    if h5py.h5z.filter_avail(code):
        pytest.skip("hdf5plugin is loaded")
    write_with_filter(str(tmp_path / "x.h5"), voxels, code)
    with pytest.raises(InputError, match=rf"HDF5 filter {name} \({code}\), .* pip install hdf5plugin"):
        open_file_volume(f"{tmp_path}/x.h5:em")


def test_filters_of_hdf5plugin_are_read_in_every_process(tmp_path, voxels):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("em", data=voxels, chunks=(2, 64, 64), **hdf5plugin.Blosc())
    volume = open_file_volume(f"{tmp_path}/x.h5:em")
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)


def test_a_file_that_another_program_writes_is_refused_with_what_to_do(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = voxels
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); sys.stdin.read()"
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x.h5")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
    ) as writer:  # fmt: skip
        assert writer.stdout.readline() == b"1\n"
        with pytest.raises(InputError, match=r"x.h5 is open in another program .* HDF5_USE_FILE_LOCKING=FALSE"):
            open_volume(f"{tmp_path}/x.h5:em")
        writer.stdin.close()
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/x.h5:em")[0:1], voxels[:1])


def test_a_virtual_dataset_whose_files_are_missing_is_refused_and_never_zeros(tmp_path, voxels, check_file):
    layout = h5py.VirtualLayout(SHAPE, voxels.dtype)
    for half in range(2):
        with h5py.File(tmp_path / f"part{half}.h5", "w") as file:
            file["em"] = voxels[half * 3 : half * 3 + 3]
        source = h5py.VirtualSource(f"part{half}.h5", "em", (3, *SHAPE[1:]))
        layout[half * 3 : half * 3 + 3] = source
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_virtual_dataset("em", layout)
    check_file(open_volume(f"{tmp_path}/x.h5:em"), voxels)
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(InputError, match=r"1 of 2 files that hold its voxels are missing: part1.h5"):
        open_volume(f"{tmp_path}/x.h5:em")


@pytest.mark.parametrize("fault", ["no such dataset", "no HDF5"])
def test_a_virtual_dataset_whose_files_hold_something_else_is_refused_and_never_zeros(tmp_path, voxels, fault):
    """https://github.com/HDFGroup/hdf5/issues/5088: HDF5 fills in what it cannot read, without a word."""
    layout = h5py.VirtualLayout(SHAPE, voxels.dtype)
    layout[:3] = h5py.VirtualSource("part.h5", "em", (3, *SHAPE[1:]))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_virtual_dataset("em", layout)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["other"] = voxels[:3]
    if fault == "no HDF5":
        (tmp_path / "part.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(
        InputError, match=r"1 of the 1 datasets of which it consists cannot be read, such as em in part.h5"
    ):
        open_volume(f"{tmp_path}/x.h5:em")


def test_links_are_followed_listed_and_named_where_they_lead_nowhere(tmp_path, voxels, check_file):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["em"] = voxels
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["volumes/raw"] = h5py.ExternalLink("data.h5", "/em")
        file["soft"] = h5py.SoftLink("/volumes/raw")
        file["gone"] = h5py.ExternalLink("moved.h5", "/em")
        file["lost"] = h5py.SoftLink("/nowhere")
    for name in ("volumes/raw", "soft"):
        check_file(open_volume(f"{tmp_path}/x.h5:{name}"), voxels)
    for name, target in {"gone": "moved.h5:/em", "lost": "/nowhere"}.items():
        with pytest.raises(InputError, match=rf"x.h5:{name}: '{name}' is a link to {target}, which is not there"):
            open_volume(f"{tmp_path}/x.h5:{name}")
    with pytest.raises(InputError, match=r"has no dataset 'a/b'; name one: x.h5:soft, x.h5:volumes/raw"):
        open_volume(f"{tmp_path}/x.h5:a/b")


@pytest.mark.parametrize("stated", [None, "int16", "uint8"])
def test_the_int16_of_bigdataviewer_is_uint16_unless_it_states_its_type(tmp_path, voxels, check_file, stated):
    """https://github.com/bigdataviewer/bigdataviewer-core/pull/157: Java has no uint16, so that 40000 is -25536."""
    stored = voxels.astype(stated) if stated else voxels.view(np.int16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["t00000/s00/0/cells"] = stored
        file["s00/resolutions"] = [[1.0, 1.0, 1.0]]
        if stated:
            file["s00"].attrs["dataType"] = stated
    volume = open_volume(f"{tmp_path}/x.h5:t00000/s00/0/cells")
    check_file(volume, stored if stated else voxels)
    assert ["BigDataViewer stores uint16 as int16" in note for note in volume.notes] == ([] if stated else [True])
    check_file(open_volume(f"{tmp_path}/x.h5:t00000/s00/0/cells?dtype={stored.dtype}"), stored)


def test_a_dataset_that_holds_no_array_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["number"] = 5
        file["nothing"] = h5py.Empty("f4")
    for name, what in {"number": "one number", "nothing": "nothing"}.items():
        with pytest.raises(InputError, match=f"x.h5:{name} holds {what}; a volume has three axes"):
            open_volume(f"{tmp_path}/x.h5:{name}")


def test_a_dataset_that_was_never_written_is_said(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("em", SHAPE, np.uint8, chunks=(1, 64, 64))
    (note,) = open_volume(f"{tmp_path}/x.h5:em").notes
    assert note.endswith("x.h5:em: nothing is stored in the dataset; all its voxels are 0")


def test_remote_missing_and_incomplete_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*/none.h5"):
        open_file_volume(str(tmp_path / "none.h5:em"))
    with pytest.raises(ValueError, match="are read from a local disk only; copy the files, or convert them to zarr"):
        open_file_volume("s3://bucket/x.h5:em")
    (tmp_path / "x.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x.h5 is not a complete HDF5 file"):
        open_file_volume(str(tmp_path / "x.h5"))


def test_units_and_offset_of_the_file_count_where_its_resolution_does(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs.update(resolution=(0.4, 0.1, 0.1), units="um", offset=(1, 2, 3))
        file["a/b/em"] = voxels
        file["a/b/own"] = voxels
        file["a/b/own"].attrs.update(resolution=(40, 4, 4))
        file["a/unit"] = voxels
        file["a/unit"].attrs.update(resolution=(0.4, 0.1, 0.1), unit="um")
    volume = open_volume(f"{tmp_path}/x.h5:a/b/em")
    assert (volume.voxel_size_nm, volume.place) == ((400, 100, 100), Place((1000, 2000, 3000), "corner", "offset"))
    own = open_volume(f"{tmp_path}/x.h5:a/b/own")
    assert (own.voxel_size_nm, own.place) == ((40, 4, 4), None)
    assert open_volume(f"{tmp_path}/x.h5:a/unit").voxel_size_nm == (400, 100, 100)


def test_attributes_of_other_shapes_are_read(tmp_path, voxels, check_file):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["row"] = voxels.T
        file["row"].attrs.update(resolution=np.array([[40, 5, 4]]), offset=np.array([[1], [2], [3]]))
        file["row"].attrs["axistags"] = np.array([axistags("xyz")], dtype=h5py.string_dtype())
        file["four"] = voxels[None]
        file["four"].attrs.update(resolution=(1, 40, 5, 4), offset=(0, 1, 2, 3), units=("s", "um", "um", "um"))
    row, four = (open_volume(f"{tmp_path}/x.h5:{name}") for name in ("row", "four"))
    for volume, factor in ((row, 1), (four, 1000)):
        check_file(volume, voxels)
        assert volume.voxel_size_nm == (40 * factor, 5 * factor, 4 * factor)
        assert volume.place.origin_nm == (factor, 2 * factor, 3 * factor)
        assert volume.notes == ()
    turned = open_volume(f"{tmp_path}/x.h5:row?axes=zyx")
    assert (turned.voxel_size_nm, turned.place.origin_nm) == ((4, 5, 40), (3, 2, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("resolution", 4.0), ("resolution", "4nm"), ("resolution", (40, 0, 4)), ("offset", (0, np.nan, 0)),
     ("offset", (np.inf, 0, 0)), ("offset", (1, 2))],
)  # fmt: skip
def test_attributes_that_are_not_understood_are_a_line(tmp_path, voxels, name, value):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = voxels
        file["em"].attrs[name] = value
    volume = open_volume(f"{tmp_path}/x.h5:em")
    assert (volume.voxel_size_nm, volume.place) == (None, None)
    (note,) = volume.notes
    assert f"its {name}, " in note
    assert "is not three lengths along z,y,x and does not count; give the " in note


def test_chunks_that_were_never_written_are_absent(tmp_path, voxels):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("em", voxels.T.shape, "u2", chunks=(100, 100, 2), fillvalue=7)
        stored[100:200, 200:300, 2:4] = voxels.T[100:200, 200:300, 2:4]
        file.create_dataset("none", voxels.shape, "u2", chunks=(2, 100, 100))
        file.create_dataset("flat", voxels.shape, "u2", fillvalue=9)
        file["whole"] = voxels
    volume = open_volume(f"{tmp_path}/x.h5:em?axes=xyz")
    assert volume.count_absent(volume.bounds) == (26, 27)
    assert volume.count_absent(Box((2, 250, 100), (3, 260, 110))) == (0, 1)
    assert volume.find_stored(volume.bounds) == Box((2, 200, 100), (4, 300, 200))
    assert volume.fill_value == 7
    check_any_chunk(volume, volume.bounds, "train", allow_empty=False)
    with pytest.raises(InputError, match=r"nothing of .*x\.h5:em.* is stored in train, .* or all of it is 7"):
        check_any_chunk(volume, Box((0, 0, 0), (2, 300, 210)), "train", allow_empty=False)
    names = ("none", "whole", "flat")
    none, whole, flat = (open_volume(f"{tmp_path}/x.h5:{name}") for name in names)
    assert [volume.has_any_chunk(volume.bounds) for volume in (none, whole, flat)] == [False, True, False]
    assert flat.fill_value == 9
    assert none.find_stored(none.bounds) is None
    assert (none.may_lack_chunks, whole.may_lack_chunks) == (True, False)
