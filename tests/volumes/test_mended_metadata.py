"""Metadata that writers leave in forms which tensorstore refuses or misreads: the voxels are read all the same."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tensorstore as ts
import zarr

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.mended_metadata import mend_metadata
from kasthuri_ray.volumes.opening import open_volume

OFFSET = (-6, 10, -20)  # z, y, x
CLOUDVOLUME = """
import sys
import numpy as np
from cloudvolume import CloudVolume
folder, voxels = sys.argv[1], np.load(sys.argv[2]).transpose(2, 1, 0)
info = CloudVolume.create_new_info(
    num_channels=1, layer_type="image", data_type="uint8", encoding="raw", resolution=(4, 6, 30),
    voxel_offset=(-20, 10, -6), chunk_size=(16, 16, 4), volume_size=voxels.shape)
volume = CloudVolume(f"file://{folder}", info=info, compress=sys.argv[3] == "gzip", progress=False)
volume.commit_info()
volume[-20:30, 10:50, -6:6] = voxels[..., None]
"""


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture(scope="session")
def cloudvolume(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that returns a folder that CloudVolume wrote, with the compression gzip or none."""
    written: dict[str, Path] = {}

    def write(compression: str) -> Path:
        if compression not in written:
            folder = tmp_path_factory.mktemp("cloudvolume")
            voxels = np.random.default_rng(0).integers(1, 250, (12, 40, 50), dtype=np.uint8)
            np.save(folder / "voxels.npy", voxels)
            arguments = [folder / "em", folder / "voxels.npy", compression]
            subprocess.run([sys.executable, "-c", CLOUDVOLUME, *map(str, arguments)], check=True, timeout=120)
            written[compression] = folder / "em"
        return written[compression]

    return write


SCALES = {
    "as it is": lambda scale: None,
    "a slash at the end of the key": lambda scale: scale.update(key=scale["key"] + "/"),
    "a dot before the key": lambda scale: scale.update(key="./" + scale["key"]),
    "a key that leads upwards": lambda scale: scale.update(key="../em/" + scale["key"]),
    "floats": lambda scale: scale.update(size=[50.0, 40.0, 12.0], voxel_offset=[-20.0, 10.0, -6.0]),
    "block size of another encoding": lambda scale: scale.update(compressed_segmentation_block_size=[8, 8, 8]),
}


@pytest.mark.parametrize("change", SCALES)
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_an_info_that_was_written_by_hand_leads_to_the_chunks_of_cloudvolume(
    cloudvolume, voxels, check, tmp_path, compression, change
):
    """A key with a slash at its end was read as zeros; keys that lead upwards are allowed, and tensorstore fails."""
    source = cloudvolume(compression)
    names = [path.name for path in (source / "4_6_30").iterdir()]
    assert all(name.endswith(".gz") for name in names) == (compression == "gzip")
    (tmp_path / "em").symlink_to(source)
    folder = tmp_path / "other" if "upwards" in change else tmp_path / "copy"
    folder.mkdir()
    if "upwards" not in change:
        (folder / "4_6_30").symlink_to(source / "4_6_30")
    (folder / "info").write_text((source / "info").read_text())
    edit(folder / "info", lambda info: SCALES[change](info["scales"][0]))
    volume = pickle.loads(pickle.dumps(open_volume(str(folder))))
    check(volume, voxels)
    assert volume.bounds.start == OFFSET
    assert volume.voxel_size_nm == (30, 6, 4)
    assert volume.count_absent(volume.bounds) == (0, 36)
    assert volume.has_any_chunk(volume.bounds)


def test_a_sharded_scale_may_lie_in_another_folder(tmp_path, voxels, check):
    sharding = {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "minishard_bits": 2, "shard_bits": 1}
    sharding |= {"hash": "murmurhash3_x86_128", "data_encoding": "gzip", "minishard_index_encoding": "raw"}
    scale = {"size": [50, 40, 12], "resolution": [4, 6, 30], "voxel_offset": list(OFFSET[::-1])}
    scale |= {"chunk_size": [16, 16, 4], "encoding": "raw", "sharding": sharding}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{tmp_path}/em/"}}
    spec |= {"multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"}, "scale_metadata": scale}
    ts.open(spec, create=True).result()[...] = voxels.transpose(2, 1, 0)[..., None]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "info").write_text((tmp_path / "em" / "info").read_text())
    edit(tmp_path / "other" / "info", lambda info: info["scales"][0].update(key=f"../em/{info['scales'][0]['key']}"))
    volume = open_volume(str(tmp_path / "other"))
    check(volume, voxels)
    assert volume.count_absent(volume.bounds) == (0, 36)
    assert volume.identity != open_volume(str(tmp_path / "em")).identity


def test_an_info_without_scales_or_of_something_else_is_refused(tmp_path):
    for document, message in [
        ({"@type": "neuroglancer_legacy_mesh"}, "its info describes neuroglancer_legacy_mesh, not an image"),
        ({"data_type": "uint8", "num_channels": 1, "type": "image", "scales": []}, "its info lists no scales"),
        ({"data_type": "uint8", "num_channels": 1, "type": "image", "scales": [{}]}, "cannot be understood"),
        ({"data_type": "uint8", "num_channels": 1, "type": "image", "scales": 5}, "cannot be understood"),
    ]:
        (tmp_path / "info").write_text(json.dumps(document))
        with pytest.raises(InputError, match=message):
            open_volume(str(tmp_path))


COMPRESSIONS = {
    "n5-blosc": {"type": "blosc", "cname": "zstd", "clevel": 6, "shuffle": 1, "blocksize": 0, "nthreads": 1},
    "n5-zstandard": {"type": "zstd", "level": 3, "nbWorkers": 0},
    "zarr-python 2": {"type": "zstd", "id": "zstd", "level": 1, "checksum": False},
}


@pytest.mark.parametrize("writer", COMPRESSIONS)
def test_compressions_of_n5_are_read_as_their_writers_state_them(tmp_path, voxels, check, writer):
    """https://github.com/zarr-developers/zarr-python/pull/496: n5-blosc writes and needs `nthreads`."""
    stated = COMPRESSIONS[writer]
    plain = {name: value for name, value in stated.items() if name not in ("nthreads", "nbWorkers", "id", "checksum")}
    metadata = {"blockSize": [16, 16, 4], "compression": plain}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{tmp_path}/x.n5/"}, "metadata": metadata}
    ts.open(spec, create=True, dtype="uint16", shape=(50, 40, 12)).result()[...] = voxels.transpose(2, 1, 0)
    edit(tmp_path / "x.n5" / "attributes.json", lambda attributes: attributes.update(compression=stated))
    volume = pickle.loads(pickle.dumps(open_volume(str(tmp_path / "x.n5"))))
    check(volume, voxels.astype(np.uint16))
    assert volume.count_absent(volume.bounds) == (0, 36)


@pytest.mark.parametrize("type", ["gzip", "raw"])
def test_n5_of_before_version_2_is_read(tmp_path, voxels, check, type):
    metadata = {"blockSize": [16, 16, 4], "compression": {"type": type}}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{tmp_path}/x.n5/"}, "metadata": metadata}
    ts.open(spec, create=True, dtype="uint8", shape=(50, 40, 12)).result()[...] = voxels.transpose(2, 1, 0)
    path = tmp_path / "x.n5" / "attributes.json"
    edit(path, lambda attributes: attributes.update(compressionType=attributes.pop("compression")["type"]))
    check(open_volume(str(tmp_path / "x.n5")), voxels)


@pytest.mark.parametrize("format", [2, 3])
@pytest.mark.parametrize("shards", [None, (8, 32, 32)])
def test_the_threads_of_blosc_do_not_matter_in_zarr(tmp_path, voxels, check, format, shards):
    """https://github.com/zarr-developers/zarr-python/issues/4303."""
    if format == 2 and shards:
        return
    codec = numcodecs.Blosc(cname="zstd") if format == 2 else zarr.codecs.BloscCodec(cname="zstd")
    more = {"compressors": codec, "zarr_format": format, "shards": shards}
    zarr.create_array(tmp_path / "x", data=voxels, chunks=(4, 16, 16), **more)

    def add_threads(document: Any) -> None:
        for value in document.values() if isinstance(document, dict) else document:
            if isinstance(value, dict | list):
                add_threads(value)
        if isinstance(document, dict) and "cname" in document:
            document["nthreads"] = 1

    path = tmp_path / "x" / (".zarray" if format == 2 else "zarr.json")
    edit(path, add_threads)
    assert '"nthreads": 1' in path.read_text()
    check(open_volume(str(tmp_path / "x")), voxels)


@pytest.mark.parametrize(
    ("dtype", "stated", "value"),
    [
        ("uint8", "0", 0),
        ("uint8", "7.0", 7),
        ("uint8", 7.0, 7),
        ("float32", "0.5", 0.5),
        ("float32", "0", 0),
        ("uint64", "18446744073709551615", 2**64 - 1),
        ("bool", "0", False),
    ],
)
def test_a_fill_value_in_quotes_is_the_number_in_them(tmp_path, voxels, dtype, stated, value):
    """https://github.com/google/tensorstore/issues/107, https://github.com/mobie/mobie-viewer-fiji/issues/572."""
    voxels = voxels.astype(dtype)
    array = zarr.create_array(tmp_path / "x", shape=voxels.shape, dtype=dtype, chunks=(4, 16, 16), zarr_format=2)
    array[4:] = voxels[4:]
    edit(tmp_path / "x" / ".zarray", lambda metadata: metadata.update(fill_value=stated))
    volume = open_volume(str(tmp_path / "x"))
    found = volume.read(volume.bounds)
    assert found.dtype == dtype
    assert (found[:4] == np.array(value, dtype)).all()
    np.testing.assert_array_equal(found[4:], voxels[4:])
    assert volume.count_absent(volume.bounds) == (12, 36)


@pytest.mark.parametrize("driver", ["zarr", "zarr3", "n5", "neuroglancer_precomputed"])
def test_metadata_that_deviate_in_nothing_are_unchanged(tmp_path, driver, voxels):
    whole = {"multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"}}
    whole["scale_metadata"] = {
        "size": [50, 40, 12],
        "resolution": [4, 6, 30],
        "encoding": "raw",
        "chunk_size": [8, 8, 8],
    }
    more = (
        whole
        if driver == "neuroglancer_precomputed"
        else {"dtype": "uint8", "schema": {"domain": {"shape": [50, 40, 12]}}}
    )
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{tmp_path}/"}, **more}
    ts.open(spec, create=True).result()
    names = {"zarr": ".zarray", "zarr3": "zarr.json", "n5": "attributes.json", "neuroglancer_precomputed": "info"}
    metadata = json.loads((tmp_path / names[driver]).read_text())
    assert mend_metadata(driver, metadata) == metadata
    volume = open_volume(str(tmp_path))
    assert volume.mended == ""
