"""Process priority: Ray's helpers become idle tasks, processes that work do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has idle tasks")
SCHEDULERS = {
    "ray::TrainController.run": os.SCHED_IDLE,
    "ray::RayTrainWorker": os.SCHED_OTHER,
    "ray::MapBatches(_TileReader)": os.SCHED_OTHER,
    "ray::Worker.work": os.SCHED_OTHER,
    "ray::IDLE": os.SCHED_OTHER,
    "/somewhere/raylet/raylet": os.SCHED_OTHER,
    "/somewhere/gcs/gcs_server": os.SCHED_OTHER,
    "python": os.SCHED_IDLE,
}


class Worker:
    """An actor that works."""


# The command of an actor's process, before Ray gives it the actor's name.
STARTING = f"{sys.executable} -c 'import time; time.sleep(60)' /somewhere/ray/_private/workers/default_worker.py 60"


def test_helpers_become_idle_tasks_and_other_processes_do_not():
    # The processes are children of a shell, so that grandchildren are found too.
    script = "; ".join(f"(exec -a '{name}' sleep 60) & echo $!" for name in SCHEDULERS)
    with subprocess.Popen(["bash", "-c", f"{script}; wait"], stdout=subprocess.PIPE, text=True) as shell:
        pids = [int(shell.stdout.readline()) for _ in SCHEDULERS]
        try:
            wait_for_commands(pids)
            assert lower_helper_priority(actors=[Worker]) >= 3
            schedulers = {name: os.sched_getscheduler(pid) for name, pid in zip(SCHEDULERS, pids, strict=True)}
            assert schedulers == SCHEDULERS
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
        finally:
            for pid in pids:
                os.kill(pid, 9)


def test_a_process_that_may_become_an_actor_keeps_its_priority():
    with subprocess.Popen(["bash", "-c", f"{STARTING} & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        pid = int(shell.stdout.readline())
        try:
            wait_for_commands([pid])
            lower_helper_priority()
            assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        finally:
            os.kill(pid, 9)


def wait_for_commands(pids: list[int]) -> None:
    """Wait until each process runs its own command instead of the shell's."""
    for pid in pids:
        while b"60" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            pass
