"""Which failures of a worker another try may mend, which would only come again, and which are nobody's doing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from kasthuri_ray.resources import bottom, root_cause
from kasthuri_ray.volumes import SourceError

# What torch says, in a plain RuntimeError, when another rank is gone.
PEER_GONE = ("gloo", "nccl", "connection", "timed out", "peer")
STORAGE_GONE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


def is_passing(error: BaseException) -> bool:
    """Whether another try may do better: a worker or a node died, a connection broke, a source was down."""
    import ray
    import torch

    if isinstance(error, OSError):
        return isinstance(error, SourceError | ConnectionError | TimeoutError)
    # RayTrainError, which has no public name, says that a worker did not answer for very long.
    if isinstance(error, torch.distributed.DistError | ray.exceptions.RayError) or "RayTrainError" in _names(error):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in PEER_GONE)


def is_outside(error: BaseException) -> bool:
    """Whether a run failed of what any other run would fail of too: a full disk, a storage or a source that is gone."""
    if isinstance(error, SourceError | ConnectionError | TimeoutError | PermissionError):
        return True
    return isinstance(error, OSError) and error.errno in STORAGE_GONE


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def stop_on_final_errors(show: Callable[[dict[str, Any]], None]) -> Any:
    """A callback of Ray Train: what would fail again in the same way is not tried again; what is, is shown."""
    from ray.train import UserCallback

    class StopOnFinalErrors(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                found = bottom(error)
                if not is_passing(found):
                    raise found
            ranks = ", ".join(map(str, worker_exceptions))
            reason = root_cause(next(iter(worker_exceptions.values()))).splitlines()[0].rstrip(".")
            show({"line": f"worker {ranks} failed ({reason}); the workers start again from the last epoch"})

    return StopOnFinalErrors()
