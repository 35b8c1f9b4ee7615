"""The temperature of a network that finds objects: its logits are divided by it, so that probabilities do not saturate.

A network that was trained for long is sure of all that it marks, right or wrong: close to half of it has a probability
above 254.5/255, which a segmentation stores as 255. With divided logits the most certain voxels can be told apart, and
with them right and wrong objects. The weights of the last layer are divided, so that the network is as fast as before.

The temperature is a power of two: then the division is exact in all number formats, and the most probable class
stays, with two classes the order of voxels too. It is not chosen for calibration, for which the name stands (Guo, C.,
Pleiss, G., Sun, Y. & Weinberger, K. Q. On calibration of modern neural networks. ICML 2017): a probability of 0.9 does
not mean that 9 of 10 voxels are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts
from kasthuri_ray.metrics.voxel_scores import best_thresholds, split_metrics
from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.training.learner import Learner, TileBatchLike, count_labelled_voxels, select_labelled
from kasthuri_ray.training.process_group import gather_over_ranks

TEMPERATURES = (1, 2, 4, 8, 16)
SATURATED = 0.98  # probabilities from here on: steps of 1/255 are coarse there
MAX_SATURATED = 0.001  # share of them among the marked voxels
LAST_LAYER = "conv_final."  # of a `UNet`; its outputs are the logits


def divide_logits(weights: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Return weights with logits that are divided by the temperature.

    Parameters
    ----------
    weights : mapping
        State dict of a `UNet`.
    temperature : float
        A power of two, for an exact division.

    Returns
    -------
    dict
        State dict.
    """
    return {name: value / temperature if name.startswith(LAST_LAYER) else value for name, value in weights.items()}


def choose_temperature(learner: Learner, batches: Iterable[TileBatchLike]) -> tuple[int, VoxelCounts]:
    """Choose the lowest temperature at which few of the marked voxels are saturated.

    Parameters
    ----------
    learner : Learner
        Its network is evaluated.
    batches : iterable of TileBatchLike
        Tiles that were not learnt from; of this rank.

    Returns
    -------
    temperature : int
        One of TEMPERATURES; the same on all ranks.
    counts : VoxelCounts
        Voxels of all ranks with logits that are divided by it.
    """
    divided = [VoxelCounts.zeros(learner.settings.classes) for _ in TEMPERATURES[1:]]

    def add(_: TileBatchLike, logits: Tensor, labels: Tensor) -> None:
        selected, truth = select_labelled(logits, labels)
        for index, temperature in enumerate(TEMPERATURES[1:]):
            divided[index] = divided[index] + count_labelled_voxels(selected / temperature, truth)

    undivided, _ = learner.evaluate(batches, add)
    gathered = np.sum(gather_over_ranks(np.array([each.to_array() for each in divided])), axis=0)
    of_all_ranks = [undivided, *(VoxelCounts.from_array(each) for each in gathered)]
    shares = [saturated_share(each) for each in of_all_ranks]
    chosen = next((index for index, share in enumerate(shares) if share <= MAX_SATURATED), len(TEMPERATURES) - 1)
    return TEMPERATURES[chosen], of_all_ranks[chosen]


def saturated_share(counts: VoxelCounts) -> float:
    """Return the share of saturated voxels among those at or above the best threshold.

    Parameters
    ----------
    counts : VoxelCounts
        Counts with histograms.

    Returns
    -------
    float
        The highest share of all foreground classes; 0 where nothing is marked.
    """
    shares = [0.0]
    for of_class, threshold in zip(counts.by_class, best_thresholds(counts)[0], strict=True):
        voxels = of_class.histogram.sum(0)
        marked = voxels[round(threshold * BINS) :].sum()
        shares.append(float(voxels[round(SATURATED * BINS) :].sum() / marked) if marked else 0.0)
    return max(shares)


def with_temperature(best: Checkpoint, temperature: int, counts: VoxelCounts, class_names: Sequence[str]) -> Checkpoint:
    """Return a checkpoint whose logits are divided, with the thresholds and the scores of val that follow.

    Parameters
    ----------
    best : Checkpoint
        Of a `UNet`, without a temperature.
    temperature : int
        Divisor of the logits.
    counts : VoxelCounts
        Voxels of val with divided logits.
    class_names : sequence of str
        Names of the foreground classes.

    Returns
    -------
    Checkpoint
        With `temperature`.
    """
    thresholds, _ = best_thresholds(counts)
    val = split_metrics(counts, thresholds, class_names)
    chosen: dict[str, Any] = {**(best.best or {}), "threshold": val["threshold"], "val": val}
    return replace(best, weights=divide_logits(best.weights, temperature), best=chosen, temperature=temperature)


def temperature_lines(temperature: float | None) -> list[str]:
    """Return a line on divided logits.

    Parameters
    ----------
    temperature : float or None
        By which they were divided.

    Returns
    -------
    list of str
        Empty if they were not.
    """
    if temperature is None or temperature == 1:
        return []
    return [f"logits are divided by {temperature:g}, so that the probabilities of objects can be told apart"]
