"""Stores of every format: cutouts equal the array that was written, and errors say what to do."""

import functools
import http.server
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.storage import kvstore
from kasthuri_ray.storage.s3_access import with_s3_access
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.stores import open_store

SHAPE = (12, 40, 50)


def write_precomputed(path: Path, levels: list[np.ndarray], offset=(0, 0, 0), **scale: object) -> None:
    """Write levels (z, y, x), each half as large in y and x as the one before; `offset` is x, y, z at level 0."""
    for index, level in enumerate(levels):
        factor = (2**index, 2**index, 1)
        metadata = {
            "size": list(level.shape[::-1]),
            "resolution": [4 * factor[0], 5 * factor[1], 30],
            "voxel_offset": [o // f for o, f in zip(offset, factor, strict=True)],
            "chunk_size": [16, 16, 4],
            "encoding": "raw",
            **scale,
        }
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"data_type": level.dtype.name, "num_channels": 1, "type": "image"},
            "scale_metadata": metadata,
        }
        store = ts.open(spec, create=True).result()
        store[...] = level.transpose(2, 1, 0)[..., None]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "int32", "float32"])
@pytest.mark.parametrize("format", [2, 3])
def test_a_zarr_array_is_read_as_zarr_python_wrote_it(tmp_path, voxels, format, dtype, check):
    array = zarr.create_array(tmp_path / "x.zarr", shape=SHAPE, chunks=(4, 16, 16), dtype=dtype, zarr_format=format)
    array[...] = voxels.astype(dtype)
    array.attrs["voxel_size_nm_zyx"] = [30, 4, 4]
    volume = open_store(str(tmp_path / "x.zarr"))
    check(volume, voxels.astype(dtype))
    assert volume.voxel_size_nm == (30, 4, 4)
    assert volume.chunk == (4, 16, 16)
    assert volume.chunk_origin == (0, 0, 0)
    assert not volume.remote


def test_the_chunk_of_a_sharded_zarr_is_the_inner_chunk(tmp_path, voxels, check):
    array = zarr.create_array(tmp_path / "x.zarr", shape=SHAPE, chunks=(4, 16, 16), shards=(8, 32, 64), dtype="uint8")
    array[...] = voxels
    volume = open_store(str(tmp_path / "x.zarr"))
    check(volume, voxels)
    assert volume.chunk == (4, 16, 16)
    assert volume.voxel_size_nm is None


def test_a_big_endian_zarr_is_read_in_native_byte_order(tmp_path, voxels, check):
    array = zarr.create_array(tmp_path / "x.zarr", shape=SHAPE, chunks=SHAPE, dtype=">u2", zarr_format=2)
    array[...] = voxels
    volume = open_store(str(tmp_path / "x.zarr"))
    assert volume.dtype == np.uint16
    assert volume.dtype.isnative
    check(volume, voxels.astype(np.uint16))


def test_every_spelling_of_an_array_in_a_group_opens_it(tmp_path, voxels, monkeypatch, check):
    group = zarr.create_group(tmp_path / "x y.zarr", attributes={"voxel_size_nm_zyx": [45, 4.6, 4.6]})
    group.create_array("em", data=voxels, chunks=(4, 16, 16))
    monkeypatch.chdir(tmp_path)
    names = [
        f"{tmp_path}/x y.zarr/em",
        f"{tmp_path}/x y.zarr/em/",
        "x y.zarr/em",
        f"file://{tmp_path}/x%20y.zarr/em",
        f"file://{tmp_path}/x%20y.zarr/|zarr3:em",
        f"file://{tmp_path}/x%20y.zarr|zarr3:em/",
        f"file://{tmp_path}/x%20y.zarr/em/|zarr3:",
    ]
    for name in names:
        volume = open_volume(name)
        check(volume, voxels)
        assert volume.voxel_size_nm == (45, 4.6, 4.6)


def test_a_single_channel_is_dropped_and_several_are_refused(tmp_path, voxels, check):
    zarr.create_array(tmp_path / "one.zarr", data=voxels[None, None])
    check(open_store(str(tmp_path / "one.zarr")), voxels)
    zarr.create_array(tmp_path / "two.zarr", data=np.stack([voxels, voxels]), dimension_names=list("czyx"))
    with pytest.raises(ValueError, match=r"2 channels, shape \(2, 12, 40, 50\); a volume has one"):
        open_store(str(tmp_path / "two.zarr"))
    zarr.create_array(tmp_path / "flat.zarr", data=voxels[0, 0])
    with pytest.raises(ValueError, match=r"1 axes, shape \(50,\); a volume has three"):
        open_store(str(tmp_path / "flat.zarr"))
    zarr.create_array(tmp_path / "complex.zarr", data=voxels.astype(np.complex64))
    with pytest.raises(ValueError, match="holds complex64; a volume holds integers or floats"):
        open_store(str(tmp_path / "complex.zarr"))


@pytest.mark.parametrize("encoding", ["raw", "sharded", "compressed_segmentation"])
def test_a_precomputed_volume_starts_at_its_voxel_offset(tmp_path, voxels, encoding, check):
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 1,
        "minishard_bits": 1,
        "shard_bits": 1,
        "hash": "identity",
        "data_encoding": "gzip",
        "minishard_index_encoding": "gzip",
    }
    more = {
        "raw": {},
        "sharded": {"sharding": sharding},
        "compressed_segmentation": {
            "encoding": "compressed_segmentation",
            "compressed_segmentation_block_size": [8, 8, 8],
        },
    }[encoding]
    values = voxels.astype(np.uint64) if encoding == "compressed_segmentation" else voxels
    levels = [values, values[:, ::2, ::2]]
    write_precomputed(tmp_path / "p", levels, offset=(100, 200, 7), **more)
    for name in (f"{tmp_path}/p", f"file://{tmp_path}/p/|neuroglancer-precomputed:"):
        volume = open_store(name)
        check(volume, values)
        assert volume.bounds == Box((7, 200, 100), (19, 240, 150))
        assert volume.chunk_origin == (7, 200, 100)
        assert volume.chunk == (4, 16, 16)
        assert volume.voxel_size_nm == (30, 5, 4)
    coarse = open_store(str(tmp_path / "p"), mip=1)
    check(coarse, levels[1])
    assert coarse.bounds.start == (7, 100, 50)
    assert coarse.voxel_size_nm == (30, 10, 8)
    check(open_store(coarse.uri), levels[1])
    with pytest.raises(ValueError, match="2 resolutions, mip 0 to 1; mip 2 does not exist"):
        open_store(str(tmp_path / "p"), mip=2)
    with pytest.raises(ValueError, match=r"names mip 1, which conflicts with the requested mip 0"):
        open_store(coarse.uri, mip=0)
    with pytest.raises(ValueError, match=r"outside the volume: 0:4,200:240,100:150 is not within 7:19"):
        volume.read(Box((0, 200, 100), (4, 240, 150)))


def test_a_volume_pickles_small_and_reads_in_another_process(tmp_path, voxels):
    zarr.create_array(tmp_path / "x.zarr", data=voxels, chunks=(4, 16, 16))
    volume = open_store(str(tmp_path / "x.zarr"))
    assert len(pickle.dumps(volume)) < 2000
    code = "import sys, pickle; v = pickle.load(sys.stdin.buffer); print(int(v.read(v.bounds).sum()))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(volume), capture_output=True, timeout=60)
    assert int(done.stdout) == int(voxels.sum(dtype=np.int64)), done.stderr


def test_a_store_that_was_written_again_is_read_again(tmp_path, voxels, check):
    path = str(tmp_path / "x.zarr")
    zarr.create_array(path, data=voxels, chunks=(4, 16, 16))
    check(open_store(path), voxels)
    time.sleep(0.01)
    zarr.create_array(path, data=voxels + 1, chunks=(4, 16, 16), overwrite=True)
    check(open_store(path), voxels + 1)


def test_a_missing_chunk_is_the_fill_value_and_a_corrupt_chunk_is_an_error(tmp_path, voxels):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=voxels, chunks=(4, 16, 16), fill_value=0)
    (path / "c" / "0" / "0" / "0").unlink()
    (path / "c" / "1" / "0" / "0").write_bytes(b"no zstd")
    volume = open_store(str(path))
    assert not volume.read(Box((0, 0, 0), (4, 16, 16))).any()
    with pytest.raises(VolumeError, match=r"x.zarr: the cutout 3:5,2:9,0:16 \(z,y,x\) could not be read: "):
        volume.read(Box((3, 2, 0), (5, 9, 16)))


def test_an_error_says_what_was_looked_for_and_which_arrays_exist(tmp_path, voxels):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("em", data=voxels)
    group.create_array("truth/membrane", data=voxels)
    with pytest.raises(FileNotFoundError, match=r"there is no .*no.zarr"):
        open_store(str(tmp_path / "no" / "no.zarr"))
    with pytest.raises(FileNotFoundError, match=r"^there is no \S*/g.zarr/emm; did you mean \S*/g.zarr/em\?$"):
        open_store(str(tmp_path / "g.zarr" / "emm"))
    with pytest.raises(FileNotFoundError, match=r"there is no .*g.zarr/raw; \S*/g.zarr/ holds: em, truth/membrane$"):
        open_store(str(tmp_path / "g.zarr" / "raw"))
    with pytest.raises(ValueError, match=r"g.zarr is a group, not an array; name one: em, truth/membrane"):
        open_store(str(tmp_path / "g.zarr"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty is not an array or a pyramid: looked for zarr.json, .zarray, .*, info, attr"
    ):
        open_store(str(tmp_path / "empty"))
    with pytest.raises(
        ValueError, match=r"is not an array or a pyramid: looked for attributes.json, s0/attributes.json"
    ):
        open_store(f"file://{tmp_path}/g.zarr/|n5:em")
    with pytest.raises(ValueError, match=r"'hdf5:em' is not a format; expected one of zarr2, "):
        open_store(f"file://{tmp_path}/g.zarr/|hdf5:em")
    with pytest.raises(ValueError, match=r"file:// needs an absolute path"):
        open_store("file://g.zarr/em")
    (tmp_path / "notes.txt").write_text("no store")
    with pytest.raises(ValueError, match=r"notes.txt is a file; a zarr, N5 or precomputed volume is a folder"):
        open_store(str(tmp_path / "notes.txt"))
    (tmp_path / "g.zarr" / "em" / "zarr.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"its zarr.json is not JSON"):
        open_store(str(tmp_path / "g.zarr" / "em"))


def test_real_electron_microscopy_is_read_as_zarr_python_reads_it(test_data):
    volume = open_volume(f"file://{test_data}/vnc.zarr/|zarr3:em")
    box = Box((3, 100, 200), (7, 500, 612))
    np.testing.assert_array_equal(volume.read(box), zarr.open_array(test_data / "vnc.zarr" / "em")[box.slices()])
    assert volume.bounds == Box((0, 0, 0), (20, 1024, 1024))
    assert volume.voxel_size_nm == (45, 4.6, 4.6)


def test_a_store_in_a_zip_file_or_on_a_web_server_is_read(tmp_path, voxels, check):
    zarr.create_group(tmp_path / "x.zarr").create_array("em", data=voxels, chunks=(4, 16, 16))
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x.zarr")
    check(open_store(f"file://{tmp_path}/x.zip|zip:|zarr3:em"), voxels)
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/x.zarr"
        for uri in (f"{url}/em", f"{url}/|zarr3:em"):
            volume = open_store(uri)
            check(volume, voxels)
            assert volume.remote
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def upload(client, folder: Path, prefix: str, **more: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket="some-bucket", Key=key, Body=path.read_bytes(), **more)


@pytest.mark.parametrize("access", ["public-read", "private"])
def test_s3_is_read_anonymously_if_it_is_public_and_else_with_credentials(tmp_path, voxels, s3, access, check):
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"voxel_size_nm_zyx": [30, 5, 4]})
    group.create_array("em", data=voxels, chunks=(4, 16, 16))
    write_precomputed(tmp_path / "p", [voxels], offset=(100, 200, 7))
    for name in ("x.zarr", "p"):
        upload(s3, tmp_path / name, f"data/{name}", ACL=access)
    zarrs = ["s3://some-bucket/data/x.zarr/em", "s3://some-bucket/data/x.zarr/|zarr3:em"]
    for uri in [*zarrs, "s3://some-bucket/data/p", "s3://some-bucket/data/p/|neuroglancer-precomputed:"]:
        volume = open_volume(uri)
        check(volume, voxels)
        assert volume.remote
        assert volume.voxel_size_nm == (30, 5, 4)
        assert ("anonymous" in volume.spec) == (access == "public-read")
        assert "secret" not in pickle.dumps(volume).decode("latin1")
        assert "127.0.0.1" in volume.identity
        assert volume.folder == f"s3://some-bucket/data/{'p' if '/p' in uri else 'x.zarr/em'}"
    assert open_volume(zarrs[0]).identity == open_volume(zarrs[1]).identity


def test_errors_of_s3_have_the_right_type(tmp_path, voxels, s3, monkeypatch):
    group = zarr.create_group(tmp_path / "x.zarr")
    for name in ("em", "membrane"):
        group.create_array(name, data=voxels, chunks=(4, 16, 16))
    upload(s3, tmp_path / "x.zarr", "data/x.zarr", ACL="public-read")
    with pytest.raises(ValueError, match=r"s3://some-bucket/data/x.zarr is a group, not an array; name one: em, memb"):
        open_store("s3://some-bucket/data/x.zarr")
    with pytest.raises(
        FileNotFoundError, match=r"x.zarr/nope: nothing was found \(looked for .*x.zarr/ holds: em, memb"
    ):
        open_store("s3://some-bucket/data/x.zarr/nope")
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/x.zarr: nothing was found \(looked for"):
        open_store("s3://no-such-bucket/x.zarr")
    volume = open_store("s3://some-bucket/data/x.zarr/em")
    s3.put_object(Bucket="some-bucket", Key="data/x.zarr/em/c/0/0/0", Body=b"no zstd", ACL="public-read")
    with pytest.raises(VolumeError, match=r"x.zarr/em: the cutout 0:1,0:1,0:1 \(z,y,x\) could not be read"):
        volume.read(Box((0, 0, 0), (1, 1, 1)))
    upload(s3, tmp_path / "x.zarr", "mine/x.zarr", ACL="private")
    monkeypatch.setattr(kvstore, "credential_variants", lambda spec: iter([with_s3_access(spec, anonymous=True)]))
    with pytest.raises(
        PermissionError, match=r"s3://some-bucket/mine/x.zarr/em refuses access: .*check the credentials"
    ):
        open_store("s3://some-bucket/mine/x.zarr/em")


def test_an_endpoint_that_is_down_is_an_error_within_20_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(VolumeError, match=r"s3://some-bucket/x.zarr could not be opened: .*127.0.0.1"):
        open_store("s3://some-bucket/x.zarr")
    assert time.monotonic() - start < 20


def test_an_endpoint_that_hangs_is_an_error_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(kvstore, "ANSWER_TIMEOUT_S", 1.0)
        with pytest.raises(VolumeError, match=r"s3://some-bucket/x.zarr could not be opened: no answer in time"):
            open_store("s3://some-bucket/x.zarr")
