"""Objects of probabilities: those of a whole array, and the same ones block by block.

1. The *extent*: each voxel has the most probable class of those that reach their extent thresholds (`classes_at`).
2. *Bridges*: gaps along z of at most `bridge_sections` sections, between voxels of one class, connect them. The gap
   itself belongs to no object.
3. Connected pieces of one class (26 neighbours: a face, an edge or a corner is shared) are candidates.
4. A candidate is an object if its highest probability reaches the seed threshold, and its mean probability the lowest
   score. It must also have the smallest size and number of sections, unless the box cuts it: what is beyond the box is
   not known.

Steps 1 to 3 are done in each block (`label_block_objects`), which is read with `bridge_sections` more sections on each
side. Step 4 is done once the blocks are joined (`select_objects`). The objects do not depend on the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.class_map import classes_at, lowest_value
from kasthuri_ray.metrics.components import (
    MAX_PROBABILITY,
    SIZE,
    START_Z,
    STOP_Z,
    Components,
    label_block_components,
)
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.objects import ObjectTable, join_objects, keep_objects


@dataclass(frozen=True, eq=False)
class Extent:
    """The voxels that can belong to objects.

    Parameters
    ----------
    classes : ndarray of uint8, (z, y, x)
        Class of each voxel, 0 for none.
    probability : ndarray of uint8, (z, y, x)
        Probability of that class, 255 is 1; of class 1 where there is none.
    bridged : ndarray of uint8, (z, y, x)
        As `classes`, with bridged gaps; `classes` itself without bridges.
    """

    classes: np.ndarray
    probability: np.ndarray
    bridged: np.ndarray

    def cut(self, box: Box, part: Box) -> Extent:
        """Return the part of the extent of `box`."""
        inside = part.slices(box.start)
        classes = self.classes[inside]
        bridged = classes if self.bridged is self.classes else self.bridged[inside]
        return Extent(classes, self.probability[inside], bridged)


def find_extent(probability: np.ndarray, settings: ObjectSettings) -> Extent:
    """Return the voxels that can belong to objects.

    Parameters
    ----------
    probability : ndarray of uint8, (classes - 1, z, y, x)
        Probability of each foreground class, 255 is 1.
    settings : ObjectSettings
        How objects are found.

    Returns
    -------
    Extent
        Of the same voxels; bridges near the first and the last section depend on sections beyond.
    """
    classes = classes_at(probability, settings.extent)
    of_class = probability[0]
    if len(probability) > 1:
        of_class = np.take_along_axis(probability, np.maximum(classes, 1)[None] - 1, 0)[0]
    return Extent(classes, of_class, bridge_gaps(classes, settings.bridge_sections))


def bridge_gaps(classes: np.ndarray, num_sections: int) -> np.ndarray:
    """Fill gaps along z.

    Parameters
    ----------
    classes : ndarray of uint8, (z, y, x)
        Class of each voxel, 0 for none.
    num_sections : int
        Largest gap that is filled.

    Returns
    -------
    ndarray of uint8, (z, y, x)
        With a class wherever at most so many voxels of no class lie between two voxels of that class along z; `classes`
        itself if nothing is to be filled.
    """
    depth = len(classes)
    if not num_sections or depth < 3:
        return classes
    bridged, is_empty = classes.copy(), np.ones((depth, *classes.shape[1:]), bool)
    for gap in range(1, min(num_sections, depth - 2) + 1):
        # is_empty[z]: voxels z + 1 to z + gap have no class
        is_empty = is_empty[: depth - gap] & (classes[gap:] == 0)
        below, above = classes[: depth - gap - 1], classes[gap + 1 :]
        ends = np.where(is_empty[: depth - gap - 1] & (below == above), below, 0)
        for offset in range(1, gap + 1):
            part = bridged[offset : offset + len(ends)]
            np.maximum(part, ends, out=part)
    return bridged


def block_read_box(block: Box, bounds: Box, settings: ObjectSettings) -> Box:
    """Return what a block is read with: the shell, one voxel beyond its upper ends, and sections for bridges.

    Parameters
    ----------
    block, bounds : Box
        The block, and all voxels in which objects are found.
    settings : ObjectSettings
        How objects are found.

    Returns
    -------
    Box
        Cut to the bounds.
    """
    beyond = settings.bridge_sections
    (z0, y0, x0), (z1, y1, x1) = block.start, block.stop
    return Box((z0 - beyond, y0, x0), (z1 + 1 + beyond, y1 + 1, x1 + 1)).intersect(bounds)


def block_with_shell(block: Box, bounds: Box) -> Box:
    """Return a block and one voxel beyond its upper ends, with which its components are joined to those of others.

    Parameters
    ----------
    block, bounds : Box
        The block, and all voxels in which objects are found.

    Returns
    -------
    Box
        Cut to the bounds.
    """
    return Box(block.start, block.shifted((1, 1, 1)).stop).intersect(bounds)


def label_block_objects(
    probability: np.ndarray, block: Box, bounds: Box, settings: ObjectSettings
) -> tuple[Components, np.ndarray]:
    """Find the candidates for objects in a block.

    Parameters
    ----------
    probability : ndarray of uint8, (classes - 1, z, y, x)
        Of the voxels of `block_read_box`.
    block, bounds : Box
        The block, and all voxels in which objects are found.
    settings : ObjectSettings
        How objects are found.

    Returns
    -------
    components : Components
        The components of the block, for `join_objects`.
    labels : ndarray of int, (z, y, x)
        The label of each voxel of the block, 0 outside of components.
    """
    read, with_shell = block_read_box(block, bounds, settings), block_with_shell(block, bounds)
    extent = find_extent(probability, settings).cut(read, with_shell)
    components, labels = label_block_components(extent.classes, block, extent.probability, extent.bridged)
    return components, labels[tuple(map(slice, block.shape))]


def select_objects(
    table: ObjectTable, settings: ObjectSettings, bounds: Box, voxel_size_nm: Sequence[float] | None = None
) -> ObjectTable:
    """Keep the candidates that are objects.

    Parameters
    ----------
    table : ObjectTable
        Candidates, joined over all blocks.
    settings : ObjectSettings
        How objects are found.
    bounds : Box
        All voxels in which objects are found; what touches its faces is cut.
    voxel_size_nm : sequence of float, optional
        Size of a voxel, z, y, x, for sizes in nm^3.

    Returns
    -------
    ObjectTable
        The objects, numbered in the same order.
    """
    return keep_objects(table, is_object(table, settings, bounds, voxel_size_nm))


def is_object(
    table: ObjectTable, settings: ObjectSettings, bounds: Box, voxel_size_nm: Sequence[float] | None = None
) -> np.ndarray:
    """Return which candidates are objects, bool [candidates]; arguments as for `select_objects`."""
    stats, of_class = table.stats, table.class_numbers - 1
    lowest_seed = np.array([lowest_value(seed) for seed in settings.seed])
    is_seeded = stats[:, MAX_PROBABILITY] >= lowest_seed[of_class]
    is_large = stats[:, SIZE] >= np.array(settings.min_voxels(voxel_size_nm))[of_class]
    is_deep = stats[:, STOP_Z] - stats[:, START_Z] >= settings.min_sections
    is_sure = table.mean_probability >= np.array(settings.min_score)[of_class]
    return is_seeded & is_sure & (table.is_cut(bounds) | (is_large & is_deep))


def find_objects(
    probability: np.ndarray, settings: ObjectSettings, voxel_size_nm: Sequence[float] | None = None
) -> tuple[np.ndarray, ObjectTable]:
    """Find the objects of a whole array at once.

    Parameters
    ----------
    probability : ndarray of uint8, (classes - 1, z, y, x)
        Probability of each foreground class, 255 is 1.
    settings : ObjectSettings
        How objects are found.
    voxel_size_nm : sequence of float, optional
        Size of a voxel, z, y, x, for sizes in nm^3.

    Returns
    -------
    labels : ndarray of int64, (z, y, x)
        Id of the object of each voxel, 0 for none.
    table : ObjectTable
        The objects; row i has the id i + 1.
    """
    bounds = Box.at((0, 0, 0), probability.shape[1:])
    components, labels = label_block_objects(probability, bounds, bounds, settings)
    table = select_objects(join_objects([components]), settings, bounds, voxel_size_nm)
    return np.concatenate([[0], table.object_ids])[labels], table
