"""From settings to a segmentation that can begin: everything is opened, held against each other and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import nn

from kasthuri_ray.config.settings import DEFAULT_THRESHOLD, Settings
from kasthuri_ray.geometry import AXES, Box, Zyx, parse_box
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.models.checkpoints import hash_weights
from kasthuri_ray.models.receptive_field import ReceptiveField, find_receptive_field
from kasthuri_ray.output.block_grid import ArrayLayout, check_block_shape, default_block_shape
from kasthuri_ray.output.pyramid import PyramidLevel, plan_layout, plan_levels
from kasthuri_ray.segmentation.segmentation_job import ARCHITECTURE, SegmentationJob, to_plain_json
from kasthuri_ray.segmentation.source_image import check_mask, image_intensity, open_source_image
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, build_trained_network
from kasthuri_ray.storage.uris import absolute_uri, redact_secrets
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume


def prepare_segmentation(settings: Settings, trained: TrainedNetwork, say: Callable[[str], None]) -> SegmentationInputs:
    """Open and check all that a segmentation needs before any machine is looked at.

    say: takes a line about what a person should know. Raises ValueError, FileNotFoundError, PermissionError or
    SourceError in words for whatever does not fit.
    """
    segment = settings.segment
    if settings.kept:
        say(f"carried along and not read: {', '.join(sorted(settings.kept))}")
    for about, note in settings.notes.items():
        if about != "train":
            say(note)
    network = build_trained_network(settings, trained)
    reach = find_receptive_field(network, settings.network.dim, settings.network.in_channels)
    reach = reach.turned() if segment.tta else reach
    if reach.note:
        say(reach.note)
    opener = VolumeOpener(segment.boss, segment.cache, segment.cache_size)
    image = open_source_image(settings, trained, opener, say)
    box = parse_box(segment.box, image.bounds) if segment.box else image.bounds
    mask = opener.open(absolute_uri(segment.mask)) if segment.mask else None
    if mask is not None:
        check_mask(mask, image, box)
    halo = choose_halo(segment.halo, reach, say)
    layout = plan_layout(box.shape, _zyx(segment.shard), _zyx(segment.chunk))
    block = _zyx(segment.block) or default_block_shape(box.shape, layout, reach.margin)
    check_block_shape(block, layout.shard, box.shape)
    levels = plan_levels(box.shape, image.voxel_size_nm, box.start, getattr(image, "translation_nm", (0.0, 0.0, 0.0)))
    return SegmentationInputs(
        settings=settings,
        trained=trained,
        network=network,
        reach=reach,
        image=image,
        box=box,
        mask=mask,
        intensity=image_intensity(image, settings, trained),
        halo=halo,
        layout=layout,
        block=block,
        levels=tuple(levels),
    )


def _zyx(values: Sequence[int] | None) -> Zyx | None:
    return None if values is None else (values[0], values[1], values[2])


def choose_halo(halo: Sequence[int] | None, reach: ReceptiveField, say: Callable[[str], None]) -> Zyx:
    """The halo of a block: the margin, or the smaller one that was asked for, which is said to be inexact."""
    if halo is None:
        return reach.margin
    for axis in range(3):
        if halo[axis] % reach.factors[axis]:
            low = halo[axis] // reach.factors[axis] * reach.factors[axis]
            raise ValueError(
                f"--halo {','.join(map(str, halo))} is not a multiple of the network's pooling, {reach.factors[axis]}, "
                f"along {AXES[axis]}; use {low} or {low + reach.factors[axis]}"
            )
    asked: Zyx = tuple(min(n, m) for n, m in zip(halo, reach.margin, strict=True))  # type: ignore[assignment]
    if asked != reach.margin:
        say(
            f"a halo of {asked} is smaller than the network sees, {reach.margin} (z,y,x): voxels near the borders of "
            "tiles will differ from one pass over the whole"
        )
    elif any(n > m for n, m in zip(halo, reach.margin, strict=True)):
        say(f"the network sees no farther than {reach.margin} (z,y,x): that is the halo, and more would change nothing")
    return asked


@dataclass(frozen=True)
class SegmentationInputs:
    """A segmentation that lacks nothing but the arithmetic, which follows from the machines that it runs on."""

    settings: Settings
    trained: TrainedNetwork
    network: nn.Module
    reach: ReceptiveField
    image: Volume
    box: Box
    mask: Volume | None
    intensity: tuple[float, float]
    halo: Zyx
    layout: ArrayLayout
    block: Zyx
    levels: tuple[PyramidLevel, ...]

    @property
    def threshold(self) -> float:
        """Of mask and objects: the one asked for, or the run's."""
        known = (self.settings.segment.threshold, self.trained.threshold, DEFAULT_THRESHOLD)
        return next(value for value in known if value is not None)

    @property
    def classes(self) -> int:
        return self.settings.network.classes

    @property
    def whole_block(self) -> Zyx:
        """The shape of the largest block that there is."""
        return tuple(min(b, n) for b, n in zip(self.block, self.box.shape, strict=True))  # type: ignore[return-value]

    def job(self, output: str, arithmetic: InferenceSettings, copy: str | None = None) -> SegmentationJob:
        """What actors are told. copy: where a precomputed one goes."""
        segment, network = self.settings.segment, self.settings.network.model_dump()
        return SegmentationJob(
            image=self.image,
            box=self.box,
            network={name: network[name] for name in ARCHITECTURE},
            weights=self.trained.weights,
            intensity=self.intensity,
            reach=self.reach,
            halo=self.halo,
            arithmetic=arithmetic,
            block=self.block,
            layout=self.layout,
            levels=self.levels,
            output=output,
            mask=self.mask,
            task_type=self.settings.task.task_type,
            threshold=self.threshold,
            save_mask=segment.save_mask,
            objects=segment.objects,
            precomputed=copy,
            skip_blank=segment.skip_blank,
            emulate_bf16=segment.precision == "bf16",
            record=self.record(arithmetic),
        )

    def record(self, arithmetic: InferenceSettings) -> dict[str, Any]:
        """What made the output: all that changes a byte of it, and what a reader wants to know. No time, no host."""
        segment, task = self.settings.segment, self.settings.task
        network = self.settings.network.model_dump()
        told = ("name", "task_type", "threshold", "threshold_value", "ignore_label", "annotation_chan")
        return to_plain_json(
            {
                "image": redact_secrets(self.image.uri),
                "box": str(self.box),
                "voxel_size_nm": self.image.voxel_size_nm,
                "intensity": self.intensity,
                "weights": hash_weights(self.trained.weights),
                "network": {name: network[name] for name in ARCHITECTURE},
                "task": {name: getattr(task, name) for name in told},
                "threshold": self.threshold,
                "save_mask": segment.save_mask,
                "skip_blank": segment.skip_blank,
                "mask": self.mask and redact_secrets(self.mask.uri),
                "arithmetic": arithmetic,
                "halo": self.halo,
                "margin": self.reach.margin,
                "block": self.block,
                "shard": self.layout.shard,
                "chunk": self.layout.chunk,
                "versions": {name: version(name) for name in ("kasthuri_ray", "torch", "tensorstore")},
            }
        )
