"""Difficulty of the phantom's synapses for simple methods, the phantom's composition, and the speed of painting it.

A simple method looks at darkness and edges near a voxel: the best threshold on smoothed intensity, and a random forest
on Gaussian and Hessian features. Needs scikit-learn. `python jobs/benchmark.py phantom` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes.phantom_volume import open_phantom

FEATURE_SIGMAS = (1.5, 3.0, 6.0)  # voxels, of the forest's features
SMOOTHING_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0)  # voxels, of the thresholded intensity


def run_phantom_difficulty(
    seed: int = 0,
    shape: Zyx = (24, 640, 640),
    num_held_out: int = 6,
    num_trees: int = 100,
    num_samples: int = 40_000,
) -> dict[str, float]:
    """Measure the difficulty of a phantom; F1 is that of synapse voxels in the last sections.

    Parameters
    ----------
    seed : int
        Seed of the phantom.
    shape : tuple of int
        Shape of the phantom, z, y, x.
    num_held_out : int
        Number of last sections that are tested.
    num_trees : int
        Trees of the forest.
    num_samples : int
        Voxels that the forest learns from, half of them synapse if there are as many. They come from the other
        sections, except for a gap of `num_held_out` sections.

    Returns
    -------
    dict
        `threshold_f1` and `forest_f1` are the best over all thresholds, chosen on the tested sections: no choice of a
        threshold could do better. `mvoxels_per_second` is that of em on one core, in cutouts of 1 x 256 x 256 that
        nothing has read before. The others are shares of voxels.
    """
    em, membrane, synapse = (_read(channel, seed, shape) for channel in ("em", "membrane", "synapse"))
    held_out = slice(shape[0] - num_held_out, None)
    return {
        "seed": seed,
        "membrane_share": float(membrane.mean()),
        "synapse_share": float(synapse.mean()),
        "held_out_share": float(synapse[held_out].mean()),
        "threshold_f1": best_threshold_f1(em[held_out], synapse[held_out]),
        "forest_f1": forest_f1(em, synapse, num_held_out, num_trees, num_samples, seed),
        "mvoxels_per_second": measure_phantom_speed(seed + 1),
    }


def run_phantom_benchmark(parts: PartRunner, seed: int = 0, out: str = "benchmark_phantom.json") -> list[BenchmarkLine]:
    """Measure the difficulty of a phantom, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Shows the table.
    seed : int
        Seed of the phantom.
    out : str
        Path of the JSON file, with the figures by name too.

    Returns
    -------
    list of BenchmarkLine
        What `run_phantom_difficulty` returned.
    """
    figures = run_phantom_difficulty(seed=seed)
    lines = phantom_lines(figures)
    report_lines("phantom", lines, figures, out, parts.reporter)
    return lines


def phantom_lines(figures: Mapping[str, float]) -> list[BenchmarkLine]:
    """Return the figures of a phantom, without goals."""
    return [
        BenchmarkLine("share of membrane", figures["membrane_share"], note=f"of the voxels, seed {figures['seed']:g}"),
        BenchmarkLine("share of synapse", figures["synapse_share"]),
        BenchmarkLine("  in the tested sections", figures["held_out_share"]),
        BenchmarkLine("F1 by a threshold", figures["threshold_f1"], note="the best of all"),
        BenchmarkLine("F1 by a random forest", figures["forest_f1"], note="the best of all thresholds"),
        BenchmarkLine("speed of painting", figures["mvoxels_per_second"], "Mvoxels/s", note="em, one core"),
    ]


def _read(channel: str, seed: int, shape: Zyx) -> np.ndarray:
    volume = open_phantom(f"phantom://{channel}?shape={','.join(map(str, shape))}&seed={seed}")
    return volume.read(volume.bounds)


def best_f1(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the highest F1 that any threshold on `score` reaches; voxels at or above it are foreground."""
    order = np.argsort(-score, axis=None, kind="stable")
    num_found = np.cumsum(truth.reshape(-1)[order], dtype=np.int64)
    num_predicted = np.arange(1, len(order) + 1)
    is_threshold = np.append(np.diff(score.reshape(-1)[order]) != 0, True)  # none lies between equal scores
    return float((2 * num_found / (num_predicted + truth.sum(dtype=np.int64)))[is_threshold].max())


def best_threshold_f1(em: np.ndarray, truth: np.ndarray) -> float:
    """Return the highest F1 of dark voxels as synapse, over all thresholds and smoothings; em and truth z,y,x."""
    from scipy.ndimage import gaussian_filter

    return max(best_f1(-gaussian_filter(em.astype(np.float32), (0, s, s)), truth) for s in SMOOTHING_SIGMAS)


def compute_features(em: np.ndarray) -> np.ndarray:
    """Return the smoothed intensity and the eigenvalues of the Hessian at each scale, (voxel, feature).

    em: z,y,x; each section is filtered by itself.
    """
    from scipy.ndimage import gaussian_filter

    image = em.astype(np.float32)
    columns = []
    for s in FEATURE_SIGMAS:
        yy, yx, xx = (gaussian_filter(image, (0, s, s), order=(0, *order)) for order in ((2, 0), (1, 1), (0, 2)))
        spread = np.sqrt((yy - xx) ** 2 / 4 + yx**2)
        columns += [gaussian_filter(image, (0, s, s)), (yy + xx) / 2 + spread, (yy + xx) / 2 - spread]
    return np.stack([column.reshape(-1) for column in columns], axis=1)


def forest_f1(
    em: np.ndarray, truth: np.ndarray, num_held_out: int, num_trees: int, num_samples: int, seed: int
) -> float:
    """Return the highest F1, over all thresholds, of a random forest on the last `num_held_out` sections."""
    from sklearn.ensemble import RandomForestClassifier

    held_em, held_truth = em[-num_held_out:], truth[-num_held_out:]
    em, truth = em[: -2 * num_held_out], truth[: -2 * num_held_out]
    rng = np.random.default_rng(seed)
    foreground, background = np.flatnonzero(truth), np.flatnonzero(truth == 0)
    half = num_samples // 2
    chosen = np.concatenate([rng.permutation(foreground)[:half], rng.choice(background, half, replace=False)])
    forest = RandomForestClassifier(num_trees, min_samples_leaf=5, n_jobs=1, random_state=seed)
    forest.fit(compute_features(em)[chosen], truth.reshape(-1)[chosen])
    return best_f1(forest.predict_proba(compute_features(held_em))[:, 1], held_truth)


def measure_phantom_speed(seed: int, num_cutouts: int = 24) -> float:
    """Return the millions of em voxels that one core paints in a second of CPU time, in chunks that it has not read."""
    volume = open_phantom(f"phantom://em?shape={num_cutouts + 1},1024,1024&seed={seed}")
    volume.read(Box((num_cutouts, 0, 0), (num_cutouts + 1, 256, 256)))
    start = time.process_time()
    for z in range(num_cutouts):
        volume.read(Box.at((z, 256 * (z % 4), 256 * (z // 4 % 4)), (1, 256, 256)))
    return num_cutouts * 256 * 256 / 1e6 / (time.process_time() - start)
