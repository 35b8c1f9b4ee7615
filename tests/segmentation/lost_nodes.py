"""Run a pool on a cluster of several raylets on this machine, and kill some of them: prints a line of JSON per trial.

    python lost_nodes.py FOLDER TRIALS SEED [raylets|actors|cuts]

Run as a script of its own, since such a cluster lasts as long as its process. With `actors`, actors are killed too;
with `cuts` a node stops answering, as it does when its network is cut, and what runs there is frozen.
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

from kasthuri_ray.segmentation import actor_scaling
from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_pool import ActorPool

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
        if block == 7:  # the bad block: it kills its actor every time
            os._exit(1)
        return {}


def main(folder, trials, seed, kind):
    rng = random.Random(seed)
    actor_scaling.REPORT_AFTER_S = 1.0
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes = [cluster.add_node(**SMALL) for _ in range(1 if kind == "raylets" else 2)]
    for trial in range(trials):
        print(json.dumps(run(cluster, nodes, Path(folder) / f"log{trial}", rng, kind)), flush=True)


def run(cluster, nodes, log, rng, kind):
    """Run one trial. The event loop of the pool calls `tick` in this thread, where nodes may be added."""
    strikes, lines, pids, frozen = [], [], [], []
    remote = ray.remote(Worker)
    strike_at = [rng.randint(3, BLOCKS // 2) for _ in range(1 + rng.randrange(2) if kind == "actors" else 1)]
    replace_at = []

    def tick(progress):
        if replace_at and time.monotonic() > replace_at[0]:
            replace_at.clear()
            nodes.append(cluster.add_node(**SMALL))
        if strike_at and progress.done >= min(strike_at) and progress.in_flight and nodes:
            strike_at.remove(min(strike_at))
            target = rng.choice(["raylet", "actor"]) if kind == "actors" else kind.rstrip("s")
            strikes.append({"target": target, "done": progress.done, "pending": BLOCKS - progress.done})
            if target == "actor":
                kill_last(pids)
            elif target == "cut":
                frozen.extend(freeze(nodes.pop()))
            else:
                nodes.pop(rng.randrange(len(nodes))).kill_raylet(check_alive=False)
                replace_at.append(time.monotonic() + rng.uniform(0, 6))

    begin = time.monotonic()
    with ActorPool(
        lambda options: remote.options(**options).remote(str(log), 0.2 if kind == "raylets" else 0.5),
        ActorPlan(2, 4, 1.0, in_flight=IN_FLIGHT),
        lines.append,
        timeouts=PoolTimeouts(death_check_s=5.0, placement_s=120.0),
        on_ready=lambda machine: pids.append(machine["pid"]),
    ) as pool:
        outcome = pool.run("s0", range(BLOCKS), tick=tick)
    for pid in frozen:
        os.kill(pid, signal.SIGKILL)
    if replace_at or kind == "cuts":
        nodes.append(cluster.add_node(**SMALL))
    started = [int(line) for line in log.read_text().split()]
    return {
        "strikes": strikes,
        "done": outcome.num_done,
        "set_aside": [each.block for each in outcome.set_aside],
        "num_redone": len(started) - BLOCKS,
        "all_started": sorted(set(started)) == list(range(BLOCKS)),
        "seconds": round(time.monotonic() - begin, 1),
        "lines": lines,
    }


def freeze(node):
    """Stop a raylet and all processes that it started; return their ids."""
    pids = [node.all_processes["raylet"][0].process.pid]
    for pid in pids:  # grows during the loop
        os.kill(pid, signal.SIGSTOP)
        pids.extend(children(pid))
    return pids


def children(parent):
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            pids.append(int(stat.parent.name))
    return pids


def kill_last(pids):
    """Kill the process that was ready last among those that are alive."""
    for pid in reversed(pids):
        try:
            os.kill(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *(sys.argv[4:] or ["raylets"]))
    os._exit(0)
