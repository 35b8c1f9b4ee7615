"""What a sweep makes of what its trials tell, without Ray."""

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
from kasthuri_ray.training.ray_trainer import is_environment_failure
from kasthuri_ray.tuning.leaderboard import FAILED, FINISHED, RUNNING, Leaderboard, recover_trials
from kasthuri_ray.tuning.ray_tune import NO_TRIALS_LEFT, SweepInterrupted
from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.trial import CUT_OFF
from kasthuri_ray.tuning.tune import SweepTrials

AP = "val.average_precision"
FULL = "the disk is full: /data/sweep/trials/0001/checkpoint/last.pt could not be written. Free some space"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep()` is a sitting of a sweep of four trials that all can begin."""
    monkeypatch.setattr(ray, "get", lambda found: found)
    monkeypatch.setattr(ray, "put", lambda found: found)
    told = SimpleNamespace(remote=lambda *_: None)

    def sit() -> SweepTrials:
        plan = SimpleNamespace(
            tune=TuneSettings(search="grid"), samples=4, concurrent=1, bases={"UNet_2D": None},
            space={"network.seed": SearchDomain("grid", (0, 1, 2, 3))},
        )  # fmt: skip
        board = Leaderboard.read(open_storage(str(tmp_path)), AP)
        recover_trials(board)
        found = SweepTrials(plan, board, Reporter(io.StringIO()))
        found.gate = SimpleNamespace(bring=told, stop=told)
        found._prepare = lambda trial: SimpleNamespace(parameters=1)
        return found

    return sit


def states(sweep: SweepTrials) -> list[str]:
    return [trial.state for trial in sweep.board.trials]


def test_a_trial_that_met_a_full_disk_ends_the_sitting_and_goes_on_in_the_next(sweep):
    first = sweep()
    assert first.next() == "0000"
    first.take("0000", {"state": FAILED, "why": "no such luck", "epoch": 0})
    first.end("0000")
    assert first.next() == "0001"
    first.take("0001", {"state": CUT_OFF, "why": FULL, "epoch": 1})
    first.end("0001")
    assert (first.broken, first.next(), states(first)) == (FULL, NO_TRIALS_LEFT, [FAILED, RUNNING])
    second = sweep()
    assert (second.next(), second.next()) == ("0001", None)
    second.board.folder(second.board.trials[1]).write_settings({"task": {}, "network": {}, "train": {}})
    second.take("0001", {"state": FINISHED, "why": "", "epoch": 2, "score": 0.5})
    second.end("0001")
    assert (second.next(), states(second)) == ("0002", [FAILED, FINISHED, RUNNING])


def test_a_trial_whose_file_is_not_there_has_failed_and_the_next_begins(sweep):
    sitting = sweep()

    def prepare(trial):
        if trial.number == 0:
            raise FileNotFoundError("there is no file a.zarr")
        return SimpleNamespace(parameters=1)

    sitting._prepare = prepare
    assert sitting.next() == "0001"
    assert (sitting.board.trials[0].state, sitting.board.trials[0].why) == (FAILED, "there is no file a.zarr")


def test_a_sweep_that_is_stopped_ends_what_it_had_tune_do(sweep):
    sitting, ended = sweep(), []

    def search():
        while True:
            time.sleep(0.01)
            try:
                sitting.check()
            except SweepInterrupted:
                ended.append(True)
                raise

    def stopped_by_hand():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_thread(search, stopped_by_hand, sitting.interrupt)
    assert ended == [True]


def test_a_reason_is_a_line_without_colours():
    assert failure_reason(RuntimeError("\x1b[36mray::Worker\x1b[39m died:\n  no memory")) == (
        "RuntimeError: ray::Worker died: no memory"
    )
    assert failure_reason(ValueError("")) == "ValueError:"


@pytest.mark.parametrize(
    ("error", "outside"),
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
def test_what_lies_outside_a_trial_is_not_its_fault(error, outside):
    assert is_environment_failure(error) is outside
