"""One square of one section of the phantom, painted: what the microscope sees, and its annotations."""

from __future__ import annotations

import numpy as np

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.phantom import cells as kinds
from kasthuri_ray.phantom.cells import cells_around
from kasthuri_ray.phantom.noise import cut_texture, grain, hashed, smooth_fields, uniform, vesicle_texture

CHANNELS = ("em", "membrane", "synapse")
VOXEL_NM: Zyx = (30, 6, 6)
SQUARE = 128  # voxels along y and x that are painted at once
PATCH = 32  # voxels along y and x that share a short list of points
PATCHES = SQUARE // PATCH
NEAR = 16  # points on that list
FAR = np.float32(1e9)

# Gray values
MEMBRANE, DENSITY = 58, 57
# Nanometers from the border between two cells to where its darkness ends
MEMBRANE_HALF = (11, 21)
PRESYNAPTIC, POSTSYNAPTIC = 20, 40
# A contact ends along z before the vesicles beside it do, so that a section that shows the one shows the other.
FLATNESS = 1.6


class Square:
    """A square of a section: for each of its voxels where it lies, in which cell, and how far from which other.

    Arrays of voxels have the shape (patch, voxel). y, x: nm from the corner, bent. mine: row in `near.reshape(-1)` of
    the voxel's point. pair: place in a (patch, NEAR, NEAR) table of that point and the nearest of another cell.
    border: nm to the border between those two; steep: the z part of the border's normal, 0 to 1.
    """

    def __init__(self, seed: int, z: int, row: int, column: int) -> None:
        self.seed, self.place = seed, (z, row * SQUARE, column * SQUARE)
        self.rolls = uniform(seed, z, np.arange(5))
        self.y, self.x = self._bent_coordinates()
        z_nm, y_nm, x_nm = (n * nm for n, nm in zip(self.place, VOXEL_NM, strict=True))
        self.cells = cells_around(seed, z_nm, y_nm, x_nm, SQUARE * VOXEL_NM[1])
        self.near = self._near_points()
        self.mine, self.pair, excess = self._owners()
        position = self.cells.position[self.near].astype(np.float32)
        step = position[:, :, None] - position[:, None]
        length = np.sqrt((step**2).sum(3)) + 1e-3
        self.border = excess * self.of_pair(0.5 / length)
        self.steep = self.of_pair(np.abs(step[..., 0]) / length)

    def of_mine(self, values: np.ndarray) -> np.ndarray:
        """A value of each point -> of each voxel, float32."""
        return values[self.near].astype(np.float32).take(self.mine)

    def of_pair(self, table: np.ndarray) -> np.ndarray:
        """A value of each pair of points of a patch's list -> of each voxel, float32."""
        return table.astype(np.float32).take(self.pair)

    def fields(self, salts: tuple[int, ...], period_z: int, period: int) -> list[np.ndarray]:
        keys = hashed(self.seed, np.array(salts))
        return [_to_patches(f) for f in smooth_fields(keys, *self.place, SQUARE, period_z, period)]

    def texture(self, texture: np.ndarray, salt: int) -> np.ndarray:
        return _to_patches(cut_texture(texture, self.seed, salt, *self.place, SQUARE))

    def of_section(self, roll: int, low: float, high: float) -> np.float32:
        """A random number that the whole section shares, from one of its five rolls."""
        return np.float32(low + (high - low) * self.rolls[roll])

    def _bent_coordinates(self) -> list[np.ndarray]:
        wide, narrow = self.fields((10, 11), 9, 64), self.fields((12, 13), 4, 24)
        straight = (np.arange(SQUARE, dtype=np.float32) + np.float32(0.5)) * np.float32(VOXEL_NM[1])
        grid = np.broadcast_to(straight, (SQUARE, SQUARE))
        shaken = [_to_patches(axis) + self.of_section(n, -6, 6) for n, axis in enumerate((grid.T, grid))]
        return [a + b * np.float32(260) + c * np.float32(75) for a, b, c in zip(shaken, wide, narrow, strict=True)]

    def _near_points(self) -> np.ndarray:
        """Of each patch the rows of the NEAR points nearest to its middle, (patch, NEAR)."""
        middle = PATCH * PATCH // 2 + PATCH // 2
        z, y, x = self.cells.position.T
        squared = (self.y[:, middle, None] - y) ** 2 + (self.x[:, middle, None] - x) ** 2 + z**2 + self.cells.weight
        return np.argsort(squared, axis=1, kind="stable")[:, :NEAR]

    def _owners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`mine`, `pair`, and by how much the power distance to the second of the pair exceeds the first's, nm^2."""
        z, y, x = np.moveaxis(self.cells.position[self.near].astype(np.float32), 2, 0)[..., None]
        fixed = z * z + self.cells.weight[self.near].astype(np.float32)[..., None]
        cell = self.cells.cell[self.near]
        name = (cell[:, :, None] == cell[:, None]).argmax(2).astype(np.int32)[..., None]
        first, second = (np.full(self.y.shape, FAR).view(np.int32) for _ in range(2))
        owner = np.full(self.y.shape, -1, np.int32)
        for k in range(NEAR):
            distance = self.y - y[:, k]
            distance *= distance
            across = self.x - x[:, k]
            across *= across
            distance += across
            distance += fixed[:, k]
            # A point's number rides in the lowest bits of its distance: positive floats sort like their bits.
            code = distance.view(np.int32)
            code &= -NEAR
            code |= k
            loser = np.maximum(code, first)
            loser |= (owner == name[:, k]).view(np.int8).astype(np.int32) << 30
            np.minimum(second, loser, out=second)
            owner += (name[:, k] - owner) * (code < first)
            np.minimum(first, code, out=first)
        mine = np.arange(PATCHES**2)[:, None] * NEAR + (first & NEAR - 1)
        return mine, mine * NEAR + (second & NEAR - 1), second.view(np.float32) - first.view(np.float32)


def paint_section(seed: int, z: int, row: int, column: int) -> np.ndarray:
    """Square `row`, `column` of section z: uint8 (channel, y, x), the channels as in CHANNELS."""
    square = Square(seed, z, row, column)
    half = MEMBRANE_HALF[0] + (MEMBRANE_HALF[1] - MEMBRANE_HALF[0]) * square.of_pair(_pair_rolls(square))
    wall = _darkness(square, half) * (1 - np.float32(0.35) * square.steep * square.steep)
    thickening, is_synapse = _thickening(square)
    image = _cytoplasm(square)
    image += wall * (MEMBRANE - image)
    image += thickening * (DENSITY - image)
    channels = (_seen(square, image), square.border < half, is_synapse)
    return np.stack([_from_patches(channel.astype(np.uint8)) for channel in channels])


def _pair_rolls(square: Square) -> np.ndarray:
    """A random number for each pair of points, the same from both sides."""
    names = hashed(square.cells.cell & 0xFFFFFFFF, 20)[square.near]
    return hashed(names[:, :, None] ^ names[:, None]) * 2.0**-32


def _darkness(square: Square, half: np.ndarray) -> np.ndarray:
    """How much of the section's thickness lies within `half` nm of the border, 0 to 1: steep borders look gray."""
    blur = square.steep * np.float32(VOXEL_NM[0] / 2) + 4
    return np.clip((half + blur - square.border) / (2 * blur), 0, 1)


def _thickening(square: Square) -> tuple[np.ndarray, np.ndarray]:
    """How dark thickened contacts are, 0 to 1, and which voxels are a synapse."""
    cells, near = square.cells, square.near
    faces = (cells.partner[near][:, :, None] == near[:, None]) & np.isin(cells.kind, (kinds.SYNAPSE, kinds.THICK))[
        near
    ][..., None]
    turned = faces.swapaxes(1, 2)
    nobody = len(cells.kind)
    rows = near[:, :, None]
    owner = np.where(faces, rows, np.where(turned, near[:, None], nobody)).take(square.pair)
    z, y, x = np.append(cells.contact.T, np.full((3, 1), 1e6), axis=1).astype(np.float32)
    dy, dx = square.y - y.take(owner), square.x - x.take(owner)
    z = np.maximum(np.abs(z), np.abs(np.append(cells.cloud_center[:, 0], 0).astype(np.float32)))
    away = np.sqrt(dy * dy + dx * dx + (np.float32(FLATNESS) * z * z).take(owner))
    within = np.append(cells.reach, 0).astype(np.float32).take(owner) - away
    half = square.of_pair(np.where(faces, PRESYNAPTIC, np.where(turned, POSTSYNAPTIC, 0)))
    is_synapse = np.append(cells.kind == kinds.SYNAPSE, False).take(owner)
    return _darkness(square, half) * _ramp(within, 20), is_synapse & (within > 0) & (square.border < half)


def _cytoplasm(square: Square) -> np.ndarray:
    cells, of_mine = square.cells, square.of_mine
    image = square.texture(grain(1, 3), 30) * of_mine(cells.rough) + of_mine(cells.gray)
    body = _organelles(square, image)
    rims, rank = (square.texture(texture, 31) for texture in vesicle_texture())
    z, y, x = cells.cloud_center.T
    dy, dx = square.y - of_mine(y), square.x - of_mine(x)
    within = of_mine(cells.cloud) - np.sqrt(dy * dy + dx * dx + of_mine(z**2))
    density = np.maximum(_ramp(within, 35) * np.float32(0.9), of_mine(cells.pores))
    density *= np.clip((square.border - 22) / 16, 0, 1) * (1 - body)
    image += np.clip((density - rank) * 16, 0, 1) * rims * np.float32(60)
    return image


def _organelles(square: Square, image: np.ndarray) -> np.ndarray:
    """Paint mitochondria and dark plates into `image`; returns how much of each voxel they fill, 0 to 1."""
    of_mine = square.of_mine
    u_y, u_x, u_0, v_y, v_x, v_0, w = (of_mine(row) for row in square.cells.frame)
    u, v = u_y * square.y + u_x * square.x + u_0, v_y * square.y + v_x * square.x + v_0
    q = u * u + v * v + w
    kind = of_mine(square.cells.organelle)
    body = np.clip((1 - q) * 4, 0, 1) * np.clip((square.border - 18) / 12, 0, 1) * (kind != kinds.NONE)
    wave = u * 5 + v * np.float32(0.4)
    cristae = np.abs(wave - np.floor(wave) - np.float32(0.5)) * 64 - 16
    folds = np.clip((q - np.float32(0.62)) * 5, 0, 1) * 45 + cristae
    image += body * (of_mine(square.cells.organelle_gray) - folds * (kind == kinds.MITOCHONDRION) - image)
    return body


def _seen(square: Square, image: np.ndarray) -> np.ndarray:
    """The microscope's part: contrast that drifts, sections that differ, noise. Whole gray values from 0 to 255."""
    contrast, lift = square.fields((40, 41), 24, 512)
    contrast = contrast * np.float32(0.5) + square.of_section(2, 0.92, 1.08)
    image = (image - 128) * contrast + lift * 80 + (square.of_section(3, -10, 10) + np.float32(128.5))
    noise = square.of_section(4, 9, 15)
    image += square.texture(grain(2, 0), 45) * (noise * np.float32(0.8))
    image += square.texture(grain(3, 1), 46) * (noise * np.float32(0.6))
    return np.clip(image, 0, 255)


def _ramp(value: np.ndarray, soft: float) -> np.ndarray:
    """0 below -soft, 1 above soft, linear between."""
    return np.clip(value * np.float32(0.5 / soft) + np.float32(0.5), 0, 1)


def _to_patches(image: np.ndarray) -> np.ndarray:
    """(y, x) of a square -> (patch, voxel)."""
    return image.reshape(PATCHES, PATCH, PATCHES, PATCH).swapaxes(1, 2).reshape(PATCHES**2, PATCH**2)


def _from_patches(image: np.ndarray) -> np.ndarray:
    return image.reshape(PATCHES, PATCHES, PATCH, PATCH).swapaxes(1, 2).reshape(SQUARE, SQUARE)
