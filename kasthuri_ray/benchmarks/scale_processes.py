"""Parts of the benchmark of growth: segmentations of very many blocks, whose actors sleep in place of the network.

Scheduler, actors, ledger and the code that resumes are those of `jobs/segment.py`. `PartRunner` starts the parts as
`python -m kasthuri_ray.benchmarks.scale_processes PART GIVEN.json FOUND.json`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.pyramid import level_name
from kasthuri_ray.progress import Reporter
from kasthuri_ray.segmentation import segment as segmentation
from kasthuri_ray.segmentation.block_segmenter import BlockSegmenter
from kasthuri_ray.segmentation.block_worker import BlockWorker

SLEEP_S = 0.25  # of an actor, in place of the network: long enough that all of 50 actors are started and needed
GREY = 128  # what is written where voxels are written
CPUS_PER_ACTOR = 0.3  # logical: they sleep
NETWORK = "UNet_2D"


class SleepingSegmenter(BlockSegmenter):
    """Segmenter that sleeps, and reads and writes nothing."""

    def set_up(self) -> dict[str, Any]:
        return {"machine": ""}

    def segment(self, block: Box, write: Callable[[np.ndarray], bool]) -> tuple[dict[str, Any], bool]:
        time.sleep(SLEEP_S)
        return {}, False


class SleepingWriter(SleepingSegmenter):
    """Segmenter that sleeps, and writes blocks of one value."""

    def segment(self, block: Box, write: Callable[[np.ndarray], bool]) -> tuple[dict[str, Any], bool]:
        time.sleep(SLEEP_S)
        return {}, not write(np.full((self.job.classes - 1, *block.shape), GREY, np.uint8))


# The names of these classes begin with BlockWorker: by that `harness` knows the role of their processes.
class BlockWorkerThatSleeps(BlockWorker):
    """Worker that writes the ledger alone."""

    segmenter_class = SleepingSegmenter


class BlockWorkerThatWrites(BlockWorker):
    """Worker that writes voxels and the ledger."""

    segmenter_class = SleepingWriter


class SamplingReporter(Reporter):
    """Reporter that writes down, about once a second, the blocks that are done, CPU time and memory of this process.

    Parameters
    ----------
    samples : str
        File of JSON lines, which is appended to.
    kill_at : int or None
        Blocks after which this process is killed.
    """

    def __init__(self, samples: str, kill_at: int | None = None) -> None:
        super().__init__()
        self.samples, self.kill_at = Path(samples), kill_at
        self.connected_at: float | None = None

    def print_result(self, text: str) -> None:
        """Note when Ray was connected: the first result is printed then."""
        self.connected_at = self.connected_at or time.perf_counter()
        super().print_result(text)

    def show_live(self, text: str) -> None:
        """Write a sample, and die if it is time."""
        super().show_live(text)
        done, actors = done_and_actors(text)
        sample = {
            "done": done,
            "actors": actors,
            "time": time.time(),
            "cpu": time.process_time(),
            "rss": resident_bytes(),
        }
        with self.samples.open("a") as file:
            file.write(json.dumps(sample) + "\n")
        if self.kill_at is not None and done >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def done_and_actors(line: str) -> tuple[int, int]:
    """Return the blocks and actors that a line of progress shows: `segmenting: 1,234/100,000 blocks  50 actors`."""
    match = re.search(r": ([\d,]+)/[\d,]+ blocks?  ([\d,]+) actor", line)
    assert match, line
    done, actors = (int(group.replace(",", "")) for group in match.groups())
    return done, actors


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 without /proc."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def segment_many_blocks(
    shape: Zyx,
    block: Zyx,
    weights: str,
    output: str,
    samples: str,
    actors: int,
    slots: int,
    writes: bool = False,
    kill_at: int | None = None,
) -> dict[str, Any]:
    """Segment with actors that sleep; return the seconds from Ray's start to the end, and how many blocks are done.

    slots: blocks that an actor works on at once. writes: voxels are written too. kill_at: blocks after which this
    process is killed; it returns nothing then.
    """
    from kasthuri_ray.config.loading import GivenSettings

    _start_ray(actors)
    flags = {
        **{"image": f"phantom://em?shape={','.join(map(str, shape))}", "weights": weights, "output": output},
        **{"block": block, "shard": block, "chunk": block, "actors": actors, "cache": "none", "device": "cpu"},
    }
    given = GivenSettings("synapse", NETWORK, flags={"segment": flags})
    reporter = SamplingReporter(samples, kill_at)
    worker = BlockWorkerThatWrites if writes else BlockWorkerThatSleeps
    with _planned_for_sleeping(slots):
        result = segmentation.segment_from_flags(given, reporter, "the same benchmark", worker)
    assert reporter.connected_at is not None
    seconds = time.perf_counter() - reporter.connected_at
    return {"seconds": seconds, "set_aside": result.num_set_aside, "done": result.metrics["num_done"]}


@contextmanager
def _planned_for_sleeping(slots: int) -> Iterator[None]:
    """Have each actor work on so many blocks at once, and do not count the memory of networks that they do not have."""
    plan_actors, check_actor_memory = segmentation.plan_actors, segmentation.check_actor_memory
    segmentation.plan_actors = lambda *inputs: replace(plan_actors(*inputs), in_flight=slots)
    segmentation.check_actor_memory = lambda *inputs: None
    try:
        yield
    finally:
        segmentation.plan_actors, segmentation.check_actor_memory = plan_actors, check_actor_memory


def _start_ray(actors: int) -> None:
    """Start a local Ray with logical CPUs for so many actors that sleep, unless this process has one."""
    from kasthuri_ray.ray_cluster.connection import OBJECT_STORE_BYTES, choose_auth_token, set_ray_environment

    os.environ.update({"RAY_prestart_worker_first_driver": "0"})  # else as many processes more as there are CPUs
    set_ray_environment()
    choose_auth_token(attach=False)
    import ray

    if ray.is_initialized():
        return
    ray.init(
        address="local",
        num_cpus=max(2, math.ceil(actors * CPUS_PER_ACTOR)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def read_state(output: str, shape: Zyx, block: Zyx, writes: bool = False) -> dict[str, Any]:
    """Return how many blocks there are, how many are recorded, and whether each is in the grid and has its voxels."""
    grid, done = BlockGrid(Box.at((0, 0, 0), shape), block), Ledger.beside(output).done(level_name(0))
    names = {block_name(index) for index in grid}
    wrong = None
    if writes:
        voxels = OmeZarrOutput.open(output).probabilities.read(0, Box.at((0, 0, 0), shape))
        wrong = int((voxels != GREY).sum())
    return {
        "blocks": len(grid),
        "recorded": len(done.keys() & names),
        "strange": len(done.keys() - names),
        "wrong": wrong,
    }


if __name__ == "__main__":
    run_as_part({"scale": segment_many_blocks, "state": read_state})
