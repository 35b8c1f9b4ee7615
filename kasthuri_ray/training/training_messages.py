"""Messages from the workers of a training to the driver, for people to watch.

The process that passes the messages on imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.progress import format_duration


@dataclass(frozen=True)
class TextMessage:
    """A line to print.

    Parameters
    ----------
    text : str
        The line.
    """

    text: str


@dataclass(frozen=True)
class StepMessage:
    """The progress of an epoch.

    Parameters
    ----------
    epoch, num_epochs, step, num_steps : int
        Number of the epoch in the run and of the step in the epoch, both from 1, and how many there are.
    loss : float
        Loss of the step.
    tiles_per_second : float
        Speed of the epoch so far.
    seconds_left : float or None
        Estimate for the rest of the run; None after the first step, which waits for tiles.
    wait_share : float
        Share of the time that training waited for tiles.
    """

    epoch: int
    num_epochs: int
    step: int
    num_steps: int
    loss: float
    tiles_per_second: float
    seconds_left: float | None
    wait_share: float

    def describe(self) -> str:
        """Return the message in a line."""
        left = "" if self.seconds_left is None else f"{format_duration(self.seconds_left)} left  "
        return (
            f"epoch {self.epoch}/{self.num_epochs}  step {self.step}/{self.num_steps}  "
            f"{self.tiles_per_second:.1f} tiles/s  loss {self.loss:.4f}  {left}waiting for data {self.wait_share:.1%}"
        )


@dataclass(frozen=True)
class EpochMessage:
    """A finished epoch.

    Parameters
    ----------
    row : mapping
        Row of the history.
    only_background : bool
        Whether background is the most probable class of every voxel.
    """

    row: Mapping[str, Any]
    only_background: bool

    def describe(self) -> str:
        """Return the result of the epoch in a line."""
        row = self.row
        return (
            f"epoch {row['epoch']}  loss {row['train.loss']:.4f}  val loss {row['val.loss']:.4f}  "
            f"F1 {row['val.foreground_f1']:.3f}  average precision {row['val.average_precision']:.3f}  "
            f"{row['tiles_per_second']:.1f} tiles/s  {format_duration(row['seconds'])}"
        )


TrainingMessage = TextMessage | StepMessage | EpochMessage
MessageHandler = Callable[[TrainingMessage], None]
