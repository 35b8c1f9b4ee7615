"""What an actor of a segmentation is told, and what of it changes a byte of the output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.models.receptive_field import Reach
from kasthuri_ray.segmentation.grid import Layout, Level
from kasthuri_ray.segmentation.output import OutputSpec
from kasthuri_ray.segmentation.predictor import Arithmetic
from kasthuri_ray.volumes import Volume

# What decides a network's answers; the rest of a network's settings says how it learnt.
ARCHITECTURE = (
    *("model", "model_args", "model_type", "in_channels", "classes", "n_blocks", "start_filters", "activation"),
    *("normalization", "conv_mode", "dim", "pool_z"),
)


@dataclass(frozen=True)
class Job:
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
    reach: Reach
    halo: Zyx
    arithmetic: Arithmetic
    block: Zyx
    layout: Layout
    levels: tuple[Level, ...]
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


def hash_of(weights: Mapping[str, Tensor]) -> str:
    """What tells these weights from all others: of names, shapes, types and bytes, in the order of their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """`value` as JSON gives it back: tuples are lists, dataclasses are objects."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
