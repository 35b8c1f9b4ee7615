"""The place of a volume and the size of its voxels, in nm, and what states them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Nm, Zyx, per_axis
from kasthuri_ray.volumes.axes import turn_lengths

Anchor = Literal["middle", "corner"]


MIN_BARE_SIZE_NM = 0.1  # a smaller voxel, of which no unit is stated, is not in nm: it is smaller than an atom


class StatedSize(NamedTuple):
    """Size of a voxel along z, y, x, in nm, and where it was found, such as "OME scale" or "?voxel_size_nm"."""

    size_nm: Nm
    source: str
    states_unit: bool = True

    @classmethod
    def of(cls, size_nm: Nm | None, source: str, states_unit: bool = True) -> StatedSize | None:
        """Return the size with its source; None without a size."""
        return None if size_nm is None else cls(size_nm, source, states_unit)

    def turned(self, stated: Zyx, axes: Zyx) -> StatedSize:
        """Return the size along other axes than those that the file calls z, y, x; see `turn_lengths`."""
        return self._replace(size_nm=turn_lengths(self.size_nm, stated, axes))


def check_unit(size: StatedSize | None, uri: str) -> None:
    """Raise an InputError for a voxel size without a unit that is too small to be in nm, such as one in micrometers."""
    if size is not None and not size.states_unit and min(size.size_nm) < MIN_BARE_SIZE_NM:
        numbers = ",".join(f"{length:g}" for length in size.size_nm)
        raise InputError(
            f"{uri}: its {size.source} is {numbers} (z,y,x) and states no unit; in nm that is smaller than an atom. "
            "Give the size: ?voxel_size_nm=z,y,x"
        )


def size_fields(size: StatedSize | None) -> dict[str, Any]:
    """Return the fields of a `Volume` that hold a voxel size."""
    return {"voxel_size_nm": size and size.size_nm, "voxel_size_source": size.source if size else ""}


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

    def turned(self, stated: Zyx, axes: Zyx) -> Place:
        """Return the place along other axes than those that the file calls z, y, x; see `turn_lengths`."""
        return replace(self, origin_nm=turn_lengths(self.origin_nm, stated, axes))

    def corner_nm(self, voxel_size_nm: Nm) -> Nm:
        """Return the position of the lower corner of voxel 0, 0, 0."""
        half = 0.5 if self.anchor == "middle" else 0.0
        return per_axis(lambda origin, size: origin - half * size, self.origin_nm, voxel_size_nm)
