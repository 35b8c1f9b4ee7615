"""Messages from the workers of a trial to the driver.

The process that passes the messages on imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kasthuri_ray.training.training_messages import TrainingMessage


@dataclass(frozen=True)
class TrialMessage:
    """A message and the id of the trial that it comes from."""

    trial: str
    message: TrainingMessage


TrialMessageHandler = Callable[[TrialMessage], None]


@dataclass(frozen=True)
class TrialMessagePoster:
    """Callable that adds the id of a trial to each of its messages, and passes them to `post`."""

    post: TrialMessageHandler
    trial: str

    def __call__(self, message: TrainingMessage) -> None:
        self.post(TrialMessage(self.trial, message))
