"""What an error of an actor says: about its node, the disk, the block, or the actor."""

import errno

import pytest

from kasthuri_ray.errors import NodeUnsuitable
from kasthuri_ray.segmentation.actors import ActorEvent, FailureKind, RunningActor, StartCall

BLOCK = (0, 1, 2)


def wrap(cause):
    from ray.exceptions import RayTaskError

    return RayTaskError("work", "the traceback", cause)


@pytest.mark.parametrize(
    ("call", "cause", "kind"),
    [
        (BLOCK, NodeUnsuitable("no bf16"), FailureKind.NODE),
        (StartCall.READY, NodeUnsuitable("no bf16"), FailureKind.NODE),
        (BLOCK, OSError(errno.ENOSPC, "full"), FailureKind.DISK_FULL),
        (BLOCK, ValueError("no"), FailureKind.BLOCK),
        (StartCall.READY, ValueError("no"), FailureKind.ACTOR),
    ],
)
def test_an_error_of_the_code_of_an_actor_is_told_by_its_cause_and_its_call(call, cause, kind):
    event = ActorEvent(RunningActor(0, 0.0), call, error=wrap(cause))
    assert (event.cause, event.failure) == (cause, kind)


def test_an_error_of_ray_says_that_the_actor_died():
    from ray.exceptions import ActorDiedError

    event = ActorEvent(RunningActor(0, 0.0), BLOCK, error=ActorDiedError())
    assert (event.cause, event.failure) == (None, FailureKind.ACTOR)
