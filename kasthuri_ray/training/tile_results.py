"""Tiles of a split compared with their labels: all voxels, and once more those that were not learnt from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.intervals import TileCounts, TileSample, tile_counts
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.tiles.sampling import GridTiles
from kasthuri_ray.training.learner import count_batch_voxels
from kasthuri_ray.training.process_group import gather_over_ranks
from kasthuri_ray.training.tested_objects import LOWEST_KEPT, SplitObjects, match_tile_objects, pack_tile


@dataclass(frozen=True)
class TileScore:
    """The voxels of one tile, compared with the prediction at the thresholds.

    Parameters
    ----------
    number : int
        Number of the tile.
    confusion : ndarray of int64, (classes, classes)
        Voxels by true class (rows) and predicted class.
    counts : TileCounts
        For bootstrap intervals.
    voxels : bytes
        See `pack_tile`; empty without objects.
    """

    number: int
    confusion: np.ndarray
    counts: TileCounts
    voxels: bytes = b""


@dataclass(frozen=True)
class TileResults:
    """The tiles of a split, their counts, and the score of each.

    Parameters
    ----------
    tiles : GridTiles
        The tiles.
    counts : VoxelCounts
        Their voxels, by the most probable class.
    scores : list of TileScore
        By the number of the tile.
    objects : SplitObjects
        The matched objects of each class that has some.
    unseen : TileResults, optional
        The same of the voxels that were not learnt from, if some of all voxels were.
    augmented : TileResults, optional
        The same with test-time augmentation.
    """

    tiles: GridTiles
    counts: VoxelCounts
    scores: list[TileScore]
    objects: SplitObjects = field(default_factory=SplitObjects)
    unseen: TileResults | None = None
    augmented: TileResults | None = None

    @property
    def confusion(self) -> np.ndarray:
        """Voxels by true class (rows) and predicted class at the thresholds."""
        return np.sum([score.confusion for score in self.scores], axis=0)

    @property
    def headline(self) -> TileResults:
        """The results that come first: those of the unseen voxels if only a part was learnt from."""
        return self.unseen if self.unseen is not None and self.unseen.counts.num_voxels else self

    @property
    def labelled(self) -> list[TileScore]:
        """Scores of the tiles that hold a labelled voxel; of all tiles if none does."""
        return [score for score in self.scores if score.confusion.any()] or self.scores

    def sample(self) -> TileSample:
        """Return the labelled tiles for bootstrap intervals."""
        return TileSample.of([score.counts for score in self.labelled])

    @property
    def packed(self) -> dict[int, bytes]:
        """Voxels of the tiles, see `pack_tile`, by their numbers."""
        return {score.number: score.voxels for score in self.scores}

    def with_objects(
        self, numbers: Sequence[int], settings: ObjectSettings | None, thresholds: Sequence[float]
    ) -> TileResults:
        """Return the results with the objects of these classes, which replace the voxels of the tiles."""
        if settings is None or not numbers or not self.counts.num_voxels:
            return self
        return replace(
            self,
            scores=[replace(score, voxels=b"") for score in self.scores],
            objects=match_tile_objects(self.tiles, self.packed, numbers, settings, thresholds),
            unseen=self.unseen and self.unseen.with_objects(numbers, settings, thresholds),
            augmented=self.augmented and self.augmented.with_objects(numbers, settings, thresholds),
        )


@dataclass
class TileScorer:
    """Compares tiles with their labels, batch by batch.

    Parameters
    ----------
    tiles : GridTiles
        The tiles.
    thresholds : sequence of float
        One for each foreground class.
    has_objects : bool
        Whether objects are matched.
    learnt : sequence of tuple of Box, optional
        For each source the boxes that were learnt from, whose voxels do not count; None: all voxels count, and somebody
        else counts them for `results`.
    """

    tiles: GridTiles
    thresholds: Sequence[float]
    has_objects: bool
    learnt: Sequence[tuple[Box, ...]] | None = None
    scores: list[TileScore] = field(default_factory=list, init=False)
    counts: VoxelCounts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = VoxelCounts.zeros(len(self.thresholds) + 1)

    def add(self, numbers: np.ndarray, logits: Tensor, labels: Tensor) -> None:
        """Compare the tiles of a batch: logits N, classes, [z], y, x, and labels N, [z], y, x."""
        if self.learnt is not None:
            labels = self._hide_learnt(numbers, labels)
            self.counts = self.counts + count_batch_voxels(logits, labels)
        tiles = zip(numbers, foreground_probabilities(logits), labels.cpu().numpy(), strict=True)
        self.scores += [self._score_tile(int(number), *voxels) for number, *voxels in tiles]

    def results(self, counts: VoxelCounts | None = None) -> TileResults:
        """Return the results of all ranks; `counts` are those of all of their voxels, if they are known."""
        gathered = itertools.chain.from_iterable(gather_over_ranks(self.scores))
        scores = sorted(gathered, key=lambda score: score.number)
        if counts is None:
            counts = VoxelCounts.from_array(np.sum(gather_over_ranks(self.counts.to_array()), axis=0))
        return TileResults(self.tiles, counts, scores)

    def _hide_learnt(self, numbers: np.ndarray, labels: Tensor) -> Tensor:
        assert self.learnt is not None
        unseen = labels.clone()
        for number, label in zip(numbers, unseen, strict=True):
            address = self.tiles.address(int(number))
            voxels = label.view(address.box.shape)
            for box in self.learnt[address.source]:
                voxels[box.intersect(address.box).slices(address.box.start)] = IGNORE_LABEL
        return unseen

    def _score_tile(self, number: int, probability: np.ndarray, label: np.ndarray) -> TileScore:
        counts, predicted = VoxelCounts.zeros(len(probability) + 1), classes_at(probability, self.thresholds)
        counts.add(probability, predicted, label)
        lowest = min(LOWEST_KEPT, *self.thresholds)
        voxels = pack_tile(probability, label, self.tiles.address(number), lowest) if self.has_objects else b""
        return TileScore(number, counts.confusion, tile_counts(counts, self.thresholds), voxels)


def foreground_probabilities(logits: Tensor) -> np.ndarray:
    """Return the probabilities of the foreground classes.

    Parameters
    ----------
    logits : Tensor
        N, classes, [z], y, x.

    Returns
    -------
    ndarray of float32
        N, classes - 1, [z], y, x.
    """
    return torch.softmax(logits.float(), 1)[:, 1:].cpu().numpy()
