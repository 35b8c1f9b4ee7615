"""The files of a training run, local or on S3: settings, checkpoints, history and metrics."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes, read_checkpoint
from kasthuri_ray.storage.storage import Storage

HISTORY_COLUMNS = (
    *("epoch", "train.loss", "val.loss", "val.foreground_f1", "val.average_precision"),
    *("learning_rate", "seconds", "tiles_per_second"),
)
LOWER_IS_BETTER = {"val.loss"}
RECORDED_PACKAGES = ("kasthuri_ray", "torch", "ray", "intern", "numpy", "zarr", "tensorstore")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, `<storage>/<name>/`.

    Parameters
    ----------
    storage : Storage
        Opened at the run's folder.
    """

    storage: Storage

    def read_settings(self) -> dict[str, Any] | None:
        """Return the content of settings.json; None if there is no run. Raise an InputError if it is not a run's."""
        content = self._read_json("settings.json")
        if content is not None and not (isinstance(content, dict) and {"task", "network", "train"} <= content.keys()):
            raise InputError(f"{self.storage.path}/settings.json is not that of a training run; give another --name")
        return content

    def read_learnt_from(self) -> dict[str, Any] | None:
        """Return what the network learnt from, as recorded; None if there is no run, or an old one."""
        try:
            return (self.read_settings() or {}).get("learnt_from")
        except InputError:  # what is no run is refused later
            return None

    def read_batch_size(self) -> int | None:
        """Return the batch size of the run; None if there is no run."""
        settings = self.read_settings()
        return None if settings is None else settings["network"]["batch_size"]

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self._write_json("settings.json", settings)

    def read_metrics(self) -> dict[str, Any] | None:
        """Return the content of metrics.json, the last file that a run writes; None if the run is not finished."""
        return self._read_json("metrics.json")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._write_json("metrics.json", metrics)

    def delete_metrics(self) -> None:
        """Delete metrics.json, so that the run is not finished any more."""
        self.storage.delete("metrics.json")

    def read_checkpoint(self, name: str) -> Checkpoint | None:
        """Return the checkpoint `best` or `last`, with tensors on the CPU; None if there is none."""
        data, folder = self._read(f"checkpoint/{name}.pt"), f"{self.storage.path}/checkpoint"
        try:
            return None if data is None else read_checkpoint(data, f"{folder}/{name}.pt")
        except ValueError as error:
            if name != "last":
                raise
            raise InputError(
                f"{error}. Or start another run from the best epoch: --weights {folder}/best.pt"
            ) from error

    def write_checkpoint(self, name: str, checkpoint: Checkpoint) -> None:
        self.storage.write_bytes(f"checkpoint/{name}.pt", checkpoint_bytes(checkpoint))

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all of history.csv, so that a run that was interrupted has no epoch twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.storage.write_bytes("history.csv", text.getvalue().encode())

    def read_history(self) -> list[dict[str, Any]]:
        """Return the rows of history.csv with values as numbers; an empty list if there is no such file."""
        data = self._read("history.csv")
        rows = csv.DictReader(io.StringIO((data or b"").decode()))
        return [{name: int(value) if name == "epoch" else float(value) for name, value in row.items()} for row in rows]

    def write_events(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the history as TensorBoard events."""
        self.storage.write_bytes("events.out.tfevents.0.history", tensorboard_events(rows))

    def write(self, name: str, data: bytes | str) -> None:
        """Write any other file."""
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
            raise InputError(f"{self.storage.path}/{name} is not JSON ({error}); give another --name") from None

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.storage.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())


def epoch_sort_key(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Return a key that sorts epochs from worst to best: by the metric, then by the lower validation loss.

    Parameters
    ----------
    row : mapping
        Row of the history.
    metric : str
        A column of the history.

    Returns
    -------
    tuple of float
        Higher is better.
    """
    return (-row[metric] if metric in LOWER_IS_BETTER else row[metric]), -row["val.loss"]


def tensorboard_events(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return an event file that holds every column of the history by epoch."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    return _event_bytes(EventsWriter, Event, Summary, rows)


def run_description(settings: Settings, learnt_from: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of settings.json: everything that repeating the run needs, and no secret.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    learnt_from : mapping, optional
        What its network learns from and learnt from before, see `volumes.learnt_from.LearntFrom.to_plain`.

    Returns
    -------
    dict
        Plain values that JSON can hold.
    """
    record = {} if learnt_from is None else {"learnt_from": learnt_from}
    return {
        **settings.training_record(),
        "seed": settings.network.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "git_commit": git_commit(),
        **record,
    }


def git_commit() -> str | None:
    """Return the commit of the checkout that holds this package; None outside of a checkout."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() or None
    return None


def _event_bytes(writer: Any, event: Any, summary: Any, rows: Sequence[Mapping[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        events = writer(str(Path(folder) / "events"))
        seconds = 0.0
        for row in rows:
            seconds += row["seconds"]
            values = [summary.Value(tag=name, simple_value=row[name]) for name in HISTORY_COLUMNS[1:]]
            events.write_event(event(wall_time=seconds, step=row["epoch"], summary=summary(value=values)))
        events.close()
        return next(Path(folder).iterdir()).read_bytes()
