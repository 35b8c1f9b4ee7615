"""The place of a volume: where its voxel 0 lies in nm, and what was found about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kasthuri_ray.geometry import Nm, per_axis

Anchor = Literal["middle", "corner"]


@dataclass(frozen=True)
class Place:
    """Position of voxel 0, 0, 0 of a volume, as its metadata state it.

    Parameters
    ----------
    origin_nm : tuple of float
        Position along z, y, x, in nm.
    anchor : {"middle", "corner"}
        The point of voxel 0 that has this position: OME and `transform` name its middle, all others its lower corner.
    source : str
        Where it was found, for messages: "OME translation", "transform", "offset", "?offset_nm".
    stated : bool
        False if the metadata define a position without naming one, such as OME's scale without a translation. Such a
        place counts beside one that is stated, but two of them do not align volumes of different shapes.
    """

    origin_nm: Nm
    anchor: Anchor
    source: str
    stated: bool = True

    def corner_nm(self, voxel_size_nm: Nm) -> Nm:
        """Return the position of the lower corner of voxel 0, 0, 0."""
        half = 0.5 if self.anchor == "middle" else 0.0
        return per_axis(lambda origin, size: origin - half * size, self.origin_nm, voxel_size_nm)
