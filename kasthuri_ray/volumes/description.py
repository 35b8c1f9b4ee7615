"""What was understood of a volume: its metadata, its chunks and a sample of its values, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.progress import format_count
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.absent_chunks import count_absent_before, sample_absent
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.value_sample import ValueCounts, ValueSample, sample_values
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import box_nm, size_text

Rows = list[tuple[str, str]]  # name and value, for people

PERCENTS = (1, 50, 99)
MAX_LISTED = 12  # distinct values


@dataclass(frozen=True)
class VolumeDescription:
    """What was understood of a volume.

    Parameters
    ----------
    uri : str
        Its name, without secrets.
    format, stored_axes, voxel_size_source : str
        As of a `Volume`.
    bounds : Box
        Its voxels, z, y, x.
    chunk : tuple of int
        What is read at once, z, y, x.
    dtype : np.dtype
        Type of the voxels.
    voxel_size_nm : tuple of float or None
        Size of a voxel, z, y, x.
    corner_nm : tuple of float or None
        Lower corner of the first voxel, z, y, x; None if place or voxel size is not stated.
    place : Place or None
        What states the place.
    absent : tuple of int or None
        Absent chunks, and those that were looked for; None if the format does not tell.
    num_chunks : int
        All chunks.
    sample : ValueSample
        A sample of the values.
    """

    uri: str
    format: str
    stored_axes: str
    bounds: Box
    chunk: Zyx
    dtype: np.dtype
    voxel_size_nm: Nm | None
    voxel_size_source: str
    corner_nm: Nm | None
    place: Place | None
    absent: tuple[int, int] | None
    num_chunks: int
    sample: ValueSample

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the volume is stored, as far as the chunks that were looked for show."""
        if self.absent is None or self.absent[0] < self.absent[1] or self.sample.is_stored_part:
            return False
        return len(self.sample.total.values) <= 1

    def rows(self) -> Rows:
        """Return the description for people.

        Returns
        -------
        list of (str, str)
            Name and value of each property.
        """
        values = self.sample.total
        rows = [
            ("format", self.format),
            ("stored axes", self.stored_axes),
            ("size", f"{' x '.join(map(str, self.bounds.shape))} voxels (z,y,x) of {self.dtype}"),
            ("voxels", f"{self.bounds} (z,y,x)"),
            ("voxel size", self._voxel_size_text()),
            ("place", self._place_text()),
            ("chunks", f"{format_count(self.num_chunks, 'chunk')} of {' x '.join(map(str, self.chunk))}"),
            ("absent chunks", self._absent_text()),
            ("sample", self._sample_text()),
            ("values", range_text(values)),
        ]
        if 0 < len(values.values) <= MAX_LISTED:
            rows.append(("distinct values", distinct_text(values)))
        if values.num_nan:
            rows.append(("nan", f"{share_text(values.num_nan / values.num_voxels)} of the voxels: not imaged"))
        return rows

    def _voxel_size_text(self) -> str:
        if self.voxel_size_nm is None:
            return "not stated; give it with --voxel-size z,y,x or ?voxel_size_nm=z,y,x"
        return f"{size_text(self.voxel_size_nm)} (z,y,x), from {self.voxel_size_source}"

    def _place_text(self) -> str:
        if self.place is None or not self.place.stated:
            return "not stated" if self.place is None else "not stated; OME-Zarr then begins at 0"
        if self.corner_nm is None:
            return f"stated by {self.place.source}, but not the voxel size"
        corner = ", ".join(f"{value:.10g}" for value in self.corner_nm)
        middle = ", the middle of voxel 0" if self.place.anchor == "middle" else ""
        return f"{corner} nm (z,y,x) is the lower corner of the first voxel, from {self.place.source}{middle}"

    def _absent_text(self) -> str:
        if self.absent is None:
            return "the format does not tell"
        absent, looked_for = self.absent
        sampled = "" if looked_for == self.num_chunks else f" that were looked for, of {self.num_chunks:,} in all"
        return f"{absent:,} of {format_count(looked_for, 'chunk')}{sampled}"

    def _sample_text(self) -> str:
        sample = self.sample
        voxels = format_count(sample.total.num_voxels, "voxel")
        if sample.is_whole:
            return f"all {voxels}"
        cutouts = format_count(len(sample.cutouts), "cutout")
        return (
            f"{voxels} in {cutouts} {'of stored chunks alone' if sample.is_stored_part else 'spread over the volume'}"
        )


def describe_volume(volume: Volume) -> VolumeDescription:
    """Describe a volume; a bounded number of its voxels is read.

    Parameters
    ----------
    volume : Volume
        Any volume.

    Returns
    -------
    VolumeDescription
        What was understood.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    corner = None
    if volume.voxel_size_nm is not None and volume.place is not None:
        corner = per_axis(lambda ends: ends[0], box_nm(volume, volume.bounds))
    return VolumeDescription(
        uri=redact_secrets(volume.uri),
        format=volume.format,
        stored_axes=volume.stored_axes,
        bounds=volume.bounds,
        chunk=volume.chunk,
        dtype=volume.dtype,
        voxel_size_nm=volume.voxel_size_nm,
        voxel_size_source=volume.voxel_size_source,
        corner_nm=corner,
        place=volume.place,
        absent=_count_absent(volume),
        num_chunks=volume.count_chunks(volume.bounds),
        sample=sample_values(volume),
    )


def _count_absent(volume: Volume) -> tuple[int, int] | None:
    if not volume.may_lack_chunks:
        return None
    return count_absent_before(volume, volume.bounds) or sample_absent(volume, volume.bounds)


def range_text(values: ValueCounts) -> str:
    """Return the range of values for people, such as `3 to 250; percentiles 1, 50, 99: 31, 128, 220`."""
    percentiles = values.percentiles(PERCENTS)
    if not percentiles:
        return "none but nan" if values.num_nan else "none"
    shown = ", ".join(map(value_text, percentiles))
    ends = f"{value_text(values.values[0])} to {value_text(values.values[-1])}"
    return f"{ends}; percentiles {', '.join(map(str, PERCENTS))}: {shown}"


def distinct_text(values: ValueCounts) -> str:
    """Return all values with their shares, such as `0 (97.1%), 1 (2.88%)`."""
    shares = values.counts / values.num_voxels
    pairs = zip(values.values, shares, strict=True)
    return ", ".join(f"{value_text(value)} ({share_text(share)})" for value, share in pairs)


def value_text(value: np.generic) -> str:
    """Return a value for people: integers as they are, floats with six digits."""
    return f"{value:.6g}" if value.dtype.kind == "f" else str(int(value))


def share_text(share: float) -> str:
    """Return a share with three digits, which never rounds to a false 0% or 100%.

    Parameters
    ----------
    share : float
        From 0 to 1.

    Returns
    -------
    str
        Such as 0.559%.
    """
    text = f"{100 * share:.3g}%"
    return ">99.9%" if text == "100%" and share < 1 else text
