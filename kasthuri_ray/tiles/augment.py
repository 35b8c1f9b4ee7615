"""What the microscope can do to a tile: `Augment` changes a batch of images and labels, on the device they lie on.

Every tile draws for itself, from a seed of its own, so what happens to it depends on neither its batch nor its rank.
Parameters are drawn on the CPU and are the same on every device; only the noise of single voxels differs between kinds
of device. How likely and how strong each change is stands in `Strength`; `EM` holds the values of `em`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kasthuri_ray.tiles import artifacts, warps

KINDS = ("none", "basic", "em")
PROBABILITIES = (
    *("flip_x", "flip_y", "flip_z", "transpose", "rotate", "elastic", "shift"),
    *("blur", "light", "region", "section", "noise", "missing", "cutout"),
)


@dataclass(frozen=True)
class Strength:
    """How likely each change is (a probability per tile, 0 by default: nothing) and how far it may go.

    Pixels are the tile's own, intensities those of an image in 0..1.
    """

    flip_x: float = 0.0
    flip_y: float = 0.0
    flip_z: float = 0.0  # 3D alone
    transpose: float = 0.0  # with both flips: the turns by 90 degrees; square tiles alone
    rotate: float = 0.0
    max_degrees: float = 10.0
    elastic: float = 0.0
    elastic_pixels: float = 6.0  # deviation of the knots, at most; between them the spline halves it
    elastic_spacing: int = 64  # pixels between knots: a neurite bends as a whole, its membrane does not wiggle
    shift: float = 0.0  # 3D alone: a section, or all sections from one on, out of place
    max_shift: int = 8  # 50 nm: what is left after alignment
    blur: float = 0.0
    max_blur: float = 1.2  # sigma in pixels; from 2 on, membranes of two pixels are gone
    light: float = 0.0
    max_brightness: float = 0.12
    max_contrast: float = 0.25
    max_gamma: float = 0.3  # exponent between exp(-0.3) and exp(0.3)
    region: float = 0.0  # a soft dark or bright patch: stain, dirt, charging
    section: float = 0.0  # 3D alone, a dark or bright section; in 2D `light` is the same thing
    max_patch: float = 0.25  # how much darker or brighter a patch or a section is
    noise: float = 0.0
    max_noise: float = 0.05  # sigma; 13 of 255 grey levels
    missing: float = 0.0  # 3D: a section black or grey; 2D: a faint section, since nothing could be seen in a black one
    min_faint: float = 0.4  # the share of its contrast that a faint section keeps, at least
    cutout: float = 0.0
    max_cutout: float = 0.15  # side of the grey rectangle as a share of the tile's; the label stays

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = 1 if field.name == "elastic_spacing" else 0
            high = 1.0 if field.name in PROBABILITIES else math.inf
            if not low <= value <= high:
                raise ValueError(f"augmentation strength {field.name} is {value!r}; it can be {low} to {high}")


# A tissue block has no up or left: flips and turns are free truth, so always. They also leave every voxel as it was
# measured; whatever interpolates, blurs or hides takes something away, and a training of some 2000 tiles has not the
# time to make up for it: on real EM (1792 tiles) half of the tiles under another light cost 0.003 of the membranes'
# average precision, ten times the strengths below 0.05 of the synapses', and still twice of them 0.001 of the
# membranes'. So each of the rest meets few tiles.
EM = Strength(
    flip_x=0.5,
    flip_y=0.5,
    flip_z=0.5,
    transpose=0.5,
    rotate=0.02,
    max_degrees=15.0,
    elastic=0.02,
    shift=0.02,
    blur=0.01,
    light=0.04,  # the one that a new section certainly brings
    region=0.01,
    section=0.02,
    noise=0.02,
    missing=0.01,
    cutout=0.005,
)


def strength_of(kind: str, task_type: str = "membrane") -> Strength:
    """The strength that a network file's `augmentations` names: `none`, `basic` or `em`.

    `basic` is a horizontal flip of every second tile, and a rotation by up to 10 degrees (membrane) or, of every second
    tile, by up to 30 (synapse).
    """
    if kind not in KINDS:
        raise ValueError(f"network.augmentations is {kind!r}; it can be {', '.join(KINDS)}")
    if kind == "basic":
        synapse = task_type == "synapse"
        return Strength(flip_x=0.5, rotate=0.5 if synapse else 1.0, max_degrees=30.0 if synapse else 10.0)
    return EM if kind == "em" else Strength()


class Draws:
    """Random numbers of a batch: every call gives one for each tile, drawn from the tile's own seed.

    All are drawn ahead, in a fixed order, so that another strength of one change leaves the other changes as they were.
    """

    AHEAD = 64

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._table = torch.stack([torch.rand(self.AHEAD, generator=generator) for generator in self.generators])
        self._column = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Floats in low..high, one a tile."""
        self._column += 1
        return low + (high - low) * self._table[:, self._column - 1]

    def chance(self, probability: float) -> Tensor:
        """Whether it happens, one a tile."""
        return self.uniform() < probability

    def whole(self, count: int) -> Tensor:
        """Whole numbers in 0..count - 1, one a tile."""
        return (self.uniform() * count).long().clamp_(max=count - 1)

    def normal(self, *shape: int) -> Tensor:
        """Normal deviates of shape N, *shape; not drawn ahead, so the order of calls matters."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


class Augment:
    """Changes a batch: `augment(images, labels, seed) -> (images, labels)`, new tensors of the same dtype and strides.

    Images are N, 1, [z], y, x, floats in 0..1, and stay there; labels are N, [z], y, x, whole numbers, and take part in
    every change of place by the nearest voxel, never interpolated: 255 (ignore) stays 255. What a rotation, a bend or a
    shift pulls in from outside the tile is the tile mirrored at its edge, in image and label alike.

    `seed` is a torch.Generator on the CPU or a number for the batch, or one number a tile: with the latter a tile is
    changed the same way in whatever batch it comes. `strength` overrides what `kind` and `task_type` say.
    """

    def __init__(
        self, kind: str = "em", dim: int = 2, task_type: str = "membrane", strength: Strength | None = None
    ) -> None:
        self.strength = strength or strength_of(kind, task_type)
        self.dim = dim
        if dim == 2:
            self.strength = replace(self.strength, flip_z=0.0, shift=0.0, section=0.0)
        self._nothing = not any(getattr(self.strength, name) for name in PROBABILITIES)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, labels: Tensor, seed: torch.Generator | int | Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        self._check(images, labels)
        if self._nothing or not len(images):
            return images, labels
        draws, size = Draws(_seeds(seed, len(images))), images.shape[-2:]
        # From here on both are N, z, y, x (z = 1 in 2D), which are copies that may be written to.
        x = images.to(torch.float32, copy=True).reshape(len(images), -1, *size)
        y = labels.clone().reshape(len(labels), -1, *size)
        for change in (warps.flip, warps.bend, warps.shift_sections):
            x, y = change(x, y, draws, self.strength)
        for spoil in (artifacts.blur, artifacts.light, artifacts.patches, artifacts.noise):
            x = spoil(x, draws, self.strength)
        x = artifacts.hide(x.clamp_(0, 1), draws, self.strength, volume=self.dim == 3)
        # Turns leave other strides behind, for each of which torch.compile would compile again.
        return tuple(torch.empty_like(a).copy_(b.reshape(a.shape)) for a, b in ((images, x), (labels, y)))  # type: ignore[return-value]

    def _check(self, images: Tensor, labels: Tensor) -> None:
        axes = "z, y, x" if self.dim == 3 else "y, x"
        expected = (len(images), *images.shape[2:])
        if images.ndim != self.dim + 2 or images.shape[1] != 1 or tuple(labels.shape) != expected:
            raise ValueError(
                f"augmentation in {self.dim}D takes images N, 1, {axes} and labels N, {axes}; "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"augmentation takes images as floats in 0..1, got {images.dtype}; divide by 255 first")


def _seeds(seed: torch.Generator | int | Sequence[int], num_tiles: int) -> Sequence[int]:
    if isinstance(seed, int):
        seed = torch.Generator().manual_seed(seed)
    if isinstance(seed, torch.Generator):
        return torch.randint(2**62, (num_tiles,), generator=seed).tolist()
    if len(seed) != num_tiles:
        raise ValueError(f"{len(seed)} seeds for {num_tiles} tiles; give one a tile, or one for the batch")
    return seed
