"""Description of a segmentation that its actors receive: image, network, blocks and output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.models.receptive_field import ReceptiveField
from kasthuri_ray.output.layout import ArrayLayout
from kasthuri_ray.output.ome_zarr import OutputSpec
from kasthuri_ray.output.pyramid import PyramidLevel
from kasthuri_ray.volumes.volume import Volume


@dataclass(frozen=True)
class SegmentationJob:
    """All that an actor needs to make blocks of the output, in any phase.

    Parameters
    ----------
    image : Volume
        Image to segment.
    box : Box
        Part of the image to segment, in voxels of the image.
    network : dict
        Settings that decide what the network computes, such as `classes` and `dim`.
    weights : dict of Tensor
        State dict of the network, on the CPU.
    intensity : tuple of float
        Grey levels that become 0 and 255.
    receptive_field : ReceptiveField
        Receptive field of the network.
    halo : tuple of int
        Context that a block reads on each side, z, y, x: the margin of the receptive field, or less if requested.
    inference : InferenceSettings
        How the network is run.
    block : tuple of int
        Shape of a block, z, y, x.
    layout : ArrayLayout
        Shards and chunks of the finest level.
    levels : tuple of PyramidLevel
        Pyramid of the output, the finest level first.
    output : str
        Path or URL of the output.
    mask : Volume or None
        Blocks where it is 0 are not segmented.
    task_type : str
        `membrane` or `synapse`.
    threshold : float
        Threshold of the label image and of objects, 0 to 1.
    save_mask : bool
        Whether to write a label image as well.
    objects : bool
        Whether to write a table of objects as well.
    precomputed : str or None
        Path or URL of the precomputed copy; None for no copy.
    skip_blank : bool
        Whether chunks that see nothing but the image's fill value are left 0.
    emulate_bf16 : bool
        Whether bf16 was requested by name, so that machines without bf16 arithmetic emulate it.
    record : dict
        Provenance: what the output's attributes and the ledger keep.
    """

    image: Volume
    box: Box
    network: dict[str, Any]
    weights: dict[str, Tensor]
    intensity: tuple[float, float]
    receptive_field: ReceptiveField
    halo: Zyx
    inference: InferenceSettings
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
        """Number of the network's classes, background included."""
        return int(self.network["classes"])

    @cached_property
    def spec(self) -> OutputSpec:
        """Specification of the output."""
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

    def with_halo(self, block: Box) -> Box:
        """Return a block and its halo, cut to the image."""
        return block.grown(self.halo).intersect(self.image.bounds)
