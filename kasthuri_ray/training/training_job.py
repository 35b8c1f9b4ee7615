"""What every worker of a training run receives, its place among the other workers, and the progress of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from kasthuri_ray.config.settings import NetworkSettings, Settings
from kasthuri_ray.tiles.sampling import GridTiles, TrainTiles
from kasthuri_ray.training.learner import LearnerSettings

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
    train : TrainTiles
        Training tiles, in whole batches.
    val : GridTiles
        Tiles of the validation box.
    test : GridTiles or None
        Tiles of the test box; None if the task has none.
    weights : dict of str to torch.Tensor or None
        State dict to start from.
    next_command : str
        Command that trains the run for more epochs, for its page; "" shows none.
    """

    settings: Settings
    path: str
    train: TrainTiles
    val: GridTiles
    test: GridTiles | None
    weights: dict[str, torch.Tensor] | None
    next_command: str


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
        Receives a message about the progress, a small dict; called on rank 0.
    """

    rank: int
    world_size: int
    workers_per_node: int
    device: torch.device
    report: Callable[[list[dict[str, Any]]], str | None]
    show: Callable[[dict[str, Any]], None]


@dataclass
class TrainingProgress:
    """The progress of a run, which `last.pt` holds beside the state of the learner.

    Parameters
    ----------
    epoch : int
        Number of finished epochs.
    history : list of dict
        One row for each finished epoch.
    best : dict or None
        Epoch, average precision, loss, threshold and validation metrics of the best epoch.
    waited : float
        Time that training waited for tiles, in seconds.
    blank_chunks : list of str
        Image chunks that hold only zeros.
    without_foreground : bool
        Whether the validation box holds no foreground.
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    waited: float = 0.0
    blank_chunks: list[str] = field(default_factory=list)
    without_foreground: bool = False

    def add_blank_chunks(self, chunks: Iterable[str]) -> None:
        """Add image chunks that hold only zeros."""
        self.blank_chunks = sorted({*self.blank_chunks, *chunks})


def make_learner_settings(network: NetworkSettings, task_type: str) -> LearnerSettings:
    """Return the settings of a network and a task that a learner needs, as plain values."""
    names = {field.name for field in fields(LearnerSettings)} - {"task_type"}
    return LearnerSettings(task_type=task_type, **{name: getattr(network, name) for name in names})
