"""A sweep without Ray: what it does with the results of its trials, and how it stops and resumes."""

import errno
import io
import time
from types import SimpleNamespace

import pytest
import ray

from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.errors import VolumeError
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.driver import run_in_thread
from kasthuri_ray.ray_cluster.ray_errors import failure_reason
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.worker_failures import is_environment_failure
from kasthuri_ray.tuning.leaderboard import Leaderboard, recover_trials
from kasthuri_ray.tuning.ray_tune import NO_TRIALS_LEFT, SweepInterrupted
from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.sweep_trials import SweepTrials
from kasthuri_ray.tuning.trial import INTERRUPTED
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, RUNNING

AP = "val.average_precision"
FULL = "the disk is full: /data/sweep/trials/0001/checkpoint/last.pt could not be written. Free some space"


@pytest.fixture
def start_job(tmp_path, monkeypatch):
    """Return `start_job()`: the trials of one job of a sweep of four trials, all of which can be trained."""
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "put", lambda value: value)
    remote_method = SimpleNamespace(remote=lambda *_: None)

    def start() -> SweepTrials:
        plan = SimpleNamespace(
            tune=TuneSettings(search="grid"), num_trials=4, num_concurrent=1, bases={"UNet_2D": None},
            space={"network.seed": SearchDomain("grid", (0, 1, 2, 3))},
        )  # fmt: skip
        leaderboard = Leaderboard.read(open_storage(str(tmp_path)), AP)
        recover_trials(leaderboard)
        barrier = SimpleNamespace(store_plan=remote_method, stop=remote_method)
        sweep = SweepTrials(plan, leaderboard, Reporter(io.StringIO()), barrier)
        sweep._prepare = lambda trial: SimpleNamespace(num_parameters=1)
        return sweep

    return start


def states(sweep: SweepTrials) -> list[str]:
    return [trial.state for trial in sweep.leaderboard.trials]


def test_a_full_disk_ends_the_job_and_the_next_one_resumes_the_trial(start_job):
    first = start_job()
    assert first.next_trial() == "0000"
    first.record_result("0000", {"state": FAILED, "why": "no such luck", "epoch": 0})
    first.end_trial("0000")
    assert first.next_trial() == "0001"
    first.record_result("0001", {"state": INTERRUPTED, "why": FULL, "epoch": 1})
    first.end_trial("0001")
    assert (first.stop_reason, first.next_trial(), states(first)) == (FULL, NO_TRIALS_LEFT, [FAILED, RUNNING])
    second = start_job()
    assert (second.next_trial(), second.next_trial()) == ("0001", None)
    resumed = second.leaderboard.trials[1]
    second.leaderboard.folder(resumed).write_settings({"task": {}, "network": {}, "train": {}})
    second.record_result("0001", {"state": FINISHED, "why": "", "epoch": 2, "score": 0.5})
    second.end_trial("0001")
    assert (second.next_trial(), states(second)) == ("0002", [FAILED, FINISHED, RUNNING])


def test_a_trial_whose_file_is_missing_fails_and_the_next_one_starts(start_job):
    sweep = start_job()

    def prepare(trial):
        if trial.number == 0:
            raise FileNotFoundError("there is no file a.zarr")
        return SimpleNamespace(num_parameters=1)

    sweep._prepare = prepare
    assert sweep.next_trial() == "0001"
    first = sweep.leaderboard.trials[0]
    assert (first.state, first.why) == (FAILED, "there is no file a.zarr")


def test_a_keyboard_interrupt_ends_tunes_loop(start_job):
    sweep, ended = start_job(), []

    def tune_loop():
        while True:
            time.sleep(0.01)
            try:
                sweep.raise_if_interrupted()
            except SweepInterrupted:
                ended.append(True)
                raise

    def press_control_c():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_thread(tune_loop, press_control_c, sweep.interrupt)
    assert ended == [True]


def test_a_failure_reason_is_one_line_without_colours():
    assert failure_reason(RuntimeError("\x1b[36mray::Worker\x1b[39m died:\n  no memory")) == (
        "RuntimeError: ray::Worker died: no memory"
    )
    assert failure_reason(ValueError("")) == "ValueError:"


@pytest.mark.parametrize(
    ("error", "is_environment"),
    [
        (OSError(errno.ENOSPC, "the disk is full"), True),
        (VolumeError("the server is down"), True),
        (ConnectionError("S3 does not answer"), True),
        (PermissionError("access is refused"), True),
        (OSError(errno.ENOMEM, "cannot allocate memory"), False),
        (FileNotFoundError("there is no file"), False),
        (ValueError("these do not go together"), False),
        (RuntimeError("out of memory"), False),
    ],
)
def test_failures_of_disks_servers_and_permissions_would_stop_any_trial(error, is_environment):
    assert is_environment_failure(error) is is_environment
