"""URLs of stores: as Neuroglancer writes them, and zip archives."""

import functools
import shutil
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.volumes.opening import open_volume
from kasthuri_ray.volumes.store_urls import resolve_store_url


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("precomputed://gs://bucket/em", "gs://bucket/em/|neuroglancer-precomputed:"),
        ("precomputed://https://host/a/em/", "https://host/a/em/|neuroglancer-precomputed:"),
        ("zarr://s3://bucket/x.zarr/em", "s3://bucket/x.zarr/em/|auto:"),
        ("zarr2://s3://bucket/x.zarr", "s3://bucket/x.zarr/|zarr2:"),
        ("n5://https://host/x.n5/em/s0", "https://host/x.n5/em/s0/|n5:"),
        ("https://host/x.zarr.zip", "https://host/x.zarr.zip|zip:|auto:"),
        ("s3://bucket/x.zarr.zip/em/s0", "s3://bucket/x.zarr.zip|zip:|auto:em/s0"),
        ("/d/a b.zarr.zip/em", "file:///d/a%20b.zarr.zip|zip:|auto:em"),
        ("s3://bucket/x.zarr", "s3://bucket/x.zarr"),
        ("file:///d/x.zip|zip:|zarr3:em", "file:///d/x.zip|zip:|zarr3:em"),
    ],
)
def test_urls_of_neuroglancer_and_archives_become_those_of_tensorstore(uri, expected):
    assert resolve_store_url(uri) == expected


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def archives(tmp_path, voxels):
    """Write an array three times: alone, in a group, and in a group whose folder was packed."""
    warnings.simplefilter("ignore")
    alone = zarr.storage.ZipStore(tmp_path / "alone.zarr.zip", mode="w")
    zarr.create_array(alone, data=voxels, chunks=(4, 16, 16), attributes={"voxel_size_nm_zyx": [30, 4, 4]})
    alone.close()
    zarr.open_group(tmp_path / "x.zarr", mode="w").create_array("em", data=voxels, chunks=(4, 16, 16))
    shutil.make_archive(str(tmp_path / "group.zarr"), "zip", tmp_path / "x.zarr")
    shutil.make_archive(str(tmp_path / "folder.zarr"), "zip", tmp_path, "x.zarr")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["alone.zarr.zip", "group.zarr.zip/em", "folder.zarr.zip/em", "folder.zarr.zip/x.zarr/em"]
)
def test_an_array_in_a_zip_archive_is_read_from_a_disk_and_from_a_web_server(
    archives, voxels, name, check, monkeypatch
):
    monkeypatch.chdir(archives)
    for uri in (f"{archives}/{name}", name, f"zarr://{archives}/{name}", f"file://{archives}/{name}"):
        volume = open_volume(uri)
        check(volume, voxels)
        assert volume.uri == uri
    assert open_volume("alone.zarr.zip").voxel_size_nm == (30, 4, 4)
    handler = functools.partial(QuietHandler, directory=str(archives))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        volume = open_volume(f"http://127.0.0.1:{server.server_address[1]}/{name}")
        assert volume.remote
        check(volume, voxels)
        server.shutdown()


def test_a_missing_archive_or_a_missing_array_in_it_is_said(archives):
    with pytest.raises(InputNotFound, match=r"none.zarr.zip/em: there is no archive none.zarr.zip"):
        open_volume(f"{archives}/none.zarr.zip/em")
    with pytest.raises(InputNotFound, match=r"group.zarr.zip/membrane: nothing was found"):
        open_volume(f"{archives}/group.zarr.zip/membrane")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("url", ["zarr://file://{}/em", "file://{}/|zarr:em", "file://{}/em/|zarr:"])
def test_a_zarr_url_of_neuroglancer_reads_both_formats(tmp_path, voxels, url, zarr_format, check):
    zarr.create_array(tmp_path / "em", data=voxels, zarr_format=zarr_format)
    check(open_volume(url.format(tmp_path)), voxels)


def test_precomputed_urls_want_precomputed(tmp_path, voxels):
    zarr.create_array(tmp_path / "em", data=voxels)
    with pytest.raises(InputError, match=r"is not an array or a pyramid: looked for info"):
        open_volume(f"precomputed://{tmp_path}/em")
    np.testing.assert_array_equal(
        open_volume(f"zarr://{tmp_path}/em").read(open_volume(str(tmp_path / "em")).bounds), voxels
    )


def test_an_ozx_file_is_an_ome_zarr_in_a_zip_archive(tmp_path, voxels, check):
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scale = {"type": "scale", "scale": [30, 6, 4]}
    ome = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]}
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"ome": ome})
    group.create_array("0", data=voxels, chunks=(4, 16, 16))
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x.zarr")
    (tmp_path / "x.zip").rename(tmp_path / "x.ozx")
    for name in ("x.ozx", "x.ozx/0"):
        volume = open_volume(f"{tmp_path}/{name}")
        check(volume, voxels)
        assert volume.voxel_size_nm == (30, 6, 4)


def test_a_broken_archive_is_bad_input(tmp_path):
    (tmp_path / "x.zarr.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"x.zarr.zip is not a complete zip archive"):
        open_volume(f"{tmp_path}/x.zarr.zip")
