"""Where a scene is looked at: position, zoom and layout, from flags and from what there is. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Nm, per_axis
from kasthuri_ray.viewer.layers import VoxelLayer
from kasthuri_ray.viewer.served_levels import ServedLevel, corner_of_first_voxel
from kasthuri_ray.volumes.volume import Volume


def parse_position(text: str, image: Volume) -> Nm:
    """Return the middle of the voxel that `--position z,y,x` names, in nm (voxels).

    Parameters
    ----------
    text : str
        Voxels of the image, its own offset included, as in `--box`.
    image : Volume
        The image.

    Returns
    -------
    tuple of float
        z, y, x.

    Raises
    ------
    InputError
        If the text is not three numbers, or the place is outside of the image.
    """
    try:
        place = per_axis(float, text.split(","))
    except ValueError:
        raise InputError(f"--position {text} is not three voxels z,y,x such as 50,512,512") from None
    bounds = image.bounds
    for axis in range(3):
        if not bounds.start[axis] <= place[axis] < bounds.stop[axis]:
            raise InputError(
                f"--position {text} is outside of {image.uri} along {AXES[axis]}: it is {bounds} (z,y,x), in voxels"
            )
    size = image.voxel_size_nm or (1.0, 1.0, 1.0)
    corner = corner_of_first_voxel(image)
    return per_axis(lambda c, p, a, n: c + (p - a + 0.5) * n, corner, place, bounds.start, size)


def middle_of(level: ServedLevel) -> Nm:
    """Return the middle of a level, of a whole voxel, in nm (voxels)."""
    return per_axis(lambda c, n, size: c + (n // 2 + 0.5) * size, level.corner, level.volume.shape, level.size)


def fitting_zoom(layer: VoxelLayer, size: tuple[int, int]) -> float:
    """Return how many voxels of the image a pixel of an overview is.

    Parameters
    ----------
    layer : VoxelLayer
        The image.
    size : tuple of int
        Width and height of the window in pixels.

    Returns
    -------
    float
        All of the image is visible, unless that would need more voxels than pixels of its coarsest level.
    """
    finest, coarsest = layer.levels[0], layer.levels[-1]
    whole = max(finest.volume.shape[2] / size[0], finest.volume.shape[1] * finest.size[1] / finest.size[2] / size[1])
    return min(whole, max(1.0, coarsest.size[2] / finest.size[2]))


def move_inside(place: Nm, level: ServedLevel, size: tuple[int, int], zoom: float) -> Nm:
    """Return the middle of a view that shows a place, and as little as possible of what is outside of the image.

    Parameters
    ----------
    place : tuple of float
        z, y, x in nm (voxels), in the image.
    level : ServedLevel
        The image.
    size : tuple of int
        Width and height of the view in pixels.
    zoom : float
        Voxels of the image along x that a pixel is.

    Returns
    -------
    tuple of float
        z, y, x in nm (voxels); z stays.
    """
    middle = list(place)
    for axis, num_pixels in ((1, size[1]), (2, size[0])):
        half = zoom * level.size[2] * num_pixels / 2
        low, high = level.corner[axis], level.corner[axis] + level.volume.shape[axis] * level.size[axis]
        is_whole = high - low <= 2 * half
        middle[axis] = (low + high) / 2 if is_whole else min(max(place[axis], low + half), high - half)
    return per_axis(float, middle)


def check_window(text: str) -> tuple[int, int]:
    """Return width and height of `--size W,H`; raise an InputError for anything but two numbers from 16 to 8192."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise InputError(f"--size {text} is not width and height in pixels, such as 1200,800")
    width, height = map(int, parts)
    if not (min(width, height) >= 16 and max(width, height) <= 8192):
        raise InputError(f"--size {text}: width and height are 16 to 8192 pixels")
    return width, height


def first_layer(layers: Sequence[VoxelLayer]) -> VoxelLayer:
    """Return the layer whose voxels are the unit of the viewer: the image, else the first one."""
    return next((layer for layer in layers if layer.name == "image"), layers[0])
