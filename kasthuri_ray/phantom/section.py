"""One square of one section of the phantom: the image that the microscope shows, and its annotations."""

from __future__ import annotations

import operator

import numpy as np

from kasthuri_ray.geometry import Zyx, per_axis
from kasthuri_ray.phantom import cells as kinds
from kasthuri_ray.phantom.cells import cells_around
from kasthuri_ray.phantom.noise import (
    cut_texture,
    hash_integers,
    noise_texture,
    smooth_fields,
    uniform,
    vesicle_texture,
)

CHANNELS = ("em", "membrane", "synapse")
VOXEL_NM: Zyx = (30, 6, 6)
SQUARE = 128  # voxels along y and x that are painted at once
PATCH = 32  # voxels along y and x that share a short list of points
PATCHES = SQUARE // PATCH
NUM_NEAR = 16  # points on that list
FAR = np.float32(1e9)

MEMBRANE_GRAY, THICKENING_GRAY = 58, 57
# Distance in nm from the border between two cells to the end of the dark zone.
MEMBRANE_HALF_NM = (11, 21)
PRESYNAPTIC_NM, POSTSYNAPTIC_NM = 20, 40
# A contact ends along z before the vesicles beside it do, so that a section that shows one shows the other too.
FLATNESS = 1.6


class Square:
    """The voxels of a square of a section: their positions, their cells, and their distances to the next cell.

    Arrays of voxels have the shape (patch, voxel).

    Parameters
    ----------
    seed : int
        Seed of the phantom.
    z, row, column : int
        Section, and row and column of the square in it.

    Attributes
    ----------
    y, x : np.ndarray
        Position of each voxel in nm from the corner of the square, on bent coordinates.
    cells : Cells
        Points around the square.
    near : np.ndarray
        Rows of the points that are near each patch, (patch, NUM_NEAR).
    nearest : np.ndarray
        Index of each voxel's nearest point in `near.reshape(-1)`.
    pair : np.ndarray
        Index, in a table (patch, NUM_NEAR, NUM_NEAR), of the nearest point and the nearest of another cell.
    border_nm : np.ndarray
        Distance to the border between these two.
    steepness : np.ndarray
        z part of the normal of that border, 0 to 1.
    """

    def __init__(self, seed: int, z: int, row: int, column: int) -> None:
        self.seed, self.corner = seed, (z, row * SQUARE, column * SQUARE)
        self.section_draws = uniform(seed, z, np.arange(5))
        self.y, self.x = self._bent_coordinates()
        z_nm, y_nm, x_nm = per_axis(operator.mul, self.corner, VOXEL_NM)
        self.cells = cells_around(seed, z_nm, y_nm, x_nm, SQUARE * VOXEL_NM[1])
        self.near = self._near_points()
        self.nearest, self.pair, excess = self._find_nearest()
        position = self.cells.position[self.near].astype(np.float32)
        step = position[:, :, None] - position[:, None]
        length = np.sqrt((step**2).sum(3)) + 1e-3
        self.border_nm = excess * self.gather_pairs(0.5 / length)
        self.steepness = self.gather_pairs(np.abs(step[..., 0]) / length)

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return, as float32, the value of each voxel's nearest point; `values` has one for each point."""
        return values[self.near].astype(np.float32).take(self.nearest)

    def gather_pairs(self, table: np.ndarray) -> np.ndarray:
        """Return, as float32, the value of each voxel's pair; `table` has one for each pair of a patch's points."""
        return table.astype(np.float32).take(self.pair)

    def fields(self, salts: tuple[int, ...], period_z: int, period: int) -> list[np.ndarray]:
        """Return a smooth random field for each salt."""
        keys = hash_integers(self.seed, np.array(salts))
        return [_to_patches(f) for f in smooth_fields(keys, self.corner, SQUARE, period_z, period)]

    def cut(self, texture: np.ndarray, salt: int) -> np.ndarray:
        """Return the part of a repeating texture that this square shows."""
        return _to_patches(cut_texture(texture, self.seed, salt, self.corner, SQUARE))

    def draw_for_section(self, draw: int, low: float, high: float) -> np.float32:
        """Return a random number that the whole section shares, from one of its five draws."""
        return np.float32(low + (high - low) * self.section_draws[draw])

    def _bent_coordinates(self) -> list[np.ndarray]:
        wide, narrow = self.fields((10, 11), 9, 64), self.fields((12, 13), 4, 24)
        straight = (np.arange(SQUARE, dtype=np.float32) + np.float32(0.5)) * np.float32(VOXEL_NM[1])
        grid = np.broadcast_to(straight, (SQUARE, SQUARE))
        shifted = [_to_patches(axis) + self.draw_for_section(n, -6, 6) for n, axis in enumerate((grid.T, grid))]
        return [a + b * np.float32(260) + c * np.float32(75) for a, b, c in zip(shifted, wide, narrow, strict=True)]

    def _near_points(self) -> np.ndarray:
        """Return the rows of the points nearest to the middle of each patch, (patch, NUM_NEAR)."""
        middle = PATCH * PATCH // 2 + PATCH // 2
        z, y, x = self.cells.position.T
        squared = (self.y[:, middle, None] - y) ** 2 + (self.x[:, middle, None] - x) ** 2 + z**2 + self.cells.weight
        return np.argsort(squared, axis=1, kind="stable")[:, :NUM_NEAR]

    def _find_nearest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `nearest`, `pair` and the power distance to the second of the pair less that to the first, in nm^2."""
        z, y, x = np.moveaxis(self.cells.position[self.near].astype(np.float32), 2, 0)[..., None]
        fixed = z * z + self.cells.weight[self.near].astype(np.float32)[..., None]
        cell_id = self.cells.cell_id[self.near]
        cell = (cell_id[:, :, None] == cell_id[:, None]).argmax(2).astype(np.int32)[..., None]
        first, second = (np.full(self.y.shape, FAR).view(np.int32) for _ in range(2))
        owner = np.full(self.y.shape, -1, np.int32)
        for k in range(NUM_NEAR):
            distance = self.y - y[:, k]
            distance *= distance
            along_x = self.x - x[:, k]
            along_x *= along_x
            distance += along_x
            distance += fixed[:, k]
            # The lowest bits of a distance hold the number of its point: positive floats sort like their bits.
            code = distance.view(np.int32)
            code &= -NUM_NEAR
            code |= k
            farther = np.maximum(code, first)
            farther |= (owner == cell[:, k]).view(np.int8).astype(np.int32) << 30
            np.minimum(second, farther, out=second)
            owner += (cell[:, k] - owner) * (code < first)
            np.minimum(first, code, out=first)
        nearest = np.arange(PATCHES**2)[:, None] * NUM_NEAR + (first & NUM_NEAR - 1)
        pair = nearest * NUM_NEAR + (second & NUM_NEAR - 1)
        return nearest, pair, second.view(np.float32) - first.view(np.float32)


def paint_section(seed: int, z: int, row: int, column: int) -> np.ndarray:
    """Paint one square of a section.

    Parameters
    ----------
    seed : int
        Seed of the phantom.
    z : int
        Section.
    row, column : int
        Place of the square in the section, in squares of SQUARE voxels along y and x.

    Returns
    -------
    np.ndarray
        Voxels of type uint8, (channel, y, x), with the channels of CHANNELS.
    """
    square = Square(seed, z, row, column)
    half = MEMBRANE_HALF_NM[0] + (MEMBRANE_HALF_NM[1] - MEMBRANE_HALF_NM[0]) * square.gather_pairs(_pair_draws(square))
    membrane = _border_darkness(square, half) * (1 - np.float32(0.35) * square.steepness * square.steepness)
    thickening, is_synapse = _find_thickenings(square)
    image = _paint_cytoplasm(square)
    image += membrane * (MEMBRANE_GRAY - image)
    image += thickening * (THICKENING_GRAY - image)
    channels = (_apply_microscope(square, image), square.border_nm < half, is_synapse)
    return np.stack([_from_patches(channel.astype(np.uint8)) for channel in channels])


def _pair_draws(square: Square) -> np.ndarray:
    """Return a random number for each pair of points, the same from both sides."""
    hashes = hash_integers(square.cells.cell_id & 0xFFFFFFFF, 20)[square.near]
    return hash_integers(hashes[:, :, None] ^ hashes[:, None]) * 2.0**-32


def _border_darkness(square: Square, half: np.ndarray) -> np.ndarray:
    """Return the part of the section's thickness within `half` nm of the border, 0 to 1: steep borders look gray."""
    blur = square.steepness * np.float32(VOXEL_NM[0] / 2) + 4
    return np.clip((half + blur - square.border_nm) / (2 * blur), 0, 1)


def _find_thickenings(square: Square) -> tuple[np.ndarray, np.ndarray]:
    """Return how dark thickened contacts are, 0 to 1, and which voxels are a synapse."""
    cells, near = square.cells, square.near
    is_thick = np.isin(cells.contact_kind, (kinds.SYNAPSE, kinds.THICK))[near][..., None]
    faces = (cells.partner[near][:, :, None] == near[:, None]) & is_thick
    faced = faces.swapaxes(1, 2)
    no_point = len(cells.contact_kind)
    rows = near[:, :, None]
    owner = np.where(faces, rows, np.where(faced, near[:, None], no_point)).take(square.pair)
    z, y, x = np.append(cells.contact_center.T, np.full((3, 1), 1e6), axis=1).astype(np.float32)
    dy, dx = square.y - y.take(owner), square.x - x.take(owner)
    z = np.maximum(np.abs(z), np.abs(np.append(cells.cloud_center[:, 0], 0).astype(np.float32)))
    distance = np.sqrt(dy * dy + dx * dx + (np.float32(FLATNESS) * z * z).take(owner))
    within = np.append(cells.contact_radius, 0).astype(np.float32).take(owner) - distance
    half = square.gather_pairs(np.where(faces, PRESYNAPTIC_NM, np.where(faced, POSTSYNAPTIC_NM, 0)))
    is_synapse = np.append(cells.contact_kind == kinds.SYNAPSE, False).take(owner)
    return _border_darkness(square, half) * _ramp(within, 20), is_synapse & (within > 0) & (square.border_nm < half)


def _paint_cytoplasm(square: Square) -> np.ndarray:
    """Return the gray values of cytoplasm, organelles and vesicles."""
    cells, gather = square.cells, square.gather
    image = square.cut(noise_texture(1, 3), 30) * gather(cells.roughness) + gather(cells.gray)
    filled = _paint_organelles(square, image)
    rims, rank = (square.cut(texture, 31) for texture in vesicle_texture())
    z, y, x = cells.cloud_center.T
    dy, dx = square.y - gather(y), square.x - gather(x)
    within = gather(cells.cloud_radius) - np.sqrt(dy * dy + dx * dx + gather(z**2))
    density = np.maximum(_ramp(within, 35) * np.float32(0.9), gather(cells.vesicle_density))
    density *= np.clip((square.border_nm - 22) / 16, 0, 1) * (1 - filled)
    image += np.clip((density - rank) * 16, 0, 1) * rims * np.float32(60)
    return image


def _paint_organelles(square: Square, image: np.ndarray) -> np.ndarray:
    """Paint mitochondria and dark plates into `image`; return the part of each voxel that they fill, 0 to 1."""
    gather = square.gather
    u_y, u_x, u_0, v_y, v_x, v_0, w = (gather(row) for row in square.cells.organelle_axes)
    u, v = u_y * square.y + u_x * square.x + u_0, v_y * square.y + v_x * square.x + v_0
    q = u * u + v * v + w
    kind = gather(square.cells.organelle)
    filled = np.clip((1 - q) * 4, 0, 1) * np.clip((square.border_nm - 18) / 12, 0, 1) * (kind != kinds.NONE)
    wave = u * 5 + v * np.float32(0.4)
    cristae = np.abs(wave - np.floor(wave) - np.float32(0.5)) * 64 - 16
    folds = np.clip((q - np.float32(0.62)) * 5, 0, 1) * 45 + cristae
    image += filled * (gather(square.cells.organelle_gray) - folds * (kind == kinds.MITOCHONDRION) - image)
    return filled


def _apply_microscope(square: Square, image: np.ndarray) -> np.ndarray:
    """Return the image as a microscope shows it, 0 to 255: contrast that drifts, sections that differ, and noise."""
    contrast, brightness = square.fields((40, 41), 24, 512)
    contrast = contrast * np.float32(0.5) + square.draw_for_section(2, 0.92, 1.08)
    offset = square.draw_for_section(3, -10, 10) + np.float32(128.5)
    image = (image - 128) * contrast + brightness * 80 + offset
    noise = square.draw_for_section(4, 9, 15)
    image += square.cut(noise_texture(2, 0), 45) * (noise * np.float32(0.8))
    image += square.cut(noise_texture(3, 1), 46) * (noise * np.float32(0.6))
    return np.clip(image, 0, 255)


def _ramp(value: np.ndarray, soft: float) -> np.ndarray:
    """Return 0 below -soft, 1 above soft, and a linear ramp between them."""
    return np.clip(value * np.float32(0.5 / soft) + np.float32(0.5), 0, 1)


def _to_patches(image: np.ndarray) -> np.ndarray:
    """Return an image (y, x) of a square as (patch, voxel)."""
    return image.reshape(PATCHES, PATCH, PATCHES, PATCH).swapaxes(1, 2).reshape(PATCHES**2, PATCH**2)


def _from_patches(image: np.ndarray) -> np.ndarray:
    return image.reshape(PATCHES, PATCHES, PATCH, PATCH).swapaxes(1, 2).reshape(SQUARE, SQUARE)
