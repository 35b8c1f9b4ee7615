"""The image that is segmented: which resolution of it, and which of its grey levels become 0 and 255."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.geometry import Box, Nm, Zyx
from kasthuri_ray.labels import intensity_window
from kasthuri_ray.segmentation.trained_network import TrainedNetwork
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.volumes.alignment import mask_box
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume

MAX_SIZE_MISMATCH = 0.2  # of the training's voxel size: beyond it a network meets what it never learnt
ROUNDING = 1e-6
MOST_MIPS = 16
SAMPLES = 32  # cutouts that are looked at for percentiles
SAMPLE: Zyx = (1, 256, 256)


MASK_PIECE: Zyx = (64, 512, 512)  # of a mask that is looked at at once


def open_source_image(
    settings: Settings, trained: TrainedNetwork, opener: VolumeOpener, say: Callable[[str], None]
) -> Volume:
    """The image at the resolution asked for, or else at the one whose voxels are nearest to those of the training.

    Raises ValueError where that is more than 20% off, and where it is no image for the network.
    """
    segment = settings.segment
    size: Nm | None = tuple(segment.voxel_size) if segment.voxel_size else None  # type: ignore[assignment]
    uri = absolute_uri(segment.image or _only_image(settings))
    image = opener.open(uri, segment.mip, size)
    if image.voxel_size_nm is None:
        say(f"{image.uri} does not say how large its voxels are (--voxel-size z,y,x): the output counts in voxels")
        return image
    if trained.voxel_size_nm is None:
        say("the weights do not say on what voxel size they were trained, so it is not compared with the image's")
        return image
    if segment.mip is None and size is None and not _names_resolution(uri):
        image = nearest_mip(image, trained.voxel_size_nm, lambda mip: opener.open(uri, mip))
    if segment.mip is None:
        _check_size(image, trained.voxel_size_nm)
    return image


def _only_image(settings: Settings) -> str:
    """The image that the task trained on, if that is one."""
    images = {region.image for split in ("train", "val", "test") for region in settings.task.regions(split)}
    if len(images) != 1:
        raise ValueError(f"the task {settings.task.name} names {len(images)} images; say which with --image")
    return next(iter(images))  # type: ignore[return-value]


def _names_resolution(uri: str) -> bool:
    return re.search(r"^bossdb://[^/]+/[^/]+/[^/]+/\d+/?$|#mip=\d+$", uri) is not None


def nearest_mip(image: Volume, learnt: Nm, at_mip: Callable[[int], Volume]) -> Volume:
    """Of the resolutions of `image`, which is the finest, the one whose voxels are nearest in size to `learnt`."""
    best, mip = image, 1
    while mip < MOST_MIPS and not all(a >= b for a, b in zip(_size(best), learnt, strict=True)):
        try:
            other = at_mip(mip)
        except (ValueError, FileNotFoundError):
            break  # there is no such resolution
        if other.voxel_size_nm is None or _size_mismatch(_size(other), learnt) > _size_mismatch(_size(best), learnt):
            break  # it only gets coarser
        best, mip = other, mip + 1
    return best


def _size(image: Volume) -> Nm:
    assert image.voxel_size_nm is not None
    return image.voxel_size_nm


def _size_mismatch(one: Nm, other: Nm) -> float:
    """How far two voxel sizes differ, along the axis where they differ most."""
    return max(abs(math.log(a / b)) for a, b in zip(one, other, strict=True))


def _check_size(image: Volume, learnt: Nm) -> None:
    size = _size(image)
    if any(abs(a / b - 1) > MAX_SIZE_MISMATCH + ROUNDING for a, b in zip(size, learnt, strict=True)):
        raise ValueError(
            f"the voxels of {image.uri} are {_size_nm_text(size)} nm, those of the training were {_size_nm_text(learnt)} nm (z,y,x), more "
            "than 20% off: the network would meet what it never learnt; --mip N takes a resolution all the same"
        )


def _size_nm_text(size: Nm) -> str:
    return " x ".join(f"{value:g}" for value in size)


def image_intensity(image: Volume, settings: Settings, trained: TrainedNetwork) -> tuple[float, float]:
    """The grey levels that become 0 and 255: those of the training, or as the task says for bare weights.

    A task that was told others than the run's wins. Percentiles are of the whole image: what is segmented of it does
    not matter. Raises ValueError for an image of another type of numbers.
    """
    setting = settings.task.image_intensity
    told = setting != (trained.settings or {}).get("task", {}).get("image_intensity")
    if trained.intensity is not None and not told:
        _check_type(image, trained.intensity)
        return trained.intensity
    if isinstance(setting, list) or (setting is None and image.dtype == np.uint8) or image.dtype.kind not in "uif":
        return intensity_window(np.empty(0, image.dtype), image.dtype, setting)
    rng = np.random.default_rng(settings.network.seed)
    sample = np.concatenate([image.read(_draw_sample_box(image.bounds, rng)).ravel() for _ in range(SAMPLES)])
    return intensity_window(sample, image.dtype, setting)


def _check_type(image: Volume, intensity: tuple[float, float]) -> None:
    """Raise a ValueError where the image's numbers are not such as those of the training."""
    low, high = intensity
    holds = f"{image.uri} holds {image.dtype}, and the network was trained on"
    if image.dtype.kind not in "uif":
        raise ValueError(f"{holds} grey levels {low:g} to {high:g}; give an image of numbers")
    if image.dtype != np.uint8 and intensity == (0.0, 255.0):
        raise ValueError(
            f"{holds} uint8, grey levels 0 to 255; convert the image, or give its range with "
            "--set task.image_intensity=LOW,HIGH"
        )
    if image.dtype.kind in "ui" and np.iinfo(image.dtype).max < high / 2:
        raise ValueError(
            f"{holds} grey levels {low:g} to {high:g}, which it cannot hold; give such an image, or the range of this "
            "one with --set task.image_intensity=LOW,HIGH"
        )


def _draw_sample_box(box: Box, rng: np.random.Generator) -> Box:
    shape = [min(n, m) for n, m in zip(SAMPLE, box.shape, strict=True)]
    start = [int(rng.integers(a, b - n + 1)) for a, b, n in zip(box.start, box.stop, shape, strict=True)]
    return Box.at(start, shape)


def check_mask(mask: Volume, image: Volume, box: Box) -> None:
    """Raise a ValueError for a mask that cannot be laid over the image, or meets no voxel of `box`."""
    if mask.dtype.kind not in "bui":
        raise ValueError(f"--mask {mask.uri} holds {mask.dtype}; a mask holds whole numbers, 0 outside")
    if mask.bounds != image.bounds and (mask.voxel_size_nm is None or image.voxel_size_nm is None):
        raise ValueError(
            f"--mask {mask.uri} is {mask.bounds}, the image {image.bounds} (z,y,x); to lay one over the other both "
            "must say how large their voxels are"
        )
    if mask_box(box, mask, image).num_voxels == 0:
        raise ValueError(
            f"--mask {mask.uri} covers nothing of what is to be segmented, {box} of {image.uri} (z,y,x), so that all "
            "of it would be left out; look at voxel size and offset of both"
        )


def is_outside_mask(block: Box, mask: Volume, image: Volume) -> bool:
    """Whether the mask is 0 in all of a block, compared in nm where mask and image are not of one grid.

    What the mask does not cover is outside.
    """
    part = mask_box(block, mask, image)
    if part.num_voxels == 0:
        return True
    return not any(mask.read(piece).any() for piece in part.cells(MASK_PIECE, mask.chunk_origin))
