"""Preparation of a segmentation: everything that the settings name is opened and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from torch import nn

from kasthuri_ray.config.settings import DEFAULT_THRESHOLD, Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Box, Zyx, parse_box, per_axis
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.models.checkpoints import hash_weights
from kasthuri_ray.models.receptive_field import ReceptiveField, find_receptive_field
from kasthuri_ray.output.block_grid import check_block_shape, default_block_shape
from kasthuri_ray.output.layout import ArrayLayout, plan_layout
from kasthuri_ray.output.pyramid import PyramidLevel, plan_levels
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.segmentation.source_image import check_mask, image_intensity, open_source_image
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, build_trained_network
from kasthuri_ray.storage.uris import absolute_uri, redact_secrets
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume

# Settings that decide what a network computes; the others of the section say how it was trained.
ARCHITECTURE = (
    *("model", "model_args", "model_type", "in_channels", "classes", "n_blocks", "start_filters", "activation"),
    *("normalization", "conv_mode", "dim", "pool_z"),
)
RECORDED_TASK_SETTINGS = (*("name", "task_type", "threshold", "threshold_value", "ignore_label", "annotation_chan"),)
RECORDED_PACKAGES = ("kasthuri_ray", "torch", "tensorstore")


def prepare_segmentation(
    settings: Settings, trained: TrainedNetwork, report: Callable[[str], None]
) -> SegmentationInputs:
    """Open and check all that a segmentation needs, before it looks at the cluster.

    Parameters
    ----------
    settings : Settings
        Sections `segment`, `task` and `network` are read.
    trained : TrainedNetwork
        The weights, with the settings, threshold and image of their training as far as known.
    report : callable
        Takes a line of text for people.

    Returns
    -------
    SegmentationInputs
        Network, image, mask, blocks and levels.

    Raises
    ------
    InputError, VolumeError
        If an input is missing or does not fit; the message says which.
    """
    segment = settings.segment
    _report_notes(settings, report)
    network = build_trained_network(settings, trained)
    receptive_field = find_receptive_field(network, settings.network.dim, settings.network.in_channels)
    receptive_field = receptive_field.widened_for_tta() if segment.tta else receptive_field
    if receptive_field.note:
        report(receptive_field.note)
    opener = VolumeOpener(segment.boss, segment.cache, segment.cache_size)
    image = open_source_image(settings, trained, opener, report)
    box = parse_box(segment.box, image.bounds) if segment.box else image.bounds
    mask = opener.open(absolute_uri(segment.mask)) if segment.mask else None
    if mask is not None:
        check_mask(mask, image, box)
    halo = choose_halo(segment.halo, receptive_field, report)
    layout = plan_layout(box.shape, _zyx(segment.shard), _zyx(segment.chunk))
    block = _zyx(segment.block) or default_block_shape(box.shape, layout, receptive_field.margin)
    check_block_shape(block, layout.shard, box.shape)
    levels = plan_levels(box.shape, image.voxel_size_nm, box.start, image.translation_nm)
    return SegmentationInputs(
        settings=settings,
        trained=trained,
        network=network,
        receptive_field=receptive_field,
        image=image,
        box=box,
        mask=mask,
        intensity=image_intensity(image, settings, trained),
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


@dataclass(frozen=True)
class SegmentationInputs:
    """All of a segmentation but its inference settings, which depend on the machines that it runs on.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    trained : TrainedNetwork
        The weights and what is known about them.
    network : nn.Module
        The network with its weights, on the CPU.
    receptive_field : ReceptiveField
        Its receptive field; of all flips and turns if probabilities are a mean over them.
    image : Volume
        Image to segment.
    box : Box
        Part of the image to segment.
    mask : Volume or None
        Blocks where it is 0 are not segmented.
    intensity : tuple of float
        Grey levels that become 0 and 255.
    halo : tuple of int
        Context that a block reads on each side, z, y, x.
    layout : ArrayLayout
        Shards and chunks of the finest level.
    block : tuple of int
        Shape of a block, z, y, x.
    levels : tuple of PyramidLevel
        Pyramid of the output, the finest level first.
    """

    settings: Settings
    trained: TrainedNetwork
    network: nn.Module
    receptive_field: ReceptiveField
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
        """Threshold of the label image and of objects: the requested one, else the run's, else the default."""
        known = (self.settings.segment.threshold, self.trained.threshold, DEFAULT_THRESHOLD)
        return next(value for value in known if value is not None)

    @property
    def classes(self) -> int:
        """Number of the network's classes, background included."""
        return self.settings.network.classes

    @property
    def largest_block(self) -> Zyx:
        """Shape of the largest block of the grid."""
        return per_axis(min, self.block, self.box.shape)

    def make_job(self, output: str, inference: InferenceSettings, copy: str | None = None) -> SegmentationJob:
        """Return what actors receive.

        Parameters
        ----------
        output : str
            Path or URL of the output.
        inference : InferenceSettings
            How the network is run.
        copy : str or None
            Path or URL of the precomputed copy.

        Returns
        -------
        SegmentationJob
            The job.
        """
        segment = self.settings.segment
        return SegmentationJob(
            image=self.image,
            box=self.box,
            network=self._architecture(),
            weights=self.trained.weights,
            intensity=self.intensity,
            receptive_field=self.receptive_field,
            halo=self.halo,
            inference=inference,
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
            record=self.make_record(inference),
        )

    def make_record(self, inference: InferenceSettings) -> dict[str, Any]:
        """Return everything that must be equal for an output to be resumed; no times, no host names.

        Parameters
        ----------
        inference : InferenceSettings
            How the network is run.

        Returns
        -------
        dict
            JSON object.
        """
        segment, task = self.settings.segment, self.settings.task
        return _plain_json(
            {
                "image": redact_secrets(self.image.uri),
                "box": str(self.box),
                "voxel_size_nm": self.image.voxel_size_nm,
                "intensity": self.intensity,
                "weights": hash_weights(self.trained.weights),
                "network": self._architecture(),
                "task": {name: getattr(task, name) for name in RECORDED_TASK_SETTINGS},
                "threshold": self.threshold,
                "save_mask": segment.save_mask,
                "skip_blank": segment.skip_blank,
                "mask": self.mask and redact_secrets(self.mask.uri),
                "arithmetic": inference,
                "halo": self.halo,
                "margin": self.receptive_field.margin,
                "block": self.block,
                "shard": self.layout.shard,
                "chunk": self.layout.chunk,
                "versions": {name: version(name) for name in RECORDED_PACKAGES},
            }
        )

    def _architecture(self) -> dict[str, Any]:
        network = self.settings.network.model_dump()
        return {name: network[name] for name in ARCHITECTURE}


def _plain_json(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON: tuples become lists, dataclasses become objects."""
    if hasattr(value, "__dataclass_fields__"):
        return _plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain_json(item) for key, item in value.items()}
    return [_plain_json(item) for item in value] if isinstance(value, list | tuple) else value
