"""The lines in which a person follows a run, from the messages of its workers."""

import io
import time
from dataclasses import replace

from kasthuri_ray.progress import PLAIN_PERIOD_S, Reporter
from kasthuri_ray.training.ray_trainer import show_message
from kasthuri_ray.training.training_messages import EpochMessage, StepMessage, TextMessage

STEP = StepMessage(
    epoch=1, num_epochs=30, step=5, num_steps=28, loss=0.61254, tiles_per_second=7.86, seconds_left=130.0,
    wait_share=0.0123,
)  # fmt: skip
STEP_LINE = "epoch 1/30  step 5/28  7.9 tiles/s  loss 0.6125  2 min left  waiting for data 1.2%"
EPOCH = EpochMessage(
    {
        "epoch": 1, "train.loss": 0.5, "val.loss": 0.25, "val.foreground_f1": 0.5, "val.average_precision": 0.4,
        "tiles_per_second": 7.0, "seconds": 32.2,
    },
    only_background=True,
)  # fmt: skip
EPOCH_LINE = "epoch 1  loss 0.5000  val loss 0.2500  F1 0.500  average precision 0.400  7.0 tiles/s  32 s"


def test_the_first_step_tells_nothing_of_the_time_that_is_left():
    assert replace(STEP, seconds_left=None).describe() == STEP_LINE.replace("2 min left  ", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_live_line_and_a_line_for_each_epoch():
    stream = Terminal()
    reporter = Reporter(stream)
    show_message(reporter, STEP)
    show_message(reporter, STEP)
    fitting, _, _ = STEP_LINE.rpartition("  waiting")  # in 80 columns
    assert stream.getvalue() == f"\r\033[K{fitting}" * 2
    show_message(reporter, EPOCH)
    lines = stream.getvalue().split("\n")
    assert lines[1] == EPOCH_LINE
    assert lines[2].startswith("  background is the most probable class of every voxel so far; the F1 is at")
    assert lines[3:] == [""]
    reporter.end()
    assert stream.getvalue().count("\n") == 3


def test_without_a_terminal_steps_are_rare_plain_lines(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    reporter = Reporter(stream)
    for _ in range(10):
        show_message(reporter, STEP)
    assert stream.getvalue() == ""
    now[0] += PLAIN_PERIOD_S
    show_message(reporter, STEP)
    show_message(reporter, STEP)
    show_message(reporter, TextMessage("this machine has no C++ compiler"))
    assert stream.getvalue().splitlines() == [STEP_LINE, "this machine has no C++ compiler"]
    assert "\r" not in stream.getvalue()
