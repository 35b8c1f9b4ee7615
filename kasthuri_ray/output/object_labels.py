"""The objects of an output as labels: each voxel has the id of its object in the table of objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.components import Components, label_block_components
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger, read_components
from kasthuri_ray.output.output_array import OutputArray


def read_classes(probabilities: OutputArray, box: Box, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Read the class of each voxel, and its probability.

    Parameters
    ----------
    probabilities : OutputArray
        Probabilities of the foreground classes.
    box : Box
        Voxels of the finest level.
    thresholds : sequence of float
        One for each class; see `metrics.class_map.classes_at`.

    Returns
    -------
    classes : ndarray of uint8, (z, y, x)
        0 where no class reaches its threshold.
    probability : ndarray of uint8, (z, y, x)
        Probability of that class, 255 is 1; of class 1 where there is none.
    """
    stored = probabilities.read(0, box)
    classes = classes_at(stored, thresholds)
    return classes, np.take_along_axis(stored, np.maximum(classes, 1)[None] - 1, 0)[0]


def block_with_shell(block: Box, bounds: Box) -> Box:
    """Return a block and one voxel beyond its upper ends, with which its components are joined to those of others.

    Parameters
    ----------
    block, bounds : Box
        The block, and all voxels of the output.

    Returns
    -------
    Box
        Cut to the bounds.
    """
    return Box(block.start, block.shifted((1, 1, 1)).stop).intersect(bounds)


class ObjectLabels:
    """The objects of an output, labelled block by block as when the table was written.

    Parameters
    ----------
    probabilities : OutputArray
        Probabilities of the output.
    ledger : Ledger
        Its ledger, which holds the components of every block that has any.
    grid : BlockGrid
        The blocks whose components were found, in voxels of the output.
    names : set of str
        Names of the blocks in the ledger.
    thresholds : sequence of float
        Probability of each class from which a voxel belongs to an object.
    """

    def __init__(
        self, probabilities: OutputArray, ledger: Ledger, grid: BlockGrid, names: set[str], thresholds: Sequence[float]
    ) -> None:
        self.probabilities, self.ledger, self.grid, self.thresholds = probabilities, ledger, grid, thresholds
        self._first_nodes: dict[str, int] = {}
        self._num_nodes: dict[str, int] = {}
        table = join_objects(self._components(names))
        self.num_objects, self._object_ids = len(table), table.object_ids

    def _components(self, names: set[str]) -> Iterator[Components]:
        """Yield the components of the blocks in their order, and note the numbers of their nodes."""
        first = 0
        for name in map(block_name, self.grid.overlapping(self.grid.bounds)):
            if name in names:
                components = read_components(self.ledger, name)
                self._first_nodes[name], self._num_nodes[name] = first, len(components.stats)
                first += len(components.stats)
                yield components

    def read(self, index: Zyx) -> np.ndarray:
        """Return the ids of the objects in a block, int64 [z, y, x]; 0 outside of them."""
        block, name = self.grid.box(index), block_name(index)
        if not self._num_nodes.get(name):
            return np.zeros(block.shape, np.int64)
        box = block_with_shell(block, self.grid.bounds)
        classes, _ = read_classes(self.probabilities, box, self.thresholds)
        components, labels = label_block_components(classes, block)
        assert len(components.stats) == self._num_nodes[name], (name, len(components.stats), self._num_nodes[name])
        first = self._first_nodes[name]
        ids = np.concatenate([[0], self._object_ids[first : first + self._num_nodes[name]]])
        return ids[labels[tuple(map(slice, block.shape))]]
