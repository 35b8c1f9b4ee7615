"""The challenge's scoreboard: intervals, rows, tables and page from the results of runs."""

import csv
import io
from typing import Any

import pytest
from scipy import stats

from kasthuri_ray.benchmarks.challenge_plan import RECIPE
from kasthuri_ray.benchmarks.scoreboard import make_report, make_rows, scoreboard_csv, scoreboard_markdown
from kasthuri_ray.metrics.intervals import Estimate
from kasthuri_ray.reports.scoreboard_page import scoreboard_page


def result(contestant: str, seed: int | None, f1: float, task: str = "synapse", **figures: Any) -> dict[str, Any]:
    known = {"parameters": 1000, "voxel_f1": f1, "iou": f1 / 2, "average_precision": f1, "mvoxels_per_second": 2.5}
    known |= {"object_f1": 0.75, "tiles_per_second": None if seed is None else 4.0} | figures
    record = {"network": {"epochs": 4, "tiles_per_epoch": 224}}
    return {"task": task, "contestant": contestant, "seed": seed, "figures": known, "record": record}


RESULTS = [
    *(result("UNet_2D", seed, f1) for seed, f1 in enumerate((0.5, 0.56, 0.65))),
    *(result("mine", seed, f1) for seed, f1 in enumerate((0.7, 0.72))),
    *(result(RECIPE, seed, 0.1) for seed in range(3)),
    result("published", None, 0.3),
    *(result("UNet_2D", seed, 0.9, "membrane", object_f1=None) for seed in range(3)),
]
BOARD = {"data": "vnc", "tasks": {"synapse": {"name": "synapse"}, "membrane": {"name": "membrane"}}}


@pytest.mark.parametrize("values", [(0.5, 0.56, 0.65), (0.1, 0.9, 0.3, 0.2, 0.25)])
def test_the_interval_of_a_mean_is_that_of_student(values) -> None:
    estimate = Estimate(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    assert estimate.interval == pytest.approx(expected)
    assert estimate.mean == pytest.approx(sum(values) / len(values))


def test_fewer_than_three_runs_have_no_interval() -> None:
    assert Estimate((0.5,)).interval is None
    assert Estimate((0.5, 0.6)).interval is None
    assert Estimate((0.5, 0.5, 0.5)).interval == (0.5, 0.5)


def test_the_recipe_is_the_first_row_and_the_best_network_follows() -> None:
    rows = make_rows([each for each in RESULTS if each["task"] == "synapse"])
    assert [(row.name, row.num_runs) for row in rows] == [(RECIPE, 3), ("mine", 2), ("UNet_2D", 3), ("published", 1)]
    assert rows[2].estimates["voxel_f1"].mean == pytest.approx(0.57)
    assert rows[3].seeds == ()
    assert "tiles_per_second" not in rows[3].estimates  # it was not trained here


def test_the_csv_file_holds_each_mean_with_the_ends_of_its_interval() -> None:
    rows = list(csv.DictReader(io.StringIO(scoreboard_csv(make_report("board", BOARD, RESULTS)))))
    assert [(row["task"], row["network"], row["runs"]) for row in rows[:2]] == [
        ("synapse", RECIPE, "3"),
        ("synapse", "mine", "2"),
    ]
    unet = next(row for row in rows if row["network"] == "UNet_2D" and row["task"] == "synapse")
    low, high = stats.t.interval(0.95, 2, loc=0.57, scale=stats.sem((0.5, 0.56, 0.65)))
    assert [float(unet[key]) for key in ("voxel_f1", "voxel_f1_low", "voxel_f1_high")] == pytest.approx(
        [0.57, low, high]
    )
    assert rows[1]["voxel_f1_low"] == rows[1]["voxel_f1_high"] == ""
    assert rows[-1]["object_f1"] == ""
    assert float(unet["parameters"]) == 1000


def test_the_markdown_table_and_the_page_show_the_same_figures() -> None:
    report = make_report("board", BOARD, RESULTS)
    table, page = scoreboard_markdown(report), scoreboard_page(report)
    low, high = stats.t.interval(0.95, 2, loc=0.57, scale=stats.sem((0.5, 0.56, 0.65)))
    interval = f"{low:.3f} to {high:.3f}"
    lines = table.splitlines()
    assert lines[4].startswith("| the challenge's recipe | 3 | 0.100 |")
    assert f"| UNet_2D | 3 | 0.570 ({interval}) |" in table
    assert f'<td>0.570<br><span class="soft">{interval}</span></td>' in page
    assert "<span>Synapse: mine leads with a voxel F1 of\n0.710.</span>" in page
    assert "published (weights as they are)" in page
    assert "for 4 epochs of\n224 tiles" in page
    membrane = page[page.index("<h2>Membrane</h2>") :]
    assert "object F1</th>" not in membrane


def test_weights_that_learnt_from_the_test_box_say_so_and_lead_nothing() -> None:
    best = {**result("cheat", None, 0.99), "learnt_share": 0.5}
    report = make_report("board", BOARD, [best, *RESULTS])
    assert [row.name for row in report.tasks[0].rows] == [RECIPE, "mine", "UNet_2D", "published", "cheat"]
    assert "cheat (weights as they are; learnt from 50% of the test box)" in scoreboard_markdown(report)
    assert "Synapse: mine leads" in scoreboard_page(report)
    rows = list(csv.DictReader(io.StringIO(scoreboard_csv(report))))
    assert {row["network"]: float(row["learnt_share"]) for row in rows}["cheat"] == 0.5


def test_a_board_without_results_has_a_page_that_says_so() -> None:
    assert "No run of the board has ended yet." in scoreboard_page(make_report("board", BOARD, []))
