"""Ray Data: addresses in, tiles out, in order, while the network computes.

An epoch of one rank is one dataset: blocks of addresses, whose tasks read the voxels and cut the tiles, uint8 to the
end.
The next epoch's dataset starts while this one is eaten, so that no epoch begins with a wait.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kasthuri_ray.tiles.sampling import GridTiles, Source, TileAddress, TrainTiles, read_tile

READ_CPUS = 0.25  # a read task mostly waits; a whole CPU each would starve a small cluster
STORE_BYTES = 64 * 2**20  # of the object store, for one epoch's dataset
BLOCK_TILES = 16
BLOCKS_AT_MOST = 256  # more blocks than this cost more to plan than to read
QUEUED_BATCHES = 2

Numbers = Sequence[int]
Address = Callable[[int], TileAddress]


@dataclass
class Batch:
    """Tiles of one step of one rank: image and label uint8 N, z, y, x; number int64 N, as the plan numbers them."""

    image: np.ndarray
    label: np.ndarray
    number: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What one rank reads in one pass: the tile numbers in order, and where each lies.

    address: from a number to the tile, called where the tile is read.
    batch_size: tiles of this rank in a step.
    """

    sources: tuple[Source, ...]
    address: Address
    numbers: Numbers
    batch_size: int


def rank_share(batch_size: int, rank: int, world_size: int) -> range:
    """The positions in a global batch that are `rank`'s; ranks differ by one tile at most.

    Raises ValueError for a batch smaller than the ranks.
    """
    if batch_size < world_size:
        raise ValueError(f"network.batch_size {batch_size} is smaller than the {world_size} workers that share it")
    each, more = divmod(batch_size, world_size)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def training_plan(tiles: TrainTiles, epoch: int, batch_size: int, rank: int, world_size: int) -> Plan:
    """The tiles of `rank` in `epoch`: its share of every global batch. An epoch is whole batches."""
    share = rank_share(batch_size, rank, world_size)
    assert tiles.tiles_per_epoch % batch_size == 0, (tiles.tiles_per_epoch, batch_size)
    numbers = [start + i for start in range(0, tiles.tiles_per_epoch, batch_size) for i in share]
    return Plan(tiles.sources, _EpochAddress(tiles, epoch), numbers, len(share))


def grid_plan(tiles: GridTiles, batch_size: int, rank: int, world_size: int) -> Plan:
    """Every `world_size`-th tile of the grid, from `rank` on: all ranks together read each once."""
    return Plan(tiles.sources, tiles.address, range(rank, len(tiles), world_size), batch_size)


@dataclass(frozen=True)
class _EpochAddress:
    tiles: TrainTiles
    epoch: int

    def __call__(self, number: int) -> TileAddress:
        return self.tiles.address(self.epoch, number)


@dataclass
class TileStream:
    """The batches of one plan after the other; `plans` is asked for the next one ahead of time.

    blank_chunks: the image chunks met so far that hold nothing but zeros.
    waited_seconds: how long `batches` let its caller wait.
    """

    plans: Iterator[Plan]
    blank_chunks: set[str] = field(default_factory=set)
    waited_seconds: float = 0.0
    _running: list[_Feed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start_next()

    def batches(self) -> Iterator[Batch]:
        """The batches of the next plan, in its order."""
        if not self._running:
            raise ValueError("the stream has no plan left")
        feed = self._running.pop(0)
        self._start_next()
        try:
            while True:
                start = time.perf_counter()
                rows = feed.get()
                self.waited_seconds += time.perf_counter() - start
                if rows is None:
                    return
                self.blank_chunks.update(chunk for names in rows["blank"] for chunk in names.split("\n") if chunk)
                yield Batch(rows["image"], rows["label"], rows["number"])
        finally:
            feed.close()

    def close(self) -> None:
        """Stop whatever still reads ahead."""
        for feed in self._running:
            feed.close()
        self._running.clear()

    def _start_next(self) -> None:
        plan = next(self.plans, None)
        if plan is not None:
            self._running.append(_Feed(plan))


class _Feed:
    """A dataset that a thread draws from, a few batches ahead of who takes them."""

    def __init__(self, plan: Plan) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(plan,), name="tiles", daemon=True)
        self._thread.start()

    def get(self) -> dict[str, np.ndarray] | None:
        """The next batch's columns, None after the last; raises what reading raised."""
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        self._closed.set()

    def _run(self, plan: Plan) -> None:
        try:
            for rows in _rows(plan):
                if not self._put(rows):
                    return
            self._put(None)
        except BaseException as error:  # handed to whoever waits for the batch
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _rows(plan: Plan) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a plan as columns, read by Ray Data's tasks."""
    import ray.data

    if not plan.numbers:
        return
    quiet_ray_data()
    size = max(BLOCK_TILES, -(-len(plan.numbers) // BLOCKS_AT_MOST))
    blocks = [{"numbers": list(plan.numbers[i : i + size])} for i in range(0, len(plan.numbers), size)]
    dataset: Any = ray.data.from_items(blocks, override_num_blocks=len(blocks))
    # A task that died is replayed, and gives the same tiles again.
    dataset = dataset.flat_map(_TileReader(plan.sources, plan.address), num_cpus=READ_CPUS)
    options = dataset.context.execution_options
    options.preserve_order = True
    options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=STORE_BYTES)
    yield from dataset.iter_batches(batch_size=plan.batch_size, batch_format="numpy", prefetch_batches=1)


def quiet_ray_data() -> None:
    """Leave the progress to us."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass(frozen=True)
class _TileReader:
    """What a task does with a block of tile numbers: one row a tile."""

    sources: tuple[Source, ...]
    address: Address

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in row["numbers"]:
            image, label, blank = read_tile(self.sources, self.address(int(number)))
            yield {"image": image, "label": label, "number": int(number), "blank": "\n".join(blank)}
