"""The files of a training run, local or on S3: its settings, checkpoints, history and metrics."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes, read_checkpoint
from kasthuri_ray.storage.folder import Storage

HISTORY_COLUMNS = (
    *("epoch", "train.loss", "val.loss", "val.foreground_f1", "val.average_precision"),
    *("learning_rate", "seconds", "tiles_per_second"),
)
LOWER_IS_BETTER = {"val.loss"}


RECORDED_PACKAGES = ("kasthuri_ray", "torch", "ray", "intern", "numpy", "zarr", "tensorstore")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, `<storage>/<name>/`."""

    storage: Storage

    def read_settings(self) -> dict[str, Any] | None:
        """What settings.json holds; None where no run has been. Raises ValueError for what is not a run's."""
        found = self._read_json("settings.json")
        if found is not None and not (isinstance(found, dict) and {"task", "network", "train"} <= found.keys()):
            raise ValueError(f"{self.storage.path}/settings.json is not that of a run; give another --name")
        return found

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self._write_json("settings.json", settings)

    def read_metrics(self) -> dict[str, Any] | None:
        """What metrics.json holds; None until a run is finished: it is what a run writes last."""
        return self._read_json("metrics.json")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._write_json("metrics.json", metrics)

    def read_checkpoint(self, name: str) -> Checkpoint | None:
        """The checkpoint `best` or `last`, tensors on the CPU; None if there is none."""
        data, folder = self._read(f"checkpoint/{name}.pt"), f"{self.storage.path}/checkpoint"
        try:
            return None if data is None else read_checkpoint(data, f"{folder}/{name}.pt")
        except ValueError as error:
            if name != "last":
                raise
            raise ValueError(
                f"{error}. Or begin another run from the best epoch: --weights {folder}/best.pt"
            ) from error

    def write_checkpoint(self, name: str, checkpoint: Checkpoint) -> None:
        self.storage.write_bytes(f"checkpoint/{name}.pt", checkpoint_bytes(checkpoint))

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """history.csv, written whole: a run that was cut off leaves no epoch twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.storage.write_bytes("history.csv", text.getvalue().encode())

    def read_history(self) -> list[dict[str, Any]]:
        """The rows of history.csv, numbers as such; none where there is no such file."""
        data = self._read("history.csv")
        rows = csv.DictReader(io.StringIO((data or b"").decode()))
        return [{name: int(value) if name == "epoch" else float(value) for name, value in row.items()} for row in rows]

    def write_events(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The history as TensorBoard events."""
        self.storage.write_bytes("events.out.tfevents.0.history", tensorboard_events(rows))

    def write(self, name: str, data: bytes | str) -> None:
        """Any other file."""
        self.storage.write_bytes(name, data.encode() if isinstance(data, str) else data)

    def _read(self, name: str) -> bytes | None:
        try:
            return self.storage.read_bytes(name)
        except FileNotFoundError:
            return None

    def _read_json(self, name: str) -> dict[str, Any] | None:
        data = self._read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise ValueError(f"{self.storage.path}/{name} is not JSON ({error}); give another --name") from None

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.storage.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())


def epoch_rank(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """How good an epoch of the history is: the higher, the better by the metric; among equals, the lower loss."""
    return (-row[metric] if metric in LOWER_IS_BETTER else row[metric]), -row["val.loss"]


def tensorboard_events(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """An event file with every column of the history, by epoch."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    return _event_bytes(EventsWriter, Event, Summary, rows)


def _event_bytes(writer: Any, event: Any, summary: Any, rows: Sequence[Mapping[str, Any]]) -> bytes:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        events = writer(str(Path(folder) / "events"))
        seconds = 0.0
        for row in rows:
            seconds += row["seconds"]
            values = [summary.Value(tag=name, simple_value=row[name]) for name in HISTORY_COLUMNS[1:]]
            events.write_event(event(wall_time=seconds, step=row["epoch"], summary=summary(value=values)))
        events.close()
        return next(Path(folder).iterdir()).read_bytes()


def run_description(settings: Settings) -> dict[str, Any]:
    """What settings.json holds: everything that would be needed to do it again, and no secret."""
    return {
        **settings.of_training(),
        "seed": settings.network.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package lies in, None outside one."""
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
        return found.stdout.strip() or None
    return None
