"""The driver of Ray work: what a person reads when it fails or is stopped."""

import io
from types import SimpleNamespace

import pytest
import ray

from kasthuri_ray.errors import InputError, UnforeseenFailure, WorkFailed
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.driver import guard_ray_work, name_resume_command

COMMAND = "python jobs/train.py --name a"


def test_an_error_of_the_work_is_followed_by_the_command_that_resumes():
    cause, out = OSError("the disk is full"), io.StringIO()
    failed = pytest.raises(WorkFailed, match=f"^training failed\nto resume: {COMMAND}$")
    with failed as caught, name_resume_command(COMMAND, Reporter(out)):
        raise WorkFailed("training failed") from cause
    assert caught.value.__cause__ is cause
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("error", "failure", "message"),
    [
        (OSError("the disk is full"), WorkFailed, "training failed: the disk is full"),
        (InputError("no such tile"), WorkFailed, "training failed: no such tile"),
        (ray.exceptions.OutOfMemoryError("too little memory"), WorkFailed, "training failed: .*too little memory"),
        (IndexError("pop from empty list"), UnforeseenFailure, "training failed: IndexError: pop from empty list"),
    ],
)
def test_only_the_traceback_of_an_unforeseen_error_is_of_use(error, failure, message):
    lease = SimpleNamespace(check=lambda: None)
    with pytest.raises(WorkFailed, match=message) as caught, guard_ray_work("training", Reporter(io.StringIO()), lease):
        raise error
    assert type(caught.value) is failure
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_work_that_is_stopped_ends_with_the_command_that_resumes(stop):
    out = io.StringIO()
    with pytest.raises(type(stop)), name_resume_command(COMMAND, Reporter(out)):
        raise stop
    assert out.getvalue() == f"to resume: {COMMAND}\n"
