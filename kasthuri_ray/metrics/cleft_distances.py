"""CREMI's distances between predicted and true synaptic clefts, exact and block by block.

ADGT, the average distance to the ground truth, is the mean distance of the predicted voxels to the nearest true voxel:
it grows with false positives. ADF is the mean distance of the true voxels to the nearest predicted one: it grows with
false negatives. Voxels that are both count with distance 0. The CREMI score is the mean of the two. They are
the means of `acc_false_positives` and `acc_false_negatives` in `cremi/evaluation/Clefts.py` of
github.com/cremi/cremi_python (commit 0774870), the evaluation of cremi.org.

The nearest voxel of a set to a voxel outside of it has a face that is no face of another voxel of the set: from a voxel
without such a face, one step towards the outside voxel stays in the set and comes closer. So only the surface voxels of
each block are searched, the blocks by their distance until none can be closer. Masks are kept as compressed bits.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL

FASTEST = 1  # level of zlib
MAX_POINTS = 1 << 20  # that are searched at once: about 100 bytes each
STEP_NM = 1 / 1024  # distances are rounded to it, so that their sums are exact and do not depend on the blocks
MAX_TREES = 16  # of the surface voxels of blocks, that are kept


@dataclass(frozen=True, eq=False)
class ClassMasks:
    """The voxels of a class in a block.

    Parameters
    ----------
    own : Box
        The block.
    true, predicted : bytes
        Compressed bits of all its voxels; empty for none.
    """

    own: Box
    true: bytes
    predicted: bytes

    @classmethod
    def pack(cls, own: Box, true: np.ndarray, predicted: np.ndarray) -> ClassMasks:
        """Compress two masks, bool, z, y, x; voxels that are ignored must be in neither."""
        return cls(own, _pack(true), _pack(predicted))

    def unpack(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the masks of the annotation and of the prediction, bool, z, y, x."""
        return self._unpack(self.true), self._unpack(self.predicted)

    def _unpack(self, data: bytes) -> np.ndarray:
        if not data:
            return np.zeros(self.own.shape, bool)
        bits = np.frombuffer(zlib.decompress(data), np.uint8)
        return np.unpackbits(bits, count=self.own.num_voxels).view(bool).reshape(self.own.shape)


def _pack(mask: np.ndarray) -> bytes:
    return zlib.compress(np.packbits(mask).tobytes(), FASTEST) if mask.any() else b""


def pack_class_masks(
    predicted: np.ndarray, truth: np.ndarray, own: Box, numbers: Sequence[int]
) -> dict[int, ClassMasks]:
    """Compress the voxels of classes in a block.

    Parameters
    ----------
    predicted, truth : ndarray of uint8, (z, y, x)
        Class of each voxel; IGNORE_LABEL in `truth` for voxels that do not count.
    own : Box
        The block.
    numbers : sequence of int
        Classes to compress.

    Returns
    -------
    dict
        The masks by number of the class.
    """
    counted = truth != IGNORE_LABEL
    return {number: ClassMasks.pack(own, truth == number, (predicted == number) & counted) for number in numbers}


@dataclass(frozen=True)
class CleftDistances:
    """Sums of distances in nm, which add up over boxes and classes.

    Parameters
    ----------
    predicted_nm, true_nm : float
        Sum over the predicted voxels, and over the true ones; infinite if the other side has no voxel.
    num_predicted, num_true : int
        Voxels.
    """

    predicted_nm: float
    true_nm: float
    num_predicted: int
    num_true: int

    def __add__(self, other: CleftDistances) -> CleftDistances:
        return CleftDistances(
            self.predicted_nm + other.predicted_nm,
            self.true_nm + other.true_nm,
            self.num_predicted + other.num_predicted,
            self.num_true + other.num_true,
        )

    def metrics(self) -> dict[str, float | None]:
        """Return `adgt_nm`, `adf_nm` and `cremi_score_nm`; None where a side has no voxel, in a box or in all."""
        adgt, adf = _mean(self.predicted_nm, self.num_predicted), _mean(self.true_nm, self.num_true)
        return {
            "adgt_nm": adgt,
            "adf_nm": adf,
            "cremi_score_nm": None if adgt is None or adf is None else (adgt + adf) / 2,
        }


def _mean(total: float, number: int) -> float | None:
    return total / number if number and math.isfinite(total) else None


def measure_cleft_distances(blocks: Sequence[ClassMasks], voxel_size_nm: Sequence[float]) -> CleftDistances:
    """Measure the distances between the predicted and the true voxels of a class in a box.

    Parameters
    ----------
    blocks : sequence of ClassMasks
        They cover the box.
    voxel_size_nm : sequence of float
        Size of a voxel, z, y, x.

    Returns
    -------
    CleftDistances
        Sums over all voxels of the box.
    """
    size = np.array(voxel_size_nm, np.float64)
    true, predicted = (_Surface(blocks, side, size) for side in (0, 1))
    predicted_nm = true_nm = 0.0
    num_predicted = num_true = 0
    for block in blocks:
        if not block.true and not block.predicted:
            continue
        is_true, is_predicted = block.unpack()
        num_true, num_predicted = num_true + int(is_true.sum()), num_predicted + int(is_predicted.sum())
        predicted_nm += true.sum_distances(is_predicted & ~is_true, block.own)
        true_nm += predicted.sum_distances(is_true & ~is_predicted, block.own)
    return CleftDistances(predicted_nm, true_nm, num_predicted, num_true)


class _Surface:
    """The surface voxels of one side, block by block, and distances to them."""

    def __init__(self, blocks: Sequence[ClassMasks], side: int, size_nm: np.ndarray) -> None:
        self._blocks = [block for block in blocks if (block.true, block.predicted)[side]]
        self._side, self._size_nm = side, size_nm
        corners = [(each.min(0), each.max(0)) for each in map(self._points, range(len(self._blocks)))]
        self._low, self._high = np.array(corners).reshape(-1, 2, 3).transpose(1, 0, 2)
        self._tree: Callable[[int], cKDTree] = lru_cache(MAX_TREES)(lambda index: cKDTree(self._points(index)))

    def _points(self, index: int) -> np.ndarray:
        block = self._blocks[index]
        return voxel_points(surface_of(block.unpack()[self._side]), block.own, self._size_nm)

    def sum_distances(self, voxels: np.ndarray, own: Box) -> float:
        """Return the sum of the distances of the voxels of a mask, none of them in the set, to the nearest of it."""
        points = voxel_points(voxels, own, self._size_nm)
        parts = range(0, len(points), MAX_POINTS)
        steps = (np.rint(self._distances(points[start : start + MAX_POINTS]) / STEP_NM).sum() for start in parts)
        return float(sum(steps)) * STEP_NM

    def _distances(self, points: np.ndarray) -> np.ndarray:
        nearest = np.full(len(points), np.inf)
        to_blocks = _to_boxes(points.min(0), points.max(0), self._low, self._high)
        for index in np.argsort(to_blocks, kind="stable").tolist():
            if to_blocks[index] >= nearest.max():
                break
            closer = np.flatnonzero(_to_boxes(points, points, self._low[index], self._high[index]) < nearest)
            if len(closer):
                found, _ = self._tree(index).query(points[closer], distance_upper_bound=nearest[closer].max())
                nearest[closer] = np.minimum(nearest[closer], found)
        return nearest


def voxel_points(mask: np.ndarray, own: Box, size_nm: np.ndarray) -> np.ndarray:
    """Return the positions of the voxels of a block's mask, in nm; float64, (voxels, 3)."""
    return (np.argwhere(mask) + np.array(own.start)) * size_nm


def surface_of(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask with a face that no other voxel of it shares; those at its ends are among them."""
    inner = np.zeros(mask.shape, bool)
    if min(mask.shape) > 2:
        inside = inner[1:-1, 1:-1, 1:-1]
        inside[:] = mask[1:-1, 1:-1, 1:-1]
        for axis in range(3):
            for cut in (slice(0, -2), slice(2, None)):
                inside &= mask[tuple(cut if a == axis else slice(1, -1) for a in range(3))]
    return mask & ~inner


def _to_boxes(low: np.ndarray, high: np.ndarray, box_low: np.ndarray, box_high: np.ndarray) -> np.ndarray:
    """Return the distance between boxes, of which each has its lowest and its highest point; 0 if they overlap."""
    return np.linalg.norm(np.maximum(0, np.maximum(box_low - high, low - box_high)), axis=-1)
