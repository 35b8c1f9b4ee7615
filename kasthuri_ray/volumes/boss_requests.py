"""Requests to a Boss server: its address and token, retries with deadlines, and error messages.

This module does not depend on intern, the client that sends the requests.
"""

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

from kasthuri_ray.errors import InputDenied, InputError, InputNotFound, VolumeError
from kasthuri_ray.volumes.parallel_calls import call_with_timeout

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRYABLE_STATUS = {408, 425, 429}  # the retryable statuses below 500; every other 4xx is final
# A longer wait for a retry is logged, at most one line a second for all requests of a process. Python prints it on
# standard error; Ray writes it to the worker's log.
LOGGED_PAUSE_S = 1.0

_RETRYABLE_ERRORS = (requests.RequestException, BloscError, TimeoutError, ValueError)
_INVALID_REQUESTS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
)
_last_logged = float("-inf")


@dataclass(frozen=True)
class RetryPolicy:
    """How long a request may take, and how often it is retried after a transient failure.

    Parameters
    ----------
    tries : int
        Number of times that the request is sent at most.
    first_pause_s, longest_pause_s : float
        Pause after the first failure, in seconds, which doubles with every failure up to the longest. Up to half of
        it is omitted at random, so that many workers do not retry at the same moment.
    timeout_s : float
        Longest silence in seconds, while connecting or between two bytes.
    deadline_s : float
        Longest time of one try in seconds, even if bytes keep arriving.
    """

    tries: int = 10
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    timeout_s: float = 30.0
    deadline_s: float = 120.0

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each try; the first are 0."""
        yield 0.0
        for retry in range(self.tries - 1):
            yield min(self.longest_pause_s, self.first_pause_s * 2**retry) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class BossServer:
    """A Boss server and the token that it is sent.

    Parameters
    ----------
    protocol : str
        `https` or `http`.
    host : str
        Host name with an optional port.
    token : str
        Token; no message and no repr shows it.
    """

    protocol: str = "https"
    host: str = "api.bossdb.io"
    token: str = field(default="public", repr=False)

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> BossServer:
        """Return the server that options name.

        Parameters
        ----------
        options : mapping or None
            `protocol`, `host` and `token`; a missing one is that of the public data of https://api.bossdb.io, and a
            missing token is that in BOSSDB_TOKEN, if the variable is set. None is that server.

        Returns
        -------
        BossServer

        Raises
        ------
        InputError
            If a key is unknown or a value malformed.
        """
        options = dict(options or {})
        token = os.environ.get("BOSSDB_TOKEN", "").strip()
        if token and not options.get("token"):
            options["token"] = token
        unknown = sorted(set(options) - {"protocol", "host", "token"})
        if unknown:
            raise InputError(f"BossDB options have no {', '.join(map(repr, unknown))}; they are protocol, host, token")
        boss = cls(**{key: str(value).strip() for key, value in options.items()})
        boss._check()
        return boss

    @property
    def url(self) -> str:
        """URL of the server, without a path."""
        return f"{self.protocol}://{self.host}"

    def without_token(self, text: str) -> str:
        """Return the text with `[token]` in place of the token."""
        return text if self.token == "public" else text.replace(self.token, "[token]")

    def _check(self) -> None:
        if self.protocol not in ("http", "https"):
            raise InputError(f"BossDB protocol {self.protocol!r} is neither https nor http")
        if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:]+\])(:\d+)?", self.host):
            raise InputError(f"BossDB host {self.host!r} is not a name with an optional port, such as api.bossdb.io")
        if not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise InputError("the BossDB token is empty or holds characters that no token has; copy it again")


def request_with_retries(call: Callable[[], T], what: str, boss: BossServer, retry_policy: RetryPolicy) -> T:
    """Return the answer of a Boss server to a request, retrying after transient failures.

    `call` sends the request; it raises requests.HTTPError for every status but 200, and InputError for an answer that
    is not what was requested. `what` names the request in messages. A final failure raises PermissionError,
    FileNotFoundError or InputError at once; if the last try fails as well, it is a VolumeError.
    """
    cause, start = "", time.monotonic()
    for number, pause in enumerate(retry_policy.pauses(), 1):
        if max(pause, time.monotonic() - start) >= LOGGED_PAUSE_S and cause:
            retry = f"retrying in {pause:.1g} s (try {number} of {retry_policy.tries})"
            _log_retry(boss.without_token(f"{what}: {cause}; {retry}"))
        time.sleep(pause)
        try:
            return call_with_timeout(retry_policy.deadline_s, call)
        except _INVALID_REQUESTS as error:
            raise InputError(boss.without_token(f"{what}: {error}")) from None
        except requests.HTTPError as error:
            cause = _describe_status(error, what, boss)
        except _RETRYABLE_ERRORS as error:
            cause = _describe_failure(error)
    message = f"{what} could not be read from {boss.host} in {retry_policy.tries} tries; the last failed with: {cause}"
    raise VolumeError(boss.without_token(message))


def _log_retry(line: str) -> None:
    global _last_logged
    if time.monotonic() - _last_logged >= LOGGED_PAUSE_S:
        _last_logged = time.monotonic()
        log.warning("%s", line)


def _describe_status(error: requests.HTTPError, what: str, boss: BossServer) -> str:
    """Return a message about a retryable status; raise the error for one that is final."""
    if error.response is None:
        return _describe_failure(error)
    status = error.response.status_code
    answer = f'HTTP {status}, "{_response_message(error.response)}"'
    if status == 429:
        return f"{answer}: the quota of this token or address is used up; try again later, or use a token of your own"
    if 400 <= status < 500 and status not in RETRYABLE_STATUS:
        _raise_final(status, boss.without_token(f"{what}: {boss.host} answered {answer}"))
    return answer


def _raise_final(status: int, text: str) -> NoReturn:
    if status in (401, 403):
        advice = "give a token that may read it, in BOSSDB_TOKEN or by --boss FILE"
        raise InputDenied(f"{text}; {advice}") from None
    if status == 404:
        raise InputNotFound(f"{text}; check the collection, experiment and channel, and the host") from None
    advice = "check the box and the resolution against the volume"
    if status == 413:
        advice = "the request is too large for the server"
    raise InputError(f"{text}; {advice}") from None


def _response_message(response: requests.Response) -> str:
    """Return the message of a Boss error, or the first characters of any other response body."""
    try:
        body = json.loads(response.text)
        text = str(body.get("message") or body.get("detail") or body)
    except (ValueError, AttributeError):
        text = re.sub(r"<[^>]*>", " ", response.text)
    return " ".join(text.split())[:200] or str(response.reason)


def _describe_failure(error: Exception) -> str:
    """Return a message about a failure without a status."""
    if isinstance(error, BloscError):
        return f"the answer is not a whole blosc buffer ({error})"
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return f"the answer is not JSON ({error})"
    if isinstance(error, requests.ConnectionError) and error.args:
        reason = getattr(error.args[0], "reason", error)
        return f"no connection ({reason}); is the host up, and can this machine reach it?"
    return f"{type(error).__name__}: {error}"
