"""Failures of the workers of a training: which may be retried, and which would befall every other run too.

The process that Ray Train controls the workers from imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import errno
from typing import Any

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.ray_cluster.ray_errors import root_cause, user_error
from kasthuri_ray.training.training_messages import MessageHandler, TextMessage

# Words in the plain RuntimeError that torch raises when another rank is gone.
CONNECTION_WORDS = ("gloo", "nccl", "connection", "timed out", "peer")
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
# By name: RayTrainError, which has no public one, means that a worker did not answer for very long; DistError is
# torch's.
RETRYABLE_CLASSES = {"RayTrainError", "DistError"}


def make_failure_callback(show: MessageHandler) -> Any:
    """Make a callback of Ray Train that ends the run after a permanent error, and shows the errors that are retried."""
    from ray.train import UserCallback

    class StopOnPermanentErrors(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for exception in worker_exceptions.values():
                error = user_error(exception)
                if not is_retryable(error):
                    raise error
            ranks = ", ".join(map(str, worker_exceptions))
            show(TextMessage(retry_text(ranks, next(iter(worker_exceptions.values())))))

    return StopOnPermanentErrors()


def retry_text(ranks: str, error: BaseException) -> str:
    """Return the line that says that workers failed, and train again.

    Parameters
    ----------
    ranks : str
        Ranks of the workers.
    error : BaseException
        Why they failed.

    Returns
    -------
    str
        A line for people.
    """
    reason = root_cause(error).splitlines()[0].rstrip(".")
    return f"worker {ranks} failed ({reason}); the workers start again from the last epoch"


def is_retryable(error: BaseException) -> bool:
    """Return whether a retry may succeed: a worker or a node died, a connection broke, or a volume did not answer.

    Parameters
    ----------
    error : BaseException
        Error of a worker, without the errors that Ray wraps around it.

    Returns
    -------
    bool
        False for an error that every retry would meet again.
    """
    import ray

    if isinstance(error, OSError):
        return isinstance(error, VolumeError | ConnectionError | TimeoutError)
    class_names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ray.exceptions.RayError) or RETRYABLE_CLASSES & class_names:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in CONNECTION_WORDS)


def is_environment_failure(error: BaseException) -> bool:
    """Return whether every other run would fail too: the disk is full, or a storage or a volume does not answer.

    Parameters
    ----------
    error : BaseException
        Error of a worker, without the errors that Ray wraps around it.

    Returns
    -------
    bool
        False for an error that the settings of the run cause.
    """
    if isinstance(error, VolumeError | ConnectionError | TimeoutError | PermissionError):
        return True
    return isinstance(error, OSError) and error.errno in STORAGE_ERRNOS
