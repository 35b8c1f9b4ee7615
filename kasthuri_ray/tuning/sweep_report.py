"""The page of a sweep from what the sweep has left: its record, the trials' histories and the winner's figures."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Mapping
from typing import Any

from kasthuri_ray.progress import Reporter, format_duration
from kasthuri_ray.reports.sweep_figures import Axis
from kasthuri_ray.reports.sweep_page import SweepReport, sweep_page
from kasthuri_ray.tuning.leaderboard import BEST, CONFIG, FAILED, FINISHED, RUNNING, Leaderboard, TrialRecord
from kasthuri_ray.tuning.sampler import setting_importances
from kasthuri_ray.tuning.search_space import NETWORK_KEY, RANGES
from kasthuri_ray.tuning.sweep_plan import SweepPlan

NUM_LISTED = 3  # of the best trials in the table


def write_sweep_page(plan: SweepPlan, board: Leaderboard) -> None:
    """Write index.html into the sweep's folder."""
    board.storage.write_bytes("index.html", sweep_page(sweep_report(plan, board)).encode())


def sweep_report(plan: SweepPlan, board: Leaderboard) -> SweepReport:
    """What the page tells."""
    best = board.best()
    figures = board.folder(best).read_metrics() if best is not None else None
    histories = {trial.id: board.folder(trial).read_history() for trial in board.trials}
    return SweepReport(
        name=board.storage.name,
        task_type=plan.settings.task.task_type,
        metric=metric_name(board.metric),
        higher=board.higher,
        trials=board.rows(),
        curves={id: [row[board.metric] for row in history] for id, history in histories.items()},
        space=[Axis(key, domain.kind, domain.values) for key, domain in plan.space.items()],
        importances=setting_importances(plan.space, board.trials, board.higher),
        test=figures["test"] if figures else None,
        seconds=board.seconds,
        settings=plan.description,
        commands=_commands(plan) if best is not None else (),
    )


def _commands(plan: SweepPlan) -> list[tuple[str, str]]:
    path = shlex.quote(plan.path)
    segment = (
        "Segment with the winner's weights:",
        f"python jobs/segment.py --weights {path}/{BEST} --output out.zarr",
    )
    if plan.storage.folder is None:
        return [segment]
    return [("Train the winner again, or for longer:", f"python jobs/train.py --config {path}/{CONFIG}"), segment]


class SweepReporter:
    """Tells of the trials on `board`. total: how many there will be, None if only the time is set.

    seconds_left: of the sweep's time, None if there is no end to it.
    """

    def __init__(
        self, reporter: Reporter, board: Leaderboard, total: int | None, seconds_left: Callable[[], float | None]
    ) -> None:
        self.reporter, self.board, self.total, self.seconds_left = reporter, board, total, seconds_left
        self._steps: dict[str, dict[str, Any]] = {}
        self._said: set[str] = set()
        self._lock = threading.RLock()  # Tune's thread, that of the notes and the main one come here

    def begin(self, trial: TrialRecord) -> None:
        again = f" goes on after epoch {trial.epochs}:" if trial.epochs else ":"
        with self._lock:
            self._steps[trial.id] = {}
            self.reporter.line(f"trial {trial.id}{again} {describe_trial(trial)}")

    def end(self, trial: TrialRecord) -> None:
        with self._lock:
            self._steps.pop(trial.id, None)
            self.reporter.line(f"trial {trial.id} {trial.state}: {self._came_to(trial)}")

    def _came_to(self, trial: TrialRecord) -> str:
        if trial.state == FAILED or trial.score is None:
            return trial.why
        ended = [one.id for one in self.board.ranked() if one.ended]
        return (
            f"{self._score(trial)} at epoch {trial.best_epoch} of {trial.epochs}, {format_duration(trial.wall_seconds)}, "
            f"place {ended.index(trial.id) + 1} of {len(ended)}" + f" ({trial.why})" * (trial.state != FINISHED)
        )

    def note(self, note: Mapping[str, Any]) -> None:
        """What a trial's worker shows: its steps go into the table; a line is told once for all trials."""
        with self._lock:
            if "step" in note and note["trial"] in self._steps:
                self._steps[note["trial"]] = dict(note)
            elif "line" in note and note["line"] not in self._said:
                self._said.add(note["line"])
                self.reporter.line(f"trial {note['trial']}: {note['line']}")

    def show(self) -> None:
        """The table as it stands now."""
        with self._lock:
            self.reporter.table(self.table())

    def table(self) -> list[str]:
        """One line on the whole, one for each trial that runs, and the best few."""
        running = [trial for trial in self.board.trials if trial.id in self._steps and trial.state == RUNNING]
        best = [trial for trial in self.board.ranked() if trial.score is not None and trial.state != FAILED]
        lines = [self._whole(len(running), best[0] if best else None)]
        lines += [self._running(trial) for trial in running]
        lines += [
            f"  {place}. {self._score(trial)}  {describe_trial(trial)}"
            for place, trial in enumerate(best[:NUM_LISTED], 1)
        ]
        return lines

    def _whole(self, running: int, best: TrialRecord | None) -> str:
        done = sum(trial.ended for trial in self.board.trials)
        failed = sum(trial.state == FAILED for trial in self.board.trials)
        words = [f"{done}{'' if self.total is None else f' of {self.total}'} trials done, {running} training"]
        words += [f"{failed} failed"] if failed else []
        words += [f"best {self._score(best)} ({best.id} {best.network})"] if best else []
        left = self.seconds_left()
        words += [f"{format_duration(max(0.0, left))} left"] if left is not None else []
        return "  ".join(words)

    def _running(self, trial: TrialRecord) -> str:
        note = self._steps[trial.id]
        words = [f"  {trial.id} {trial.network}"]
        words += ["starts"] if not note else [
            f"epoch {note['epoch']}/{note['epochs']}  step {note['step']}/{note['steps']}",
            self._score(trial) if trial.score is not None else "no score yet",
            f"{note['tiles_per_second']:.1f} tiles/s  {format_duration(note['seconds_left'])} left",
        ]  # fmt: skip
        return "  ".join(words)

    def _score(self, trial: TrialRecord) -> str:
        return f"{metric_name(self.board.metric)} {trial.score:.3f}"


def metric_name(metric: str) -> str:
    """`val.average_precision` as a person says it."""
    name = metric.removeprefix("val.")
    return {"average_precision": "average precision", "foreground_f1": "F1"}.get(name, name)


def describe_trial(trial: TrialRecord) -> str:
    """What a trial tries, in a line."""
    parts = [f"{short_key(key)} {short_value(value)}" for key, value in trial.values.items() if key != NETWORK_KEY]
    return ", ".join([trial.network, *parts])


def short_key(key: str) -> str:
    return key.partition(".")[2] or key


def short_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def describe_search(plan: SweepPlan) -> list[str]:
    """What is about to be searched, in lines."""
    tune, many = plan.tune, f"{plan.samples} trials" if plan.samples else "as many trials as there is time for"
    at_once = f"{plan.concurrent} at once" if plan.concurrent > 1 else "one after the other"
    stopping = (
        "none is stopped early" if tune.scheduler == "none" else f"poor ones are stopped early by {tune.scheduler}"
    )
    found = [f"{many} by {tune.search} search, {at_once}; {stopping}; the best by {metric_name(plan.metric)}, among:"]
    for key, domain in plan.space.items():
        between = "to" if domain.kind in RANGES else "or"
        found.append(
            f"  {key}: {f' {between} '.join(map(short_value, domain.values))}"
            + (", by its logarithm" * (domain.kind == "loguniform"))
        )
    return found
