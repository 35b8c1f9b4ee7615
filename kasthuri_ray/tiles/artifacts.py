"""Changes of grey value, which leave labels alone: blur, light, patches, noise, missing sections, cut-outs.

All take images N, z, y, x (z = 1 in 2D), float32 in 0..1, which they may write to, and give the same shape.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from kasthuri_ray.tiles.warps import per_tile

if TYPE_CHECKING:
    from kasthuri_ray.tiles.augment import Draws, Strength

BLUR_REACH = 3.0  # a Gaussian is cut off at this many sigmas
SMALLEST_BLUR = 0.4  # sigma in pixels; below it nothing changes that a bf16 network could see


def blur(x: Tensor, draws: Draws, strength: Strength) -> Tensor:
    """A Gaussian in the plane with a width of its own for each tile: defocus."""
    chosen = draws.chance(strength.blur).nonzero()[:, 0]
    sigma = draws.uniform(min(SMALLEST_BLUR, strength.max_blur), strength.max_blur)[chosen]
    reach = min(math.ceil(BLUR_REACH * strength.max_blur), *(n - 1 for n in x.shape[-2:]))
    if not len(chosen) or not strength.max_blur or reach < 1:
        return x
    taps = torch.exp(-((torch.arange(-reach, reach + 1) / sigma[:, None]) ** 2) / 2)
    taps = (taps / taps.sum(1, keepdim=True)).to(x.device)
    chosen = chosen.to(x.device)
    soft = pad(x[chosen], (reach,) * 4, mode="reflect")
    for axis in (-2, -1):
        soft = _filtered(soft, taps, axis)
    x[chosen] = soft
    return x


def light(x: Tensor, draws: Draws, strength: Strength) -> Tensor:
    """Contrast about the tile's mean, brightness and gamma of whole tiles; clamped to 0..1."""
    chosen = draws.chance(strength.light)
    contrast = 1 + draws.uniform(-strength.max_contrast, strength.max_contrast) * chosen
    brightness = draws.uniform(-strength.max_brightness, strength.max_brightness) * chosen
    gamma = torch.exp(draws.uniform(-strength.max_gamma, strength.max_gamma) * chosen)
    if not chosen.any():
        return x
    contrast, brightness, gamma = (per_tile(value, x) for value in (contrast, brightness, gamma))
    mean = x.mean((1, 2, 3), keepdim=True)
    # One product and one sum: exactly 1 and 0 for the tiles that did not draw it.
    x = x.mul_(contrast).add_(mean * (1 - contrast) + brightness)
    return x.clamp_(0, 1).pow_(gamma)


def patches(x: Tensor, draws: Draws, strength: Strength) -> Tensor:
    """A soft dark or bright patch in one section, and one section that is darker or brighter as a whole."""
    in_region, section = draws.chance(strength.region), draws.whole(x.shape[1])
    offset = draws.uniform(-strength.max_patch, strength.max_patch)
    profiles = [_bump(n, draws.uniform(), draws.uniform(1 / 8, 1 / 3)) for n in x.shape[-2:]]
    spots = in_region.nonzero()[:, 0]
    if len(spots):
        rows, columns = (profile[spots] for profile in profiles)
        spot = (offset[spots, None] * rows)[:, :, None] * columns[:, None, :]
        x[spots.to(x.device), section[spots].to(x.device)] += spot.to(x.device)
    whole, section = draws.chance(strength.section), draws.whole(x.shape[1])
    offset = draws.uniform(-strength.max_patch, strength.max_patch)
    tiles = whole.nonzero()[:, 0]
    if len(tiles):
        x[tiles.to(x.device), section[tiles].to(x.device)] += offset[tiles, None, None].to(x.device)
    return x


def noise(x: Tensor, draws: Draws, strength: Strength) -> Tensor:
    """Gaussian noise with a deviation of its own for each tile, drawn on the tile's device."""
    chosen, sigma, seeds = draws.chance(strength.noise), draws.uniform(0, strength.max_noise), draws.whole(2**24)
    generator = torch.Generator(x.device)
    for tile in chosen.nonzero()[:, 0].tolist():
        generator.manual_seed(int(seeds[tile]))
        grain = torch.randn(x.shape[1:], device=x.device, generator=generator)
        x[tile] += grain * float(sigma[tile])
    return x


def hide(x: Tensor, draws: Draws, strength: Strength, volume: bool) -> Tensor:
    """A missing section and a cut-out rectangle, in tiles 0..1.

    In a volume a missing section is black or, every second time, of the tile's mean grey; in 2D it keeps a part of its
    contrast. A cut-out is a rectangle of one section in the tile's mean grey.
    """
    mean = x.mean((1, 2, 3))
    gone, section, black = draws.chance(strength.missing), draws.whole(x.shape[1]), draws.chance(0.5)
    keep = torch.zeros(len(x)) if volume else draws.uniform(strength.min_faint, 1)
    tiles = gone.nonzero()[:, 0]
    if len(tiles):
        keep, black = (value[tiles].to(x.device)[:, None, None] for value in (keep, black & volume))
        where = (tiles.to(x.device), section[tiles].to(x.device))
        grey = mean[where[0], None, None] * ~black
        x[where] = grey + keep * (x[where] - grey)
    cut, section = draws.chance(strength.cutout), draws.whole(x.shape[1])
    spans = [
        _span(n, draws.uniform(), draws.uniform(strength.max_cutout / 3, strength.max_cutout)) for n in x.shape[-2:]
    ]
    tiles = cut.nonzero()[:, 0]
    if len(tiles):
        inside = (spans[0][tiles, :, None] & spans[1][tiles, None, :]).to(x.device)
        where = (tiles.to(x.device), section[tiles].to(x.device))
        x[where] = torch.where(inside, mean[where[0], None, None], x[where])
    return x


def _filtered(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """x, K, z, y, x, along `axis` with the K rows of `taps`; shorter by their number less one."""
    size = x.shape[axis] - taps.shape[1] + 1
    out = x.narrow(axis, 0, size) * taps[:, 0, None, None, None]
    for i in range(1, taps.shape[1]):
        out.addcmul_(x.narrow(axis, i, size), taps[:, i, None, None, None])
    return out


def _bump(size: int, centre: Tensor, width: Tensor) -> Tensor:
    """Gaussian profiles N, size of height one; centre and width are shares of the size."""
    position = (torch.arange(size) + 0.5) / size
    return torch.exp(-(((position - centre[:, None]) / width[:, None]) ** 2) / 2)


def _span(size: int, centre: Tensor, width: Tensor) -> Tensor:
    """Whether a pixel lies within half a width of the centre, N, size; both are shares of the size."""
    position = (torch.arange(size) + 0.5) / size
    return (position - centre[:, None]).abs() <= width[:, None] / 2
