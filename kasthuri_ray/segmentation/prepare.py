"""From settings to a segmentation that can begin: everything is opened, held against each other and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import nn

from kasthuri_ray.config import Segment, Settings
from kasthuri_ray.geometry import AXES, Box, Zyx, parse_box
from kasthuri_ray.models.receptive_field import Reach, reach_of
from kasthuri_ray.segmentation.grid import Layout, Level, check_block, default_block, plan_layout, plan_levels
from kasthuri_ray.segmentation.job import ARCHITECTURE, Job, hash_of, plain
from kasthuri_ray.segmentation.predictor import Arithmetic
from kasthuri_ray.segmentation.trained import Trained, build_trained
from kasthuri_ray.volumes import Volume
from kasthuri_ray.volumes.labels import intensity_window
from kasthuri_ray.volumes.opener import Nm, Opener

TOO_FAR = 1.2  # the ratio of voxel sizes from which a network meets what it never learnt
MOST_MIPS = 16
INTENSITY_SAMPLES = 32  # cutouts looked at for percentiles
SAMPLE: Zyx = (1, 256, 256)
THRESHOLD = 0.5  # where neither the run nor the command line says one


@dataclass(frozen=True)
class Prepared:
    """A segmentation that lacks nothing but the arithmetic, which follows from the machines that it runs on."""

    settings: Settings
    trained: Trained
    network: nn.Module
    reach: Reach
    image: Volume
    box: Box
    mask: Volume | None
    intensity: tuple[float, float]
    halo: Zyx
    layout: Layout
    block: Zyx
    levels: tuple[Level, ...]

    @property
    def threshold(self) -> float:
        """Of mask and objects: the one asked for, or the run's."""
        asked = self.settings.segment.threshold
        return asked if asked is not None else self.trained.threshold or THRESHOLD

    @property
    def classes(self) -> int:
        return self.settings.network.classes

    def job(self, output: str, arithmetic: Arithmetic) -> Job:
        """What actors are told."""
        segment, network = self.settings.segment, self.settings.network.model_dump()
        return Job(
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
            precomputed=segment.precomputed,
            skip_blank=segment.skip_blank,
            record=self.record(arithmetic),
        )

    def record(self, arithmetic: Arithmetic) -> dict[str, Any]:
        """What made the output: all that changes a voxel of it, and what a reader wants to know. No time, no host."""
        segment, task = self.settings.segment, self.settings.task
        network = self.settings.network.model_dump()
        record = {
            "image": self.image.uri,
            "box": str(self.box),
            "voxel_size_nm": self.image.voxel_size_nm,
            "intensity": self.intensity,
            "weights": hash_of(self.trained.weights),
            "network": {name: network[name] for name in ARCHITECTURE},
            "task": {
                **{name: getattr(task, name) for name in ("name", "task_type", "threshold", "threshold_value")},
                **{name: getattr(task, name) for name in ("ignore_label", "annotation_chan")},
            },
            "threshold": self.threshold,
            "asked": {name: getattr(segment, name) for name in ASKED} | {"precision": segment.precision},
            "arithmetic": arithmetic,
            "halo": self.halo,
            "margin": self.reach.margin,
            "block": self.block,
            "shard": self.layout.shard,
            "chunk": self.layout.chunk,
            "mask": self.mask and self.mask.uri,
            "versions": {name: version(name) for name in ("kasthuri_ray", "torch")},
        }
        return plain(record)


# What a person may ask for and that changes a voxel, an array or a table.
ASKED = ("tile", "batch", "compile", "device", "tta", "skip_blank", "save_mask", "objects", "precomputed")


def prepare(settings: Settings, trained: Trained, say: Callable[[str], None]) -> Prepared:
    """Open and check all that a segmentation needs before any machine is looked at.

    say: takes a line about what a person should know. Raises ValueError, FileNotFoundError, PermissionError or
    SourceError in words for whatever does not fit.
    """
    segment = settings.segment
    network = build_trained(settings, trained)
    reach = reach_of(network, settings.network.dim, settings.network.in_channels)
    if reach.note:
        say(reach.note)
    opener = Opener(segment.boss, segment.cache, segment.cache_size)
    image = open_image(settings, trained, opener, say)
    box = parse_box(segment.box, image.bounds) if segment.box else image.bounds
    mask = opener.open(segment.mask) if segment.mask else None
    if mask is not None:
        check_mask(mask, image)
    halo = check_halo(segment.halo, reach, say)
    layout = plan_layout(box.shape, _zyx(segment.shard), _zyx(segment.chunk))
    block = _zyx(segment.block) or default_block(box.shape, layout, reach.margin)
    check_block(block, layout.shard, box.shape)
    levels = plan_levels(box.shape, image.voxel_size_nm, box.start, getattr(image, "translation_nm", (0.0, 0.0, 0.0)))
    return Prepared(
        settings=settings,
        trained=trained,
        network=network,
        reach=reach,
        image=image,
        box=box,
        mask=mask,
        intensity=intensity_of(image, box, settings, trained),
        halo=halo,
        layout=layout,
        block=block,
        levels=tuple(levels),
    )


def _zyx(values: Sequence[int] | None) -> Zyx | None:
    return None if values is None else (values[0], values[1], values[2])


def open_image(settings: Settings, trained: Trained, opener: Opener, say: Callable[[str], None]) -> Volume:
    """The image at the resolution asked for, or else at the one whose voxels are nearest to those of the training.

    Raises ValueError where that is more than 20% off, and where it is no image for the network.
    """
    segment = settings.segment
    size: Nm | None = tuple(segment.voxel_size) if segment.voxel_size else None  # type: ignore[assignment]
    uri = segment.image or _only_image(settings)
    image = opener.open(uri, segment.mip, size)
    if image.dtype.kind not in "ui" and trained.intensity is None and settings.task.image_intensity is None:
        raise ValueError(f"{image.uri} holds {image.dtype}, whose range is not known; give task.image_intensity")
    if image.voxel_size_nm is None:
        say(f"{image.uri} does not say how large its voxels are (--voxel-size z,y,x): the output counts in voxels")
    learnt = trained.voxel_size_nm
    if learnt is None or image.voxel_size_nm is None:
        if image.voxel_size_nm is not None:
            say("the weights do not say on what voxel size they were trained, so it is not compared with the image's")
        return image
    if segment.mip is None and size is None:
        image = nearest(image, learnt, lambda mip: opener.open(uri, mip))
    ratio = off(image.voxel_size_nm, learnt)  # type: ignore[arg-type]
    if ratio > TOO_FAR and segment.mip is None:
        raise ValueError(
            f"the voxels of {image.uri} are {_nm(image.voxel_size_nm)} nm, those of the training were {_nm(learnt)} nm "
            "(z,y,x), more than 20% off: the network would meet what it never learnt; --mip N takes a resolution all "
            "the same"
        )
    return image


def _only_image(settings: Settings) -> str:
    """The image that the task trained on, if that is one."""
    images = {region.image for split in ("train", "val", "test") for region in settings.task.regions(split)}
    if len(images) != 1:
        raise ValueError(f"the task {settings.task.name} names {len(images)} images; say which with --image")
    return next(iter(images))  # type: ignore[return-value]


def nearest(image: Volume, learnt: Nm, at_mip: Callable[[int], Volume]) -> Volume:
    """Of the resolutions of `image`, the one whose voxels are nearest in size; the one it has where that is near."""
    best = image
    if off(image.voxel_size_nm, learnt) <= TOO_FAR:  # type: ignore[arg-type]
        return image
    for mip in range(MOST_MIPS):
        try:
            other = at_mip(mip)
        except ValueError:
            break  # no such resolution, or the URI names one
        if other.voxel_size_nm and off(other.voxel_size_nm, learnt) < off(best.voxel_size_nm, learnt):  # type: ignore[arg-type]
            best = other
    return best


def off(one: Nm, other: Nm) -> float:
    """By what factor two voxel sizes differ, along the axis where they differ most; 1 is equal."""
    return math.exp(max(abs(math.log(a / b)) for a, b in zip(one, other, strict=True)))


def _nm(size: Nm | None) -> str:
    return " x ".join(f"{value:g}" for value in size or ())


def check_halo(halo: Sequence[int] | None, reach: Reach, say: Callable[[str], None]) -> Zyx:
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
            "tiles will differ from one pass over the whole; --dry-run measures by how much"
        )
    return asked


def check_mask(mask: Volume, image: Volume) -> None:
    """Raise a ValueError for a mask that cannot be laid over the image."""
    if mask.dtype.kind not in "bui":
        raise ValueError(f"--mask {mask.uri} holds {mask.dtype}; a mask holds whole numbers, 0 outside")
    if mask.bounds != image.bounds and (mask.voxel_size_nm is None or image.voxel_size_nm is None):
        raise ValueError(
            f"--mask {mask.uri} is {mask.bounds}, the image {image.bounds} (z,y,x); to lay one over the other both "
            "must say how large their voxels are"
        )


def intensity_of(image: Volume, box: Box, settings: Settings, trained: Trained) -> tuple[float, float]:
    """The grey levels that become 0 and 255: those of the training, or as the task says for bare weights."""
    if trained.intensity is not None:
        _check_range(image, trained.intensity)
        return trained.intensity
    setting = settings.task.image_intensity
    if isinstance(setting, list) or (setting is None and image.dtype == np.uint8):
        return intensity_window(np.empty(0, image.dtype), image.dtype, setting)
    rng = np.random.default_rng(settings.network.seed)
    sample = [image.read(_draw(box, rng)).ravel() for _ in range(INTENSITY_SAMPLES)]
    return intensity_window(np.concatenate(sample), image.dtype, setting)


def _check_range(image: Volume, intensity: tuple[float, float]) -> None:
    """Raise a ValueError where the image's type cannot hold grey levels such as those of the training."""
    if image.dtype.kind in "ui" and np.iinfo(image.dtype).max < intensity[1] / 2:
        raise ValueError(
            f"{image.uri} holds {image.dtype}, and the network was trained on grey levels {intensity[0]:g} to "
            f"{intensity[1]:g}: another type of image; give one such as it was trained on"
        )
    if image.dtype != np.uint8 and image.dtype.kind in "ui" and intensity == (0.0, 255.0):
        raise ValueError(
            f"{image.uri} holds {image.dtype}, and the network was trained on uint8, grey levels 0 to 255; convert the "
            "image, or train with task.image_intensity"
        )


def _draw(box: Box, rng: np.random.Generator) -> Box:
    shape = [min(n, m) for n, m in zip(SAMPLE, box.shape, strict=True)]
    start = [int(rng.integers(a, b - n + 1)) for a, b, n in zip(box.start, box.stop, shape, strict=True)]
    return Box.at(start, shape)


def is_outside(block: Box, mask: Volume, image: Volume) -> bool:
    """Whether the mask is 0 in all of a block, compared in nm where mask and image are not of one grid."""
    part = mask_box(block, mask, image)
    return part.num_voxels == 0 or not mask.read(part).any()


def mask_box(block: Box, mask: Volume, image: Volume) -> Box:
    """The voxels of the mask that the block touches, cut to the mask; maybe none."""
    if mask.bounds == image.bounds or mask.voxel_size_nm is None or image.voxel_size_nm is None:
        return block.intersect(mask.bounds)
    ratio = [a / b for a, b in zip(image.voxel_size_nm, mask.voxel_size_nm, strict=True)]
    start = [math.floor(a * r + 1e-9) for a, r in zip(block.start, ratio, strict=True)]
    stop = [math.ceil(b * r - 1e-9) for b, r in zip(block.stop, ratio, strict=True)]
    return Box(tuple(start), tuple(stop)).intersect(mask.bounds)  # type: ignore[arg-type]


__all__ = ["Prepared", "Segment", "open_image", "prepare"]
