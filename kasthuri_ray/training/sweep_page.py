"""The page of a sweep from what the sweep has left: its record, the trials' histories and the winner's figures."""

from __future__ import annotations

import shlex

from kasthuri_ray.reports.sweep_figures import Axis
from kasthuri_ray.reports.sweep_page import SweepReport, sweep_page
from kasthuri_ray.training.keeping import BEST, CONFIG
from kasthuri_ray.training.leaderboard import Leaderboard
from kasthuri_ray.training.propose import importances
from kasthuri_ray.training.sweep_plan import SweepPlan
from kasthuri_ray.training.sweep_view import metric_name


def leave_page(plan: SweepPlan, board: Leaderboard) -> None:
    """Write index.html into the sweep's folder."""
    board.storage.write_bytes("index.html", sweep_page(report_of(plan, board)).encode())


def report_of(plan: SweepPlan, board: Leaderboard) -> SweepReport:
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
        importances=importances(plan.space, board.trials, board.higher),
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
