"""Trials on a cluster of several raylets on this machine, of which some are killed: prints a line of JSON for each.

    python lost_nodes.py FOLDER TRIALS SEED [raylets|actors|cuts]

Run as a script of its own, since such a cluster lasts as long as its process. With `actors`, actors are killed, too;
with `cuts` a node falls silent, as it does when its network is cut, and what runs there is frozen.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS_SKIP_REGEX=".")
os.environ.pop("RAY_ADDRESS", None)

import ray
from ray.cluster_utils import Cluster

from kasthuri_ray.segmentation import actors
from kasthuri_ray.segmentation.actor_pool import ActorPool
from kasthuri_ray.segmentation.actors import ActorPlan, PoolTimeouts

BLOCKS, IN_FLIGHT = 80, 2
SMALL = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}


class Worker:
    def __init__(self, log, seconds):
        self.log, self.seconds = log, seconds

    def ready(self):
        return {"pid": os.getpid()}

    def work(self, phase, block):
        with open(self.log, "a") as log:
            log.write(f"{block}\n")
        time.sleep(self.seconds)
        if block == 7:  # the one that is bad: it kills its actor every time
            os._exit(1)
        return {}


def main(folder, trials, seed, kind):
    rng = random.Random(seed)
    actors.REPORT_AFTER_S = 1.0
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes = [cluster.add_node(**SMALL) for _ in range(1 if kind == "raylets" else 2)]
    for trial in range(trials):
        print(json.dumps(run(cluster, nodes, Path(folder) / f"log{trial}", rng, kind)), flush=True)


def run(cluster, nodes, log, rng, kind):
    """One trial. The loop of the pool calls `strike` in this thread, which is where nodes may be added."""
    struck, said, pids, frozen = [], [], [], []
    remote = ray.remote(Worker)
    at = [rng.randint(3, BLOCKS // 2) for _ in range(1 + rng.randrange(2) if kind == "actors" else 1)]
    back_at = []

    def strike(progress):
        if back_at and time.monotonic() > back_at[0]:
            back_at.clear()
            nodes.append(cluster.add_node(**SMALL))
        if at and progress.done >= min(at) and progress.in_flight and nodes:
            at.remove(min(at))
            what = rng.choice(["raylet", "actor"]) if kind == "actors" else kind.rstrip("s")
            struck.append({"what": what, "done": progress.done, "pending": BLOCKS - progress.done})
            if what == "actor":
                kill_one(pids)
            elif what == "cut":
                frozen.extend(freeze(nodes.pop()))
            else:
                nodes.pop(rng.randrange(len(nodes))).kill_raylet(check_alive=False)
                back_at.append(time.monotonic() + rng.uniform(0, 6))

    crew = ActorPlan(2, 4, 1.0, in_flight=IN_FLIGHT)
    begin = time.monotonic()
    with ActorPool(
        lambda options: remote.options(**options).remote(str(log), 0.2 if kind == "raylets" else 0.5),
        crew,
        said.append,
        patience=PoolTimeouts(verdict=5.0, cluster=120.0),
        on_ready=lambda about: pids.append(about["pid"]),
    ) as pool:
        outcome = pool.run("s0", range(BLOCKS), tick=strike)
    for pid in frozen:
        os.kill(pid, signal.SIGKILL)
    if back_at or kind == "cuts":
        nodes.append(cluster.add_node(**SMALL))
    begun = [int(line) for line in log.read_text().split()]
    return {
        "struck": struck,
        "done": outcome.done,
        "set_aside": [aside.block for aside in outcome.set_aside],
        "begun_again": len(begun) - BLOCKS,
        "all_begun": sorted(set(begun)) == list(range(BLOCKS)),
        "seconds": round(time.monotonic() - begin, 1),
        "said": said,
    }


def freeze(node):
    """Stop a raylet and all that it started; gives their ids."""
    pids = [node.all_processes["raylet"][0].process.pid]
    for pid in pids:  # grows while it is gone through
        os.kill(pid, signal.SIGSTOP)
        pids.extend(children(pid))
    return pids


def children(parent):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def kill_one(pids):
    for pid in reversed(pids):
        try:
            os.kill(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *(sys.argv[4:] or ["raylets"]))
    os._exit(0)
