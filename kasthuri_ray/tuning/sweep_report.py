"""Report a sweep to its user: lines and a table while it runs, and a page at its end."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable
from typing import Any

from kasthuri_ray.progress import Reporter, format_count, format_duration
from kasthuri_ray.reports.rendering import view_steps
from kasthuri_ray.reports.sweep_figures import SettingAxis
from kasthuri_ray.reports.sweep_page import AT_CHANCE, SettingRow, SweepReport, sweep_page
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.training.training_messages import EpochMessage, StepMessage, TextMessage
from kasthuri_ray.tuning.leaderboard import BEST_CONFIG, BEST_FOLDER, Leaderboard
from kasthuri_ray.tuning.sampler import setting_importances
from kasthuri_ray.tuning.search_space import NETWORK_KEY, RANGES
from kasthuri_ray.tuning.setting_effects import measure_effects
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
        duration = f"{format_duration(trial.wall_seconds)} ({format_duration(trial.seconds)} in epochs)"
        return (
            f"{self._score_text(trial)} at epoch {trial.best_epoch} of {trial.epochs}, {duration}, "
            f"rank {ended.index(trial.id) + 1} of {len(ended)}" + f" ({trial.why})" * (trial.state != FINISHED)
        )

    def receive(self, received: TrialMessage) -> None:
        """Take a message of a trial's worker: steps are shown in the table, the same line is shown only once."""
        trial, message = received.trial, received.message
        with self._lock:
            if isinstance(message, StepMessage) and trial in self._steps:
                self._steps[trial] = message
            elif isinstance(message, EpochMessage) and not self.reporter.is_terminal:
                row, metric = message.row, self.leaderboard.metric
                score = f"{metric_name(metric)} {row[metric]:.3f}"
                self.reporter.print_line(f"{self._place(trial, row['epoch'])}: {score}")
            elif isinstance(message, TextMessage) and message.text not in self._lines_shown:
                self._lines_shown.add(message.text)
                self.reporter.print_line(f"trial {trial}: {message.text}")

    def _place(self, id: str, epoch: int | None) -> str:
        """Return which trial of how many this is, and at which epoch of how many it is."""
        number = next(trial.number for trial in self.leaderboard.trials if trial.id == id) + 1
        step = self._steps.get(id)
        of_all = "" if self.num_trials is None else f" of {self.num_trials}"
        of_epochs = "" if step is None else f" of {step.num_epochs}"
        return f"trial {id} ({number}{of_all}), " + ("starts" if epoch is None else f"epoch {epoch}{of_epochs}")

    def draw_table(self) -> None:
        with self._lock:
            if self.reporter.is_terminal:
                self.reporter.show_table(self.table())
            else:
                self.reporter.show_live("  ".join([*self._places(), self.table()[0]]))

    def _places(self) -> list[str]:
        """Return where each running trial is."""
        return [self._place(id, None if step is None else step.epoch) for id, step in self._steps.items()]

    def table(self) -> list[str]:
        """Return a line for the sweep, one for each running trial, and one for each of the best trials."""
        running = [trial for trial in self.leaderboard.trials if trial.id in self._steps and trial.state == RUNNING]
        ranked = [trial for trial in self.leaderboard.ranked() if trial.has_result]
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
        parts = [f"  {self._place(trial.id, None if step is None else step.epoch)}"]
        parts += [trial.network] if step is None else [
            f"step {step.step}/{step.num_steps}",
            trial.network,
            self._score_text(trial) if trial.score is not None else "no score yet",
            f"{step.tiles_per_second:.1f} tiles/s",
        ]  # fmt: skip
        parts += [f"{format_duration(step.seconds_left)} left"] if step and step.seconds_left is not None else []
        return "  ".join(parts)

    def _score_text(self, trial: TrialRecord) -> str:
        return f"{metric_name(self.leaderboard.metric)} {trial.score:.3f}"


def write_sweep_page(plan: SweepPlan, leaderboard: Leaderboard) -> None:
    """Write index.html into the sweep's folder."""
    leaderboard.storage.write_bytes("index.html", sweep_page(sweep_report(plan, leaderboard)).encode())


def sweep_report(plan: SweepPlan, leaderboard: Leaderboard) -> SweepReport:
    """Return what the page shows, from the record, the trials' histories and the winner's test metrics."""
    best = leaderboard.best()
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
        effects=[
            SettingRow(effect.key, effect.describe_values(), effect.describe_size(), effect.describe_certainty())
            for effect in measure_effects(plan.space, leaderboard.trials)
        ],
        metrics=None if best is None else leaderboard.folder(best).read_metrics(),
        at_chance=is_at_chance(leaderboard),
        seconds=leaderboard.seconds,
        settings=plan.description,
        commands=_next_commands(plan, best) if best is not None else (),
    )


def is_at_chance(leaderboard: Leaderboard) -> bool:
    """Return whether trials were evaluated and none of them is better than chance, the best one included."""
    best = leaderboard.best()
    if best is None:
        return False
    ended = [trial for trial in leaderboard.trials if trial.ended and trial.state != FAILED]
    metrics = {trial.id: leaderboard.folder(trial).read_metrics() or {} for trial in ended}
    known = {id: each.get("better_than_chance") for id, each in metrics.items()}
    return known[best.id] is False and not any(known.values())


def describe_winner(plan: SweepPlan, leaderboard: Leaderboard, best: TrialRecord) -> list[str]:
    """Return the last lines of a sweep: warnings, the trial that ranks first, how to use it, and what mattered."""
    metrics = leaderboard.folder(best).read_metrics() or {}
    warnings = [*([AT_CHANCE] if is_at_chance(leaderboard) else []), *metrics.get("warnings", ())]
    score = f"{metric_name(leaderboard.metric)} {best.score:.3f} at epoch {best.best_epoch} of {best.epochs}"
    number = format_count(len(leaderboard.trials), "trial")
    ranks = f"trial {best.id} ranks first of {number}" if warnings else f"the best of {number} is {best.id}"
    commands = [f"to {text}: {command}" for text, command in _winner_commands(plan)]
    effects = ", ".join(effect.describe() for effect in measure_effects(plan.space, leaderboard.trials))
    return [
        *(f"warning: {warning}" for warning in warnings),
        f"{ranks}, {score}: {describe_trial(best)}",
        *commands,
        f"to use its weights: --weights {shlex.quote(f'{plan.path}/{BEST_FOLDER}')}",
        f"varied, with the effect on the {metric_name(leaderboard.metric)}: {effects}",
    ]


def _winner_commands(plan: SweepPlan) -> list[tuple[str, str]]:
    """Return the command that trains the first trial again, from any folder; none for a sweep on object storage."""
    if not plan.storage.is_local:
        return []
    train, storage = plan.settings.train, plan.path.rpartition("/")[0] or "/"
    flags = ["--config", f"{plan.path}/{BEST_CONFIG}", "--storage", storage]
    flags += ["--boss", absolute_uri(train.boss)] if train.boss else []
    flags += ["--allow-empty"] if train.allow_empty else []
    return [("train it again", f"{plan.job_command('train')} {shlex.join(flags)}")]


def _next_commands(plan: SweepPlan, best: TrialRecord) -> list[tuple[str, str]]:
    weights = shlex.join(["--weights", f"{plan.path}/{BEST_FOLDER}", "--output", "out.zarr"])
    again = [(f"Train trial {best.id} again, or for longer:", command) for _, command in _winner_commands(plan)]
    shown = view_steps("--run", f"{plan.path}/{BEST_FOLDER}")
    return [
        *again,
        *shown,
        (f"Segment with the weights of trial {best.id}:", f"{plan.job_command('segment')} {weights}"),
    ]


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
