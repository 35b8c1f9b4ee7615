"""N5 as Neuroglancer, Paintera, BigDataViewer and N5 viewer lay it out: axes, size, place, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place

LENGTHS = {"x": 4, "y": 6, "z": 30}


def write(path: Path, voxels: np.ndarray, order: str = "xyz", **attributes: object) -> str:
    """Write voxels z, y, x with their stored axes in this order."""
    stored = voxels.transpose(["zyx".index(axis) for axis in order])
    metadata = {"blockSize": [8, 8, 8], "compression": {"type": "gzip"}}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    ts.open(spec, create=True, dtype=stored.dtype.name, shape=stored.shape).result()[...] = stored
    write_attributes(path, **attributes)
    return str(path)


def write_attributes(path: Path, **attributes: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "attributes.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | attributes))


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("order", ["xyz", "zyx", "yxz"])
def test_axes_that_are_named_are_followed(tmp_path, voxels, check, order, upper):
    names = list(order.upper() if upper else order)
    lengths = [LENGTHS[axis] for axis in order]
    attributes = {"axes": names, "units": ["nm"] * 3, "resolution": lengths, "offset": [10 * n for n in lengths]}
    volume = open_volume(write(tmp_path / "em", voxels, order, **attributes))
    check(volume, voxels)
    assert volume.voxel_size_nm == (30, 6, 4)
    assert volume.place == Place((300, 60, 40), "corner", "offset")
    assert volume.stored_axes == ",".join(order)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pixelResolution": {"dimensions": [4, 6, 30], "unit": "nm"}},
        {"pixelResolution": {"dimensions": [0.004, 0.006, 0.03], "unit": "\u00b5m"}},
        {"pixelResolution": {"dimensions": [4, 6, 30]}},
        {"pixelResolution": [4, 6, 30]},
        {"resolution": [4, 6, 30], "units": "nm"},
        {"resolution": [0.004, 0.006, 0.03], "unit": "micrometer"},
    ],
)
def test_the_voxel_size_is_read_in_every_form(tmp_path, voxels, check, attributes):
    volume = open_volume(write(tmp_path / "em", voxels, **attributes))
    check(volume, voxels)
    assert volume.voxel_size_nm == (30, 6, 4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": "4,6,30"},
        {"resolution": 4},
        {"resolution": [4, 6]},
        {"pixelResolution": None},
        {"pixelResolution": {"dimensions": ["4", "6", "30"]}},
        {"pixelResolution": {"dimensions": [1, 1, 1], "unit": "pixel"}},
        {"downsamplingFactors": 2},
        {"offset": "0"},
    ],
)
def test_attributes_of_another_kind_state_nothing(tmp_path, voxels, check, attributes):
    volume = open_volume(write(tmp_path / "em", voxels, **attributes))
    check(volume, voxels)
    assert (volume.voxel_size_nm, volume.place) == (None, None)


def test_a_dataset_of_paintera_is_opened_by_its_group_which_states_the_place(tmp_path, voxels, check):
    group = tmp_path / "em.n5" / "raw"
    write_attributes(group, painteraData={"type": "raw"})
    write_attributes(group / "data", multiScale=True, resolution=[4, 6, 30], offset=[40, 60, 300])
    levels = [voxels, voxels[:, ::2, ::2]]
    for number, level in enumerate(levels):
        write(group / "data" / f"s{number}", level, downsamplingFactors=[1 << number, 1 << number, 1])
    for mip in (0, 1):
        for name in (f"{group}#mip={mip}", f"{group}/data#mip={mip}", f"{group}/data/s{mip}"):
            volume = open_volume(name)
            check(volume, levels[mip])
            assert volume.voxel_size_nm == (30, 6 << mip, 4 << mip)
            assert volume.place == Place((300, 60, 40), "corner", "offset")


@pytest.mark.parametrize("where", ["array", "group"])
def test_label_multisets_of_paintera_are_refused_by_name(tmp_path, voxels, where):
    """https://github.com/zarr-developers/zarr-extensions/pull/55: their blocks are of any length, typed uint8."""
    group = tmp_path / "em.n5" / "labels"
    write_attributes(group, painteraData={"type": "label"})
    write_attributes(group / "data", **({"isLabelMultiset": True} if where == "group" else {}))
    write(group / "data" / "s0", voxels, **({"isLabelMultiset": True} if where == "array" else {}))
    for name in (group, group / "data", group / "data" / "s0"):
        with pytest.raises(InputError, match=r"is a label multiset of Paintera, which is not read.*to-scalar"):
            open_volume(str(name))
