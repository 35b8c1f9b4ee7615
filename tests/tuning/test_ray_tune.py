"""Ray Tune's schedulers in a sweep: which trials they stop, and that they know the trials of earlier jobs."""

import pytest

from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tuning.leaderboard import Leaderboard
from kasthuri_ray.tuning.ray_tune import _EarlierTrial, grace_epochs, make_scheduler
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, TrialRecord

AP = "val.average_precision"


def earlier_trials(path, *curves: list[float], state: str = FINISHED) -> Leaderboard:
    """Return a leaderboard of trials with these scores after each epoch, and write their histories."""
    leaderboard = Leaderboard(open_storage(str(path)), AP)
    for number, curve in enumerate(curves):
        leaderboard.trials.append(TrialRecord(number, "UNet_2D", {}, state, score=max(curve), epochs=len(curve)))
        columns = ("train.loss", "val.loss", "val.foreground_f1", "learning_rate", "seconds", "tiles_per_second")
        rows = [{"epoch": n, AP: score, **dict.fromkeys(columns, 1.0)} for n, score in enumerate(curve, 1)]
        leaderboard.folder(leaderboard.trials[-1]).write_history(rows)
    return leaderboard


def epochs_run(scheduler, name: str, scores: list[float]) -> int:
    """Return after how many epochs a trial with these scores is stopped; the number of scores if it is not."""
    trial = _EarlierTrial(name)
    scheduler.on_trial_add(None, trial)
    for epoch, score in enumerate(scores, 1):
        if scheduler.on_trial_result(None, trial, {"epoch": epoch, "score": score}) == "STOP":
            return epoch
    scheduler.on_trial_complete(None, trial, {"epoch": len(scores), "score": scores[-1]})
    return len(scores)


@pytest.mark.parametrize(
    ("grace", "epochs", "expected"), [(None, 30, 3), (None, 4, 1), (None, 1, 1), (5, 30, 5), (9, 4, 4)]
)
def test_the_default_grace_is_a_ninth_of_the_epochs(grace, epochs, expected):
    assert grace_epochs(TuneSettings(grace=grace), epochs) == expected


GOOD, POOR = [0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9], [0.1] * 9


@pytest.mark.parametrize(("name", "stopped_after"), [("asha", 1), ("median", 1), ("none", 9)])
def test_a_poor_trial_is_stopped_after_its_grace_and_a_good_one_never(tmp_path, name, stopped_after):
    leaderboard = earlier_trials(tmp_path)
    scheduler = make_scheduler(TuneSettings(scheduler=name), 9, leaderboard)
    for number in range(3):
        assert epochs_run(scheduler, f"good {number}", [score + number / 100 for score in GOOD]) == 9
    assert epochs_run(scheduler, "poor", POOR) == stopped_after
    assert epochs_run(scheduler, "best", [score + 0.1 for score in GOOD]) == 9


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_resumed_sweep_stops_the_trials_that_the_first_job_would_have_stopped(tmp_path, name):
    leaderboard = earlier_trials(tmp_path, GOOD, GOOD, GOOD)
    assert epochs_run(make_scheduler(TuneSettings(scheduler=name, grace=2), 9, leaderboard), "poor", POOR) == 2
    no_trials = earlier_trials(tmp_path / "none")
    assert epochs_run(make_scheduler(TuneSettings(scheduler=name), 9, no_trials), "poor", POOR) == 9


def test_failed_trials_do_not_count_in_the_comparison(tmp_path):
    leaderboard = earlier_trials(tmp_path, GOOD, GOOD, GOOD, state=FAILED)
    assert epochs_run(make_scheduler(TuneSettings(scheduler="asha"), 9, leaderboard), "poor", POOR) == 9


def test_with_a_loss_as_metric_the_lower_trial_continues(tmp_path):
    leaderboard = Leaderboard(open_storage(str(tmp_path)), "val.loss")
    scheduler = make_scheduler(TuneSettings(scheduler="asha"), 9, leaderboard)
    for number in range(3):
        epochs_run(scheduler, f"low {number}", POOR)
    assert epochs_run(scheduler, "high", GOOD) == 1


def test_a_sweep_with_a_poor_trial_that_was_not_stopped_can_be_resumed(tmp_path):
    """With concurrent trials, the others may have had fewer epochs when the scheduler compared it."""
    leaderboard = earlier_trials(tmp_path, GOOD, GOOD, GOOD, POOR)
    for name in ("median", "asha"):
        scheduler = make_scheduler(TuneSettings(scheduler=name), 9, leaderboard)
        assert epochs_run(scheduler, "best", [score + 0.1 for score in GOOD]) == 9
