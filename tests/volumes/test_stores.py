"""Every kind of store is read as zarr-python, or the array that was written, says; and errors name what to do."""

import functools
import http.server
import json
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
from kasthuri_ray.storage import kvstore as keyvalue
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.stores import open_store

SHAPE = (12, 40, 50)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, SHAPE, dtype=np.uint8)


def write(driver: str, path: Path, stored: np.ndarray, **more: object) -> None:
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}, **more}
    store = ts.open(spec, create=True, dtype=stored.dtype.name, shape=stored.shape).result()
    store[...] = stored


def write_attributes(path: Path, name: str, attributes: dict) -> None:
    document = json.loads((path / name).read_text()) if (path / name).exists() else {}
    (path / name).write_text(json.dumps({**document, **attributes}))


def write_precomputed(path: Path, levels: list[np.ndarray], offset=(0, 0, 0), **scale: object) -> None:
    """Levels are z, y, x; each is half the one before in y and x. `offset` is x, y, z at level 0."""
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


def ome(paths: list[str], scales: list, axes: str = "zyx", unit: str = "nanometer", **more: object) -> dict:
    kinds = {"c": "channel", "t": "time"}
    named = [{"name": a, "type": kinds.get(a, "space")} | ({} if a in kinds else {"unit": unit}) for a in axes]
    datasets = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": list(scale)}]}
        for path, scale in zip(paths, scales, strict=True)
    ]
    return {"multiscales": [{"name": "em", "axes": named, "datasets": datasets, **more}]}


def check(volume, voxels: np.ndarray) -> None:
    """The volume holds exactly `voxels`, read whole and at a box that crosses chunks."""
    assert volume.bounds.shape == voxels.shape
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    box = Box(tuple(a + 3 for a in volume.bounds.start), tuple(b - 2 for b in volume.bounds.stop))
    cut = volume.read(box)
    np.testing.assert_array_equal(cut, voxels[3:-2, 3:-2, 3:-2])
    assert cut.flags.c_contiguous
    assert cut.dtype == volume.dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "int32", "float32"])
@pytest.mark.parametrize("format", [2, 3])
def test_zarr_is_read_as_zarr_python_wrote_it(tmp_path, voxels, format, dtype):
    array = zarr.create_array(tmp_path / "x.zarr", shape=SHAPE, chunks=(4, 16, 16), dtype=dtype, zarr_format=format)
    array[...] = voxels.astype(dtype)
    array.attrs["voxel_size_nm_zyx"] = [30, 4, 4]
    volume = open_store(str(tmp_path / "x.zarr"))
    check(volume, voxels.astype(dtype))
    assert volume.voxel_size_nm == (30, 4, 4)
    assert volume.chunk == (4, 16, 16)
    assert volume.chunk_origin == (0, 0, 0)
    assert not volume.remote


def test_a_sharded_zarr_is_fetched_by_its_inner_chunks(tmp_path, voxels):
    array = zarr.create_array(tmp_path / "x.zarr", shape=SHAPE, chunks=(4, 16, 16), shards=(8, 32, 64), dtype="uint8")
    array[...] = voxels
    volume = open_store(str(tmp_path / "x.zarr"))
    check(volume, voxels)
    assert volume.chunk == (4, 16, 16)
    assert volume.voxel_size_nm is None


def test_a_big_endian_zarr_is_given_in_native_order(tmp_path, voxels):
    array = zarr.create_array(tmp_path / "x.zarr", shape=SHAPE, chunks=SHAPE, dtype=">u2", zarr_format=2)
    array[...] = voxels
    volume = open_store(str(tmp_path / "x.zarr"))
    assert volume.dtype == np.uint16
    assert volume.dtype.isnative
    check(volume, voxels.astype(np.uint16))


def test_every_name_of_an_array_in_a_group_reads_the_same(tmp_path, voxels, monkeypatch):
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


@pytest.mark.parametrize("names", ["xyz", "cxyz", "yxz"])
def test_axes_named_in_another_order_are_turned(tmp_path, voxels, names):
    order = ["zyx".index(name) for name in names if name != "c"]
    stored = voxels.transpose(order).reshape([1] * names.count("c") + [SHAPE[axis] for axis in order])
    zarr.create_array(tmp_path / "x.zarr", data=stored, chunks=stored.shape, dimension_names=list(names))
    check(open_store(str(tmp_path / "x.zarr")), voxels)


def test_xarray_names_of_zarr_2_are_followed(tmp_path, voxels):
    array = zarr.create_array(tmp_path / "x.zarr", data=voxels.transpose(2, 1, 0), zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = ["x", "y", "z"]
    check(open_store(str(tmp_path / "x.zarr")), voxels)


def test_a_single_channel_is_dropped_and_several_are_refused(tmp_path, voxels):
    zarr.create_array(tmp_path / "one.zarr", data=voxels[None, None])
    check(open_store(str(tmp_path / "one.zarr")), voxels)
    zarr.create_array(tmp_path / "two.zarr", data=np.stack([voxels, voxels]), dimension_names=list("czyx"))
    with pytest.raises(ValueError, match=r"2 channels along axis 0 of its shape \(2, 12, 40, 50\); a volume has one"):
        open_store(str(tmp_path / "two.zarr"))
    zarr.create_array(tmp_path / "flat.zarr", data=voxels[0])
    with pytest.raises(ValueError, match=r"2 axes, shape \(40, 50\); a volume has three"):
        open_store(str(tmp_path / "flat.zarr"))
    zarr.create_array(tmp_path / "complex.zarr", data=voxels.astype(np.complex64))
    with pytest.raises(ValueError, match="holds complex64; a volume holds integers or floats"):
        open_store(str(tmp_path / "complex.zarr"))


@pytest.mark.parametrize("format", [2, 3])
def test_an_ome_group_is_its_pyramid(tmp_path, voxels, format):
    levels = [voxels, voxels[:, ::2, ::2]]
    scales = [(1, 0.030, 0.004, 0.005), (1, 0.030, 0.008, 0.010)]
    metadata = ome(["s0", "s1"], scales, axes="czyx", unit="micrometer")
    metadata["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(
        {"type": "translation", "translation": [0, 1, 0.002, 0.0025]}
    )
    attributes = {"ome": {"version": "0.5", **metadata}} if format == 3 else metadata
    group = zarr.create_group(tmp_path / "x.zarr", attributes=attributes, zarr_format=format)
    for name, level in zip(("s0", "s1"), levels, strict=True):
        group.create_array(name, data=level[None], chunks=(1, 4, 16, 16))
    path = str(tmp_path / "x.zarr")
    for mip in (0, 1):
        volume = open_store(path, mip=mip)
        check(volume, levels[mip])
        assert volume.voxel_size_nm == pytest.approx((30, 4 << mip, 5 << mip))
        assert volume.chunk == (4, 16, 16)
        check(open_store(volume.uri), levels[mip])
        named = open_store(f"{path}/s{mip}")
        check(named, levels[mip])
        assert named.voxel_size_nm == pytest.approx((30, 4 << mip, 5 << mip))
        check(open_store(f"file://{path}/|{'zarr3' if format == 3 else 'zarr2'}:s{mip}"), levels[mip])
    assert open_store(path, mip=1).translation_nm == pytest.approx((1000, 2, 2.5))
    named = [path, f"{path}#mip=1", f"{path}/s1", f"file://{path}/|{'zarr3' if format == 3 else 'zarr2'}:s1"]
    assert len({open_store(name).pyramid for name in named} - {None}) == 1
    assert len({open_store(name).identity for name in named}) == 2
    assert open_store(path).uri == path
    with pytest.raises(ValueError, match=r"x.zarr has 2 resolutions, mip 0 to 1; mip 2 was asked for"):
        open_store(path, mip=2)
    with pytest.raises(ValueError, match=r"x.zarr/s1 has one resolution, mip 0; mip 1 was asked for"):
        open_store(f"{path}/s1", mip=1)


def test_ome_scales_of_the_whole_multiply_those_of_the_levels(tmp_path, voxels):
    whole = [{"type": "scale", "scale": [10, 10, 10]}, {"type": "translation", "translation": [5, 0, 0]}]
    metadata = ome(["0"], [(3, 0.4, 0.5)], coordinateTransformations=whole)
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": metadata})
    group.create_array("0", data=voxels)
    volume = open_store(str(tmp_path / "x.zarr"))
    assert volume.voxel_size_nm == pytest.approx((30, 4, 5))
    assert volume.translation_nm == pytest.approx((5, 0, 0))
    assert volume.bounds.start == (0, 0, 0)


def test_ome_without_units_has_no_voxel_size(tmp_path, voxels):
    metadata = ome(["0"], [(3, 0.4, 0.5)])
    for axis in metadata["multiscales"][0]["axes"]:
        del axis["unit"]
    group = zarr.create_group(tmp_path / "x.zarr", attributes=metadata, zarr_format=2)
    group.create_array("0", data=voxels)
    assert open_store(str(tmp_path / "x.zarr")).voxel_size_nm is None


def test_ome_of_several_channels_and_ome_around_it(tmp_path, voxels):
    """bioformats2raw writes the image as the group `0`; label images lie in a group that lists them."""
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": {"bioformats2raw.layout": 3}})
    image = group.create_group("0", attributes={"ome": ome(["0", "1"], [(1, 30, 4, 5), (1, 30, 8, 10)], axes="czyx")})
    image.create_array("0", data=voxels[None])
    image.create_array("1", data=np.stack([voxels, voxels]))
    group.create_group("labels", attributes={"ome": {"labels": ["membrane", "synapse"]}})
    check(open_store(str(tmp_path / "x.zarr")), voxels)
    with pytest.raises(ValueError, match=r"2 channels along axis 0 of its shape \(2, 12, 40, 50\)"):
        open_store(str(tmp_path / "x.zarr"), mip=1)
    with pytest.raises(ValueError, match="labels is a group, not an array; name one: membrane, synapse"):
        open_store(str(tmp_path / "x.zarr" / "labels"))
    (tmp_path / "x.zarr" / "0" / "1" / "zarr.json").unlink()
    with pytest.raises(FileNotFoundError, match="says that its mip 1 is '1', but no array is there"):
        open_store(str(tmp_path / "x.zarr" / "0"), mip=1)


def test_n5_is_turned_from_x_y_z(tmp_path, voxels):
    path = tmp_path / "x.n5"
    metadata = {"blockSize": [16, 16, 4], "compression": {"type": "gzip"}}
    write("n5", path / "em", voxels.transpose(2, 1, 0), metadata=metadata)
    write_attributes(path / "em", "attributes.json", {"pixelResolution": {"dimensions": [4, 5, 30], "unit": "nm"}})
    for name in (f"{path}/em", f"file://{path}/|n5:em"):
        volume = open_store(name)
        check(volume, voxels)
        assert volume.voxel_size_nm == (30, 5, 4)
        assert volume.chunk == (4, 16, 16)


def test_n5_with_several_scales_is_a_pyramid(tmp_path, voxels):
    path = tmp_path / "x.n5" / "em"
    levels = [voxels, voxels[:, ::2, ::2]]
    for index, level in enumerate(levels):
        write("n5", path / f"s{index}", level.transpose(2, 1, 0))
        factors = {"downsamplingFactors": [1 << index, 1 << index, 1]}
        write_attributes(path / f"s{index}", "attributes.json", factors)
    for attributes in ({}, {"resolution": [0.004, 0.005, 0.03], "units": ["um"] * 3}):
        write_attributes(path, "attributes.json", attributes)
        for mip, level in enumerate(levels):
            volume = open_store(str(path), mip=mip)
            check(volume, level)
            assert volume.voxel_size_nm == ((30, 5 << mip, 4 << mip) if attributes else None)
    with pytest.raises(ValueError, match="2 resolutions, mip 0 to 1; mip 7 was asked for"):
        open_store(str(path), mip=7)


def test_n5_by_cosem_says_the_size_of_each_level_in_named_axes(tmp_path, voxels):
    write("n5", tmp_path / "x.n5" / "s1", voxels.transpose(2, 1, 0))
    transform = {"axes": ["z", "y", "x"], "scale": [30, 8, 10], "units": ["nm"] * 3, "translate": [0, 0, 0]}
    attributes = {"transform": transform, "downsamplingFactors": [2, 2, 1], "pixelResolution": [1, 1, 1]}
    write_attributes(tmp_path / "x.n5" / "s1", "attributes.json", attributes)
    assert open_store(str(tmp_path / "x.n5" / "s1")).voxel_size_nm == (30, 8, 10)


@pytest.mark.parametrize("encoding", ["raw", "sharded", "compressed_segmentation"])
def test_precomputed_keeps_its_offset(tmp_path, voxels, encoding):
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
    with pytest.raises(ValueError, match="2 resolutions, mip 0 to 1; mip 2 was asked for"):
        open_store(str(tmp_path / "p"), mip=2)
    with pytest.raises(ValueError, match=r"names mip 1, but mip 0 was asked for"):
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


def test_a_store_written_anew_is_read_anew(tmp_path, voxels):
    path = str(tmp_path / "x.zarr")
    zarr.create_array(path, data=voxels, chunks=(4, 16, 16))
    check(open_store(path), voxels)
    time.sleep(0.01)
    zarr.create_array(path, data=voxels + 1, chunks=(4, 16, 16), overwrite=True)
    check(open_store(path), voxels + 1)


def test_a_missing_chunk_is_the_fill_value_and_a_corrupt_one_an_error(tmp_path, voxels):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=voxels, chunks=(4, 16, 16), fill_value=0)
    (path / "c" / "0" / "0" / "0").unlink()
    (path / "c" / "1" / "0" / "0").write_bytes(b"no zstd")
    volume = open_store(str(path))
    assert not volume.read(Box((0, 0, 0), (4, 16, 16))).any()
    with pytest.raises(VolumeError, match=r"x.zarr: the cutout 3:5,2:9,0:16 \(z,y,x\) could not be read: "):
        volume.read(Box((3, 2, 0), (5, 9, 16)))


def test_names_that_lead_nowhere_say_what_was_looked_for(tmp_path, voxels):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("em", data=voxels)
    group.create_array("truth/membrane", data=voxels)
    with pytest.raises(FileNotFoundError, match=r"there is no .*no.zarr"):
        open_store(str(tmp_path / "no" / "no.zarr"))
    with pytest.raises(
        FileNotFoundError, match=r"nothing is there \(looked for zarr.json, .zarray.*g.zarr/ holds: em, truth/membrane"
    ):
        open_store(str(tmp_path / "g.zarr" / "emm"))
    with pytest.raises(ValueError, match=r"g.zarr is a group, not an array; name one: em, truth/membrane"):
        open_store(str(tmp_path / "g.zarr"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty is no array or pyramid: looked for zarr.json, .zarray, .*, info, attr"
    ):
        open_store(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"is no array or pyramid: looked for attributes.json, s0/attributes.json"):
        open_store(f"file://{tmp_path}/g.zarr/|n5:em")
    with pytest.raises(ValueError, match=r"'hdf5:em' is not a format; after \| is expected one of zarr2, "):
        open_store(f"file://{tmp_path}/g.zarr/|hdf5:em")
    with pytest.raises(ValueError, match=r"file:// wants an absolute path"):
        open_store("file://g.zarr/em")
    (tmp_path / "notes.txt").write_text("no store")
    with pytest.raises(ValueError, match=r"notes.txt is a file; a zarr, N5 or precomputed volume is a folder"):
        open_store(str(tmp_path / "notes.txt"))
    (tmp_path / "g.zarr" / "em" / "zarr.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"its zarr.json is not JSON"):
        open_store(str(tmp_path / "g.zarr" / "em"))


def test_real_tissue_reads_as_zarr_python_reads_it(test_data):
    volume = open_volume(f"file://{test_data}/vnc.zarr/|zarr3:em")
    box = Box((3, 100, 200), (7, 500, 612))
    np.testing.assert_array_equal(volume.read(box), zarr.open_array(test_data / "vnc.zarr" / "em")[box.slices()])
    assert volume.bounds == Box((0, 0, 0), (20, 1024, 1024))
    assert volume.voxel_size_nm == (45, 4.6, 4.6)


def test_a_zip_and_a_web_server_hold_stores_too(tmp_path, voxels):
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
def test_s3_is_read_anonymously_or_else_with_credentials(tmp_path, voxels, s3, access):
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


def test_s3_errors_are_of_the_right_kind(tmp_path, voxels, s3, monkeypatch):
    group = zarr.create_group(tmp_path / "x.zarr")
    for name in ("em", "membrane"):
        group.create_array(name, data=voxels, chunks=(4, 16, 16))
    upload(s3, tmp_path / "x.zarr", "data/x.zarr", ACL="public-read")
    with pytest.raises(ValueError, match=r"s3://some-bucket/data/x.zarr is a group, not an array; name one: em, memb"):
        open_store("s3://some-bucket/data/x.zarr")
    with pytest.raises(
        FileNotFoundError, match=r"x.zarr/nope: nothing is there \(looked for .*x.zarr/ holds: em, memb"
    ):
        open_store("s3://some-bucket/data/x.zarr/nope")
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/x.zarr: nothing is there \(looked for"):
        open_store("s3://no-such-bucket/x.zarr")
    volume = open_store("s3://some-bucket/data/x.zarr/em")
    s3.put_object(Bucket="some-bucket", Key="data/x.zarr/em/c/0/0/0", Body=b"no zstd", ACL="public-read")
    with pytest.raises(VolumeError, match=r"x.zarr/em: the cutout 0:1,0:1,0:1 \(z,y,x\) could not be read"):
        volume.read(Box((0, 0, 0), (1, 1, 1)))
    upload(s3, tmp_path / "x.zarr", "mine/x.zarr", ACL="private")
    monkeypatch.setattr(
        keyvalue, "credential_variants", lambda kvstore: iter([keyvalue._with_s3(kvstore, "anonymous")])
    )
    with pytest.raises(
        PermissionError, match=r"s3://some-bucket/mine/x.zarr/em refuses access: .*check the credentials"
    ):
        open_store("s3://some-bucket/mine/x.zarr/em")


def test_a_dead_endpoint_is_an_error_within_20_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(VolumeError, match=r"s3://some-bucket/x.zarr could not be opened: .*127.0.0.1"):
        open_store("s3://some-bucket/x.zarr")
    assert time.monotonic() - began < 20


def test_an_endpoint_that_hangs_is_an_error_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(keyvalue, "ANSWER_TIMEOUT_S", 1.0)
        with pytest.raises(VolumeError, match=r"s3://some-bucket/x.zarr could not be opened: no answer in time"):
            open_store("s3://some-bucket/x.zarr")
