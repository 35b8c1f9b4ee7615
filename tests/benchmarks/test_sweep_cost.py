"""The benchmark of sweeps runs the same trials with and without early stopping, and compares the figures with goals."""

from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import sweep_cost


def make_leaderboard(scores: list[float | None], epochs: list[int], seconds: float) -> dict:
    rows = [
        {"id": f"{number:04d}", "score": score, "epochs": num_epochs, "wall_seconds": 10.0 + number}
        for number, (score, num_epochs) in enumerate(zip(scores, epochs, strict=True))
    ]
    return {"trials": rows, "seconds": seconds}


def test_figures_are_compared_with_the_goals_of_tuning() -> None:
    results = sweep_cost.SweepResults(
        full=make_leaderboard([0.5, 0.8, 0.6, None], [9, 9, 9, 0], 100.0),
        asha=make_leaderboard([0.5, 0.795, 0.4, None], [9, 3, 1, 0], 60.0),
        fits={"0000": 7.0, "0001": 8.0, "0002": 1.0},
    )
    lines = {line.name.strip(): line for line in sweep_cost.sweep_lines(results)}
    assert {name: line.ok for name, line in lines.items() if line.goal} == {
        "best above the median": True,
        "below the best of all": True,
        "share of their epochs": True,
        "a trial, more than the same run": True,
    }
    assert lines["share of their epochs"].figure == pytest.approx(13 / 27)
    assert lines["a trial, more than the same run"].figure == pytest.approx(3.0)


def test_both_sweeps_have_the_same_settings_except_for_name_and_scheduler(tmp_path: Path) -> None:
    full, asha = (
        sweep_cost.sweep_flags("/d/p.zarr", sweep_cost.QUICK, str(tmp_path), name) for name in ("none", "asha")
    )
    assert full["tune"].pop("scheduler") == full["train"].pop("name") == "none"
    assert asha["tune"].pop("scheduler") == asha["train"].pop("name") == "asha"
    assert full == asha
