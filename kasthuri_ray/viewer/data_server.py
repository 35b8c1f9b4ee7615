"""One HTTP server on one port for Neuroglancer and for the voxels that it shows.

    /v/TOKEN/                       Neuroglancer's client (the package's server, with the state of one viewer)
    /data/TOKEN/LAYER/info          and /LAYER/s0/0-64_0-64_0-16: voxels in the precomputed format

Every address holds the token; any other is 404. Nothing but the layers is served.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import secrets
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from neuroglancer import server as neuroglancer_server
from neuroglancer import viewer_base
from tornado.web import RequestHandler, URLSpec

from kasthuri_ray.errors import InputError
from kasthuri_ray.viewer.layers import Scene, VoxelLayer
from kasthuri_ray.viewer.point_files import PointFiles
from kasthuri_ray.viewer.precomputed_info import SEGMENT_PROPERTIES, chunk_box, encode_chunk, level_key, volume_info
from kasthuri_ray.viewer.segment_properties import segment_properties
from kasthuri_ray.viewer.viewer_page import viewer_page
from kasthuri_ray.viewer.viewer_state import MAX_POINTS, url_name

log = logging.getLogger(__name__)

NUM_THREADS = 16  # that answer requests; fewer of them read at once, see `ChunkMemory`
GZIP_LEVEL = 1
ANY_ADDRESS = ("0.0.0.0", "::", "")


class ViewerServer:
    """A server of one scene, which runs until `close`.

    Parameters
    ----------
    bind : str
        Address on which it listens.
    port : int
        0 chooses a free one.

    Raises
    ------
    InputError
        If the port cannot be used.
    """

    def __init__(self, bind: str = "127.0.0.1", port: int = 0) -> None:
        self.token = secrets.token_hex(20)
        try:
            self._server = neuroglancer_server.Server(bind_address=bind, bind_port=port, token=self.token)
        except (OSError, OverflowError) as error:
            raise InputError(f"the viewer cannot listen on {bind}, port {port}: {error}") from None
        self.port, self.bind = self._server.port, bind
        self.viewer = viewer_base.ViewerBase(token=self.token, allow_credentials=False)
        self._server.viewers[self.token] = self.viewer
        self.host = socket.getfqdn() if bind in ANY_ADDRESS else f"[{bind}]" if ":" in bind else bind
        self._files: dict[str, Mapping[str, bytes]] = {}
        self._layers: dict[str, VoxelLayer] = {}
        self.failures: list[str] = []
        self._threads = ThreadPoolExecutor(NUM_THREADS, "viewer")
        data = URLSpec(rf"/data/{self.token}/([^/]+)/(.+)", _DataHandler, {"server": self})
        page = URLSpec(rf"/v/{self.token}/(?:index\.html)?", _PageHandler)
        self._server.app.add_handlers(r".*", [data, page])

    @property
    def url(self) -> str:
        """Address of the viewer."""
        return f"http://{self.host}:{self.port}/v/{self.token}/"

    @property
    def data_url(self) -> str:
        """Address of the layers."""
        return f"http://{self.host}:{self.port}/data/{self.token}"

    def serve(self, scene: Scene) -> None:
        """Serve the layers of a scene, and no others."""
        self._layers = {url_name(layer.name): layer for layer in scene.voxel_layers}
        many = [layer for layer in scene.point_layers if len(layer.points) > MAX_POINTS]
        self._files = {url_name(layer.name): PointFiles(layer, scene) for layer in many}

    def read(self, name: str, path: str) -> tuple[bytes, str] | None:
        """Return what an address names, and its type; None if there is nothing."""
        if name in self._files:
            content = self._files[name].get(path)
            return None if content is None else (content, "application/octet-stream")
        layer = self._layers.get(name)
        if layer is None:
            return None
        is_segmentation = layer.style == "segmentation"
        if path == "info":
            info = volume_info(layer.levels, is_segmentation, bool(layer.rows))
            return json.dumps(info).encode(), "application/json"
        if path == f"{SEGMENT_PROPERTIES}/info" and layer.rows:
            return json.dumps(segment_properties(layer.rows)).encode(), "application/json"
        return self._read_chunk(layer, path, is_segmentation)

    def _read_chunk(self, layer: VoxelLayer, path: str, is_segmentation: bool) -> tuple[bytes, str] | None:
        key, _, name = path.partition("/")
        level = {level_key(number): level for number, level in enumerate(layer.levels)}.get(key)
        if level is None or (box := chunk_box(name, level)) is None:
            return None
        return encode_chunk(level.volume.read(box), is_segmentation), "application/octet-stream"

    async def answer(self, name: str, path: str) -> tuple[bytes, str] | None:
        """Return what `read` returns, without holding up other answers."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.read, name, path)

    def close(self) -> None:
        """Stop, and wait for what is being read."""
        self._server.stop()
        self._threads.shutdown(cancel_futures=True)


class _PageHandler(RequestHandler):
    """Answers with the page of the viewer."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/html")
        self.finish(viewer_page())


class _DataHandler(RequestHandler):
    """Answers requests for voxels and points."""

    def initialize(self, server: ViewerServer) -> None:
        self.server = server

    async def get(self, name: str, path: str) -> None:
        try:
            found = await self.server.answer(name, path)
        except Exception as error:
            log.warning("%s/%s: %s", name, path, error)
            self.server.failures.append(f"{name}: {error}")
            self.set_status(503)
            self.finish(str(error))
            return
        if found is None:
            self.send_error(404)
            return
        content, kind = found
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "no-store")
        if len(content) > 1024 and "gzip" in self.request.headers.get("Accept-Encoding", ""):
            packed = await asyncio.to_thread(gzip.compress, content, GZIP_LEVEL)
            if len(packed) < 0.8 * len(content):
                self.set_header("Content-Encoding", "gzip")
                content = packed
        self.finish(content)
