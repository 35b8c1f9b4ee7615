"""How many voxels a prediction finds, misses and wrongly marks at a threshold, as the pages write about them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VoxelOutcomes:
    """Voxels by outcome. right: background in annotation and prediction."""

    found: int
    missed: int
    wrong: int
    right: int

    @property
    def total(self) -> int:
        """Number of all voxels."""
        return self.found + self.missed + self.wrong + self.right

    @property
    def annotated(self) -> int:
        """Number of foreground voxels in the annotation."""
        return self.found + self.missed

    @property
    def marked(self) -> int:
        """Number of foreground voxels in the prediction."""
        return self.found + self.wrong

    @property
    def recall(self) -> float:
        """Share of the annotated voxels that are found; 0 if there are none."""
        return self.found / self.annotated if self.annotated else 0.0

    @property
    def precision(self) -> float:
        """Share of the marked voxels that are correct; 0 if there are none."""
        return self.found / self.marked if self.marked else 0.0

    @property
    def confusion(self) -> list[list[int]]:
        """Voxels by truth (rows) and prediction (columns), background first."""
        return [[self.right, self.wrong], [self.missed, self.found]]
