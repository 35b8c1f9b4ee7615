"""The schedulers of Ray Tune as a sweep uses them: what they stop, and that they know of earlier sittings."""

import pytest

from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tuning.leaderboard import FAILED, FINISHED, Leaderboard, TrialRecord
from kasthuri_ray.tuning.ray_tune import _EarlierTrial, grace_epochs, make_scheduler

AP = "val.average_precision"


def leave_trials(path, *curves: list[float], state: str = FINISHED) -> Leaderboard:
    board = Leaderboard(open_storage(str(path)), AP)
    for number, curve in enumerate(curves):
        board.trials.append(TrialRecord(number, "UNet_2D", {}, state, score=max(curve), epochs=len(curve)))
        columns = ("train.loss", "val.loss", "val.foreground_f1", "learning_rate", "seconds", "tiles_per_second")
        rows = [{"epoch": n, AP: score, **dict.fromkeys(columns, 1.0)} for n, score in enumerate(curve, 1)]
        board.folder(board.trials[-1]).write_history(rows)
    return board


def run(scheduler, name: str, scores: list[float]) -> int:
    """After how many epochs a trial with these scores is stopped; as many as there are if it is not."""
    trial = _EarlierTrial(name)
    scheduler.on_trial_add(None, trial)
    for epoch, score in enumerate(scores, 1):
        if scheduler.on_trial_result(None, trial, {"epoch": epoch, "score": score}) == "STOP":
            return epoch
    scheduler.on_trial_complete(None, trial, {"epoch": len(scores), "score": scores[-1]})
    return len(scores)


@pytest.mark.parametrize(
    ("given", "epochs", "grace"), [(None, 30, 3), (None, 4, 1), (None, 1, 1), (5, 30, 5), (9, 4, 4)]
)
def test_every_trial_has_its_grace(given, epochs, grace):
    assert grace_epochs(TuneSettings(grace=given), epochs) == grace


GOOD, POOR = [0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9], [0.1] * 9


@pytest.mark.parametrize(("name", "stopped"), [("asha", 1), ("median", 1), ("none", 9)])
def test_a_poor_trial_is_stopped_once_the_grace_is_over_and_a_good_one_never(tmp_path, name, stopped):
    board = leave_trials(tmp_path)
    scheduler = make_scheduler(TuneSettings(scheduler=name), 9, board)
    for number in range(3):
        assert run(scheduler, f"good {number}", [score + number / 100 for score in GOOD]) == 9
    assert run(scheduler, "poor", POOR) == stopped
    assert run(scheduler, "best", [score + 0.1 for score in GOOD]) == 9


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_new_sitting_stops_what_the_old_one_would_have_stopped(tmp_path, name):
    board = leave_trials(tmp_path, GOOD, GOOD, GOOD)
    assert run(make_scheduler(TuneSettings(scheduler=name, grace=2), 9, board), "poor", POOR) == 2
    assert run(make_scheduler(TuneSettings(scheduler=name), 9, leave_trials(tmp_path / "none")), "poor", POOR) == 9


def test_trials_that_failed_set_no_mark(tmp_path):
    board = leave_trials(tmp_path, GOOD, GOOD, GOOD, state=FAILED)
    assert run(make_scheduler(TuneSettings(scheduler="asha"), 9, board), "poor", POOR) == 9


def test_by_loss_the_lower_one_goes_on(tmp_path):
    board = Leaderboard(open_storage(str(tmp_path)), "val.loss")
    scheduler = make_scheduler(TuneSettings(scheduler="asha"), 9, board)
    for number in range(3):
        run(scheduler, f"low {number}", POOR)
    assert run(scheduler, "high", GOOD) == 1


def test_a_poor_trial_that_ran_to_its_end_all_the_same_keeps_no_sweep_from_going_on(tmp_path):
    """Where trials run at once, the others were not as far when it was judged."""
    board = leave_trials(tmp_path, GOOD, GOOD, GOOD, POOR)
    for name in ("median", "asha"):
        assert run(make_scheduler(TuneSettings(scheduler=name), 9, board), "best", [score + 0.1 for score in GOOD]) == 9
