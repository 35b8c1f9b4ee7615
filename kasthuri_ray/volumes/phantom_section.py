"""One square of one section of the phantom, painted: what the microscope sees, and its annotations."""

from __future__ import annotations

import numpy as np

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.volumes import phantom_cells as cells_of
from kasthuri_ray.volumes.phantom_cells import cells_around
from kasthuri_ray.volumes.phantom_noise import cut_texture, grain, hashed, smooth_field, uniform, vesicle_texture

VOXEL_NM: Zyx = (30, 6, 6)
SQUARE = 128  # voxels along y and x that are painted at once
PATCH = 32  # voxels along y and x that share a short list of cells
NUM_CELLS = 16  # of that list
NUM_PATCHES = (SQUARE // PATCH) ** 2
INDEX_BITS = 4
FAR = np.float32(1e9)

CHANNELS = ("em", "membrane", "synapse")


def paint(seed: int, z: int, row: int, column: int) -> np.ndarray:
    """Square `row`, `column` of section z: uint8 (channel, y, x), the channels as in CHANNELS."""
    y, x = row * SQUARE, column * SQUARE
    square = _Square(seed, z, y, x)
    return square.paint()


def _to_patches(image: np.ndarray) -> np.ndarray:
    """(y, x) of a square -> (patch, voxel)."""
    n = SQUARE // PATCH
    return image.reshape(n, PATCH, n, PATCH).swapaxes(1, 2).reshape(NUM_PATCHES, PATCH * PATCH)


def _from_patches(image: np.ndarray) -> np.ndarray:
    n = SQUARE // PATCH
    return image.reshape(n, n, PATCH, PATCH).swapaxes(1, 2).reshape(SQUARE, SQUARE)


def _step(value: np.ndarray, soft: float) -> np.ndarray:
    """0 below -soft, 1 above soft, linear between."""
    return np.clip(value * np.float32(0.5 / soft) + np.float32(0.5), 0, 1)


class _Square:
    def __init__(self, seed: int, z: int, y: int, x: int) -> None:
        self.seed, self.place = seed, (z, y, x)
        self.y, self.x = self._bent_coordinates()
        z_nm = z * VOXEL_NM[0] + VOXEL_NM[0] // 2
        self.cells = cells_around(seed, z_nm, y * VOXEL_NM[1], x * VOXEL_NM[2], SQUARE * VOXEL_NM[1])
        self.near = self._nearest_cells()
        self._find_cells()

    def _field(self, key: int, period_z: int, period: int) -> np.ndarray:
        return _to_patches(smooth_field(int(hashed(self.seed, key)[0]), *self.place, SQUARE, period_z, period))

    def _bent_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """y and x in nm from the square's corner, bent so that borders curve, and shaken a little in each section."""
        bent = []
        for axis in range(2):
            shake = float(uniform(self.seed, 70 + axis, self.place[0])[0]) * 12 - 6
            straight = (np.arange(SQUARE, dtype=np.float32) + np.float32(0.5)) * VOXEL_NM[1] + np.float32(shake)
            straight = np.broadcast_to(straight[:, None] if axis == 0 else straight, (SQUARE, SQUARE))
            bend = self._field(72 + axis, 9, 64) * 200 + self._field(74 + axis, 3, 16) * 30
            bent.append(_to_patches(straight) + bend)
        return bent[0], bent[1]

    def _nearest_cells(self) -> np.ndarray:
        """Of each patch the rows of its NUM_CELLS nearest points, (patch, NUM_CELLS)."""
        middle = PATCH * PATCH // 2 + PATCH // 2
        z, y, x = self.cells.position.T
        squared = (self.y[:, middle, None] - y) ** 2 + (self.x[:, middle, None] - x) ** 2 + z**2 + self.cells.weight
        return np.argsort(squared, axis=1, kind="stable")[:, :NUM_CELLS]

    def _find_cells(self) -> None:
        """For each voxel its point and the nearest one of another cell, by power distance."""
        cells, near = self.cells, self.near
        z, y, x = (cells.position[near, axis].astype(np.float32) for axis in range(3))
        fixed = (z**2 + cells.weight[near]).astype(np.float32)
        name = np.argmax(cells.cell[near][:, :, None] == cells.cell[near][:, None, :], axis=2).astype(np.int32)
        shape = self.y.shape
        # A point's number rides in the lowest bits of its distance: positive floats sort like their bits.
        first, second = np.full(shape, FAR).view(np.int32), np.full(shape, FAR).view(np.int32)
        owner = np.full(shape, -1, np.int32)
        for k in range(NUM_CELLS):
            distance = self.y - y[:, k, None]
            distance *= distance
            across = self.x - x[:, k, None]
            across *= across
            distance += across
            distance += fixed[:, k, None]
            code = distance.view(np.int32)
            code &= ~np.int32(NUM_CELLS - 1)
            code |= np.int32(k)
            this = name[:, k, None]
            later = np.maximum(code, first)
            later |= (owner == this).astype(np.int32) << np.int32(30)
            np.minimum(second, later, out=second)
            owner = np.where(code < first, this, owner)
            np.minimum(first, code, out=first)
        low = np.int32(NUM_CELLS - 1)
        patch = np.arange(NUM_PATCHES)[:, None] * NUM_CELLS
        self.mine = patch + (first & low)
        self.pair = self.mine * NUM_CELLS + (second & low)
        self.gap = second.view(np.float32) - first.view(np.float32)

    def _of_mine(self, values: np.ndarray) -> np.ndarray:
        """A value of each point -> of each voxel, that of its own point."""
        return values[self.near].astype(np.float32).take(self.mine)

    def _pairs(self) -> dict[str, np.ndarray]:
        """What pairs of points are to each other: tables (patch, NUM_CELLS, NUM_CELLS)."""
        cells, near = self.cells, self.near
        step = cells.position[near][:, :, None] - cells.position[near][:, None, :]
        length = np.sqrt((step**2).sum(3)) + 1e-6
        faces = (cells.partner[near][:, :, None] == near[:, None, :]) & (cells.kind[near] != cells_of.PLAIN)[:, :, None]
        thick = faces & (cells.kind[near] != cells_of.CLOUD)[:, :, None]
        turned = thick.swapaxes(1, 2)
        tables = {"scale": 0.5 / length, "steep": np.abs(step[..., 0]) / length}
        for axis, name in enumerate(("z", "y", "x")):
            value = cells.contact[near, axis]
            tables[name] = np.where(thick, value[:, :, None], np.where(turned, value[:, None, :], 1e5))
        reach = cells.reach[near]
        tables["reach"] = np.where(thick, reach[:, :, None], np.where(turned, reach[:, None, :], 0))
        # The postsynaptic density is the thicker side.
        tables["thick"] = np.where(thick, 20, np.where(turned, 40, 0))
        synapse = faces & (cells.kind[near] == cells_of.SYNAPSE)[:, :, None]
        tables["synapse"] = synapse | synapse.swapaxes(1, 2)
        keys = hashed(near * 0 + 5, (cells.cell[near] & 0xFFFFFFFF))
        mixed = keys[:, :, None] ^ keys[:, None, :]
        tables["half"] = 12 + 5 * uniform(mixed, 6)
        return tables

    def _of_pair(self, table: np.ndarray) -> np.ndarray:
        return table.astype(np.float32).take(self.pair)

    def paint(self) -> np.ndarray:
        pairs = self._pairs()
        border = self.gap * self._of_pair(pairs["scale"])  # nm to the border of the cell
        steep = self._of_pair(pairs["steep"])
        blur = steep * np.float32(VOXEL_NM[0] / 2) + np.float32(4)

        def cover(half: np.ndarray) -> np.ndarray:
            return np.clip((half + blur - border) / (2 * blur), 0, 1)

        half = self._of_pair(pairs["half"])
        dark = cover(half) * (1 - np.float32(0.35) * steep * steep)
        dy, dx = self.y - self._of_pair(pairs["y"]), self.x - self._of_pair(pairs["x"])
        from_contact = np.sqrt(dy * dy + dx * dx + self._of_pair(pairs["z"] ** 2))
        within = self._of_pair(pairs["reach"]) - from_contact
        thick = self._of_pair(pairs["thick"])
        dense = cover(thick) * _step(within, 20)
        synapse = (self._of_pair(pairs["synapse"]) > 0) & (within > 0) & (border < thick)
        membrane = border < half
        image = self._inside(border)
        dark = np.maximum(dark * np.float32(0.88), dense)
        image += dark * (np.float32(55) - image)
        image = self._seen(image)
        return np.stack([_from_patches(a) for a in (image, membrane.astype(np.uint8), synapse.astype(np.uint8))])

    def _texture(self, texture: np.ndarray, key: int) -> np.ndarray:
        key = int(hashed(self.seed, key)[0])
        return _to_patches(cut_texture(texture, key, *self.place, SQUARE))

    def _inside(self, border: np.ndarray) -> np.ndarray:
        """Cytoplasm with organelles and vesicles."""
        cells = self.cells
        image = self._texture(grain(1, 3), 80) * self._of_mine(cells.rough) + self._of_mine(cells.gray)
        free = np.clip((border - np.float32(18)) / 12, 0, 1)
        u_y, u_x, u_0, v_y, v_x, v_0, w = (self._of_mine(row) for row in cells.organelle_frame)
        u = u_y * self.y + u_x * self.x + u_0
        v = v_y * self.y + v_x * self.x + v_0
        q = u * u + v * v + w
        kind = self._of_mine(cells.organelle)
        body = np.clip((1 - q) * 4, 0, 1) * free
        stripes = np.abs((u * 5 + v * 0.4) % 1 - np.float32(0.5)) * 4 - 1
        rim = np.clip((q - np.float32(0.62)) * 5, 0, 1)
        is_mito = kind == cells_of.MITOCHONDRION
        target = np.where(is_mito, 118 - rim * 45 - stripes * 16, np.float32(62))
        body *= kind > 0
        image += body * (target - image)
        rim_texture, rank = (self._texture(t, 81) for t in vesicle_texture())
        z, y, x = cells.cloud_center.T
        dy, dx = self.y - self._of_mine(y), self.x - self._of_mine(x)
        away = np.sqrt(dy * dy + dx * dx + self._of_mine(z**2))
        density = np.maximum(_step(self._of_mine(cells.cloud) - away, 35) * np.float32(0.9), self._of_mine(cells.pores))
        density *= np.clip((border - 22) / 16, 0, 1) * (1 - body)
        shown = np.clip((density - rank) * 16, 0, 1)
        image += shown * rim_texture * 52
        return image

    def _seen(self, image: np.ndarray) -> np.ndarray:
        """The microscope's part: contrast that drifts, sections that differ, noise."""
        z = self.place[0]
        gain = 0.92 + 0.16 * float(uniform(self.seed, 90, z)[0])
        lift = -7 + 14 * float(uniform(self.seed, 91, z)[0])
        noise = 9 + 6 * float(uniform(self.seed, 92, z)[0])
        contrast = self._field(93, 24, 512) * np.float32(0.5) + np.float32(gain)
        image = (image - 128) * contrast + self._field(94, 24, 512) * 60 + np.float32(128 + lift)
        image = (
            image
            + self._texture(grain(2, 0), 82) * np.float32(noise * 0.8)
            + self._texture(grain(3, 1), 83) * np.float32(noise * 0.6)
        )
        return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
