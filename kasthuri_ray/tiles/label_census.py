"""The labels of the training boxes, counted before any work: how many voxels are labelled, of which classes, and where.

A run whose labels may be incomplete reads all of them, or of very large boxes a sample. Where every voxel has a label
the count ends as soon as every class was seen.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule
from kasthuri_ray.tiles.labelled_blocks import LabelledBlocks
from kasthuri_ray.tiles.sampling import SearchGrid, TileSource
from kasthuri_ray.volumes.cutout_sample import NUM_THREADS
from kasthuri_ray.volumes.parallel_calls import map_threads

# Most voxels that are read: where some may not be labelled, of files and of volumes that are slow to read; elsewhere.
MAX_SPARSE_VOXELS, MAX_REMOTE_VOXELS, MAX_COMPLETE_VOXELS = 256_000_000, 64_000_000, 64_000_000
# Fewest voxels that are read, of files and of remote volumes, so that a label that is no class is met before the work.
MIN_COMPLETE_VOXELS, MIN_REMOTE_VOXELS = 16_000_000, 4_000_000
BLOCKS_AT_ONCE = 16  # read before the classes that were seen are looked at
MIN_BLOCK_VOXELS = 1 << 17  # small chunks are read together
MAX_BLOCKS = 1 << 16

Block = tuple[int, Box]  # number of the training box, and voxels of it
CountedBlock = tuple[int, Box, np.ndarray]
Cell = tuple[int, Zyx]  # number of the training box, and first voxel of a tile of its grid


@dataclass(frozen=True)
class LabelCensus:
    """Labelled voxels of the training boxes.

    Parameters
    ----------
    counts : tuple of int
        Labelled voxels of each class among those that were read.
    num_read : int
        Voxels that were read.
    num_voxels : int
        Voxels of all training boxes.
    is_complete : bool
        Whether every voxel is labelled, as far as it was read.
    num_labelled_tiles : int
        Tiles of the grid of the boxes that hold a labelled voxel; of a sample the number that follows from it.
    """

    counts: tuple[int, ...]
    num_read: int
    num_voxels: int
    is_complete: bool
    num_labelled_tiles: int

    @property
    def is_sample(self) -> bool:
        """Whether voxels were left out that may matter: a label or a class may be there that was not seen."""
        return self.num_read < self.num_voxels and not (self.is_complete and all(self.counts))

    @property
    def train_name(self) -> str:
        """Name of the voxels that were read, for people."""
        return f"train (a sample of {self.num_read:,} of {self.num_voxels:,} voxels)" if self.is_sample else "train"

    def labelled_voxels(self) -> dict[str, int]:
        """Return the entry of train in metrics.json: labelled voxels, of how many; of a sample also of what."""
        if self.is_complete:
            return {"labelled": self.num_voxels, "voxels": self.num_voxels}
        sampled = {"sampled_from": self.num_voxels} if self.num_read < self.num_voxels else {}
        return {"labelled": sum(self.counts), "voxels": self.num_read, **sampled}


def take_census(
    sources: Sequence[TileSource], tile: Zyx, seed: int, num_classes: int
) -> tuple[LabelCensus, LabelledBlocks | None]:
    """Count the labelled voxels of training boxes.

    Parameters
    ----------
    sources : sequence of TileSource
        Training boxes, all with an annotation.
    tile : tuple of int
        Shape of a tile, z, y, x.
    seed : int
        Seed of the order in which blocks are read, and of the sample of large boxes.
    num_classes : int
        Number of classes, background included.

    Returns
    -------
    census : LabelCensus
        The numbers.
    blocks : LabelledBlocks or None
        Where the labelled voxels are; None where all voxels are labelled.

    Raises
    ------
    InputError
        If no voxel is labelled, none is foreground, or a label is no class.
    VolumeError
        If a volume cannot be read.
    """
    num_voxels = sum(source.box.num_voxels for source in sources)
    may_be_sparse = any(source.may_lack_labels for source in sources)
    limit = _max_voxels(sources) if may_be_sparse else MAX_COMPLETE_VOXELS
    counted, cells = list[CountedBlock](), set[Cell]()
    for group in _grouped(_limited(_shuffled_blocks(sources, tile, seed), limit)):
        counted += _count_blocks(sources, group, tile, num_classes, cells)
        if not may_be_sparse and _has_seen_enough(sources, counted, num_classes):
            break
    counts, num_read = _sum_counts(counted, num_classes), sum(box.num_voxels for _, box, _ in counted)
    _check_counts(sources, counts, num_read)
    is_complete = not may_be_sparse or counts.sum() == num_read
    num_tiles = len(cells) if num_read == num_voxels else math.ceil(len(cells) * num_voxels / num_read)
    census = LabelCensus(tuple(counts.tolist()), num_read, num_voxels, bool(is_complete), num_tiles)
    if is_complete:
        return census, None
    labelled = [block for block in counted if block[2].any()]
    return census, LabelledBlocks.of(labelled, is_whole=num_read == num_voxels)


def _max_voxels(sources: Sequence[TileSource]) -> int:
    is_slow = any(source.image.remote or source.image.dtype.kind == "f" for source in sources)
    return MAX_REMOTE_VOXELS if is_slow else MAX_SPARSE_VOXELS


def _has_seen_enough(sources: Sequence[TileSource], counted: Sequence[CountedBlock], num_classes: int) -> bool:
    """Return whether every class was seen, and so many voxels that a label that is no class would have been met."""
    least = MIN_REMOTE_VOXELS if any(source.image.remote for source in sources) else MIN_COMPLETE_VOXELS
    num_read = sum(box.num_voxels for _, box, _ in counted)
    return num_read >= least and bool(_sum_counts(counted, num_classes).all())


def _shuffled_blocks(sources: Sequence[TileSource], tile: Zyx, seed: int) -> Iterator[Block]:
    """Yield blocks of the sources, each once, in random order, of one source after the other in turn."""
    turns = []
    for number, source in enumerate(sources):
        cells = SearchGrid.of(source, tile, MIN_BLOCK_VOXELS)
        order = random.Random(f"{seed},{number}").sample(range(len(cells)), min(len(cells), MAX_BLOCKS))
        turns.append(zip(itertools.repeat(number), map(cells.__getitem__, order), strict=False))
    for blocks in itertools.zip_longest(*turns):
        yield from (block for block in blocks if block is not None)


def _limited(blocks: Iterable[Block], max_voxels: int) -> Iterator[Block]:
    """Yield blocks up to a number of voxels, at least one."""
    num_voxels = 0
    for number, box in blocks:
        num_voxels += box.num_voxels
        if num_voxels > max_voxels and num_voxels > box.num_voxels:
            return
        yield number, box


def _grouped(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Yield blocks in lists: of one at first, so that a count that may end early does, later of many."""
    size = 1
    while group := list(itertools.islice(blocks, size)):
        yield group
        size = min(2 * size, BLOCKS_AT_ONCE)


def _count_blocks(
    sources: Sequence[TileSource], blocks: Sequence[Block], tile: Zyx, num_classes: int, cells: set[Cell]
) -> list[CountedBlock]:
    """Count the classes of blocks, and add the tiles of the grid in which a voxel is labelled to `cells`."""
    counts: dict[Block, np.ndarray] = {}

    def count(block: Block) -> None:
        number, box = block
        source = sources[number]
        labels = source.read_counted_labels(box)
        counts[block] = np.bincount(labels.ravel(), minlength=IGNORE_LABEL + 1)[:num_classes]
        if counts[block].any() and source.may_lack_labels:
            origin = source.box.start
            for cell in box.cells(tile, origin):
                if (labels[cell.slices(box.start)] != IGNORE_LABEL).any():
                    cells.add((number, cell.grown_to_grid(tile, origin).start))

    map_threads(count, blocks, NUM_THREADS)
    return [(*block, counts[block]) for block in blocks]


def _sum_counts(counted: Sequence[CountedBlock], num_classes: int) -> np.ndarray:
    return np.sum([counts for _, _, counts in counted], axis=0, dtype=np.int64) + np.zeros(num_classes, np.int64)


def _check_counts(sources: Sequence[TileSource], counts: np.ndarray, num_read: int) -> None:
    """Raise an InputError if no voxel is labelled, or none is foreground."""
    if counts[1:].any():
        return
    boxes = "; ".join(f"{s.annotation.uri if s.annotation else '-'} {s.box}" for s in sources)
    searched = f"for training in {boxes}, after a search of {num_read / 1e6:.3g} million voxels"
    if not counts.any():
        ignored = ", ".join(map(str, sources[0].label_rule.ignored)) or "nan of the image"
        raise InputError(
            f"annotation without a labelled voxel: none was found {searched}; all are ignored ({ignored}). Place the "
            "training boxes where the labels are, or change task.ignore_label or task.labels"
        )
    raise InputError(
        f"annotation without foreground: none was found {searched}; check the boxes"
        f"{_reasons_without_foreground(sources[0].label_rule)}"
    )


def _reasons_without_foreground(rule: LabelRule) -> str:
    """Return the settings by which no label may be foreground."""
    reasons = ["task.background"] if rule.background else []
    reasons += ["task.threshold_value"] if rule.threshold_value is not None and not rule.background else []
    reasons += [f"task.ignore_label ({', '.join(map(str, rule.ignored))})"] if rule.ignored else []
    return "".join(f" and {reason}" for reason in reasons)


def class_counts(census: LabelCensus, names: Sequence[str]) -> Mapping[str, int]:
    """Return the voxels of each class by its name, the background first.

    Parameters
    ----------
    census : LabelCensus
        Of the training boxes.
    names : sequence of str
        Names of the foreground classes.

    Returns
    -------
    mapping
        As `metrics.sanity.missing_class_warnings` takes them.
    """
    return dict(zip(["background", *names], census.counts, strict=True))
