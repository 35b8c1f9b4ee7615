"""Stores that tensorstore cannot read as they are: other compressions, other names, and codecs of zarr-python."""

import functools
import gzip
import http.server
import itertools
import json
import pickle
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import brotli
import numpy as np
import pytest
import zarr
from numcodecs import LZ4, LZMA, Blosc, Delta, Shuffle, Zlib, Zstd

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.place import Place

SHAPE = (12, 40, 50)
OFFSET = (-6, 10, -20)  # z, y, x
CLOUDVOLUME = {".gz": gzip.compress, ".br": brotli.compress, ".zstd": Zstd().encode, "": bytes}


def cloudvolume_files(voxels: np.ndarray, encoding: str = "raw") -> tuple[dict, dict[str, bytes]]:
    """Return the info and the uncompressed chunks of a volume as CloudVolume lays them out, by their names."""
    scale = {
        "chunk_sizes": [[16, 16, 4]], "encoding": encoding, "key": "4_4_40", "resolution": [4, 4, 40],
        "size": list(voxels.shape[::-1]), "voxel_offset": list(OFFSET[::-1]),
    }  # fmt: skip
    info = {"data_type": str(voxels.dtype), "num_channels": 1, "scales": [scale], "type": "image"}
    chunks = {}
    for corner in itertools.product(*(range(0, n, c) for n, c in zip(voxels.shape, (4, 16, 16), strict=True))):
        box = Box.at(corner, (4, 16, 16)).intersect(Box((0, 0, 0), voxels.shape))
        placed = box.shifted(OFFSET)
        name = "_".join(f"{a}-{b}" for a, b in zip(placed.start[::-1], placed.stop[::-1], strict=True))
        chunks[f"4_4_40/{name}"] = voxels[box.slices()].tobytes()  # Fortran order of x, y, z
    return info, chunks


def write_cloudvolume(folder: Path, voxels: np.ndarray, ending: Callable[[int], str], encoding: str = "raw") -> str:
    info, chunks = cloudvolume_files(voxels, encoding)
    (folder / "4_4_40").mkdir(parents=True)
    (folder / "info").write_text(json.dumps(info))
    for number, (name, content) in enumerate(chunks.items()):
        (folder / f"{name}{ending(number)}").write_bytes(CLOUDVOLUME[ending(number)](content))
    return str(folder)


@pytest.mark.parametrize("endings", [[".gz"], [".br"], [".zstd"], [""], [".gz", "", ".br"]])
def test_the_compressed_chunks_of_cloudvolume_are_read_from_a_disk(tmp_path, voxels, endings, check):
    path = write_cloudvolume(tmp_path / "em", voxels, lambda number: endings[number % len(endings)])
    for uri in (
        path,
        f"file://{path}/|neuroglancer-precomputed:",
        f"precomputed://file://{path}",
        f"precomputed://{path}",
    ):
        volume = pickle.loads(pickle.dumps(open_volume(uri)))
        check(volume, voxels)
        assert volume.bounds.start == OFFSET
        assert (volume.voxel_size_nm, volume.place) == ((40, 4, 4), Place((0, 0, 0), "corner", "voxel_offset"))
        assert volume.count_absent(volume.bounds) == (0, 3 * 3 * 4)


def test_a_broken_compressed_chunk_is_an_error(tmp_path, voxels):
    volume = open_volume(write_cloudvolume(tmp_path / "em", voxels, lambda number: ".gz"))
    first = next((tmp_path / "em" / "4_4_40").iterdir())
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.raises(VolumeError, match=r"em: the cutout -6:6,10:50,-20:30 \(z,y,x\) could not be read"):
        volume.read(volume.bounds)


@pytest.mark.parametrize("encoding", ["fpzip", "kempressed", "compresso", "crackle", "jxl", "zfpc"])
def test_encodings_that_are_not_read_are_refused_by_name_when_opened(tmp_path, voxels, encoding):
    path = write_cloudvolume(tmp_path / "em", voxels, lambda number: "", encoding)
    with pytest.raises(InputError, match=rf"em is stored in the encoding '{encoding}', which is not read"):
        open_volume(path)


@pytest.mark.parametrize("scheme", ["graphene://https", "middleauth+graphene", "brainmaps", "dvid"])
def test_sources_of_neuroglancer_that_are_not_read_are_refused_by_name(scheme):
    with pytest.raises(InputError, match=r"(graphene|brainmaps|dvid):// volumes are not read"):
        open_volume(f"{scheme}://example.org/segmentation/table/x")


@pytest.mark.parametrize("access", ["public-read", "private"])
@pytest.mark.parametrize("encoding", ["gzip", "aws-chunked,gzip", "aws-chunked", "br", "zstd"])
def test_content_encodings_are_read_from_s3(voxels, s3, access, encoding, check, monkeypatch):
    """CloudFiles writes them, the info too, which it does not compress. S3 itself drops aws-chunked, others keep it."""
    keep = lambda key, metadata, replace=False: key._metadata.update(metadata)  # noqa: E731
    monkeypatch.setattr("moto.s3.models.FakeKey.set_metadata", keep)
    compress = {"gzip": gzip.compress, "br": brotli.compress, "zstd": Zstd().encode}.get(encoding.split(",")[-1], bytes)
    info, chunks = cloudvolume_files(voxels)
    upload = functools.partial(s3.put_object, Bucket="some-bucket", ACL=access)
    chunked = {"ContentEncoding": "aws-chunked"} if "aws" in encoding else {}
    upload(Key="em/info", Body=json.dumps(info).encode(), **chunked)
    for name, content in chunks.items():
        upload(Key=f"em/{name}", Body=compress(content), ContentEncoding=encoding)
    assert s3.head_object(Bucket="some-bucket", Key=f"em/{name}")["ContentEncoding"] == encoding
    volume = open_volume("s3://some-bucket/em")
    check(volume, voxels)
    assert volume.count_absent(volume.bounds) == (0, 36)


def test_compressed_chunks_on_s3_are_found_by_their_names(voxels, s3, check):
    info, chunks = cloudvolume_files(voxels)
    s3.put_object(Bucket="some-bucket", Key="em/info", Body=json.dumps(info).encode())
    for name, content in chunks.items():
        s3.put_object(Bucket="some-bucket", Key=f"em/{name}.gz", Body=gzip.compress(content))
    check(open_volume("s3://some-bucket/em"), voxels)


class EncodingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves `X.gz` as `X` with a Content-Encoding, as some web servers do."""

    def send_head(self):
        path = Path(self.translate_path(f"{self.path}.gz"))
        if not path.is_file():
            return super().send_head()
        self.send_response(200)
        self.send_header("Content-Encoding", "aws-chunked,gzip")
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        return path.open("rb")

    def log_message(self, *args: object) -> None:
        pass


def test_content_encodings_are_read_from_a_web_server(tmp_path, voxels, check):
    write_cloudvolume(tmp_path / "em", voxels, lambda number: ".gz")
    handler = functools.partial(EncodingHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/em"
        for uri in (url, f"precomputed://{url}"):
            check(open_volume(uri), voxels)
        server.shutdown()


def write_nested_zarr(folder: Path, voxels: np.ndarray) -> None:
    """Write zarr 2 as NestedDirectoryStore of zarr-python 2.7 did."""
    for corner in itertools.product(*(range(0, n, c) for n, c in zip(voxels.shape, (4, 16, 16), strict=True))):
        chunk = np.zeros((4, 16, 16), voxels.dtype)
        box = Box.at(corner, chunk.shape).intersect(Box((0, 0, 0), voxels.shape))
        chunk[box.slices(corner)] = voxels[box.slices()]
        file = folder.joinpath(*(str(a // c) for a, c in zip(corner, chunk.shape, strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(LZ4().encode(chunk) if "lz4" in folder.name else chunk.tobytes())
    document = {
        "zarr_format": 2, "shape": voxels.shape, "chunks": [4, 16, 16], "dtype": voxels.dtype.str, "fill_value": 0,
        "compressor": LZ4().get_config() if "lz4" in folder.name else None, "order": "C", "filters": None,
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(document))
    (folder / ".zattrs").write_text(json.dumps({"voxel_size_nm_zyx": [30, 4, 4]}))


@pytest.mark.parametrize("name", ["em", "em.lz4"])
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_nested_chunks_of_zarr_2_without_a_separator_are_found(tmp_path, voxels, s3, name, where, check):
    write_nested_zarr(tmp_path / name, voxels)
    uri = str(tmp_path / name)
    if where == "s3":
        for file in filter(Path.is_file, (tmp_path / name).rglob("*")):
            key = f"{name}/{file.relative_to(tmp_path / name)}"
            s3.put_object(Bucket="some-bucket", Key=key, Body=file.read_bytes())
        uri = f"s3://some-bucket/{name}"
    volume = pickle.loads(pickle.dumps(open_volume(uri)))
    check(volume, voxels)
    assert volume.voxel_size_nm == (30, 4, 4)
    assert volume.count_absent(volume.bounds) == (0, 36)


def test_flat_chunks_of_zarr_2_without_a_separator_stay_flat(tmp_path, voxels, check):
    zarr.create_array(tmp_path / "x.zarr", data=voxels, chunks=(4, 16, 16), zarr_format=2)
    document = json.loads((tmp_path / "x.zarr" / ".zarray").read_text())
    del document["dimension_separator"]
    (tmp_path / "x.zarr" / ".zarray").write_text(json.dumps(document))
    check(open_volume(str(tmp_path / "x.zarr")), voxels)


def n5_lz4_block(content: bytes, shape: tuple[int, ...], part: int = 700) -> bytes:
    """Return an N5 block as n5-java writes it: its header, and the stream of LZ4BlockOutputStream."""
    stream = b""
    for start in range(0, len(content), part):
        raw = content[start : start + part]
        packed = LZ4().encode(raw)[4:]
        method, packed = (0x20, packed) if len(packed) < len(raw) else (0x10, raw)
        stream += struct.pack("<8sBIII", b"LZ4Block", method | 6, len(packed), len(raw), 0) + packed
    stream += struct.pack("<8sBIII", b"LZ4Block", 0x10 | 6, 0, 0, 0)
    return struct.pack(f">HH{len(shape)}I", 0, len(shape), *shape) + stream


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_n5_blocks_in_lz4_are_read(tmp_path, voxels, dtype, check):
    voxels = (voxels // 50).astype(dtype) * 7  # compressible
    voxels[0] = np.random.default_rng(1).integers(0, 250, SHAPE[1:])  # and not
    folder = tmp_path / "x.n5" / "em"
    for corner in itertools.product(*(range(0, n, c) for n, c in zip(SHAPE, (4, 16, 16), strict=True))):
        box = Box.at(corner, (4, 16, 16)).intersect(Box((0, 0, 0), SHAPE))
        file = folder.joinpath(*(str(a // c) for a, c in zip(corner[::-1], (16, 16, 4), strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        content = voxels[box.slices()].astype(np.dtype(dtype).newbyteorder(">")).tobytes()
        file.write_bytes(n5_lz4_block(content, box.shape[::-1]))
    document = {
        "dimensions": SHAPE[::-1], "blockSize": [16, 16, 4], "dataType": dtype, "resolution": [4, 4, 30],
        "compression": {"type": "lz4", "blockSize": 65536}, "offset": [8, 16, 60],
    }  # fmt: skip
    (folder / "attributes.json").write_text(json.dumps(document))
    volume = pickle.loads(pickle.dumps(open_volume(str(folder))))
    check(volume, voxels)
    assert (volume.voxel_size_nm, volume.translation_nm) == ((30, 4, 4), (60, 16, 8))


CODECS_2 = {
    "lz4": {"compressors": LZ4()},
    "lzma": {"compressors": LZMA()},
    "delta": {"filters": [Delta(dtype="u1")], "compressors": Blosc()},
    "zstd with checksum": {"compressors": Zstd(checksum=True)},
    "shuffle": {"filters": [Shuffle(1)], "compressors": Zlib()},
}


@pytest.mark.parametrize("codec", CODECS_2)
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_codecs_that_tensorstore_refuses_are_read_with_zarr_python(tmp_path, voxels, s3, codec, where, check):
    array = zarr.create_array(tmp_path / "em", data=voxels, chunks=(4, 16, 16), zarr_format=2, **CODECS_2[codec])
    array.attrs.update({"resolution": [30, 4, 4], "offset": [60, 8, 4]})
    uri = str(tmp_path / "em")
    if where == "s3":
        for file in filter(Path.is_file, (tmp_path / "em").rglob("*")):
            s3.put_object(Bucket="some-bucket", Key=f"em/{file.relative_to(tmp_path / 'em')}", Body=file.read_bytes())
        uri = "s3://some-bucket/em"
    volume = pickle.loads(pickle.dumps(open_volume(uri)))
    check(volume, voxels)
    assert (volume.voxel_size_nm, volume.translation_nm) == ((30, 4, 4), (60, 8, 4))
    assert (volume.chunk, volume.remote) == ((4, 16, 16), where == "s3")


@pytest.mark.parametrize("shards", [None, (12, 32, 64)])
def test_codecs_of_zarr_3_that_tensorstore_refuses_are_read_with_zarr_python(tmp_path, voxels, shards, check):
    from numcodecs.zarr3 import LZ4 as ZARR3_LZ4

    zarr.create_array(
        tmp_path / "em", data=voxels.transpose(2, 1, 0), chunks=(16, 16, 4), shards=shards and shards[::-1],
        compressors=[ZARR3_LZ4()], dimension_names=["x", "y", "z"],
    )  # fmt: skip
    volume = open_volume(str(tmp_path / "em"))
    check(volume, voxels)
    assert volume.chunk == (4, 16, 16)


def test_codecs_that_nothing_reads_are_refused_by_name_when_opened(tmp_path, voxels):
    zarr.create_array(tmp_path / "em", data=voxels, chunks=(4, 16, 16), zarr_format=2)
    document = json.loads((tmp_path / "em" / ".zarray").read_text())
    (tmp_path / "em" / ".zarray").write_text(json.dumps({**document, "compressor": {"id": "jetraw"}}))
    with pytest.raises(InputError, match=r"em could not be opened: .*jetraw.*zarr-python cannot read it either"):
        open_volume(str(tmp_path / "em"))
