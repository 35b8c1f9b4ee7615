"""Fixtures for the tests of the evaluation: example volumes with errors to find, and an evaluation without Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from skimage.measure import label
from sklearn import metrics as sklearn_metrics

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.evaluation.block_comparison import ComparisonTotals, compare_block
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.evaluation.evaluation_report import evaluation_metrics, evaluation_notes
from kasthuri_ray.volumes.opening import open_volume

SIZE_NM = (30.0, 6.0, 6.0)
ANNOTATION_SHAPE = (12, 300, 280)
PREDICTION_START = (2, 20, 10)
PREDICTION_SHAPE = (9, 260, 256)
IGNORE_LABEL = 7  # in the annotations


@dataclass(frozen=True)
class Example:
    """A prediction and its annotation.

    Parameters
    ----------
    settings : EvaluateSettings
        What to compare.
    truth, probability : numpy.ndarray of uint8
        Labels and prediction where the two overlap, z, y, x.
    start : tuple of int
        First voxel of the prediction, in voxels of the annotation.
    ignore_label : int
        Label of voxels that are not counted.
    instances : numpy.ndarray of uint64, optional
        Ids of cells, z, y, x.
    """

    settings: EvaluateSettings
    truth: np.ndarray
    probability: np.ndarray
    start: tuple[int, int, int]
    ignore_label: int = IGNORE_LABEL
    instances: np.ndarray | None = None


def write_prediction_zarr(
    path: Path,
    probability: np.ndarray,
    start: tuple[int, ...] = PREDICTION_START,
    size: tuple[float, ...] | None = SIZE_NM,
    **provenance: Any,
) -> str:
    """Write an OME-Zarr like that of a segmentation: c, z, y, x in uint8, with provenance. Return its path."""
    unit = {"unit": "nanometer"} if size else {}
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **unit} for axis in "zyx")]
    scale = size or (1.0, 1.0, 1.0)
    transformations = [
        {"type": "scale", "scale": [1.0, *scale]},
        {"type": "translation", "translation": [0.0, *(a * s for a, s in zip(start, scale, strict=True))]},
    ]
    levels = [{"path": "s0", "coordinateTransformations": transformations}]
    task = {
        **{"name": "t", "task_type": "synapse", "threshold": False, "threshold_value": 0.0},
        "ignore_label": IGNORE_LABEL,
        **provenance.pop("task", {}),
    }
    box = ",".join(f"{a}:{a + n}" for a, n in zip(start, probability.shape[-3:], strict=True))
    group = zarr.create_group(path, zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "t", "axes": axes, "datasets": levels}]}
    group.attrs["kasthuri_ray"] = {
        **{"task": task, "threshold": 0.4, "box": box, "network": {"classes": 2}},
        **provenance,
    }
    stored = probability[None] if probability.ndim == 3 else probability
    group.create_array("s0", data=stored, chunks=(1, 4, 64, 64), dimension_names=("c", "z", "y", "x"))
    return str(path)


def write_zarr(path: Path, array: np.ndarray, size: tuple[float, ...] | None = SIZE_NM) -> str:
    """Write a zarr array, with a voxel size in nm unless it is None. Return its path."""
    stored = zarr.create_array(path, data=array, chunks=(4, 64, 64), config={"write_empty_chunks": True})
    if size:
        stored.attrs["voxel_size_nm_zyx"] = list(size)
    return str(path)


def simulate_prediction(mask: np.ndarray, seed: int) -> np.ndarray:
    """Return a prediction like those of networks: unsure at edges, with missed and with invented objects."""
    rng = np.random.default_rng(seed)
    soft = mask.astype(np.float32)
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    coarse = rng.normal(0, 0.35, (mask.shape[0], *(n // 16 + 1 for n in mask.shape[1:])))
    noise = coarse.repeat(16, 1).repeat(16, 2)[:, : mask.shape[1], : mask.shape[2]]
    return np.rint(255 * np.clip(0.9 * soft + 0.05 + noise * (0.3 + soft), 0, 1)).astype(np.uint8)


def draw_ellipsoids(shape: tuple[int, int, int], count: int = 30, seed: int = 0) -> np.ndarray:
    """Return a mask of ellipsoids of many sizes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    voxels = np.ogrid[tuple(map(slice, shape))]
    for _ in range(count):
        middle, radius = rng.random(3) * shape, rng.uniform([0.6, 3, 3], [2.5, 12, 12])
        mask |= sum(((v - m) / r) ** 2 for v, m, r in zip(voxels, middle, radius, strict=True)) < 1
    return mask


def compare_in_this_process(
    settings: EvaluateSettings, block_shape: Any = None, task: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the content of evaluation.json and the notes, without Ray, figures or page."""
    inputs = prepare_comparison(settings, task)
    totals = ComparisonTotals(inputs.comparison)
    for block in inputs.comparison.blocks(block_shape):
        totals.add(compare_block(inputs.comparison, block))
    result = evaluation_metrics(inputs, totals)
    return result, evaluation_notes(inputs, totals, result)


def scikit_learn_metrics(truth: np.ndarray, probability: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the voxel metrics of whole arrays according to scikit-learn."""
    counted = truth != IGNORE_LABEL
    true, chance = truth[counted] > 0, probability[counted] / 255
    predicted = chance >= threshold
    return {
        "foreground_f1": sklearn_metrics.f1_score(true, predicted),
        "precision": sklearn_metrics.precision_score(true, predicted),
        "recall": sklearn_metrics.recall_score(true, predicted),
        "iou": sklearn_metrics.jaccard_score(true, predicted),
        "average_precision": sklearn_metrics.average_precision_score(true, chance),
        "voxels": int(counted.sum()),
    }


@pytest.fixture(scope="session")
def write_prediction() -> Callable[..., str]:
    return write_prediction_zarr


@pytest.fixture(scope="session")
def write_volume() -> Callable[..., str]:
    return write_zarr


@pytest.fixture(scope="session")
def compare() -> Callable[..., tuple[dict[str, Any], list[str]]]:
    return compare_in_this_process


@pytest.fixture(scope="session")
def expected_metrics() -> Callable[..., Mapping[str, float]]:
    return scikit_learn_metrics


@pytest.fixture(scope="module")
def synapses(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Return ellipsoids of which some are ignored, and a prediction of a part of the volume."""
    folder = tmp_path_factory.mktemp("synapses")
    annotation = draw_ellipsoids(ANNOTATION_SHAPE).astype(np.uint8)
    annotation[:, 100:130, 60:90] = IGNORE_LABEL
    overlap = tuple(slice(a, a + n) for a, n in zip(PREDICTION_START, PREDICTION_SHAPE, strict=True))
    truth = annotation[overlap]
    probability = simulate_prediction(truth == 1, seed=1)
    image = f"phantom://em?shape={','.join(map(str, ANNOTATION_SHAPE))}&seed=3"
    settings = EvaluateSettings(
        prediction=write_prediction_zarr(folder / "out.zarr", probability, image=image),
        annotation=write_zarr(folder / "synapse.zarr", annotation),
        out=str(folder / "evaluation"),
        cache="none",
    )
    return Example(settings, truth, probability, PREDICTION_START)


@pytest.fixture(scope="module")
def membranes(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Return the membranes of a phantom with a prediction and instances."""
    folder = tmp_path_factory.mktemp("membranes")
    volume = open_volume("phantom://membrane?shape=5,260,260&seed=2")
    truth = volume.read(volume.bounds)
    probability = simulate_prediction(truth == 1, seed=2)
    instances = np.stack([label(section == 0, connectivity=1) for section in truth]).astype(np.uint64)
    instances[instances > 0] += np.uint64(2**40)
    truth = truth.copy()
    truth[:, :30, 200:] = IGNORE_LABEL
    settings = EvaluateSettings(
        prediction=write_prediction_zarr(folder / "out.zarr", probability, (0, 0, 0), task={"task_type": "membrane"}),
        annotation=write_zarr(folder / "membrane.zarr", truth),
        instances=write_zarr(folder / "cells.zarr", instances),
        out=str(folder / "evaluation"),
        threshold=0.35,
        cache="none",
    )
    return Example(settings, truth, probability, (0, 0, 0), instances=instances)
