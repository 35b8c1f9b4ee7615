"""The state of a training run: its progress, and everything else that a resumed run continues from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.training.compute_plan import ComputePlan


@dataclass
class TrainingProgress:
    """The progress of a run.

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
    annotated_objects : dict or None
        Objects of the annotation of the training boxes, see `AnnotatedObjects.to_plain`; None if they are not counted.
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    waited: float = 0.0
    blank_chunks: list[str] = field(default_factory=list)
    without_foreground: bool = False
    annotated_objects: dict[str, Any] | None = None

    @property
    def val_losses(self) -> list[float]:
        """Validation loss of each finished epoch."""
        return [row["val.loss"] for row in self.history]

    @property
    def thresholds(self) -> list[float]:
        """Threshold of each foreground class at the best epoch."""
        assert self.best is not None
        threshold = self.best["threshold"]
        return threshold if isinstance(threshold, list) else [threshold]

    def add_blank_chunks(self, chunks: Iterable[str]) -> None:
        """Add image chunks that hold only zeros."""
        self.blank_chunks = sorted({*self.blank_chunks, *chunks})


@dataclass(frozen=True)
class TrainingState:
    """What `last.pt` holds under `resume`.

    Parameters
    ----------
    learner : dict
        State of the learner.
    plan : ComputePlan
        What the run decided once.
    progress : TrainingProgress
        The progress of the run.
    """

    learner: dict[str, Any]
    plan: ComputePlan
    progress: TrainingProgress

    @classmethod
    def of(cls, last: Checkpoint) -> TrainingState:
        """Return the state that the checkpoint `last` holds."""
        saved = last.resume
        assert saved is not None
        return cls(saved["learner"], ComputePlan(**saved["plan"]), TrainingProgress(**saved["progress"]))

    def to_plain(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""
        return {"learner": self.learner, "plan": asdict(self.plan), "progress": asdict(self.progress)}
