"""A benchmark's figures, against their goals."""

import json
from pathlib import Path

from kasthuri_ray.benchmarks.harness import BenchmarkLine, benchmark_record, lines_table, report_lines

LINES = [
    BenchmarkLine("fast", 12.3456, "tiles/s", note="as seen"),
    BenchmarkLine("fast enough", 0.951, at_least=0.95),
    BenchmarkLine("too slow", 0.949, at_least=0.95),
    BenchmarkLine("alike", 1.2, at_least=0.9, at_most=1.1),
    BenchmarkLine("unknown", None, at_most=2.0),
]


def test_a_goal_is_reached_missed_or_not_there() -> None:
    assert [line.ok for line in LINES] == [None, True, False, False, None]


def test_the_table_says_figure_goal_and_verdict_in_columns() -> None:
    heading, _, *rows = lines_table(LINES).splitlines()
    assert rows[0].split() == ["fast", "12.35", "tiles/s", "as", "seen"]
    assert rows[1].endswith("at least 0.95                 ok")
    assert rows[3].endswith("at least 0.9 and at most 1.1  missed")
    assert "-" in rows[4]
    assert heading.index("goal") == rows[1].index("at least")


def test_the_json_holds_every_line_with_its_verdict(tmp_path: Path, capsys) -> None:
    out = tmp_path / "benchmark_x.json"
    report_lines("x", LINES, {"rates": [1.0]}, str(out))
    found = json.loads(out.read_text())
    assert found["benchmark"] == "x"
    assert found["rates"] == [1.0]
    assert [line["ok"] for line in found["lines"]] == [None, True, False, False, None]
    assert found["machine"]["cpus"] >= 1
    printed = capsys.readouterr().out
    assert "2 missed: too slow; alike" in printed
    assert printed.rstrip().endswith(str(out))


def test_no_miss_is_said_too(tmp_path: Path, capsys) -> None:
    report_lines("x", LINES[:2], {}, str(tmp_path / "x.json"))
    assert "every goal is reached" in capsys.readouterr().out
    assert benchmark_record("x", [], {})["lines"] == []
