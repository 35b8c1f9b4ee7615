"""The driver of Ray work: what a person reads when it fails or is stopped."""

import io

import pytest

from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.driver import name_resume_command

COMMAND = "python jobs/train.py --name a"


def test_an_error_of_the_work_is_followed_by_the_command_that_resumes():
    cause, out = OSError("the disk is full"), io.StringIO()
    failed = pytest.raises(WorkFailed, match=f"^training failed\nto resume: {COMMAND}$")
    with failed as caught, name_resume_command(COMMAND, Reporter(out)):
        raise WorkFailed("training failed") from cause
    assert caught.value.__cause__ is cause
    assert out.getvalue() == ""


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_work_that_is_stopped_ends_with_the_command_that_resumes(stop):
    out = io.StringIO()
    with pytest.raises(type(stop)), name_resume_command(COMMAND, Reporter(out)):
        raise stop
    assert out.getvalue() == f"to resume: {COMMAND}\n"
