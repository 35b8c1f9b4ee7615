"""The cells of the phantom: where they are, which touch each other, and what each contains. Nanometers, z, y, x.

Cells are a power diagram (a Voronoi diagram with weights) of points jittered on a grid in space. Points in the same
dendrite are one cell. The hash of a point determines its gray value and texture, at most one organelle, and perhaps one
special contact with its nearest neighbor: a synapse, or a contact that looks like one half of a synapse.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kasthuri_ray.phantom.noise import hash_integers, uniform

POINT_SPACING_NM = 350
MISSING_SHARE = 0.25  # of the places on the grid that have no point, which makes their neighbors larger
DENDRITE_SPACING_NM = 1600
MAX_DISTANCE_NM = POINT_SPACING_NM * 3 // 2  # between a voxel and a point that matters to it

NUM_DRAWS = 16  # random numbers of a point
PLAIN, SYNAPSE, THICK, CLOUD = 0, 1, 2, 3  # kinds of contact: THICK has no vesicles, CLOUD no thickening
SYNAPSE_GROUP = (2, 2, 3)  # places on the grid, z, y, x, that share one synapse, so that every region has some
CLOUD_SHARE = 0.12  # of the contacts that could be a synapse
MAX_NORMAL_Z = 0.66  # of a special contact's normal; a section shows both sides of a contact only below it
MIN_BORDER_DISTANCE_NM = 50  # from a point to its special contact, since vesicles need space
NONE, MITOCHONDRION, PLATE = 0, 1, 2  # organelles; a plate is as dark as a synapse, but inside a cell
ORGANELLES, ORGANELLE_SHARES = (MITOCHONDRION, PLATE), (0.26, 0.40)


@dataclass
class Cells:
    """Points and their cells: arrays with one element for each of n points; positions are relative to a corner.

    Parameters
    ----------
    position : np.ndarray
        Points, (n, 3), nm.
    weight : np.ndarray
        Weights of the power diagram, nm^2.
    cell_id : np.ndarray
        Ids of the cells; points of one cell have the same.
    gray, roughness : np.ndarray
        Mean and standard deviation of the gray values of the cytoplasm.
    vesicle_density : np.ndarray
        Density of vesicles outside of clouds, 0 to 1.
    contact_kind : np.ndarray
        PLAIN, SYNAPSE, THICK or CLOUD.
    partner : np.ndarray
        Row of the point on the other side of the contact; a point's own row if there is none.
    contact_center : np.ndarray
        Centers of the contacts, (n, 3), nm.
    contact_radius : np.ndarray
        Radii of the contacts, nm.
    cloud_radius : np.ndarray
        Radii of the clouds of vesicles, nm; 0 without a cloud.
    cloud_center : np.ndarray
        Centers of the clouds, (n, 3), nm.
    organelle : np.ndarray
        NONE, MITOCHONDRION or PLATE.
    organelle_gray : np.ndarray
        Gray values of the organelles.
    organelle_axes : np.ndarray
        Rows u_y, u_x, u_0, v_y, v_x, v_0, w, (7, n), such that
        q = (u_y y + u_x x + u_0)^2 + (v_y y + v_x x + v_0)^2 + w is 1 on the surface of the organelle.
    """

    position: np.ndarray
    weight: np.ndarray
    cell_id: np.ndarray
    gray: np.ndarray
    roughness: np.ndarray
    vesicle_density: np.ndarray
    contact_kind: np.ndarray
    partner: np.ndarray
    contact_center: np.ndarray
    contact_radius: np.ndarray
    cloud_radius: np.ndarray
    cloud_center: np.ndarray
    organelle: np.ndarray
    organelle_gray: np.ndarray
    organelle_axes: np.ndarray


def cells_around(seed: int, z_nm: int, y_nm: int, x_nm: int, size_nm: int) -> Cells:
    """Return the cells that matter to the square of `size_nm` at z, y, x, relative to the corner of the square."""
    corner, size = np.array([z_nm, y_nm, x_nm]), np.array([0, size_nm, size_nm])
    # Whole groups, and one more place on each side, for the neighbors of the outermost points.
    first, last = (
        (corner + side) // POINT_SPACING_NM // SYNAPSE_GROUP * SYNAPSE_GROUP
        for side in (-MAX_DISTANCE_NM, size + MAX_DISTANCE_NM)
    )
    place = np.stack(np.meshgrid(*map(np.arange, first - 1, last + SYNAPSE_GROUP + 1), indexing="ij"))
    key = hash_integers(seed, *place)
    jitter = hash_integers(key, np.arange(3)[:, None, None, None]).astype(np.int64) * POINT_SPACING_NM >> 32
    points = place * POINT_SPACING_NM + jitter
    exists = uniform(key, 3) >= MISSING_SHARE
    cell_id = _cell_ids(seed, points, key)
    kept = np.flatnonzero(exists)
    row = np.zeros(exists.size, np.int64)
    row[kept] = np.arange(len(kept))
    return _make_cells(
        key.reshape(-1)[kept],
        (points.reshape(3, -1)[:, kept].T - corner).astype(np.float64),
        cell_id.reshape(-1)[kept],
        row[_nearest_in_another_cell(points, exists, cell_id)[kept]],
        _group_numbers(place, first).reshape(-1)[kept],
    )


@dataclass
class _Draws:
    """Random numbers in [0, 1) of each point, (draw, point); every call uses the next one."""

    numbers: np.ndarray
    num_used: int = field(default=0)

    def between(self, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
        self.num_used += 1
        return low + (high - low) * self.numbers[self.num_used - 1]

    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine and sine of an angle within 90 degrees, from a rational parameter: exact on every machine."""
        t = self.between(-1, 1)
        return (1 - t**2) / (1 + t**2), 2 * t / (1 + t**2)


def _cell_ids(seed: int, points: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return an even id for each point, or the odd id of the dendrite that contains it."""
    place = points // DENDRITE_SPACING_NM
    dendrite_key = hash_integers(seed, 1, *place)
    draws = _Draws(uniform(dendrite_key, np.arange(3)[:, None, None, None]))
    z, y, x = points - place * DENDRITE_SPACING_NM - DENDRITE_SPACING_NM // 2
    cos, sin = draws.direction()
    long, short = draws.between(500, 750), draws.between(240, 420)
    inside = ((cos * y + sin * x) / long) ** 2 + ((cos * x - sin * y) / short) ** 2 + (z / long) ** 2 < 1
    return np.where(inside, dendrite_key.astype(np.int64) * 2 + 1, key.astype(np.int64) * 2)


def _nearest_in_another_cell(points: np.ndarray, exists: np.ndarray, cell_id: np.ndarray) -> np.ndarray:
    """Return for each point the flat index of the nearest point of another cell; its own at the rim of the grid."""
    strides = np.array([exists.shape[1] * exists.shape[2], exists.shape[2], 1])
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij")).reshape(3, -1).T @ strides
    inner = np.arange(exists.size).reshape(exists.shape)[1:-1, 1:-1, 1:-1].reshape(-1)
    neighbor = inner + steps[steps != 0][:, None]
    flat, flat_id = points.reshape(3, -1), cell_id.reshape(-1)
    squared = ((flat[:, neighbor] - flat[:, None, inner]) ** 2).sum(0)
    squared[~exists.reshape(-1)[neighbor] | (flat_id[neighbor] == flat_id[inner])] = 10**9
    nearest = np.arange(exists.size)
    nearest[inner] = neighbor[squared.argmin(0), np.arange(len(inner))]
    return nearest


def _group_numbers(place: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the number of each place's group; `first` is the first place of the first group."""
    z, y, x = (place - first[:, None, None, None]) // np.array(SYNAPSE_GROUP)[:, None, None, None] + 1
    return (z * (y.max() + 1) + y) * (x.max() + 1) + x


def _make_cells(
    key: np.ndarray, position: np.ndarray, cell_id: np.ndarray, partner: np.ndarray, group: np.ndarray
) -> Cells:
    """Draw everything that belongs to the points."""
    draws = _Draws(uniform(key, np.arange(NUM_DRAWS)[:, None]))
    cell_draws = _Draws(uniform(cell_id & 0xFFFFFFFF, np.arange(2)[:, None]))
    is_axon = cell_id % 2 == 0
    weight = np.where(is_axon, draws.between(0, 18000), 0)
    normal = position[partner] - position
    length = np.maximum(1, np.sqrt((normal**2).sum(1)))
    normal /= length[:, None]
    to_border = (length + (weight[partner] - weight) / length) / 2
    contact_center = position + normal * to_border[:, None]
    suitable = partner != np.arange(len(key))
    suitable &= (np.abs(normal[:, 0]) < MAX_NORMAL_Z) & (to_border > MIN_BORDER_DISTANCE_NM)
    kind = _contact_kinds(suitable, is_axon, partner, group, draws.between(0, 1))
    has_cloud = (kind == SYNAPSE) | (kind == CLOUD)
    organelle = np.where(has_cloud, NONE, _choose_kind(draws.between(0, 1), ORGANELLES, ORGANELLE_SHARES))
    return Cells(
        position=position,
        weight=weight,
        cell_id=cell_id,
        gray=cell_draws.between(130, 184) + np.where(is_axon, 0, 10),
        roughness=cell_draws.between(5, 13),
        vesicle_density=np.maximum(0.01, draws.between(-0.5, 0.14)),
        contact_kind=kind,
        partner=partner,
        contact_center=contact_center,
        contact_radius=draws.between(140, 240) + np.where(kind == THICK, 25, 0),
        cloud_radius=np.where(has_cloud, draws.between(190, 260), 0),
        cloud_center=contact_center - normal * np.minimum(to_border, 110)[:, None],
        organelle=organelle,
        organelle_gray=np.where(organelle == PLATE, draws.between(42, 66), 118),
        organelle_axes=_organelle_axes(draws, position, organelle == PLATE),
    )


def _choose_kind(draw: np.ndarray, kinds: tuple[int, ...], shares: tuple[float, ...]) -> np.ndarray:
    """Return the kind whose share of [0, 1) contains the random number; 0 beyond all shares."""
    return np.array([*kinds, 0])[np.searchsorted(np.cumsum(shares), draw, side="right")]


def _contact_kinds(
    suitable: np.ndarray, is_axon: np.ndarray, partner: np.ndarray, group: np.ndarray, draw: np.ndarray
) -> np.ndarray:
    """Return the kind of each point's contact; in a group the suitable axon with the lowest number has the synapse.

    A contact whose partner has vesicles itself is plain, so that each side alone shows what a contact is.
    """
    axon = suitable & is_axon
    lowest = np.full(group.max() + 1, np.inf)
    np.minimum.at(lowest, group[axon], draw[axon])
    is_synapse = axon & (draw == lowest[group])
    faces_synapse = np.isin(np.arange(len(suitable)), partner[is_synapse])
    is_cloud = axon & (draw > 1 - CLOUD_SHARE) & ~is_synapse & ~faces_synapse
    kind = np.select([is_synapse, is_cloud, suitable], [SYNAPSE, CLOUD, THICK], PLAIN)
    return np.where((kind != CLOUD) & (is_synapse | is_cloud)[partner], PLAIN, kind)


def _organelle_axes(draws: _Draws, position: np.ndarray, is_plate: np.ndarray) -> np.ndarray:
    """Return `Cells.organelle_axes`: the axes of an ellipsoid near each point, rotated about z and tilted."""
    cos, sin = draws.direction()
    long = draws.between(np.where(is_plate, 80, 130), np.where(is_plate, 180, 300))
    short = draws.between(np.where(is_plate, 26, 75), np.where(is_plate, 48, 130))
    tall = draws.between(130, 260)
    tilt = draws.between(-0.5, 0.5)
    z, y, x = (position[:, axis] + draws.between(-40, 40) for axis in range(3))
    along = np.stack([sin, cos, -sin * y - cos * x]) / long
    across = np.stack([cos, -sin, -cos * y + sin * x + tilt * z]) / short
    return np.stack([*along, *across, (z / tall) ** 2])
