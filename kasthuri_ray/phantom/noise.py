"""Random numbers as functions of a position: hashes, smooth fields and repeating textures.

They are computed by sums, products, quotients, square roots and comparisons alone, which every processor rounds alike.
A position has the same bits in every box, in every process and on every machine.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from kasthuri_ray.geometry import Zyx

NEUTRAL = 0.30  # offset that makes a cloud of vesicles no darker than the cytoplasm around it
TEXTURE = 512  # voxels after which a texture repeats; each section shows it at another offset


def hash_integers(*keys: int | np.ndarray) -> np.ndarray:
    """Return a uint32 for each combination of integer keys, which broadcast against each other.

    The mixing steps are those of lowbias32 (C. Wellons, "Prospecting for hash functions", 2018).
    """
    h = np.zeros(1, np.uint32)
    for key in keys:
        h = h ^ np.asarray(key).astype(np.int64).astype(np.uint32)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
        h = h ^ (h >> np.uint32(16))
    return h


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Return a float64 in [0, 1) for each combination of integer keys."""
    return hash_integers(*keys) * 2.0**-32


@lru_cache(maxsize=256)
def _spline_weights(start: int, count: int, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how a row of voxels interpolates a lattice by cubic B-splines.

    The result is the lattice points that `count` voxels from `start` on need, the index of the first of the four points
    of each voxel, and the weights of the four, (4, count).
    """
    place = (start + np.arange(count) + 0.5) / period
    first = np.floor(place)
    t = place - first
    s, square, cube = 1 - t, t * t, t * t * t  # no powers: their last bit differs between libraries
    weights = np.stack([s * s * s, 3 * cube - 6 * square + 4, 3 * (square + t - cube) + 1, cube]) / 6
    first = first.astype(np.int64)
    return np.arange(first[0], first[-1] + 4), first - first[0], weights.astype(np.float32)


def smooth_fields(keys: np.ndarray, corner: Zyx, size: int, period_z: int, period: int) -> np.ndarray:
    """Return a smooth random field for each key, on the square of `size` voxels from `corner` on.

    The result is float32 (key, y, x) with mean 0 and a standard deviation near 0.2. `period_z` and `period` are the
    voxels between lattice points along z and in the plane.
    """
    z, y, x = corner
    lattice_z, _, weights_z = _spline_weights(z, 1, period_z)
    lattice_y, at_y, weights_y = _spline_weights(y, size, period)
    lattice_x, at_x, weights_x = _spline_weights(x, size, period)
    lattice = uniform(keys[:, None, None, None], lattice_z[:, None, None], lattice_y[:, None], lattice_x)
    lattice = lattice.astype(np.float32) * 2 - 1
    plane = _weighted_sum([lattice[:, k] for k in range(4)], weights_z)
    rows = _weighted_sum([plane[:, at_y + k] for k in range(4)], weights_y[:, :, None])
    return _weighted_sum([rows.take(at_x + k, axis=2) for k in range(4)], weights_x)


def _weighted_sum(four: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    total = four[0] * weights[0]
    for values, weight in zip(four[1:], weights[1:], strict=True):
        total += values * weight
    return total


def cut_texture(texture: np.ndarray, key: int, salt: int, corner: Zyx, size: int) -> np.ndarray:
    """Return the square of `size` voxels from `corner` on, of a texture that repeats in the plane."""
    z, y, x = corner
    offset_y, offset_x = hash_integers(key, salt, z, np.arange(2)).tolist()
    y, x = (y + offset_y) % TEXTURE, (x + offset_x) % TEXTURE
    return texture[y : y + size, x : x + size]


@lru_cache(maxsize=8)
def noise_texture(key: int, blur: int) -> np.ndarray:
    """Return a texture of normal noise with mean 0 and deviation 1, smoothed `blur` times by the (1, 2, 1) kernel."""
    lattice = np.arange(TEXTURE)
    noise = np.sum([uniform(key, n, lattice[:, None], lattice) for n in range(4)], axis=0) - 2
    for _ in range(blur):
        for axis in (0, 1):
            noise = np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)
    # Four uniform numbers have a variance of 1/3. The kernel, applied b times, is a row of binomials C(2b, k), whose
    # squares sum to C(4b, 2b) along each of the two axes.
    return _wrap(noise * (math.sqrt(3) / math.comb(4 * blur, 2 * blur)))


@lru_cache(maxsize=2)
def vesicle_texture(spacing: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return a texture full of vesicles, and a number in [0, 1) for each voxel's vesicle.

    The texture is -1 on the dark rims, positive in the lumen and 0 between vesicles; a vesicle is about 40 nm wide. For
    a lower density, show only the vesicles whose number is below it.
    """
    place = np.arange(TEXTURE)
    num = TEXTURE // spacing
    nearest = np.full((TEXTURE, TEXTURE), np.inf)
    radius, rank = np.zeros_like(nearest), np.zeros_like(nearest)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = place[:, None] // spacing + dy, place // spacing + dx
            keys = (row % num, column % num)
            center_y = (row + 0.3 + 0.4 * uniform(11, *keys)) * spacing
            center_x = (column + 0.3 + 0.4 * uniform(12, *keys)) * spacing
            distance = np.sqrt((place[:, None] + 0.5 - center_y) ** 2 + (place + 0.5 - center_x) ** 2)
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            radius = np.where(closer, 2.7 + 0.7 * uniform(13, *keys), radius)
            rank = np.where(closer, uniform(14, *keys), rank)
    rim = np.clip(1.25 - np.abs(nearest - radius), 0, 1)
    lumen = np.clip(radius - 0.5 - nearest, 0, 1)
    return _wrap(lumen * 0.6 - rim + NEUTRAL), _wrap(rank)


def _wrap(texture: np.ndarray) -> np.ndarray:
    """Return the texture with its start repeated at its end, so that any square of up to TEXTURE / 2 is a slice."""
    half = TEXTURE // 2
    return np.pad(texture, ((0, half), (0, half)), mode="wrap").astype(np.float32)
