"""One actor of a pool: how it is started, what is known of it, and how what Ray says about it reads."""

from __future__ import annotations

import re

MAX_LINE_LENGTH = 250


# What Ray says of an actor that is gone, and what a person is told.
_GONE = {
    r"out of memory|OOM killer|memory usage threshold": None,  # Ray says it well
    r"node has died|node died|raylet died": "its node is gone",
    r"is unavailable|Connection|Socket closed": "it does not answer any more",
    r"End of file|SYSTEM_ERROR|worker process has died": "its process ended suddenly: it was killed, or it crashed",
}


MAX_REASON_LENGTH = 400  # letters of a reason that are kept
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def root_cause(error: BaseException) -> str:
    """What was wrong at the bottom of the errors that Ray wraps around it."""
    found = user_error(error)
    message = str(found).strip()
    plain = isinstance(found, ValueError | OSError | FloatingPointError) and message
    return message if plain else f"{type(found).__name__}: {message}"


def user_error(error: BaseException) -> BaseException:
    """The error that a person's code raised, inside whatever Ray wraps around it."""
    for _ in range(20):
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else None
        for name in ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__"):
            inner = inner or getattr(error, name, None)
        if inner is None:
            break
        error = inner
    return error


def strip_ansi(text: object) -> str:
    """Return a text, or an error's text, without the colours of a terminal.

    Parameters
    ----------
    text : str or BaseException

    Returns
    -------
    str
    """
    return ANSI_COLOUR.sub("", str(text))


def error_line(error: BaseException) -> str:
    """What an error says, on one line; of Ray's death notices what they come to."""
    lines = [line.strip() for line in strip_ansi(error).splitlines() if line.strip()] or ["no words"]
    if not type(error).__name__.startswith(("ActorDied", "ActorUnavailable")):
        return f"{type(error).__name__}: {lines[0]}"[:MAX_LINE_LENGTH]
    if "creation task" in lines[0]:  # a traceback follows
        return lines[-1][:MAX_LINE_LENGTH]
    words = [line for line in lines[1:] if not re.match(r"(class_name|actor_id|pid|name|namespace|ip): ", line)]
    told = re.split(r" (?:There are some|Some common|Please check)", (words or lines)[0])[0]
    found = next((known for pattern, known in _GONE.items() if re.search(pattern, told)), None)
    return (found or told)[:MAX_LINE_LENGTH]


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, as its record says it: in one line, without the colours of a terminal."""
    words = " ".join(strip_ansi(root_cause(error)).split())
    return words[:MAX_REASON_LENGTH] or type(error).__name__
