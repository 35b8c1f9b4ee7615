"""Several trained networks whose probabilities are averaged, as those of the folds of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kasthuri_ray.config.differences import fill_defaults
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import class_names
from kasthuri_ray.errors import InputError
from kasthuri_ray.metrics.object_choice import ObjectChoice
from kasthuri_ray.models.checkpoints import hash_weights
from kasthuri_ray.segmentation.segmentation_job import ARCHITECTURE
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, read_trained_network
from kasthuri_ray.volumes.learnt_from import LearntFrom
from kasthuri_ray.volumes.voxel_grid import VOXEL_SIZE_TOLERANCE, size_text


def read_trained_networks(paths: Sequence[str]) -> TrainedNetwork:
    """Read the weights that `--weights` names, of one run or of several.

    Parameters
    ----------
    paths : sequence of str
        See `read_trained_network`; at least one.

    Returns
    -------
    TrainedNetwork
        The first one, with the others. Its threshold and its object settings are the means of those of all runs, none
        if a run holds none, and it learnt from what any of them learnt from.

    Raises
    ------
    InputError
        If the networks do not fit together, or one is given twice; and as of `read_trained_network`.
    """
    first, *others = (read_trained_network(path) for path in paths)
    if not others:
        return first
    networks = [first, *others]
    _check_different(networks)
    for other in others:
        _check_alike(first, other)
    return replace(
        first,
        threshold=_mean_threshold(networks),
        objects=_mean_objects(networks),
        learnt_from=_join_learnt_from(networks),
        others=tuple(others),
    )


def _check_different(networks: Sequence[TrainedNetwork]) -> None:
    seen: dict[str, str] = {}
    for network in networks:
        digest = hash_weights(network.weights)
        if digest in seen:
            raise InputError(
                f"--weights: {seen[digest]} and {network.where} hold the same weights, which would count twice; name "
                "each run once"
            )
        seen[digest] = network.where


def _check_alike(first: TrainedNetwork, other: TrainedNetwork) -> None:
    """Raise an InputError if two networks have no common classes, architecture or voxel size."""
    pair = f"--weights: {first.where} and {other.where}"
    if (first.settings is None) != (other.settings is None):
        bare = first if first.settings is None else other
        raise InputError(
            f"{pair} cannot be averaged: {bare.where} holds only weights, without the settings of its run; give run "
            "folders alone, or bare weights alone"
        )
    differences = [*_class_differences(first, other), *_network_differences(first, other)]
    if differences:
        lines = "\n  ".join(differences)
        raise InputError(
            f"{pair} cannot be averaged, since their networks or their classes differ:\n  {lines}\nGive runs of one "
            "network and one task, such as the folds of a training"
        )
    one, two = first.voxel_size_nm, other.voxel_size_nm
    if one and two and not np.allclose(one, two, rtol=VOXEL_SIZE_TOLERANCE, atol=0):
        raise InputError(
            f"{pair} cannot be averaged: they were trained at voxel sizes of {size_text(one)} and {size_text(two)} "
            "(z,y,x)"
        )


def _class_differences(first: TrainedNetwork, other: TrainedNetwork) -> list[str]:
    """Return a line if the probabilities of two networks are not of the same classes in the same order."""
    names = []
    for each in (first, other):
        task, network = (fill_defaults(key, (each.settings or {}).get(key, {})) for key in ("task", "network"))
        names.append(", ".join(class_names(task, network["classes"])))
    return [] if names[0] == names[1] else [f"classes: {names[0]} and {names[1]}"]


def _network_differences(first: TrainedNetwork, other: TrainedNetwork) -> list[str]:
    one, two = (fill_defaults("network", (each.settings or {}).get("network", {})) for each in (first, other))
    return [f"network.{name}: {one[name]} and {two[name]}" for name in ARCHITECTURE if one[name] != two[name]]


def _mean_threshold(networks: Sequence[TrainedNetwork]) -> float | list[float] | None:
    known = [network.threshold for network in networks]
    if any(threshold is None for threshold in known):
        return None
    mean: Any = np.mean(np.array(known, np.float64), axis=0)
    return mean.tolist()


def _mean_objects(networks: Sequence[TrainedNetwork]) -> ObjectChoice | None:
    """Return the mean of the object settings, which rests on no objects of its own; None if they cannot be averaged."""
    choices = [network.objects for network in networks if network.objects is not None]
    if len(choices) < len(networks) or len({choice.settings.is_nm3 for choice in choices}) > 1:
        return None

    def mean(name: str) -> tuple[float, ...]:
        return tuple(np.mean([getattr(choice.settings, name) for choice in choices], axis=0).tolist())

    settings = replace(choices[0].settings, seed=mean("seed"), extent=mean("extent"), min_size=mean("min_size"))
    return replace(choices[0], settings=settings, classes={})


def _join_learnt_from(networks: Sequence[TrainedNetwork]) -> LearntFrom:
    parts = [network.learnt_from for network in networks]
    runs = [run for part in parts for run in part.runs]
    different = [run for number, run in enumerate(runs) if run not in runs[:number]]
    return LearntFrom(tuple(different), all(part.is_complete for part in parts))


def with_intensities(
    trained: TrainedNetwork, settings: Settings, intensity: tuple[float, float]
) -> tuple[TrainedNetwork, list[str]]:
    """Return the networks, each of the others with the grey levels that become 0 and 255 for it.

    Parameters
    ----------
    trained : TrainedNetwork
        The first network, with the others.
    settings : Settings
        Settings of the segmentation.
    intensity : tuple of float
        Grey levels of the first one; those of all if `task.image_intensity` was set, and of one whose own are not
        known.

    Returns
    -------
    TrainedNetwork
        A copy.
    list of str
        A line about the networks, for people; empty for a single one.
    """
    if not trained.others:
        return trained, []
    is_set = "task.image_intensity" in settings.typed
    others = tuple(
        replace(each, intensity=intensity if is_set or each.intensity is None else each.intensity)
        for each in trained.others
    )
    levels = {each.intensity for each in others} | {intensity}
    each_own = f", each with its own grey levels ({len(levels)} ranges)" if len(levels) > 1 else ""
    return replace(trained, others=others), [
        f"the probabilities are the mean over {len(others) + 1} networks{each_own}; this takes {len(others) + 1} times "
        "as long as one"
    ]
