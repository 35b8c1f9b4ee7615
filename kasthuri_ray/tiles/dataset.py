"""The tiles of a task as a PyTorch dataset, without Ray: `DataLoader(TileDataset("synapse", "train"), batch_size=8)`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import SPLITS
from kasthuri_ray.errors import InputError
from kasthuri_ray.tiles.augmentation import Augment, tile_seed
from kasthuri_ray.tiles.sampling import GridTiles, TrainTiles, read_tile
from kasthuri_ray.tiles.splits import open_task_tiles


class TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """The tiles of one split, in the order and with the augmentation of training.

    An item is (image, label): the image float32 1, y, x in 0..1 (1, z, y, x in 3D), the label int64 y, x (z, y, x) with
    255 where a voxel does not count (`torch.nn.CrossEntropyLoss(ignore_index=255)`).

    Parameters
    ----------
    settings : Settings
        Settings of the task and the network.
    split : str
        `train`, `val` or `test`.
    augment : bool
        Whether training tiles are augmented; tiles of val and test never are.

    Raises
    ------
    InputError
        If there is no such split, or if boxes, volumes and tiles do not fit.
    VolumeError
        If a volume cannot be read.

    Notes
    -----
    Training tiles follow from the seed, the epoch and their number alone. Call `set_epoch` before each pass over a
    `DataLoader`, else every pass has the tiles of epoch 0. The tiles of val and test cover their boxes, and every voxel
    counts once. `notes` holds lines that a person should read.
    """

    def __init__(self, settings: Settings, split: str = "train", *, augment: bool = True) -> None:
        if split not in SPLITS:
            raise InputError(f"split is {split!r}; it can be {', '.join(SPLITS)}")
        self.notes: list[str] = []
        tiles = getattr(open_task_tiles(settings, self.notes.append), split)
        if tiles is None:
            raise InputError(f"the task {settings.task.name} has no box for {split}")
        network, self.split, self.epoch = settings.network, split, 0
        self.tiles: TrainTiles | GridTiles = tiles
        self._seed, self._dim = network.seed, network.dim
        kind = network.augmentations if augment and split == "train" else "none"
        self._augment = Augment(kind, dim=network.dim, task_type=settings.task.task_type)

    def __len__(self) -> int:
        return self.tiles.tiles_per_epoch if isinstance(self.tiles, TrainTiles) else len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        number = index % len(self)
        tiles = self.tiles
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
