"""Volumes in BossDB, read with intern: deadlines, retries and clear errors around its requests."""

from __future__ import annotations

import functools
import math
import operator
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

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Nm, Zyx, ceil_div, per_axis
from kasthuri_ray.volumes.boss_requests import BossServer, RetryPolicy, request_with_retries
from kasthuri_ray.volumes.parallel_calls import map_threads
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.volume import Volume

Resource = TypeVar("Resource", ChannelResource, CoordinateFrameResource, ExperimentResource)

# What the Boss stores as one object, at every resolution; its grid starts at voxel 0 (spdb, CUBOIDSIZE).
CUBOID: Zyx = (16, 512, 512)
REQUEST_VOXELS = math.prod(CUBOID)  # limit of a request, far below the 30 million above which intern forks
PARALLEL_REQUESTS = 8
# At ten tries a server that fails one time in five fails one request in ten million.
RETRY_POLICY = RetryPolicy()
MAX_METADATA_TRIES = 6  # fewer tries, so that an unreachable host is reported quickly

_URI_FORM = "bossdb://collection/experiment/channel[/resolution]"
_NANOMETERS = {"nanometers": 1.0, "micrometers": 1e3, "millimeters": 1e6, "centimeters": 1e7}


@dataclass(kw_only=True)
class BossVolume(Volume):
    """A channel of BossDB at one resolution."""

    boss: BossServer
    channel: tuple[str, str, str]  # names of collection, experiment and channel
    resolution: int  # 0 is the finest
    retry_policy: RetryPolicy = RETRY_POLICY  # of every cutout

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
        """Return the voxels of a box, fetched by one request."""
        collection, experiment, name = self.channel
        kind = "annotation" if self.dtype == np.uint64 else "image"
        channel = ChannelResource(name, collection, experiment, kind, datatype=self.dtype.name)
        z, y, x = zip(box.start, box.stop, strict=True)

        def get_cutout() -> np.ndarray:
            client = _boss_client(self.boss, self.retry_policy.timeout_s, os.getpid())
            voxels = client.get_cutout(channel, self.resolution, list(x), list(y), list(z), parallel=False)
            if voxels.shape != box.shape or voxels.dtype != self.dtype:
                raise InputError(
                    f"the answer holds {voxels.dtype} voxels of shape {voxels.shape}, expected {self.dtype} voxels of "
                    f"shape {box.shape}"
                )
            return voxels

        return request_with_retries(get_cutout, f"cutout {box} (z,y,x) of {self.uri}", self.boss, self.retry_policy)


def open_bossdb(
    uri: str, mip: int | None = None, boss: Mapping[str, Any] | None = None, retry_policy: RetryPolicy | None = None
) -> Volume:
    """Open `bossdb://collection/experiment/channel[/resolution]`; parameters and errors as of `open_volume`.

    `mip` wins over the resolution in the URI. `boss` None is the server api.bossdb.io, with the token in BOSSDB_TOKEN
    if the variable is set. `retry_policy` None is `RETRY_POLICY`. A channel that BossDB stores as a CloudVolume is read
    from its bucket with tensorstore.
    """
    names, named_resolution = _parse_uri(uri)
    server = BossServer.of(boss)
    retry_policy = retry_policy or RETRY_POLICY
    resolution = mip if mip is not None else named_resolution or 0
    uri = f"bossdb://{'/'.join(names)}/{resolution}"
    collection, experiment_name, name = names
    channel = _fetch_metadata(ChannelResource(name, collection, experiment_name), uri, server, retry_policy)
    if str(channel.raw.get("storage_type", "")).lower() == "cloudvol":
        return _open_cloudvolume(channel.raw, uri, resolution)
    experiment = _fetch_metadata(ExperimentResource(experiment_name, collection), uri, server, retry_policy)
    frame = _fetch_metadata(CoordinateFrameResource(experiment.coord_frame), uri, server, retry_policy)
    _check_resolution(resolution, channel, experiment, uri)
    factors = _downsampling_factors(experiment.hierarchy_method, resolution)
    return BossVolume(
        uri=uri,
        source_id=f"{server.url}/{'/'.join(names)}/{resolution}",
        pyramid=f"{server.url}/{'/'.join(names)}",
        bounds=_readable_bounds(frame, resolution, factors, uri),
        dtype=np.dtype(channel.datatype),
        voxel_size_nm=_voxel_size_nm(frame, factors),
        voxel_size_source="coordinate frame",
        format="BossDB",
        stored_axes="z,y,x",
        place=Place((0.0, 0.0, 0.0), "corner", "coordinate frame"),
        chunk=CUBOID,
        chunk_origin=(0, 0, 0),
        remote=True,
        boss=server,
        channel=names,
        resolution=resolution,
        retry_policy=retry_policy,
    )


def bucket_url(bucket: str, path: str) -> str:
    """Return the tensorstore URL of a CloudVolume in one of BossDB's buckets."""
    return f"s3://{bucket.removeprefix('s3://').strip('/')}/{path.strip('/')}/|neuroglancer-precomputed:"


def _parse_uri(uri: str) -> tuple[tuple[str, str, str], int | None]:
    """Return the names of collection, experiment and channel, and the resolution if the URI holds one."""
    match = re.fullmatch(r"bossdb://([\w.-]+)/([\w.-]+)/([\w.-]+)(?:/(\d+))?/?", uri)
    if not match:
        raise InputError(f"{uri!r} is not of the form {_URI_FORM}, such as bossdb://Kasthuri/ac4/em/0")
    collection, experiment, channel, resolution = match.groups()
    return (collection, experiment, channel), None if resolution is None else int(resolution)


def _check_resolution(resolution: int, channel: ChannelResource, experiment: ExperimentResource, uri: str) -> None:
    levels = range(channel.base_resolution, channel.base_resolution + max(1, experiment.num_hierarchy_levels))
    if resolution not in levels:
        raise InputError(f"{uri}: there is no resolution {resolution}; it has {levels[0]} to {levels[-1]}")


def _downsampling_factors(hierarchy_method: str, resolution: int) -> Zyx:
    """Return how much longer a voxel is than at resolution 0; z grows only if the experiment is isotropic."""
    factor = 2**resolution
    return (factor if hierarchy_method == "isotropic" else 1, factor, factor)


def _readable_bounds(frame: CoordinateFrameResource, resolution: int, factors: Zyx, uri: str) -> Box:
    """Return the coordinate frame at a resolution, rounded outward as the Boss downsamples.

    The Boss checks every cutout against the native frame, whatever its resolution, so voxels outside of that frame
    cannot be read.
    """
    native = Box((frame.z_start, frame.y_start, frame.x_start), (frame.z_stop, frame.y_stop, frame.x_stop))
    start, stop = per_axis(operator.floordiv, native.start, factors), per_axis(ceil_div, native.stop, factors)
    bounds = Box(start, stop).intersect(native)
    if bounds.num_voxels == 0:
        raise InputError(f"{uri}: the Boss has no voxels at resolution {resolution}, since its frame is {native}")
    return bounds


def _voxel_size_nm(frame: CoordinateFrameResource, factors: Zyx) -> Nm:
    unit = _NANOMETERS[frame.voxel_unit]
    sizes = (frame.z_voxel_size, frame.y_voxel_size, frame.x_voxel_size)
    return per_axis(lambda size, factor: float(size) * unit * factor, sizes, factors)


def _request_shape(box: Box) -> Zyx:
    """Return the shape of a request in whole cuboids.

    It is one cuboid; for a thin box it is as many as hold no more voxels of the box than one cuboid has.
    """
    shape = CUBOID
    for axis, factors in ((2, (1, 1, 2)), (1, (1, 2, 1)), (0, (2, 1, 1))):
        while shape[axis] < box.shape[axis]:
            doubled = per_axis(operator.mul, shape, factors)
            if math.prod(per_axis(min, doubled, box.shape)) > REQUEST_VOXELS:
                break
            shape = doubled
    return shape


def _fetch_metadata(resource: Resource, uri: str, boss: BossServer, retry_policy: RetryPolicy) -> Resource:
    """Return the resource with the metadata that the server has of it."""

    def get_project() -> Resource:
        try:
            return _boss_client(boss, retry_policy.timeout_s, os.getpid()).get_project(resource)
        except JSONDecodeError:
            raise
        except ValueError as error:  # intern's own: a datatype, unit or hierarchy that it does not know
            raise _UnknownValue(str(error)) from None
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"the answer is not the metadata of {resource.name!r} ({error!r})") from None

    kind = type(resource).__name__.removesuffix("Resource").lower()
    what = f"the metadata of {kind} {resource.name!r} of {uri}"
    try:
        policy = replace(retry_policy, tries=min(retry_policy.tries, MAX_METADATA_TRIES))
        return request_with_retries(get_project, what, boss, policy)
    except _UnknownValue as error:
        raise InputError(f"{uri}: intern cannot read its {kind} {resource.name!r}: {error}") from None


class _UnknownValue(Exception):
    """Metadata that arrived whole, with a value that intern refuses."""


@functools.lru_cache(maxsize=16)
def _boss_client(boss: BossServer, timeout_s: float, process: int) -> BossRemote:
    """Return intern's client with a timeout and the proxies set.

    Each process has its own (`process` is its id), since a forked process must not share sockets.
    """
    options = {"protocol": boss.protocol, "host": boss.host, "token": boss.token}
    # intern writes its options as INI text, where a percent sign starts a reference
    client = BossRemote({key: value.replace("%", "%%") for key, value in options.items()})
    for service in (client.project_service, client.volume_service):
        service.session_send_opts["timeout"] = timeout_s
        service.session_send_opts["proxies"] = get_environ_proxies(boss.url)
        service.session.mount(boss.url, HTTPAdapter(pool_maxsize=4 * PARALLEL_REQUESTS))
    return client


def _open_cloudvolume(channel: Mapping[str, Any], uri: str, resolution: int) -> Volume:
    """Open the precomputed volume in the bucket that a channel's metadata name."""
    from kasthuri_ray.volumes.stores import open_store

    if not channel.get("bucket") or not channel.get("cv_path"):
        raise InputError(f"{uri} is stored as a CloudVolume, but its metadata name no bucket and path")
    url = bucket_url(channel["bucket"], channel["cv_path"])
    volume = open_store(url, mip=resolution)
    return replace(volume, uri=uri, source_id=f"{url}@{resolution}", format=f"BossDB, {volume.format}")
