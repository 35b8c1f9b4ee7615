"""The single changes of `Augment`: spatial ones, which move image and label together, and changes of the image alone.

All take images N, z, y, x (z = 1 in 2D), float32 in 0..1, and labels of the same shape. They may write to them, and
return tensors of the same shape. Each draws its random numbers for all tiles, also for those that it does not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from kasthuri_ray.errors import InputError

AUGMENTATIONS = ("none", "basic", "em")
PROBABILITIES = (
    *("flip_x", "flip_y", "flip_z", "transpose", "rotate", "elastic", "shift"),
    *("blur", "intensity", "patch", "section_brightness", "noise", "missing_section", "cutout"),
)

BLUR_RADIUS_SIGMAS = 3.0  # a Gaussian is cut off at this multiple of sigma
MIN_BLUR_SIGMA = 0.4  # pixels; less does not change anything that a bf16 network could see


@dataclass(frozen=True)
class AugmentationStrength:
    """The probability of each change, for each tile (0, the default, is never), and its largest extent.

    Pixels are those of the tile; intensities are those of an image in 0..1.
    """

    flip_x: float = 0.0
    flip_y: float = 0.0
    flip_z: float = 0.0  # 3D only
    transpose: float = 0.0  # square tiles only; with both flips it makes the rotations by 90 degrees
    rotate: float = 0.0
    max_degrees: float = 10.0
    elastic: float = 0.0
    elastic_pixels: float = 6.0  # largest standard deviation of the knots; the spline halves it between them
    elastic_spacing: int = 64  # pixels between knots: a neurite bends as a whole, its membrane does not ripple
    shift: float = 0.0  # 3D only: one section, or all sections from one on, out of place
    max_shift: int = 8  # 50 nm: a typical error that remains after alignment
    blur: float = 0.0
    max_blur: float = 1.2  # sigma in pixels; from 2 on, membranes of two pixels disappear
    intensity: float = 0.0  # brightness, contrast and gamma of the whole tile
    max_brightness: float = 0.12
    max_contrast: float = 0.25
    max_gamma: float = 0.3  # exponent between exp(-0.3) and exp(0.3)
    patch: float = 0.0  # a soft dark or bright patch: stain, dirt, charging
    section_brightness: float = 0.0  # 3D only: a dark or bright section; in 2D `intensity` does the same
    max_patch_brightness: float = 0.25  # of a patch or a section, darker or brighter
    noise: float = 0.0
    max_noise: float = 0.05  # sigma; 13 of 255 grey levels
    missing_section: float = 0.0  # 3D: a black or grey section; 2D: a faint one, since a black one would show nothing
    min_faint_contrast: float = 0.4  # share of its contrast that a faint section keeps at least
    cutout: float = 0.0
    max_cutout: float = 0.15  # side of the grey rectangle as a share of the tile's; the label stays

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = 1 if field.name == "elastic_spacing" else 0
            high = 1.0 if field.name in PROBABILITIES else math.inf
            if not low <= value <= high:
                raise InputError(f"augmentation strength {field.name} is {value!r}; it can be {low} to {high}")


# Tissue has no up or left: flips and rotations by 90 degrees are realistic and leave every voxel as it was measured, so
# they are frequent. All changes that interpolate, blur or hide lose information, and a training of about 2000 tiles is
# too short to make up for it. Measured on real EM (1792 tiles): `intensity` in half of the tiles costs 0.003 of the
# average precision of membranes; ten times the strengths below cost 0.05 of that of synapses, and twice these strengths
# still 0.001 of that of membranes. So each of the other changes occurs in few tiles.
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
    intensity=0.04,  # the one that certainly differs in a new section
    patch=0.01,
    section_brightness=0.02,
    noise=0.02,
    missing_section=0.01,
    cutout=0.005,
)


def make_strength(kind: str, task_type: str = "membrane") -> AugmentationStrength:
    """Return the strength that `network.augmentations` names: `none`, `basic` or `em`.

    `basic` flips half of the tiles horizontally. It rotates every tile by up to 10 degrees (membrane), or half of the
    tiles by up to 30 degrees (synapse).
    """
    if kind not in AUGMENTATIONS:
        raise InputError(f"network.augmentations is {kind!r}; it can be {', '.join(AUGMENTATIONS)}")
    if kind == "basic":
        synapse = task_type == "synapse"
        return AugmentationStrength(flip_x=0.5, rotate=0.5 if synapse else 1.0, max_degrees=30.0 if synapse else 10.0)
    return EM_STRENGTH if kind == "em" else AugmentationStrength()


class TileRandom:
    """Random numbers of a batch: every call returns one number for each tile, from the tile's own seed.

    All are drawn in advance and used in a fixed order, so that another strength of one change leaves the other changes
    as they were.
    """

    NUM_IN_ADVANCE = 64

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._table = torch.stack([torch.rand(self.NUM_IN_ADVANCE, generator=each) for each in self.generators])
        self._column = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return floats in low..high."""
        self._column += 1
        return low + (high - low) * self._table[:, self._column - 1]

    def bernoulli(self, probability: float) -> Tensor:
        """Return booleans that are true with this probability."""
        return self.uniform() < probability

    def integers(self, count: int) -> Tensor:
        """Return integers in 0..count - 1."""
        return (self.uniform() * count).long().clamp_(max=count - 1)

    def normal(self, *shape: int) -> Tensor:
        """Return normal deviates of shape N, *shape; not drawn in advance, so the order of calls matters."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


def flip_tiles(x: Tensor, y: Tensor, rng: TileRandom, strength: AugmentationStrength) -> tuple[Tensor, Tensor]:
    """Flip tiles along x, y, z and transpose square ones; voxels keep their exact values."""
    for axis, probability in ((-1, strength.flip_x), (-2, strength.flip_y), (-3, strength.flip_z)):
        chosen = rng.bernoulli(probability)
        if chosen.any():
            chosen = _per_tile(chosen, x)
            x, y = torch.where(chosen, x.flip(axis), x), torch.where(chosen, y.flip(axis), y)
    chosen = rng.bernoulli(strength.transpose)
    if chosen.any() and x.shape[-1] == x.shape[-2]:
        chosen = _per_tile(chosen, x)
        x, y = torch.where(chosen, x.mT, x), torch.where(chosen, y.mT, y)
    return x, y


def deform_tiles(x: Tensor, y: Tensor, rng: TileRandom, strength: AugmentationStrength) -> tuple[Tensor, Tensor]:
    """Rotate tiles about their centre and deform them elastically in the plane, all sections alike, in one sampling."""
    rotated = rng.bernoulli(strength.rotate)
    degrees = rng.uniform(-strength.max_degrees, strength.max_degrees) * rotated
    bent = rng.bernoulli(strength.elastic)
    pixels = rng.uniform(0, strength.elastic_pixels) * bent
    moved = (rotated | bent).nonzero()[:, 0]
    if not len(moved):
        return x, y
    spacing = strength.elastic_spacing
    knots = rng.normal(2, _num_knots(x.shape[-2], spacing), _num_knots(x.shape[-1], spacing)) if bent.any() else None
    position = _rotated_positions(x.shape[-2:], torch.deg2rad(degrees[moved]).to(x.device))
    if knots is not None:
        position = position + _spline_field(
            (knots * _per_tile(pixels, knots))[moved].to(x.device), x.shape[-2:], spacing
        )
    size = torch.tensor(x.shape[-2:], device=x.device)[:, None, None]
    grid = ((2 * position + 1) / size - 1).flip(1).permute(0, 2, 3, 1)  # for grid_sample: x before y, in -1..1
    moved = moved.to(x.device)
    x[moved] = grid_sample(x[moved], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = grid_sample(y[moved].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    y[moved] = labels.to(y.dtype)
    return x, y


def shift_sections(x: Tensor, y: Tensor, rng: TileRandom, strength: AugmentationStrength) -> tuple[Tensor, Tensor]:
    """Shift one section, or (in half of the cases) all sections from one on, by whole pixels in the plane."""
    chosen, first, all_from_first = rng.bernoulli(strength.shift), rng.integers(x.shape[1]), rng.bernoulli(0.5)
    shifts = [rng.uniform(-strength.max_shift, strength.max_shift).round().long() for _ in range(2)]
    moved = chosen.nonzero()[:, 0]
    if not len(moved):
        return x, y
    sections = torch.arange(x.shape[1])
    shifted = (sections == first[:, None]) | (all_from_first[:, None] & (sections > first[:, None]))
    rows, columns = (
        _mirrored_index(torch.arange(n) + (shifted * shift[:, None])[moved][..., None], n).to(x.device)
        for n, shift in zip(x.shape[-2:], shifts, strict=True)
    )
    moved = moved.to(x.device)[:, None, None, None]
    source = (moved, sections.to(x.device)[:, None, None], rows[..., :, None], columns[..., None, :])
    x[moved[:, 0, 0, 0]], y[moved[:, 0, 0, 0]] = x[source], y[source]
    return x, y


def blur_tiles(x: Tensor, rng: TileRandom, strength: AugmentationStrength) -> Tensor:
    """Blur tiles in the plane with a Gaussian, each with its own width: defocus."""
    chosen = rng.bernoulli(strength.blur).nonzero()[:, 0]
    sigma = rng.uniform(min(MIN_BLUR_SIGMA, strength.max_blur), strength.max_blur)[chosen]
    radius = min(math.ceil(BLUR_RADIUS_SIGMAS * strength.max_blur), *(n - 1 for n in x.shape[-2:]))
    if not len(chosen) or not strength.max_blur or radius < 1:
        return x
    kernels = torch.exp(-((torch.arange(-radius, radius + 1) / sigma[:, None]) ** 2) / 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(x.device)
    chosen = chosen.to(x.device)
    blurred = pad(x[chosen], (radius,) * 4, mode="reflect")
    for axis in (-2, -1):
        blurred = _convolve(blurred, kernels, axis)
    x[chosen] = blurred
    return x


def change_intensity(x: Tensor, rng: TileRandom, strength: AugmentationStrength) -> Tensor:
    """Change contrast (about the tile's mean), brightness and gamma of whole tiles; clamp to 0..1."""
    chosen = rng.bernoulli(strength.intensity)
    contrast = 1 + rng.uniform(-strength.max_contrast, strength.max_contrast) * chosen
    brightness = rng.uniform(-strength.max_brightness, strength.max_brightness) * chosen
    gamma = torch.exp(rng.uniform(-strength.max_gamma, strength.max_gamma) * chosen)
    if not chosen.any():
        return x
    contrast, brightness, gamma = (_per_tile(value, x) for value in (contrast, brightness, gamma))
    mean = x.mean((1, 2, 3), keepdim=True)
    # A factor of exactly 1 and a summand of exactly 0 leave the tiles that were not chosen as they are.
    x = x.mul_(contrast).add_(mean * (1 - contrast) + brightness)
    return x.clamp_(0, 1).pow_(gamma)


def add_patches(x: Tensor, rng: TileRandom, strength: AugmentationStrength) -> Tensor:
    """Add a soft dark or bright patch to one section, and make another section darker or brighter as a whole."""
    with_patch, section = rng.bernoulli(strength.patch), rng.integers(x.shape[1])
    offset = rng.uniform(-strength.max_patch_brightness, strength.max_patch_brightness)
    profiles = [_gaussian_profile(n, rng.uniform(), rng.uniform(1 / 8, 1 / 3)) for n in x.shape[-2:]]
    tiles = with_patch.nonzero()[:, 0]
    if len(tiles):
        rows, columns = (profile[tiles] for profile in profiles)
        patch = (offset[tiles, None] * rows)[:, :, None] * columns[:, None, :]
        x[tiles.to(x.device), section[tiles].to(x.device)] += patch.to(x.device)
    with_section, section = rng.bernoulli(strength.section_brightness), rng.integers(x.shape[1])
    offset = rng.uniform(-strength.max_patch_brightness, strength.max_patch_brightness)
    tiles = with_section.nonzero()[:, 0]
    if len(tiles):
        x[tiles.to(x.device), section[tiles].to(x.device)] += offset[tiles, None, None].to(x.device)
    return x


def add_noise(x: Tensor, rng: TileRandom, strength: AugmentationStrength) -> Tensor:
    """Add Gaussian noise with its own standard deviation for each tile, drawn on the tile's device."""
    chosen, sigma, seeds = rng.bernoulli(strength.noise), rng.uniform(0, strength.max_noise), rng.integers(2**24)
    generator = torch.Generator(x.device)
    for tile in chosen.nonzero()[:, 0].tolist():
        generator.manual_seed(int(seeds[tile]))
        noise = torch.randn(x.shape[1:], device=x.device, generator=generator)
        x[tile] += noise * float(sigma[tile])
    return x


def hide_regions(x: Tensor, rng: TileRandom, strength: AugmentationStrength, volume: bool) -> Tensor:
    """Hide a section and a rectangle of a section.

    In 3D (`volume`) a missing section is black or, in half of the cases, of the tile's mean grey; in 2D it keeps a part
    of its contrast. The rectangle has the tile's mean grey.
    """
    mean = x.mean((1, 2, 3))
    missing, section, black = rng.bernoulli(strength.missing_section), rng.integers(x.shape[1]), rng.bernoulli(0.5)
    contrast = torch.zeros(len(x)) if volume else rng.uniform(strength.min_faint_contrast, 1)
    tiles = missing.nonzero()[:, 0]
    if len(tiles):
        contrast, black = (value[tiles].to(x.device)[:, None, None] for value in (contrast, black & volume))
        index = (tiles.to(x.device), section[tiles].to(x.device))
        grey = mean[index[0], None, None] * ~black
        x[index] = grey + contrast * (x[index] - grey)
    cut, section = rng.bernoulli(strength.cutout), rng.integers(x.shape[1])
    spans = [_span(n, rng.uniform(), rng.uniform(strength.max_cutout / 3, strength.max_cutout)) for n in x.shape[-2:]]
    tiles = cut.nonzero()[:, 0]
    if len(tiles):
        inside = (spans[0][tiles, :, None] & spans[1][tiles, None, :]).to(x.device)
        index = (tiles.to(x.device), section[tiles].to(x.device))
        x[index] = torch.where(inside, mean[index[0], None, None], x[index])
    return x


def _per_tile(values: Tensor, like: Tensor) -> Tensor:
    """Return one value for each tile, on the device of `like` and shaped to broadcast with it; axis 0 is tiles."""
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _rotated_positions(size: torch.Size, radians: Tensor) -> Tensor:
    """Return the source position of each pixel, K, 2 (y, x), y, x in pixels, for K rotations about the centre."""
    y, x = (torch.arange(n, device=radians.device) - (n - 1) / 2 for n in size)
    sin, cos = torch.sin(radians)[:, None, None], torch.cos(radians)[:, None, None]
    rows = cos * y[:, None] + sin * x + (size[0] - 1) / 2
    columns = cos * x - sin * y[:, None] + (size[1] - 1) / 2
    return torch.stack([rows, columns], dim=1)


def _num_knots(size: int, spacing: int) -> int:
    return math.ceil(size / spacing) + 3


def _spline_field(knots: Tensor, size: torch.Size, spacing: int) -> Tensor:
    """Return a smooth field K, 2, y, x through knots K, 2, rows, columns, `spacing` pixels apart.

    A free-form deformation: tensor product of cubic B-splines, Rueckert et al. 1999, IEEE TMI 18(8), eq. 1.
    """
    rows, columns = (
        _spline_basis(n, num_knots, spacing).to(knots.device)
        for n, num_knots in zip(size, knots.shape[2:], strict=True)
    )
    return rows @ knots @ columns.mT


def _spline_basis(size: int, num_knots: int, spacing: int) -> Tensor:
    """Return the weights of each knot at each pixel, pixels x knots; every row sums to one."""
    distance = (torch.arange(size)[:, None] / spacing + 1 - torch.arange(num_knots)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    return torch.where(distance < 1, near, (2 - distance).clamp(min=0) ** 3 / 6)


def _mirrored_index(index: Tensor, size: int) -> Tensor:
    """Mirror indices outside 0..size - 1 at the edge, and repeat the edge voxel, as grid_sample's reflection does."""
    index = index % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _convolve(x: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Convolve x, K, z, y, x, along `axis` with the K rows of `kernels`; the result is shorter by their length - 1."""
    size = x.shape[axis] - kernels.shape[1] + 1
    out = x.narrow(axis, 0, size) * kernels[:, 0, None, None, None]
    for i in range(1, kernels.shape[1]):
        out.addcmul_(x.narrow(axis, i, size), kernels[:, i, None, None, None])
    return out


def _gaussian_profile(size: int, centre: Tensor, width: Tensor) -> Tensor:
    """Return Gaussian profiles N, size of height one; centre and width are shares of the size."""
    position = (torch.arange(size) + 0.5) / size
    return torch.exp(-(((position - centre[:, None]) / width[:, None]) ** 2) / 2)


def _span(size: int, centre: Tensor, width: Tensor) -> Tensor:
    """Return whether each pixel is within half a width of the centre, N, size; both are shares of the size."""
    position = (torch.arange(size) + 0.5) / size
    return (position - centre[:, None]).abs() <= width[:, None] / 2
