"""Random voxels, and their counts."""

from __future__ import annotations

import numpy as np
import pytest

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts


@pytest.fixture(scope="session")
def random_voxels():
    """`random_voxels(...)` returns the foreground classes' probabilities, argmax, and labels, some of them ignored.

    edges: whether all probabilities are edges of bins.
    """

    def make(classes=2, edges=False, num=4000, seed=0):
        rng = np.random.default_rng(seed)
        labels = rng.choice(classes, num, p=[0.8] + [0.2 / (classes - 1)] * (classes - 1)).astype(np.uint8)
        own = labels == np.arange(1, classes)[:, None]
        probability = np.clip(0.25 + 0.4 * own + rng.normal(0, 0.2, (classes - 1, num)), 0, 1).astype(np.float32)
        probability /= np.maximum(probability.sum(0), 1)
        if edges:
            probability = (np.floor(probability * 1023) / BINS).astype(np.float32)
        predicted = np.where(probability.sum(0) >= 0.5, probability.argmax(0) + 1, 0)
        labels[rng.random(num) < 0.1] = IGNORE_LABEL
        return probability, predicted, labels

    return make


@pytest.fixture(scope="session")
def count_voxels():
    """`count_voxels(probability, predicted, labels, classes)` returns the counts of voxels."""

    def count(probability, predicted, labels, classes=2):
        counts = VoxelCounts.zeros(classes)
        counts.add(probability, predicted, labels)
        return counts

    return count
