"""Changes of place, the same for image and label: flips and turns, rotation and elastic bending, shifted sections.

All take and give images and labels N, z, y, x. What comes from outside a tile is the tile mirrored at its edge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

if TYPE_CHECKING:
    from kasthuri_ray.tiles.augment import Draws, Strength


def flip(x: Tensor, y: Tensor, draws: Draws, strength: Strength) -> tuple[Tensor, Tensor]:
    """Each tile flipped along x, y, z and, where square, transposed; voxels keep their values exactly."""
    for axis, probability in ((-1, strength.flip_x), (-2, strength.flip_y), (-3, strength.flip_z)):
        chosen = draws.chance(probability)
        if chosen.any():
            chosen = per_tile(chosen, x)
            x, y = torch.where(chosen, x.flip(axis), x), torch.where(chosen, y.flip(axis), y)
    chosen = draws.chance(strength.transpose)
    if chosen.any() and x.shape[-1] == x.shape[-2]:
        chosen = per_tile(chosen, x)
        x, y = torch.where(chosen, x.mT, x), torch.where(chosen, y.mT, y)
    return x, y


def bend(x: Tensor, y: Tensor, draws: Draws, strength: Strength) -> tuple[Tensor, Tensor]:
    """Rotation about the tile's centre and elastic bending in the plane, alike in all sections, sampled once."""
    turned = draws.chance(strength.rotate)
    degrees = draws.uniform(-strength.max_degrees, strength.max_degrees) * turned
    bent = draws.chance(strength.elastic)
    pixels = draws.uniform(0, strength.elastic_pixels) * bent
    moved = (turned | bent).nonzero()[:, 0]
    if not len(moved):
        return x, y
    spacing = strength.elastic_spacing
    knots = draws.normal(2, _num_knots(x.shape[-2], spacing), _num_knots(x.shape[-1], spacing)) if bent.any() else None
    where = _coordinates(x.shape[-2:], torch.deg2rad(degrees[moved]).to(x.device))
    if knots is not None:
        where = where + _spline((knots * per_tile(pixels, knots))[moved].to(x.device), x.shape[-2:], spacing)
    size = torch.tensor(x.shape[-2:], device=x.device)[:, None, None]
    grid = ((2 * where + 1) / size - 1).flip(1).permute(0, 2, 3, 1)  # as grid_sample takes it: x before y, -1..1
    moved = moved.to(x.device)
    x[moved] = grid_sample(x[moved], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = grid_sample(y[moved].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    y[moved] = labels.to(y.dtype)
    return x, y


def shift_sections(x: Tensor, y: Tensor, draws: Draws, strength: Strength) -> tuple[Tensor, Tensor]:
    """One section, or all from one on, moved by whole pixels in the plane; every second time each."""
    chosen, first, slip = draws.chance(strength.shift), draws.whole(x.shape[1]), draws.chance(0.5)
    by = [draws.uniform(-strength.max_shift, strength.max_shift).round().long() for _ in range(2)]
    moved = chosen.nonzero()[:, 0]
    if not len(moved):
        return x, y
    sections = torch.arange(x.shape[1])
    out = (sections == first[:, None]) | (slip[:, None] & (sections > first[:, None]))
    rows, columns = (
        _mirrored(torch.arange(n) + (out * d[:, None])[moved][..., None], n).to(x.device)
        for n, d in zip(x.shape[-2:], by, strict=True)
    )
    moved = moved.to(x.device)[:, None, None, None]
    pick = (moved, sections.to(x.device)[:, None, None], rows[..., :, None], columns[..., None, :])
    x[moved[:, 0, 0, 0]], y[moved[:, 0, 0, 0]] = x[pick], y[pick]
    return x, y


def per_tile(values: Tensor, like: Tensor) -> Tensor:
    """One value a tile, shaped and placed so that it combines with `like`, whose first axis is tiles."""
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0..size - 1 mirrored at the edge, edge voxel included, as grid_sample's reflection does."""
    index = index % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _coordinates(size: torch.Size, radians: Tensor) -> Tensor:
    """From where each pixel comes, K, 2 (y, x), y, x in pixels, for a rotation about the centre by K angles."""
    y, x = (torch.arange(n, device=radians.device) - (n - 1) / 2 for n in size)
    sin, cos = torch.sin(radians)[:, None, None], torch.cos(radians)[:, None, None]
    rows = cos * y[:, None] + sin * x + (size[0] - 1) / 2
    columns = cos * x - sin * y[:, None] + (size[1] - 1) / 2
    return torch.stack([rows, columns], dim=1)


def _num_knots(size: int, spacing: int) -> int:
    return math.ceil(size / spacing) + 3


def _spline(knots: Tensor, size: torch.Size, spacing: int) -> Tensor:
    """A smooth field K, 2, y, x through knots K, 2, rows, columns that lie `spacing` pixels apart.

    A free-form deformation: tensor product of cubic B-splines, Rueckert et al. 1999, IEEE TMI 18(8), eq. 1.
    """
    rows, columns = (
        _basis(n, num_knots, spacing).to(knots.device) for n, num_knots in zip(size, knots.shape[2:], strict=True)
    )
    return rows @ knots @ columns.mT


def _basis(size: int, num_knots: int, spacing: int) -> Tensor:
    """Weights of each knot at each pixel, pixels x knots; every row sums to one."""
    far = (torch.arange(size)[:, None] / spacing + 1 - torch.arange(num_knots)).abs()
    near = 2 / 3 - far**2 + far**3 / 2
    return torch.where(far < 1, near, (2 - far).clamp(min=0) ** 3 / 6)
