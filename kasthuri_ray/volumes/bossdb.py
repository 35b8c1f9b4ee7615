"""Volumes in BossDB, read by intern: with deadlines, retries and errors in words."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from intern.remote.boss import BossRemote
from intern.resource.boss.resource import ChannelResource, CoordinateFrameResource, ExperimentResource
from requests.adapters import HTTPAdapter
from requests.exceptions import JSONDecodeError
from requests.utils import get_environ_proxies

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.volumes.boss_requests import BossServer, RetryPolicy, request_with_retries
from kasthuri_ray.volumes.threads import map_threads
from kasthuri_ray.volumes.volume import Volume

Resource = TypeVar("Resource", ChannelResource, CoordinateFrameResource, ExperimentResource)

CUBOID: Zyx = (16, 512, 512)
"""What the Boss keeps as one object, at every resolution; its grid begins at voxel 0 (spdb, CUBOIDSIZE)."""
REQUEST_VOXELS = math.prod(CUBOID)
"""The most voxels of one request: far below the 30 million above which intern forks."""
PARALLEL_REQUESTS = 8
RETRY_POLICY = RetryPolicy()
"""With every cutout, where `open_bossdb` is not given another. At ten tries a server that fails one time in five costs
one request in ten million."""
METADATA_TRIES = 6
"""At most: somebody waits at the terminal to hear that the host is down."""

_FORM = "bossdb://collection/experiment/channel[/resolution]"
_NANOMETERS = {"nanometers": 1.0, "micrometers": 1e3, "millimeters": 1e6, "centimeters": 1e7}


@dataclass(kw_only=True)
class BossVolume(Volume):
    """A channel of BossDB at one resolution.

    channel: the names of collection, experiment and channel.
    """

    boss: BossServer
    channel: tuple[str, str, str]
    resolution: int
    patience: RetryPolicy = RETRY_POLICY

    def _read(self, box: Box) -> np.ndarray:
        if box.num_voxels <= REQUEST_VOXELS:
            return self._fetch(box)
        pieces = list(box.cells(_request_shape(box), self.chunk_origin))
        voxels = np.empty(box.shape, self.dtype)

        def fetch(piece: Box) -> None:
            voxels[piece.slices(box.start)] = self._fetch(piece)

        map_threads(fetch, pieces, PARALLEL_REQUESTS)
        return voxels

    def _fetch(self, box: Box) -> np.ndarray:
        """The voxels of `box`, by one request."""
        collection, experiment, name = self.channel
        kind = "annotation" if self.dtype == np.uint64 else "image"
        channel = ChannelResource(name, collection, experiment, kind, datatype=self.dtype.name)
        z, y, x = zip(box.start, box.stop, strict=True)

        def cutout() -> np.ndarray:
            remote = _remote(self.boss, self.patience.timeout_s, os.getpid())
            voxels = remote.get_cutout(channel, self.resolution, list(x), list(y), list(z), parallel=False)
            if voxels.shape != box.shape or voxels.dtype != self.dtype:
                raise ValueError(f"{voxels.dtype} voxels of shape {voxels.shape} where {box.shape} were asked for")
            return voxels

        return request_with_retries(cutout, f"cutout {box} (z,y,x) of {self.uri}", self.boss, self.patience)


def open_bossdb(
    uri: str, mip: int | None = None, boss: Mapping[str, Any] | None = None, patience: RetryPolicy | None = None
) -> Volume:
    """The channel that `uri` names, `bossdb://collection/experiment/channel[/resolution]`.

    mip: the resolution, 0 the finest; wins over the one in `uri`.
    boss: `protocol`, `host`, `token`; None reads api.bossdb.io, with the token in BOSSDB_TOKEN or else public data.
    patience: None stands for `PATIENCE`.

    Its metadata is read now. A channel that BossDB keeps as a CloudVolume is read from its bucket by tensorstore.
    Raises ValueError for a malformed name, FileNotFoundError for one that leads nowhere, PermissionError where the
    token does not suffice, SourceError where the server does not answer.
    """
    names, named_resolution = _parse(uri)
    server = BossServer.of(boss)
    patience = patience or RETRY_POLICY
    resolution = mip if mip is not None else named_resolution or 0
    uri = f"bossdb://{'/'.join(names)}/{resolution}"
    collection, experiment_name, name = names
    channel = _metadata(ChannelResource(name, collection, experiment_name), uri, server, patience)
    if str(channel.raw.get("storage_type", "")).lower() == "cloudvol":
        return _open_bucket(channel.raw, uri, resolution)
    experiment = _metadata(ExperimentResource(experiment_name, collection), uri, server, patience)
    frame = _metadata(CoordinateFrameResource(experiment.coord_frame), uri, server, patience)
    levels = range(channel.base_resolution, channel.base_resolution + max(1, experiment.num_hierarchy_levels))
    if resolution not in levels:
        raise ValueError(f"{uri}: there is no resolution {resolution}; it has {levels[0]} to {levels[-1]}")
    factor = _downsampling(experiment.hierarchy_method, resolution)
    return BossVolume(
        uri=uri,
        source_id=f"{server.url}/{'/'.join(names)}/{resolution}",
        pyramid=f"{server.url}/{'/'.join(names)}",
        bounds=_bounds(frame, resolution, factor, uri),
        dtype=np.dtype(channel.datatype),
        voxel_size_nm=_voxel_size_nm(frame, factor),
        chunk=CUBOID,
        chunk_origin=(0, 0, 0),
        remote=True,
        boss=server,
        channel=names,
        resolution=resolution,
        patience=patience,
    )


def _parse(uri: str) -> tuple[tuple[str, str, str], int | None]:
    """The names of collection, experiment and channel, and the resolution if `uri` holds one."""
    match = re.fullmatch(r"bossdb://([\w.-]+)/([\w.-]+)/([\w.-]+)(?:/(\d+))?/?", uri)
    if not match:
        raise ValueError(f"{uri!r} is not of the form {_FORM}, such as bossdb://Kasthuri/ac4/em/0")
    collection, experiment, channel, resolution = match.groups()
    return (collection, experiment, channel), None if resolution is None else int(resolution)


def _downsampling(hierarchy_method: str, resolution: int) -> Zyx:
    """By how much a voxel is longer than at resolution 0: z only grows where the experiment is isotropic."""
    factor = 2**resolution
    return (factor if hierarchy_method == "isotropic" else 1, factor, factor)


def _bounds(frame: CoordinateFrameResource, resolution: int, factor: Zyx, uri: str) -> Box:
    """The coordinate frame at the resolution of `factor`, rounded outward as the Boss downsamples.

    The Boss checks every cutout against the native frame, whatever its resolution, so what lies outside of that
    cannot be read.
    """
    native = Box((frame.z_start, frame.y_start, frame.x_start), (frame.z_stop, frame.y_stop, frame.x_stop))
    start = tuple(a // f for a, f in zip(native.start, factor, strict=True))
    stop = tuple(-(-b // f) for b, f in zip(native.stop, factor, strict=True))
    bounds = Box(start, stop).intersect(native)  # type: ignore[arg-type]
    if bounds.num_voxels == 0:
        raise ValueError(f"{uri}: the Boss gives no voxels at resolution {resolution}, since its frame is {native}")
    return bounds


def _voxel_size_nm(frame: CoordinateFrameResource, factor: Zyx) -> tuple[float, float, float]:
    unit = _NANOMETERS[frame.voxel_unit]
    sizes = (frame.z_voxel_size, frame.y_voxel_size, frame.x_voxel_size)
    return tuple(float(size) * unit * f for size, f in zip(sizes, factor, strict=True))  # type: ignore[return-value]


def _request_shape(box: Box) -> Zyx:
    """Whole cuboids to ask for at once: one, or of a thin box as many as hold no more voxels of it than one does."""
    shape = list(CUBOID)
    for axis in (2, 1, 0):
        while shape[axis] < box.shape[axis]:
            larger = [n * 2 if a == axis else n for a, n in enumerate(shape)]
            if math.prod(map(min, larger, box.shape)) > REQUEST_VOXELS:
                break
            shape = larger
    return tuple(shape)  # type: ignore[return-value]


def _metadata(resource: Resource, uri: str, boss: BossServer, patience: RetryPolicy) -> Resource:
    """What the server says of `resource`."""

    def get() -> Resource:
        try:
            return _remote(boss, patience.timeout_s, os.getpid()).get_project(resource)
        except JSONDecodeError:
            raise
        except ValueError as error:  # intern's own: a datatype, unit or hierarchy that it does not know
            raise _UnknownValue(str(error)) from None
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the answer is not the metadata of {resource.name!r} ({error!r})") from None

    kind = type(resource).__name__.removesuffix("Resource").lower()
    try:
        patience = replace(patience, tries=min(patience.tries, METADATA_TRIES))
        return request_with_retries(get, f"the metadata of {kind} {resource.name!r} of {uri}", boss, patience)
    except _UnknownValue as error:
        raise ValueError(f"{uri}: intern cannot read its {kind} {resource.name!r}: {error}") from None


class _UnknownValue(Exception):
    """Metadata that came whole, and that intern refuses."""


@functools.lru_cache(maxsize=16)
def _remote(boss: BossServer, timeout_s: float, process: int) -> BossRemote:
    """intern's client, one per process (a forked one must not share sockets), with a timeout and the proxies set."""
    options = {"protocol": boss.protocol, "host": boss.host, "token": boss.token}
    # intern writes its options as INI text, where a percent sign begins a reference
    remote = BossRemote({key: value.replace("%", "%%") for key, value in options.items()})
    for service in (remote.project_service, remote.volume_service):
        service.session_send_opts["timeout"] = timeout_s
        service.session_send_opts["proxies"] = get_environ_proxies(boss.url)
        service.session.mount(boss.url, HTTPAdapter(pool_maxsize=4 * PARALLEL_REQUESTS))
    return remote


def _open_bucket(channel: Mapping[str, Any], uri: str, resolution: int) -> Volume:
    """The precomputed volume in the bucket that a CloudVolume channel's metadata name."""
    from kasthuri_ray.volumes.stores import open_store

    if not channel.get("bucket") or not channel.get("cv_path"):
        raise ValueError(f"{uri} is kept as a CloudVolume, but its metadata name no bucket and path")
    url = bucket_url(channel["bucket"], channel["cv_path"])
    return replace(open_store(url, mip=resolution), uri=uri, source_id=f"{url}@{resolution}")


def bucket_url(bucket: str, path: str) -> str:
    """The tensorstore URL of a CloudVolume in one of BossDB's buckets."""
    return f"s3://{bucket.removeprefix('s3://').strip('/')}/{path.strip('/')}/|neuroglancer-precomputed:"
