"""Counts of voxels that add up over batches, ranks and blocks, and the figures that follow from them.

Counts are kept instead of averages, so that the figures of a whole do not depend on how it was cut up. Class 0 is the
background; foreground is every other class, and its probability is 1 - p(background).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.labels import IGNORE_LABEL

"""Voxels with this label count nowhere."""

BINS = 1024
"""Bins of the foreground probability. A power of two: then `p * BINS` is exact in float32 and in float64, and
`p >= k / BINS` holds exactly where the bin of p is k or more."""


def histogram_edges() -> np.ndarray:
    """The lower edges of the bins, float64 [BINS]: the thresholds at which figures from counts are exact."""
    return np.arange(BINS) / BINS


def probability_bins(probability: np.ndarray) -> np.ndarray:
    """The bin of each probability (float, 0 to 1): `min(int(p * BINS), BINS - 1)`, int64, any shape.

    Whoever counts on another device follows the same rule. Raises ValueError for nan and for what lies outside 0 to 1.
    """
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities must lie between 0 and 1, got {probability.min():.4g} to {probability.max():.4g}; "
            "nan or infinity here means that the training diverged: lower network.learning_rate"
        )
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)


@dataclass(eq=False)
class VoxelCounts:
    """Voxels counted by truth and prediction.

    confusion: int64 [classes, classes]; row truth, column predicted class (argmax).
    histogram: int64 [2, BINS]; how many voxels of true background (row 0) and true foreground (row 1) have a
        foreground probability in each bin.
    """

    confusion: np.ndarray
    histogram: np.ndarray

    @classmethod
    def zeros(cls, classes: int = 2) -> VoxelCounts:
        """Counts of no voxels."""
        return cls(np.zeros((classes, classes), np.int64), np.zeros((2, BINS), np.int64))

    @property
    def classes(self) -> int:
        return len(self.confusion)

    @property
    def num_voxels(self) -> int:
        return int(self.confusion.sum())

    def add(self, foreground: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Count more voxels, in place.

        foreground: the probability of being foreground, float 0 to 1. predicted, labels: classes as integers. All of
        one shape, any. Raises ValueError for shapes that differ, labels that are no class, and nan.
        """
        if not foreground.shape == predicted.shape == labels.shape:
            raise ValueError(
                f"probabilities {foreground.shape}, predictions {predicted.shape} and labels {labels.shape} "
                "must be of one shape"
            )
        kept = labels != IGNORE_LABEL
        truth, argmax = labels[kept].astype(np.int64), predicted[kept].astype(np.int64)
        for name, values in (("label", truth), ("predicted class", argmax)):
            if values.size and not 0 <= values.min() <= values.max() < self.classes:
                raise ValueError(
                    f"a {name} is a class from 0 to {self.classes - 1} (labels also {IGNORE_LABEL}, ignored), "
                    f"got {values.min()} to {values.max()}"
                )
        bins = probability_bins(foreground[kept])
        pairs = np.bincount(truth * self.classes + argmax, minlength=self.confusion.size)
        self.confusion += pairs.reshape(self.confusion.shape)
        self.histogram += np.bincount((truth > 0) * BINS + bins, minlength=2 * BINS).reshape(2, BINS)

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(self.confusion + other.confusion, self.histogram + other.histogram)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VoxelCounts) and np.array_equal(self.to_array(), other.to_array())

    __hash__ = None  # type: ignore[assignment]

    def to_array(self) -> np.ndarray:
        """All counts as one vector, int64 [classes * classes + 2 * BINS], which ranks can sum."""
        return np.concatenate([self.confusion.ravel(), self.histogram.ravel()]).astype(np.int64)

    @classmethod
    def from_array(cls, vector: np.ndarray) -> VoxelCounts:
        """The counts whose `to_array` is `vector` (integers or whole floats). ValueError for another length."""
        vector = np.asarray(vector)
        classes = math.isqrt(max(0, vector.size - 2 * BINS))
        if classes < 2 or classes * classes + 2 * BINS != vector.size:
            raise ValueError(f"expected classes * classes + {2 * BINS} counts, got {vector.size}")
        whole = np.rint(vector).astype(np.int64)
        return cls(whole[: classes * classes].reshape(classes, classes), whole[classes * classes :].reshape(2, BINS))


def seed_metrics(counts: VoxelCounts) -> dict[str, Any]:
    """What the seed reports, from the argmax: `f1`, `iou`, `accuracy` (float64 [classes]), `mean_f1`, `mean_iou`,
    `balanced_accuracy`.

    Per class, one against the rest: F1 = 2 tp / (2 tp + fp + fn), IoU = tp / (tp + fp + fn), accuracy =
    (tp + tn) / all. Balanced accuracy = (sensitivity + specificity) / 2 of the foreground as a whole. Zero where there
    is nothing to divide by. These are the definitions of scikit-learn's f1_score, jaccard_score and
    balanced_accuracy_score with zero_division=0.
    """
    confusion = counts.confusion
    tp = np.diag(confusion)
    fp, fn = confusion.sum(0) - tp, confusion.sum(1) - tp
    f1, iou = _ratio(2 * tp, 2 * tp + fp + fn), _ratio(tp, tp + fp + fn)
    sensitivity = _ratio(confusion[1:, 1:].sum(), confusion[1:].sum())
    specificity = _ratio(confusion[0, 0], confusion[0].sum())
    return {
        "f1": f1,
        "mean_f1": float(f1.mean()),
        "iou": iou,
        "mean_iou": float(iou.mean()),
        "accuracy": _ratio(confusion.sum() - fp - fn, confusion.sum()),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
    }


def precision_recall_curve(counts: VoxelCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(precision, recall, threshold) of the foreground, each float64 [BINS], thresholds rising from 0 by 1 / BINS.

    A voxel is called foreground where p >= threshold. Where nothing is called foreground the precision is 1, as in
    scikit-learn's precision_recall_curve; recall is 0 where there is no foreground.
    """
    tp, fp = _called(counts)
    precision = np.where(tp + fp > 0, _ratio(tp, tp + fp), 1.0)
    return precision, _ratio(tp, counts.histogram[1].sum()), histogram_edges()


def average_precision(counts: VoxelCounts) -> float:
    """The area below the precision-recall curve in steps, sum of (R_n - R_{n-1}) P_n; 0 without foreground.

    scikit-learn's average_precision_score, of probabilities rounded down to the bins' edges.
    """
    precision, recall, _ = precision_recall_curve(counts)
    return float(0.0 - np.sum(np.diff(recall, append=0.0) * precision))  # never -0.0


def foreground_f1(counts: VoxelCounts, threshold: float) -> float:
    """F1 of the foreground where p >= threshold, 0 where there is nothing to divide by."""
    return float(_f1_by_bin(counts)[_bin_of_threshold(threshold)])


def precision_recall_at(counts: VoxelCounts, threshold: float) -> tuple[float, float]:
    """Precision and recall of the foreground where p >= threshold; 0 where there is nothing to divide by."""
    (true_positive, false_positive), (false_negative, _) = foreground_counts(counts, threshold)
    precision = _ratio(true_positive, true_positive + false_positive)
    return float(precision), float(_ratio(true_positive, true_positive + false_negative))


def foreground_counts(counts: VoxelCounts, threshold: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """((true positives, false positives), (false negatives, true negatives)) of the foreground at p >= threshold."""
    at = _bin_of_threshold(threshold)
    background, foreground = (int(row[at:].sum()) for row in counts.histogram)
    return (foreground, background), (
        int(counts.histogram[1].sum()) - foreground,
        int(counts.histogram[0].sum()) - background,
    )


def best_threshold(counts: VoxelCounts) -> tuple[float, float]:
    """(threshold, F1): the threshold above 0 with the highest F1 of the foreground; of equals the nearest to 0.5."""
    f1, edges = _f1_by_bin(counts)[1:], histogram_edges()[1:]
    ties = edges[f1 == f1.max()]
    return float(ties[np.argmin(np.abs(ties - 0.5))]), float(f1.max())


def split_metrics(counts: VoxelCounts, threshold: float) -> dict[str, Any]:
    """The entry of a split ("test", "val") in metrics.json, plain floats and lists that JSON takes.

    `f1`, `mean_f1`, `iou`, `mean_iou`, `accuracy`, `balanced_accuracy` and `confusion` are the argmax's (see
    `seed_metrics`), `foreground_f1` is at `threshold`, `average_precision` needs no threshold.
    """
    figures = {key: np.asarray(value).tolist() for key, value in seed_metrics(counts).items()}
    return figures | {
        "foreground_f1": foreground_f1(counts, threshold),
        "average_precision": average_precision(counts),
        "threshold": float(threshold),
        "confusion": counts.confusion.tolist(),
    }


def predicts_only_background(counts: VoxelCounts) -> bool:
    """Whether the argmax calls no voxel foreground, although there is some (False for counts of no voxels)."""
    return bool(counts.confusion[1:].sum() > 0 and counts.confusion[:, 1:].sum() == 0)


def _called(counts: VoxelCounts) -> tuple[np.ndarray, np.ndarray]:
    """(true positives, false positives) at each edge, int64 [BINS]."""
    background, foreground = np.cumsum(counts.histogram[:, ::-1], axis=1)[:, ::-1]
    return foreground, background


def _f1_by_bin(counts: VoxelCounts) -> np.ndarray:
    tp, fp = _called(counts)
    return _ratio(2 * tp, tp + fp + counts.histogram[1].sum())


def _bin_of_threshold(threshold: float) -> int:
    """The bin whose lower edge is nearest to `threshold`."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold lies between 0 and 1, got {threshold}")
    return min(round(threshold * BINS), BINS - 1)


def _ratio(over: Any, under: Any) -> np.ndarray:
    """`over / under`, zero where there is nothing to divide by."""
    over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
    return np.divide(over, under, out=np.zeros(np.broadcast(over, under).shape), where=under != 0)


def count_block_voxels(probability: np.ndarray, called: np.ndarray, classes: np.ndarray) -> VoxelCounts:
    """Counts of two classes, whose confusion is that at the threshold. Section by section: it takes little memory."""
    counts = VoxelCounts.zeros()
    for section in zip(probability, called, classes, strict=True):
        if probability.dtype == np.uint8:
            counts += _count_bytes(*section)
        else:
            counts.add(*section)
    return counts


def _count_bytes(probability: np.ndarray, called: np.ndarray, classes: np.ndarray) -> VoxelCounts:
    """As `Counts.add` of probability / 255, by the 256 values that there are."""
    kept = classes != IGNORE_LABEL
    true, value = classes[kept].astype(np.int64), probability[kept]
    confusion = np.bincount(true * 2 + called[kept], minlength=4).reshape(2, 2)
    by_value = np.bincount(true * 256 + value, minlength=512).reshape(2, 256)
    histogram = np.zeros((2, BINS), np.int64)
    histogram[:, probability_bins(np.arange(256) / 255)] = by_value
    return VoxelCounts(confusion, histogram)
