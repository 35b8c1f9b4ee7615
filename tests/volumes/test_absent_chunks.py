"""Chunks that are not stored: counted once each, whatever the boxes, and never confused with stored ones."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr
from numcodecs import LZ4

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.alignment import AlignedVolume
from kasthuri_ray.volumes.chunk_cache import CachedVolume, ChunkCache
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.resampled_volume import resample_image

CHUNK = (4, 16, 16)
ABSENT = {(0, 0, 0), (2, 1, 3), (1, 2, 0)}  # of 3 x 3 x 4 chunks


def write_zarr(path: Path, voxels: np.ndarray, **more: object) -> str:
    array = zarr.create_array(path, data=voxels, chunks=CHUNK, **{"zarr_format": 2, **more})
    array.attrs["voxel_size_nm_zyx"] = [30, 4, 4]
    for index in ABSENT:
        (path / ".".join(map(str, index))).unlink()
    return str(path)


SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "hash": "murmurhash3_x86_128", "minishard_bits": 1,
    "shard_bits": 2, "minishard_index_encoding": "gzip", "data_encoding": "gzip",
}  # fmt: skip


def write_sharded(path: Path, voxels: np.ndarray) -> str:
    """Write sharded precomputed at a negative offset; chunks of zeros are not stored."""
    metadata = {
        "size": list(voxels.shape[::-1]),
        "resolution": [4, 4, 30],
        "chunk_size": [16, 16, 4],
        "encoding": "raw",
    }
    spec = {
        "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{path}/"},
        "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
        "scale_metadata": {**metadata, "sharding": SHARDING, "voxel_offset": [-50, 7, -3]},
    }  # fmt: skip
    store = ts.open(spec, create=True).result()
    stored = voxels.copy()
    for index in ABSENT:
        stored[Box.at(np.multiply(index, CHUNK), CHUNK).slices()] = 0
    store[...] = stored.transpose(2, 1, 0)[..., None]
    return str(path)


def write_precomputed(path: Path, voxels: np.ndarray, compressed: bool) -> str:
    metadata = {
        "size": list(voxels.shape[::-1]),
        "resolution": [4, 4, 30],
        "chunk_size": [16, 16, 4],
        "encoding": "raw",
    }
    kvstore = {"driver": "file", "path": f"{path}/"}
    kind = {"data_type": "uint8", "num_channels": 1, "type": "image"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_metadata": metadata}
    more = {"multiscale_metadata": kind, "store_data_equal_to_fill_value": True}
    store = ts.open({**spec, **more}, create=True).result()
    store[...] = voxels.transpose(2, 1, 0)[..., None]
    for index in itertools.product(range(3), range(3), range(4)):
        ranges = [f"{i * c}-{min(i * c + c, n)}" for i, c, n in zip(index, CHUNK, voxels.shape, strict=True)]
        (file,) = path.glob(f"*/{'_'.join(ranges[::-1])}")
        content = file.read_bytes()
        if index in ABSENT or compressed:
            file.unlink()
        if index not in ABSENT and compressed:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    return str(path)


@pytest.fixture
def sparse(tmp_path, voxels):
    """Return a function that writes a store that lacks some chunks, and opens it."""

    def write(kind: str):
        path, stored = tmp_path / kind, voxels.copy()
        stored[8:12, 32:, :16] = 0  # a chunk of zeros that is stored all the same
        if kind == "sharded":
            return open_volume(write_sharded(path, voxels))
        if kind.startswith("precomputed"):
            return open_volume(write_precomputed(path, stored, kind.endswith("gz")))
        more = {"lz4": {"compressors": LZ4()}, "nan": {"fill_value": np.nan}, "zarr": {}}[kind]
        values = stored.astype(np.float32) if kind == "nan" else stored
        return open_volume(write_zarr(path, values, config={"write_empty_chunks": True}, **more))

    return write


@pytest.mark.parametrize("kind", ["zarr", "nan", "lz4", "precomputed", "precomputed.gz", "sharded"])
def test_absent_chunks_are_counted_once_each_whatever_the_boxes(sparse, kind):
    volume = sparse(kind)
    voxels = volume.read(volume.bounds)
    assert volume.count_absent(volume.bounds) == volume.count_absent(volume.bounds, voxels) == (3, 36)
    for shape in ((4, 16, 16), (5, 13, 7), (12, 40, 1)):
        counts = [
            volume.count_absent(box, voxels[box.slices(volume.bounds.start)] if number % 2 else None, volume.bounds)
            for number, box in enumerate(volume.bounds.cells(shape))
        ]
        assert tuple(np.sum(counts, 0)) == (3, 36)
    part = Box((1, 20, 10), (9, 40, 50)).shifted(volume.bounds.start)  # 3 x 2 x 4 chunks, 2 absent
    assert volume.count_absent(part) == (2, 24)
    assert tuple(np.sum([volume.count_absent(box, None, part) for box in part.cells((3, 7, 9))], 0)) == (2, 24)


@pytest.mark.parametrize("kind", ["zarr", "lz4", "precomputed", "precomputed.gz", "sharded"])
def test_a_box_of_which_nothing_is_stored_is_found(sparse, kind):
    volume = sparse(kind)
    assert volume.has_any_chunk(volume.bounds)
    start = volume.bounds.start
    assert not volume.has_any_chunk(Box((0, 0, 0), (4, 16, 16)).shifted(start))
    assert not volume.has_any_chunk(Box((1, 3, 2), (2, 5, 9)).shifted(start))
    assert volume.has_any_chunk(Box((1, 3, 2), (2, 5, 17)).shifted(start))


def test_volumes_that_read_others_count_what_these_lack(sparse, tmp_path):
    volume = sparse("zarr")
    shifted = AlignedVolume.of(volume, (5, -6, 7))
    assert shifted.count_absent(shifted.bounds) == (3, 36)
    assert not shifted.has_any_chunk(Box((5, -6, 7), (6, -5, 8)))
    cached = CachedVolume.of(volume, ChunkCache(tmp_path / "cache", 10**8))
    assert cached.count_absent(cached.bounds, cached.read(cached.bounds)) == (3, 36)
    for size in ((30.0, 8.0, 8.0), (60.0, 4.0, 3.0), (31.0, 4.3, 6.1)):
        other = resample_image(volume, size)
        assert tuple(
            np.sum([other.count_absent(box, None, other.bounds) for box in other.bounds.cells((2, 5, 9))], 0)
        ) == (3, 36)


def test_sources_that_store_everything_lack_nothing():
    volume = open_volume("phantom://em?shape=4,300,300")
    assert volume.count_absent(volume.bounds) == (0, 4 * 2 * 2)
    assert volume.has_any_chunk(volume.bounds)
