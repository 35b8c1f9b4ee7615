"""Training as the seed does it, the code of the Kasthuri Challenge, for comparison: float32, eager, arrays in memory.

A DataLoader over the grid of tiles, image / 255, horizontal flip and rotation, cross-entropy, Adam at 1e-4, a learning
rate that is halved when the validation loss stops falling. The class of a voxel is that of the higher logit. The
weights of the last epoch are tested.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
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
ROTATION = {"membrane": (10.0, 1.0), "synapse": (30.0, 0.5)}  # largest angle in degrees, and probability
NETWORK = {"model_type": "unet", "classes": 2, "start_filters": 32, "dim": 2}


class ArrayTiles(Dataset):
    """Grid tiles of arrays in memory (image and label uint8 z, y, x), augmented if `rotation` is given."""

    def __init__(
        self, image: np.ndarray, label: np.ndarray, size: int, rotation: tuple[float, float] | None = None
    ) -> None:
        self.image, self.label, self.rotation = image, label, rotation
        self.tiles = TileGrid(Box.at((0, 0, 0), image.shape), (1, size, size))

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, float32 1, y, x in 0..1, and the label, int64 y, x."""
        slices = self.tiles[index][0].slices()
        image = torch.from_numpy(self.image[slices].astype(np.float32) / 255)
        label = torch.from_numpy(self.label[slices].astype(np.int64))
        if self.rotation is not None:
            image, label = augment_seed_tile(image, label, *self.rotation)
        return image, label[0]


def augment_seed_tile(image: Tensor, label: Tensor, max_degrees: float, probability: float) -> tuple[Tensor, Tensor]:
    """Flip every second tile horizontally, and rotate it at random by up to `max_degrees`; image and label 1, y, x."""
    if torch.rand(()) < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    if torch.rand(()) >= probability:
        return image, label
    angle = math.radians(float(torch.empty(()).uniform_(-max_degrees, max_degrees)))
    rotation = torch.tensor([[[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]])
    grid = affine_grid(rotation, [1, 1, *image.shape[-2:]], align_corners=False)
    rotated = grid_sample(image[None], grid, align_corners=False)[0]
    return rotated, grid_sample(label[None].float(), grid, mode="nearest", align_corners=False)[0].long()


@dataclass
class SeedRecipe:
    """Recipe of the seed over arrays. train, val, test: pairs of image and label, uint8 z, y, x."""

    task_type: str
    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    size: int = 256
    batch_size: int = 8
    seed: int = 0
    device: str = "cpu"
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.network = build_network(NETWORK).to(self.device)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)

    def loader(self, arrays: tuple[np.ndarray, np.ndarray], training: bool) -> DataLoader:
        """Return the batches of a split; for training shuffled and augmented."""
        rotation = ROTATION.get(self.task_type, ROTATION["membrane"]) if training else None
        return DataLoader(ArrayTiles(*arrays, self.size, rotation), self.batch_size, shuffle=training)

    def step(self, image: Tensor, label: Tensor) -> None:
        """Train on one batch."""
        self.optimizer.zero_grad()
        self.loss(self.network(image.to(self.device)), label.to(self.device)).backward()
        self.optimizer.step()

    def time_steps(self, num_steps: int) -> list[float]:
        """Return the seconds of each step, with the preparation of its tiles, after one step that does not count."""
        self.network.train()
        endless = itertools.chain.from_iterable(itertools.repeat(self.loader(self.train, True)))
        seconds, last = [], time.perf_counter()
        for image, label in itertools.islice(endless, num_steps + 1):
            self.step(image, label)
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds[1:]

    def time_validation(self, num_batches: int = 2) -> float:
        """Return the seconds that validation takes for one batch."""
        batches = itertools.islice(itertools.cycle(self.loader(self.val, False)), num_batches)
        start = time.perf_counter()
        self._evaluate(batches)
        return (time.perf_counter() - start) / num_batches

    def count_validation_batches(self, epochs: int) -> int:
        """Return how many batches a whole training evaluates: val after each epoch, and test at the end."""
        return epochs * len(self.loader(self.val, False)) + len(self.loader(self.test, False))

    def run(self, epochs: int) -> dict[str, Any]:
        """Train, and test the last weights; return the seconds of both, and the F1 of the foreground on test."""
        start = time.perf_counter()
        self.fit(epochs)
        _, f1 = self._evaluate(self.loader(self.test, False))
        return {"seconds": time.perf_counter() - start, "foreground_f1": f1}

    def fit(self, epochs: int, tiles_per_epoch: int | None = None) -> float:
        """Train; return the tiles that it trains on in a second, without those of the validation after each epoch.

        tiles_per_epoch: an epoch ends after so many tiles; by default after all of the grid.
        """
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=5, factor=0.5)
        shuffled = self.loader(self.train, True)
        batches = itertools.chain.from_iterable(itertools.repeat(shuffled))
        steps = len(shuffled) if tiles_per_epoch is None else math.ceil(tiles_per_epoch / self.batch_size)
        seconds, num_tiles = 0.0, 0
        for _ in range(epochs):
            start = time.perf_counter()
            self.network.train()
            for image, label in itertools.islice(batches, steps):
                self.step(image, label)
                num_tiles += len(image)
            seconds += time.perf_counter() - start
            plateau.step(self._evaluate(self.loader(self.val, False))[0])
        return num_tiles / seconds

    def time_prediction(self) -> float:
        """Return the voxels of the test box that it predicts in a second, tile by tile as the challenge did."""
        tiles = self.loader(self.test, False).dataset
        loader, num_voxels = DataLoader(tiles), math.prod(self.test[0].shape)
        self._evaluate(itertools.islice(loader, 1))  # warm
        start = time.perf_counter()
        self._evaluate(loader)
        return num_voxels / (time.perf_counter() - start)

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Return the mean loss, and the F1 of the foreground by the higher logit; 0 if nothing is foreground."""
        self.network.eval()
        losses, num_found, num_predicted, num_true = [], 0, 0, 0
        for image, label in batches:
            label = label.to(self.device)
            logits = self.network(image.to(self.device))
            losses.append(float(self.loss(logits, label)))
            predicted, true = logits.argmax(1) > 0, label > 0
            num_found += int((predicted & true).sum())
            num_predicted += int(predicted.sum())
            num_true += int(true.sum())
        total = num_predicted + num_true
        return float(np.mean(losses)), 2 * num_found / total if total else 0.0
