"""The long trials on several hosts: each fault meets each job at work; `make test-cluster` prints what came of it."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CUT_S = 10.0  # shorter than what makes a node count as dead
TRIAL_S = 500.0
SAMPLES = 4
BLOCK_S = 0.2  # that a block takes: the segmentation is still at work when the loss of a host is seen
JOBS = Path(__file__).resolve().parents[2] / "jobs"
KINDS = [kind for kind in ("segment", "train", "tune") if (JOBS / f"{kind}.py").exists()]
SPACE = {"network.learning_rate": {"grid": [0.001, 0.003, 0.01, 0.03]}}


@dataclass
class Work:
    """A job that is struck: its command, how far it is, when it is struck, and whether it left what it should."""

    kind: str
    command: list[Any]
    progress: Callable[[], int]
    strike_at: int
    is_right: Callable[[], bool]


@pytest.fixture(scope="module")
def rows(capfd_printer):
    """The table, row by row as it grows."""
    print_line = capfd_printer
    print_line(f"\n{'fault':<28} {'job':<8} {'seen after':>10} {'recovered after':>15} {'result equal':>12}")
    return lambda *row: print_line("{:<28} {:<8} {:>10} {:>15} {:>12}".format(*row))


@pytest.fixture(scope="module")
def capfd_printer(request):
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def print_line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)

    return print_line


@pytest.fixture
def works(lab, train, segment, whole, shop):
    """`works(kind, name)`: a job that has not begun."""
    (lab.work / "space.json").write_text(json.dumps(SPACE))

    def make(kind: str, name: str) -> Work:
        if kind == "segment":
            out = lab.shared / f"{name}.zarr"
            command = [*segment, "--output", out]
            return Work(kind, command, lambda: len(shop.records(out)), 40, lambda: shop.content_of(out) == whole)
        run = lab.shared / "runs" / name
        if kind == "train":
            return Work(kind, [*train, "--name", name], lambda: len(shop.history(run)), 1, lambda: whole_run(run, shop))
        common = [each for each in train[1:] if each not in ("--network", "tiny.json", "--num-workers", "2")]
        command = ["jobs/tune.py", *common, "--networks", "tiny.json", "--space", "space.json", "--search", "grid"]
        command += ["--scheduler", "none", "--concurrent", "2", "--samples", str(SAMPLES), "--name", name]
        return Work(kind, command, lambda: epochs_of_trials(run, shop), 2, lambda: whole_sweep(run, shop))

    return make


def whole_run(run: Path, shop) -> bool:
    epochs = [int(row["epoch"]) for row in shop.history(run)]
    told = json.loads((run / "metrics.json").read_text())["epochs"]
    return epochs == list(range(1, shop.epochs + 1)) and told == shop.epochs


def epochs_of_trials(run: Path, shop) -> int:
    return sum(len(shop.history(trial)) for trial in (run / "trials").glob("*"))


def whole_sweep(run: Path, shop) -> bool:
    """Every trial to its end, once, and the best is there to be used."""
    trials = [[int(row["epoch"]) for row in shop.history(trial)] for trial in sorted((run / "trials").glob("*"))]
    return trials == [list(range(1, shop.epochs + 1))] * SAMPLES and (run / "best" / "tiny_membrane.pt").exists()


def strike(fault: str, lab, job, kind: str) -> Callable[[], bool] | None:
    """Let the fault happen; gives what is true once Ray has seen it, None where it need not."""
    if fault == "raylet killed":
        (raylet,) = lab.processes("bert", "raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
    elif fault == "driver killed":
        for pid in lab.processes("head", f"python jobs/{kind}.py"):
            os.kill(pid, signal.SIGKILL)
        return lambda: job.status == "FAILED"
    elif fault == "network cut for 10 s":
        lab.cut("bert")
        time.sleep(CUT_S)
        lab.heal("bert")
        return None
    elif fault == "network cut for good":
        lab.cut("bert")
    else:
        lab.power_off("bert")
        lab.start(lab.spare, "--num-cpus", "2")
    return lambda: "bert" not in lab.living()


def restore(lab, shop) -> None:
    """The cluster as it was."""
    lab.heal("bert")
    lab.power_off("bert")
    lab.power_off(lab.spare)
    lab.start("bert")
    shop.wait_until(lambda: lab.living() == {"head", "anna", "bert"}, 120, "bert is back")


FAULTS = ["raylet killed", "network cut for 10 s", "network cut for good", "driver killed", "host lost, another came"]


@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_ends_well(fault, kind, lab, works, rows, shop):
    work = works(kind, f"{kind}_{FAULTS.index(fault)}")
    job = shop.begin_on_all(lab, *work.command) if kind == "segment" else lab.submit(*work.command)
    try:
        job.until(lambda: work.progress() >= work.strike_at, "the moment of the strike")
        begin = time.monotonic()
        sign = strike(fault, lab, job, kind)
        if fault == "driver killed":
            shop.wait_until(sign, 120, "the end of the job is seen")
            seen = time.monotonic() - begin
            job = lab.submit(*work.command)
            _, recovered = watch(work, job, None)
        else:
            seen, recovered = watch(work, job, sign, begin)
        status = job.wait(TRIAL_S)
        right = status == "SUCCEEDED" and work.is_right()
        rows(fault, kind, "-" if seen is None else f"{seen:.1f} s", f"{recovered:.1f} s", "yes" if right else "NO")
        assert status == "SUCCEEDED", job.log
        assert right, job.log
    finally:
        restore(lab, shop)


def watch(work: Work, job, sign: Callable[[], bool] | None, begin: float | None = None) -> tuple[float | None, float]:
    """Seconds from `begin` (now) until the loss was seen, and until the first result after that, or the job's end.

    sign: true once the loss is seen; None where there is none to see. What comes before that may be what the others
    still had in hand.
    """
    begin = begin or time.monotonic()
    before, seen, recovered = work.progress(), None, None
    while recovered is None or (sign is not None and seen is None):
        now = time.monotonic() - begin
        assert now < TRIAL_S, job.log
        if seen is None:
            if sign is not None and sign():
                seen = now
            elif sign is not None:
                before = max(before, work.progress())
        ended = job.status not in ("PENDING", "RUNNING")
        if recovered is None and (ended or ((sign is None or seen is not None) and work.progress() > before)):
            recovered = now
        time.sleep(0.2)
    return seen, recovered


@pytest.mark.cluster
def test_a_head_that_dies_loses_the_epoch_in_hand_and_the_list_of_jobs(lab, works, rows, shop):
    work = works("train", "headless")
    job = lab.submit(*work.command)
    job.until(lambda: work.progress() >= 1, "the first epoch")
    lab.power_off("head")
    begin = time.monotonic()
    # Nodes without a head end by themselves, so that nothing is paid for that nobody steers.
    shop.wait_until(lambda: not lab.processes("anna") and not lab.processes("bert"), 180, "the nodes end")
    ended, done = time.monotonic() - begin, work.progress()
    for name in ("anna", "bert"):
        lab.power_off(name)
    shutil.rmtree(lab.session("head"), ignore_errors=True)  # a new head knows nothing of the old
    lab.start("head")
    shop.start_workers(lab)
    assert lab.ask("/api/jobs/") == []
    begin = time.monotonic()
    again = lab.submit(*work.command)
    again.until(lambda: work.progress() > done, "the next epoch")
    recovered = time.monotonic() - begin
    status = again.wait(TRIAL_S)
    rows("head lost, cluster anew", "train", f"{ended:.1f} s", f"{recovered:.1f} s", "yes" if work.is_right() else "NO")
    assert status == "SUCCEEDED", again.log
    assert work.is_right()
    assert "epoch 1  " not in again.log


# Stands in for srun: the same on two hosts, which see nobody else's processes, to the worst end of both.
SRUN = """#!/bin/bash
while [ "$1" != ray ]; do shift; done
steps=()
for host in {hosts}; do
    ip netns exec "$host" unshare --uts --mount --pid --fork --kill-child=SIGKILL --mount-proc "$@" &
    steps+=($!)
done
worst=0
for step in "${{steps[@]}}"; do wait "$step" || worst=$?; done
exit "$worst"
"""


@pytest.mark.cluster
def test_slurm_runs_a_job_over_all_its_nodes(lab, tmp_path, rows):
    """The script itself, and Ray's symmetric-run, on two hosts that no Ray runs on."""
    if lab.is_substitute:
        pytest.skip("symmetric-run ends every Ray of its host, and these share one (root on Linux)")
    head, other = lab.hosts[lab.spare], lab.hosts["outside"]
    tools = {
        "srun": SRUN.format(hosts=f"{head.namespace} {other.namespace}"),
        "scontrol": f"#!/bin/bash\necho {head.name}\necho {other.name}\n",
        "getent": f"#!/bin/bash\necho {head.address} STREAM\n",
    }
    for name, script in tools.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    env = lab.env(head, token=False)
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "RAY_TMPDIR": str(lab.session(lab.spare)), "SLURM_JOB_ID": "7"}
    env |= {"SLURM_SUBMIT_DIR": str(lab.folder), "SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2"}
    script = lab.root / "cluster" / "slurm.sh"
    job = ["python", lab.root / "jobs/check.py", "--storage", lab.shared / "slurm"]
    job += ["--image", "none", "--cache", "none"]
    done = subprocess.run(["bash", script, *job], env=env, cwd=lab.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 nodes" in done.stdout
    assert "token, private addresses" in done.stdout
    assert "\nfit\n" in done.stdout
    assert not list(lab.folder.glob(".ray-*"))
    rows("none, by symmetric-run", "check", "-", "-", "yes")
