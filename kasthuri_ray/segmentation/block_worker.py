"""What an actor of a segmentation does: `Segmenter.work(phase, block)`, for each phase in turn. Knows nothing of Ray.

The actor is called by several threads at once, one block each: while the network runs on one, the next is read and the
last is written. The network has a thread of its own, since torch keeps threads and memory for each that calls it.
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
from numcodecs.zstd import Zstd

from kasthuri_ray.errors import CompilationFailed, GpuMemoryTooSmall, NodeUnsuitable
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.inference.tiling import blank_chunk_mask
from kasthuri_ray.labels import to_uint8
from kasthuri_ray.metrics.components import label_block_components
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger, components_path
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, label_image
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.segmentation.segmentation_job import COPY, OBJECTS, SEGMENT, SegmentationJob, phase_grid
from kasthuri_ray.segmentation.source_image import is_outside_mask

UNSUITABLE_ERRORS = (GpuMemoryTooSmall, CompilationFailed)  # of predictor: the machine, not the block
MAX_BLOCKS_HELD = 2  # of an actor, before and after the network: the memory that it needs is bounded by this


@dataclass(frozen=True)
class Cutout:
    """A block of the image with its halo: uint8 grey levels of `box`. keep: the output's chunks that are not blank."""

    box: Box
    voxels: np.ndarray
    keep: np.ndarray | None


class BlockWorker:
    """Makes the blocks of a job. `ready` sets it up, once, and raises Unfit where this machine cannot do it."""

    def __init__(self, job: SegmentationJob) -> None:
        self.job = job
        self.ledger = Ledger.beside(job.output)
        self.output = OmeZarrOutput(job.output, job.spec)
        self._computing = ThreadPoolExecutor(1, "network")
        self._reading, self._writing = threading.Semaphore(MAX_BLOCKS_HELD), threading.Semaphore(MAX_BLOCKS_HELD)

    def ready(self) -> dict[str, Any]:
        """Build the network on its device. What it gives names the machine."""
        return self._computing.submit(self._set_up).result()

    def _set_up(self) -> dict[str, Any]:
        job, arithmetic = self.job, self.job.arithmetic
        try:
            machine = Machine.here(arithmetic.device)
        except ValueError as error:
            raise NodeUnsuitable(str(error)) from error
        if arithmetic.precision == "bf16" and not machine.bf16 and not job.emulate_bf16:
            raise NodeUnsuitable(f"the run was begun in bf16, and {machine.name} does not multiply it")
        prepare_process(arithmetic)
        network = build_network(job.network)
        load_weights(network, job.weights)
        try:
            self.predictor = Predictor(network, job.network["dim"], job.classes, job.reach, arithmetic, job.halo)
        except UNSUITABLE_ERRORS as error:
            raise NodeUnsuitable(str(error)) from error
        return {"machine": machine.name}

    def work(self, phase: str, index: Zyx) -> dict[str, Any]:
        """Make a block, write it, and then its record; gives the record.

        Raises Unfit, OSError for a full disk, and RuntimeError that names the block for whatever else.
        """
        box = self._grid(phase).box(index)
        try:
            if phase == SEGMENT:
                info, blank = self._segment(box)
            elif phase == OBJECTS:
                info, blank = self._find_objects(box, block_name(index))
            elif phase.startswith(COPY):
                info, blank = {}, not self._copy.copy_block(self.output, int(phase.removeprefix(COPY)[1:]), box)
            else:
                info, blank = {}, not self.output.build_block(int(phase[1:]), box)
        except UNSUITABLE_ERRORS as error:
            raise NodeUnsuitable(str(error)) from error
        except OSError:
            raise  # says already what was read or written
        except Exception as error:
            raise RuntimeError(f"{phase} of block {box} (z,y,x): {type(error).__name__}: {error}") from error
        self.ledger.record(phase, block_name(index), info, blank=blank)
        return info | {"blank": blank}

    def _grid(self, phase: str) -> BlockGrid:
        return phase_grid(self.job, phase)

    def _segment(self, block: Box) -> tuple[dict[str, Any], bool]:
        """Run the network over a block and write it; what there is to say of it, and whether nothing was written."""
        job = self.job
        if job.mask is not None and is_outside_mask(block, job.mask, job.image):
            return {"outside": True}, True
        with ExitStack() as writing:
            with self._reading:
                cutout = self._fetch(block)
                blank = 0 if cutout.keep is None else int((~cutout.keep).sum())
                if cutout.keep is not None and blank == cutout.keep.size:
                    return {"blank_chunks": blank}, True
                writing.enter_context(self._writing)
                probabilities = self._computing.submit(self._predict, cutout, block).result()
                del cutout
            wrote = self._write(block.relative_to(job.box.start), probabilities)
        return {"computed": True} | ({"blank_chunks": blank} if blank else {}), not wrote

    def _write(self, place: Box, probabilities: np.ndarray) -> bool:
        wrote = self.output.write_block(0, place, probabilities)
        if self.job.save_mask:
            wrote |= self.output.write_mask(0, place, label_image(probabilities, self.job.threshold))
        return wrote

    def _fetch(self, block: Box) -> Cutout:
        job = self.job
        box = job.grown(block)
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
        """Label a block and leave its components in the ledger."""
        whole = self.job.levels[0].box
        shell = Box(block.start, tuple(b + 1 for b in block.stop)).intersect(whole)  # type: ignore[arg-type]
        probabilities = self.output.read(0, shell)
        # Of several classes the foreground's probability is their sum.
        foreground = np.minimum(probabilities.sum(0, dtype=np.uint16), 255).astype(np.uint8)
        found = label_block_components(foreground, block, self.job.threshold)
        self.ledger.storage.write_bytes(components_path(name), found.to_bytes())
        return {}, False

    @cached_property
    def _copy(self) -> PrecomputedCopy:
        assert self.job.precomputed is not None
        return PrecomputedCopy(self.job.precomputed, self.job.spec)

    # what a plan asks

    def time_tiles(self, block: Box) -> dict[str, Any]:
        """What the network takes for a small block once it is warm: the fields of `plan.Timing`."""
        job = self.job
        cutout = self._cutout(block, job.halo)
        probabilities = self._computing.submit(self._predict, cutout, block).result()
        computed: list[int] = []
        start = time.perf_counter()
        self._computing.submit(self._predict, cutout, block, computed.append).result()
        seconds = time.perf_counter() - start
        packed = len(Zstd(level=1).encode(np.ascontiguousarray(probabilities)))
        error = None
        if job.halo != job.reach.margin:
            exact = BlockWorker(replace(job, halo=job.reach.margin))
            exact.ready()
            cutout = exact._cutout(block, exact.job.halo)
            whole = exact._computing.submit(exact._predict, cutout, block).result()
            error = float(np.abs(whole.astype(np.int16) - probabilities).max()) / 255
        return {
            "seconds": seconds,
            "computed": sum(computed),
            "compression": max(1.0, probabilities.size / packed),
            "halo_error": error,
        }

    def _cutout(self, block: Box, halo: Zyx) -> Cutout:
        """The block with its halo, none of it left out."""
        box = replace(self.job, halo=halo).grown(block)
        return Cutout(box, to_uint8(self.job.image.read(box), self.job.intensity), None)
