"""Augmentation of training tiles: `Augment` changes a batch of images and labels at random, on their device.

Each tile has its own random generator, so that its changes depend on neither its batch nor its rank. Parameters are
drawn on the CPU and are the same on every device; only the noise of single voxels differs between types of device.
`transforms` holds the changes, and `AugmentationStrength` their probabilities and strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kasthuri_ray.errors import InputError
from kasthuri_ray.tiles import transforms
from kasthuri_ray.tiles.transforms import PROBABILITIES, AugmentationStrength, TileRandom, make_strength


class Augment:
    """A random change of a batch: `augment(images, labels, seed)` returns new tensors of the same dtypes and strides.

    Parameters
    ----------
    kind : str
        `none`, `basic` or `em`; see `make_strength`.
    dim : int
        2 or 3.
    task_type : str
        `basic` depends on it.
    strength : AugmentationStrength, optional
        Replaces the strength of `kind` and `task_type`.

    Notes
    -----
    Images are N, 1, [z], y, x, floats in 0..1, and stay in this range. Labels are N, [z], y, x, integers; spatial
    changes take the nearest voxel of them and never interpolate, so that 255 (ignore) stays 255. Outside of a tile,
    image and label continue mirrored at its edge, where a rotation, a deformation or a shift needs voxels from there.

    `seed` is a torch.Generator on the CPU, a number for the batch, or a sequence of one number for each tile; with the
    latter a tile is changed in the same way in every batch.
    """

    def __init__(
        self, kind: str = "em", dim: int = 2, task_type: str = "membrane", strength: AugmentationStrength | None = None
    ) -> None:
        self.strength = strength or make_strength(kind, task_type)
        self.dim = dim
        if dim == 2:
            self.strength = replace(self.strength, flip_z=0.0, shift=0.0, section_brightness=0.0)
        self._changes_nothing = not any(getattr(self.strength, name) for name in PROBABILITIES)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, labels: Tensor, seed: torch.Generator | int | Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        self._check(images, labels)
        if self._changes_nothing or not len(images):
            return images, labels
        rng, size = TileRandom(_tile_seeds(seed, len(images))), images.shape[-2:]
        # From here on both are N, z, y, x (z = 1 in 2D), and copies that the transforms may write to.
        x = images.to(torch.float32, copy=True).reshape(len(images), -1, *size)
        y = labels.clone().reshape(len(labels), -1, *size)
        for move in (transforms.flip_tiles, transforms.deform_tiles, transforms.shift_sections):
            x, y = move(x, y, rng, self.strength)
        for change in (
            transforms.blur_tiles,
            transforms.change_intensity,
            transforms.add_patches,
            transforms.add_noise,
        ):
            x = change(x, rng, self.strength)
        x = transforms.hide_regions(x.clamp_(0, 1), rng, self.strength, volume=self.dim == 3)
        return _copy_like(images, x), _copy_like(labels, y)

    def _check(self, images: Tensor, labels: Tensor) -> None:
        axes = "z, y, x" if self.dim == 3 else "y, x"
        expected = (len(images), *images.shape[2:])
        if images.ndim != self.dim + 2 or images.shape[1] != 1 or tuple(labels.shape) != expected:
            raise InputError(
                f"augmentation in {self.dim}D takes images N, 1, {axes} and labels N, {axes}; "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if not images.is_floating_point():
            raise InputError(f"augmentation takes images as floats in 0..1, got {images.dtype}; divide by 255 first")


def tile_seed(*numbers: int) -> int:
    """Return the seed of the augmentation of a tile.

    Parameters
    ----------
    *numbers : int
        Seed of the run, epoch, and number of the tile in it.

    Returns
    -------
    int
        From 0 to 2**63 - 1.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _tile_seeds(seed: torch.Generator | int | Sequence[int], num_tiles: int) -> Sequence[int]:
    if isinstance(seed, int):
        seed = torch.Generator().manual_seed(seed)
    if isinstance(seed, torch.Generator):
        return torch.randint(2**62, (num_tiles,), generator=seed).tolist()
    if len(seed) != num_tiles:
        raise InputError(f"{len(seed)} seeds for {num_tiles} tiles; give one seed for each tile, or one for the batch")
    return seed


def _copy_like(original: Tensor, changed: Tensor) -> Tensor:
    """Return `changed` with the dtype, shape and strides of `original`; new strides make torch.compile recompile."""
    return torch.empty_like(original).copy_(changed.reshape(original.shape))
