"""Patches of an image that recognise it after its grey levels or its resolution were changed.

A patch is compared with the voxels at its place by their correlation, which no linear change of the grey levels alters,
and an inversion only by its sign. In unrelated images hardly a single patch reaches the least correlation, and all
patches must reach it, with one sign. The next section of the same image may reach it, so a place counts only if the
correlation is higher there than one voxel beside it.
"""

from __future__ import annotations

import base64
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, ceil_div, per_axis
from kasthuri_ray.volumes.volume import Volume

PATCH: Zyx = (1, 16, 32)
GRID = 4  # patches start at multiples of it along y and x, so that voxels of the next mips lie in them whole
NUM_PATCHES = 6  # of an image, at least one of each box
MIN_PATCHES = 2  # that lie in a volume
MIN_CORRELATION, MIN_CORRELATION_OF_FEW, FEW = 0.8, 0.9, 4
MIN_VOXELS = 24  # of a patch, in the voxels of a coarser volume
MIN_VALUES = 8  # different ones of a patch that is worth keeping
MAX_FACTOR = 8  # between the voxel sizes of two resolutions
FACTOR_TOLERANCE = 0.01
SIDES: tuple[Zyx, ...] = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))


@dataclass(frozen=True)
class VoxelPatch:
    """Voxels of one section. start: the first voxel, z, y, x. shape: along z, y, x. grey: 0 to 255, as bytes."""

    start: Zyx
    shape: Zyx
    grey: bytes

    @classmethod
    def of(cls, box: Box, voxels: np.ndarray) -> VoxelPatch:
        """Return the patch of voxels, whose lowest value becomes 0 and whose highest becomes 255."""
        values = np.nan_to_num(voxels.astype(np.float64))
        low, high = values.min(), values.max()
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return cls(box.start, box.shape, np.rint(grey).astype(np.uint8).tobytes())

    @property
    def values(self) -> np.ndarray:
        """Grey levels, float32 [z, y, x]."""
        return np.frombuffer(self.grey, np.uint8).reshape(self.shape).astype(np.float32)

    def to_text(self) -> str:
        """Return the patch as text: first voxel, shape, grey levels in base64."""
        start, shape = (",".join(map(str, values)) for values in (self.start, self.shape))
        return f"{start} {shape} {base64.b64encode(self.grey).decode()}"

    @classmethod
    def from_text(cls, text: str) -> VoxelPatch:
        """Return the patch of a text of `to_text`; raise ValueError for another text."""
        start, shape, grey = text.split(" ")
        return cls(
            per_axis(int, start.split(",")), per_axis(int, shape.split(",")), base64.b64decode(grey, validate=True)
        )


@dataclass(frozen=True)
class GridChange:
    """How voxels of an image become those of another volume: divided by a factor, then shifted.

    Parameters
    ----------
    factors : tuple of float
        Voxels of the image in one of the volume, along z, y, x: 2.0 for a coarser volume, 0.5 for a finer one.
    shift : tuple of int
        What is added then.
    """

    factors: Nm
    shift: Zyx

    def box(self, box: Box) -> Box:
        """Return the voxels of the volume that lie in a box of the image, wholly or in part."""
        start = per_axis(lambda a, f, s: int(np.floor(a / f)) + s, box.start, self.factors, self.shift)
        stop = per_axis(lambda b, f, s: int(np.ceil(b / f)) + s, box.stop, self.factors, self.shift)
        return Box(start, stop)


def record_patches(volume: Volume, boxes: Sequence[Box], num_patches: int = NUM_PATCHES) -> tuple[VoxelPatch, ...]:
    """Read patches that are spread over boxes.

    Parameters
    ----------
    volume : Volume
        The image.
    boxes : sequence of Box
        In its voxels, z, y, x.
    num_patches : int
        Patches to read, at least one of each box; those of few values are not kept.

    Returns
    -------
    tuple of VoxelPatch
        The patches.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    places = [at for box in boxes for at in _patch_boxes(box, volume.bounds.start, ceil_div(num_patches, len(boxes)))]
    patches = [VoxelPatch.of(at, volume.read(at)) for at in places]
    return tuple(patch for patch in patches if len(set(patch.grey)) >= MIN_VALUES)


def _patch_boxes(box: Box, origin: Zyx, num_patches: int) -> Iterator[Box]:
    """Yield boxes of patches that are spread over a box."""
    shape = per_axis(min, PATCH, box.shape)
    grid = (1, GRID, GRID)
    for number in range(num_patches):
        places = number, 3 * number % num_patches, 5 * number % num_patches
        start = per_axis(
            lambda a, n, size, k: a + (2 * k + 1) * (n - size) // (2 * num_patches), box.start, box.shape, shape, places
        )
        low = per_axis(lambda at, o, g: at - (at - o) % g, start, origin, grid)
        yield Box.at(per_axis(max, low, box.start), shape)


def size_factors(of_image: Nm | None, of_volume: Nm | None) -> Nm | None:
    """Return how many voxels of an image lie in one of a volume.

    Parameters
    ----------
    of_image, of_volume : tuple of float or None
        Voxel sizes in nm.

    Returns
    -------
    tuple of float or None
        Whole numbers up to 8, or 1 through them; None for voxel sizes that no pyramid relates, or that are not known.
    """
    if of_image is None or of_volume is None:
        return (1.0, 1.0, 1.0) if of_image == of_volume else None
    factors = []
    for one, other in zip(of_image, of_volume, strict=True):
        ratio = other / one
        whole = max(1, round(max(ratio, 1 / ratio)))
        exact = float(whole) if ratio >= 1 else 1 / whole
        if whole > MAX_FACTOR or abs(ratio / exact - 1) > FACTOR_TOLERANCE:
            return None
        factors.append(exact)
    return per_axis(float, factors)


def shows_patches(volume: Volume, patches: Sequence[VoxelPatch], change: GridChange) -> bool:
    """Return whether a volume shows patches at their places, whatever its grey levels.

    Parameters
    ----------
    volume : Volume
        The volume.
    patches : sequence of VoxelPatch
        Patches of an image; those outside of the volume do not count.
    change : GridChange
        Where its voxels are in the volume.

    Returns
    -------
    bool
        Whether enough of them lie in it, and all of these are there.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    found: list[float] = []
    for patch in patches:
        box = change.box(Box.at(patch.start, patch.shape))
        if not volume.bounds.contains(box):
            continue
        found.append(_correlation(volume, patch, change))
        if abs(found[-1]) < MIN_CORRELATION or found[-1] * found[0] < 0:
            return False
    least = MIN_CORRELATION if len(found) >= FEW else MIN_CORRELATION_OF_FEW
    return len(found) >= MIN_PATCHES and min(map(abs, found)) >= least


def _correlation(volume: Volume, patch: VoxelPatch, change: GridChange) -> float:
    """Return the correlation of a patch with the voxels at its place; 0 if it is no higher than one voxel beside it."""
    coarser = per_axis(lambda f: max(1, round(f)), change.factors)  # voxels of the image in one of the volume
    finer = per_axis(lambda f: max(1, round(1 / f)), change.factors)  # and the other way round
    wanted = _pool(patch.values, coarser)
    if wanted.size < MIN_VOXELS or wanted.std() == 0:
        return 0.0
    first = change.box(Box.at(patch.start, patch.shape)).start
    box = Box.at(first, per_axis(operator.mul, wanted.shape, finer))
    inside = box.grown(finer).intersect(volume.bounds)
    voxels = np.nan_to_num(volume.read(inside).astype(np.float32))
    places = [box.shifted(per_axis(operator.mul, side, finer)) for side in SIDES]
    here, *beside = (
        _correlate(wanted, _pool(voxels[at.slices(inside.start)], finer)) for at in places if inside.contains(at)
    )
    return here if all(abs(here) > abs(other) for other in beside) else 0.0


def _pool(voxels: np.ndarray, factors: Zyx) -> np.ndarray:
    """Return the means of cells of voxels; what fills no cell along y and x is left out, z may be a part of one."""
    shape = per_axis(lambda n, f: max(1, n // f), voxels.shape, factors)
    cells = per_axis(min, factors, voxels.shape)
    cut = voxels[tuple(slice(0, n * c) for n, c in zip(shape, cells, strict=True))]
    (z, y, x), (cz, cy, cx) = shape, cells
    return cut.reshape(z, cz, y, cy, x, cx).mean((1, 3, 5))


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Return Pearson's correlation; 0 if one of both is flat."""
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0
