"""Connected components of a mask of any size: found block by block, and joined exactly.

Voxels are neighbours where they touch by a face, an edge or a corner (26 neighbours). A block labels its own voxels and
its *shell*, the voxels one beyond its upper end along each axis, edges and corner included. So any two neighbours p and
q lie together in what some block labels: let m be, along each axis, the smaller of the indices of the blocks that own
them. Along that axis the one coordinate lies in block m, and the other, which differs by at most one, lies in it too or
is the first beyond its end. Block m, which may own neither of them, has them in one component. A voxel of a shell lies
in one of the three first planes of the block that owns it; both blocks tell its label (`Borders`), and `Joiner` makes
the two one. All sums are of integers: the components are those of the whole mask at once, whatever the blocks.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from kasthuri_ray.geometry import AXES, Box, Zyx

REACH = 1 << 20
"""Voxels lie from -REACH to REACH along each axis, so that z, y, x fit into one integer that sorts as they do."""

# The columns of `Components.stats`: what is added up, then of what the highest and of what the lowest is kept.
SIZE, SUM_Z, PROBABILITY_SUM, HIGHEST, STOP_Z, FIRST, START_Z = 0, 1, 4, 5, 6, 9, 10
ADDED, MAXIMA, MINIMA = slice(0, 5), slice(5, 9), slice(9, 13)
COLUMNS = 13
LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Borders:
    """The labels of a block's voxels that other blocks see too, and those of the voxels of others that it sees.

    own: the block. num_labels: they are 1 to this. lower: of its own voxels in the first planes. shell: of voxels
    beyond its upper ends. Each is a pair (place of the voxel as `place_of`, int64 [n]; label, int32 [n]).
    """

    own: Box
    num_labels: int
    lower: tuple[np.ndarray, np.ndarray]
    shell: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, labels: np.ndarray, own: Box, num_labels: int, axes: Sequence[int] = (0, 1, 2)) -> Borders:
        """labels: z,y,x, of `own` and its shell as far as there is one. axes: along which blocks are joined."""
        size = own.shape
        lower, shell = [], []
        for axis in axes:
            # Voxels that an earlier axis has named are not named again.
            first = [slice(1 if a in axes and a < axis else 0, size[a]) for a in range(3)]
            beyond = [slice(0, size[a] if a < axis else None) for a in range(3)]
            first[axis], beyond[axis] = slice(0, 1), slice(size[axis], None)
            lower.append(_named(labels, own, first))
            shell.append(_named(labels, own, beyond))
        return cls(own, num_labels, _chained(lower), _chained(shell))


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a block: their share of it, and its borders.

    stats: int64 [num_labels, COLUMNS], of the block's own voxels; a component of the shell alone has size 0.
    """

    stats: np.ndarray
    borders: Borders

    @property
    def own(self) -> Box:
        return self.borders.own

    def to_bytes(self) -> bytes:
        """All of it as compressed .npz; see `from_bytes`."""
        out = io.BytesIO()
        borders = self.borders
        np.savez_compressed(
            out,
            own=np.array([borders.own.start, borders.own.stop], np.int64),
            stats=self.stats,
            lower=borders.lower[0],
            lower_labels=borders.lower[1],
            shell=borders.shell[0],
            shell_labels=borders.shell[1],
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Components:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
        start, stop = found["own"].tolist()
        lower, shell = ((found[name], found[f"{name}_labels"]) for name in ("lower", "shell"))
        return cls(found["stats"], Borders(Box(start, stop), len(found["stats"]), lower, shell))


def lowest_foreground_value(threshold: float) -> int:
    """The lowest byte v whose probability v / 255 is at least `threshold`; 256 if there is none."""
    called = np.flatnonzero(np.arange(256) / 255 >= threshold)
    return int(called[0]) if called.size else 256


def label_block_components(probability: np.ndarray, own: Box, threshold: float) -> Components:
    """The components of a block's voxels with a probability of at least `threshold`.

    probability: uint8 (255 is 1), z,y,x, of `own` and its shell: one voxel more at the upper end of each axis, save
    where the volume ends. own: the block, in voxels of the volume. Takes 5 to 8 bytes a voxel beside what is given.
    """
    if probability.dtype != np.uint8:
        raise ValueError(f"probabilities of objects are uint8, these are {probability.dtype}")
    return label_mask_components(probability >= lowest_foreground_value(threshold), own, probability)[0]


def label_mask_components(
    mask: np.ndarray, own: Box, probability: np.ndarray | None = None
) -> tuple[Components, np.ndarray]:
    """The components of a mask (bool, with shell as in `label_block`), and the label of each of its voxels."""
    extra = [n - m for n, m in zip(mask.shape, own.shape, strict=True)]
    if any(more not in (0, 1) for more in extra):
        raise ValueError(
            f"a block of {own.shape} and its shell have {mask.shape} voxels: one more along an axis or none"
        )
    labels, number = cc3d.connected_components(mask, connectivity=26, return_N=True, binary_image=True)
    stats = _stats(labels[tuple(map(slice, own.shape))], own, number, probability)
    return Components(stats, Borders.of(labels, own, number)), labels


def _stats(labels: np.ndarray, own: Box, number: int, probability: np.ndarray | None) -> np.ndarray:
    """`Components.stats`, section by section, so that what it takes beside the labels is a section's."""
    stats = np.zeros((number + 1, COLUMNS), np.int64)
    stats[:, MAXIMA], stats[:, MINIMA] = -LARGEST, LARGEST
    for z, section in enumerate(labels):
        flat = np.flatnonzero(section)
        if not flat.size:
            continue
        label = section.ravel()[flat]
        y, x = np.divmod(flat, section.shape[1])
        place = np.array([np.full_like(y, z), y, x]) + np.array(own.start)[:, None]
        stats[:, SIZE] += np.bincount(label, minlength=number + 1)
        for axis in range(3):
            stats[:, SUM_Z + axis] += _sums(label, place[axis] - own.start[axis], number)
            np.minimum.at(stats[:, START_Z + axis], label, place[axis])
            np.maximum.at(stats[:, STOP_Z + axis], label, place[axis] + 1)
        np.minimum.at(stats[:, FIRST], label, voxel_key(*place))
        if probability is not None:
            value = probability[z, : section.shape[0], : section.shape[1]].ravel()[flat].astype(np.int64)
            stats[:, PROBABILITY_SUM] += _sums(label, value, number)
            np.maximum.at(stats[:, HIGHEST], label, value)
    stats[:, SUM_Z : SUM_Z + 3] += stats[:, SIZE, None] * np.array(own.start)
    return stats[1:]


def _sums(label: np.ndarray, value: np.ndarray, number: int) -> np.ndarray:
    """The sum of the values of each label: exact, since a section's sum is far below 2**53."""
    return np.bincount(label, weights=value, minlength=number + 1).astype(np.int64)


def voxel_key(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Coordinates of voxels as one integer each, int64, which sort as z, y, x do. ValueError beyond REACH."""
    for axis, values in zip(AXES, (z, y, x), strict=True):
        if values.size and not -REACH <= values.min() <= values.max() < REACH:
            raise ValueError(f"objects are found from voxel {-REACH} to {REACH}, not at {axis} {values.max()}")
    return ((z.astype(np.int64) + REACH) << 42) | ((y.astype(np.int64) + REACH) << 21) | (x.astype(np.int64) + REACH)


def _named(labels: np.ndarray, own: Box, part: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """(place, label) of the labelled voxels of a part of the array."""
    piece = labels[tuple(part)]
    inside = np.nonzero(piece)
    z, y, x = (index + (cut.start or 0) + a for index, cut, a in zip(inside, part, own.start, strict=True))
    return voxel_key(z, y, x), piece[inside].astype(np.int32)


def _chained(named: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    places, labels = (np.concatenate(arrays) for arrays in zip(*named, strict=True))
    order = np.argsort(places, kind="stable")
    return places[order], labels[order]


class UnionFind:
    """Which labels of which blocks are one. A label of a block becomes a node: its block's base + label - 1.

    Blocks come in the order of `Box.cells`, z slowest. One without labels may be left out; one that owns nothing but
    has labels in its shell may not, since it can be what joins them. Keeps a number for each label, and the shells that
    wait for the blocks that own them.
    """

    def __init__(self) -> None:
        self._parent = array("q")
        self._waiting: dict[Zyx, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._last: Zyx | None = None

    def add(self, borders: Borders) -> int:
        """Take in the next block; gives its base. ValueError for one out of order, or unlike its neighbours."""
        own = borders.own
        if self._last is not None and own.start <= self._last:
            raise ValueError(f"blocks are joined in their order, z slowest: {own} came after one at {self._last}")
        self._last = own.start
        base = len(self._parent)
        self._parent.extend(range(base, base + borders.num_labels))
        places, labels = borders.lower
        for seen, nodes in self._waiting.pop(own.start, []):
            at = np.searchsorted(places, seen)
            if not np.array_equal(places[at[at < len(places)]], seen):
                raise ValueError(f"block {own} and those before it do not show the same voxels where they meet")
            for one, other in np.unique(np.stack([nodes, base + labels[at] - 1], 1), axis=0).tolist():
                self._unite(one, other)
        self._wait(borders, base)
        return base

    def _wait(self, borders: Borders, base: int) -> None:
        """Lay the shell aside, by the block that owns each voxel."""
        own, (places, labels) = borders.own, borders.shell
        beyond = np.stack([((places >> shift) & (2 * REACH - 1)) - REACH for shift in (42, 21, 0)], 1) >= own.stop
        owner = beyond @ np.array([4, 2, 1])
        for code in np.unique(owner).tolist():
            z, y, x = (own.stop[axis] if code >> (2 - axis) & 1 else own.start[axis] for axis in range(3))
            here = owner == code
            self._waiting.setdefault((z, y, x), []).append((places[here], base + labels[here].astype(np.int64) - 1))

    def _unite(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parent[high] = low

    def _root(self, node: int) -> int:
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def roots(self) -> np.ndarray:
        """One node of its component for each node, the same for all of them: int64 [nodes]."""
        roots = np.array(self._parent, np.int64)
        while not np.array_equal(higher := roots[roots], roots):
            roots = higher
        return roots
