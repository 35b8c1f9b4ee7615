"""The cells of the phantom: where they lie, who touches whom, and what each holds. Nanometers, z, y, x.

Cells are a power diagram (a Voronoi diagram with weights) of points jittered on a grid in space. Points that fall
into the same dendrite are one cell. Every point has, by its hash, a gray and a texture, at most one organelle, and
perhaps one special contact with its nearest neighbor: a synapse, or one of the things that look like half of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.volumes.phantom_noise import hashed, uniform

GRID = 350  # between cells
DENDRITE_GRID = 1800  # room of one dendrite
MISSING = 0.25  # share of the grid's places without a cell, which makes neighbors larger
PLAIN, SYNAPSE, THICK, CLOUD = 0, 1, 2, 3  # kinds of contact: the last two lack the vesicles and the thickening
SHARES = {SYNAPSE: 0.12, THICK: 0.30, CLOUD: 0.10}
STEEPEST = 0.75  # z part of a special contact's normal: beyond it the section would show no side of it
NONE, MITOCHONDRION, PLATE = 0, 1, 2  # organelles


@dataclass
class Cells:
    """Points and what belongs to them: arrays with one row a point; positions are relative to the square's corner.

    position: (n, 3) float64. weight: in nm^2, of the power diagram. cell: points of one cell share it.
    gray, rough: of the cytoplasm, in gray values. pores: density of lone vesicles.
    kind: of contact; `partner`, the row it faces (-1 none); contact (n, 3) its center; reach, its radius.
    cloud: radius of the vesicle cloud around `cloud_center`, 0 without one.
    organelle, and the maps to its own frame: q = (u_x x + u_y y + u_0)^2 + (v_x x + v_y y + v_0)^2 + w^2, 1 at its rim.
    """

    position: np.ndarray
    weight: np.ndarray
    cell: np.ndarray
    gray: np.ndarray
    rough: np.ndarray
    pores: np.ndarray
    kind: np.ndarray
    partner: np.ndarray
    contact: np.ndarray
    reach: np.ndarray
    cloud: np.ndarray
    cloud_center: np.ndarray
    organelle: np.ndarray
    organelle_frame: np.ndarray


def _range(low: float, high: float, *keys: int | np.ndarray) -> np.ndarray:
    return low + (high - low) * uniform(*keys)


def _directions(*keys: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of a random angle in [0, 180), from a rational parameter: exact on every machine."""
    t = 2 * uniform(*keys) - 1
    return (1 - t**2) / (1 + t**2), 2 * t / (1 + t**2)


def cells_around(seed: int, z_nm: int, y_nm: int, x_nm: int, size_nm: int) -> Cells:
    """The cells that the square of `size_nm` at z, y, x shows, and those whose contacts reach into it."""
    margin = 2 * GRID
    first = [(n - margin) // GRID - 1 for n in (z_nm, y_nm, x_nm)]
    count = [(n + margin) // GRID + 2 - a for n, a in zip((z_nm, y_nm + size_nm, x_nm + size_nm), first, strict=True)]
    place = np.stack(np.meshgrid(*(a + np.arange(n) for a, n in zip(first, count, strict=True)), indexing="ij"))
    key = hashed(seed, *place)  # (nz, ny, nx)
    jitter = np.stack([hashed(key, axis) for axis in range(3)]).astype(np.int64) * GRID >> 32
    absolute = place * GRID + jitter
    alive = uniform(key, 3) >= MISSING
    cell = _dendrites(seed, absolute, key)
    nearest = _nearest(absolute, alive, cell)
    inner = (slice(1, -1),) * 3
    kept = np.flatnonzero(_inside(alive, inner))
    corner = np.array([z_nm, y_nm, x_nm])
    row = np.full(alive.size, -1)
    row[kept] = np.arange(len(kept))
    return _furnish(
        key.reshape(-1)[kept],
        (absolute.reshape(3, -1)[:, kept].T - corner).astype(np.float64),
        cell.reshape(-1)[kept],
        row[nearest.reshape(-1)[kept]],
    )


def _inside(mask: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    kept = np.zeros_like(mask)
    kept[inner] = mask[inner]
    return kept


def _dendrites(seed: int, absolute: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The cell of each point: an even number of its own, or the odd one of the dendrite that holds it."""
    home = absolute // DENDRITE_GRID
    home_key = hashed(seed + 1, *home)
    offset = absolute - home * DENDRITE_GRID - DENDRITE_GRID // 2
    cos, sin = _directions(home_key, 4)
    long, short = _range(600, 850, home_key, 5), _range(250, 420, home_key, 6)
    along = (cos * offset[1] + sin * offset[2]) / long
    across = (cos * offset[2] - sin * offset[1]) / short
    held = along**2 + across**2 + (offset[0] / long) ** 2 < 1
    return np.where(held, home_key.astype(np.int64) * 2 + 1, key.astype(np.int64) * 2)


def _nearest(absolute: np.ndarray, alive: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """For each inner point the flat index of the nearest living point of another cell."""
    strides = np.array([alive.shape[1] * alive.shape[2], alive.shape[2], 1])
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij")).reshape(3, -1).T @ strides
    here = np.arange(alive.size).reshape(alive.shape)[1:-1, 1:-1, 1:-1].reshape(-1)
    there = here + steps[steps != 0][:, None]
    points = absolute.reshape(3, -1)
    squared = sum((points[axis][there] - points[axis][here]) ** 2 for axis in range(3))
    unfit = ~alive.reshape(-1)[there] | (cell.reshape(-1)[there] == cell.reshape(-1)[here])
    best = np.argmin(squared + unfit * 10**9, axis=0)
    nearest = np.full(alive.size, -1)
    nearest[here] = there[best, np.arange(len(here))]
    return nearest.reshape(alive.shape)


def _furnish(key: np.ndarray, position: np.ndarray, cell: np.ndarray, partner: np.ndarray) -> Cells:
    is_axon = cell % 2 == 0
    weight = np.where(is_axon, _range(0, 18000, key, 10), 0)
    kind = _kinds(key, is_axon, partner)
    facing = np.where(partner < 0, np.arange(len(key)), partner)
    normal = position[facing] - position
    length = np.maximum(1, np.sqrt((normal**2).sum(1)))  # a point without a partner faces itself, and stays plain
    normal /= length[:, None]
    to_border = (length + (weight[facing] - weight) / length) / 2
    kind = np.where((partner < 0) | (np.abs(normal[:, 0]) > STEEPEST) | (to_border < 50), PLAIN, kind)
    # Not beside vesicles of the partner's own: whether a contact is a synapse is to be seen on one side of it.
    kind = np.where(((kind == SYNAPSE) | (kind == THICK)) & np.isin(kind[facing], (SYNAPSE, CLOUD)), PLAIN, kind)
    contact = position + normal * to_border[:, None]
    has_cloud = (kind == SYNAPSE) | (kind == CLOUD)
    into = np.minimum(to_border, 110)[:, None]
    cell_key = hashed((cell & 0xFFFFFFFF), 3)
    organelle = np.select(
        [_below(0.30, key, 30) & ~has_cloud, _below(0.62, key, 30) & ~has_cloud], [MITOCHONDRION, PLATE], NONE
    )
    return Cells(
        position=position,
        weight=weight,
        cell=cell,
        gray=_range(138, 192, cell_key, 11) + np.where(is_axon, 0, 10),
        rough=_range(5, 13, cell_key, 12),
        pores=np.where(_below(0.3, key, 13), _range(0.0, 0.22, key, 14), 0.01),
        kind=kind,
        partner=partner,
        contact=contact,
        reach=_range(120, 230, key, 15),
        cloud=np.where(has_cloud, _range(190, 260, key, 16), 0),
        cloud_center=contact - normal * into,
        organelle=organelle,
        organelle_frame=_organelle_frame(key, position, organelle),
    )


def _below(share: float, *keys: int | np.ndarray) -> np.ndarray:
    return uniform(*keys) < share


def _kinds(key: np.ndarray, is_axon: np.ndarray, partner: np.ndarray) -> np.ndarray:
    roll = uniform(key, 20)
    kind = np.full(len(key), PLAIN)
    for name, share in SHARES.items():
        kind[(roll >= 0) & (roll < share)] = name
        roll = roll - share
    return np.where(is_axon, kind, PLAIN)


def _organelle_frame(key: np.ndarray, position: np.ndarray, organelle: np.ndarray) -> np.ndarray:
    """Rows u_y, u_x, u_0, v_y, v_x, v_0, w (the last squared): see `Cells`."""
    cos, sin = _directions(key, 40)
    is_plate = organelle == PLATE
    long = np.where(is_plate, _range(90, 190, key, 41), _range(130, 300, key, 41))
    short = np.where(is_plate, _range(20, 30, key, 42), _range(75, 130, key, 42))
    tall = np.where(is_plate, _range(120, 200, key, 43), _range(130, 300, key, 43))
    z, y, x = position.T + np.stack([_range(-40, 40, key, 44 + axis) for axis in range(3)])
    tilt = _range(-0.5, 0.5, key, 47)
    u = np.stack([sin, cos, -sin * y - cos * x]) / long
    v = np.stack([cos, -sin, -cos * y + sin * x + tilt * z]) / short
    return np.stack([*u, *v, (z / tall) ** 2])
