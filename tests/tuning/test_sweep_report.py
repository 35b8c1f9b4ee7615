"""What a user sees of a running sweep: lines when trials start and end, and a live table."""

import io
import json
from types import SimpleNamespace

import pytest

from kasthuri_ray.progress import Reporter
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.training_messages import EpochMessage, StepMessage, TextMessage
from kasthuri_ray.tuning.leaderboard import Leaderboard
from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.sweep_report import SweepReporter, describe_winner, is_at_chance
from kasthuri_ray.tuning.trial_messages import TrialMessage
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, STOPPED, TrialRecord


@pytest.fixture
def leaderboard(tmp_path) -> Leaderboard:
    values = {"network": "UNet_2D", "network.learning_rate": 0.002, "network.loss": "focal"}
    leaderboard = Leaderboard(open_storage(str(tmp_path)), "val.average_precision")
    leaderboard.trials = [
        TrialRecord(
            0,
            "UNet_2D",
            values,
            FINISHED,
            "training finished after 9 epochs",
            0.71,
            8,
            9,
            seconds=58.0,
            wall_seconds=65.0,
        ),
        TrialRecord(1, "UNet_2D", values, STOPPED, "stopped by asha", 0.4, 2, 2, seconds=13.0, wall_seconds=20.0),
        TrialRecord(2, "UNet_2D", values, FAILED, "out of memory"),
        TrialRecord(3, "UNet_2D", values, score=0.6, best_epoch=3, epochs=3),
        TrialRecord(4, "UNet_2D", values),
    ]
    return leaderboard


STEP = StepMessage(
    epoch=4, num_epochs=9, step=2, num_steps=8, loss=0.5, tiles_per_second=7.25, seconds_left=300.0, wait_share=0.0
)


def test_each_start_and_end_of_a_trial_is_a_line(leaderboard):
    out = io.StringIO()
    display = SweepReporter(Reporter(out), leaderboard, 6, lambda: None)
    display.show_start(leaderboard.trials[4])
    display.show_start(leaderboard.trials[3])
    for trial in leaderboard.trials[:3]:
        display.show_end(trial)
    assert out.getvalue().splitlines() == [
        "trial 0004: UNet_2D, learning_rate 0.002, loss focal",
        "trial 0003 resumes after epoch 3: UNet_2D, learning_rate 0.002, loss focal",
        "trial 0000 finished: average precision 0.710 at epoch 8 of 9, 65 s (58 s in epochs), rank 1 of 3",
        "trial 0001 stopped: average precision 0.400 at epoch 2 of 2, 20 s (13 s in epochs), rank 2 of 3 "
        "(stopped by asha)",
        "trial 0002 failed: out of memory",
    ]


def test_the_table_shows_the_sweep_the_running_trials_and_the_best_ones(leaderboard):
    display = SweepReporter(Reporter(io.StringIO()), leaderboard, 6, lambda: 7200.0)
    for trial in leaderboard.trials[3:]:
        display.show_start(trial)
    display.receive(TrialMessage("0003", STEP))
    assert display.table() == [
        "3 of 6 trials done, 2 training  1 failed  best average precision 0.710 (0000 UNet_2D)  2 h 00 min left",
        "  trial 0003 (4 of 6), epoch 4 of 9  step 2/8  UNet_2D  average precision 0.600  7.2 tiles/s  5 min left",
        "  trial 0004 (5 of 6), starts  UNet_2D",
        "  1. average precision 0.710  UNet_2D, learning_rate 0.002, loss focal",
        "  2. average precision 0.600  UNet_2D, learning_rate 0.002, loss focal",
        "  3. average precision 0.400  UNet_2D, learning_rate 0.002, loss focal",
    ]


def test_the_same_message_of_several_trials_is_shown_once(leaderboard):
    out = io.StringIO()
    display = SweepReporter(Reporter(out), leaderboard, 6, lambda: None)
    for trial in ("0003", "0004"):
        display.receive(TrialMessage(trial, TextMessage("no C++ compiler here")))
    assert out.getvalue() == "trial 0003: no C++ compiler here\n"


def test_without_a_terminal_each_epoch_is_a_line_and_progress_shows_the_trial_that_trains(leaderboard):
    out = io.StringIO()
    display = SweepReporter(Reporter(out, plain_period_s=0), leaderboard, 6, lambda: None)
    display.show_start(leaderboard.trials[3])
    display.receive(TrialMessage("0003", STEP))
    display.draw_table()
    row = {"epoch": 4, "val.average_precision": 0.61}
    display.receive(TrialMessage("0003", EpochMessage(row, only_background=False)))
    assert out.getvalue().splitlines()[1:] == [
        "trial 0003 (4 of 6), epoch 4 of 9  3 of 6 trials done, 1 training  1 failed  "
        "best average precision 0.710 (0000 UNet_2D)",
        "trial 0003 (4 of 6), epoch 4 of 9: average precision 0.610",
    ]


@pytest.mark.parametrize("skilled", [False, True])
def test_at_chance_the_last_lines_warn_and_announce_no_winner(leaderboard, skilled):
    warnings = [] if skilled else ["The average precision may be chance."]
    for trial in leaderboard.trials[:2]:
        metrics = {"better_than_chance": skilled, "warnings": warnings}
        leaderboard.folder(trial).storage.write_bytes("metrics.json", json.dumps(metrics).encode())
    plan = SimpleNamespace(
        path="/my sweeps/one",
        storage=SimpleNamespace(is_local=True),
        settings=SimpleNamespace(train=SimpleNamespace(boss="/my keys/boss.json", allow_empty=False)),
        job_command=lambda job: f"/env/python /code/{job}.py",
        space={"network.loss": SearchDomain("choice", ("focal",))},
    )
    lines = describe_winner(plan, leaderboard, leaderboard.trials[0])
    assert is_at_chance(leaderboard) == (not skilled)
    begin = ["the best of 5 trials is 0000"] if skilled else [
        "warning: No trial is better than chance.", "warning: The average precision may be chance.",
        "trial 0000 ranks first of 5 trials",
    ]  # fmt: skip
    assert all(line.startswith(text) for line, text in zip(lines, begin, strict=False))
    assert lines[len(begin) :] == [
        "to train it again: /env/python /code/train.py --config '/my sweeps/one/best.json' --storage '/my sweeps' "
        "--boss '/my keys/boss.json'",
        "to use its weights: --weights '/my sweeps/one/best'",
        "varied, with the effect on the average precision: loss (too few trials to tell)",
    ]
