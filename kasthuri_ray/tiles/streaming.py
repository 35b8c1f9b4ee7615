"""Ray Data: addresses in, tiles out, in order, while the network computes.

An epoch of one rank is read in portions of some MB. Each portion is a dataset of its own: blocks of tile numbers, whose
tasks read the voxels and cut the tiles, uint8 to the end. While one portion is eaten the next is read, be it of the
next epoch, so that no epoch begins with a wait, and what lies in the object store never grows.

Why portions: a dataset whose tiles are taken slower than they are read keeps Ray Data's scheduling thread spinning in
the trainer's process, at the cost of a core (Ray 2.60: its loop waits for tasks alone, and none is running then). A
dataset that is read to its end has none.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress, TileSource, TrainTiles, read_tile

READ_CPUS = 0.25  # a read task mostly waits; a whole CPU each would starve a small cluster
PORTION_BYTES = 32 * 2**20  # of a portion; of each stream at most two are in the object store
FIRST_TILES = 16  # of the first portion; the following double, so that the first batch comes soon
REMOTE_READERS = 8  # tasks at once where reading is mostly waiting
BLOCKS_A_READER = 2
QUEUED_BATCHES = 2
POLL_S = 0.2  # how soon a thread that waits sees that it is to stop

Numbers = Sequence[int]
Address = Callable[[int], TileAddress]


_PLAN_ENDS, _NO_PLAN_LEFT = "plan ends", "no plan left"


@dataclass
class TileBatch:
    """Tiles of one step of one rank: image and label uint8 N, z, y, x; number int64 N, as the plan numbers them."""

    image: np.ndarray
    label: np.ndarray
    number: np.ndarray


@dataclass(frozen=True)
class TilePlan:
    """What one rank reads in one pass: the tile numbers in order, and where each lies.

    address: from a number to the tile, called where the tile is read.
    batch_size: tiles of this rank in a step. tile: the shape of one, z, y, x.
    """

    sources: tuple[TileSource, ...]
    address: Address
    numbers: Numbers
    batch_size: int
    tile: Zyx


def rank_share(batch_size: int, rank: int, world_size: int) -> range:
    """The positions in a global batch that are `rank`'s; ranks differ by one tile at most.

    Raises ValueError for a batch smaller than the ranks.
    """
    if batch_size < world_size:
        raise ValueError(f"network.batch_size {batch_size} is smaller than the {world_size} workers that share it")
    each, more = divmod(batch_size, world_size)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def plan_training_tiles(tiles: TrainTiles, epoch: int, batch_size: int, rank: int, world_size: int) -> TilePlan:
    """The tiles of `rank` in `epoch`: its share of every global batch. An epoch is whole batches."""
    share = rank_share(batch_size, rank, world_size)
    assert tiles.tiles_per_epoch % batch_size == 0, (tiles.tiles_per_epoch, batch_size)
    numbers = [start + i for start in range(0, tiles.tiles_per_epoch, batch_size) for i in share]
    return TilePlan(tiles.sources, _EpochAddress(tiles, epoch), numbers, len(share), tiles.tile)


def plan_grid_tiles(tiles: GridTiles, batch_size: int, rank: int, world_size: int) -> TilePlan:
    """Every `world_size`-th tile of the grid, from `rank` on: all ranks together read each once."""
    return TilePlan(tiles.sources, tiles.address, range(rank, len(tiles), world_size), batch_size, tiles.tile)


@dataclass(frozen=True)
class _EpochAddress:
    tiles: TrainTiles
    epoch: int

    def __call__(self, number: int) -> TileAddress:
        return self.tiles.address(self.epoch, number)


@dataclass
class TileStream:
    """The batches of one plan after the other; `plans` is asked for the next ones ahead of time.

    blank_chunks: the image chunks met so far that hold nothing but zeros.
    waited_seconds: how long `batches` let its caller wait.
    """

    plans: Iterator[TilePlan]
    blank_chunks: set[str] = field(default_factory=set)
    waited_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._ahead = _Ahead(self.plans)

    def batches(self) -> Iterator[TileBatch]:
        """The batches of the next plan, in its order. Who leaves them before the end leaves the stream."""
        rows = None
        try:
            while (rows := self._next()) is not _PLAN_ENDS:
                self.blank_chunks.update(chunk for names in rows["blank"] for chunk in names.split("\n") if chunk)
                yield TileBatch(rows["image"], rows["label"], rows["number"])
        finally:
            if rows is not _PLAN_ENDS:
                self.close()

    def _next(self) -> Any:
        start = time.perf_counter()
        rows = self._ahead.get()
        self.waited_seconds += time.perf_counter() - start
        if rows is _NO_PLAN_LEFT:
            raise ValueError("the stream has no plan left")
        return rows

    def close(self) -> None:
        """Stop whatever still reads ahead."""
        self._ahead.close()


@dataclass(frozen=True)
class _Portion:
    """Tiles in the object store, a materialized dataset, and how many of them are a batch."""

    tiles: Any
    batch_size: int

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        yield from self.tiles.iter_batches(batch_size=self.batch_size, batch_format="numpy", prefetch_batches=0)


class _Ahead:
    """Two threads ahead of who takes the batches: one has portions read, the other cuts them into batches."""

    def __init__(self, plans: Iterator[TilePlan]) -> None:
        self._portions: queue.Queue[Any] = queue.Queue()
        self._batches: queue.Queue[Any] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._room = threading.Semaphore(2)  # portions: the one that is eaten and the next
        self._closed = threading.Event()
        for work in (lambda: self._read(plans), self._cut):
            threading.Thread(target=work, name="tiles", daemon=True).start()

    def get(self) -> Any:
        """The next batch's columns, _PLAN_ENDS after each plan's last, _NO_PLAN_LEFT; raises what reading raised."""
        found = _NO_PLAN_LEFT if self._closed.is_set() else self._batches.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        self._closed.set()

    def _read(self, plans: Iterator[TilePlan]) -> None:
        """Read portion after portion, each once there is room for it."""
        tiles = FIRST_TILES
        try:
            for plan in plans:
                start = 0
                while start < len(plan.numbers):
                    stop = start + _portion_size(plan, tiles)
                    if not self._wait_for_room():
                        return
                    self._portions.put(_Portion(_read_portion(plan, plan.numbers[start:stop]), plan.batch_size))
                    start, tiles = stop, 2 * tiles
                self._portions.put(_PLAN_ENDS)
            self._portions.put(_NO_PLAN_LEFT)
        except BaseException as error:  # handed to whoever waits for the batch
            self._portions.put(error)

    def _wait_for_room(self) -> bool:
        """Whether there is room, False once closed."""
        while not self._room.acquire(timeout=POLL_S):
            if self._closed.is_set():
                return False
        return not self._closed.is_set()

    def _cut(self) -> None:
        """Pass on what the other thread reads, until there is no more of it."""
        found: Any = _PLAN_ENDS
        try:
            while isinstance(found, _Portion) or found is _PLAN_ENDS:
                found = _get(self._portions, self._closed)
                for rows in found.batches() if isinstance(found, _Portion) else [found]:
                    if not self._put(rows):
                        return
                if isinstance(found, _Portion):
                    found = _PLAN_ENDS  # holds the portion no longer, or it would stay in the object store
                    self._room.release()
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Whether it was put, False once closed."""
        while not self._closed.is_set():
            try:
                self._batches.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


def _get(items: queue.Queue[Any], closed: threading.Event) -> Any:
    """The next item, None once closed."""
    while not closed.is_set():
        try:
            return items.get(timeout=POLL_S)
        except queue.Empty:
            continue
    return None


def _portion_size(plan: TilePlan, tiles: int) -> int:
    """How many tiles a portion has: whole batches, about `tiles`, of no more than PORTION_BYTES unless one is."""
    most = PORTION_BYTES // (2 * math.prod(plan.tile))
    return max(1, min(tiles, most) // plan.batch_size) * plan.batch_size


def _read_portion(plan: TilePlan, numbers: Numbers) -> Any:
    """The tiles of `numbers`, read by Ray Data's tasks into the object store: a materialized dataset in their order."""
    import ray.data

    silence_ray_data()
    readers = _num_readers(plan.sources)
    blocks = min(len(numbers), readers * BLOCKS_A_READER)
    numbered = ray.data.from_items([{"number": int(number)} for number in numbers], override_num_blocks=blocks)
    # A task that died is replayed, and gives the same tiles again.
    reader = _TileReader(plan.sources, plan.address)
    tiles = numbered.map_batches(reader, batch_size=None, batch_format="numpy", num_cpus=READ_CPUS, concurrency=readers)
    tiles.context.execution_options.preserve_order = True
    return tiles.materialize()


def _num_readers(sources: tuple[TileSource, ...]) -> int:
    """How many tasks read at once: few where they compute, since Ray ends idle processes beyond a node's CPUs and
    starts them anew for the next portion, and one that idles costs something too."""
    import ray

    if any(source.image.remote for source in sources):
        return REMOTE_READERS
    return max(1, int(ray.cluster_resources().get("CPU", 0)) // 2)


def silence_ray_data() -> None:
    """Leave the progress to us."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # what a reader says, and whether another try may mend it
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass(frozen=True)
class _TileReader:
    """What a task does with a block of tile numbers: columns with one row a tile."""

    sources: tuple[TileSource, ...]
    address: Address

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        read = [read_tile(self.sources, self.address(int(number))) for number in rows["number"]]
        images, labels, blank = zip(*read, strict=True)
        names = np.array(["\n".join(chunks) for chunks in blank], dtype=object)
        return {"image": np.stack(images), "label": np.stack(labels), "number": rows["number"], "blank": names}
