"""How hard the phantom's synapses are: `run()` tries the easy ways, and measures what it holds and how fast it grows.

    python -c "from kasthuri_ray.benchmarks.phantom import run; run()"

Needs scikit-learn. An easy way is one that looks at darkness and edges near a voxel: the best threshold on smoothed
intensity, and a random forest on Gaussian and Hessian features.
"""

from __future__ import annotations

import time

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes.phantom_volume import open_phantom

SCALES = (1.5, 3.0, 6.0)  # voxels, of the forest's features
SMOOTHINGS = (0.0, 1.0, 2.0, 4.0, 8.0)  # voxels, of the thresholded intensity


def run_phantom_difficulty(
    seed: int = 0,
    shape: Zyx = (24, 640, 640),
    num_held_out: int = 6,
    num_trees: int = 100,
    num_samples: int = 40_000,
) -> dict[str, float]:
    """The figures, which are printed too. F1 is that of the synapse voxels in the last `num_held_out` sections.

    threshold_f1 and forest_f1 are the best over all thresholds, chosen on those very sections, so that no choice of a
    threshold could do better; the forest learns from `num_samples` voxels of the sections before, a gap of as many
    sections left out, half of the voxels synapse where there are so many.
    mvoxels_per_second is that of em on one core, read in cutouts of 1 x 256 x 256 that nothing has read before.
    """
    em, membrane, synapse = (_read(channel, seed, shape) for channel in ("em", "membrane", "synapse"))
    held, learned = slice(shape[0] - num_held_out, None), slice(0, shape[0] - 2 * num_held_out)
    figures = {
        "seed": seed,
        "membrane_share": float(membrane.mean()),
        "synapse_share": float(synapse.mean()),
        "held_out_share": float(synapse[held].mean()),
        "threshold_f1": best_threshold_f1(em[held], synapse[held]),
        "forest_f1": forest_f1(em[learned], synapse[learned], em[held], synapse[held], num_trees, num_samples, seed),
        "mvoxels_per_second": mvoxels_per_second(seed + 1),
    }
    for name, value in figures.items():
        print(f"{name:20} {value:8.3f}" if isinstance(value, float) else f"{name:20} {value:8}")
    return figures


def _read(channel: str, seed: int, shape: Zyx) -> np.ndarray:
    volume = open_phantom(f"phantom://{channel}?shape={','.join(map(str, shape))}&seed={seed}")
    return volume.read(volume.bounds)


def best_f1(score: np.ndarray, truth: np.ndarray) -> float:
    """The highest F1 that any threshold on `score` reaches: voxels at or above it are called foreground."""
    order = np.argsort(-score, axis=None, kind="stable")
    hits = np.cumsum(truth.reshape(-1)[order], dtype=np.int64)
    called = np.arange(1, len(order) + 1)
    ends = np.append(np.diff(score.reshape(-1)[order]) != 0, True)  # a threshold does not divide equal scores
    return float((2 * hits / (called + truth.sum(dtype=np.int64)))[ends].max())


def best_threshold_f1(em: np.ndarray, truth: np.ndarray) -> float:
    """The highest F1 of calling dark voxels synapse, over all thresholds and SMOOTHINGS; em and truth z,y,x."""
    from scipy.ndimage import gaussian_filter

    return max(best_f1(-gaussian_filter(em.astype(np.float32), (0, s, s)), truth) for s in SMOOTHINGS)


def features(em: np.ndarray) -> np.ndarray:
    """Of each voxel of em (z,y,x), within its section: Gaussian and Hessian eigenvalues at SCALES, (voxel, feature)."""
    from scipy.ndimage import gaussian_filter

    image = em.astype(np.float32)
    columns = []
    for s in SCALES:
        yy, yx, xx = (gaussian_filter(image, (0, s, s), order=(0, *order)) for order in ((2, 0), (1, 1), (0, 2)))
        spread = np.sqrt((yy - xx) ** 2 / 4 + yx**2)
        columns += [gaussian_filter(image, (0, s, s)), (yy + xx) / 2 + spread, (yy + xx) / 2 - spread]
    return np.stack([column.reshape(-1) for column in columns], axis=1)


def forest_f1(
    em: np.ndarray,
    truth: np.ndarray,
    held_em: np.ndarray,
    held_truth: np.ndarray,
    num_trees: int,
    num_samples: int,
    seed: int,
) -> float:
    """The highest F1, over all thresholds, of a random forest trained on em, truth and tried on the held-out ones."""
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(seed)
    foreground, background = np.flatnonzero(truth), np.flatnonzero(truth == 0)
    half = num_samples // 2
    chosen = np.concatenate([rng.permutation(foreground)[:half], rng.choice(background, half, replace=False)])
    forest = RandomForestClassifier(num_trees, min_samples_leaf=5, n_jobs=1, random_state=seed)
    forest.fit(features(em)[chosen], truth.reshape(-1)[chosen])
    return best_f1(forest.predict_proba(features(held_em))[:, 1], held_truth)


def mvoxels_per_second(seed: int, num_cutouts: int = 24) -> float:
    """Millions of em voxels that one core paints in a second, by its own clock, in chunks that are new to it."""
    volume = open_phantom(f"phantom://em?shape={num_cutouts + 1},1024,1024&seed={seed}")
    volume.read(Box((num_cutouts, 0, 0), (num_cutouts + 1, 256, 256)))
    start = time.process_time()
    for z in range(num_cutouts):
        volume.read(Box.at((z, 256 * (z % 4), 256 * (z // 4 % 4)), (1, 256, 256)))
    return num_cutouts * 256 * 256 / 1e6 / (time.process_time() - start)
