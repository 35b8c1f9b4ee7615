"""What who watches a run is shown."""

import io
import time

import pytest

from kasthuri_ray.progress import PLAIN_PERIOD_S, Reporter, format_duration
from kasthuri_ray.training.ray_trainer import report_message

STEP = {
    "epoch": 1, "epochs": 30, "step": 5, "steps": 28, "loss": 0.61254, "tiles_per_second": 7.86, "seconds_left": 130.0,
    "wait_share": 0.0123,
}  # fmt: skip
STEP_LINE = "epoch 1/30  step 5/28  7.9 tiles/s  loss 0.6125  2 min left  waiting for data 1.2%"
EPOCH = {
    "epoch_done": {
        "epoch": 1, "train.loss": 0.5, "val.loss": 0.25, "val.foreground_f1": 0.5, "val.average_precision": 0.4,
        "tiles_per_second": 7.0, "seconds": 32.2,
    },
    "background": True,
}  # fmt: skip
EPOCH_LINE = "epoch 1  loss 0.5000  val loss 0.2500  F1 0.500  average precision 0.400  7.0 tiles/s  32 s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_live_line():
    stream = Terminal()
    reporter = Reporter(stream)
    report_message(reporter, STEP)
    report_message(reporter, STEP)
    assert stream.getvalue() == f"\r\033[K{STEP_LINE[:79]}" * 2
    report_message(reporter, EPOCH)
    told = stream.getvalue().split("\n")
    assert told[1:] == [EPOCH_LINE, "  the network calls background everywhere so far", ""]
    reporter.end()
    assert stream.getvalue().count("\n") == 3


def test_elsewhere_lines_are_plain_and_seldom(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    reporter = Reporter(stream)
    for _ in range(10):
        report_message(reporter, STEP)
    assert stream.getvalue() == ""
    now[0] += PLAIN_PERIOD_S
    report_message(reporter, STEP)
    report_message(reporter, STEP)
    report_message(reporter, {"line": "no C++ compiler here"})
    assert stream.getvalue().splitlines() == [STEP_LINE, "no C++ compiler here"]
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5399, "1 h 30 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_are_said_as_a_person_would(seconds, words):
    assert format_duration(seconds) == words
