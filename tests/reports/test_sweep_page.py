"""The page of a sweep: what it says of a search, and that it holds all it shows."""

import re

import numpy as np
import pytest

from kasthuri_ray.reports.sweep_figures import Axis
from kasthuri_ray.reports.sweep_page import SweepReport, sweep_page

SPACE = [
    Axis("network", "choice", ["UNet_2D", "UNet_2D_residual"]),
    Axis("network.learning_rate", "loguniform", [3e-4, 1e-2]),
    Axis("network.normalization", "choice", ["batch", "group"]),
    Axis("network.n_blocks", "int", [3, 5]),
    Axis("task.tile_size", "grid", [[64, 64], [128, 128]]),
]


def make_report(number: int = 8, **more) -> SweepReport:
    random = np.random.default_rng(0)
    trials, curves = [], {}
    for place in range(number):
        id = f"{place:04d}"
        curve = np.sort(random.uniform(0.2, 0.9 - place / 20, 9 if place % 3 else 3)).tolist()
        curves[id] = curve
        trials.append(
            {
                **{"id": id, "network": ["UNet_2D", "UNet_2D_residual"][place % 2]},
                "values": {
                    **{"network": ["UNet_2D", "UNet_2D_residual"][place % 2], "network.n_blocks": 3 + place % 3},
                    "network.learning_rate": float(f"{random.uniform(3e-4, 1e-2):.3g}"),
                    **{"network.normalization": ["batch", "group"][place % 2], "task.tile_size": [64, 64]},
                },
                **{"state": "finished" if place % 3 else "stopped", "why": "asha stopped it" * (not place % 3)},
                **{"score": curve[-1], "best_epoch": len(curve), "epochs": len(curve), "parameters": 123456},
                "tiles_per_second": float(random.uniform(3, 30)),
            }
        )
    trials.sort(key=lambda row: -row["score"])
    return SweepReport(
        **{"name": "sweep", "task_type": "synapse", "metric": "average precision", "higher": True, "seconds": 4000.0},
        **{"trials": trials, "curves": curves, "space": SPACE, "settings": {"task": {"name": "t"}, "sweep": {"x": 1}}},
        **{"commands": [("Train it:", "python jobs/train.py --config best.json")], **more},
    )


def failed(report: SweepReport) -> None:
    report.trials.append(
        {**report.trials[0], "id": "0099", "state": "failed", "why": "tile <too> small\nmore", "score": None}
        | {"epochs": 0, "tiles_per_second": None, "parameters": None}
    )


def test_the_winner_is_told_in_words_and_its_figures_are_those_of_test():
    test = {
        "foreground_f1": 0.61,
        "threshold": 0.4,
        "average_precision": 0.66,
        "iou": [0.9, 0.44],
        "balanced_accuracy": 0.7,
    }
    report = make_report(test=test, importances={"network.learning_rate": 0.7, "network": 0.3})
    page = sweep_page(report)
    best = report.winner
    assert f"<h1>{best['network']} is the best of 8 trials, at average precision {best['score']:.3f}.</h1>" in page
    assert f"Trial {best['id']}: " in page
    assert "0.610" in page
    assert "0.440" in page
    assert "Importances" in page
    assert "python jobs/train.py --config best.json" in page
    assert "searched" in page


def test_a_flag_in_a_note_stays_in_one_piece():
    report = make_report()
    report.winner["values"]["network.normalization"] = "group"
    assert "changes a little with <code>--block</code> and <code>--tile</code>." in sweep_page(report)


def test_the_page_needs_nothing_but_itself():
    page = sweep_page(make_report(importances={"network": 1.0}))
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    assert [a or b for a, b in links if not (a or b).startswith(("data:", "#"))] == []
    assert "<script" not in page
    assert page.count("<svg") == 5


def test_every_trial_is_in_the_leaderboard_and_what_failed_says_why():
    report = make_report()
    failed(report)
    page = sweep_page(report)
    board = page[page.index("Leaderboard") :]
    assert all(f"<td>{row['id']}</td>" in board for row in report.trials)
    assert "<td>[64, 64]</td>" in board
    assert "<td>failed</td>" in board
    assert "Failed: trial 0099. tile &lt;too&gt; small</p>" in page
    assert "1 failed" in page


def test_a_faster_trial_that_is_as_good_is_pointed_at():
    report = make_report()
    rows = [row for row in report.trials if row["state"] == "finished"]
    best, other = report.winner, next(row for row in rows if row is not report.winner)
    other.update(score=best["score"] - 0.005, tiles_per_second=2 * best["tiles_per_second"])
    assert f"look at trial {other['id']} too" in sweep_page(report)
    other.update(score=best["score"] - 0.05)
    assert "look at trial" not in sweep_page(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "stopped", "why": "asha stopped it after epoch 2"}, "The winner was not trained to its end (asha"),
        ({"values": {"network.normalization": "group"}}, "The winner normalizes by the tile (group norm)"),
    ],
)
def test_what_a_person_must_know_of_the_winner_is_said(change, words):
    report = make_report()
    best = report.winner
    best.update({**change, "values": best["values"] | change.get("values", {})})
    assert words in sweep_page(report)


def test_one_trial_and_none_at_all_have_pages_too():
    assert "is the only trial" in sweep_page(make_report(1))
    none = make_report(0)
    failed_only = make_report(1)
    failed_only.trials[0].update(state="failed", score=None, why="no memory")
    assert "None of the 1 trials came to an end." in sweep_page(failed_only)
    assert "<svg" not in sweep_page(none)
