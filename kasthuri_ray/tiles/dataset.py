"""The tiles of a task as a PyTorch dataset, without Ray: `DataLoader(TileDataset("synapse"), batch_size=8)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kasthuri_ray.config import defaults
from kasthuri_ray.config.flags import DataFlags
from kasthuri_ray.config.keyword_arguments import (
    as_assignments,
    check_keywords,
    check_task_or_network,
    set_by_keywords,
)
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import SPLITS
from kasthuri_ray.errors import InputError, missing_is_bad_input
from kasthuri_ray.tiles.augmentation import Augment, tile_seed
from kasthuri_ray.tiles.sampling import GridTiles, TrainTiles, read_tile
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.tiles.volume_split import split_volume
from kasthuri_ray.volumes.array_volume import volume_uri

ARGUMENTS = ("task", "split", "augment", "network", "image", "annotation", "voxel_size", "storage", "settings")


class TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """The tiles of one split of a task, in the order and with the augmentation of training.

    An item is (image, label): the image float32 1, y, x in 0..1 (1, z, y, x in 3D), the label int64 y, x (z, y, x) with
    255 where a voxel does not count (`torch.nn.CrossEntropyLoss(ignore_index=255)`).

    Parameters
    ----------
    task : str, path or mapping
        Name of a built-in task, path of a task file, or what such a file holds.
    split : str
        `train`, `val` or `test`.
    augment : bool
        Whether training tiles are augmented; tiles of val and test never are.
    network : str, path or mapping, optional
        Network whose settings decide on the seed, the augmentation and `tiles_per_epoch`; as of `train`.
    image, annotation : str, path or array, optional
        Volumes in place of the task's: URIs, paths, or arrays with axes z, y, x.
    voxel_size : tuple of float, optional
        Voxel size of the image along z, y, x, in nm, if it does not state it.
    storage : str or path
        Folder for copies of arrays; they are in its folder `arrays`.
    settings : mapping, optional
        Any settings, such as `{"task.tile_size": [128, 128], "network.augmentations": "em"}`.
    **flags
        `boss`, `cache` and `cache_size`, as of `train`.

    Raises
    ------
    InputError
        If there is no such task or split, or if boxes, volumes and tiles do not fit.
    VolumeError
        If a volume cannot be read.

    Notes
    -----
    Training tiles follow from the seed, the epoch and their number alone. Call `set_epoch` before each pass over a
    `DataLoader`, else every pass has the tiles of epoch 0. The tiles of val and test cover their boxes, and every voxel
    counts once. `notes` holds lines that a person should read.
    """

    @missing_is_bad_input()
    def __init__(
        self,
        task: str | os.PathLike[str] | Mapping[str, Any],
        split: str = "train",
        *,
        augment: bool = True,
        network: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        image: Any = None,
        annotation: Any = None,
        voxel_size: Any = None,
        storage: str | os.PathLike[str] = defaults.STORAGE,
        settings: Mapping[str, Any] | None = None,
        **flags: Unpack[DataFlags],
    ) -> None:
        check_keywords("TileDataset", flags, {*ARGUMENTS, *DataFlags.__annotations__})
        if split not in SPLITS:
            raise InputError(f"split is {split!r}; it can be {', '.join(SPLITS)}")
        volumes = {
            name: volume_uri(volume, name, os.fspath(storage))
            for name, volume in (("image", image), ("annotation", annotation))
            if volume is not None
        }
        given = GivenSettings(
            check_task_or_network("task", task),
            check_task_or_network("network", network),
            assignments=as_assignments(settings),
            flags=set_by_keywords("train", {**volumes, "voxel_size": voxel_size, **flags}),
        )
        resolved = resolve_settings(given)
        self.notes = list(resolved.notes.values())
        resolved = split_volume(resolved, self.notes.append)
        tiles = getattr(open_task_tiles(resolved, self.notes.append), split)
        if tiles is None:
            raise InputError(f"the task {resolved.task.name} has no box for {split}")
        self.tiles: TrainTiles | GridTiles = tiles
        self.split, self.epoch = split, 0
        self._seed, self._dim = resolved.network.seed, resolved.network.dim
        kind = resolved.network.augmentations if augment and split == "train" else "none"
        self._augment = Augment(kind, dim=self._dim, task_type=resolved.task.task_type)

    def __len__(self) -> int:
        return self.tiles.tiles_per_epoch if isinstance(self.tiles, TrainTiles) else len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        number, tiles = index % len(self), self.tiles
        address = tiles.address(self.epoch, number) if isinstance(tiles, TrainTiles) else tiles.address(number)
        voxels, classes, _ = read_tile(tiles.sources, address)
        image, label = torch.from_numpy(voxels)[None, None].float().div_(255), torch.from_numpy(classes)[None]
        if self._dim == 2:
            image, label = image[:, :, 0], label[:, 0]
        image, label = self._augment(image, label, [tile_seed(self._seed, self.epoch, number)])
        return image[0], label[0].long()

    def set_epoch(self, epoch: int) -> None:
        """Choose the tiles of an epoch, counted from 0."""
        self.epoch = epoch
