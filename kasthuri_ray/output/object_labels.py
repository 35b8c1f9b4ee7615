"""The objects of an output as labels: each voxel has the id of its object in the table of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.metrics.components import Components
from kasthuri_ray.metrics.object_detection import block_read_box, label_block_objects, select_objects
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.objects import ObjectTable, join_objects
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger, read_components
from kasthuri_ray.output.output_array import OutputArray


def recorded_object_settings(record: Mapping[str, Any], thresholds: Sequence[float]) -> ObjectSettings:
    """Return how the objects of an output are found.

    Parameters
    ----------
    record : mapping
        Its provenance. Without an entry, as of an earlier version, the thresholds alone make objects.
    thresholds : sequence of float
        Threshold of each class.

    Returns
    -------
    ObjectSettings
        The settings.
    """
    return ObjectSettings.from_plain(record.get("objects")) or ObjectSettings.of_thresholds(thresholds)


@dataclass(frozen=True)
class BlockLabeller:
    """Finds the objects of an output block by block, always with the same labels.

    Parameters
    ----------
    probabilities : OutputArray
        Probabilities of the output.
    grid : BlockGrid
        The blocks, in voxels of the output.
    settings : ObjectSettings
        How objects are found.
    """

    probabilities: OutputArray
    grid: BlockGrid
    settings: ObjectSettings

    def label(self, index: Zyx) -> tuple[Components, np.ndarray]:
        """Return the components of a block, and the label of each of its voxels."""
        block, bounds = self.grid.box(index), self.grid.bounds
        read = block_read_box(block, bounds, self.settings)
        return label_block_objects(self.probabilities.read(0, read), block, bounds, self.settings)


class JoinedBlocks:
    """The components of the blocks of an output, joined to objects.

    Parameters
    ----------
    ledger : Ledger
        Ledger of the output, which holds the components of every block that has any.
    grid : BlockGrid
        The blocks, in voxels of the output.
    settings : ObjectSettings
        How objects are found.
    voxel_size_nm : sequence of float or None
        Size of a voxel, z, y, x.
    names : iterable of str
        Names of the blocks in the ledger, z slowest.
    """

    def __init__(
        self,
        ledger: Ledger,
        grid: BlockGrid,
        settings: ObjectSettings,
        voxel_size_nm: Sequence[float] | None,
        names: Iterable[str],
    ) -> None:
        self._ledger, self._first_nodes, self._num_nodes = ledger, dict[str, int](), dict[str, int]()
        candidates = join_objects(self._components(names))
        self.table: ObjectTable = select_objects(candidates, settings, grid.bounds, voxel_size_nm)

    def _components(self, names: Iterable[str]) -> Iterator[Components]:
        """Yield the components of the blocks in their order, and note the numbers of their nodes."""
        first = 0
        for name in names:
            components = read_components(self._ledger, name)
            self._first_nodes[name], self._num_nodes[name] = first, len(components.stats)
            first += len(components.stats)
            yield components

    def block_ids(self, name: str) -> np.ndarray:
        """Return the id of the object of each label of a block, int64 [labels + 1]; of label 0 it is 0."""
        first = self._first_nodes.get(name, 0)
        return np.concatenate([[0], self.table.object_ids[first : first + self._num_nodes.get(name, 0)]])


class ObjectLabels:
    """The objects of an output, labelled block by block as when the table was written.

    Parameters
    ----------
    labeller : BlockLabeller
        Finds the objects of a block.
    ledger : Ledger
        Ledger of the output.
    names : set of str
        Names of the blocks in the ledger whose components were found.
    voxel_size_nm : sequence of float or None
        Size of a voxel, z, y, x.
    """

    def __init__(
        self, labeller: BlockLabeller, ledger: Ledger, names: set[str], voxel_size_nm: Sequence[float] | None
    ) -> None:
        self.labeller, grid = labeller, labeller.grid
        in_order = (name for name in map(block_name, grid.overlapping(grid.bounds)) if name in names)
        self._joined = JoinedBlocks(ledger, grid, labeller.settings, voxel_size_nm, in_order)
        self.num_objects = len(self._joined.table)

    def read(self, index: Zyx) -> np.ndarray:
        """Return the ids of the objects in a block, int64 [z, y, x]; 0 outside of them."""
        ids = self._joined.block_ids(block_name(index))
        if not ids.any():
            return np.zeros(self.labeller.grid.box(index).shape, np.int64)
        components, labels = self.labeller.label(index)
        assert len(components.stats) == len(ids) - 1, (index, len(components.stats), len(ids) - 1)
        return ids[labels]
