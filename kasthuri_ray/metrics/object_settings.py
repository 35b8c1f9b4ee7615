"""What makes an object of probabilities: thresholds, smallest size, sections, gaps and score. Plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ObjectSettings:
    """How objects are found in probabilities; `object_detection` applies it.

    Tuples have a value for each foreground class.

    Parameters
    ----------
    seed : tuple of float
        An object is kept if its highest probability reaches this.
    extent : tuple of float
        A voxel can belong to an object from this probability; at most the seed.
    min_size : tuple of float
        Smallest size: nm^3 if `is_nm3`, else voxels. Not for objects that the box cuts.
    is_nm3 : bool
        Unit of `min_size`.
    min_sections : int
        Smallest number of sections from the first to the last one of an object. Not for objects that the box cuts.
    bridge_sections : int
        Gaps of at most so many sections between voxels of one class join them; the gap itself belongs to no object.
    min_score : tuple of float
        Lowest score, the mean probability.
    """

    seed: tuple[float, ...]
    extent: tuple[float, ...]
    min_size: tuple[float, ...]
    is_nm3: bool = False
    min_sections: int = 1
    bridge_sections: int = 0
    min_score: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seed", "extent", "min_size", "min_score"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not self.min_score:
            object.__setattr__(self, "min_score", (0.0,) * len(self.extent))

    @classmethod
    def of_thresholds(cls, thresholds: Sequence[float]) -> ObjectSettings:
        """Return settings by which every connected piece above the thresholds is an object."""
        return cls(tuple(thresholds), tuple(thresholds), (0.0,) * len(thresholds))

    @classmethod
    def from_plain(cls, record: Mapping[str, Any] | None) -> ObjectSettings | None:
        """Return what `to_plain` returned; None for None."""
        return None if record is None else cls(**record)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def is_plain(self) -> bool:
        """Whether every connected piece above the extent is an object."""
        return replace(self, is_nm3=False) == ObjectSettings.of_thresholds(self.extent)

    def min_voxels(self, voxel_size_nm: Sequence[float] | None) -> tuple[float, ...]:
        """Return the smallest size in voxels.

        Parameters
        ----------
        voxel_size_nm : sequence of float or None
            Size of a voxel, z, y, x. Needed for sizes in nm^3.

        Returns
        -------
        tuple of float
            One for each class.

        Raises
        ------
        ValueError
            If a size in nm^3 cannot be converted.
        """
        if not self.is_nm3 or not any(self.min_size):
            return self.min_size
        if voxel_size_nm is None:
            raise ValueError("a smallest size in nm^3 needs a voxel size")
        return tuple(round(size / math.prod(voxel_size_nm), 6) for size in self.min_size)
