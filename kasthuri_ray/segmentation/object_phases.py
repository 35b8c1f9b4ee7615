"""Phases that find objects, list them in a table, and write them as a label image."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx
from kasthuri_ray.metrics.components import CLASS
from kasthuri_ray.metrics.object_columns import object_columns
from kasthuri_ray.metrics.object_density import describe_objects, imaged_um3
from kasthuri_ray.metrics.object_detection import block_read_box
from kasthuri_ray.metrics.objects import ObjectTable
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.ledger import Ledger, write_components
from kasthuri_ray.output.object_image import (
    complete_object_image,
    create_object_image,
    open_object_image,
    read_object_ids,
    write_object_ids,
)
from kasthuri_ray.output.object_labels import BlockLabeller, JoinedBlocks
from kasthuri_ray.output.output_array import OutputArray
from kasthuri_ray.output.pyramid import PyramidLevel, level_name
from kasthuri_ray.output.side_files import object_table_path, write_object_table
from kasthuri_ray.progress import format_count
from kasthuri_ray.segmentation.block_segmenter import BlockSegmenter
from kasthuri_ray.segmentation.phase import BlockInfo, Phase, level_grid
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob

IMAGE_PHASES = "object-labels-"  # begins the names of the phases that write the label image
OLD_BLOCKS_NOTE = (
    "the density of the objects is not known: an earlier version segmented blocks without counting what was imaged"
)


class ObjectsPhase(Phase):
    """Objects of each class are labelled in each block, joined across blocks, and listed in a table."""

    NAME: ClassVar[str] = "objects"

    postponed = "the object table is not written yet: some blocks were set aside; run the same command again"

    def __init__(self, job: SegmentationJob, source: Phase) -> None:
        super().__init__(job, self.NAME, "objects", level_grid(job, job.levels[0]), source)
        self.ledger = Ledger.beside(job.output)
        self._joined: JoinedBlocks | None = None
        self.summary: dict[str, Any] = {}
        self.is_imaged_known = True

    @property
    def labeller(self) -> BlockLabeller:
        """What finds the objects of a block."""
        return BlockLabeller(self.job.output_zarr.probabilities, self.grid, self.job.object_settings)

    @property
    def voxel_size_nm(self) -> Nm | None:
        """Size of a voxel of the output."""
        return self.job.levels[0].scale if self.job.spec.nanometers else None

    def source_box(self, box: Box) -> Box:
        """Return what a block is read with: with this its components are joined."""
        return block_read_box(box, self.grid.bounds, self.job.object_settings)

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Label the components of a block and write them to the ledger."""
        components, _ = self.labeller.label(index)
        write_components(self.ledger, block_name(index), components)
        return {}, False

    def join(self, written: Iterable[str]) -> JoinedBlocks:
        """Return the objects, once all blocks are done; they are joined once in a process."""
        if self._joined is None:
            settings = self.job.object_settings
            self._joined = JoinedBlocks(self.ledger, self.grid, settings, self.voxel_size_nm, written)
        return self._joined

    def finish(self, written: Iterable[str]) -> str:
        """Write the table; return how many objects of each class it lists, their density, and warnings."""
        job = self.job
        path, finest = object_table_path(job.output, job.class_names), job.levels[0]
        table = self.join(written).table
        places = (self.voxel_size_nm, finest.translation, job.box.start)
        write_object_table(path, object_columns(table, self.grid.bounds, *places, job.class_names))
        self.summary = self._count(table)
        counts, warnings = describe_objects(table, job.class_names)
        lines = [f"{counts}: {path}", self._density_line(), *(f"warning: {warning}" for warning in warnings)]
        return "\n".join(filter(None, lines))

    def _density_line(self) -> str:
        density = self.summary["objects_per_um3"]
        if density is None:
            return "" if self.voxel_size_nm is None or self.is_imaged_known else OLD_BLOCKS_NOTE
        numbers = ", ".join(f"{value:.3g} of {name}" for name, value in density.items())
        return f"objects per um^3: {numbers}, in {self.summary['imaged_um3']:.4g} um^3 of imaged tissue"

    def _count(self, table: ObjectTable) -> dict[str, Any]:
        """Return the number of objects and their density; None where volume or voxel size are not known."""
        network = self.job.grid
        names = (block_name(network[number]) for number in range(len(network)))
        num_imaged = self.ledger.total(level_name(0), names, "imaged_voxels")
        volume = density = None
        if self.voxel_size_nm is not None and num_imaged:
            volume = imaged_um3(num_imaged, self.voxel_size_nm)
            numbers = np.bincount(table.stats[:, CLASS], minlength=len(self.job.class_names) + 1)[1:].tolist()
            density = {name: number / volume for name, number in zip(self.job.class_names, numbers, strict=True)}
        self.is_imaged_known = num_imaged is not None
        return {"objects": len(table), "imaged_um3": volume, "objects_per_um3": density}


class ObjectImagePhase(Phase):
    """Each voxel gets the id of its object, once the objects of all blocks are joined."""

    NAME: ClassVar[str] = f"{IMAGE_PHASES}{level_name(0)}"

    postponed = "the label image of objects is not written yet: some blocks were set aside; run the same command again"

    def __init__(self, job: SegmentationJob, objects: ObjectsPhase) -> None:
        super().__init__(job, self.NAME, "object labels", objects.grid, objects)
        self.objects, self.ledger = objects, Ledger.beside(job.output)

    def prepare(self, written: Iterable[str]) -> None:
        """Write the ids of each block to the ledger, and create the label image."""
        names = list(written)
        joined = self.objects.join(names)
        write_object_ids(self.ledger, joined, names)
        create_object_image(self.job.output_zarr, len(joined.table))

    def finish(self, written: Iterable[str]) -> str:
        """Note that the label image is complete."""
        num_objects = self.objects.summary["objects"]
        complete_object_image(self.job.output_zarr, num_objects)
        return f"{format_count(num_objects, 'object')} with their voxels: {self.image.path}"

    @cached_property
    def image(self) -> OutputArray:
        """The label image."""
        image = open_object_image(self.job.output_zarr)
        assert image is not None
        return image

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Label a block once more, and write the ids of its objects, shard by shard."""
        ids = read_object_ids(self.ledger, block_name(index)).astype(self.image.dtype)
        if not ids.any():
            return {}, True
        block, (components, labels) = self.grid.box(index), self.objects.labeller.label(index)
        assert len(components.stats) == len(ids) - 1, (index, len(components.stats), len(ids) - 1)
        shard = self.image.level_layout(0).shard
        wrote = [self.image.write_block(0, part, ids[labels[part.slices(block.start)]]) for part in block.cells(shard)]
        return {}, not any(wrote)


class ObjectPyramidPhase(Phase):
    """A coarser level of the label image of objects is computed from the level before."""

    def __init__(self, job: SegmentationJob, level: PyramidLevel, source: Phase) -> None:
        name, label = f"{IMAGE_PHASES}{level.name}", f"object labels {level.name}"
        super().__init__(job, name, label, level_grid(job, level), source)
        self.level = level

    def source_box(self, box: Box) -> Box:
        """Return the voxels of the level before that a block is made from."""
        return self.level.source(box)

    def make_block(self, index: Zyx, segmenter: BlockSegmenter) -> tuple[BlockInfo, bool]:
        """Downsample a block."""
        image = open_object_image(self.job.output_zarr)
        assert image is not None
        return {}, not image.downsample_block(self.level.number, self.grid.box(index))
