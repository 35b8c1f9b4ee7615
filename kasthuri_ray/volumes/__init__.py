"""Where voxels come from: `open_volume(uri)` gives a Volume, whatever holds the voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kasthuri_ray.volumes.volume import SourceError, Volume, count_blank_chunks

if TYPE_CHECKING:
    from kasthuri_ray.volumes.cache import ChunkCache

__all__ = ["SourceError", "Volume", "count_blank_chunks", "open_volume"]


def open_volume(
    uri: str,
    *,
    mip: int | None = None,
    boss: Mapping[str, Any] | None = None,
    cache: ChunkCache | None = None,
    voxel_size_nm: tuple[float, float, float] | None = None,
) -> Volume:
    """The volume that `uri` names: its metadata is read now, its voxels when they are asked for.

    uri: `bossdb://collection/experiment/channel[/resolution]`; `phantom://em?shape=z,y,x&seed=0`; a tensorstore URL
        such as `s3://bucket/path/|neuroglancer-precomputed:`; a path or `s3://` of zarr 2, zarr 3, N5, precomputed or
        an OME-Zarr group (its format is found out); `x.h5:dataset`; `x.tif`.
    mip: the resolution, 0 the finest; None takes the one the URI names, else 0.
    boss: the options of intern's BossRemote (`protocol`, `host`, `token`); None reads public data from api.bossdb.io.
    cache: keeps the chunks of a remote volume on this node's disk.
    voxel_size_nm: z, y, x, for a source that does not say it itself.

    Raises ValueError or FileNotFoundError for a name that leads nowhere, PermissionError where access is refused,
    SourceError where the source does not answer.
    """
    volume = _open(uri, mip, boss)
    if voxel_size_nm is not None:
        volume = replace(volume, voxel_size_nm=voxel_size_nm)
    if cache is not None and volume.remote:
        from kasthuri_ray.volumes.cache import CachedVolume

        return CachedVolume.of(volume, cache)
    return volume


def _open(uri: str, mip: int | None, boss: Mapping[str, Any] | None) -> Volume:
    if uri.startswith("phantom://"):
        from kasthuri_ray.volumes.phantom import open_phantom

        return open_phantom(uri, mip=mip)
    if uri.startswith("bossdb://"):
        from kasthuri_ray.volumes.bossdb import open_bossdb

        return open_bossdb(uri, mip=mip, boss=boss)
    from kasthuri_ray.volumes.files import is_file_volume, open_file

    if is_file_volume(uri):
        return open_file(uri, mip=mip)
    from kasthuri_ray.volumes.stores import open_store

    return open_store(uri, mip=mip)
