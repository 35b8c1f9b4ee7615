"""Volumes that a browser can read by itself: asked without credentials and with an origin, on a loopback S3 server."""

import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tensorstore as ts

from kasthuri_ray.errors import InputError
from kasthuri_ray.viewer.layer_maker import LayerMaker
from kasthuri_ray.viewer.layers import Scene
from kasthuri_ray.viewer.public_sources import allows_browsers, public_link
from kasthuri_ray.volumes.opening import VolumeOpener


@pytest.fixture
def precomputed(s3, tmp_path):
    """Return `upload(name, acl)`, which writes a precomputed volume to the bucket `some-bucket`."""

    def upload(name, acl):
        folder = tmp_path / name
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{folder}/",
            "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
            "scale_metadata": {
                "size": [64, 48, 4],
                "resolution": [6, 6, 30],
                "encoding": "raw",
                "chunk_size": [32, 32, 4],
            },
        }
        store = ts.open(spec, create=True).result()
        store[...] = np.ones((64, 48, 4, 1), np.uint8)
        for file in folder.rglob("*"):
            if file.is_file():
                key = f"{name}/{file.relative_to(folder)}"
                s3.put_object(Bucket="some-bucket", Key=key, Body=file.read_bytes(), ACL=acl)
        return f"s3://some-bucket/{name}"

    return upload


def open_layer(uri):
    return LayerMaker(VolumeOpener(None, "none", "1GB")).image_layer(uri)


def test_a_public_volume_is_read_by_the_browser_and_a_private_one_by_the_server(precomputed, s3_server):
    public, private = precomputed("public", "public-read"), precomputed("private", "private")
    _, layer = open_layer(public)
    assert layer.public_url == f"precomputed://{s3_server['AWS_ENDPOINT_URL']}/some-bucket/public"
    assert open_layer(private)[1].public_url is None
    assert open_layer(f"{public}?voxel_size_nm=40,8,8")[1].public_url is None  # the browser would not know the size


def test_a_link_holds_the_state_and_names_public_sources_alone(precomputed, monkeypatch):
    image, layer = open_layer(precomputed("public", "public-read"))
    scene = Scene("t", (layer,), (), image.voxel_size_nm, True, (15.0, 3.0, 3.0), 1.0)
    link = public_link(scene)
    address, _, state = link.partition("/#!")
    assert address == "https://neuroglancer-demo.appspot.com"
    assert json.loads(urllib.parse.unquote(state))["layers"][0]["source"]["url"] == layer.public_url
    _, hidden = open_layer(precomputed("private", "private"))
    with pytest.raises(InputError, match="not so of: image"):
        public_link(Scene("t", (hidden,), (), image.voxel_size_nm, True, (15.0, 3.0, 3.0), 1.0))


@pytest.mark.parametrize(
    ("headers", "status", "expected"),
    [
        ({"Access-Control-Allow-Origin": "*"}, 200, True),
        ({}, 200, False),
        ({"Access-Control-Allow-Origin": "https://elsewhere.org"}, 200, False),
        ({"Access-Control-Allow-Origin": "*"}, 403, False),
    ],
)
def test_a_source_is_public_only_if_it_allows_any_page_and_is_asked_once(headers, status, expected):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.headers.get("Origin"), self.headers.get("Authorization")))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/info"
    assert allows_browsers(url) == expected
    assert allows_browsers(url) == expected
    server.shutdown()
    server.server_close()
    assert asked == [("https://neuroglancer-demo.appspot.com", None)]


def test_a_server_that_does_not_answer_is_not_public():
    assert not allows_browsers("http://127.0.0.1:9/info")
