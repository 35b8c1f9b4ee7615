"""Asking a Boss server: which one, how often, and its failures in words. Knows nothing of intern."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import requests
from blosc.blosc_extension import error as BloscError

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.volumes.threads import call_with_timeout

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRYABLE_STATUS = {408, 425, 429}
"""Statuses below 500 that may pass; every other 4xx is final."""

REPORTED_PAUSE_S = 1.0
"""Whoever waits longer is told that something is tried again, by at most one line a second of all that are asked for
side by side. Python shows it on the error output, and Ray keeps a worker's in the worker's log."""
_last_reported = float("-inf")

_RETRYABLE_ERRORS = (requests.RequestException, BloscError, TimeoutError, ValueError)
_INVALID = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.InvalidHeader)


@dataclass(frozen=True)
class RetryPolicy:
    """What one request may take, and what is done when it fails in a way that may pass.

    tries: how often it is sent at most.
    first_pause_s, longest_pause_s: the pause after a failure doubles from the first to the longest; up to half of it
        is left out at random, so that many workers do not come back at the same moment.
    timeout_s: the longest silence, while connecting or between two bytes.
    deadline_s: the longest that one try may take, however steadily its bytes drip.
    """

    tries: int = 10
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    timeout_s: float = 30.0
    deadline_s: float = 120.0

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each try; the first is 0."""
        yield 0.0
        for retry in range(self.tries - 1):
            yield min(self.longest_pause_s, self.first_pause_s * 2**retry) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class BossServer:
    """A Boss server, and the token shown to it (which no message and no repr holds)."""

    protocol: str = "https"
    host: str = "api.bossdb.io"
    token: str = field(default="public", repr=False)

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> BossServer:
        """The server that `options` (`protocol`, `host`, `token`) name.

        What they leave out is public data of https://api.bossdb.io. None stands for that too, with the token in
        BOSSDB_TOKEN if it is set. Raises ValueError for keys and values that are no options.
        """
        if options is None:
            token = os.environ.get("BOSSDB_TOKEN", "").strip()
            options = {"token": token} if token else {}
        unknown = sorted(set(options) - {"protocol", "host", "token"})
        if unknown:
            raise ValueError(f"BossDB options have no {', '.join(map(repr, unknown))}; they are protocol, host, token")
        boss = cls(**{key: str(value).strip() for key, value in options.items()})
        boss._check()
        return boss

    def _check(self) -> None:
        if self.protocol not in ("http", "https"):
            raise ValueError(f"BossDB protocol {self.protocol!r} is neither https nor http")
        if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:]+\])(:\d+)?", self.host):
            raise ValueError(f"BossDB host {self.host!r} is not a name with an optional port, such as api.bossdb.io")
        if not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise ValueError("the BossDB token is empty or holds characters that no token has; copy it anew")

    @property
    def url(self) -> str:
        return f"{self.protocol}://{self.host}"

    def without_token(self, text: str) -> str:
        """`text`, if need be with the token blotted out."""
        return text if self.token == "public" else text.replace(self.token, "[token]")


def request_with_retries(call: Callable[[], T], what: str, boss: BossServer, patience: RetryPolicy) -> T:
    """What `call` gets from `boss`, asked again while what fails may pass.

    call: one request, which raises requests.HTTPError for every status but 200, and ValueError for an answer that is
        not what was asked for.
    what: names the request in errors.

    Raises PermissionError, FileNotFoundError or ValueError at once for what is final, SourceError after the last try.
    """
    cause, began = "", time.monotonic()
    for number, pause in enumerate(patience.pauses(), 1):
        if max(pause, time.monotonic() - began) >= REPORTED_PAUSE_S and cause:
            again = f"trying again in {pause:.1g} s ({number} of {patience.tries})"
            _report_pause(boss.without_token(f"{what}: {cause}; {again}"))
        time.sleep(pause)
        try:
            return call_with_timeout(patience.deadline_s, call)
        except _INVALID as error:
            raise ValueError(boss.without_token(f"{what}: {error}")) from None
        except requests.HTTPError as error:
            cause = _status(error, what, boss)
        except _RETRYABLE_ERRORS as error:
            cause = _failure(error)
    text = f"{what} did not come from {boss.host} in {patience.tries} tries; the last one: {cause}"
    raise VolumeError(boss.without_token(text))


def _report_pause(line: str) -> None:
    global _last_reported
    if time.monotonic() - _last_reported >= REPORTED_PAUSE_S:
        _last_reported = time.monotonic()
        log.warning("%s", line)


def _status(error: requests.HTTPError, what: str, boss: BossServer) -> str:
    """The status in words, if it may pass; raises what it means if it is final."""
    if error.response is None:
        return _failure(error)
    status = error.response.status_code
    said = f'HTTP {status}, "{_message(error.response)}"'
    if status == 429:
        return f"{said}: the quota of this token or address is used up; go on later, or use a token of your own"
    if 400 <= status < 500 and status not in RETRYABLE_STATUS:
        _raise_final(status, boss.without_token(f"{what}: {boss.host} answered {said}"))
    return said


def _raise_final(status: int, text: str) -> NoReturn:
    if status in (401, 403):
        advice = "give a token that may read it, in BOSSDB_TOKEN or by --boss FILE"
        raise PermissionError(f"{text}; {advice}") from None
    if status == 404:
        raise FileNotFoundError(f"{text}; check the collection, experiment and channel, and the host") from None
    advice = "ask for less at once" if status == 413 else "check the box and the resolution against the volume"
    raise ValueError(f"{text}; {advice}") from None


def _message(response: requests.Response) -> str:
    """What the server says in its body: a Boss error's message, or the first words of any other text."""
    try:
        body = json.loads(response.text)
        text = str(body.get("message") or body.get("detail") or body)
    except (ValueError, AttributeError):
        text = re.sub(r"<[^>]*>", " ", response.text)
    return " ".join(text.split())[:200] or str(response.reason)


def _failure(error: Exception) -> str:
    """A failure that came without a status, in words."""
    if isinstance(error, BloscError):
        return f"the answer is not a whole blosc buffer ({error})"
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return f"the answer is not JSON ({error})"
    if isinstance(error, requests.ConnectionError) and error.args:
        return f"no connection ({getattr(error.args[0], 'reason', error)}); is the host up, and reached from here?"
    return f"{type(error).__name__}: {error}"
