"""The cells of the phantom: where they lie, who touches whom, and what each holds. Nanometers, z, y, x.

Cells are a power diagram (a Voronoi diagram with weights) of points jittered on a grid in space. Points that fall
into the same dendrite are one cell. Every point has, by its hash, a gray and a texture, at most one organelle, and
perhaps one special contact with its nearest neighbor: a synapse, or one of the things that look like half of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kasthuri_ray.phantom.noise import hashed, uniform

GRID = 350  # between points
MISSING = 0.25  # share of the grid's places without a point, which makes neighbors larger
DENDRITE_GRID = 1600  # room of one dendrite
MARGIN = GRID * 3 // 2  # how far from a voxel a point may lie that matters to it

NUM_ROLLS = 16  # random numbers that a point takes
PLAIN, SYNAPSE, THICK, CLOUD = 0, 1, 2, 3  # kinds of contact: THICK lacks the vesicles, CLOUD the thickening
GROUP = (2, 2, 3)  # places of the grid that share one synapse, so that every region has its part
CLOUDS = 0.12  # share of clouds among the contacts that could be a synapse
STEEPEST = 0.66  # z part of a special contact's normal; beyond it a section does not show both sides
SHORTEST = 50  # from a point to its special contact: vesicles need room
NONE, MITOCHONDRION, PLATE = 0, 1, 2  # organelles; a plate is as dark as a synapse, and inside a cell
ORGANELLES, ORGANELLE_SHARES = (MITOCHONDRION, PLATE), (0.26, 0.40)


@dataclass
class Cells:
    """Points and what belongs to them: arrays with one row a point; positions (z, y, x) are relative to a corner.

    position: (n, 3). weight: nm^2, of the power diagram. cell: points of one cell share it.
    gray, rough: mean and deviation of the cytoplasm, gray values. pores: density of lone vesicles.
    kind: of contact. partner: the row it faces, its own where there is none. contact: (n, 3), its center; reach: its
        radius. cloud: radius of the vesicles around `cloud_center` (n, 3), 0 without them.
    organelle: its kind; organelle_gray: its gray value. frame: (7, n), rows u_y, u_x, u_0, v_y, v_x, v_0, w, such that
        q = (u_y y + u_x x + u_0)^2 + (v_y y + v_x x + v_0)^2 + w is 1 on its surface.
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
    organelle_gray: np.ndarray
    frame: np.ndarray


@dataclass
class _Rolls:
    """Random numbers of each point, drawn once, given out one after the other."""

    numbers: np.ndarray  # (draw, point)
    used: int = field(default=0)

    def between(self, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
        self.used += 1
        return low + (high - low) * self.numbers[self.used - 1]

    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of an angle within 90 degrees, from a rational parameter: exact on every machine."""
        t = self.between(-1, 1)
        return (1 - t**2) / (1 + t**2), 2 * t / (1 + t**2)


def cells_around(seed: int, z_nm: int, y_nm: int, x_nm: int, size_nm: int) -> Cells:
    """The cells that matter to the square of `size_nm` at z, y, x, relative to its corner."""
    corner, size = np.array([z_nm, y_nm, x_nm]), np.array([0, size_nm, size_nm])
    # Whole groups, and around them one more place on each side, to know the neighbors of the outermost.
    first, last = ((corner + side) // GRID // GROUP * GROUP for side in (-MARGIN, size + MARGIN))
    place = np.stack(np.meshgrid(*map(np.arange, first - 1, last + GROUP + 1), indexing="ij"))
    key = hashed(seed, *place)
    points = place * GRID + (hashed(key, np.arange(3)[:, None, None, None]).astype(np.int64) * GRID >> 32)
    alive = uniform(key, 3) >= MISSING
    cell = _cell_names(seed, points, key)
    kept = np.flatnonzero(alive)
    row = np.zeros(alive.size, np.int64)
    row[kept] = np.arange(len(kept))
    return _furnished(
        key.reshape(-1)[kept],
        (points.reshape(3, -1)[:, kept].T - corner).astype(np.float64),
        cell.reshape(-1)[kept],
        row[_nearest_of_another_cell(points, alive, cell)[kept]],
        _group_numbers(place, first).reshape(-1)[kept],
    )


def _cell_names(seed: int, points: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Of each point an even name of its own, or the odd one of the dendrite that holds it."""
    home = points // DENDRITE_GRID
    home_key = hashed(seed, 1, *home)
    rolls = _Rolls(uniform(home_key, np.arange(3)[:, None, None, None]))
    z, y, x = points - home * DENDRITE_GRID - DENDRITE_GRID // 2
    cos, sin = rolls.direction()
    long, short = rolls.between(500, 750), rolls.between(240, 420)
    held = ((cos * y + sin * x) / long) ** 2 + ((cos * x - sin * y) / short) ** 2 + (z / long) ** 2 < 1
    return np.where(held, home_key.astype(np.int64) * 2 + 1, key.astype(np.int64) * 2)


def _nearest_of_another_cell(points: np.ndarray, alive: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """For each point the flat index of the nearest of another cell; its own at the rim of the grid."""
    strides = np.array([alive.shape[1] * alive.shape[2], alive.shape[2], 1])
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij")).reshape(3, -1).T @ strides
    here = np.arange(alive.size).reshape(alive.shape)[1:-1, 1:-1, 1:-1].reshape(-1)
    there = here + steps[steps != 0][:, None]
    flat, name = points.reshape(3, -1), cell.reshape(-1)
    squared = ((flat[:, there] - flat[:, None, here]) ** 2).sum(0)
    squared[~alive.reshape(-1)[there] | (name[there] == name[here])] = 10**9
    nearest = np.arange(alive.size)
    nearest[here] = there[squared.argmin(0), np.arange(len(here))]
    return nearest


def _group_numbers(place: np.ndarray, first: np.ndarray) -> np.ndarray:
    """For each place a number that its group shares; `first` is the first place of the first group."""
    z, y, x = (place - first[:, None, None, None]) // np.array(GROUP)[:, None, None, None] + 1
    return (z * (y.max() + 1) + y) * (x.max() + 1) + x


def _chosen(roll: np.ndarray, kinds: tuple[int, ...], shares: tuple[float, ...]) -> np.ndarray:
    """The kind whose share of [0, 1) holds the roll; 0 beyond them all."""
    return np.array([*kinds, 0])[np.searchsorted(np.cumsum(shares), roll, side="right")]


def _furnished(
    key: np.ndarray, position: np.ndarray, cell: np.ndarray, partner: np.ndarray, group: np.ndarray
) -> Cells:
    rolls = _Rolls(uniform(key, np.arange(NUM_ROLLS)[:, None]))
    of_cell = _Rolls(uniform(cell & 0xFFFFFFFF, np.arange(2)[:, None]))
    is_axon = cell % 2 == 0
    weight = np.where(is_axon, rolls.between(0, 18000), 0)
    normal = position[partner] - position
    length = np.maximum(1, np.sqrt((normal**2).sum(1)))
    normal /= length[:, None]
    to_border = (length + (weight[partner] - weight) / length) / 2
    contact = position + normal * to_border[:, None]
    fit = (partner != np.arange(len(key))) & (np.abs(normal[:, 0]) < STEEPEST) & (to_border > SHORTEST)
    kind = _kinds(fit, is_axon, partner, group, rolls.between(0, 1))
    has_cloud = (kind == SYNAPSE) | (kind == CLOUD)
    organelle = np.where(has_cloud, NONE, _chosen(rolls.between(0, 1), ORGANELLES, ORGANELLE_SHARES))
    return Cells(
        position=position,
        weight=weight,
        cell=cell,
        gray=of_cell.between(130, 184) + np.where(is_axon, 0, 10),
        rough=of_cell.between(5, 13),
        pores=np.maximum(0.01, rolls.between(-0.5, 0.14)),
        kind=kind,
        partner=partner,
        contact=contact,
        reach=rolls.between(140, 240) + np.where(kind == THICK, 25, 0),
        cloud=np.where(has_cloud, rolls.between(190, 260), 0),
        cloud_center=contact - normal * np.minimum(to_border, 110)[:, None],
        organelle=organelle,
        organelle_gray=np.where(organelle == PLATE, rolls.between(42, 66), 118),
        frame=_frame(rolls, position, organelle == PLATE),
    )


def _kinds(
    fit: np.ndarray, is_axon: np.ndarray, partner: np.ndarray, group: np.ndarray, roll: np.ndarray
) -> np.ndarray:
    """The kind of each point's contact: a synapse for the axon with the lowest roll among its group's `fit`.

    A contact whose partner holds vesicles of its own is plain: one is to be known by its own side alone.
    """
    axon = fit & is_axon
    lowest = np.full(group.max() + 1, np.inf)
    np.minimum.at(lowest, group[axon], roll[axon])
    is_synapse = axon & (roll == lowest[group])
    faces_synapse = np.isin(np.arange(len(fit)), partner[is_synapse])
    is_cloud = axon & (roll > 1 - CLOUDS) & ~is_synapse & ~faces_synapse
    kind = np.select([is_synapse, is_cloud, fit], [SYNAPSE, CLOUD, THICK], PLAIN)
    return np.where((kind != CLOUD) & (is_synapse | is_cloud)[partner], PLAIN, kind)


def _frame(rolls: _Rolls, position: np.ndarray, is_plate: np.ndarray) -> np.ndarray:
    """`Cells.frame`: the axes of an ellipsoid near each point, turned about z and tilted."""
    cos, sin = rolls.direction()
    long = rolls.between(np.where(is_plate, 80, 130), np.where(is_plate, 180, 300))
    short = rolls.between(np.where(is_plate, 26, 75), np.where(is_plate, 48, 130))
    tall = rolls.between(130, 260)
    tilt = rolls.between(-0.5, 0.5)
    z, y, x = (position[:, axis] + rolls.between(-40, 40) for axis in range(3))
    along = np.stack([sin, cos, -sin * y - cos * x]) / long
    across = np.stack([cos, -sin, -cos * y + sin * x + tilt * z]) / short
    return np.stack([*along, *across, (z / tall) ** 2])
