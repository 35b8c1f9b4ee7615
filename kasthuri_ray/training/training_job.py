"""What a training run is told, who its workers are, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from kasthuri_ray.config.settings import NetworkSettings, Settings
from kasthuri_ray.tiles.sampling import GridTiles, TrainTiles
from kasthuri_ray.training.learner import LearnerSettings

# What `Ranks.report` may answer; any other answer is to go on.
STOP = "stop"  # here, without judging
JUDGE = "judge"  # what there is


WITHOUT_FOREGROUND = (
    "The validation box holds no foreground: nothing there can tell a good network from a poor one, and the epoch with "
    "the lowest loss is kept. Give it a larger box."
)


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker is told.

    path: the run's folder. weights: a state dict to start from. test: None where the task has none.
    """

    settings: Settings
    path: str
    train: TrainTiles
    val: GridTiles
    test: GridTiles | None
    weights: dict[str, torch.Tensor] | None
    next_command: str


def learner_settings(network: NetworkSettings, task_type: str) -> LearnerSettings:
    """Return what a learner needs to know of a network file and a task, as plain values."""
    names = {field.name for field in fields(LearnerSettings)} - {"task_type"}
    return LearnerSettings(task_type=task_type, **{name: getattr(network, name) for name in names})


@dataclass(frozen=True)
class WorkerContext:
    """Who this worker is among the others, and whom it tells.

    size_here: processes that share this machine. report: takes the history, and says what to do; called by every rank
    after every epoch, and at the start of a run that goes on. show: takes a small dict of progress, on rank 0.
    """

    rank: int
    size: int
    size_here: int
    device: torch.device
    report: Callable[[list[dict[str, Any]]], str | None]
    show: Callable[[dict[str, Any]], None]


@dataclass
class TrainingProgress:
    """How far a run is: what `last.pt` holds beside the learner."""

    epoch: int = 0  # epochs done
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None  # epoch, average_precision, threshold
    waited: float = 0.0  # seconds
    blank_chunks: list[str] = field(default_factory=list)
    without_foreground: bool = False  # the validation box

    def add_blank_chunks(self, more: Iterable[str]) -> None:
        """Take in further image chunks that hold nothing but zeros."""
        self.blank_chunks = sorted({*self.blank_chunks, *more})
