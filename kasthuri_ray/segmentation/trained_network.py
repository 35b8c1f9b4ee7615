"""The network that segments: its weights, and what is known about them from the run that trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError, named_input
from kasthuri_ray.geometry import Nm, per_axis
from kasthuri_ray.metrics.object_choice import ObjectChoice
from kasthuri_ray.models.checkpoints import check_finite_weights, find_weights_file
from kasthuri_ray.models.published_weights import read_weights
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.volumes.learnt_from import LearntFrom


@dataclass(frozen=True)
class TrainedNetwork:
    """Weights of a network, and what is known about them.

    A bare state dict leaves all but the first two None or unknown.

    Parameters
    ----------
    where : str
        Path or URL of the file.
    weights : dict of Tensor
        State dict.
    settings : dict or None
        Sections `task` and `network` of the run's settings.
    threshold : float, list of float or None
        Threshold that the run chose on its validation volume, 0 to 1; one for each of several classes.
    intensity : tuple of float or None
        Grey levels of the training image that became 0 and 255.
    voxel_size_nm : tuple of float or None
        Voxel size of the training image, z, y, x.
    annotated_objects : dict or None
        Objects of the annotation of the training boxes.
    learnt_from : LearntFrom
        What the network learnt from, as far as it is known.
    others : tuple of TrainedNetwork
        Further networks with whose probabilities those of this one are averaged.
    objects : ObjectChoice or None
        How the run found objects.
    """

    where: str
    weights: dict[str, Tensor]
    settings: dict[str, Any] | None = None
    threshold: float | list[float] | None = None
    intensity: tuple[float, float] | None = None
    voxel_size_nm: Nm | None = None
    annotated_objects: dict[str, Any] | None = None
    learnt_from: LearntFrom = field(default_factory=LearntFrom)
    objects: ObjectChoice | None = None
    others: tuple[TrainedNetwork, ...] = ()

    @property
    def all_networks(self) -> tuple[TrainedNetwork, ...]:
        """This network and the others."""
        return (self, *self.others)


def read_trained_network(path: str, flag: str = "--weights") -> TrainedNetwork:
    """Read the weights that `--weights` names.

    Parameters
    ----------
    path : str
        Folder of a run, its `checkpoint/best.pt`, or a `.pt` file of weights; a path, `https://` or `s3://`; or
        `kasthuri://NAME`.
    flag : str
        The flag in messages.

    Returns
    -------
    TrainedNetwork
        The weights, and what the file says about them.

    Raises
    ------
    InputError
        If the file holds no weights, or weights that are not finite.
    InputNotFound, InputDenied, ConnectionError
        If the file cannot be read.
    """
    where = find_weights_file(path, flag)
    with named_input(flag, where):
        checkpoint = read_weights(where)
        check_finite_weights(checkpoint.weights, where)
    settings, intensity, voxel_size_nm = checkpoint.settings, checkpoint.image_intensity, checkpoint.voxel_size_nm
    return TrainedNetwork(
        where=where.partition("?")[0],
        weights=checkpoint.weights,
        settings=settings and {name: settings[name] for name in ("task", "network")},
        threshold=checkpoint.threshold,
        intensity=None if intensity is None else _pair(intensity),
        voxel_size_nm=None if voxel_size_nm is None else per_axis(float, voxel_size_nm),
        annotated_objects=checkpoint.annotated_objects,
        learnt_from=LearntFrom.from_plain(checkpoint.learnt_from),
        objects=ObjectChoice.from_plain(checkpoint.objects),
    )


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, values)
    return low, high


def build_trained_network(settings: Settings, trained: TrainedNetwork) -> nn.Module:
    """Build a network with its trained weights, and check that those of the others fit it too.

    Parameters
    ----------
    settings : Settings
        Sections `task` and `network` are read.
    trained : TrainedNetwork
        The weights.

    Returns
    -------
    nn.Module
        The network, on the CPU, in eval mode.

    Raises
    ------
    InputError
        If the weights belong to another network or another type of task; the message names their file.
    """
    task, trained_task = settings.task, (trained.settings or {}).get("task", {})
    if trained_task and trained_task["task_type"] != task.task_type:
        raise InputError(
            f"--task is {task.name}, for {task.task_type}, but {trained.where} was trained for "
            f"{trained_task['task_type']} ({trained_task['name']}); leave --task out, or give weights of that task"
        )
    network = build_network(settings.network.model_dump())
    for each in reversed(trained.all_networks):
        try:
            load_weights(network, each.weights)
        except ValueError as error:
            raise InputError(f"--weights {each.where}: {error}") from None
    return network.eval()
