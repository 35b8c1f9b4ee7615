"""Where voxels come from: `open_volume(uri)` gives a Volume, whatever holds the voxels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasthuri_ray.geometry import Nm
from kasthuri_ray.volumes.chunk_cache import open_cache
from kasthuri_ray.volumes.volume import Volume

if TYPE_CHECKING:
    from kasthuri_ray.volumes.chunk_cache import ChunkCache


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
        from kasthuri_ray.volumes.chunk_cache import CachedVolume

        return CachedVolume.of(volume, cache)
    return volume


def _open(uri: str, mip: int | None, boss: Mapping[str, Any] | None) -> Volume:
    if uri.startswith("phantom://"):
        from kasthuri_ray.volumes.phantom_volume import open_phantom

        return open_phantom(uri, mip=mip)
    if uri.startswith("bossdb://"):
        from kasthuri_ray.volumes.bossdb import open_bossdb

        return open_bossdb(uri, mip=mip, boss=boss)
    from kasthuri_ray.volumes.hdf5_tiff import is_file_volume, open_file_volume

    if is_file_volume(uri):
        return open_file_volume(uri, mip=mip)
    from kasthuri_ray.volumes.stores import open_store

    return open_store(uri, mip=mip)


class VolumeOpener:
    """Opens each volume once, all by the same options and through the same cache.

    boss: a file of BossDB options, None for public data. cache, cache_size: as of `open_cache`. Raises what
    `open_volume` raises, and ValueError or FileNotFoundError for a file of options that is none.
    """

    def __init__(self, boss: str | None, cache: str | None, cache_size: str) -> None:
        self.boss = read_boss_options(boss)
        self.cache = open_cache(cache, cache_size)
        self._opened: dict[tuple[str, int | None, Nm | None], Volume] = {}

    def open(self, uri: str, mip: int | None = None, voxel_size_nm: Nm | None = None) -> Volume:
        """The volume; see `open_volume`."""
        key = (uri, mip, voxel_size_nm)
        if key not in self._opened:
            self._opened[key] = open_volume(uri, mip=mip, boss=self.boss, cache=self.cache, voxel_size_nm=voxel_size_nm)
        return self._opened[key]


def read_boss_options(path: str | None) -> dict[str, Any] | None:
    """The options in a `--boss` file; None without one."""
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"--boss {path}: there is no such file") from None
    except (OSError, ValueError) as error:
        # The text is not shown: it holds a token.
        raise ValueError(f"--boss {path} is not readable as JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ValueError(f"--boss {path} holds no JSON object with protocol, host and token")
    return found
