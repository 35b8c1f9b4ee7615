"""The network of a job on its blocks: read a block with its halo, and return its probabilities. Knows nothing of Ray.

It is called by several threads at once, one block each: while the network runs on one block, the next is read and the
last is written. The network has a thread of its own, since torch keeps threads and memory for each thread that calls
it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from kasthuri_ray.errors import CompilationFailed, GpuMemoryTooSmall, NodeUnsuitable
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.inference.tiling import ChunkGrid, VolumePart, blank_chunk_mask
from kasthuri_ray.labels import find_not_imaged, to_uint8
from kasthuri_ray.metrics.object_detection import label_block_objects
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.output.ome_zarr import compression_ratio
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.segmentation.source_image import is_outside_mask

UNSUITABLE_ERRORS = (GpuMemoryTooSmall, CompilationFailed)  # of the machine, not of the block
MAX_BLOCKS_HELD = 2  # before, and after, the network: this bounds the memory that an actor needs


def count_imaged_voxels(image: np.ndarray, missing: np.ndarray | None, chunk: Zyx, fill_value: float) -> int:
    """Count the voxels that show tissue.

    Parameters
    ----------
    image : ndarray, (z, y, x)
        Grey levels as they are stored; the first voxel is the first one of a chunk.
    missing : ndarray of bool, or None
        Where the image is nan.
    chunk : tuple of int
        Shape of a chunk.
    fill_value : float
        Value of blank voxels.

    Returns
    -------
    int
        Without nan, and without parts of sections, as large as a chunk, that hold zeros or the fill value alone.
    """
    rows, columns = (np.arange(0, image.shape[axis], chunk[axis]) for axis in (1, 2))
    count = 0
    for z, section in enumerate(image):
        tissue = np.ones(section.shape, bool) if missing is None else ~missing[z]
        grey = tissue & (section != 0) & (section != fill_value)
        has_grey, sizes = (
            np.add.reduceat(np.add.reduceat(mask, rows, axis=0, dtype=np.int64), columns, axis=1)
            for mask in (grey, tissue)
        )
        count += int(sizes[has_grey > 0].sum())
    return count


@dataclass(frozen=True)
class Cutout:
    """A block of the image with its halo.

    Parameters
    ----------
    box : Box
        The block and its halo, cut to the image.
    voxels : tuple of ndarray of uint8
        Grey levels of `box`, z, y, x, for each network; one array for those with the same range.
    keep : ndarray of bool, or None
        Which chunks of the block are not blank, z, y, x; None for all.
    num_absent : int
        Chunks of the image that begin in the block and are not stored.
    missing : ndarray of bool, or None
        Where the image is nan in the block, z, y, x; None: nowhere.
    num_imaged : int
        Voxels of the block that show tissue, see `count_imaged_voxels`.
    """

    box: Box
    voxels: tuple[np.ndarray, ...]
    keep: np.ndarray | None
    num_absent: int = 0
    missing: np.ndarray | None = None
    num_imaged: int = 0


class BlockSegmenter:
    """Segments the blocks of a job, after one call of `set_up`.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    """

    def __init__(self, job: SegmentationJob) -> None:
        self.job = job
        self.grid = ChunkGrid(job.layout.chunk, job.box.start)
        self._computing = ThreadPoolExecutor(1, "network")
        self._reading, self._writing = threading.Semaphore(MAX_BLOCKS_HELD), threading.Semaphore(MAX_BLOCKS_HELD)

    def set_up(self) -> dict[str, Any]:
        """Build the network on its device.

        Returns
        -------
        dict
            `machine`, the name of the machine.

        Raises
        ------
        NodeUnsuitable
            If this machine cannot run the network as the job requires.
        """
        return self._computing.submit(self._build).result()

    def _build(self) -> dict[str, Any]:
        job, inference = self.job, self.job.inference
        try:
            machine = Machine.detect(inference.device)
        except ValueError as error:
            raise NodeUnsuitable(str(error)) from error
        was_requested = job.settings.segment.precision == inference.precision  # then it is emulated
        if not machine.multiplies(inference.precision) and not was_requested:
            raise NodeUnsuitable(
                f"the segmentation was started in {inference.precision}, which {machine.name}, a processor of kind "
                f"{machine.kind}, does not have"
            )
        prepare_process(inference)
        try:
            self.predictors = [self._make_predictor(each.weights) for each in job.trained.all_networks]
        except UNSUITABLE_ERRORS as error:
            raise NodeUnsuitable(str(error)) from error
        return {"machine": machine.name}

    def _make_predictor(self, weights: dict[str, Tensor]) -> Predictor:
        job, network = self.job, build_network(self.job.architecture)
        load_weights(network, weights)
        dim = job.settings.network.dim
        return Predictor(network, dim, job.classes, job.receptive_field, job.inference, job.halo)

    def segment(self, block: Box, write: Callable[[np.ndarray], bool]) -> tuple[dict[str, Any], bool]:
        """Run the network over a block and write its probabilities.

        Parameters
        ----------
        block : Box
            The block, in voxels of the image.
        write : callable
            Takes probabilities, uint8 c, z, y, x; returns whether any voxel is not 0.

        Returns
        -------
        dict
            What the ledger records.
        bool
            Whether the block is blank: nothing was written.
        """
        job = self.job
        if job.mask is not None and is_outside_mask(block, job.mask, job.image):
            return {"outside": True}, True
        with ExitStack() as writing:
            with self._reading:
                cutout = self.fetch(block)
                num_blank = 0 if cutout.keep is None else int((~cutout.keep).sum())
                found = {"imaged_voxels": cutout.num_imaged}
                if cutout.num_absent:
                    found["absent_chunks"] = cutout.num_absent
                if cutout.missing is not None:
                    found["nan_voxels"] = int(cutout.missing.sum())
                if cutout.keep is not None and num_blank == cutout.keep.size:
                    return {"blank_chunks": num_blank} | found, True
                writing.enter_context(self._writing)
                probabilities = self._computing.submit(self.predict, cutout, block).result()
                del cutout
            wrote = write(probabilities)
        return {"computed": True} | ({"blank_chunks": num_blank} if num_blank else {}) | found, not wrote

    def fetch(self, block: Box) -> Cutout:
        """Read a block with its halo, and find its blank chunks."""
        job = self.job
        box = job.with_halo(block)
        stored = job.image.read(box)
        keep = None
        if job.settings.segment.skip_blank:
            part = VolumePart(stored, box, job.image.bounds)
            keep = ~blank_chunk_mask(part, block, self.grid, job.halo, job.image.fill_value)
        inside = stored[block.slices(box.start)]
        num_absent, _ = job.image.count_absent(block, inside, job.box)
        missing = find_not_imaged(inside)
        num_imaged = count_imaged_voxels(inside, missing, job.layout.chunk, job.image.fill_value)
        return Cutout(box, self._grey_levels(stored), keep, num_absent, missing, num_imaged)

    def _grey_levels(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the grey levels of a cutout for each network, as uint8."""
        job = self.job
        ranges = [job.intensity, *(each.intensity or job.intensity for each in job.trained.others)]
        levels = {each: to_uint8(stored, each) for each in dict.fromkeys(ranges)}
        return tuple(levels[each] for each in ranges)

    def predict(self, cutout: Cutout, block: Box, on_voxels: Callable[[int], None] = lambda voxels: None) -> np.ndarray:
        """Return the probabilities of a block: uint8 c, z, y, x; 0 where the image is nan.

        Of several networks they are the mean, rounded half up. `on_voxels` counts the voxels of the first one.
        """
        total: np.ndarray | None = None
        for predictor, voxels in zip(self.predictors, cutout.voxels, strict=True):
            part = VolumePart(voxels, cutout.box, self.job.image.bounds)
            count = on_voxels if total is None else (lambda voxels: None)
            probabilities = predictor.predict(part, block, cutout.keep, self.grid, count)
            if len(self.predictors) > 1:
                total = probabilities.astype(np.uint16) if total is None else total + probabilities
        if total is not None:
            number = len(self.predictors)
            probabilities = ((2 * total.astype(np.uint32) + number) // (2 * number)).astype(np.uint8)
        if cutout.missing is not None:
            probabilities[:, cutout.missing] = 0
        return probabilities

    def time_tiles(self, block: Box) -> dict[str, Any]:
        """Measure how long the network takes for a small block once it is warm.

        Parameters
        ----------
        block : Box
            A few tiles, in voxels of the image.

        Returns
        -------
        dict
            Fields of `plan.TileTiming`.
        """
        job, start = self.job, time.perf_counter()
        cutout = self._fetch_all(block)
        read_seconds = time.perf_counter() - start
        probabilities = self._computing.submit(self.predict, cutout, block).result()
        computed: list[int] = []
        start = time.perf_counter()
        self._computing.submit(self.predict, cutout, block, computed.append).result()
        seconds = time.perf_counter() - start
        halo_error = None
        if job.halo != job.receptive_field.margin:
            exact = BlockSegmenter(replace(job, halo=job.receptive_field.margin))
            exact.set_up()
            expected = exact._computing.submit(exact.predict, exact._fetch_all(block), block).result()
            halo_error = float(np.abs(expected.astype(np.int16) - probabilities).max()) / 255
        return {
            "seconds": seconds,
            "computed_voxels": sum(computed),
            "compression": compression_ratio(probabilities),
            "halo_error": halo_error,
            "read_seconds": read_seconds,
            "read_voxels": job.chunks_around(block).num_voxels,
            "objects": self._time_objects(probabilities) if job.finds_objects else None,
        }

    def _time_objects(self, probabilities: np.ndarray) -> dict[str, Any]:
        """Measure how long the objects of a sample take; return fields of `plan.ObjectTiming`."""
        box, start = Box.at((0, 0, 0), probabilities.shape[1:]), time.perf_counter()
        components, labels = label_block_objects(probabilities, box, box, self.job.object_settings)
        return {
            "seconds": time.perf_counter() - start,
            "voxels": box.num_voxels,
            "num_components": len(components.stats),
            "compression": compression_ratio(labels.astype(np.uint32).view(np.uint8)),
        }

    def _fetch_all(self, block: Box) -> Cutout:
        """Read a block with its halo, and keep its blank chunks."""
        box = self.job.with_halo(block)
        return Cutout(box, self._grey_levels(self.job.image.read(box)), None)
