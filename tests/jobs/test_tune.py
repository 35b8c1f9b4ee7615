"""jobs/tune.py as a person finds it: killed and gone on with, its record, its winner, and what it refuses."""

import contextlib
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import open_volume

ROOT = Path(__file__).resolve().parents[2]
TUNE = "jobs/tune.py"
PATIENCE_S = 900  # for a sweep: a minute on a quiet machine
BOX = Box((0, 0, 0), (16, 128, 128))
# Of the four trials of the grid, the two of eight blocks cannot halve the tiles so often.
SPACE = {"network.learning_rate": {"grid": [0.01, 0.003]}, "network.n_blocks": {"grid": [2, 8]}}


@dataclass
class Swept:
    """A sweep that was killed and gone on with. at_kill: its files, and the cutouts that had been asked for by then."""

    folder: Path
    arguments: list[str]
    boss: list[str]
    at_kill: dict[str, Any]
    cutouts: Callable[[], int]
    killed: Any
    job: Any

    def trials(self) -> list[dict[str, Any]]:
        rows = json.loads((self.folder / "leaderboard.json").read_text())["trials"]
        return sorted(rows, key=lambda row: row["number"])


@pytest.fixture(scope="module")
def volumes(boss_server_class, tmp_path_factory) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """Flags that name the phantom as volumes on a Boss of our own, and how many cutouts it was asked for."""
    server = boss_server_class()
    for channel in ("em", "membrane"):
        voxels = open_volume(f"phantom://{channel}?shape=16,128,128&seed=7").read(BOX)
        server.add(f"lab/phantom/{channel}", voxels)
    file = tmp_path_factory.mktemp("boss") / "boss.json"
    file.write_text(json.dumps(server.options))
    uris = ["--image", "bossdb://lab/phantom/em", "--annotation", "bossdb://lab/phantom/membrane"]
    yield [*uris, "--boss", str(file)], lambda: len(server.cutouts)
    server.close()


def tune_arguments(tiny: list[str], space: dict, folder: Path, *more: str) -> list[str]:
    (folder / "space.json").write_text(json.dumps(space))
    networks = ["--networks", tiny[3]]
    return [*tiny[:2], *networks, "--space", str(folder / "space.json"), "--storage", str(folder), *more]


def until(true: Callable[[], Any], job: Any, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, job.out + job.err
        assert job.process.poll() is None, job.out + job.err
        time.sleep(0.05)


@pytest.fixture(scope="module")
def swept(start, cluster, tiny, volumes, tmp_path_factory) -> Swept:
    """The grid of four trials, its driver killed while the third trains, and the same command once more."""
    storage = tmp_path_factory.mktemp("sweeps")
    boss, cutouts = volumes
    more = ["--search", "grid", "--scheduler", "none", "--name", "swept", "--keep", "1", *boss]
    arguments = tune_arguments(tiny, SPACE, storage, *more)
    folder = storage / "swept"
    first = start(*arguments, script=TUNE, cluster=cluster)
    third = folder / "trials/0002/history.csv"
    until(lambda: third.exists() and len(third.read_text().splitlines()) > 1, first)
    at_kill = {"cutouts": cutouts()}
    first.send(signal.SIGKILL)
    first.wait()
    done = folder / "trials/0000"
    at_kill["done"] = {path: path.stat().st_mtime_ns for path in done.rglob("*.csv")}
    job = start(*arguments, script=TUNE, cluster=cluster).wait(PATIENCE_S)
    assert job.code == 0, job.out + job.err
    return Swept(folder, arguments, boss, at_kill, cutouts, first, job)


def test_a_killed_sweep_goes_on_and_nothing_is_done_twice(swept):
    assert "trial 0000 finished" in swept.killed.out
    assert "trial 0000" not in swept.job.out.split("the best of")[0]
    assert {path: path.stat().st_mtime_ns for path in (swept.folder / "trials/0000").rglob("*.csv")} == swept.at_kill[
        "done"
    ]
    assert "trial 0002 goes on after epoch" in swept.job.out
    trials = swept.trials()
    assert [(row["state"], row["epochs"]) for row in trials] == [
        *(("finished", 4), ("failed", 0), ("finished", 4), ("failed", 0))
    ]
    assert [row["values"]["network.learning_rate"] for row in trials] == [0.01, 0.01, 0.003, 0.003]
    rows = list(csv.DictReader((swept.folder / "trials/0002/history.csv").open()))
    assert [row["epoch"] for row in rows] == list("1234")


def test_a_trial_that_cannot_be_trained_says_why_and_the_sweep_goes_on(swept):
    assert all("cannot be pooled" in row["why"] for row in swept.trials() if row["state"] == "failed")
    assert "trial 0001 failed: network.n_blocks 8, task.volume_z 1, task.tile_size [64, 48]" in swept.killed.out
    assert swept.job.err == ""
    assert not [line for line in swept.job.lines if re.search(r"ray::|\(pid|WARNING|INFO|Warning|details|─", line)]


def test_the_volume_is_fetched_once_for_all_trials(swept):
    assert swept.at_kill["cutouts"] > 0
    assert swept.cutouts() == swept.at_kill["cutouts"]


def test_a_sweep_leaves_the_files_of_the_contract(swept):
    found = {str(path.relative_to(swept.folder)) for path in swept.folder.rglob("*") if path.is_file()}
    top = {name for name in found if "/" not in name}
    assert top == {"settings.json", "leaderboard.csv", "leaderboard.json", "best.json", "index.html"}
    assert {
        "trials/0000/history.csv",
        "trials/0002/history.csv",
        "best/checkpoint/best.pt",
        "best/metrics.json",
    } <= found
    assert [name for name in found if name.startswith("trials/0000") and "tfevents" in name]
    assert swept.job.lines[0] == swept.job.lines[-1] == str(swept.folder)


def test_only_the_best_keeps_its_weights_and_best_is_a_copy_of_it(swept):
    best = min(swept.trials(), key=lambda row: row["rank"])
    kept = {path.parts[-3] for path in swept.folder.glob("trials/*/checkpoint/best.pt")}
    assert kept == {best["id"]}
    own, copy = (swept.folder / name / "checkpoint/best.pt" for name in (f"trials/{best['id']}", "best"))
    assert own.read_bytes() == copy.read_bytes()
    rows = list(csv.DictReader((swept.folder / f"trials/{best['id']}/history.csv").open()))
    assert best["score"] == pytest.approx(max(float(row["val.average_precision"]) for row in rows))


def test_a_finished_sweep_is_refused(swept, start, cluster):
    again = start(*swept.arguments, script=TUNE, cluster=cluster).wait()
    assert again.code == 2
    assert "all 4 combinations of its space have been tried" in again.err


def test_the_winner_is_trained_again_to_its_score(swept, start, cluster, tmp_path):
    config = str(swept.folder / "best.json")
    boss = swept.boss[swept.boss.index("--boss") :]
    job = start("--config", config, "--storage", tmp_path, "--name", "again", *boss, cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    best = min(swept.trials(), key=lambda row: row["rank"])
    found = json.loads((tmp_path / "again/metrics.json").read_text())["val"]["average_precision"]
    assert found == pytest.approx(best["score"], abs=1e-3)


def test_segmentation_takes_the_best(swept, start, cluster, tmp_path):
    arguments = ["--weights", swept.folder / "best", "--output", tmp_path / "out.zarr", "--box", "11:13,:,:"]
    boss = swept.boss[swept.boss.index("--boss") :]
    job = start(*arguments, *boss, script="jobs/segment.py", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    assert json.loads((tmp_path / "out.zarr.progress.json").read_text())["state"] == "done"


def test_a_sweep_of_which_no_trial_finished_has_failed(start, cluster, tiny, tmp_path):
    space = {"network.n_blocks": {"choice": [7, 8]}}
    arguments = tune_arguments(tiny, space, tmp_path, "--name", "none", "--search", "random")
    job = start(*arguments, script=TUNE, cluster=cluster).wait()
    assert job.code == 1, job.out + job.err
    assert "none of the 2 trials finished; the first said: network.n_blocks" in job.err
    assert "Traceback" not in job.err
    assert (tmp_path / "none/index.html").exists()


def test_more_than_the_cluster_has_is_refused_with_the_numbers(start, cluster, tiny, tmp_path):
    arguments = tune_arguments(tiny, SPACE, tmp_path, "--search", "grid", "--concurrent", "4", "--num-workers", "3")
    job = start(*arguments, script=TUNE, cluster=cluster).wait()
    assert job.code == 2, job.out + job.err
    assert "12 workers of 4 trials and their reading need 7 CPUs, the cluster has 4" in job.err
    assert "--concurrent" in job.err
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"network.learning_rat": {"choice": [1]}},
            "no setting network.learning_rat; did you mean network.learning_rate?",
        ),
        ({"network.ema": {"choise": [0.9]}}, "did you mean choice?"),
    ],
)
def test_a_space_with_mistakes_is_refused_before_anything_starts(clean_env, tiny, tmp_path, space, words):
    command = [sys.executable, str(ROOT / TUNE), *tune_arguments(tiny, space, tmp_path)]
    found = subprocess.run(command, cwd=tmp_path, env=clean_env, capture_output=True, text=True, timeout=240)
    assert found.returncode == 2
    assert f"error: {tmp_path / 'space.json'}: " in found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


def test_help_comes_at_once_and_imports_nothing_heavy(tmp_path):
    code = (
        "import runpy, sys, time\n"
        f"sys.argv = [{str(ROOT / TUNE)!r}, '--help']\n"
        "start = time.perf_counter()\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'ray', 'numpy', 'pydantic', 'optuna'} & sys.modules.keys()))\n"
        "print(time.perf_counter() - start)"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        for _ in range(3)
    ]
    assert "what to search:" in found[0].stdout
    assert found[0].stdout.splitlines()[-2] == "HEAVY []"
    assert min(float(each.stdout.splitlines()[-1]) for each in found) < 1


def trials_ended(job: Any) -> list[str]:
    """The ids of the trials whose end a job told."""
    found = [re.match(r"trial (\d+) (finished|stopped|failed)", line) for line in job.lines]
    return [match[1] for match in found if match]


@pytest.mark.faults
@pytest.mark.parametrize("storage", ["disk", "s3"])
def test_kills_at_any_moment_lose_nothing(start, cluster, tiny, tmp_path, storage):
    place = str(tmp_path) if storage == "disk" else "s3://lab/sweeps"
    space = {"network.learning_rate": {"loguniform": [1e-4, 1e-1]}, "network.loss": {"choice": ["focal", "dice_ce"]}}
    more = ["--search", "random", "--samples", "6", "--name", "killed", "--storage", place, "--concurrent", "2"]
    arguments = [*tune_arguments(tiny, space, tmp_path), *more]
    ended: list[str] = []
    for _ in range(5):
        job = start(*arguments, script=TUNE, cluster=cluster)
        time.sleep(random.uniform(5, 40))
        if job.process.poll() is None:
            job.send(signal.SIGKILL)
        ended += trials_ended(job.wait())
    last = start(*arguments, script=TUNE, cluster=cluster).wait(PATIENCE_S)
    assert last.code == 0 or "is finished" in last.err, last.out + last.err
    ended += trials_ended(last)
    assert len(ended) == len(set(ended)), ended
    again = start(*arguments, script=TUNE, cluster=cluster).wait()
    assert "6 trials have been made" in again.err


def trial_processes(session: int) -> set[int]:
    """The processes of a cluster in which Ray Tune runs trials."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_text()
            if int(fields[3]) == session and name.startswith(("ray::ImplicitFunc", "ray::trial")):
                found.add(int(folder.name))
    return found


@pytest.mark.faults
def test_a_trial_whose_process_is_killed_has_failed_and_the_sweep_goes_on(start, cluster, tiny, tmp_path):
    known = trial_processes(cluster.session)
    space = {"network.seed": {"grid": [0, 1]}}
    arguments = tune_arguments(tiny, space, tmp_path, "--search", "grid", "--scheduler", "none", "--name", "killed")
    job = start(*arguments, script=TUNE, cluster=cluster)
    until((tmp_path / "killed/trials/0000/history.csv").exists, job)
    (process,) = trial_processes(cluster.session) - known
    os.kill(process, signal.SIGKILL)
    assert job.wait(PATIENCE_S).code == 0, job.out + job.err
    rows = json.loads((tmp_path / "killed/leaderboard.json").read_text())["trials"]
    assert {row["id"]: row["state"] for row in rows} == {"0000": "failed", "0001": "finished"}
    assert "its process died" in next(row["why"] for row in rows if row["id"] == "0000")


@pytest.mark.faults
def test_a_sweep_whose_time_is_up_goes_on_with_more_of_it(start, cluster, tiny, tmp_path):
    space = {"network.learning_rate": {"loguniform": [1e-4, 1e-1]}}
    more = ["--search", "random", "--scheduler", "none", "--name", "late", "--set", "network.epochs=60"]
    arguments = tune_arguments(tiny, space, tmp_path, *more)
    first = start(*arguments, "--hours", "0.01", script=TUNE, cluster=cluster).wait()
    rows = json.loads((tmp_path / "late/leaderboard.json").read_text())["trials"]
    late = [row for row in rows if row["state"] == "out of time"]
    assert late, first.out + first.err
    assert "its 0.01 hours are over" in start(*arguments, "--hours", "0.01", script=TUNE, cluster=cluster).wait().err
    second = start(*arguments, "--hours", "0.03", script=TUNE, cluster=cluster).wait()
    assert f"trial {late[0]['id']} goes on after epoch {late[0]['epochs']}" in second.out, second.out + second.err


@pytest.mark.faults
def test_a_sweep_is_submitted_as_a_job(cluster, clean_env, tiny, tmp_path):
    (tmp_path / "space.json").write_text(json.dumps({"network.seed": {"grid": [0]}}))
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard]
    command += ["--working-dir", str(ROOT), "--", "python", TUNE, *tiny[:2], "--networks", tiny[3], "--name", "job"]
    command += ["--space", str(tmp_path / "space.json"), "--search", "grid", "--storage", str(tmp_path)]
    sent = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=300)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert (tmp_path / "job/best/checkpoint/best.pt").exists()
