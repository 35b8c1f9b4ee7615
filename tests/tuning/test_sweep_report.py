"""What a person sees of a sweep: lines for beginnings and ends, and a table that is drawn anew."""

import io

import pytest

from kasthuri_ray.progress import Reporter
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tuning.leaderboard import FAILED, FINISHED, STOPPED, Leaderboard, TrialRecord
from kasthuri_ray.tuning.sweep_report import SweepReporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def board(tmp_path) -> Leaderboard:
    values = {"network": "UNet_2D", "network.learning_rate": 0.002, "network.loss": "focal"}
    found = Leaderboard(open_storage(str(tmp_path)), "val.average_precision")
    found.trials = [
        TrialRecord(0, "UNet_2D", values, FINISHED, "trained to its end, 9 epochs", 0.71, 8, 9, wall_seconds=65.0),
        TrialRecord(1, "UNet_2D", values, STOPPED, "asha stopped it, epoch 2", 0.4, 2, 2, wall_seconds=20.0),
        TrialRecord(2, "UNet_2D", values, FAILED, "out of memory"),
        TrialRecord(3, "UNet_2D", values, score=0.6, best_epoch=3, epochs=3),
        TrialRecord(4, "UNet_2D", values),
    ]
    return found


STEP = {
    "trial": "0003",
    "epoch": 4,
    "epochs": 9,
    "step": 2,
    "steps": 8,
    "tiles_per_second": 7.25,
    "seconds_left": 300.0,
}


def test_beginnings_and_ends_are_lines(board):
    out = io.StringIO()
    view = SweepReporter(Reporter(out), board, 6, lambda: None)
    view.begin(board.trials[4])
    view.begin(board.trials[3])
    for trial in board.trials[:3]:
        view.end(trial)
    assert out.getvalue().splitlines() == [
        "trial 0004: UNet_2D, learning_rate 0.002, loss focal",
        "trial 0003 goes on after epoch 3: UNet_2D, learning_rate 0.002, loss focal",
        "trial 0000 finished: average precision 0.710 at epoch 8 of 9, 65 s, place 1 of 3",
        "trial 0001 stopped: average precision 0.400 at epoch 2 of 2, 20 s, place 2 of 3 (asha stopped it, epoch 2)",
        "trial 0002 failed: out of memory",
    ]


def test_the_table_has_the_whole_the_trials_that_run_and_the_best(board):
    view = SweepReporter(Reporter(io.StringIO()), board, 6, lambda: 7200.0)
    for trial in board.trials[3:]:
        view.begin(trial)
    view.note(STEP)
    assert view.table() == [
        "3 of 6 trials done, 2 training  1 failed  best average precision 0.710 (0000 UNet_2D)  2 h 00 min left",
        "  0003 UNet_2D  epoch 4/9  step 2/8  average precision 0.600  7.2 tiles/s  5 min left",
        "  0004 UNet_2D  starts",
        "  1. average precision 0.710  UNet_2D, learning_rate 0.002, loss focal",
        "  2. average precision 0.600  UNet_2D, learning_rate 0.002, loss focal",
        "  3. average precision 0.400  UNet_2D, learning_rate 0.002, loss focal",
    ]


def test_what_all_trials_say_is_told_once(board):
    out = io.StringIO()
    view = SweepReporter(Reporter(out), board, 6, lambda: None)
    for trial in ("0003", "0004"):
        view.note({"line": "no C++ compiler here", "trial": trial})
    assert out.getvalue() == "trial 0003: no C++ compiler here\n"


def test_a_table_is_wiped_off_before_it_is_drawn_anew_or_a_line_is_told():
    out = Terminal()
    reporter = Reporter(out)
    reporter.table(["one", "two"])
    reporter.table(["three"])
    reporter.line("a line")
    reporter.end()
    assert out.getvalue() == "one\ntwo\n\033[2A\r\033[Jthree\n\033[1A\r\033[Ja line\n"


def test_without_a_terminal_the_first_line_of_a_table_is_told_now_and_then():
    out = io.StringIO()
    reporter = Reporter(out, plain_period_s=0.0)
    reporter.table(["one", "two"])
    assert out.getvalue() == "one\n"
    quiet = Reporter(io.StringIO())
    quiet.table(["one", "two"])
    assert quiet.stream.getvalue() == ""
