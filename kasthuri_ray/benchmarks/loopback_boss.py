"""A Boss server on the loopback that serves one array as a channel, in the protocol that intern speaks."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import blosc
import numpy as np

NAMES = ("benchmark", "volume", "em")  # of collection, experiment and channel
URI = f"bossdb://{'/'.join(NAMES)}"


class LoopbackBoss:
    """Answers to requests for an array, uint8 z, y, x. Cutouts are compressed once, as the real server does it.

    Parameters
    ----------
    voxels : ndarray of uint8
        The array.
    """

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels = voxels
        self._cutouts: dict[str, bytes] = {}

    def answer(self, path: str) -> tuple[str, bytes]:
        """Return content type and body for the path of a request."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[1] == "cutout":
            return "application/blosc", self._cutout(path)
        return "application/json", json.dumps(self._metadata(parts)).encode()

    def _metadata(self, parts: list[str]) -> dict[str, Any]:
        common = {"name": parts[-1], "description": "", "creator": "benchmark"}
        if parts[1] == "coord":
            frame: dict[str, Any] = {"voxel_unit": "nanometers"}
            for axis, length, size in zip("zyx", self.voxels.shape, (30, 6, 6), strict=True):
                frame |= {f"{axis}_start": 0, f"{axis}_stop": length, f"{axis}_voxel_size": size}
            return common | frame
        if "channel" in parts:
            return common | {
                **{"experiment": NAMES[1], "type": "image", "datatype": "uint8", "base_resolution": 0},
                **{"default_time_sample": 0, "sources": [], "related": [], "downsample_status": "DOWNSAMPLED"},
                **{"storage_type": "spdb", "bucket": None, "cv_path": None},
            }
        return common | {
            **{"collection": NAMES[0], "coord_frame": "frame", "num_hierarchy_levels": 1, "time_step": None},
            **{"hierarchy_method": "anisotropic", "num_time_samples": 1, "time_step_unit": ""},
        }

    def _cutout(self, path: str) -> bytes:
        if path not in self._cutouts:
            x, y, z = (slice(*map(int, part.split(":"))) for part in re.findall(r"\d+:\d+", path)[:3])
            self._cutouts[path] = blosc.compress(self.voxels[z, y, x].tobytes(), typesize=1)
        return self._cutouts[path]


@contextmanager
def loopback_boss(voxels: np.ndarray) -> Iterator[dict[str, str]]:
    """Serve an array as the channel `URI`; yield the options with which `open_volume(boss=...)` reaches it."""
    boss = LoopbackBoss(voxels)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            kind, body = boss.answer(self.path)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield {"protocol": "http", "host": f"127.0.0.1:{server.server_port}", "token": "public"}
    finally:
        server.shutdown()
        server.server_close()
