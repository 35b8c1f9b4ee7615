"""jobs/tune.py as a process: a killed sweep resumes; its files, its winner, and the input that it refuses."""

import contextlib
import csv
import html
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kasthuri_ray import cli
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import open_volume

ROOT = Path(__file__).resolve().parents[2]
TUNE = "jobs/tune.py"
TIMEOUT_S = 900  # of a sweep: a minute on an idle machine
BOX = Box((0, 0, 0), (16, 128, 128))
# Two of the four trials fail: eight blocks would halve the tiles too often.
SPACE = {"network.learning_rate": {"grid": [0.01, 0.003]}, "network.n_blocks": {"grid": [2, 8]}}


@dataclass
class ResumedSweep:
    """A sweep that was killed and resumed. at_kill: its files, and the number of cutouts requested until then."""

    folder: Path
    arguments: list[str]
    boss: list[str]
    at_kill: dict[str, Any]
    num_cutouts: Callable[[], int]
    killed: Any
    job: Any

    def trials(self) -> list[dict[str, Any]]:
        rows = json.loads((self.folder / "leaderboard.json").read_text())["trials"]
        return sorted(rows, key=lambda row: row["number"])


@pytest.fixture(scope="module")
def volumes(boss_server_class, tmp_path_factory) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """Serve the phantom as volumes of BossDB; yield flags that name them, and a count of requested cutouts."""
    server = boss_server_class()
    for channel in ("em", "membrane"):
        voxels = open_volume(f"phantom://{channel}?shape=16,128,128&seed=7").read(BOX)
        server.add(f"lab/phantom/{channel}", voxels)
    file = tmp_path_factory.mktemp("boss") / "boss.json"
    file.write_text(json.dumps(server.options))
    uris = ["--image", "bossdb://lab/phantom/em", "--annotation", "bossdb://lab/phantom/membrane"]
    yield [*uris, "--boss", str(file)], lambda: len(server.cutouts)
    server.close()


def tune_arguments(tiny_flags: list[str], space: dict, folder: Path, *more: str) -> list[str]:
    (folder / "space.json").write_text(json.dumps(space))
    networks = ["--networks", tiny_flags[3]]
    return [*tiny_flags[:2], *networks, "--space", str(folder / "space.json"), "--storage", str(folder), *more]


def wait_until(condition: Callable[[], Any], job: Any, timeout_s: float = TIMEOUT_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, job.out + job.err
        assert job.process.poll() is None, job.out + job.err
        time.sleep(0.05)


@pytest.fixture(scope="module")
def sweep(start_job, cluster, tiny_flags, volumes, tmp_path_factory) -> ResumedSweep:
    """Start a grid of four trials, kill its driver while the third one trains, and type the same command again."""
    storage = tmp_path_factory.mktemp("sweeps")
    boss, num_cutouts = volumes
    more = ["--search", "grid", "--scheduler", "none", "--name", "swept", "--keep", "1", *boss]
    arguments = tune_arguments(tiny_flags, SPACE, storage, *more)
    folder = storage / "swept"
    first = start_job(*arguments, script=TUNE, cluster=cluster)
    third = folder / "trials/0002/history.csv"
    wait_until(lambda: third.exists() and len(third.read_text().splitlines()) > 1, first)
    at_kill = {"cutouts": num_cutouts()}
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = folder / "trials/0000"
    at_kill["done"] = {path: path.stat().st_mtime_ns for path in done.rglob("*.csv")}
    job = start_job(*arguments, script=TUNE, cluster=cluster).wait(TIMEOUT_S)
    assert job.code == 0, job.out + job.err
    return ResumedSweep(folder, arguments, boss, at_kill, num_cutouts, first, job)


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_no_trial_runs_twice(sweep):
    assert "trial 0000 finished" in sweep.killed.out
    assert "trial 0000" not in re.split("the best of|ranks first", sweep.job.out)[0]
    assert {path: path.stat().st_mtime_ns for path in (sweep.folder / "trials/0000").rglob("*.csv")} == sweep.at_kill[
        "done"
    ]
    assert "trial 0002 resumes after epoch" in sweep.job.out
    trials = sweep.trials()
    assert [(row["state"], row["epochs"]) for row in trials] == [
        *(("finished", 4), ("failed", 0), ("finished", 4), ("failed", 0))
    ]
    assert [row["values"]["network.learning_rate"] for row in trials] == [0.01, 0.01, 0.003, 0.003]
    rows = list(csv.DictReader((sweep.folder / "trials/0002/history.csv").open()))
    assert [row["epoch"] for row in rows] == list("1234")


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_is_recorded_with_the_reason_and_the_sweep_continues(sweep):
    assert all("cannot be pooled" in row["why"] for row in sweep.trials() if row["state"] == "failed")
    assert "trial 0001 failed: network.n_blocks 8, task.volume_z 1, task.tile_size [64, 48]" in sweep.killed.out
    assert sweep.job.err == ""
    assert not [line for line in sweep.job.lines if re.search(r"ray::|\(pid|WARNING|INFO|Warning|details|─", line)]


@pytest.mark.slow
def test_the_volume_is_downloaded_once_for_all_trials(sweep):
    assert sweep.at_kill["cutouts"] > 0
    assert sweep.num_cutouts() == sweep.at_kill["cutouts"]


@pytest.mark.slow
def test_a_sweep_writes_the_documented_files(sweep):
    names = {str(path.relative_to(sweep.folder)) for path in sweep.folder.rglob("*") if path.is_file()}
    left_of_the_kill = {name for name in names if name.startswith(".") and name.endswith(".part")}
    assert {name for name in names if "/" not in name} - left_of_the_kill == {
        "settings.json",
        "leaderboard.csv",
        "leaderboard.json",
        "best.json",
        "index.html",
    }
    assert {
        "trials/0000/history.csv",
        "trials/0002/history.csv",
        "best/checkpoint/best.pt",
        "best/metrics.json",
    } <= names
    assert [name for name in names if name.startswith("trials/0000") and "tfevents" in name]
    assert sweep.job.lines[0] == sweep.job.lines[-1] == str(sweep.folder)


@pytest.mark.slow
def test_only_the_best_trial_keeps_its_weights_and_the_folder_best_is_a_copy_of_it(sweep):
    best = min(sweep.trials(), key=lambda row: row["rank"])
    kept = {path.parts[-3] for path in sweep.folder.glob("trials/*/checkpoint/best.pt")}
    assert kept == {best["id"]}
    own, copy = (sweep.folder / name / "checkpoint/best.pt" for name in (f"trials/{best['id']}", "best"))
    assert own.read_bytes() == copy.read_bytes()
    rows = list(csv.DictReader((sweep.folder / f"trials/{best['id']}/history.csv").open()))
    assert best["score"] == pytest.approx(max(float(row["val.average_precision"]) for row in rows))


def page_text(path: Path) -> str:
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(page))


@pytest.mark.slow
def test_the_page_and_the_last_line_say_what_was_varied_and_whether_it_mattered(sweep):
    varied = sweep.job.lines[-2]
    assert varied.startswith("varied, with the effect on the average precision: ")
    assert "learning_rate (too few trials to tell)" in varied
    page = page_text(sweep.folder / "index.html")
    assert re.search(r"learning rate 0.01: 0.\d{3} \(1\), 0.003: 0.\d{3} \(1\) not known too few trials to tell", page)
    metrics = json.loads((sweep.folder / "best/metrics.json").read_text())
    first = "ranks first of 4 trials" if metrics["warnings"] else "the best of 4 trials is"
    assert len([line for line in sweep.job.lines if first in line]) == 1
    assert [line for line in sweep.job.lines if line.startswith("warning: ")] == [
        *(["warning: No trial is better than chance."] if not metrics["better_than_chance"] else []),
        *(f"warning: {warning}" for warning in metrics["warnings"]),
    ]
    assert re.search(r"trial 0002 \(3 of 4\), epoch \d of 4: average precision 0", sweep.job.out)


@pytest.mark.slow
def test_a_finished_sweep_is_refused_before_ray_starts(sweep, start_job, no_ray):
    repeated = start_job(*sweep.arguments, script=TUNE, env=no_ray).wait()
    changed = start_job(*sweep.arguments, "--set", "network.ema=0.5", script=TUNE, env=no_ray).wait()
    assert changed.code == 2
    assert "was started with other settings:\n  networks.tiny.ema: 0.9 -> 0.5" in changed.err
    assert repeated.code == 2
    assert "all 4 combinations of its space have been tried" in repeated.err


@pytest.mark.slow
def test_training_the_winner_again_reproduces_its_score(sweep, start_job, cluster, tmp_path):
    config = str(sweep.folder / "best.json")
    boss = sweep.boss[sweep.boss.index("--boss") :]
    storage = str(sweep.folder.parent)
    command = next(line for line in sweep.job.lines if line.startswith("to train it again: "))
    words = shlex.split(command.partition(": ")[2])
    assert words == [sys.executable, str(ROOT / "jobs/train.py"), "--config", config, "--storage", storage, *boss]
    job = start_job(*words[2:], "--storage", tmp_path, "--name", "again", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    best = min(sweep.trials(), key=lambda row: row["rank"])
    score = json.loads((tmp_path / "again/metrics.json").read_text())["val"]["average_precision"]
    assert score == pytest.approx(best["score"], abs=1e-3)


@pytest.mark.slow
def test_the_best_trial_can_be_used_for_segmentation(sweep, start_job, cluster, tmp_path):
    arguments = ["--weights", sweep.folder / "best", "--output", tmp_path / "out.zarr", "--box", "11:13,:,:"]
    boss = sweep.boss[sweep.boss.index("--boss") :]
    job = start_job(*arguments, *boss, script="jobs/segment.py", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    assert json.loads((tmp_path / "out.zarr.progress.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_sweep_without_a_finished_trial_fails(start_job, cluster, tiny_flags, tmp_path):
    space = {"network.n_blocks": {"choice": [7, 8]}}
    arguments = tune_arguments(tiny_flags, space, tmp_path, "--name", "none", "--search", "random")
    job = start_job(*arguments, script=TUNE, cluster=cluster).wait()
    assert job.code == 1, job.out + job.err
    assert "none of the 2 trials finished; the first failed with: network.n_blocks" in job.err
    assert "Traceback" not in job.err
    assert (tmp_path / "none/index.html").exists()


@pytest.mark.slow
def test_more_workers_than_the_cluster_holds_are_refused_with_both_numbers(start_job, cluster, tiny_flags, tmp_path):
    more = ["--search", "grid", "--concurrent", "4", "--num-workers", "3"]
    arguments = tune_arguments(tiny_flags, SPACE, tmp_path, *more)
    job = start_job(*arguments, script=TUNE, cluster=cluster).wait()
    assert job.code == 2, job.out + job.err
    assert "12 workers of 4 trials and their data loading need 7 CPUs, the cluster has 4" in job.err
    assert "--concurrent" in job.err
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"network.learning_rat": {"choice": [1]}},
            "no setting network.learning_rat; did you mean network.learning_rate?",
        ),
        ({"network.ema": {"choise": [0.9]}}, "did you mean choice?"),
    ],
)
def test_an_invalid_search_space_is_refused_before_anything_starts(
    load_module, monkeypatch, capsys, tiny_flags, tmp_path, space, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    assert cli.run_job(load_module(ROOT / TUNE).main, tune_arguments(tiny_flags, space, tmp_path)) == 2
    printed = capsys.readouterr()
    assert f"error: {tmp_path / 'space.json'}: " in printed.err
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


def test_help_is_printed_within_a_second_and_in_groups(help_text, tmp_path):
    assert "search:" in help_text(TUNE)
    code = (
        "import runpy, sys, time\n"
        f"sys.argv = [{str(ROOT / TUNE)!r}, '--help']\n"
        "start = time.perf_counter()\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60) for _ in range(3)]
    assert min(float(process.stdout.splitlines()[-1]) for process in processes) < 1


def ended_trials(job: Any) -> list[str]:
    """Return the ids of the trials whose end a job printed."""
    matches = [re.match(r"trial (\d+) (finished|stopped|failed)", line) for line in job.lines]
    return [match[1] for match in matches if match]


@pytest.mark.faults
@pytest.mark.parametrize("storage", ["disk", "s3"])
def test_kills_at_random_moments_do_not_repeat_a_trial(start_job, cluster, tiny_flags, tmp_path, storage, fault_trials):
    folder = str(tmp_path) if storage == "disk" else "s3://lab/sweeps"
    space = {"network.learning_rate": {"loguniform": [1e-4, 1e-1]}, "network.loss": {"choice": ["focal", "dice_ce"]}}
    more = ["--search", "random", "--samples", "6", "--name", "killed", "--storage", folder, "--concurrent", "2"]
    arguments = [*tune_arguments(tiny_flags, space, tmp_path), *more]
    ended: list[str] = []
    for _ in range(fault_trials(2 * 5) // 2):
        job = start_job(*arguments, script=TUNE, cluster=cluster)
        time.sleep(random.uniform(5, 40))
        if job.process.poll() is None:
            job.send_signal(signal.SIGKILL)
        ended += ended_trials(job.wait())
    last = start_job(*arguments, script=TUNE, cluster=cluster).wait(TIMEOUT_S)
    assert last.code == 0 or "is finished" in last.err, last.out + last.err
    ended += ended_trials(last)
    assert len(ended) == len(set(ended)), ended
    repeated = start_job(*arguments, script=TUNE, cluster=cluster).wait()
    assert "6 trials have been run" in repeated.err


def trial_processes(session: int) -> set[int]:
    """Return the ids of the processes of a cluster in which Ray Tune runs trials."""
    pids = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_text()
            if int(fields[3]) == session and name.startswith(("ray::ImplicitFunc", "ray::trial")):
                pids.add(int(folder.name))
    return pids


@pytest.mark.slow
def test_a_killed_trial_of_one_worker_resumes_in_another_process_with_the_same_result(
    start_job, tiny_flags, tmp_path, assert_same_run
):
    """A trial of one worker trains in Tune's process. Both trials compute the same, so one is the other's oracle."""
    space = {"network.early_stopping_delta": {"grid": [0.0, 0.1]}}
    more = ["--search", "grid", "--scheduler", "none", "--name", "killed", "--keep", "2"]
    arguments = tune_arguments(tiny_flags, space, tmp_path, *more, "--set", "network.epochs=12")
    job = start_job(*arguments, script=TUNE)
    history = tmp_path / "killed/trials/0000/history.csv"
    wait_until(lambda: history.exists() and len(history.read_text().splitlines()) > 2, job)
    (process,) = trial_processes(job.process.pid)
    os.kill(process, signal.SIGKILL)
    assert job.wait(TIMEOUT_S).code == 0, job.out + job.err
    assert job.out.count("trial 0000: its process died; it starts again from the last epoch") == 1
    rows = json.loads((tmp_path / "killed/leaderboard.json").read_text())["trials"]
    assert {row["id"]: (row["state"], row["epochs"]) for row in rows} == dict.fromkeys(
        ("0000", "0001"), ("finished", 12)
    )
    assert_same_run(tmp_path / "killed/trials/0000", tmp_path / "killed/trials/0001")


@pytest.mark.faults
def test_a_trial_whose_workers_are_others_fails_if_its_process_is_killed_and_the_sweep_continues(
    start_job, cluster, tiny_flags, tmp_path
):
    known = trial_processes(cluster.session)
    space = {"network.seed": {"grid": [0, 1]}}
    more = ["--search", "grid", "--scheduler", "none", "--name", "killed"]
    arguments = tune_arguments(tiny_flags, space, tmp_path, *more)
    job = start_job(*arguments, script=TUNE, cluster=cluster)
    wait_until((tmp_path / "killed/trials/0000/history.csv").exists, job)
    (process,) = trial_processes(cluster.session) - known
    os.kill(process, signal.SIGKILL)
    assert job.wait(TIMEOUT_S).code == 0, job.out + job.err
    rows = json.loads((tmp_path / "killed/leaderboard.json").read_text())["trials"]
    assert {row["id"]: row["state"] for row in rows} == {"0000": "failed", "0001": "finished"}
    assert "its process died" in next(row["why"] for row in rows if row["id"] == "0000")


@pytest.mark.faults
def test_a_sweep_that_ran_out_of_time_resumes_with_more_hours(start_job, cluster, tiny_flags, tmp_path):
    space = {"network.learning_rate": {"loguniform": [1e-4, 1e-1]}}
    more = ["--search", "random", "--scheduler", "none", "--name", "late", "--set", "network.epochs=60"]
    arguments = tune_arguments(tiny_flags, space, tmp_path, *more)
    first = start_job(*arguments, "--hours", "0.01", script=TUNE, cluster=cluster).wait()
    rows = json.loads((tmp_path / "late/leaderboard.json").read_text())["trials"]
    late = [row for row in rows if row["state"] == "out of time"]
    assert late, first.out + first.err
    same = start_job(*arguments, "--hours", "0.01", script=TUNE, cluster=cluster).wait()
    assert "its 0.01 hours are used up" in same.err
    second = start_job(*arguments, "--hours", "0.03", script=TUNE, cluster=cluster).wait()
    assert f"trial {late[0]['id']} resumes after epoch {late[0]['epochs']}" in second.out, second.out + second.err


@pytest.mark.faults
def test_a_sweep_runs_as_a_submitted_job(submit_job, job_client, tiny_flags, tmp_path):
    (tmp_path / "space.json").write_text(json.dumps({"network.seed": {"grid": [0]}}))
    arguments = [*tiny_flags[:2], "--networks", tiny_flags[3], "--name", "job", "--storage", tmp_path]
    job = submit_job(TUNE, *arguments, "--space", tmp_path / "space.json", "--search", "grid")
    end = time.monotonic() + 300
    while job_client.get_job_status(job).value != "SUCCEEDED":
        assert time.monotonic() < end, job_client.get_job_logs(job)
        time.sleep(0.2)
    assert (tmp_path / "job/best/checkpoint/best.pt").exists()
