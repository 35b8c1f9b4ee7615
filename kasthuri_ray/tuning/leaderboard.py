"""What of a sweep's trials stays: the weights of the best few, and the best one's folder for other jobs to take."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kasthuri_ray.config.differences import FREE_SETTINGS
from kasthuri_ray.storage.folder import Storage
from kasthuri_ray.training.run_folder import LOWER_IS_BETTER, RunFolder, epoch_rank

BEST, CONFIG = "best", "best.json"
WEIGHTS = ".pt"


RUNNING = "running"  # or cut off: the next sitting goes on with it
FINISHED = "finished"
STOPPED = "stopped"  # by the scheduler
OUT_OF_TIME = "out of time"  # the sweep's; with more of it, it goes on
FAILED = "failed"
JSON, CSV = "leaderboard.json", "leaderboard.csv"
COLUMNS = ("rank", "id", "network", "state", "score", "best_epoch", "epochs", "seconds", "tiles_per_second")


def delete_trial_weights(board: Leaderboard, keep: int) -> None:
    """Delete the weights of all trials that have ended, but those of the `keep` best. One out of time may yet go on."""
    ended = [trial for trial in board.ranked() if trial.ended and trial.state != OUT_OF_TIME]
    kept = [trial for trial in ended if trial.state != FAILED and trial.score is not None][:keep]
    for trial in ended:
        if trial.kept and not any(trial is one for one in kept):
            _delete(board.folder(trial).storage, WEIGHTS)
            trial.kept = False


def _delete(storage: Storage, ending: str) -> None:
    for name in storage.list():
        if name.endswith(ending):
            storage.delete(name)


def write_best(board: Leaderboard, best: TrialRecord) -> None:
    """Leave a copy of the best trial's folder in best/, and its settings in best.json."""
    source, target = board.folder(best).storage, board.storage.child(BEST)
    names = source.list()
    for name in names:
        target.write_bytes(name, source.read_bytes(name))
    for name in set(target.list()) - set(names):  # of the one that was the best before
        target.delete(name)
    settings = board.folder(best).read_settings()
    assert settings is not None
    board.storage.write_bytes(CONFIG, (json.dumps(_config(settings), indent=2) + "\n").encode())


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a run's settings what another run needs to learn the same: a file for --config."""
    train = {key: value for key, value in settings["train"].items() if key not in FREE_SETTINGS["train"]}
    return {"task": settings["task"], "network": settings["network"], "train": train}


@dataclass
class TrialRecord:
    """One trial: what it tries, and what came of it.

    values: of the searched settings, by key. score: the metric at the best epoch. seconds: of all its epochs.
    wall_seconds: from its beginning to its end, of the last sitting. parameters: of the network. kept: whether its
    weights are still there.
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
        """Whether it is done with; out of time it is not, but has come as far as it could."""
        return self.state != RUNNING

    def update(self, found: Mapping[str, Any]) -> None:
        """Take in what is known by now, by the names of the fields."""
        for name, value in found.items():
            setattr(self, name, value)


def summarize_history(history: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """What a history comes to, by the names of the fields of a `Trial`; empty of an empty one."""
    if not history:
        return {}
    best = max(history, key=lambda row: epoch_rank(row, metric))
    rates = [row["tiles_per_second"] for row in history]
    return {
        "score": float(best[metric]),
        "best_epoch": int(best["epoch"]),
        "epochs": len(history),
        "seconds": float(sum(row["seconds"] for row in history)),
        "tiles_per_second": statistics.median(rates[1:] or rates),  # the first epoch may compile
    }


@dataclass
class Leaderboard:
    """All trials of the sweep whose folder is `storage`, in the order of their numbers.

    seconds: of work so far, all sittings together. exhausted: whether there is nothing left to try. finished: whether
    the sweep had come to its end when it was last written.
    """

    storage: Storage
    metric: str
    trials: list[TrialRecord] = field(default_factory=list)
    seconds: float = 0.0
    exhausted: bool = False
    finished: bool = False

    @classmethod
    def read(cls, storage: Storage, metric: str) -> Leaderboard:
        """As it was left; empty where no sweep has been."""
        try:
            found = json.loads(storage.read_bytes(JSON))
        except FileNotFoundError:
            return cls(storage, metric)
        kept = {key: found[key] for key in ("seconds", "exhausted", "finished")}
        names = TrialRecord.__dataclass_fields__
        trials = [TrialRecord(**{key: value for key, value in row.items() if key in names}) for row in found["trials"]]
        return cls(storage, metric, sorted(trials, key=lambda trial: trial.number), **kept)

    def write(self) -> None:
        """The record, best trial first, and the same as a table."""
        rows = self.rows()
        record = {name: getattr(self, name) for name in ("metric", "seconds", "exhausted", "finished")}
        self.storage.write_bytes(JSON, (json.dumps({**record, "trials": rows}, indent=2) + "\n").encode())
        self.storage.write_bytes(CSV, self._table(rows).encode())

    def rows(self) -> list[dict[str, Any]]:
        """The trials as plain values, the best first."""
        return [{"rank": rank, "id": trial.id, **asdict(trial)} for rank, trial in enumerate(self.ranked(), 1)]

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> str:
        keys = list(dict.fromkeys(key for row in rows for key in row["values"] if key != "network"))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, "parameters", *keys, "why"])
        for row in rows:
            values = [_cell(row["values"].get(key)) for key in keys]
            writer.writerow([*(row[name] for name in (*COLUMNS, "parameters")), *values, row["why"]])
        return text.getvalue()

    def folder(self, trial: TrialRecord) -> RunFolder:
        """The trial's own folder, which is that of a run."""
        return RunFolder(self.storage.child(f"trials/{trial.id}"))

    @property
    def higher(self) -> bool:
        """Whether a higher score is a better one."""
        return self.metric not in LOWER_IS_BETTER

    def ranked(self) -> list[TrialRecord]:
        """The best first; those that failed and those that have no score yet last."""

        def place(trial: TrialRecord) -> tuple[bool, bool, float, int]:
            score = trial.score if trial.score is not None else 0.0
            return trial.state == FAILED, trial.score is None, -score if self.higher else score, trial.number

        return sorted(self.trials, key=place)

    def best(self, ended: bool = True) -> TrialRecord | None:
        """The best of those that did not fail; ended: of those that run no more."""
        found = [t for t in self.ranked() if t.score is not None and t.state != FAILED and (t.ended or not ended)]
        return found[0] if found else None


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def recover_trials(board: Leaderboard) -> None:
    """Bring the record up to what the trials' folders say: a driver that was killed has not seen all of it."""
    for trial in board.trials:
        if trial.state not in (RUNNING, OUT_OF_TIME):
            continue
        folder = board.folder(trial)
        if trial.state == OUT_OF_TIME:
            folder.storage.delete("metrics.json")  # of the best one, as far as it had come
            trial.kept = True
        trial.state, trial.why = RUNNING, ""
        trial.update(summarize_history(folder.read_history(), board.metric))
        if folder.read_metrics() is not None:  # what a run writes last
            trial.state, trial.why = FINISHED, finished_text(trial.epochs)


def finished_text(epochs: int) -> str:
    return f"trained to its end, {epochs} epochs"


def out_of_time_text(epochs: int) -> str:
    return f"the sweep's time was up after epoch {epochs}"
