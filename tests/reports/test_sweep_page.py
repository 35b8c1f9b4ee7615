"""The page of a sweep shows the winner, all trials and why some failed, in one file."""

import re

import numpy as np
import pytest

from kasthuri_ray.reports.sweep_figures import SettingAxis
from kasthuri_ray.reports.sweep_page import AT_CHANCE, SettingRow, SweepReport, sweep_page

NETWORKS, NORMALIZATIONS = ["UNet_2D", "UNet_2D_residual"], ["batch", "group"]
SPACE = [
    SettingAxis("network", "choice", NETWORKS),
    SettingAxis("network.learning_rate", "loguniform", [3e-4, 1e-2]),
    SettingAxis("network.normalization", "choice", NORMALIZATIONS),
    SettingAxis("network.n_blocks", "int", [3, 5]),
    SettingAxis("task.tile_size", "grid", [[64, 64], [128, 128]]),
]


def make_report(num_trials: int = 8, **fields) -> SweepReport:
    random = np.random.default_rng(0)
    trials, curves = [], {}
    for number in range(num_trials):
        id = f"{number:04d}"
        finished = number % 3 != 0
        curve = np.sort(random.uniform(0.2, 0.9 - number / 20, 9 if finished else 3)).tolist()
        curves[id] = curve
        values = {
            "network": NETWORKS[number % 2],
            "network.n_blocks": 3 + number % 3,
            "network.learning_rate": float(f"{random.uniform(3e-4, 1e-2):.3g}"),
            "network.normalization": NORMALIZATIONS[number % 2],
            "task.tile_size": [64, 64],
        }
        trials.append(
            {
                "id": id,
                "network": NETWORKS[number % 2],
                "values": values,
                "state": "finished" if finished else "stopped",
                "why": "" if finished else "asha stopped it",
                "score": curve[-1],
                "best_epoch": len(curve),
                "epochs": len(curve),
                "parameters": 123456,
                "tiles_per_second": float(random.uniform(3, 30)),
            }
        )
    trials.sort(key=lambda row: -row["score"])
    defaults = {
        "name": "sweep",
        "task_type": "synapse",
        "metric": "average precision",
        "higher": True,
        "trials": trials,
        "curves": curves,
        "space": SPACE,
        "seconds": 4000.0,
        "settings": {"task": {"name": "t"}, "sweep": {"x": 1}},
        "commands": [("Train it:", "python jobs/train.py --config best.json")],
    }
    return SweepReport(**{**defaults, **fields})


def add_failed_trial(report: SweepReport) -> None:
    failure = {"id": "0099", "state": "failed", "why": "tile <too> small\nmore", "score": None}
    report.trials.append({**report.trials[0], **failure, "epochs": 0, "tiles_per_second": None, "parameters": None})


def test_the_page_describes_the_winner_and_shows_its_scores_on_test(page_text) -> None:
    test = {
        "foreground_f1": 0.61,
        "threshold": 0.4,
        "average_precision": 0.66,
        "foreground_iou": 0.44,
        "recall": 0.7,
        "precision": 0.54,
    }
    rows = [SettingRow("network.learning_rate", "0.0003 to 0.01", "rank correlation +0.80", "more than chance, p 0.02")]
    importances = {"network.learning_rate": 0.7, "network": 0.3}
    report = make_report(metrics={"test": test, "warnings": []}, effects=rows, importances=importances)
    page = sweep_page(report)
    best, text = report.winner, page_text(page)
    rate, network, blocks = (best["values"][key] for key in ("network.learning_rate", "network", "network.n_blocks"))
    named = f"learning rate {rate}, network {network}, n blocks {blocks}"
    assert f"The best of 8 trials has {named} and 1 other setting: average precision {best['score']:.3f}." in text
    assert f"Trial {best['id']}: n blocks" in text
    assert "0.610" in page
    assert "0.440" in page
    assert "Importances" in page
    assert "learning rate 0.0003 to 0.01 rank correlation +0.80 more than chance, p 0.02" in text
    assert "python jobs/train.py --config best.json" in page
    assert "searched" in page


def test_no_line_break_divides_a_flag_in_a_warning() -> None:
    report = make_report()
    report.winner["values"]["network.normalization"] = "group"
    assert "changes a little with <code>--block</code> and <code>--tile</code>." in sweep_page(report)


def test_the_page_has_no_links() -> None:
    page = sweep_page(make_report(importances={"network": 1.0}))
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    assert [a or b for a, b in links if not (a or b).startswith(("data:", "#"))] == []
    assert "<script" not in page
    assert page.count("<svg") == 5


def test_the_leaderboard_has_every_trial_and_a_failed_one_has_its_reason() -> None:
    report = make_report()
    add_failed_trial(report)
    page = sweep_page(report)
    leaderboard = page[page.index("Leaderboard") :]
    assert all(f"<td>{row['id']}</td>" in leaderboard for row in report.trials)
    assert "<td>[64, 64]</td>" in leaderboard
    assert "<td>failed</td>" in leaderboard
    assert "Trial 0099 failed: tile &lt;too&gt; small</p>" in page
    assert "1 failed" in page


def test_a_much_faster_trial_with_nearly_the_best_score_is_named() -> None:
    report = make_report()
    best = report.winner
    other = next(row for row in report.trials if row["state"] == "finished" and row is not best)
    other.update(score=best["score"] - 0.005, tiles_per_second=2 * best["tiles_per_second"])
    assert f"consider trial {other['id']} too" in sweep_page(report)
    other.update(score=best["score"] - 0.05)
    assert "consider trial" not in sweep_page(report)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"state": "stopped", "why": "asha stopped it after epoch 2"}, "The winner was not trained to the end (asha"),
        (
            {"values": {"network.normalization": "group"}},
            "The winner uses group normalization, whose statistics depend on the tile",
        ),
    ],
)
def test_the_page_warns_of_a_winner_that_was_stopped_or_depends_on_the_tile(change, warning) -> None:
    report = make_report()
    best = report.winner
    best.update({**change, "values": best["values"] | change.get("values", {})})
    assert warning in sweep_page(report)


def test_sweeps_of_one_trial_and_of_none_have_pages() -> None:
    assert "is the only trial" in sweep_page(make_report(1))
    only_failed = make_report(1)
    only_failed.trials[0].update(state="failed", score=None, why="no memory")
    assert "The only trial did not end successfully." in sweep_page(only_failed)
    page = sweep_page(make_report(0))
    assert "None of the 0 trials ended successfully." in page
    assert "<svg" not in page


def test_at_chance_no_winner_is_announced(page_text) -> None:
    warning = "The average precision may be chance."
    text = page_text(sweep_page(make_report(metrics={"test": None, "warnings": [warning]}, at_chance=True)))
    assert text.count(AT_CHANCE) == 1  # the headline, which stands in the box
    assert warning in text
    for praise in ("winner", "The best of", "consider trial"):
        assert praise not in text


def test_the_headline_names_what_varied_and_not_the_network_that_all_trials_share(page_text) -> None:
    report = make_report(4)
    for row in report.trials:
        row["network"] = row["values"]["network"] = "UNet_2D"
        row["values"]["network.normalization"] = "batch"
    best = report.winner["values"]
    text = page_text(sweep_page(report))
    settings = f"n blocks {best['network.n_blocks']}, learning rate {best['network.learning_rate']}"
    assert f"The best of 4 trials has {settings}: average precision {report.winner['score']:.3f}." in text
    (only,) = make_report(1).trials
    assert f"{only['network']} is the only trial, with average precision" in page_text(sweep_page(make_report(1)))
