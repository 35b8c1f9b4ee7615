"""The record of a sweep (`leaderboard.json`): its trials, their ranking, and which of their files are kept.

A sweep resumes from this record and from the folders of its trials alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kasthuri_ray.config.settings import TrainSettings
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.training.run_folder import LOWER_IS_BETTER, RunFolder
from kasthuri_ray.tuning.trial_record import (
    FAILED,
    FINISHED,
    OUT_OF_TIME,
    RUNNING,
    TrialRecord,
    finished_reason,
    summarize_history,
)

LEADERBOARD_JSON, LEADERBOARD_CSV = "leaderboard.json", "leaderboard.csv"
BEST_FOLDER, BEST_CONFIG = "best", "best.json"
WEIGHTS_SUFFIX = ".pt"

CSV_COLUMNS = ("rank", "id", "network", "state", "score", "best_epoch", "epochs", "seconds", "tiles_per_second")


@dataclass
class Leaderboard:
    """All trials of a sweep, in the order of their numbers.

    Parameters
    ----------
    storage : Storage
        Folder of the sweep.
    metric : str
        Column of a history by which trials are compared, such as `val.average_precision`.
    trials : list of TrialRecord
        Every trial that was started.
    seconds : float
        Working time so far, over all jobs of the sweep.
    exhausted : bool
        Whether no combination of settings is left to try.
    finished : bool
        Whether the sweep had ended when the record was last written.
    """

    storage: Storage
    metric: str
    trials: list[TrialRecord] = field(default_factory=list)
    seconds: float = 0.0
    exhausted: bool = False
    finished: bool = False

    @classmethod
    def read(cls, storage: Storage, metric: str) -> Leaderboard:
        """Return the leaderboard that the folder holds; an empty one for a new sweep."""
        try:
            record = json.loads(storage.read_bytes(LEADERBOARD_JSON))
        except FileNotFoundError:
            return cls(storage, metric)
        totals = {key: record[key] for key in ("seconds", "exhausted", "finished")}
        names = TrialRecord.__dataclass_fields__
        trials = [TrialRecord(**{key: value for key, value in row.items() if key in names}) for row in record["trials"]]
        return cls(storage, metric, sorted(trials, key=lambda trial: trial.number), **totals)

    def write(self) -> None:
        """Write the record, best trial first, as JSON and as a CSV table."""
        rows = self.rows()
        totals = {name: getattr(self, name) for name in ("metric", "seconds", "exhausted", "finished")}
        self.storage.write_bytes(LEADERBOARD_JSON, (json.dumps({**totals, "trials": rows}, indent=2) + "\n").encode())
        self.storage.write_bytes(LEADERBOARD_CSV, _csv_table(rows).encode())

    def rows(self) -> list[dict[str, Any]]:
        """Return the trials as plain values, best first."""
        return [{"rank": rank, "id": trial.id, **asdict(trial)} for rank, trial in enumerate(self.ranked(), 1)]

    def folder(self, trial: TrialRecord) -> RunFolder:
        """Return the trial's own folder, which is that of a run."""
        return RunFolder(self.storage.child(f"trials/{trial.id}"))

    @property
    def higher_is_better(self) -> bool:
        return self.metric not in LOWER_IS_BETTER

    def ranked(self) -> list[TrialRecord]:
        """Return the trials, best first; trials without a score come after them, and failed ones last."""

        def sort_key(trial: TrialRecord) -> tuple[bool, bool, float, int]:
            score = trial.score if trial.score is not None else 0.0
            return trial.state == FAILED, trial.score is None, -score if self.higher_is_better else score, trial.number

        return sorted(self.trials, key=sort_key)

    def best(self, ended: bool = True) -> TrialRecord | None:
        """Return the best trial that did not fail; with `ended`, only among trials that run no more."""
        for trial in self.ranked():
            if trial.has_result and (trial.ended or not ended):
                return trial
        return None


def _csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row["values"] if key != "network"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "parameters", *keys, "why"])
    for row in rows:
        values = [_csv_cell(row["values"].get(key)) for key in keys]
        writer.writerow([*(row[name] for name in (*CSV_COLUMNS, "parameters")), *values, row["why"]])
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def recover_trials(leaderboard: Leaderboard) -> None:
    """Bring the record up to date with the trials' folders, which a killed driver has not read to the end."""
    for trial in leaderboard.trials:
        if trial.state not in (RUNNING, OUT_OF_TIME):
            continue
        folder = leaderboard.folder(trial)
        if trial.state == OUT_OF_TIME:
            folder.storage.delete("metrics.json")  # the best trial has it, for the epochs that it had by then
            trial.kept = True
        trial.state, trial.why = RUNNING, ""
        trial.update(summarize_history(folder.read_history(), leaderboard.metric))
        if folder.read_metrics() is not None:  # the last file that a run writes
            trial.state, trial.why = FINISHED, finished_reason(trial.epochs)


def delete_trial_weights(leaderboard: Leaderboard, keep: int) -> None:
    """Delete the weights of ended trials, except those of the `keep` best ones and of trials that may resume."""
    ended = [trial for trial in leaderboard.ranked() if trial.ended and trial.state != OUT_OF_TIME]
    kept = [trial.number for trial in ended if trial.has_result][:keep]
    for trial in ended:
        if trial.kept and trial.number not in kept:
            _delete_files(leaderboard.folder(trial).storage, WEIGHTS_SUFFIX)
            trial.kept = False


def _delete_files(storage: Storage, suffix: str) -> None:
    for name in storage.list_files():
        if name.endswith(suffix):
            storage.delete(name)


def write_best_trial(leaderboard: Leaderboard, best: TrialRecord) -> None:
    """Copy the best trial's folder to best/, and write best.json, a `--config` file that trains it again."""
    source, target = leaderboard.folder(best).storage, leaderboard.storage.child(BEST_FOLDER)
    names = source.list_files()
    for name in names:
        target.write_bytes(name, source.read_bytes(name))
    for name in set(target.list_files()) - set(names):  # left by the previous best trial
        target.delete(name)
    settings = leaderboard.folder(best).read_settings()
    assert settings is not None
    leaderboard.storage.write_bytes(BEST_CONFIG, (json.dumps(_training_config(settings), indent=2) + "\n").encode())


def _training_config(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of a run's settings that another run needs to learn the same."""
    train = {key: value for key, value in settings["train"].items() if key not in TrainSettings.changeable}
    if train.get("weights"):
        train["weights"] = absolute_uri(train["weights"])
    return {"task": settings["task"], "network": settings["network"], "train": train}
