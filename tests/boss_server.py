"""A Boss server on loopback for tests: it serves arrays in the protocol of intern 1.4.2, and faults on demand.

It behaves as the real server does where a client can tell: cutouts are checked against the native coordinate frame at
every resolution, voxels that were never stored are zeros, and errors are JSON with `status`, `code` and `message`.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import blosc
import numpy as np

# Faults of one answer that may pass at the next try. `hang` and `drip` may too, but they take time.
MIXED_FAULTS = ("500", "503", "429", "reset", "truncated", "html", "short", "fewer", "empty")

MESSAGES = {
    "400": (1001, "Incorrect cutout arguments"),
    "401": (None, "Invalid token."),
    "403": (3004, "User does not have the permission to read this channel"),
    "404": (4000, "Collection does not exist"),
    "413": (2000, "Cutout request is over 500 MB when uncompressed"),
    "429": (3004, "User quota exceeded. Expected available tomorrow"),
    "500": (5000, "An unexpected server error occurred"),
    "503": (5001, "Service unavailable"),
}


@dataclass
class Channel:
    """A channel: an array z, y, x for each resolution, which starts where the frame starts at that resolution."""

    levels: dict[int, np.ndarray]
    offset: tuple[int, int, int]
    frame: dict[str, Any]
    experiment: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A request and the fault of its answer."""

    path: str
    fault: str | None
    token: str

    @property
    def is_cutout(self) -> bool:
        return self.path.startswith("/v1/cutout/")

    @property
    def box(self) -> tuple[tuple[int, int], ...]:
        """Requested range, z, y, x."""
        return tuple(tuple(map(int, part.split(":"))) for part in reversed(_ranges(self.path)))  # type: ignore[misc]


class BossServer:
    """A server that runs from `BossServer()` to `close()`.

    Attributes
    ----------
    fault : str or None
        Fault of every answer: a status ("500") or one of `reset`, `truncated`, `html`, `short`, `fewer`, `empty`,
        `hang`, `drip`, `drip header`.
    fault_on : str
        Part of the paths that `fault` applies to, such as "cutout".
    next_faults : list of str
        Faults of the next answers, one each.
    token : str or None
        If set, any other token is refused with 401.
    delay_s : float
        Least time of every answer.
    """

    def __init__(self) -> None:
        self.fault: str | None = None
        self.fault_on = ""
        self.next_faults: list[str] = []
        self.token: str | None = None
        self.delay_s = 0.0
        self.requests: list[Request] = []
        self.channels: dict[tuple[str, str, str], Channel] = {}
        self.closing = threading.Event()
        self.inject_faults(0.0)
        self._lock = threading.Lock()
        self._http = _HttpServer(("127.0.0.1", 0), _handler_of(self))
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def options(self) -> dict[str, str]:
        """Options of `open_volume(boss=...)` that reach this server."""
        return {"protocol": "http", "host": f"127.0.0.1:{self._http.server_port}", "token": self.token or "public"}

    @property
    def cutouts(self) -> list[Request]:
        """Requests of cutouts so far, failed ones included."""
        return [request for request in self.requests if request.is_cutout]

    def add(
        self,
        name: str,
        voxels: np.ndarray | Mapping[int, np.ndarray],
        *,
        offset: tuple[int, int, int] = (0, 0, 0),
        voxel_size: tuple[float, float, float] = (30, 6, 6),
        voxel_unit: str = "nanometers",
        hierarchy_method: str = "anisotropic",
        num_levels: int = 3,
        **metadata: Any,
    ) -> str:
        """Serve voxels as the channel `collection/experiment/channel`; return its URI.

        `voxels` are z, y, x, or several resolutions of that; `offset` is z, y, x of the first voxel; `metadata` are
        more keys of the channel.
        """
        collection, experiment, channel = name.split("/")
        levels = {0: voxels} if isinstance(voxels, np.ndarray) else dict(voxels)
        frame: dict[str, Any] = {"name": f"{collection}_{experiment}", "description": "", "voxel_unit": voxel_unit}
        for axis, start, length, size in zip("zyx", offset, levels[0].shape, voxel_size, strict=True):
            frame |= {f"{axis}_start": start, f"{axis}_stop": start + length, f"{axis}_voxel_size": size}
        frames = [known.frame for known in self.channels.values() if known.frame["name"] == frame["name"]]
        assert frames in ([], [frame] * len(frames)), (
            f"the channels of an experiment share its frame: {frames}, {frame}"
        )
        self.channels[collection, experiment, channel] = Channel(
            levels=levels,
            offset=offset,
            frame=frame,
            experiment={
                "name": experiment,
                "description": "",
                "collection": collection,
                "coord_frame": frame["name"],
                "num_hierarchy_levels": num_levels,
                "hierarchy_method": hierarchy_method,
                "num_time_samples": 1,
                "time_step": None,
                "time_step_unit": "",
                "creator": "tester",
            },
            metadata={
                "name": channel,
                "description": "",
                "experiment": experiment,
                "type": "annotation" if levels[0].dtype == np.uint64 else "image",
                "datatype": levels[0].dtype.name,
                "base_resolution": 0,
                "default_time_sample": 0,
                "sources": [],
                "related": [],
                "downsample_status": "DOWNSAMPLED",
                "storage_type": "spdb",
                "bucket": None,
                "cv_path": None,
                "creator": "tester",
                **metadata,
            },
        )
        return f"bossdb://{name}"

    def inject_faults(self, share: float, *, faults: tuple[str, ...] = MIXED_FAULTS, seed: int = 0) -> None:
        """Give a share of the answers from now on one of the faults, drawn at random."""
        self._share, self._faults, self._random = share, faults, random.Random(seed)

    def close(self) -> None:
        """Stop the server, and every answer that hangs."""
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def draw_fault(self, path: str) -> str | None:
        """Return the fault of the answer to a path, or None."""
        if self.fault and self.fault_on in path:
            return self.fault
        with self._lock:
            if self.next_faults:
                return self.next_faults.pop(0)
            return self._random.choice(self._faults) if self._random.random() < self._share else None

    def answer(self, path: str) -> tuple[str, str, bytes]:
        """Return status, content type and body for a path."""
        parts = path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["v1", "coord"]:
            frames = [channel.frame for channel in self.channels.values() if channel.frame["name"] == parts[2]]
            return _json(frames[0]) if frames else _error("404", f"Coordinate frame {parts[2]} does not exist")
        if parts[:2] == ["v1", "collection"]:
            return self._metadata(parts[2::2])
        if parts[:2] == ["v1", "cutout"]:
            return self._cutout(tuple(parts[2:5]), int(parts[5]), path)  # type: ignore[arg-type]
        return _error("404", "Not found")

    def _metadata(self, names: list[str]) -> tuple[str, str, bytes]:
        matching = [key for key in self.channels if list(key[: len(names)]) == names]
        if not matching:
            kind = ("Collection", "Experiment", "Channel")[len(names) - 1]
            return _error("404", f"{kind} {names[-1]} does not exist")
        channel = self.channels[matching[0]]
        collection = {"name": names[0], "description": "", "creator": "tester"}
        return _json((collection, channel.experiment, channel.metadata)[len(names) - 1])

    def _cutout(self, names: tuple[str, str, str], resolution: int, path: str) -> tuple[str, str, bytes]:
        if names not in self.channels:
            return _error("404", f"Channel {names[-1]} does not exist")
        channel = self.channels[names]
        if resolution >= channel.experiment["num_hierarchy_levels"]:
            return _error("400", f"Invalid resolution {resolution}", 1002)
        x, y, z = (tuple(map(int, part.split(":"))) for part in _ranges(path))
        for axis, (start, stop) in zip("xyz", (x, y, z), strict=True):
            if not channel.frame[f"{axis}_start"] <= start < stop <= channel.frame[f"{axis}_stop"]:
                return _error("400", f"Incorrect cutout arguments {resolution}/{x}/{y}/{z}")
        return "200", "application/blosc", _compressed(_cut(channel, resolution, (z, y, x)))


def _ranges(path: str) -> list[str]:
    """Return the x, y and z ranges in the path of a cutout."""
    return re.findall(r"\d+:\d+", path)[:3]


def _cut(channel: Channel, resolution: int, box: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return the voxels of a box (z, y, x), zeros where none are stored."""
    stored = channel.levels.get(resolution)
    voxels = np.zeros([stop - start for start, stop in box], channel.metadata["datatype"])
    if stored is None:
        return voxels
    isotropic = channel.experiment["hierarchy_method"] == "isotropic"
    factors = (2**resolution if isotropic else 1, 2**resolution, 2**resolution)
    source, target = [], []
    for (start, stop), offset, factor, length in zip(box, channel.offset, factors, stored.shape, strict=True):
        first = offset // factor
        low, high = max(start, first), min(stop, first + length)
        source.append(slice(low - first, max(low, high) - first))
        target.append(slice(low - start, max(low, high) - start))
    voxels[tuple(target)] = stored[tuple(source)]
    return voxels


def _compressed(voxels: np.ndarray) -> bytes:
    return blosc.compress(voxels.tobytes(), typesize=voxels.dtype.itemsize)


def _json(content: Mapping[str, Any], status: str = "200") -> tuple[str, str, bytes]:
    return status, "application/json", json.dumps(content).encode()


def _error(status: str, message: str | None = None, code: int | None = None) -> tuple[str, str, bytes]:
    default_code, default_message = MESSAGES[status]
    if status == "401":
        return _json({"detail": default_message}, status)
    return _json({"status": int(status), "code": code or default_code, "message": message or default_message}, status)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients that close the connection are part of the tests."""


def _handler_of(boss: BossServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            fault = boss.draw_fault(self.path)
            token = self.headers.get("Authorization", "").removeprefix("Token ")
            boss.requests.append(Request(self.path, fault, token))
            time.sleep(boss.delay_s)
            if boss.token is not None and token != boss.token:
                fault = "401"
            if fault in MESSAGES:
                self._send(*_error(fault))
            elif fault == "hang":
                boss.closing.wait()
            elif fault == "reset":
                self._reset()
            elif fault == "drip header":
                self._drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60000)
            else:
                self._send(*boss.answer(self.path), fault)

        def _send(self, status: str, kind: str, body: bytes, fault: str | None = None) -> None:
            if fault == "html":
                kind, body = "text/html", b"<html><body><h1>Sign in</h1></body></html>"
            elif fault == "short":
                body = body[: len(body) // 2]
            elif fault == "empty":
                body = b""
            elif fault == "fewer":
                body = _compressed(np.zeros(7, np.uint8)) if kind == "application/blosc" else b"{}"
            self.send_response(int(status))
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "truncated":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif fault == "drip":
                self._drip(body)
            else:
                self.wfile.write(body)

        def _drip(self, content: bytes) -> None:
            """Send a byte every 20 ms, so that no read times out."""
            for byte in content:
                if boss.closing.wait(0.02):
                    break
                self.wfile.write(bytes([byte]))
            self.close_connection = True

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_: object) -> None:
            """Print nothing: `requests` is the log."""

    return Handler
