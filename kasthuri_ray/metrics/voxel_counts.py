"""Counts of voxels that add up over batches, ranks and blocks, and the scores that follow from them.

Counts are kept instead of averages, so that the scores of a whole do not depend on how it was divided. Class 0 is the
background; foreground is every other class, and its probability is 1 - p(background).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasthuri_ray.labels import IGNORE_LABEL

BINS = 1024
"""Bins of the foreground probability. A power of two: then `p * BINS` is exact in float32 and in float64, and
`p >= k / BINS` holds exactly where the bin of p is k or more."""


def histogram_edges() -> np.ndarray:
    """Return the lower edges of the bins, float64 [BINS]: the thresholds at which scores from counts are exact."""
    return np.arange(BINS) / BINS


def probability_bins(probability: np.ndarray) -> np.ndarray:
    """Return the bin of each probability, `min(int(p * BINS), BINS - 1)`.

    Counting on another device must follow the same rule.

    Parameters
    ----------
    probability : ndarray of float
        Values from 0 to 1, of any shape.

    Returns
    -------
    ndarray of int64
        Bins, of the same shape.

    Raises
    ------
    ValueError
        If a value is nan or not from 0 to 1.
    """
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities must be between 0 and 1, got {probability.min():.4g} to {probability.max():.4g}; "
            "nan or infinity here means that the training diverged: lower network.learning_rate"
        )
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)


@dataclass(eq=False)
class VoxelCounts:
    """Voxels counted by true class and prediction.

    Parameters
    ----------
    confusion : ndarray of int64, (classes, classes)
        Voxels of each true class (row) and predicted class (column, the argmax).
    histogram : ndarray of int64, (2, BINS)
        Voxels of true background (row 0) and true foreground (row 1) by the bin of their foreground probability.
    """

    confusion: np.ndarray
    histogram: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int = 2) -> VoxelCounts:
        """Return counts of no voxels."""
        return cls(np.zeros((num_classes, num_classes), np.int64), np.zeros((2, BINS), np.int64))

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.confusion)

    @property
    def num_voxels(self) -> int:
        """Number of voxels that were counted."""
        return int(self.confusion.sum())

    def add(self, foreground: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Count more voxels, in place.

        Parameters
        ----------
        foreground : ndarray of float
            Probability of foreground, 0 to 1, of any shape.
        predicted, labels : ndarray of int
            Predicted and true class, of the same shape. Voxels with the ignore label are not counted.

        Raises
        ------
        ValueError
            If shapes differ, a label or a prediction is not a class, or a probability is nan.
        """
        if not foreground.shape == predicted.shape == labels.shape:
            raise ValueError(
                f"probabilities {foreground.shape}, predictions {predicted.shape} and labels {labels.shape} "
                "must have the same shape"
            )
        kept = labels != IGNORE_LABEL
        truth, argmax = labels[kept].astype(np.int64), predicted[kept].astype(np.int64)
        for name, values in (("label", truth), ("predicted class", argmax)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                raise ValueError(
                    f"a {name} must be a class from 0 to {self.num_classes - 1} (or the label {IGNORE_LABEL}, "
                    f"ignored), got {values.min()} to {values.max()}"
                )
        bins = probability_bins(foreground[kept])
        pairs = np.bincount(truth * self.num_classes + argmax, minlength=self.confusion.size)
        self.confusion += pairs.reshape(self.confusion.shape)
        self.histogram += np.bincount((truth > 0) * BINS + bins, minlength=2 * BINS).reshape(2, BINS)

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(self.confusion + other.confusion, self.histogram + other.histogram)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VoxelCounts) and np.array_equal(self.to_array(), other.to_array())

    def positives_by_bin(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the true positives and the false positives at the lower edge of each bin, int64 [BINS]."""
        false_positives, true_positives = np.cumsum(self.histogram[:, ::-1], axis=1)[:, ::-1]
        return true_positives, false_positives

    def to_array(self) -> np.ndarray:
        """Return all counts as one vector, int64 [classes * classes + 2 * BINS], which ranks can sum."""
        return np.concatenate([self.confusion.ravel(), self.histogram.ravel()]).astype(np.int64)

    @classmethod
    def from_array(cls, vector: np.ndarray) -> VoxelCounts:
        """Return the counts of a vector from `to_array`. Raises ValueError for a vector of another length."""
        vector = np.asarray(vector)
        classes = math.isqrt(max(0, vector.size - 2 * BINS))
        if classes < 2 or classes * classes + 2 * BINS != vector.size:
            raise ValueError(f"expected classes * classes + {2 * BINS} counts, got {vector.size}")
        counts = np.rint(vector).astype(np.int64)
        return cls(counts[: classes * classes].reshape(classes, classes), counts[classes * classes :].reshape(2, BINS))


def count_block_voxels(probability: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> VoxelCounts:
    """Count the voxels of a block by two classes, section by section, which takes little memory.

    Parameters
    ----------
    probability : ndarray of uint8 or float, (z, y, x)
        Probability of foreground; uint8 255 is 1.
    predicted : ndarray of bool, (z, y, x)
        Voxels that are predicted as foreground.
    labels : ndarray of int, (z, y, x)
        True class, 0, 1 or the ignore label.

    Returns
    -------
    VoxelCounts
        Counts of two classes. The confusion is that of `predicted`.
    """
    counts = VoxelCounts.zeros()
    for section in zip(probability, predicted, labels, strict=True):
        if probability.dtype == np.uint8:
            counts += _count_bytes(*section)
        else:
            counts.add(*section)
    return counts


def _count_bytes(probability: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> VoxelCounts:
    """Return what `VoxelCounts.add` counts for probability / 255, from the counts of the 256 values."""
    kept = labels != IGNORE_LABEL
    true, value = labels[kept].astype(np.int64), probability[kept]
    confusion = np.bincount(true * 2 + predicted[kept], minlength=4).reshape(2, 2)
    by_value = np.bincount(true * 256 + value, minlength=512).reshape(2, 256)
    histogram = np.zeros((2, BINS), np.int64)
    histogram[:, probability_bins(np.arange(256) / 255)] = by_value
    return VoxelCounts(confusion, histogram)


def safe_ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> np.ndarray:
    """Return the quotient, float64.

    Parameters
    ----------
    numerator, denominator : array_like
        Numbers or arrays whose shapes broadcast.

    Returns
    -------
    ndarray of float64
        0 where the denominator is 0.
    """
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    zeros = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=zeros, where=denominator != 0)
