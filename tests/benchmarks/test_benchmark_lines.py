"""Figures of a benchmark are compared with goals, and with those of an earlier one."""

import json
from pathlib import Path

import pytest

from kasthuri_ray.benchmarks.benchmark_lines import (
    BenchmarkLine,
    benchmark_record,
    compare_lines,
    lines_table,
    read_benchmark,
    report_comparison,
    report_lines,
)
from kasthuri_ray.errors import InputError, WorkFailed
from kasthuri_ray.progress import Reporter

LINES = [
    BenchmarkLine("fast", 12.3456, "tiles/s", note="as seen"),
    BenchmarkLine("fast enough", 0.951, at_least=0.95),
    BenchmarkLine("too slow", 0.949, at_least=0.95),
    BenchmarkLine("not the same", 1.2, at_least=0.9, at_most=1.1),
    BenchmarkLine("unknown", None, at_most=2.0),
]


def test_a_goal_is_reached_or_missed_or_there_is_none() -> None:
    assert [line.ok for line in LINES] == [None, True, False, False, None]


def test_the_table_has_columns_for_figure_goal_and_status() -> None:
    heading, _, *rows = lines_table(LINES).splitlines()
    assert rows[0].split() == ["fast", "12.35", "tiles/s", "as", "seen"]
    assert rows[1].endswith("at least 0.95                 ok")
    assert rows[3].endswith("at least 0.9 and at most 1.1  missed")
    assert "-" in rows[4]
    assert heading.index("goal") == rows[1].index("at least")


def test_the_json_file_holds_every_line_and_whether_it_reaches_its_goal(tmp_path: Path, capsys) -> None:
    out = tmp_path / "benchmark_x.json"
    report_lines("x", LINES, {"rates": [1.0]}, str(out), Reporter())
    record = json.loads(out.read_text())
    assert record["benchmark"] == "x"
    assert record["rates"] == [1.0]
    assert [line["ok"] for line in record["lines"]] == [None, True, False, False, None]
    assert record["machine"]["cpus"] >= 1
    printed = capsys.readouterr().out
    assert "2 missed: too slow; not the same" in printed
    assert printed.rstrip().endswith(str(out))


def test_the_report_says_that_every_goal_is_reached(tmp_path: Path, capsys) -> None:
    report_lines("x", LINES[:2], {}, str(tmp_path / "x.json"), Reporter())
    assert "every goal is reached" in capsys.readouterr().out
    assert benchmark_record("x", [], {})["lines"] == []


def test_speeds_are_compared_with_those_of_an_earlier_benchmark(tmp_path: Path, capsys) -> None:
    def lines(first: float, second: float) -> list[BenchmarkLine]:
        one, other = (BenchmarkLine("  predict", figure, "Mvoxels/s") for figure in (first, second))
        return [BenchmarkLine("UNet_2D", 1.0, "s"), one, BenchmarkLine("new", 5.0, "tiles/s"), other]

    before = tmp_path / "before.json"
    before.write_text(json.dumps(benchmark_record("segment", [*lines(2.0, 4.0)[:2], lines(2.0, 4.0)[3]], {})))
    assert [line.figure for line in compare_lines(lines(1.0, 8.0), read_benchmark(str(before)))] == [0.5, 2.0]
    report_comparison(lines(1.95, 4.0), str(before), Reporter())
    assert "0.975" in capsys.readouterr().out
    with pytest.raises(WorkFailed, match=r"below 0\.95 of .*before\.json: predict$"):
        report_comparison(lines(1.8, 4.0), str(before), Reporter())


def test_without_speeds_durations_and_figures_with_one_goal_are_compared() -> None:
    def lines(seconds: float, score: float, share: float) -> list[BenchmarkLine]:
        return [
            BenchmarkLine("a trial", seconds, "s"),
            BenchmarkLine("F1", score, at_least=0.5),
            BenchmarkLine("share", share, at_most=0.5),
            BenchmarkLine("ratio", 1.0, at_least=0.9, at_most=1.1),
            BenchmarkLine("median", 0.4),
            BenchmarkLine("blocks made again", 0.0, at_most=0.0),
        ]

    before = benchmark_record("tune", lines(4.0, 0.8, 0.3), {})
    ratios = {line.name: line.figure for line in compare_lines(lines(5.0, 0.6, 0.2), before)}
    assert ratios == pytest.approx({"a trial": 0.8, "F1": 0.75, "share": 1.5})


def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1]")
    for name in ("other.json", "absent.json"):
        with pytest.raises(InputError, match=rf"--compare {tmp_path}/{name} is not the JSON file of a benchmark"):
            read_benchmark(str(tmp_path / name))
