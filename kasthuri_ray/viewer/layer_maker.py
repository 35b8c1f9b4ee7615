"""Volumes as layers of the viewer: opened, aligned with the image, with all their resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kasthuri_ray.geometry import Nm, per_axis
from kasthuri_ray.viewer.chunk_memory import ChunkMemory
from kasthuri_ray.viewer.layers import VoxelLayer
from kasthuri_ray.viewer.public_sources import find_public_url
from kasthuri_ray.viewer.served_levels import (
    Content,
    ServedLevel,
    find_levels,
    has_size_or_place,
    serve_levels,
    with_voxel_size,
)
from kasthuri_ray.volumes.alignment import align_volumes
from kasthuri_ray.volumes.grey_range import sample_grey_levels
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import has_same_voxel_size

PERCENTILES = (0.5, 99.5)
ANNOTATION_COLOR = "#30d070"


class LayerMaker:
    """Makes layers of volumes.

    Parameters
    ----------
    opener : VolumeOpener
        Opens the volumes.

    Attributes
    ----------
    memory : ChunkMemory
        Keeps the chunks of all layers.
    notes : list of str
        Lines that a person should read.
    """

    def __init__(self, opener: VolumeOpener) -> None:
        self.opener, self.memory = opener, ChunkMemory()
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Lines that a person should read, once each."""
        return list(dict.fromkeys([*self.opener.notes, *self._notes]))

    def add_note(self, text: str) -> None:
        """Add a line that a person should read."""
        self._notes.append(text)

    def image_layer(
        self, uri: str, flag: str = "--image", voxel_size_nm: Nm | None = None
    ) -> tuple[Volume, VoxelLayer]:
        """Return an image and its layer; a voxel size replaces the one that the image states."""
        volume = self.opener.open(uri, name=flag)
        volumes = list(find_levels(uri, volume, self.opener, "image"))
        is_given = has_size_or_place(uri)
        if voxel_size_nm is not None and voxel_size_nm != volume.voxel_size_nm:
            volumes, is_given = with_voxel_size(volumes, voxel_size_nm), True
            volume = volumes[0]
        levels = self.levels(volumes, "image", size_is_given=is_given)
        if volume.voxel_size_nm is None:
            self.add_note(f"{volume.uri} states no voxel size: lengths are in voxels (?voxel_size_nm=z,y,x gives it)")
        public = None if is_given else find_public_url(volume)
        return volume, VoxelLayer("image", "image", levels, grey_range(volumes[-1]), public_url=public)

    def annotation_layer(self, uri: str, image: Volume | None, flag: str = "--annotation") -> VoxelLayer:
        """Return the layer of an annotation, which is aligned with the image."""
        volume = self.opener.open(uri, labels=True, name=flag)
        volumes = list(find_levels(uri, volume, self.opener, "labels"))
        is_given = has_size_or_place(uri)
        public = None if is_given else find_public_url(volume)
        if image is not None and has_same_voxel_size(image, volume):
            aligned = align_volumes(image, volume)
            if has_moved_corner(volume, aligned.moving):
                volumes, is_given, public = [aligned.moving, *volumes[1:]], True, None
            for note in aligned.notes:
                self.add_note(note)
        levels = self.levels(volumes, "labels", size_is_given=is_given)
        if volume.dtype.kind == "f":
            return VoxelLayer("annotation", "overlay", levels, color=ANNOTATION_COLOR)
        return VoxelLayer("annotation", "segmentation", levels, color=ANNOTATION_COLOR, public_url=public)

    def levels(
        self, volumes: Sequence[Volume], content: Content, *, size_is_given: bool = False
    ) -> tuple[ServedLevel, ...]:
        """Return what is served of the resolutions of a volume."""
        return tuple(serve_levels(volumes, self.memory, content, size_is_given=size_is_given))


def has_moved_corner(volume: Volume, aligned: Volume) -> bool:
    """Return whether an alignment gave a volume another place, voxel size or offset than it states itself."""
    same = (volume.bounds, volume.voxel_size_nm, volume.place) == (aligned.bounds, aligned.voxel_size_nm, aligned.place)
    return not same


def grey_range(volume: Volume) -> tuple[float, float] | None:
    """Return what becomes black and white: the range of uint8, as which bools are sent, else percentiles of a sample.

    Parameters
    ----------
    volume : Volume
        The coarsest resolution of an image.

    Returns
    -------
    tuple of float
        Low and high.
    """
    if volume.dtype in (np.uint8, bool):  # True is sent as 255
        return 0.0, 255.0
    levels = sample_grey_levels(volume, [volume.bounds])
    if not levels.size:
        return None
    low, high = (float(value) for value in np.percentile(levels, PERCENTILES))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def extent_of(level: ServedLevel) -> tuple[Nm, Nm]:
    """Return the lower and the upper corner of a level, in nm (voxels), z, y, x."""
    return level.corner, per_axis(lambda c, n, size: c + n * size, level.corner, level.volume.shape, level.size)
