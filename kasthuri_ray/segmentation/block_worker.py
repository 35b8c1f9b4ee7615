"""Worker that segments blocks: what an actor does in each phase. Knows nothing of Ray.

An actor is called by several threads at once, one block each: while the network runs on one block, the next is read and
the last is written. The network has a thread of its own, since torch keeps threads and memory for each thread that
calls it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from kasthuri_ray.errors import CompilationFailed, GpuMemoryTooSmall, NodeUnsuitable
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.inference.tiling import blank_chunk_mask
from kasthuri_ray.labels import to_uint8
from kasthuri_ray.metrics.components import label_block_components
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.ledger import Ledger, write_components
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, compression_ratio, label_image
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.segmentation.phases import COPY_PREFIX, OBJECTS, SEGMENT, phase_grid, phase_level
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.segmentation.source_image import is_outside_mask

UNSUITABLE_ERRORS = (GpuMemoryTooSmall, CompilationFailed)  # of the machine, not of the block
MAX_BLOCKS_HELD = 2  # before, and after, the network: this bounds the memory that an actor needs


@dataclass(frozen=True)
class Cutout:
    """A block of the image with its halo.

    Parameters
    ----------
    box : Box
        The block and its halo, cut to the image.
    voxels : ndarray of uint8
        Grey levels of `box`, z, y, x.
    keep : ndarray of bool, or None
        Which chunks of the block are not blank, z, y, x; None for all.
    """

    box: Box
    voxels: np.ndarray
    keep: np.ndarray | None


class BlockWorker:
    """Worker that makes the blocks of a job, after one call of `ready`.

    Parameters
    ----------
    job : SegmentationJob
        The job.
    """

    def __init__(self, job: SegmentationJob) -> None:
        self.job = job
        self.ledger = Ledger.beside(job.output)
        self.output = OmeZarrOutput(job.output, job.spec)
        self._computing = ThreadPoolExecutor(1, "network")
        self._reading, self._writing = threading.Semaphore(MAX_BLOCKS_HELD), threading.Semaphore(MAX_BLOCKS_HELD)

    def ready(self) -> dict[str, Any]:
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
        return self._computing.submit(self._set_up).result()

    def _set_up(self) -> dict[str, Any]:
        job, inference = self.job, self.job.inference
        try:
            machine = Machine.detect(inference.device)
        except ValueError as error:
            raise NodeUnsuitable(str(error)) from error
        if inference.precision == "bf16" and not machine.bf16 and not job.emulate_bf16:
            raise NodeUnsuitable(f"the segmentation was started in bf16, and {machine.name} has no bf16 arithmetic")
        prepare_process(inference)
        network = build_network(job.network)
        load_weights(network, job.weights)
        try:
            self.predictor = Predictor(
                network, job.network["dim"], job.classes, job.receptive_field, inference, job.halo
            )
        except UNSUITABLE_ERRORS as error:
            raise NodeUnsuitable(str(error)) from error
        return {"machine": machine.name}

    def work(self, phase: str, index: Zyx) -> dict[str, Any]:
        """Make a block, write it, and then record in the ledger that it is done.

        Parameters
        ----------
        phase : str
            Name of the phase.
        index : tuple of int
            Index of the block in the phase's grid, z, y, x.

        Returns
        -------
        dict
            What the ledger records, and `blank`: whether nothing was written.

        Raises
        ------
        NodeUnsuitable
            If this machine cannot run the network.
        OSError
            If voxels cannot be read or written; VolumeError for the image.
        RuntimeError
            For any other error; the message names the block.
        """
        box = phase_grid(self.job, phase).box(index)
        try:
            if phase == SEGMENT:
                info, blank = self._segment(box)
            elif phase == OBJECTS:
                info, blank = self._find_objects(box, block_name(index))
            elif phase.startswith(COPY_PREFIX):
                info, blank = {}, not self._copy.copy_block(self.output, phase_level(phase), box)
            else:
                info, blank = {}, not self.output.downsample_block(phase_level(phase), box)
        except UNSUITABLE_ERRORS as error:
            raise NodeUnsuitable(str(error)) from error
        except OSError:
            raise  # its message names what was read or written
        except Exception as error:
            raise RuntimeError(f"{phase} of block {box} (z,y,x): {type(error).__name__}: {error}") from error
        self.ledger.record(phase, block_name(index), info, blank=blank)
        return info | {"blank": blank}

    def _segment(self, block: Box) -> tuple[dict[str, Any], bool]:
        """Run the network over a block and write it; return what the ledger records, and whether it is blank."""
        job = self.job
        if job.mask is not None and is_outside_mask(block, job.mask, job.image):
            return {"outside": True}, True
        with ExitStack() as writing:
            with self._reading:
                cutout = self._fetch(block)
                num_blank = 0 if cutout.keep is None else int((~cutout.keep).sum())
                if cutout.keep is not None and num_blank == cutout.keep.size:
                    return {"blank_chunks": num_blank}, True
                writing.enter_context(self._writing)
                probabilities = self._computing.submit(self._predict, cutout, block).result()
                del cutout
            wrote = self._write(block.relative_to(job.box.start), probabilities)
        return {"computed": True} | ({"blank_chunks": num_blank} if num_blank else {}), not wrote

    def _write(self, block: Box, probabilities: np.ndarray) -> bool:
        """Write a block, in voxels of the output, and its label image; return whether any voxel is not 0."""
        wrote = self.output.write_block(0, block, probabilities)
        if self.job.save_mask:
            wrote |= self.output.write_mask(0, block, label_image(probabilities, self.job.threshold))
        return wrote

    def _fetch(self, block: Box) -> Cutout:
        """Read a block with its halo, and find its blank chunks."""
        job = self.job
        box = job.with_halo(block)
        stored = job.image.read(box)
        keep = None
        if job.skip_blank:
            keep = ~blank_chunk_mask(
                stored, box, block, job.image.bounds, job.layout.chunk, job.box.start, job.halo, job.image.fill_value
            )
        return Cutout(box, to_uint8(stored, job.intensity), keep)

    def _predict(
        self, cutout: Cutout, block: Box, on_voxels: Callable[[int], None] = lambda voxels: None
    ) -> np.ndarray:
        """Return the probabilities of a block: uint8 c, z, y, x."""
        job = self.job
        return self.predictor.predict(
            cutout.voxels,
            cutout.box,
            block,
            job.image.bounds,
            keep=cutout.keep,
            chunk=job.layout.chunk,
            chunk_origin=job.box.start,
            on_voxels=on_voxels,
        )

    def _find_objects(self, block: Box, name: str) -> tuple[dict[str, Any], bool]:
        """Label the components of a block and write them to the ledger."""
        block_and_shell = Box(block.start, block.shifted((1, 1, 1)).stop).intersect(self.job.levels[0].box)
        probabilities = self.output.read(0, block_and_shell)
        # Of several classes the foreground's probability is their sum.
        foreground = np.minimum(probabilities.sum(0, dtype=np.uint16), 255).astype(np.uint8)
        write_components(self.ledger, name, label_block_components(foreground, block, self.job.threshold))
        return {}, False

    @cached_property
    def _copy(self) -> PrecomputedCopy:
        assert self.job.precomputed is not None
        return PrecomputedCopy(self.job.precomputed, self.job.spec)

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
        job, cutout = self.job, self._fetch_all(block)
        probabilities = self._computing.submit(self._predict, cutout, block).result()
        computed: list[int] = []
        start = time.perf_counter()
        self._computing.submit(self._predict, cutout, block, computed.append).result()
        seconds = time.perf_counter() - start
        halo_error = None
        if job.halo != job.receptive_field.margin:
            exact = BlockWorker(replace(job, halo=job.receptive_field.margin))
            exact.ready()
            expected = exact._computing.submit(exact._predict, exact._fetch_all(block), block).result()
            halo_error = float(np.abs(expected.astype(np.int16) - probabilities).max()) / 255
        return {
            "seconds": seconds,
            "computed_voxels": sum(computed),
            "compression": compression_ratio(probabilities),
            "halo_error": halo_error,
        }

    def _fetch_all(self, block: Box) -> Cutout:
        """Read a block with its halo, and keep its blank chunks."""
        box = self.job.with_halo(block)
        return Cutout(box, to_uint8(self.job.image.read(box), self.job.intensity), None)
