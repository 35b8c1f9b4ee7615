"""Units of length as files write them, and sizes without one."""

import json

import h5py
import numpy as np
import pytest
import tensorstore as ts
import zarr

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.length_units import in_nanometers, nanometers_per_unit
from kasthuri_ray.volumes.opening import open_volume


@pytest.mark.parametrize(
    ("units", "length"),
    [
        (["nm", "Nm", "NM", " nm ", "nanometer", "Nanometers", "nanometre"], 1),
        (["\u00b5m", "\u03bcm", "um", "UM", "micron", "microns", "micrometer", "micrometre"], 1000),
        (["\u00c5", "\u212b", "A\u030a", "angstrom", "Angstroms"], 0.1),
        (["pm", "picometer"], 1e-3),
        (["mm", "millimeter"], 1e6),
        (["cm"], 1e7),
        (["inch", "in"], 2.54e7),
        (["m", "meter", "meters"], 1e9),
        (["pixel", "px", "", " ", None, "M", "A", "second", 5, ["nm"]], None),
    ],
)
def test_units_are_read_however_they_are_written(units, length):
    assert [nanometers_per_unit(unit) for unit in units] == [length] * len(units)


@pytest.mark.parametrize(
    "sizes", [[30, 6], [30, 6, 0], [30, -6, 4], [30, 6, float("nan")], [30, "6", 4], [30, None, 4]]
)
def test_what_is_not_three_positive_numbers_is_no_size(sizes):
    assert in_nanometers(sizes, ["nm"] * 3) is None


def write_bare_size(folder, voxels, kind, size):
    """Write a voxel size z, y, x, without a unit."""
    if kind == "zarr":
        zarr.create_array(folder / "x", data=voxels, chunks=(4, 16, 16)).attrs["resolution"] = size
        return folder / "x"
    if kind == "hdf5":
        with h5py.File(folder / "x.h5", "w") as file:
            file["em"] = voxels
            file["em"].attrs["resolution"] = size
        return f"{folder}/x.h5:em"
    kvstore = {"driver": "file", "path": f"{folder}/x/"}
    if kind == "n5":
        spec = {"driver": "n5", "kvstore": kvstore, "metadata": {"compression": {"type": "gzip"}}}
        ts.open(spec, create=True, dtype="uint8", shape=voxels.shape[::-1]).result()[...] = voxels.transpose(2, 1, 0)
        path = folder / "x" / "attributes.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"resolution": size[::-1]}))
        return folder / "x"
    scale = {"size": voxels.shape[::-1], "resolution": size[::-1], "chunk_size": [16, 16, 4], "encoding": "raw"}
    whole = {"data_type": "uint8", "num_channels": 1, "type": "image"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "multiscale_metadata": whole}
    store = ts.open({**spec, "scale_metadata": scale}, create=True).result()
    store[...] = voxels.transpose(2, 1, 0)[..., None]
    return folder / "x"


@pytest.mark.parametrize("kind", ["zarr", "hdf5", "n5", "precomputed"])
def test_micrometers_without_a_unit_are_not_taken_for_nanometers(tmp_path, voxels, check, kind):
    """pybdv writes the size of an N5 in the unit of its XML: https://github.com/constantinpape/pybdv."""
    uri = write_bare_size(tmp_path, voxels, kind, [0.03, 0.006, 0.004])
    with pytest.raises(
        InputError, match=r"its resolution is 0.03,0.006,0.004 \(z,y,x\) and states no unit.*\?voxel_size"
    ):
        open_volume(str(uri))
    given = open_volume(f"{uri}?voxel_size_nm=30,6,4")
    assert given.voxel_size_nm == (30, 6, 4)
    np.testing.assert_array_equal(given.read(given.bounds), voxels)
