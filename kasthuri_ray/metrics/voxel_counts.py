"""Counts of voxels that add up over batches, ranks and blocks, and the scores that follow from them.

Counts are kept instead of averages, so that the scores of a whole do not depend on how it was divided. Class 0 is the
background; each other class is scored by its own probability, against all other classes.
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


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Voxels of one class and of all other classes, by the probability of the class.

    Parameters
    ----------
    histogram : ndarray of int64, (2, BINS)
        Voxels of other classes (row 0) and of the class (row 1) by the bin of its probability.
    """

    histogram: np.ndarray

    @property
    def num_voxels(self) -> int:
        """Number of voxels that were counted."""
        return int(self.histogram.sum())

    @property
    def num_true(self) -> int:
        """Number of voxels of the class."""
        return int(self.histogram[1].sum())

    def positives_by_bin(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the true positives and the false positives at the lower edge of each bin, int64 [BINS]."""
        false_positives, true_positives = np.cumsum(self.histogram[:, ::-1], axis=1)[:, ::-1]
        return true_positives, false_positives


@dataclass(eq=False)
class VoxelCounts:
    """Voxels counted by true class and prediction.

    Parameters
    ----------
    confusion : ndarray of int64, (classes, classes)
        Voxels of each true class (row) and predicted class (column, the argmax).
    histograms : ndarray of int64, (classes - 1, 2, BINS)
        `ClassCounts.histogram` of class 1, 2, ...
    """

    confusion: np.ndarray
    histograms: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int = 2) -> VoxelCounts:
        """Return counts of no voxels."""
        return cls(np.zeros((num_classes, num_classes), np.int64), np.zeros((num_classes - 1, 2, BINS), np.int64))

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.confusion)

    @property
    def num_voxels(self) -> int:
        """Number of voxels that were counted."""
        return int(self.confusion.sum())

    @property
    def num_foreground(self) -> int:
        """Number of voxels whose true class is not the background."""
        return int(self.confusion[1:].sum())

    @property
    def by_class(self) -> list[ClassCounts]:
        """Counts of class 1, 2, ..., each against all other classes."""
        return [ClassCounts(histogram) for histogram in self.histograms]

    def add(self, probability: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Count more voxels, in place.

        Parameters
        ----------
        probability : ndarray of float, (classes - 1, ...)
            Probability of class 1, 2, ..., 0 to 1.
        predicted, labels : ndarray of int, (...)
            Predicted and true class. Voxels with the ignore label are not counted.

        Raises
        ------
        ValueError
            If shapes differ, a label or a prediction is not a class, or a probability is nan.
        """
        if not (probability.shape == (self.num_classes - 1, *labels.shape) and predicted.shape == labels.shape):
            raise ValueError(
                f"probabilities {probability.shape}, predictions {predicted.shape} and labels {labels.shape} "
                f"must have the same shape, after an axis of {self.num_classes - 1} for the probabilities"
            )
        kept = labels != IGNORE_LABEL
        truth, argmax = labels[kept].astype(np.int64), predicted[kept].astype(np.int64)
        for name, values in (("label", truth), ("predicted class", argmax)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                raise ValueError(
                    f"a {name} must be a class from 0 to {self.num_classes - 1} (or the label {IGNORE_LABEL}, "
                    f"ignored), got {values.min()} to {values.max()}"
                )
        pairs = np.bincount(truth * self.num_classes + argmax, minlength=self.confusion.size)
        self.confusion += pairs.reshape(self.confusion.shape)
        for number, (histogram, of_class) in enumerate(zip(self.histograms, probability, strict=True), start=1):
            bins = probability_bins(of_class[kept])
            histogram += np.bincount((truth == number) * BINS + bins, minlength=2 * BINS).reshape(2, BINS)

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(self.confusion + other.confusion, self.histograms + other.histograms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VoxelCounts) and np.array_equal(self.to_array(), other.to_array())

    def to_array(self) -> np.ndarray:
        """Return all counts as one vector, which ranks can sum: int64 [classes**2 + (classes - 1) * 2 * BINS]."""
        return np.concatenate([self.confusion.ravel(), self.histograms.ravel()]).astype(np.int64)

    @classmethod
    def from_array(cls, vector: np.ndarray) -> VoxelCounts:
        """Return the counts of a vector from `to_array`. Raises ValueError for a vector of another length."""
        vector = np.asarray(vector)
        # The positive root of classes**2 + 2 BINS (classes - 1) = size.
        classes = max(2, math.isqrt(BINS**2 + 2 * BINS + vector.size) - BINS)
        if classes**2 + 2 * BINS * (classes - 1) != vector.size:
            raise ValueError(f"expected classes**2 + {2 * BINS} (classes - 1) counts, got {vector.size}")
        counts = np.rint(vector).astype(np.int64)
        confusion, histograms = np.split(counts, [classes**2])
        return cls(confusion.reshape(classes, classes), histograms.reshape(classes - 1, 2, BINS))


def count_block_voxels(probability: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> VoxelCounts:
    """Count the voxels of a block, section by section, which takes little memory.

    Parameters
    ----------
    probability : ndarray of uint8 or float, (classes - 1, z, y, x)
        Probability of class 1, 2, ...; uint8 255 is 1.
    predicted : ndarray of int or bool, (z, y, x)
        Class that is predicted.
    labels : ndarray of int, (z, y, x)
        True class, or the ignore label.

    Returns
    -------
    VoxelCounts
        Counts whose confusion is that of `predicted`.
    """
    counts = VoxelCounts.zeros(len(probability) + 1)
    for z in range(len(labels)):
        section = (probability[:, z], predicted[z], labels[z])
        if probability.dtype == np.uint8:
            counts += _count_bytes(*section)
        else:
            counts.add(*section)
    return counts


def _count_bytes(probability: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> VoxelCounts:
    """Return what `VoxelCounts.add` counts for probability / 255, from the counts of the 256 values."""
    counts, kept = VoxelCounts.zeros(len(probability) + 1), labels != IGNORE_LABEL
    true, classes = labels[kept].astype(np.int64), counts.num_classes
    pairs = np.bincount(true * classes + predicted[kept], minlength=classes**2)
    counts.confusion[:] = pairs.reshape(classes, classes)
    bins = probability_bins(np.arange(256) / 255)
    for number, (histogram, of_class) in enumerate(zip(counts.histograms, probability, strict=True), start=1):
        histogram[:, bins] = np.bincount((true == number) * 256 + of_class[kept], minlength=512).reshape(2, 256)
    return counts


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
