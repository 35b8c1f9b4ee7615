"""The Kasthuri Challenge as one command: every network on every task with several seeds, as one scoreboard.

That is what the challenge was for: a standard by which a new method is judged. `challenge_plan` says what takes part,
`challenge_runs` trains and tests it, `scoreboard` makes the table.
"""

from __future__ import annotations

import json
from typing import Any

from kasthuri_ray.benchmarks.challenge_plan import BoardEntry, BoardRequest, plan_board
from kasthuri_ray.benchmarks.challenge_runs import BoardRunner, read_result
from kasthuri_ray.benchmarks.scoreboard import make_report, read_results, scoreboard_csv, scoreboard_markdown
from kasthuri_ray.config.differences import fill_record_defaults
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError, missing_is_bad_input
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import check_local_gpu, connect_ray
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm, name_resume_command
from kasthuri_ray.ray_cluster.output_paths import check_shared_path
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.reports.scoreboard_page import ScoreboardReport, scoreboard_page
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.storage.uris import in_ray_job
from kasthuri_ray.training.preflight import check_run_location, run_path

BOARD = "board.json"


@missing_is_bad_input()
def run_challenge(request: BoardRequest, reporter: Reporter, command: str) -> ScoreboardReport:
    """Train and test what is missing of a board, and write scoreboard.html, scoreboard.csv and scoreboard.md.

    Parameters
    ----------
    request : BoardRequest
        What takes part.
    reporter : Reporter
        Shows the path, first and last, the runs, and the table.
    command : str
        What a person types to resume.

    Returns
    -------
    ScoreboardReport
        What the page shows.

    Raises
    ------
    InputError
        For bad input, before anything is written.
    WorkFailed
        If a run fails; the others are on the board then.
    """
    entries = plan_board(request)
    check_run_location(_with_place(request, entries[0].settings))
    check_local_gpu(entries[0].settings.train.device, entries[0].settings.network.precision)
    cluster = None
    if not in_ray_job():  # where the path depends on the cluster
        path = _board_path(request, entries)
        if not _find_missing(path, request, entries):
            reporter.print_result(path)
            reporter.print_line(f"all {len(entries)} runs stand; nothing is trained")
            return _write_board(path, reporter)
    cluster = connect_ray(reporter, request.verbose)
    path = _board_path(request, entries, cluster)
    check_shared_path(path, cluster)
    missing = _find_missing(path, request, entries)
    reporter.print_result(path)
    standing = f", {len(entries) - len(missing)} of them stand" if len(missing) < len(entries) else ""
    reporter.print_line(f"{len(entries)} runs{standing}; to resume after a stop: {command}")
    storage = open_storage(path)
    with exit_on_sigterm(), Lease.acquire(storage, report=reporter.print_line), name_resume_command(command, reporter):
        storage.write_bytes(BOARD, (json.dumps(_describe_board(path, request, entries), indent=2) + "\n").encode())
        try:
            BoardRunner(path, cluster, reporter, command, lambda: _write_files(path)).run(missing)
        finally:
            report = _write_board(path, reporter)
    return report


def _board_path(request: BoardRequest, entries: list[BoardEntry], cluster: ClusterResources | None = None) -> str:
    others = () if cluster is None else (cluster,)
    return open_storage(run_path(_with_place(request, entries[0].settings), request.board_name, *others)).path


def _with_place(request: BoardRequest, settings: Settings) -> Settings:
    """Return settings whose run is the board."""
    train = settings.train.model_copy(update={"storage": request.storage, "name": request.board_name})
    return settings.model_copy(update={"train": train})


def _find_missing(path: str, request: BoardRequest, entries: list[BoardEntry]) -> list[BoardEntry]:
    """Return the entries without a result. Raise an InputError if the board was begun with other data or settings."""
    before, now = open_storage(path).read_json(BOARD), _describe_board(path, request, entries)
    if before is not None:
        keys = [key for key in ("data", "settings") if before[key] != now[key]]
        tasks = {name: (before["tasks"][name], now["tasks"][name]) for name in before["tasks"]}
        keys += [f"task {name}" for name, (old, new) in tasks.items() if _with_defaults(old, new) != new]
        if keys:
            raise InputError(
                f"the board {path} was begun with other {' and '.join(keys)}, so new figures could not be compared "
                "with its own. Give another --name, or the earlier settings"
            )
    return [entry for entry in entries if read_result(path, entry) is None]


def _with_defaults(task: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return a task that was written with the settings that did not exist then."""
    return dict(fill_record_defaults({"task": task, "network": {}}, {"task": now, "network": {}})["task"])


def _describe_board(path: str, request: BoardRequest, entries: list[BoardEntry]) -> dict[str, Any]:
    """Return what all runs of a board share; tasks of earlier commands stay."""
    before = open_storage(path).read_json(BOARD) or {"tasks": {}}
    tasks = {entry.task: entry.record["task"] for entry in entries}
    return {"data": request.data, "settings": request.all_assignments, "tasks": {**before["tasks"], **tasks}}


def _write_files(path: str) -> ScoreboardReport:
    storage: Storage = open_storage(path)
    report = make_report(storage.name, storage.read_json(BOARD) or {}, read_results(storage))
    files = {
        "scoreboard.csv": scoreboard_csv(report),
        "scoreboard.md": scoreboard_markdown(report),
        "scoreboard.html": scoreboard_page(report),
    }
    for name, text in files.items():
        storage.write_bytes(name, text.encode())
    return report


def _write_board(path: str, reporter: Reporter) -> ScoreboardReport:
    report = _write_files(path)
    reporter.end()
    reporter.print_line(f"\n{scoreboard_markdown(report)}")
    reporter.print_result(path)
    return report
