"""Preparation of a segmentation: everything that the settings name is opened and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from kasthuri_ray.config import defaults
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Zyx, parse_box, per_axis
from kasthuri_ray.models.receptive_field import ReceptiveField, find_receptive_field
from kasthuri_ray.output.block_grid import check_block_shape, default_block_shape
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.pyramid import plan_levels
from kasthuri_ray.segmentation.ensemble import with_intensities
from kasthuri_ray.segmentation.resolved_objects import objects_note
from kasthuri_ray.segmentation.resume import was_begun
from kasthuri_ray.segmentation.segmentation_job import SegmentationInputs
from kasthuri_ray.segmentation.source_image import image_intensity, open_mask, open_source_image
from kasthuri_ray.segmentation.trained_network import TrainedNetwork
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.volumes.absent_chunks import check_any_chunk
from kasthuri_ray.volumes.grey_range import check_grey_range
from kasthuri_ray.volumes.opening import VolumeOpener


def prepare_segmentation(
    settings: Settings, trained: TrainedNetwork, network: nn.Module, report: Callable[[str], None]
) -> SegmentationInputs:
    """Open and check all that a segmentation needs, before it looks at the cluster.

    Parameters
    ----------
    settings : Settings
        Sections `segment`, `task` and `network` are read.
    trained : TrainedNetwork
        The weights, with the settings, threshold and image of their training as far as known.
    network : nn.Module
        The network with these weights.
    report : callable
        Takes a line of text for people.

    Returns
    -------
    SegmentationInputs
        Image, mask, blocks and levels.

    Raises
    ------
    InputError, VolumeError
        If an input is missing or does not fit; the message says which.
    """
    segment = settings.segment
    _report_notes(settings, report)
    if segment.threshold is None and trained.threshold is None:
        report(
            f"the weights state no threshold: the default, {defaults.THRESHOLD:g}, decides masks and objects, also in "
            "an evaluation; --threshold sets another"
        )
    receptive_field = find_receptive_field(network, settings.network.dim, settings.network.in_channels)
    receptive_field = receptive_field.widened_for_tta() if segment.tta else receptive_field
    if receptive_field.note:
        report(receptive_field.note)
    opener = VolumeOpener(segment.boss, segment.cache, segment.cache_size)
    image = open_source_image(settings, trained, opener, report)
    box = (
        parse_box(segment.box, image.bounds, settings.name_of("segment.box"), image.uri)
        if segment.box
        else image.bounds
    )
    check_any_chunk(image, box, "the box", segment.allow_empty)
    intensity, origin = image_intensity(image, settings, trained)
    trained, ensemble_notes = with_intensities(trained, settings, intensity)
    if origin is not None and not was_begun(segment):
        is_stated = "task.image_intensity" in settings.typed
        for each in dict.fromkeys([intensity, *(other.intensity or intensity for other in trained.others)]):
            for note in check_grey_range(image, [box], each, origin, is_stated):
                report(note)
    for note in ensemble_notes:
        report(note)
    mask = None
    if segment.mask:
        mask, notes = open_mask(absolute_uri(segment.mask), image, box, opener)
        for note in notes:
            report(note)
    for note in (*opener.notes, objects_note(segment, trained)):
        if note:
            report(note)
    halo = choose_halo(segment.halo, receptive_field, report)
    layout = plan_layout(box.shape, _zyx(segment.shard), _zyx(segment.chunk))
    block = _zyx(segment.block) or default_block_shape(box.shape, layout, receptive_field.margin)
    check_block_shape(block, layout.shard, box.shape)
    levels = plan_levels(box.shape, image.voxel_size_nm, box.start, image.translation_nm)
    return SegmentationInputs(
        settings=settings,
        trained=trained,
        receptive_field=receptive_field,
        image=image,
        box=box,
        mask=mask,
        intensity=intensity,
        halo=halo,
        layout=layout,
        block=block,
        levels=tuple(levels),
    )


def _report_notes(settings: Settings, report: Callable[[str], None]) -> None:
    if settings.kept:
        report(f"unused keys of the task and network files: {', '.join(sorted(settings.kept))}")
    for section, note in settings.notes.items():
        if section != "train":
            report(note)


def _zyx(values: Sequence[int] | None) -> Zyx | None:
    return None if values is None else (values[0], values[1], values[2])


def choose_halo(requested: Sequence[int] | None, receptive_field: ReceptiveField, report: Callable[[str], None]) -> Zyx:
    """Return the halo of a block: the receptive field's margin, or the smaller one that was requested.

    Raises InputError for one that is not whole cells of the pooling grid, and reports one that changes probabilities.
    """
    margin, factors = receptive_field.margin, receptive_field.factors
    if requested is None:
        return margin
    for axis in range(3):
        if requested[axis] % factors[axis]:
            low = requested[axis] // factors[axis] * factors[axis]
            raise InputError(
                f"--halo {','.join(map(str, requested))} is not a multiple of the network's pooling, {factors[axis]}, "
                f"along {AXES[axis]}; use {low} or {low + factors[axis]}"
            )
    halo = per_axis(min, requested, margin)
    if halo != margin:
        report(
            f"the halo {halo} is smaller than the receptive field, {margin} (z,y,x): voxels near the borders of tiles "
            "will differ from those of one pass over the whole image"
        )
    elif halo != tuple(requested):
        report(
            f"--halo reduced to {margin} (z,y,x), the margin that the receptive field needs; more context cannot "
            "change the result"
        )
    return halo
