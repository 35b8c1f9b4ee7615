"""The record of one trial on the leaderboard: the settings that it tries, its state and its result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.training.run_folder import epoch_sort_key

# States of a trial.
RUNNING = "running"  # or interrupted: the next job of this sweep resumes it
FINISHED = "finished"
STOPPED = "stopped"  # by the scheduler
OUT_OF_TIME = "out of time"  # the sweep's --hours were used up; with more hours it resumes
FAILED = "failed"


@dataclass
class TrialRecord:
    """One trial: the settings that it tries, and its result.

    Parameters
    ----------
    number : int
        Number of the trial in the sweep, from 0.
    network : str
        Name of its network.
    values : dict
        Values of the searched settings, by `section.key`.
    state : str
        `RUNNING`, `FINISHED`, `STOPPED`, `OUT_OF_TIME` or `FAILED`.
    why : str
        Reason for the state.
    score : float, optional
        The sweep's metric at the best epoch.
    best_epoch : int, optional
        Number of that epoch, from 1.
    epochs : int
        Epochs done.
    seconds : float
        Time of all epochs.
    wall_seconds : float
        Time from start to end, in the last job that ran the trial.
    tiles_per_second : float, optional
        Training speed, a median over epochs.
    parameters : int, optional
        Number of parameters of the network.
    kept : bool
        Whether the weights still exist.
    """

    number: int
    network: str
    values: dict[str, Any]
    state: str = RUNNING
    why: str = ""
    score: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    tiles_per_second: float | None = None
    parameters: int | None = None
    kept: bool = True

    @property
    def id(self) -> str:
        return f"{self.number:04d}"

    @property
    def ended(self) -> bool:
        """Return whether the trial runs no more. One out of time has ended too, though a later job may resume it."""
        return self.state != RUNNING

    @property
    def has_result(self) -> bool:
        """Return whether the trial has a score, and did not fail."""
        return self.score is not None and self.state != FAILED

    def update(self, values: Mapping[str, Any]) -> None:
        """Set fields by name."""
        for name, value in values.items():
            setattr(self, name, value)


def summarize_history(history: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Return the result of a history, by the names of the fields of `TrialRecord`; nothing for an empty history."""
    if not history:
        return {}
    best = max(history, key=lambda row: epoch_sort_key(row, metric))
    rates = [row["tiles_per_second"] for row in history]
    return {
        "score": float(best[metric]),
        "best_epoch": int(best["epoch"]),
        "epochs": len(history),
        "seconds": float(sum(row["seconds"] for row in history)),
        "tiles_per_second": statistics.median(rates[1:] or rates),  # the first epoch may compile
    }


def finished_reason(num_epochs: int) -> str:
    return f"training finished after {num_epochs} epochs"


def out_of_time_reason(num_epochs: int) -> str:
    return f"the sweep's time was used up after epoch {num_epochs}"
