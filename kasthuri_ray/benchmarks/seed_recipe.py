"""Training as the Kasthuri Challenge's own code does it, to be compared with: float32, eager, arrays in memory.

A DataLoader over the grid of tiles, image / 255, horizontal flip and rotation, cross-entropy, Adam at 1e-4, the
learning rate halved when the validation loss stays; the class of a voxel is the one with the higher logit. The weights
of the last epoch are judged.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import DataLoader, Dataset

from kasthuri_ray.geometry import Box, TileGrid
from kasthuri_ray.models.unet import build_network

LEARNING_RATE = 1e-4
# Of a rotation: the greatest angle in degrees, and how likely it is.
ROTATION = {"membrane": (10.0, 1.0), "synapse": (30.0, 0.5)}
NETWORK = {"model_type": "unet", "classes": 2, "start_filters": 32, "dim": 2}


class ArrayTiles(Dataset):
    """The grid tiles of arrays in memory (image and label uint8 z, y, x), changed at random if `rotation` is given."""

    def __init__(
        self, image: np.ndarray, label: np.ndarray, size: int, rotation: tuple[float, float] | None = None
    ) -> None:
        self.image, self.label, self.rotation = image, label, rotation
        self.tiles = TileGrid(Box((0, 0, 0), image.shape), (1, size, size))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """image float32 1, y, x in 0..1 and label int64 y, x."""
        place = self.tiles[index][0].slices()
        image = torch.from_numpy(self.image[place].astype(np.float32) / 255)
        label = torch.from_numpy(self.label[place].astype(np.int64))
        if self.rotation is not None:
            image, label = augment_seed_tile(image, label, *self.rotation)
        return image, label[0]


def augment_seed_tile(image: Tensor, label: Tensor, degrees: float, likely: float) -> tuple[Tensor, Tensor]:
    """Flip every second tile horizontally and rotate it by up to `degrees`; image and label 1, y, x."""
    if torch.rand(()) < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    if torch.rand(()) >= likely:
        return image, label
    angle = math.radians(float(torch.empty(()).uniform_(-degrees, degrees)))
    turn = torch.tensor([[[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]])
    grid = affine_grid(turn, [1, 1, *image.shape[-2:]], align_corners=False)
    turned = grid_sample(image[None], grid, align_corners=False)[0]
    return turned, grid_sample(label[None].float(), grid, mode="nearest", align_corners=False)[0].long()


@dataclass
class SeedRecipe:
    """The recipe over arrays. train, val, test: pairs of image and label, uint8 z, y, x."""

    task_type: str
    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    size: int = 256
    batch_size: int = 8
    seed: int = 0
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.network = build_network(NETWORK)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)

    def loader(self, arrays: tuple[np.ndarray, np.ndarray], learning: bool) -> DataLoader:
        rotation = ROTATION.get(self.task_type, ROTATION["membrane"]) if learning else None
        return DataLoader(ArrayTiles(*arrays, self.size, rotation), self.batch_size, shuffle=learning)

    def step(self, image: Tensor, label: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(self.network(image), label).backward()
        self.optimizer.step()

    def time_steps(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, the tiles' making included, after one that does not count."""
        self.network.train()
        endless = itertools.chain.from_iterable(itertools.repeat(self.loader(self.train, True)))
        times, last = [], time.perf_counter()
        for image, label in itertools.islice(endless, steps + 1):
            self.step(image, label)
            now = time.perf_counter()
            times.append(now - last)
            last = now
        return times[1:]

    def time_judging(self, batches: int = 2) -> float:
        """Seconds that judging one batch takes."""
        loader = itertools.islice(itertools.cycle(self.loader(self.val, False)), batches)
        start = time.perf_counter()
        self._judge(loader)
        return (time.perf_counter() - start) / batches

    def judged_batches(self, epochs: int) -> int:
        """How many batches are judged in a whole training: val after each epoch, and test."""
        return epochs * len(self.loader(self.val, False)) + len(self.loader(self.test, False))

    def run(self, epochs: int) -> dict[str, Any]:
        """Train for `epochs` and judge the last weights: seconds of all, and the foreground's F1 on test."""
        start = time.perf_counter()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=5, factor=0.5)
        for _ in range(epochs):
            self.network.train()
            for image, label in self.loader(self.train, True):
                self.step(image, label)
            plateau.step(self._judge(self.loader(self.val, False))[0])
        _, f1 = self._judge(self.loader(self.test, False))
        return {"seconds": time.perf_counter() - start, "foreground_f1": f1}

    @torch.no_grad()
    def _judge(self, batches: Any) -> tuple[float, float]:
        """The mean loss and the F1 of the foreground, by the higher logit; 0 where nothing is foreground."""
        self.network.eval()
        losses, found, called, true = [], 0, 0, 0
        for image, label in batches:
            logits = self.network(image)
            losses.append(float(self.loss(logits, label)))
            predicted, labelled = logits.argmax(1) > 0, label > 0
            found += int((predicted & labelled).sum())
            called += int(predicted.sum())
            true += int(labelled.sum())
        return float(np.mean(losses)), 2 * found / (called + true) if called + true else 0.0
