"""The benchmark of tiny jobs times whole commands beside the floor, and compares their medians with goals."""

import sys
from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import startup
from kasthuri_ray.benchmarks.harness import PartFailed


def test_medians_are_compared_with_the_goals_above_the_floor() -> None:
    times = startup.StartupTimes(
        seconds={
            "floor": [5.0, 6.0, 50.0],
            "train": [20.0, 21.5, 22.0],
            "segment": [9.0, 9.5, 90.0],
            "evaluate": [10.0, 10.0, 10.0],
            "dry run": [10.0, 10.5, 11.0],
        },
        sweep_seconds=60.0,
        trials=[{"wall_seconds": wall, "seconds": 2.0} for wall in (5.0, 6.5, 30.0)],
    )
    lines = {line.name.strip(): line for line in startup.startup_lines(times)}
    assert {name: line.ok for name, line in lines.items() if line.goal} == {
        "segment, above the floor": True,
        "evaluate, above the floor": True,
        "dry run, above the floor": False,
        "train, above the floor": False,
        "a trial, beside its training": True,
    }
    assert lines["1 floor"].figure == 6.0
    assert lines["a trial, beside its training"].figure == pytest.approx(4.5)


def test_each_round_times_every_command_in_turn(monkeypatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def time_command(command: list[str], folder: str) -> float:
        commands.append(command)
        return float(len(commands))

    monkeypatch.setattr(startup, "time_command", time_command)
    times = startup.StartupTimes()
    for number in range(2):
        startup._time_round(str(tmp_path), number, times, print)
    assert times.seconds == {
        name: [n, n + 5.0] for n, name in enumerate(("floor", "train", "segment", "evaluate", "dry run"), 1)
    }
    for command in commands:
        assert command[0] == sys.executable
        assert command[1] == "-c" or Path(command[1]).exists()
    assert commands[4][-1] == "--dry-run"
    assert len({word for command in commands for word in command if word.startswith("--output=")}) == 4


def test_a_command_that_fails_ends_the_benchmark_with_its_output(tmp_path: Path) -> None:
    assert startup.time_command([sys.executable, "-c", "pass"], str(tmp_path)) > 0
    with pytest.raises(PartFailed, match=r"exited with code 3:\nno space"):
        startup.time_command([sys.executable, "-c", "print('no space'); raise SystemExit(3)"], str(tmp_path))
