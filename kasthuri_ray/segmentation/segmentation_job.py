"""What an actor of a segmentation is told, and what of it changes a byte of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.models.receptive_field import ReceptiveField
from kasthuri_ray.output.block_grid import ArrayLayout, BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OutputSpec
from kasthuri_ray.output.pyramid import PyramidLevel
from kasthuri_ray.volumes.volume import Volume

# What decides a network's answers; the rest of a network's settings says how it learnt.
ARCHITECTURE = (
    *("model", "model_args", "model_type", "in_channels", "classes", "n_blocks", "start_filters", "activation"),
    *("normalization", "conv_mode", "dim", "pool_z"),
)


SEGMENT, OBJECTS, COPY = "s0", "objects", "precomputed-"


@dataclass(frozen=True)
class SegmentationJob:
    """All that an actor needs to make the output's blocks, of any phase.

    network: the settings of ARCHITECTURE. weights: its state dict, on the CPU. intensity: the grey levels that become
    0 and 255. box: what is segmented, in voxels of the image. halo: what a block reads around itself, z, y, x; the
    reach's margin unless a smaller one was asked for. block: z, y, x. threshold: of mask and objects.
    precomputed: where a copy goes, if there is one. emulate_bf16: whether bf16 was asked for by name, so that machines
    which cannot multiply it do it all the same. record: what the output's attributes and the ledger keep.
    """

    image: Volume
    box: Box
    network: dict[str, Any]
    weights: dict[str, Tensor]
    intensity: tuple[float, float]
    reach: ReceptiveField
    halo: Zyx
    arithmetic: InferenceSettings
    block: Zyx
    layout: ArrayLayout
    levels: tuple[PyramidLevel, ...]
    output: str
    mask: Volume | None
    task_type: str
    threshold: float
    save_mask: bool
    objects: bool
    precomputed: str | None
    skip_blank: bool
    emulate_bf16: bool
    record: dict[str, Any]

    @property
    def classes(self) -> int:
        return int(self.network["classes"])

    @cached_property
    def spec(self) -> OutputSpec:
        """What the output is."""
        names = [self.task_type] if self.classes == 2 else [f"{self.task_type}_{n}" for n in range(1, self.classes)]
        return OutputSpec(
            levels=self.levels,
            layout=self.layout,
            nanometers=self.image.voxel_size_nm is not None,
            channels=tuple(names),
            name=self.task_type,
            mask=self.task_type if self.save_mask else None,
            record=self.record,
        )

    def grown(self, block: Box) -> Box:
        """A block and its halo, as far as the image goes."""
        start = tuple(a - h for a, h in zip(block.start, self.halo, strict=True))
        stop = tuple(b + h for b, h in zip(block.stop, self.halo, strict=True))
        return Box(start, stop).intersect(self.image.bounds)  # type: ignore[arg-type]


def to_plain_json(value: Any) -> Any:
    """`value` as JSON gives it back: tuples are lists, dataclasses are objects."""
    if hasattr(value, "__dataclass_fields__"):
        return to_plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain_json(item) for key, item in value.items()}
    return [to_plain_json(item) for item in value] if isinstance(value, list | tuple) else value


class BlockTracker:
    """What is done, as the ledger has it when a phase is first asked for, and as news come in by `note_done`."""

    def __init__(self, job: SegmentationJob, ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self._done: dict[str, dict[str, bool]] = {}
        self._blank: dict[str, int] = {}

    def done(self, phase: str) -> dict[str, bool]:
        """The names of the finished blocks, and whether each wrote anything."""
        if phase not in self._done:
            self._done[phase] = self.ledger.done(phase)
            self._blank[phase] = sum(not wrote for wrote in self._done[phase].values())
        return self._done[phase]

    def num_blank(self, phase: str) -> int:
        """How many of the finished blocks wrote nothing."""
        self.done(phase)
        return self._blank[phase]

    def note_done(self, phase: str, index: Zyx, wrote: bool) -> None:
        done, name = self.done(phase), block_name(index)
        if name not in done:
            self._blank[phase] += not wrote
        done[name] = wrote

    def is_whole(self, phase: str) -> bool:
        return len(self.done(phase)) == len(phase_grid(self.job, phase))

    def pending(self, phase: str) -> Iterator[Zyx]:
        """The blocks of a phase that can be done now and are not, as they are needed.

        Those that are made of nothing but blank blocks are done by that: nobody has to read what is not there.
        """
        grid, done = phase_grid(self.job, phase), self.done(phase)
        for index in (grid[number] for number in range(len(grid))):
            if block_name(index) in done:
                continue
            wrote = self._sources_wrote(phase, grid.box(index))
            if wrote is None:
                continue  # a block that it is made of is not there
            if any(wrote):
                yield index
            else:
                self.note_done(phase, index, wrote=False)

    def written(self, phase: str) -> Iterator[str]:
        """The names of the blocks of a phase that wrote something, z slowest."""
        grid, done = phase_grid(self.job, phase), self.done(phase)
        return (name for name in map(block_name, grid.covering(grid.box_of_all)) if done.get(name))

    def _sources_wrote(self, phase: str, box: Box) -> list[bool] | None:
        """Of the blocks that a block is made of, whether each wrote anything; None where one is not done."""
        if phase == SEGMENT:
            return [True]
        levels = self.job.levels
        if phase == OBJECTS:  # neighbours too: what is beyond the upper ends is joined here
            source, box = levels[0], Box(box.start, tuple(b + 1 for b in box.stop))  # type: ignore[arg-type]
        elif phase.startswith(COPY):
            source = levels[phase_level(phase)]
        else:
            here = levels[phase_level(phase)]
            source, box = levels[here.number - 1], here.source(box)
        before, grid = self.done(source.name), self._grid_in_output(source.number)
        found = [before.get(block_name(each)) for each in grid.covering(box)]
        return None if None in found else found  # type: ignore[return-value]

    def _grid_in_output(self, level: int) -> BlockGrid:
        """The blocks of a level in voxels of the output."""
        if level == 0:
            return BlockGrid(self.job.levels[0].box, self.job.block)
        return phase_grid(self.job, self.job.levels[level].name)


def phase_level(phase: str) -> int:
    """The number of the level that a phase of the pyramid or of the copy makes."""
    return int(phase.removeprefix(COPY).removeprefix("s"))


def job_phases(job: SegmentationJob) -> list[str]:
    """The phases of a job, in their order: the network, the pyramid, the table of objects, the copy."""
    levels = [level.name for level in job.levels]
    copies = [f"{COPY}{name}" for name in levels] if job.precomputed else []
    return [*levels, *([OBJECTS] if job.objects else []), *copies]


def phase_grid(job: SegmentationJob, phase: str) -> BlockGrid:
    """The blocks of a phase. Of the finest level they are in voxels of the image, of any other in the output's."""
    if phase == SEGMENT:
        return BlockGrid(job.box, job.block)
    level = job.levels[0 if phase == OBJECTS else int(phase.removeprefix(COPY)[1:])]
    block = job.block if level.number == 0 else job.spec.level_layout(level.number).shard
    return BlockGrid(level.box, block)


def phase_label(phase: str) -> str:
    if phase == SEGMENT:
        return "segmenting"
    if phase == OBJECTS:
        return "objects"
    return f"precomputed {phase.removeprefix(COPY)}" if phase.startswith(COPY) else f"pyramid {phase}"
