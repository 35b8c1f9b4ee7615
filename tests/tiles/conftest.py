"""What the tests of tiles share: batches to augment, and a small task in the current folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import RANGES
from kasthuri_ray.tiles.splits import open_task_tiles

SHAPE = (12, 40, 64)
TASK = {
    "image_chan": "v.zarr/em",
    "annotation_chan": "v.zarr/labels",
    **{"xrange_vol": [0, 64], "yrange_vol": [8, 40], "z_train": [0, 6], "z_val": [6, 9], "z_test": [9, 12]},
    "tile_size": [32, 16],
    "task_type": "membrane",
    "threshold": True,
}


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`make_batch(dim, num_tiles, size)`: smooth random images, with labels where they are bright.

    Any change of place moves image and label together.
    """

    def make(dim: int, num_tiles: int = 6, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
        coarse = torch.rand(num_tiles, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        images = images.clamp(0, 1)[:, : 4 if dim == 3 else 1]
        labels = (images > 0.5).to(torch.uint8)
        return (images[:, None], labels) if dim == 3 else (images, labels[:, 0])

    return make


def write_zarr(name: str, voxels: np.ndarray, voxel_size_nm=(30, 6, 6)) -> str:
    array = zarr.create_array(name, data=voxels, chunks=(2, 16, 32), overwrite=True)
    if voxel_size_nm:
        array.attrs["voxel_size_nm_zyx"] = list(voxel_size_nm)
    return name


@pytest.fixture(scope="session")
def write_array() -> Callable[..., str]:
    """Return `write_array(name, voxels, voxel_size_nm)`: writes a zarr in the current folder, and returns its name."""
    return write_zarr


@pytest.fixture
def task_folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a uint8 image and an annotation of 64-bit ids."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_zarr("v.zarr/em", rng.integers(1, 256, SHAPE, dtype=np.uint8))
    write_zarr("v.zarr/labels", (rng.random(SHAPE) < 0.2).astype(np.uint64) * np.uint64(2**40))
    return tmp_path


def task_settings(*assignments: str, **task) -> Any:
    base = {key: value for key, value in TASK.items() if "boxes" not in task or key not in RANGES}
    Path("task.json").write_text(json.dumps({**base, **task}))
    given = GivenSettings("task.json", assignments=["train.cache=none", "network.batch_size=8", *assignments])
    return resolve_settings(given)


@pytest.fixture(scope="session")
def open_tiles() -> Callable[..., tuple[Any, list[str]]]:
    """Return `open_tiles(*assignments, **task)`: the tiles of a task on the volumes of `task_folder`, and the notes."""

    def open_them(*assignments: str, **task):
        notes: list[str] = []
        return open_task_tiles(task_settings(*assignments, **task), notes.append), notes

    return open_them


@pytest.fixture(scope="session")
def error_of(open_tiles) -> Callable[..., str]:
    """Return `error_of(*assignments, **task)`: the message of the error that opening the task raises."""

    def catch(*assignments: str, **task) -> str:
        with pytest.raises(ValueError, match=r".") as caught:
            open_tiles(*assignments, **task)
        return str(caught.value)

    return catch
