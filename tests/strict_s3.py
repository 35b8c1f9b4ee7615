"""An S3 server on the loopback that records its requests and refuses those that a test wants to see refused."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from moto.moto_server.werkzeug_app import MotoRequestHandler
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Request(NamedTuple):
    """A request: PUT, the path with its query, and headers in lower case."""

    method: str
    url: str
    headers: dict[str, str]


Refusal = tuple[int, str]  # HTTP status, and the code of an S3 error


class StrictS3:
    """A server in front of moto's buckets that answers one request at a time.

    Like S3, and unlike moto alone, it thereby compares and writes in one step.

    Attributes
    ----------
    url : str
        Where it listens.
    requests : list of Request
        What was asked.
    refuse : callable
        Returns how a request is refused, or None.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refuse: Callable[[Request], Refusal | None] = lambda request: None
        self._moto, self._lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuse_conditional_writes(self) -> None:
        """Reject conditional writes from now on, as some servers do."""

        def refuse(request: Request) -> Refusal | None:
            is_conditional = request.method == "PUT" and {"if-match", "if-none-match"} & request.headers.keys()
            return (501, "NotImplemented") if is_conditional else None

        self.refuse = refuse

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        headers = {
            key[5:].lower().replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")
        }
        request = Request(environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}", headers)
        self.requests.append(request)
        refusal = self.refuse(request)
        if refusal is None:
            with self._lock:
                return list(self._moto(environ, start_response))
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{refusal[0]} Refused", [("Content-Type", "application/xml")])
        return [f"<?xml version='1.0'?><Error><Code>{refusal[1]}</Code><Message>no</Message></Error>".encode()]
