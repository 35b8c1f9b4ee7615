"""What every worker of a training run receives, and its place among the other workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.tiles.splits import TaskTiles
from kasthuri_ray.training.learner import LearnerSettings
from kasthuri_ray.training.learning_history import LearningHistory
from kasthuri_ray.training.training_messages import MessageHandler

# What `WorkerContext.report` may return; with any other value the run continues.
STOP = "stop"  # stop now, without an evaluation
EVALUATE = "evaluate"  # stop training, and evaluate the best epoch so far

NO_FOREGROUND_WARNING = (
    "The validation box holds no foreground, so it cannot tell a good network from a poor one: the epoch with the "
    "lowest loss is kept. Give it a larger box."
)


@dataclass(frozen=True)
class TrainingJob:
    """The description of a training run that every worker receives.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with a batch size.
    path : str
        Folder of the run.
    tiles : TaskTiles
        Tiles of all splits, those of training in whole batches.
    weights : dict of str to torch.Tensor, optional
        State dict to start from.
    next_command : str
        Command that trains the run for more epochs, for its page; "" shows none.
    history : LearningHistory
        What the network learnt from.
    """

    settings: Settings
    path: str
    tiles: TaskTiles
    weights: dict[str, torch.Tensor] | None = None
    next_command: str = ""
    history: LearningHistory = field(default_factory=LearningHistory)


@dataclass(frozen=True)
class WorkerContext:
    """The place of a worker among the others, and the functions by which it reports.

    Parameters
    ----------
    rank : int
        Number of this worker, from 0.
    world_size : int
        Number of workers.
    workers_per_node : int
        Workers that share this machine.
    device : torch.device
        Device of this worker.
    report : callable
        Receives the history and returns STOP, EVALUATE or None. Every rank calls it after every epoch, and at the start
        of a resumed run.
    show : callable
        Receives a message about the progress; called on rank 0.
    """

    rank: int
    world_size: int
    workers_per_node: int
    device: torch.device
    report: Callable[[list[dict[str, Any]]], str | None]
    show: MessageHandler


def make_learner_settings(network: NetworkSettings, task_type: str) -> LearnerSettings:
    """Return the settings of a network and a task that a learner needs, as plain values."""
    names = {field.name for field in fields(LearnerSettings)} - {"task_type"}
    return LearnerSettings(task_type=task_type, **{name: getattr(network, name) for name in names})
