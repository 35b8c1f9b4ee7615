"""Reports a sweep to its user: lines and a table while it runs, and a page at its end."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable
from typing import Any

from kasthuri_ray.progress import Reporter, format_duration
from kasthuri_ray.reports.sweep_figures import SettingAxis
from kasthuri_ray.reports.sweep_page import SweepReport, sweep_page
from kasthuri_ray.training.training_messages import StepMessage, TextMessage
from kasthuri_ray.tuning.leaderboard import BEST_CONFIG, BEST_FOLDER, Leaderboard
from kasthuri_ray.tuning.sampler import setting_importances
from kasthuri_ray.tuning.search_space import NETWORK_KEY, RANGES
from kasthuri_ray.tuning.sweep_plan import SweepPlan
from kasthuri_ray.tuning.trial_messages import TrialMessage
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, RUNNING, TrialRecord

NUM_LISTED = 3  # best trials in the table


def describe_search(plan: SweepPlan) -> list[str]:
    """Return lines that say what the sweep is about to search, and how."""
    tune, trials = plan.tune, f"{plan.num_trials} trials" if plan.num_trials else "as many trials as the time allows"
    order = f"{plan.num_concurrent} at a time" if plan.num_concurrent > 1 else "one at a time"
    ranked = f"ranked by {metric_name(plan.metric)}"
    lines = [f"Search space ({trials}, {tune.search}, {order}, {ranked}, early stopping: {tune.scheduler}):"]
    for key, domain in plan.space.items():
        conjunction = "to" if domain.kind in RANGES else "or"
        values = f" {conjunction} ".join(map(short_value, domain.values))
        lines.append(f"  {key}: {values}" + " (log scale)" * (domain.kind == "loguniform"))
    return lines


class SweepReporter:
    """Shows the trials of a sweep while it runs: a line for each start and end, and a live table.

    Parameters
    ----------
    reporter : Reporter
        Where lines and table are written.
    leaderboard : Leaderboard
        The sweep's trials.
    num_trials : int, optional
        Trials in all; None if only the time is set.
    seconds_left : callable
        Returns the rest of the sweep's time; None without a limit.
    """

    def __init__(
        self,
        reporter: Reporter,
        leaderboard: Leaderboard,
        num_trials: int | None,
        seconds_left: Callable[[], float | None],
    ) -> None:
        self.reporter, self.leaderboard = reporter, leaderboard
        self.num_trials, self.seconds_left = num_trials, seconds_left
        self._steps: dict[str, StepMessage | None] = {}  # of each trial that runs, the last one
        self._lines_shown: set[str] = set()
        self._lock = threading.RLock()  # called from Tune's thread, the message thread and the main thread

    def show_start(self, trial: TrialRecord) -> None:
        resumed = f" resumes after epoch {trial.epochs}:" if trial.epochs else ":"
        with self._lock:
            self._steps[trial.id] = None
            self.reporter.print_line(f"trial {trial.id}{resumed} {describe_trial(trial)}")

    def show_end(self, trial: TrialRecord) -> None:
        with self._lock:
            self._steps.pop(trial.id, None)
            self.reporter.print_line(f"trial {trial.id} {trial.state}: {self._describe_result(trial)}")

    def _describe_result(self, trial: TrialRecord) -> str:
        if trial.state == FAILED or trial.score is None:
            return trial.why
        ended = [one.id for one in self.leaderboard.ranked() if one.ended]
        return (
            f"{self._score_text(trial)} at epoch {trial.best_epoch} of {trial.epochs}, "
            f"{format_duration(trial.wall_seconds)}, rank {ended.index(trial.id) + 1} of {len(ended)}"
            + f" ({trial.why})"
            * (trial.state != FINISHED)
        )

    def receive(self, received: TrialMessage) -> None:
        """Take a message of a trial's worker: steps are shown in the table, the same line is shown only once."""
        trial, message = received.trial, received.message
        with self._lock:
            if isinstance(message, StepMessage) and trial in self._steps:
                self._steps[trial] = message
            elif isinstance(message, TextMessage) and message.text not in self._lines_shown:
                self._lines_shown.add(message.text)
                self.reporter.print_line(f"trial {trial}: {message.text}")

    def draw_table(self) -> None:
        with self._lock:
            self.reporter.show_table(self.table())

    def table(self) -> list[str]:
        """Return a line for the sweep, one for each running trial, and one for each of the best trials."""
        running = [trial for trial in self.leaderboard.trials if trial.id in self._steps and trial.state == RUNNING]
        ranked = [trial for trial in self.leaderboard.ranked() if trial.score is not None and trial.state != FAILED]
        lines = [self._sweep_line(len(running), ranked[0] if ranked else None)]
        lines += [self._trial_line(trial) for trial in running]
        lines += [
            f"  {rank}. {self._score_text(trial)}  {describe_trial(trial)}"
            for rank, trial in enumerate(ranked[:NUM_LISTED], 1)
        ]
        return lines

    def _sweep_line(self, num_running: int, best: TrialRecord | None) -> str:
        done = sum(trial.ended for trial in self.leaderboard.trials)
        failed = sum(trial.state == FAILED for trial in self.leaderboard.trials)
        of_all = "" if self.num_trials is None else f" of {self.num_trials}"
        parts = [f"{done}{of_all} trials done, {num_running} training"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"best {self._score_text(best)} ({best.id} {best.network})"] if best else []
        left = self.seconds_left()
        parts += [f"{format_duration(max(0.0, left))} left"] if left is not None else []
        return "  ".join(parts)

    def _trial_line(self, trial: TrialRecord) -> str:
        step = self._steps[trial.id]
        parts = [f"  {trial.id} {trial.network}"]
        parts += ["starts"] if step is None else [
            f"epoch {step.epoch}/{step.num_epochs}  step {step.step}/{step.num_steps}",
            self._score_text(trial) if trial.score is not None else "no score yet",
            f"{step.tiles_per_second:.1f} tiles/s  {format_duration(step.seconds_left)} left",
        ]  # fmt: skip
        return "  ".join(parts)

    def _score_text(self, trial: TrialRecord) -> str:
        return f"{metric_name(self.leaderboard.metric)} {trial.score:.3f}"


def write_sweep_page(plan: SweepPlan, leaderboard: Leaderboard) -> None:
    """Write index.html into the sweep's folder."""
    leaderboard.storage.write_bytes("index.html", sweep_page(sweep_report(plan, leaderboard)).encode())


def sweep_report(plan: SweepPlan, leaderboard: Leaderboard) -> SweepReport:
    """Return what the page shows, from the record, the trials' histories and the winner's test metrics."""
    best = leaderboard.best()
    metrics = leaderboard.folder(best).read_metrics() if best is not None else None
    histories = {trial.id: leaderboard.folder(trial).read_history() for trial in leaderboard.trials}
    return SweepReport(
        name=leaderboard.storage.name,
        task_type=plan.settings.task.task_type,
        metric=metric_name(leaderboard.metric),
        higher=leaderboard.higher_is_better,
        trials=leaderboard.rows(),
        curves={id: [row[leaderboard.metric] for row in history] for id, history in histories.items()},
        space=[SettingAxis(key, domain.kind, domain.values) for key, domain in plan.space.items()],
        importances=setting_importances(plan.space, leaderboard.trials, leaderboard.higher_is_better),
        test=metrics["test"] if metrics else None,
        seconds=leaderboard.seconds,
        settings=plan.description,
        commands=_next_commands(plan) if best is not None else (),
    )


def _next_commands(plan: SweepPlan) -> list[tuple[str, str]]:
    path = shlex.quote(plan.path)
    segment = (
        "Segment with the winner's weights:",
        f"{plan.job_command('segment')} --weights {path}/{BEST_FOLDER} --output out.zarr",
    )
    if not plan.storage.is_local:
        return [segment]
    train = ("Train the winner again, or for longer:", f"{plan.job_command('train')} --config {path}/{BEST_CONFIG}")
    return [train, segment]


def metric_name(metric: str) -> str:
    """Return a metric such as `val.average_precision` as people write it."""
    name = metric.removeprefix("val.")
    return {"average_precision": "average precision", "foreground_f1": "F1"}.get(name, name)


def describe_trial(trial: TrialRecord) -> str:
    """Return the settings that a trial tries, in a line."""
    parts = [f"{short_key(key)} {short_value(value)}" for key, value in trial.values.items() if key != NETWORK_KEY]
    return ", ".join([trial.network, *parts])


def short_key(key: str) -> str:
    return key.partition(".")[2] or key


def short_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
