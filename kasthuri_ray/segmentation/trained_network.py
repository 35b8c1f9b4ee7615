"""The network that segments: its weights, and what the run that trained it says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.geometry import Nm
from kasthuri_ray.models.checkpoints import check_finite_weights, find_weights_file, read_checkpoint
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.storage.folder import read_uri


@dataclass(frozen=True)
class TrainedNetwork:
    """Weights, and what is known about them; None where a bare state dict says nothing.

    where: the file. settings: the sections `task` and `network` of the run. threshold: the one chosen on val.
    intensity: the grey levels that became 0 and 255. voxel_size_nm: z, y, x, of the image that was learnt from.
    """

    where: str
    weights: dict[str, Tensor]
    settings: dict[str, Any] | None = None
    threshold: float | None = None
    intensity: tuple[float, float] | None = None
    voxel_size_nm: Nm | None = None


def read_trained_network(path: str) -> TrainedNetwork:
    """What `--weights` names: a run's folder, its `checkpoint/best.pt` or a bare `.pt`; a path, https or s3.

    Raises ValueError for what holds no weights, FileNotFoundError, PermissionError, ConnectionError.
    """
    where = find_weights_file(path)
    try:
        found = read_checkpoint(read_uri(where), where)
    except FileNotFoundError:
        raise FileNotFoundError(f"--weights {path}: there is no {where}") from None
    check_finite_weights(found.weights, where)
    about = found.about
    settings = found.settings and {name: found.settings[name] for name in ("task", "network")}
    return TrainedNetwork(
        where=where.partition("?")[0],
        weights=found.weights,
        settings=settings,
        threshold=(about.get("best") or {}).get("threshold"),
        intensity=_pair(about.get("image_intensity")),
        voxel_size_nm=_pair(about.get("voxel_size_nm")),  # type: ignore[arg-type]
    )


def _pair(values: Any) -> Any:
    return None if values is None else tuple(float(value) for value in values)


def build_trained_network(settings: Settings, trained: TrainedNetwork) -> nn.Module:
    """The network with its weights, on the CPU, in eval mode.

    Raises ValueError, naming the weights, where they are another network's or another task's.
    """
    task, own = settings.task, (trained.settings or {}).get("task", {})
    if own and own["task_type"] != task.task_type:
        raise ValueError(
            f"--task is {task.name}, for {task.task_type}, but {trained.where} was trained for {own['task_type']} "
            f"({own['name']}); leave --task out, or give weights of that task"
        )
    network = build_network(settings.network.model_dump())
    try:
        load_weights(network, trained.weights)
    except ValueError as error:
        raise ValueError(f"--weights {trained.where}: {error}") from None
    return network.eval()
