"""An S3 server on the loopback, moto's, that counts its requests. Needs moto: `pip install 'moto[server]'`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests

BUCKET = "benchmark"


class LoopbackS3:
    """A server with one bucket.

    Attributes
    ----------
    requests : Counter
        Number of requests by method and path: `("PUT", "/benchmark/out.zarr/zarr.json")`.
    environment : dict
        Variables with which a process reaches it.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import MotoRequestHandler
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        class QuietHandler(MotoRequestHandler):
            def log(self, *_: Any) -> None:
                """Print nothing."""

        self.requests: Counter[tuple[str, str]] = Counter()
        self._moto, self._lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=QuietHandler)
        url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        requests.put(f"{url}/{BUCKET}", timeout=30).raise_for_status()
        self.requests.clear()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Count a request and answer it. One at a time: conditional writes compare and write in one step, as on S3."""
        with self._lock:
            self.requests[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
            return list(self._moto(environ, start_response))


@contextmanager
def loopback_s3() -> Iterator[LoopbackS3 | None]:
    """Run a server; yield None if moto is not installed."""
    try:
        server = LoopbackS3()
    except ImportError:
        yield None
        return
    try:
        yield server
    finally:
        server.close()


def count_requests(requests: Counter[tuple[str, str]], data_prefix: str) -> dict[str, int]:
    """Return how many requests there were: `data`, the objects of voxels that were written, and `other`.

    data_prefix: with which the paths of voxels begin.
    """
    data = sum(n for (method, path), n in requests.items() if method == "PUT" and path.startswith(data_prefix))
    return {"data": data, "other": sum(requests.values()) - data}


def count_repeated(requests: Counter[tuple[str, str]], prefix: str) -> int:
    """Return how many objects whose paths begin with `prefix` were written more than once."""
    return sum(n > 1 for (method, path), n in requests.items() if method == "PUT" and path.startswith(prefix))
