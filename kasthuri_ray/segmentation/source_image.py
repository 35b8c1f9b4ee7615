"""The image that is segmented, and its mask: which resolution, and which grey levels become 0 and 255."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.segmentation.trained_network import TrainedNetwork
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.volumes.absent_chunks import absent_text, count_absent_before
from kasthuri_ray.volumes.grey_range import DEFAULT_RANGE, STATED_RANGE
from kasthuri_ray.volumes.intensity import intensity_window, is_measured_range
from kasthuri_ray.volumes.mask_alignment import align_mask, mask_box
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.resampled_volume import resample_image
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import VOXEL_SIZE_TOLERANCE, size_text

MAX_SIZE_MISMATCH = (
    0.2  # of the training's voxel size: beyond it a network gets images unlike those that it learnt from
)
ROUNDING = 1e-6
MAX_MIPS = 16

# Cutouts that percentiles of the grey levels are taken from.
NUM_SAMPLES = 32
SAMPLE: Zyx = (1, 256, 256)

MASK_PIECE: Zyx = (64, 512, 512)  # of a mask that is read at once


def open_source_image(
    settings: Settings, trained: TrainedNetwork, opener: VolumeOpener, report: Callable[[str], None]
) -> Volume:
    """Open the image at the requested resolution, or at the one nearest to the voxel size of the training.

    Parameters
    ----------
    settings : Settings
        Sections `segment` and `task` are read.
    trained : TrainedNetwork
        The network, with the voxel size of its training image.
    opener : VolumeOpener
        Opens the volumes.
    report : callable
        Takes a line of text for people.

    Returns
    -------
    Volume
        The image.

    Raises
    ------
    InputError
        If its voxel size differs by more than 20% from the training's and no mip is requested, or if the task names
        several images and `segment.image` none.
    """
    segment = settings.segment
    voxel_size_nm = per_axis(float, segment.voxel_size) if segment.voxel_size else None
    uri = absolute_uri(segment.image or _only_image(settings))
    name = settings.name_of("segment.image" if segment.image else "task.image_chan")
    image = opener.open(uri, segment.mip, voxel_size_nm, name=name)
    if segment.resample and (image.voxel_size_nm is None or trained.voxel_size_nm is None):
        what = f"{image.uri} (--voxel-size z,y,x)" if image.voxel_size_nm is None else "the training"
        raise InputError(f"--resample needs the voxel size of {what}, which is not known")
    if image.voxel_size_nm is None:
        size = "z,y,x"
        if trained.voxel_size_nm is not None:
            size = f"{','.join(f'{nm:g}' for nm in trained.voxel_size_nm)}, that of the training"
        report(f"{image.uri} has no voxel size (--voxel-size {size}): lengths in the output are in voxels")
        return image
    if trained.voxel_size_nm is None:
        report("the training voxel size is not stored with the weights: it is not compared with the image's")
        return image
    if segment.mip is None and voxel_size_nm is None and not _names_resolution(uri):
        image = nearest_mip(image, trained.voxel_size_nm, lambda mip: opener.open(uri, mip))
    if segment.resample and not np.allclose(_size(image), trained.voxel_size_nm, rtol=VOXEL_SIZE_TOLERANCE, atol=0):
        report(f"{image.uri} is resampled from {size_text(_size(image))} to {size_text(trained.voxel_size_nm)} (z,y,x)")
        return resample_image(image, trained.voxel_size_nm)
    if segment.mip is None:
        _check_size(image, trained.voxel_size_nm)
    return image


def _only_image(settings: Settings) -> str:
    """Return the URI of the task's image; InputError if it names several."""
    images = {region.image for split in ("train", "val", "test") for region in settings.task.regions(split)}
    if len(images) != 1:
        raise InputError(f"the task {settings.task.name} names {len(images)} images; choose one with --image")
    return next(iter(images))  # type: ignore[return-value]


def _names_resolution(uri: str) -> bool:
    return re.search(r"^bossdb://[^/]+/[^/]+/[^/]+/\d+/?(\?.*)?$|#mip=\d+$", uri) is not None


def nearest_mip(image: Volume, training_size_nm: Nm, open_mip: Callable[[int], Volume]) -> Volume:
    """Return the resolution of an image whose voxels are nearest in size to those of the training.

    Parameters
    ----------
    image : Volume
        The finest resolution.
    training_size_nm : tuple of float
        Voxel size of the training image, z, y, x.
    open_mip : callable
        Returns a coarser resolution; raises InputError or FileNotFoundError if there is none.

    Returns
    -------
    Volume
        The nearest resolution. No coarser one is opened than needed to find it.
    """
    best, mip = image, 1
    while mip < MAX_MIPS and not all(a >= b for a, b in zip(_size(best), training_size_nm, strict=True)):
        try:
            coarser = open_mip(mip)
        except (ValueError, FileNotFoundError):
            break  # there is no such resolution
        if coarser.voxel_size_nm is None or _mismatch(coarser, training_size_nm) > _mismatch(best, training_size_nm):
            break  # coarser ones differ even more
        best, mip = coarser, mip + 1
    return best


def _size(image: Volume) -> Nm:
    assert image.voxel_size_nm is not None
    return image.voxel_size_nm


def _mismatch(image: Volume, training_size_nm: Nm) -> float:
    """Return how far the voxel sizes differ along the axis where they differ most, as a logarithm of their ratio."""
    return max(per_axis(lambda a, b: abs(math.log(a / b)), _size(image), training_size_nm))


def _check_size(image: Volume, training_size_nm: Nm) -> None:
    size = _size(image)
    if any(abs(a / b - 1) > MAX_SIZE_MISMATCH + ROUNDING for a, b in zip(size, training_size_nm, strict=True)):
        raise InputError(
            f"the voxel size of {image.uri} is {size_text(size)}, but the network was trained at "
            f"{size_text(training_size_nm)} (z,y,x), a difference above 20%; read it at that size with --resample, or "
            "choose a resolution with --mip N to segment anyway"
        )


def image_intensity(
    image: Volume, settings: Settings, trained: TrainedNetwork
) -> tuple[tuple[float, float], str | None]:
    """Return the grey levels that become 0 and 255.

    They are those of the training, unless the task sets others than the run's. For bare weights they are what the task
    sets; percentiles are of the whole image, whatever part of it is segmented.

    Parameters
    ----------
    image : Volume
        The image.
    settings : Settings
        Sections `task` and `network` are read.
    trained : TrainedNetwork
        The network, with the grey levels of its training.

    Returns
    -------
    intensity : tuple of float
        Low and high.
    origin : str or None
        Where they come from, for `check_grey_range`; None: from this image.

    Raises
    ------
    InputError
        If the image does not hold numbers, or the task's setting is malformed.
    """
    setting = settings.task.image_intensity
    is_changed = setting != (trained.settings or {}).get("task", {}).get("image_intensity")
    if image.dtype.kind not in "uif":
        raise InputError(f"{image.uri} holds {image.dtype}, and the network was trained on grey levels: give an image")
    if trained.intensity is not None and not is_changed:
        return trained.intensity, "that the network was trained on"
    if not is_measured_range(setting, image.dtype):
        origin = DEFAULT_RANGE if setting is None else STATED_RANGE
        return intensity_window(np.empty(0, image.dtype), image.dtype, setting), origin
    rng = np.random.default_rng(settings.network.seed)
    sample = np.concatenate([image.read(_draw_sample_box(image.bounds, rng)).ravel() for _ in range(NUM_SAMPLES)])
    return intensity_window(sample, image.dtype, setting), None


def _draw_sample_box(box: Box, rng: np.random.Generator) -> Box:
    shape = per_axis(min, SAMPLE, box.shape)
    start = per_axis(lambda a, b, n: int(rng.integers(a, b - n + 1)), box.start, box.stop, shape)
    return Box.at(start, shape)


def open_mask(uri: str, image: Volume, box: Box, opener: VolumeOpener) -> tuple[Volume, tuple[str, ...]]:
    """Open a mask and align it with the image, in voxels of the image if both have the same voxel size.

    Parameters
    ----------
    uri : str
        The mask.
    image : Volume
        The image.
    box : Box
        What is segmented, in voxels of the image.
    opener : VolumeOpener
        Opens the mask.

    Returns
    -------
    mask : Volume
        The mask, for `is_outside_mask`.
    notes : tuple of str
        What had to be assumed about its place, one line each.

    Raises
    ------
    InputError
        If it is no mask, cannot be aligned with the image, or covers no voxel of `box`.
    """
    mask = opener.open(uri, labels=True, name="--mask")
    if mask.dtype.kind not in "bui":
        raise InputError(f"--mask {mask.uri} holds {mask.dtype}; a mask holds integers, 0 outside")
    try:
        aligned = align_mask(image, mask)
    except InputError as error:
        raise InputError(f"--mask: {error}") from None
    mask = aligned.moving
    if mask_box(box, mask, image).num_voxels == 0:
        raise InputError(
            f"--mask {mask.uri} covers nothing of what is to be segmented, {box} of {image.uri} (z,y,x), so no block "
            "would be segmented; check the voxel size and the offset of both"
        )
    absent = count_absent_before(mask, mask_box(box, mask, image))
    note = (absent_text(mask.uri, *absent, "0: not segmented"),) if absent and absent[0] else ()
    return mask, (*aligned.notes, *note)


def is_outside_mask(block: Box, mask: Volume, image: Volume) -> bool:
    """Return whether the mask is 0 in all of a block.

    Mask and image are aligned in nm where they differ in shape. Voxels that the mask does not cover are outside.
    """
    covered = mask_box(block, mask, image)
    if covered.num_voxels == 0:
        return True
    return not any(mask.read(piece).any() for piece in covered.cells(MASK_PIECE, mask.chunk_origin))
