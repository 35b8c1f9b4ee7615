"""Helpers give way, and those that work do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has idle tasks")
NAMES = {
    "ray::TrainController.run": os.SCHED_IDLE,
    "ray::RayTrainWorker": os.SCHED_OTHER,
    "ray::MapBatches(_TileReader)": os.SCHED_OTHER,
    "ray::IDLE": os.SCHED_OTHER,
    "/somewhere/raylet/raylet": os.SCHED_OTHER,
    "/somewhere/gcs/gcs_server": os.SCHED_OTHER,
    "python": os.SCHED_IDLE,
}
# What Ray starts an actor as, before it gives it its name.
STARTING = f"{sys.executable} -c 'import time; time.sleep(60)' /somewhere/ray/_private/workers/default_worker.py 60"


def test_helpers_give_way_and_the_others_do_not():
    # A shell between them and us: what children start counts too.
    script = "; ".join(f"(exec -a '{name}' sleep 60) & echo $!" for name in NAMES)
    with subprocess.Popen(["bash", "-c", f"{script}; wait"], stdout=subprocess.PIPE, text=True) as shell:
        pids = [int(shell.stdout.readline()) for _ in NAMES]
        try:
            wait_for_names(pids)
            assert lower_helper_priority() >= 3
            assert {name: os.sched_getscheduler(pid) for name, pid in zip(NAMES, pids, strict=True)} == NAMES
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
        finally:
            for pid in pids:
                os.kill(pid, 9)


def test_what_may_become_an_actor_does_not_give_way():
    with subprocess.Popen(["bash", "-c", f"{STARTING} & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        pid = int(shell.stdout.readline())
        try:
            wait_for_names([pid])
            lower_helper_priority()
            assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        finally:
            os.kill(pid, 9)


def wait_for_names(pids: list[int]) -> None:
    """Until each is what it was started as."""
    for pid in pids:
        while b"60" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            pass
