"""What a training run says of its steps and epochs."""

from __future__ import annotations

from typing import Any

from kasthuri_ray.progress import Reporter, duration


def show(reporter: Reporter, note: dict[str, Any]) -> None:
    """A worker's note: a line, a step, or an epoch that is done."""
    if "line" in note:
        reporter.line(note["line"])
    elif "epoch_done" in note:
        reporter.line(epoch_line(note["epoch_done"]))
        if note["background"]:
            reporter.line("  the network calls background everywhere so far")
    else:
        reporter.live(step_line(note))


def step_line(note: dict[str, Any]) -> str:
    """How far an epoch is."""
    return (
        f"epoch {note['epoch']}/{note['epochs']}  step {note['step']}/{note['steps']}  "
        f"{note['tiles_per_second']:.1f} tiles/s  loss {note['loss']:.4f}  "
        f"{duration(note['seconds_left'])} left  waiting for data {note['wait_share']:.1%}"
    )


def epoch_line(row: dict[str, Any]) -> str:
    """What an epoch has come to."""
    return (
        f"epoch {row['epoch']}  loss {row['train.loss']:.4f}  val loss {row['val.loss']:.4f}  "
        f"F1 {row['val.foreground_f1']:.3f}  average precision {row['val.average_precision']:.3f}  "
        f"{row['tiles_per_second']:.1f} tiles/s  {duration(row['seconds'])}"
    )
