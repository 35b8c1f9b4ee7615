"""What the microscope can do to a tile: `Augment` changes a batch of images and labels, on the device they lie on.

Every tile draws for itself, from a seed of its own, so what happens to it depends on neither its batch nor its rank.
Parameters are drawn on the CPU and are the same on every device; only the noise of single voxels differs between kinds
of device. How likely and how strong each change is stands in `Strength`; `EM` holds the values of `em`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kasthuri_ray.tiles import transforms
from kasthuri_ray.tiles.transforms import PROBABILITIES, AugmentationStrength, TileRandom, augmentation_strength


class Augment:
    """Changes a batch: `augment(images, labels, seed) -> (images, labels)`, new tensors of the same dtype and strides.

    Images are N, 1, [z], y, x, floats in 0..1, and stay there; labels are N, [z], y, x, whole numbers, and take part in
    every change of place by the nearest voxel, never interpolated: 255 (ignore) stays 255. What a rotation, a bend or a
    shift pulls in from outside the tile is the tile mirrored at its edge, in image and label alike.

    `seed` is a torch.Generator on the CPU or a number for the batch, or one number a tile: with the latter a tile is
    changed the same way in whatever batch it comes. `strength` overrides what `kind` and `task_type` say.
    """

    def __init__(
        self, kind: str = "em", dim: int = 2, task_type: str = "membrane", strength: AugmentationStrength | None = None
    ) -> None:
        self.strength = strength or augmentation_strength(kind, task_type)
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
        draws, size = TileRandom(_seeds(seed, len(images))), images.shape[-2:]
        # From here on both are N, z, y, x (z = 1 in 2D), which are copies that may be written to.
        x = images.to(torch.float32, copy=True).reshape(len(images), -1, *size)
        y = labels.clone().reshape(len(labels), -1, *size)
        for change in (transforms.flip_tiles, transforms.bend_tiles, transforms.shift_sections):
            x, y = change(x, y, draws, self.strength)
        for spoil in (transforms.blur_tiles, transforms.change_contrast, transforms.add_patches, transforms.add_noise):
            x = spoil(x, draws, self.strength)
        x = transforms.hide_regions(x.clamp_(0, 1), draws, self.strength, volume=self.dim == 3)
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
