"""Where training boxes hold labelled voxels: blocks with the number of voxels of each class, to draw tiles from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box


@dataclass(frozen=True, eq=False)
class LabelledBlocks:
    """Blocks of training boxes, each with at least one labelled voxel.

    Parameters
    ----------
    sources : ndarray of int64, (n,)
        Number of the training box of each block.
    starts, stops : ndarray of int64, (n, 3)
        First voxel of each block and the one after its last, z, y, x.
    counts : ndarray of int64, (n, classes)
        Labelled voxels of each class.
    is_whole : bool
        Whether all other voxels of the boxes are not labelled; else some were not looked at.
    """

    sources: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    counts: np.ndarray
    is_whole: bool

    @classmethod
    def of(cls, blocks: Sequence[tuple[int, Box, np.ndarray]], is_whole: bool) -> LabelledBlocks:
        """Return the blocks of a list of training box, block and counts of its classes; at least one."""
        sources, boxes, counts = zip(*blocks, strict=True)
        starts, stops = np.array([box.start for box in boxes]), np.array([box.stop for box in boxes])
        return cls(np.array(sources), starts, stops, np.array(counts, np.int64), is_whole)

    def meet(self, source: int, box: Box) -> bool:
        """Return whether a block shares a voxel with a box of a training box."""
        inside = (self.starts < box.stop).all(1) & (self.stops > box.start).all(1)
        return bool((inside & (self.sources == source)).any())

    def draw(self, rng: np.random.Generator, first_class: int) -> tuple[int, Box]:
        """Draw a block in proportion to its voxels of the classes from one on.

        Parameters
        ----------
        rng : Generator
            Source of randomness.
        first_class : int
            0 for all labelled voxels, 1 for foreground. If there are no such voxels, all labelled ones count.

        Returns
        -------
        source, box : int, Box
            Training box and block.
        """
        weights = self.counts[:, first_class:].sum(1).astype(float)
        if not weights.any():
            weights = self.counts.sum(1).astype(float)
        number = int(rng.choice(len(weights), p=weights / weights.sum()))
        start, stop = ((int(z), int(y), int(x)) for z, y, x in (self.starts[number], self.stops[number]))
        return int(self.sources[number]), Box(start, stop)
