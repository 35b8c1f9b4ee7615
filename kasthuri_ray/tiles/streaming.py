"""Batches of tiles that Ray Data reads ahead, in order, while the network computes.

An epoch of one rank is read in portions of a few MB. Each portion is a Ray dataset of its own: blocks of tile numbers,
whose tasks read the voxels and cut the tiles, uint8 throughout. While one portion is consumed the next is read, also
across the end of an epoch. So no epoch starts with a wait, and the memory in the object store does not grow.

Why portions: a dataset whose tiles are taken more slowly than they are read keeps Ray Data's scheduling thread spinning
in the trainer's process, which costs a core (Ray 2.60: its loop waits for tasks only, and then none is running). A
dataset that has been read to its end has no such thread.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress, TileSource, TrainTiles, read_tile

READ_CPUS = 0.25  # of a read task, which mostly waits; with a whole CPU for each a small cluster could not train
NUM_REMOTE_READERS = 8  # read tasks at once if a volume is remote, so that reading mostly waits
BLOCKS_PER_READER = 2

PORTION_BYTES = 32 * 2**20  # the object store holds at most two portions of each stream
FIRST_PORTION_TILES = 16  # each following portion is twice as large, so that the first batch arrives soon
NUM_PORTIONS_AHEAD = 2  # the portion that is consumed and the next one
NUM_BATCHES_AHEAD = 2
POLL_S = 0.2  # time after which a waiting thread checks whether it must stop

AddressFunction = Callable[[int], TileAddress]

_PLAN_ENDS, _NO_PLAN_LEFT = "plan ends", "no plan left"  # in the queues, after the batches of one plan and of all plans


@dataclass
class TileBatch:
    """The tiles of one step of one rank.

    Parameters
    ----------
    image : numpy.ndarray of uint8, shape (N, z, y, x)
        Grey levels.
    label : numpy.ndarray of uint8, shape (N, z, y, x)
        Classes; IGNORE_LABEL where a voxel does not count.
    number : numpy.ndarray of int64, shape (N,)
        Number of each tile in its plan.
    """

    image: np.ndarray
    label: np.ndarray
    number: np.ndarray


@dataclass(frozen=True)
class TilePlan:
    """The tiles that one rank reads in one pass, such as an epoch.

    Parameters
    ----------
    sources : tuple of TileSource
        Boxes of the split.
    address : callable
        Returns the address of a tile number; called in the task that reads the tile.
    numbers : sequence of int
        Tile numbers, in the order of reading.
    batch_size : int
        Tiles of this rank in a step.
    tile : tuple of int
        Shape of a tile, z, y, x.
    """

    sources: tuple[TileSource, ...]
    address: AddressFunction
    numbers: Sequence[int]
    batch_size: int
    tile: Zyx


def rank_share(batch_size: int, rank: int, world_size: int) -> range:
    """Return the positions of `rank`'s tiles in a global batch; ranks differ by at most one tile.

    Raises an InputError if the batch is smaller than the number of ranks.
    """
    if batch_size < world_size:
        raise InputError(f"network.batch_size {batch_size} is smaller than the {world_size} workers that share it")
    tiles_per_rank, remainder = divmod(batch_size, world_size)
    start = rank * tiles_per_rank + min(rank, remainder)
    return range(start, start + tiles_per_rank + (rank < remainder))


def plan_training_tiles(tiles: TrainTiles, epoch: int, batch_size: int, rank: int, world_size: int) -> TilePlan:
    """Plan the tiles of one rank in an epoch: its share of every global batch.

    Parameters
    ----------
    tiles : TrainTiles
        Training tiles; an epoch must be whole batches.
    epoch : int
        Number of the epoch, from 0.
    batch_size : int
        Tiles of a step of all ranks together.
    rank, world_size : int
        Number of this worker, from 0, and of all workers.

    Returns
    -------
    TilePlan
        Together the ranks read in every step the tiles that one rank alone would read.
    """
    share = rank_share(batch_size, rank, world_size)
    assert tiles.tiles_per_epoch % batch_size == 0, (tiles.tiles_per_epoch, batch_size)
    numbers = [start + i for start in range(0, tiles.tiles_per_epoch, batch_size) for i in share]
    return TilePlan(tiles.sources, _EpochAddress(tiles, epoch), numbers, len(share), tiles.tile)


def plan_grid_tiles(tiles: GridTiles, batch_size: int, rank: int, world_size: int) -> TilePlan:
    """Plan every `world_size`-th tile of a grid, so that all ranks together read each tile once.

    Parameters
    ----------
    tiles : GridTiles
        Tiles of the validation or test boxes.
    batch_size : int
        Tiles of this rank in a batch.
    rank, world_size : int
        Number of this worker, from 0, and of all workers.

    Returns
    -------
    TilePlan
        Its tile numbers start at `rank`.
    """
    return TilePlan(tiles.sources, tiles.address, range(rank, len(tiles), world_size), batch_size, tiles.tile)


@dataclass
class TileStream:
    """The batches of one plan after the other; tiles are read ahead, also those of the next plan.

    Parameters
    ----------
    plans : iterator of TilePlan
        Advanced ahead of time, in a thread.
    blank_chunks : set of str
        Image chunks read so far that hold only zeros.
    waited_seconds : float
        Time that callers of `batches` have waited, in seconds.
    """

    plans: Iterator[TilePlan]
    blank_chunks: set[str] = field(default_factory=set)
    waited_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._prefetcher = _Prefetcher(self.plans)

    def batches(self) -> Iterator[TileBatch]:
        """Yield the batches of the next plan in its order; closing this iterator early closes the stream."""
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
        rows = self._prefetcher.get()
        self.waited_seconds += time.perf_counter() - start
        if rows is _NO_PLAN_LEFT:
            raise InputError("the stream has no plan left")
        return rows

    def close(self) -> None:
        """Stop reading ahead."""
        self._prefetcher.close()


def start_reading_services() -> None:
    """Have Ray Data start its own process in the background; else the first tiles wait for it, for seconds."""
    import ray.data

    def start() -> None:
        with suppress(Exception):  # reading starts it then
            ray.data.from_items([{"number": 0}])

    threading.Thread(target=start, name="reading services", daemon=True).start()


@dataclass(frozen=True)
class _EpochAddress:
    """The address function of one epoch; picklable."""

    tiles: TrainTiles
    epoch: int

    def __call__(self, number: int) -> TileAddress:
        return self.tiles.address(self.epoch, number)


@dataclass(frozen=True)
class _Portion:
    """Tiles in the object store, a materialized dataset, and the number of tiles in a batch."""

    tiles: Any
    batch_size: int

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        yield from self.tiles.iter_batches(batch_size=self.batch_size, batch_format="numpy", prefetch_batches=0)


class _Prefetcher:
    """Two threads that work ahead: one has Ray read portions, the other cuts them into batches."""

    def __init__(self, plans: Iterator[TilePlan]) -> None:
        self._portions: queue.Queue[Any] = queue.Queue()
        self._batches: queue.Queue[Any] = queue.Queue(maxsize=NUM_BATCHES_AHEAD)
        self._portion_slots = threading.Semaphore(NUM_PORTIONS_AHEAD)
        self._closed = threading.Event()
        for work in (lambda: self._read_portions(plans), self._cut_batches):
            threading.Thread(target=work, name="tiles", daemon=True).start()

    def get(self) -> Any:
        """Return a batch as columns, _PLAN_ENDS after each plan or _NO_PLAN_LEFT; raise what the reading raised."""
        item = _NO_PLAN_LEFT if self._closed.is_set() else self._batches.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._closed.set()

    def _read_portions(self, plans: Iterator[TilePlan]) -> None:
        """Read one portion after the other, each as soon as a slot is free."""
        num_tiles = FIRST_PORTION_TILES
        try:
            for plan in plans:
                start = 0
                while start < len(plan.numbers):
                    stop = start + _portion_size(plan, num_tiles)
                    if not self._acquire_portion_slot():
                        return
                    self._portions.put(_Portion(_read_portion(plan, plan.numbers[start:stop]), plan.batch_size))
                    start, num_tiles = stop, 2 * num_tiles
                self._portions.put(_PLAN_ENDS)
            self._portions.put(_NO_PLAN_LEFT)
        except BaseException as error:  # raised in the thread that waits for the batch
            self._portions.put(error)

    def _acquire_portion_slot(self) -> bool:
        """Return True once a slot is free, False once closed."""
        while not self._portion_slots.acquire(timeout=POLL_S):
            if self._closed.is_set():
                return False
        return not self._closed.is_set()

    def _cut_batches(self) -> None:
        """Pass on what the other thread has read, until its last item."""
        item: Any = _PLAN_ENDS
        try:
            while isinstance(item, _Portion) or item is _PLAN_ENDS:
                item = self._next_portion()
                for rows in item.batches() if isinstance(item, _Portion) else [item]:
                    if not self._put_batch(rows):
                        return
                if isinstance(item, _Portion):
                    item = _PLAN_ENDS  # drops the reference to the portion, or it would stay in the object store
                    self._portion_slots.release()
        except BaseException as error:
            self._put_batch(error)

    def _next_portion(self) -> Any:
        """Return the next item of the other thread, None once closed."""
        while not self._closed.is_set():
            try:
                return self._portions.get(timeout=POLL_S)
            except queue.Empty:
                continue
        return None

    def _put_batch(self, item: Any) -> bool:
        """Return True once the item is in the queue, False once closed."""
        while not self._closed.is_set():
            try:
                self._batches.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


def _portion_size(plan: TilePlan, num_tiles: int) -> int:
    """Return the number of tiles of a portion: whole batches, about `num_tiles`, at most PORTION_BYTES or one batch."""
    max_tiles = PORTION_BYTES // (2 * math.prod(plan.tile))
    return max(1, min(num_tiles, max_tiles) // plan.batch_size) * plan.batch_size


def _read_portion(plan: TilePlan, numbers: Sequence[int]) -> Any:
    """Have tasks of Ray Data read tiles into the object store; return a materialized dataset in the tiles' order."""
    import ray.data

    _configure_ray_data()
    num_readers = _num_readers(plan.sources)
    num_blocks = min(len(numbers), num_readers * BLOCKS_PER_READER)
    numbered = ray.data.from_items([{"number": int(number)} for number in numbers], override_num_blocks=num_blocks)
    # Ray repeats a task that died; it returns the same tiles again.
    tiles = numbered.map_batches(
        _TileReader(plan.sources, plan.address),
        batch_size=None,
        batch_format="numpy",
        num_cpus=READ_CPUS,
        concurrency=num_readers,
    )
    tiles.context.execution_options.preserve_order = True
    return tiles.materialize()


def _num_readers(sources: tuple[TileSource, ...]) -> int:
    """Return how many tasks read at once.

    Where reading computes they are few: Ray ends idle processes beyond a node's CPUs and starts them again for the next
    portion, and an idle process costs something too.
    """
    import ray

    if any(source.image.remote for source in sources):
        return NUM_REMOTE_READERS
    return max(1, int(ray.cluster_resources().get("CPU", 0)) // 2)


def _configure_ray_data() -> None:
    """Switch off Ray Data's own progress display, and have it raise a reader's error itself."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # its type decides whether a retry may help
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass(frozen=True)
class _TileReader:
    """The function of a read task: a block of tile numbers in, columns with one row for each tile out."""

    sources: tuple[TileSource, ...]
    address: AddressFunction

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tiles = [read_tile(self.sources, self.address(int(number))) for number in rows["number"]]
        images, labels, blank_chunks = zip(*tiles, strict=True)
        names = np.array(["\n".join(chunks) for chunks in blank_chunks], dtype=object)
        return {"image": np.stack(images), "label": np.stack(labels), "number": rows["number"], "blank": names}
