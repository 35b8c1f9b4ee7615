"""Changes of grey value, which leave labels alone: blur, light, patches, noise, missing sections, cut-outs.

All take images N, z, y, x (z = 1 in 2D), float32 in 0..1, which they may write to, and give the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

BLUR_REACH = 3.0  # a Gaussian is cut off at this many sigmas
SMALLEST_BLUR = 0.4  # sigma in pixels; below it nothing changes that a bf16 network could see


AUGMENTATIONS = ("none", "basic", "em")
PROBABILITIES = (
    *("flip_x", "flip_y", "flip_z", "transpose", "rotate", "elastic", "shift"),
    *("blur", "light", "region", "section", "noise", "missing", "cutout"),
)


def blur_tiles(x: Tensor, draws: TileRandom, strength: AugmentationStrength) -> Tensor:
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


def change_contrast(x: Tensor, draws: TileRandom, strength: AugmentationStrength) -> Tensor:
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


def add_patches(x: Tensor, draws: TileRandom, strength: AugmentationStrength) -> Tensor:
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


def add_noise(x: Tensor, draws: TileRandom, strength: AugmentationStrength) -> Tensor:
    """Gaussian noise with a deviation of its own for each tile, drawn on the tile's device."""
    chosen, sigma, seeds = draws.chance(strength.noise), draws.uniform(0, strength.max_noise), draws.whole(2**24)
    generator = torch.Generator(x.device)
    for tile in chosen.nonzero()[:, 0].tolist():
        generator.manual_seed(int(seeds[tile]))
        grain = torch.randn(x.shape[1:], device=x.device, generator=generator)
        x[tile] += grain * float(sigma[tile])
    return x


def hide_regions(x: Tensor, draws: TileRandom, strength: AugmentationStrength, volume: bool) -> Tensor:
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


def flip_tiles(x: Tensor, y: Tensor, draws: TileRandom, strength: AugmentationStrength) -> tuple[Tensor, Tensor]:
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


def bend_tiles(x: Tensor, y: Tensor, draws: TileRandom, strength: AugmentationStrength) -> tuple[Tensor, Tensor]:
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


def shift_sections(x: Tensor, y: Tensor, draws: TileRandom, strength: AugmentationStrength) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True)
class AugmentationStrength:
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
EM_STRENGTH = AugmentationStrength(
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


def augmentation_strength(kind: str, task_type: str = "membrane") -> AugmentationStrength:
    """The strength that a network file's `augmentations` names: `none`, `basic` or `em`.

    `basic` is a horizontal flip of every second tile, and a rotation by up to 10 degrees (membrane) or, of every second
    tile, by up to 30 (synapse).
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"network.augmentations is {kind!r}; it can be {', '.join(AUGMENTATIONS)}")
    if kind == "basic":
        synapse = task_type == "synapse"
        return AugmentationStrength(flip_x=0.5, rotate=0.5 if synapse else 1.0, max_degrees=30.0 if synapse else 10.0)
    return EM_STRENGTH if kind == "em" else AugmentationStrength()


class TileRandom:
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
