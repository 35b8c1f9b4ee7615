"""Connected components of a mask, or of each class, of any size, found block by block and joined exactly.

Voxels are connected if they share a face, an edge or a corner (26 neighbours). A block labels its own voxels and its
*shell*, the voxels one beyond its upper end along each axis, edges and corner included. Any two neighbours p and q are
then both labelled by one block. Along each axis take the smaller index of the blocks that own p and q, and let m be the
block with these indices. Along that axis one of the two coordinates is in block m. The other differs by at most one, so
that it is in block m or the first beyond its end. Block m, which may own neither p nor q, has both in one component.

A voxel of a shell is in one of the three first planes of the block that owns it. Both blocks report its label
(`Borders`), and `UnionFind` joins the two labels. All sums are of integers. The components are therefore those of the
whole mask, whatever the blocks.
"""

from __future__ import annotations

import io
import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from kasthuri_ray.geometry import AXES, Box, Zyx, per_axis

MAX_COORDINATE = 1 << 20
"""Coordinates are from -MAX_COORDINATE to MAX_COORDINATE, so that z, y, x fit into one integer that sorts like them."""

# The columns of `Components.stats`: sums, then maxima, then minima. All voxels of a component have one class.
SIZE, SUM_Z, PROBABILITY_SUM, MAX_PROBABILITY, STOP_Z, FIRST_VOXEL, START_Z, CLASS = 0, 1, 4, 5, 6, 9, 10, 13
SUMS, MAXIMA, MINIMA = slice(0, 5), slice(5, 9), slice(9, 14)
NUM_COLUMNS = 14
INT64_MAX = np.iinfo(np.int64).max

BorderLabels = tuple[np.ndarray, np.ndarray]
"""(key of each voxel as `voxel_key`, int64 [n]; its label, int32 [n])."""


@dataclass(frozen=True, eq=False)
class Borders:
    """The labels of the voxels that a block shares with other blocks.

    Parameters
    ----------
    own : Box
        The block.
    num_labels : int
        Its labels are 1 to this.
    lower : BorderLabels
        Of its own voxels in the first plane along each axis, which other blocks have in their shells.
    shell : BorderLabels
        Of the voxels beyond its upper ends, which other blocks own.
    """

    own: Box
    num_labels: int
    lower: BorderLabels
    shell: BorderLabels

    @classmethod
    def from_labels(cls, labels: np.ndarray, own: Box, num_labels: int, axes: Sequence[int] = (0, 1, 2)) -> Borders:
        """Return the borders of a block.

        labels: z, y, x, of `own` and its shell, as far as there is one. axes: along which blocks are joined.
        """
        size = own.shape
        lower, shell = [], []
        for axis in axes:
            # Voxels that belong to an earlier axis too are not listed again.
            first = [slice(1 if a in axes and a < axis else 0, size[a]) for a in range(3)]
            beyond = [slice(0, size[a] if a < axis else None) for a in range(3)]
            first[axis], beyond[axis] = slice(0, 1), slice(size[axis], None)
            lower.append(_labelled_voxels(labels, own, first))
            shell.append(_labelled_voxels(labels, own, beyond))
        return cls(own, num_labels, _concatenate(lower), _concatenate(shell))


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a block, as far as they are in it, and its borders.

    Parameters
    ----------
    stats : ndarray of int64, (num_labels, NUM_COLUMNS)
        Sums, maxima and minima over the block's own voxels. A component in the shell or in a bridge alone has size 0.
    borders : Borders
        The labels that other blocks share.
    """

    stats: np.ndarray
    borders: Borders

    @property
    def own(self) -> Box:
        """The block."""
        return self.borders.own

    def to_bytes(self) -> bytes:
        """Return everything as a compressed .npz file, for `from_bytes`."""
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
        """Return the components that `to_bytes` serialized."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        start, stop = arrays["own"].tolist()
        lower, shell = ((arrays[name], arrays[f"{name}_labels"]) for name in ("lower", "shell"))
        stats = arrays["stats"]
        if stats.shape[1] == CLASS:  # written before there were classes
            stats = np.insert(stats, CLASS, 1, axis=1)
        return cls(stats, Borders(Box(start, stop), len(stats), lower, shell))


def label_block_components(
    classes: np.ndarray, own: Box, probability: np.ndarray | None = None, bridged: np.ndarray | None = None
) -> tuple[Components, np.ndarray]:
    """Find the components of each class in a block.

    Parameters
    ----------
    classes : ndarray of bool or uint8, (z, y, x)
        Class of each voxel of `own` and its shell, 0 for none: one voxel more at the upper end of each axis, except
        where the volume ends. Touching voxels of two classes are not connected.
    own : Box
        The block, in voxels of the volume.
    probability : ndarray of uint8, (z, y, x), optional
        Probabilities whose sum and maximum each component gets.
    bridged : ndarray of uint8, (z, y, x), optional
        `classes` with more voxels, which connect components and belong to none.

    Returns
    -------
    components : Components
        The components of the block.
    labels : ndarray of int, (z, y, x)
        The label of each voxel, 0 for voxels of no class.

    Raises
    ------
    ValueError
        If the shape of `classes` does not fit the block, or a coordinate is beyond MAX_COORDINATE.

    Notes
    -----
    Takes 5 to 8 bytes a voxel besides the arguments.
    """
    if any(extra not in (0, 1) for extra in per_axis(operator.sub, classes.shape, own.shape)):
        raise ValueError(
            f"a block of {own.shape} and its shell cannot have {classes.shape} voxels: the shell adds one along an "
            "axis, or none"
        )
    connected = classes if bridged is None else bridged
    labels, number = cc3d.connected_components(
        connected, connectivity=26, return_N=True, binary_image=connected.dtype == bool
    )
    borders = Borders.from_labels(labels, own, number)
    if connected is not classes:
        labels = np.where(classes != 0, labels, 0)
    stats = _component_stats(labels[tuple(map(slice, own.shape))], own, number, classes, probability)
    return Components(stats, borders), labels


def label_block_ids(
    ids: np.ndarray, is_hidden: np.ndarray, classes: np.ndarray, own: Box, probability: np.ndarray | None = None
) -> tuple[Components, np.ndarray, np.ndarray]:
    """Return the objects of a block of a label image.

    Parameters
    ----------
    ids : ndarray of int, (z, y, x)
        Id of the object of each voxel of `own`, 0 for none.
    is_hidden : ndarray of bool, (z, y, x)
        Voxels of `own` that do not count.
    classes, probability : ndarray of uint8, (z, y, x)
        Of the same voxels, as of `label_block_components`.
    own : Box
        The block, in voxels of the volume.

    Returns
    -------
    components : Components
        One for each id, without borders: objects of several blocks are joined by their ids. One whose voxels are all
        hidden has size 0.
    labels : ndarray of int, (z, y, x)
        The component of each voxel, from 1; 0 for none.
    known : ndarray of int
        The id of each component.
    """
    known, labels = np.unique(ids, return_inverse=True)
    labels = np.where(is_hidden, 0, labels.reshape(ids.shape) + (known[0] != 0))
    known = known[known != 0]
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int32))
    stats = _component_stats(labels, own, len(known), classes, probability)
    return Components(stats, Borders(own, len(known), nothing, nothing)), labels, known


def _component_stats(
    labels: np.ndarray, own: Box, number: int, classes: np.ndarray, probability: np.ndarray | None
) -> np.ndarray:
    """Return `Components.stats`, computed section by section, so that temporary arrays are as large as a section."""
    stats = np.zeros((number + 1, NUM_COLUMNS), np.int64)
    stats[:, MAXIMA], stats[:, MINIMA] = -INT64_MAX, INT64_MAX
    for z, section in enumerate(labels):
        flat = np.flatnonzero(section)
        if not flat.size:
            continue
        label = section.ravel()[flat]
        y, x = np.divmod(flat, section.shape[1])
        position = np.array([np.full_like(y, z), y, x]) + np.array(own.start)[:, None]
        stats[:, SIZE] += np.bincount(label, minlength=number + 1)
        for axis in range(3):
            stats[:, SUM_Z + axis] += _sum_by_label(label, position[axis] - own.start[axis], number)
            np.minimum.at(stats[:, START_Z + axis], label, position[axis])
            np.maximum.at(stats[:, STOP_Z + axis], label, position[axis] + 1)
        np.minimum.at(stats[:, FIRST_VOXEL], label, voxel_key(*position))
        rows, columns = section.shape
        stats[label, CLASS] = classes[z, :rows, :columns].ravel()[flat]
        if probability is not None:
            value = probability[z, :rows, :columns].ravel()[flat].astype(np.int64)
            stats[:, PROBABILITY_SUM] += _sum_by_label(label, value, number)
            np.maximum.at(stats[:, MAX_PROBABILITY], label, value)
    stats[:, SUM_Z : SUM_Z + 3] += stats[:, SIZE, None] * np.array(own.start)
    return stats[1:]


def _sum_by_label(label: np.ndarray, value: np.ndarray, number: int) -> np.ndarray:
    """Return the sum of values of each label; exact, since the sum over a section is far below 2**53."""
    return np.bincount(label, weights=value, minlength=number + 1).astype(np.int64)


def voxel_key(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return coordinates as one int64 each, which sort like z, y, x. Raises ValueError beyond MAX_COORDINATE."""
    for axis, values in zip(AXES, (z, y, x), strict=True):
        if values.size and not -MAX_COORDINATE <= values.min() <= values.max() < MAX_COORDINATE:
            raise ValueError(
                f"coordinates of objects must be from {-MAX_COORDINATE} to {MAX_COORDINATE}, got {axis} {values.max()}"
            )
    z, y, x = (values.astype(np.int64) + MAX_COORDINATE for values in (z, y, x))
    return (z << 42) | (y << 21) | x


def key_voxel(key: int) -> Zyx:
    """Return the coordinates of a key.

    Parameters
    ----------
    key : int
        Of `voxel_key`.

    Returns
    -------
    tuple of int
        z, y, x.
    """
    return per_axis(lambda shift: ((key >> shift) & (2 * MAX_COORDINATE - 1)) - MAX_COORDINATE, (42, 21, 0))


def _labelled_voxels(labels: np.ndarray, own: Box, part: list[slice]) -> BorderLabels:
    """Return key and label of the labelled voxels in a part of an array."""
    piece = labels[tuple(part)]
    inside = np.nonzero(piece)
    key = voxel_key(*per_axis(lambda index, cut, start: index + (cut.start or 0) + start, inside, part, own.start))
    return key, piece[inside].astype(np.int32)


def _concatenate(borders: list[BorderLabels]) -> BorderLabels:
    keys, labels = (np.concatenate(arrays) for arrays in zip(*borders, strict=True))
    order = np.argsort(keys, kind="stable")
    return keys[order], labels[order]


class UnionFind:
    """The labels of all blocks, joined to components of the volume by a union-find.

    A label of a block becomes a node with the number `base + label - 1`, where `base` is the block's. Blocks are added
    in the order of `Box.cells`, z slowest. A block without labels may be left out. A block that owns no labelled voxel
    but has labels in its shell must not be: it can be what joins them. A number is kept for each label, and shells are
    kept until the blocks that own their voxels are added.
    """

    def __init__(self) -> None:
        self._parent = array("q")
        self._pending_shells: dict[Zyx, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._last_start: Zyx | None = None

    def add(self, borders: Borders) -> int:
        """Add the next block and return its base.

        Raises ValueError for a block out of order, or one whose voxels differ from the shells of its neighbours.
        """
        own = borders.own
        if self._last_start is not None and own.start <= self._last_start:
            raise ValueError(f"blocks must be added in order, z slowest: {own} came after one at {self._last_start}")
        self._last_start = own.start
        base = len(self._parent)
        self._parent.extend(range(base, base + borders.num_labels))
        keys, labels = borders.lower
        for shell_keys, nodes in self._pending_shells.pop(own.start, []):
            at = np.searchsorted(keys, shell_keys)
            if not np.array_equal(keys[at[at < len(keys)]], shell_keys):
                raise ValueError(f"block {own} and the blocks before it differ in the voxels where they meet")
            for one, other in np.unique(np.stack([nodes, base + labels[at] - 1], 1), axis=0).tolist():
                self._unite(one, other)
        self._keep_shell(borders, base)
        return base

    def _keep_shell(self, borders: Borders, base: int) -> None:
        """Store the nodes of the shell under the start of the block that owns each voxel."""
        own, (keys, labels) = borders.own, borders.shell
        position = np.stack([((keys >> shift) & (2 * MAX_COORDINATE - 1)) - MAX_COORDINATE for shift in (42, 21, 0)], 1)
        owner = (position >= own.stop) @ np.array([4, 2, 1])
        for code in np.unique(owner).tolist():
            z, y, x = (own.stop[axis] if code >> (2 - axis) & 1 else own.start[axis] for axis in range(3))
            part = owner == code
            nodes = base + labels[part].astype(np.int64) - 1
            self._pending_shells.setdefault((z, y, x), []).append((keys[part], nodes))

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
        """Return for each node one node of its component, the same for all of them: int64 [nodes]."""
        roots = np.array(self._parent, np.int64)
        while not np.array_equal(higher := roots[roots], roots):
            roots = higher
        return roots
