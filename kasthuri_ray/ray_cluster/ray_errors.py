"""Errors that come through Ray: the user's error inside Ray's wrappers, and short texts for messages and records."""

from __future__ import annotations

import re

from kasthuri_ray.errors import InputError

MAX_LINE_LENGTH = 250
MAX_REASON_LENGTH = 400
MAX_DEPTH = 20  # of errors inside errors

ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# By a pattern in Ray's message about a dead actor: what people read instead; None keeps Ray's message.
ACTOR_DEATHS = {
    r"out of memory|OOM killer|memory usage threshold": None,
    r"node has died|node died|raylet died": "its node is gone",
    r"is unavailable|Connection|Socket closed": "it does not answer any more",
    r"End of file|SYSTEM_ERROR|worker process has died": "its process ended suddenly: it was killed, or it crashed",
}


def root_cause(error: BaseException) -> str:
    """Return the message of the user's error inside the errors that Ray wraps around it.

    Parameters
    ----------
    error : BaseException
        What a call to Ray raised.

    Returns
    -------
    str
        The message; after the name of the error's class unless it is an InputError, OSError or FloatingPointError.
    """
    cause = user_error(error)
    message = str(cause).strip()
    is_plain = isinstance(cause, InputError | OSError | FloatingPointError) and message
    return message if is_plain else f"{type(cause).__name__}: {message}"


def is_foreseen(error: BaseException) -> bool:
    """Return whether the cause is Ray, the system, bad input or numbers that are not finite, and no bug.

    Parameters
    ----------
    error : BaseException
        What a call to Ray raised.

    Returns
    -------
    bool
        False for what only its traceback explains.
    """
    cause = user_error(error)
    is_of_ray = type(cause).__module__.startswith("ray.")
    return is_of_ray or isinstance(cause, InputError | OSError | FloatingPointError)


def user_error(error: BaseException) -> BaseException:
    """Return the error that the user's code raised, inside the errors that Ray wraps around it.

    Parameters
    ----------
    error : BaseException
        An error of Ray, or any other.

    Returns
    -------
    BaseException
        The innermost error; `error` itself if it wraps none.
    """
    for _ in range(MAX_DEPTH):
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else None
        for name in ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__"):
            inner = inner or getattr(error, name, None)
        if inner is None:
            break
        error = inner
    return error


def strip_ansi(text: object) -> str:
    """Remove the colour codes of a terminal.

    Parameters
    ----------
    text : str or BaseException
        A text, or an error with a text.

    Returns
    -------
    str
        The text without the codes.
    """
    return ANSI_COLOUR.sub("", str(text))


def error_line(error: BaseException) -> str:
    """Return an error's message in one line, and Ray's long messages about dead actors as a short one.

    Parameters
    ----------
    error : BaseException
        From an actor or a remote function.

    Returns
    -------
    str
        At most 250 characters.
    """
    lines = [line.strip() for line in strip_ansi(error).splitlines() if line.strip()] or ["no message"]
    if not type(error).__name__.startswith(("ActorDied", "ActorUnavailable")):
        return f"{type(error).__name__}: {lines[0]}"[:MAX_LINE_LENGTH]
    if "creation task" in lines[0]:  # a traceback follows
        return lines[-1][:MAX_LINE_LENGTH]
    details = [line for line in lines[1:] if not re.match(r"(class_name|actor_id|pid|name|namespace|ip): ", line)]
    message = re.split(r" (?:There are some|Some common|Please check)", (details or lines)[0])[0]
    short = next((text for pattern, text in ACTOR_DEATHS.items() if re.search(pattern, message)), None)
    return (short or message)[:MAX_LINE_LENGTH]


def failure_reason(error: BaseException) -> str:
    """Return why a trial failed, for its record.

    Parameters
    ----------
    error : BaseException
        What ended the trial.

    Returns
    -------
    str
        One line of at most 400 characters, without colour codes.
    """
    reason = " ".join(strip_ansi(root_cause(error)).split())
    return reason[:MAX_REASON_LENGTH] or type(error).__name__
