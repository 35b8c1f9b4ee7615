"""Description of a segmentation that its actors receive: image, network, blocks and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib.metadata import version
from typing import Any

from kasthuri_ray.config import defaults
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import class_thresholds
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.models.checkpoints import hash_weights
from kasthuri_ray.models.receptive_field import ReceptiveField
from kasthuri_ray.output.block_grid import BlockGrid
from kasthuri_ray.output.layout import ArrayLayout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.pyramid import PyramidLevel
from kasthuri_ray.segmentation.resolved_objects import resolve_object_settings
from kasthuri_ray.segmentation.trained_network import TrainedNetwork
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.resampled_volume import is_resampled
from kasthuri_ray.volumes.volume import Volume

# Settings that decide what a network computes; the others of the section say how it was trained.
ARCHITECTURE = (
    *("model", "model_args", "model_type", "in_channels", "classes", "n_blocks", "start_filters", "activation"),
    *("normalization", "conv_mode", "dim", "pool_z"),
)
RECORDED_TASK_SETTINGS = (*("name", "task_type", "threshold", "threshold_value", "ignore_label", "annotation_chan"),)
RECORDED_IF_SET = ("background", "classes", "labels")  # of the task: others keep the bytes that they had
RECORDED_PACKAGES = ("kasthuri_ray", "torch", "tensorstore")


@dataclass(frozen=True)
class SegmentationInputs:
    """What is segmented, with which network, and in which blocks; the machines are not known yet.

    Parameters
    ----------
    settings : Settings
        All settings of the job.
    trained : TrainedNetwork
        The weights and what is known about them.
    receptive_field : ReceptiveField
        Receptive field of the network; of all flips and turns if probabilities are a mean over them.
    image : Volume
        Image to segment.
    box : Box
        Part of the image to segment.
    mask : Volume or None
        Blocks where it is 0 are not segmented.
    intensity : tuple of float
        Grey levels that become 0 and 255.
    halo : tuple of int
        Context that a block reads on each side, z, y, x: the margin of the receptive field, or less if requested.
    layout : ArrayLayout
        Shards and chunks of the finest level.
    block : tuple of int
        Shape of a block, z, y, x.
    levels : tuple of PyramidLevel
        Pyramid of the output, the finest level first.
    """

    settings: Settings
    trained: TrainedNetwork
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
    def thresholds(self) -> list[float]:
        """Threshold of each class, for label image and objects: the requested ones, else the run's, else the default.

        Raises InputError if there is another number of them than of classes.
        """
        known = (self.settings.segment.threshold, self.trained.threshold, defaults.THRESHOLD)
        return class_thresholds(next(value for value in known if value is not None), self.class_names)

    @cached_property
    def object_settings(self) -> ObjectSettings:
        """How objects are found. Raises InputError if flags and classes do not fit."""
        return resolve_object_settings(
            self.settings.segment, self.trained, self.thresholds, self.class_names, self.image.voxel_size_nm
        )

    @property
    def finds_objects(self) -> bool:
        """Whether objects are found."""
        return self.settings.segment.objects or self.settings.segment.save_objects

    @property
    def class_names(self) -> list[str]:
        """Names of the foreground classes."""
        return self.settings.task.class_names(self.classes)

    @property
    def classes(self) -> int:
        """Number of the network's classes, background included."""
        return self.settings.network.classes

    @property
    def task_type(self) -> str:
        """`membrane` or `synapse`."""
        return self.settings.task.task_type

    @property
    def architecture(self) -> dict[str, Any]:
        """Settings that decide what the network computes."""
        network = self.settings.network.model_dump()
        return {name: network[name] for name in ARCHITECTURE}

    @property
    def grid(self) -> BlockGrid:
        """The blocks that the network segments, in voxels of the image."""
        return BlockGrid(self.box, self.block)

    @property
    def largest_block(self) -> Zyx:
        """Shape of the largest block of the grid."""
        return per_axis(min, self.block, self.box.shape)

    def with_halo(self, block: Box) -> Box:
        """Return a block and its halo, cut to the image."""
        return block.grown(self.halo).intersect(self.image.bounds)

    def chunks_around(self, block: Box) -> Box:
        """Return the chunks of the image that a block and its halo meet, cut to the image."""
        return (
            self.with_halo(block).grown_to_grid(self.image.chunk, self.image.chunk_origin).intersect(self.image.bounds)
        )

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
        known = {each.name: getattr(self, each.name) for each in fields(SegmentationInputs)}
        record = self.make_record(inference)
        return SegmentationJob(**known, inference=inference, output=output, precomputed=copy, record=record)

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
        only_if_set: dict[str, Any] = {"resample": True} if is_resampled(self.image) else {}
        if self.trained.annotated_objects is not None:
            only_if_set["annotated_objects"] = self.trained.annotated_objects
        if self.trained.learnt_from.runs:
            only_if_set["learnt_from"] = self.trained.learnt_from.find_in(self.image).within(self.box).to_plain()
        networks = self.trained.all_networks
        if len(networks) > 1:
            only_if_set["intensities"] = [self.intensity, *(each.intensity for each in self.trained.others)]
        hashes = [hash_weights(each.weights) for each in networks]
        if self.object_settings != ObjectSettings.of_thresholds(self.thresholds):
            only_if_set["objects"] = self.object_settings.to_plain()
        labels = {name: getattr(task, name) for name in RECORDED_IF_SET if getattr(task, name) is not None}
        return _plain_json(
            {
                **only_if_set,
                "image": redact_secrets(self.image.uri),
                "box": str(self.box),
                "voxel_size_nm": self.image.voxel_size_nm,
                "intensity": self.intensity,
                "weights": hashes if len(hashes) > 1 else hashes[0],
                "network": self.architecture,
                "task": {name: getattr(task, name) for name in RECORDED_TASK_SETTINGS} | labels,
                "threshold": self.thresholds if self.classes > 2 else self.thresholds[0],
                **{name: getattr(segment, name) for name in segment.recorded},
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


@dataclass(frozen=True)
class SegmentationJob(SegmentationInputs):
    """All that an actor needs to make blocks of the output, in any phase.

    Parameters
    ----------
    inference : InferenceSettings
        How the network is run.
    output : str
        Path or URL of the output.
    precomputed : str or None
        Path or URL of the precomputed copy; None for no copy.
    record : dict
        Provenance: what the output's attributes and the ledger keep.
    """

    inference: InferenceSettings
    output: str
    precomputed: str | None
    record: dict[str, Any]

    @cached_property
    def spec(self) -> OutputSpec:
        """Specification of the output."""
        task = self.task_type
        return OutputSpec(
            levels=self.levels,
            layout=self.layout,
            nanometers=self.image.voxel_size_nm is not None,
            channels=tuple(self.class_names),
            name=task,
            mask=task if self.settings.segment.save_mask else None,
            record=self.record,
        )

    @property
    def output_zarr(self) -> OmeZarrOutput:
        """The output, whose metadata need not exist yet."""
        return OmeZarrOutput(self.output, self.spec)


def _plain_json(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON: tuples become lists, dataclasses become objects."""
    if hasattr(value, "__dataclass_fields__"):
        return _plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain_json(item) for key, item in value.items()}
    return [_plain_json(item) for item in value] if isinstance(value, list | tuple) else value
