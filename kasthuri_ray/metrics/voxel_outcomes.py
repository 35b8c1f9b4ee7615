"""How many voxels of a class a prediction finds, misses and wrongly marks at a threshold, and the scores of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VoxelOutcomes:
    """Voxels by outcome.

    Parameters
    ----------
    found : int
        Voxels of the class in annotation and prediction: true positives.
    missed : int
        In the annotation alone: false negatives.
    wrong : int
        In the prediction alone: false positives.
    right : int
        In neither: true negatives.
    confused : int
        Of several classes together: in both, but as different classes; these are missed and wrong as well.
    """

    found: int
    missed: int
    wrong: int
    right: int
    confused: int = 0

    @classmethod
    def of_confusion(cls, confusion: Sequence[Sequence[int]] | np.ndarray) -> VoxelOutcomes:
        """Return the outcomes of all foreground classes together.

        Parameters
        ----------
        confusion : array_like of int, (classes, classes)
            Voxels by true class (rows) and predicted class, the background first.

        Returns
        -------
        VoxelOutcomes
            A voxel that is predicted as another foreground class is missed and wrong (micro-averaged scores).
        """
        matrix = np.asarray(confusion)
        found, both = int(np.trace(matrix[1:, 1:])), int(matrix[1:, 1:].sum())
        annotated, marked = int(matrix[1:].sum()), int(matrix[:, 1:].sum())
        return cls(found, annotated - found, marked - found, int(matrix[0, 0]), both - found)

    @property
    def total(self) -> int:
        """Number of all voxels."""
        return self.found + self.missed + self.wrong + self.right - self.confused

    @property
    def annotated(self) -> int:
        """Number of voxels of the class in the annotation."""
        return self.found + self.missed

    @property
    def marked(self) -> int:
        """Number of voxels of the class in the prediction."""
        return self.found + self.wrong

    @property
    def recall(self) -> float:
        """Share of the annotated voxels that are found; 0 if there are none."""
        return _share(self.found, self.annotated)

    @property
    def precision(self) -> float:
        """Share of the marked voxels that are correct; 0 if there are none."""
        return _share(self.found, self.marked)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if there is nothing to find and nothing is marked."""
        return _share(2 * self.found, self.annotated + self.marked)

    @property
    def iou(self) -> float:
        """Intersection over union; 0 if both are empty."""
        return _share(self.found, self.found + self.missed + self.wrong - self.confused)

    @property
    def confusion(self) -> list[list[int]]:
        """Voxels by truth (rows) and prediction (columns), other classes first."""
        return [[self.right, self.wrong], [self.missed, self.found]]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
