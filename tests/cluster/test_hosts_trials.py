"""Long tests on several hosts: each fault hits each kind of job; `make test-cluster` prints a table of the results."""

import itertools
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

DISCONNECTED_S = 10.0  # too short for Ray to declare the node dead
TRIAL_TIMEOUT_S = 500.0
SAMPLES = 4
BLOCK_S = 0.2  # of a block: the segmentation still runs when the loss of a host is detected
JOBS = Path(__file__).resolve().parents[2] / "jobs"
KINDS = [kind for kind in ("segment", "train", "tune") if (JOBS / f"{kind}.py").exists()]
SPACE = {"network.learning_rate": {"grid": [0.001, 0.003, 0.01, 0.03]}}


@dataclass
class JobUnderTest:
    """A job that a fault hits: its command, its progress, the progress at the fault, and a check of its result."""

    kind: str
    command: list[Any]
    progress: Callable[[], int]
    fault_at: int
    is_correct: Callable[[], bool]


@pytest.fixture(scope="module")
def print_row(print_line):
    """Print the header of the table; return a function that prints a row."""
    print_line(f"\n{'fault':<28} {'job':<8} {'detected after':>14} {'recovered after':>15} {'result equal':>12}")
    return lambda *row: print_line("{:<28} {:<8} {:>14} {:>15} {:>12}".format(*row))


@pytest.fixture(scope="module")
def print_line(request):
    """Return a function that prints a line although pytest captures the output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def print_line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)

    return print_line


@pytest.fixture
def make_job(cluster, train_command, segment_command, expected_output, tools):
    """Return `make_job(kind, name)`, which describes a job that has not been submitted."""
    (cluster.working_dir / "space.json").write_text(json.dumps(SPACE))

    def make(kind: str, name: str) -> JobUnderTest:
        if kind == "segment":
            out = cluster.shared / f"{name}.zarr"
            command = [*segment_command, "--output", out]
            num_blocks, is_correct = lambda: len(tools.records(out)), lambda: tools.content_of(out) == expected_output
            return JobUnderTest(kind, command, num_blocks, 40, is_correct)
        run = cluster.shared / "runs" / name
        if kind == "train":
            num_epochs, is_correct = lambda: len(tools.read_history(run)), lambda: is_complete_run(run, tools)
            return JobUnderTest(kind, [*train_command, "--name", name], num_epochs, 1, is_correct)
        common = [each for each in train_command[1:] if each not in ("--network", "tiny.json", "--num-workers", "2")]
        command = ["jobs/tune.py", *common, "--networks", "tiny.json", "--space", "space.json", "--search", "grid"]
        command += ["--scheduler", "none", "--concurrent", "2", "--samples", str(SAMPLES), "--name", name]
        num_epochs, is_correct = lambda: count_trial_epochs(run, tools), lambda: is_complete_sweep(run, tools)
        return JobUnderTest(kind, command, num_epochs, 2, is_correct)

    return make


def is_complete_run(run: Path, tools) -> bool:
    epochs = [int(row["epoch"]) for row in tools.read_history(run)]
    num_epochs = json.loads((run / "metrics.json").read_text())["epochs"]
    return epochs == list(range(1, tools.epochs + 1)) and num_epochs == tools.epochs


def count_trial_epochs(run: Path, tools) -> int:
    return sum(len(tools.read_history(trial)) for trial in (run / "trials").glob("*"))


def is_complete_sweep(run: Path, tools) -> bool:
    """Return whether every trial was finished exactly once, and the best one has weights."""
    trials = [[int(row["epoch"]) for row in tools.read_history(trial)] for trial in sorted((run / "trials").glob("*"))]
    return trials == [list(range(1, tools.epochs + 1))] * SAMPLES and (run / "best" / "tiny_membrane.pt").exists()


def inject(fault: str, cluster, job, kind: str) -> Callable[[], bool] | None:
    """Cause the fault; return the condition by which Ray has detected it, or None if it need not detect it."""
    if fault == "raylet killed":
        (raylet,) = cluster.processes("bert", "raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
    elif fault == "driver killed":
        for pid in cluster.processes("head", f"python jobs/{kind}.py"):
            os.kill(pid, signal.SIGKILL)
        return lambda: job.status == "FAILED"
    elif fault == "network cut for 10 s":
        cluster.disconnect("bert")
        time.sleep(DISCONNECTED_S)
        cluster.reconnect("bert")
        return None
    elif fault == "network cut for good":
        cluster.disconnect("bert")
    else:
        cluster.power_off("bert")
        cluster.start(cluster.spare, "--num-cpus", "2")
    return lambda: "bert" not in cluster.alive_hosts()


def restore(cluster, tools) -> None:
    """Return the cluster to its initial state."""
    cluster.reconnect("bert")
    cluster.power_off("bert")
    cluster.power_off(cluster.spare)
    cluster.start("bert")
    tools.wait_until(lambda: cluster.alive_hosts() == {"head", "anna", "bert"}, 120, "bert is back")


FAULTS = ["raylet killed", "network cut for 10 s", "network cut for good", "driver killed", "host lost, another joined"]


def choose_trials() -> list[tuple[str, str]]:
    """Return pairs of a fault and a kind of job: as many as KASTHURI_FAULT_TRIALS says, different ones first."""
    trials = list(itertools.product(FAULTS, KINDS))
    trials.sort(key=lambda trial: (FAULTS.index(trial[0]) - KINDS.index(trial[1])) % len(KINDS))
    return trials[: int(os.environ.get("KASTHURI_FAULT_TRIALS", len(trials)))]


@pytest.mark.cluster
@pytest.mark.parametrize(("fault", "kind"), choose_trials())
def test_a_job_survives_a_fault_with_the_expected_result(fault, kind, cluster, make_job, print_row, tools):
    tested = make_job(kind, f"{kind}_{FAULTS.index(fault)}")
    job = tools.submit_on_all_hosts(cluster, *tested.command) if kind == "segment" else cluster.submit(*tested.command)
    try:
        job.wait_until(lambda: tested.progress() >= tested.fault_at, "the progress at which the fault is injected")
        start = time.monotonic()
        is_detected = inject(fault, cluster, job, kind)
        if fault == "driver killed":
            tools.wait_until(is_detected, 120, "the end of the job is detected")
            detected = time.monotonic() - start
            job = cluster.submit(*tested.command)
            _, recovered = measure_recovery(tested, job, None)
        else:
            detected, recovered = measure_recovery(tested, job, is_detected, start)
        status = job.wait(TRIAL_TIMEOUT_S)
        correct = status == "SUCCEEDED" and tested.is_correct()
        delay = "-" if detected is None else f"{detected:.1f} s"
        print_row(fault, kind, delay, f"{recovered:.1f} s", "yes" if correct else "NO")
        assert status == "SUCCEEDED", job.log
        assert correct, job.log
    finally:
        restore(cluster, tools)


def measure_recovery(
    tested: JobUnderTest, job, is_detected: Callable[[], bool] | None, start: float | None = None
) -> tuple[float | None, float]:
    """Return the seconds from `start` (now) until the fault was detected, and until the next result or the job's end.

    is_detected: None if there is nothing to detect. Results before the detection do not count: other workers may have
    been about to finish them at the fault.
    """
    start = start or time.monotonic()
    before, detected, recovered = tested.progress(), None, None
    while recovered is None or (is_detected is not None and detected is None):
        now = time.monotonic() - start
        assert now < TRIAL_TIMEOUT_S, job.log
        if detected is None:
            if is_detected is not None and is_detected():
                detected = now
            elif is_detected is not None:
                before = max(before, tested.progress())
        ended = job.status not in ("PENDING", "RUNNING")
        waiting = is_detected is not None and detected is None
        if recovered is None and (ended or (not waiting and tested.progress() > before)):
            recovered = now
        time.sleep(0.2)
    return detected, recovered


@pytest.mark.cluster
def test_a_training_resumes_on_a_new_cluster_after_the_head_was_lost(cluster, make_job, print_row, tools):
    tested = make_job("train", "headless")
    job = cluster.submit(*tested.command)
    job.wait_until(lambda: tested.progress() >= 1, "the first epoch")
    cluster.power_off("head")
    start = time.monotonic()
    # Nodes without a head end by themselves, so that they do not cost money.
    tools.wait_until(lambda: not cluster.processes("anna") and not cluster.processes("bert"), 180, "the nodes end")
    detected, num_epochs = time.monotonic() - start, tested.progress()
    for name in ("anna", "bert"):
        cluster.power_off(name)
    shutil.rmtree(cluster.session_folder("head"), ignore_errors=True)  # the new head has no state of the old one
    cluster.start("head")
    tools.start_workers(cluster)
    assert cluster.request("/api/jobs/") == []
    start = time.monotonic()
    resumed = cluster.submit(*tested.command)
    resumed.wait_until(lambda: tested.progress() > num_epochs, "the next epoch")
    recovered = time.monotonic() - start
    status = resumed.wait(TRIAL_TIMEOUT_S)
    correct = "yes" if tested.is_correct() else "NO"
    print_row("head lost, new cluster", "train", f"{detected:.1f} s", f"{recovered:.1f} s", correct)
    assert status == "SUCCEEDED", resumed.log
    assert tested.is_correct()
    assert "epoch 1  " not in resumed.log


# Replaces srun: runs the command on two hosts with separate processes, and ends with the worse exit code.
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
def test_slurm_runs_a_job_on_all_its_nodes(cluster, tmp_path, print_row):
    """Run slurm.sh with Ray's symmetric-run on two hosts without Ray."""
    if cluster.is_substitute:
        pytest.skip("symmetric-run stops every Ray on its machine, which these hosts share (root on Linux)")
    head, other = cluster.hosts[cluster.spare], cluster.hosts["outside"]
    tools = {
        "srun": SRUN.format(hosts=f"{head.namespace} {other.namespace}"),
        "scontrol": f"#!/bin/bash\necho {head.name}\necho {other.name}\n",
        "getent": f"#!/bin/bash\necho {head.address} STREAM\n",
    }
    for name, script in tools.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    env = cluster.env(head, token=False)
    env |= {
        "PATH": f"{tmp_path}:{env['PATH']}",
        "RAY_TMPDIR": str(cluster.session_folder(cluster.spare)),
        "SLURM_JOB_ID": "7",
    }
    env |= {"SLURM_SUBMIT_DIR": str(cluster.folder), "SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2"}
    script = cluster.root / "cluster" / "slurm.sh"
    job = ["python", cluster.root / "jobs/check.py", "--storage", cluster.shared / "slurm"]
    job += ["--image", "none", "--cache", "none"]
    process = subprocess.run(
        ["bash", script, *job], env=env, cwd=cluster.folder, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "2 nodes" in process.stdout
    assert "token, private addresses" in process.stdout
    assert "\nfit\n" in process.stdout
    assert not list(cluster.folder.glob(".ray-*"))
    print_row("none, by symmetric-run", "check", "-", "-", "yes")
