"""Opening volumes: `open_volume(uri)` returns a `Volume` for every kind of source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kasthuri_ray.errors import InputError, InputNotFound, missing_is_bad_input, named_input
from kasthuri_ray.geometry import Nm
from kasthuri_ray.storage.local_paths import describe_missing
from kasthuri_ray.volumes.chunk_cache import CachedVolume, ChunkCache, open_cache
from kasthuri_ray.volumes.uri_options import UriOptions, split_uri_options
from kasthuri_ray.volumes.volume import Volume


@missing_is_bad_input()
def open_volume(
    uri: str,
    *,
    mip: int | None = None,
    boss: Mapping[str, Any] | None = None,
    cache: ChunkCache | None = None,
    voxel_size_nm: Nm | None = None,
    labels: bool = False,
) -> Volume:
    """Open a volume and read its metadata, not yet its voxels.

    Parameters
    ----------
    uri : str
        One of: `bossdb://collection/experiment/channel[/resolution]`; `phantom://em?shape=z,y,x&seed=0`; a tensorstore
        URL such as `s3://bucket/path/|neuroglancer-precomputed:`; a path or `s3://` URL of zarr 2, zarr 3, N5,
        precomputed or an OME-Zarr group (the format is detected); `x.h5:dataset`; `x.tif`; `x.mrc`; a folder, a pattern
        or a text file of names of TIFF or PNG sections. Each may end in options such as
        `?axes=zcyx&voxel_size_nm=40,4,4&offset_nm=0,0,0`, which win over the file.
    mip : int or None
        Resolution level, 0 is the finest; None takes the level that the URI names, else 0.
    boss : mapping or None
        Options of intern's BossRemote (`protocol`, `host`, `token`); None reads public data from api.bossdb.io.
    cache : ChunkCache or None
        Keeps the chunks of a remote volume, and squares of the phantom, on the disk of this node.
    voxel_size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm, for a source that does not state it; it replaces the source's own.
    labels : bool
        Whether the voxels are labels, such as an annotation or a mask: they keep the values that are stored, where the
        grey levels of a picture are turned (white stored as 0) or looked up (palettes).

    Returns
    -------
    Volume
        Volume that reads its voxels when they are asked for.

    Raises
    ------
    InputError
        If the URI is malformed or names something that is not a volume.
    InputNotFound
        If there is nothing at the URI.
    InputDenied
        If access is refused.
    VolumeError
        If the source does not answer.
    """
    if not uri:
        raise InputError("the URI of the volume is empty; expected a path or a URL")
    source, options = split_uri_options(uri)
    volume = options.apply_to(_open_source(source, options, mip, boss, cache, labels))
    if 0 in volume.shape:
        raise InputError(f"{uri} is empty: its shape is {volume.shape} (z,y,x)")
    if voxel_size_nm is not None:
        volume = replace(volume, voxel_size_nm=voxel_size_nm, voxel_size_source="--voxel-size")
    return CachedVolume.of(volume, cache) if cache is not None and volume.is_cached else volume


def _open_source(
    uri: str,
    options: UriOptions,
    mip: int | None,
    boss: Mapping[str, Any] | None,
    cache: ChunkCache | None,
    labels: bool,
) -> Volume:
    """Open a volume with the one library that reads it; the other libraries are not loaded."""
    if uri.startswith(("phantom://", "bossdb://")) and (options.axes or options.dtype):
        raise InputError(f"{uri}: axes and dtype are options of stores and files; this volume is z,y,x of a known type")
    if uri.startswith("phantom://"):
        from kasthuri_ray.volumes.phantom_volume import open_phantom

        return open_phantom(uri, mip=mip, cache=cache)
    if uri.startswith("bossdb://"):
        from kasthuri_ray.volumes.bossdb import open_bossdb

        return open_bossdb(uri, mip=mip, boss=boss)
    from kasthuri_ray.volumes.file_formats import is_file_volume, open_file_volume

    if is_file_volume(uri):
        return open_file_volume(uri, mip=mip, options=options, labels=labels)
    from kasthuri_ray.volumes.stores import open_store

    return open_store(uri, mip=mip, options=options)


class VolumeOpener:
    """An opener that opens each volume once, all with the same options and the same cache.

    Parameters
    ----------
    boss : str or None
        JSON file of BossDB options; None reads public data.
    cache : str or None
        Folder of the chunk cache; see `open_cache`.
    cache_size : str
        Limit of the cache, such as 20GB.

    Raises
    ------
    InputError
        If the file of options or the size is malformed.
    InputNotFound
        If there is no such file of options.

    Attributes
    ----------
    notes : list of str
        Lines that a person should read about how the volumes were understood, once each.
    """

    def __init__(self, boss: str | None, cache: str | None, cache_size: str) -> None:
        self.boss = read_boss_options(boss)
        with named_input("--cache-size", cache_size):
            self.cache = open_cache(cache, cache_size)
        self.notes: list[str] = []
        self._opened: dict[tuple[str, int | None, Nm | None, bool], Volume] = {}

    def open(
        self,
        uri: str,
        mip: int | None = None,
        voxel_size_nm: Nm | None = None,
        *,
        labels: bool = False,
        name: str = "",
    ) -> Volume:
        """Return the volume; parameters and errors as of `open_volume`. Messages begin with `name`, such as --image."""
        if not isinstance(uri, str):
            raise InputError(f"a volume is opened by its path or URI, not by a {type(uri).__name__}")
        key = (uri, mip, voxel_size_nm, labels)
        if key not in self._opened:
            with named_input(name, uri):
                volume = open_volume(
                    uri, mip=mip, boss=self.boss, cache=self.cache, voxel_size_nm=voxel_size_nm, labels=labels
                )
            self.notes += [note for note in volume.notes if note not in self.notes]
            self._opened[key] = volume
        return self._opened[key]


def parse_voxel_size(size: Any) -> Nm | None:
    """Return a voxel size that a person gave.

    Parameters
    ----------
    size : sequence of float, str or None
        Lengths in nm along z, y, x, also as text such as `30,6,6`.

    Returns
    -------
    tuple of float, or None
        None for None.

    Raises
    ------
    InputError
        If it is not three lengths above 0.
    """
    if size is None:
        return None
    try:
        z, y, x = map(float, size.split(",") if isinstance(size, str) else size)
    except (TypeError, ValueError):
        z = y = x = math.nan
    if not all(0 < length < math.inf for length in (z, y, x)):
        raise InputError(f"voxel_size is {size!r}; expected three lengths in nm along z, y, x, such as (30, 6, 6)")
    return z, y, x


def read_boss_options(path: str | None) -> dict[str, Any] | None:
    """Read the options in a `--boss` file.

    Parameters
    ----------
    path : str or None
        JSON file with `protocol`, `host` and `token`.

    Returns
    -------
    dict or None
        Options as they are written there; None without a path.

    Raises
    ------
    InputNotFound
        If there is no such file.
    InputError
        If it does not hold a JSON object. The message does not show the text, which holds a token.
    """
    if path is None:
        return None
    try:
        options = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputNotFound(f"--boss {path}: {describe_missing(path)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--boss {path} is not readable as JSON ({type(error).__name__})") from None
    if not isinstance(options, dict):
        raise InputError(f"--boss {path} does not hold a JSON object with protocol, host and token")
    return options
