"""Where the time of a segmentation goes."""

from typing import Any

import pytest

from kasthuri_ray.benchmarks.job_times import spent_seconds, summarize_times


def make_row(what: str, block: int, start: float, stop: float, tiles: list[float] | None = None) -> dict[str, Any]:
    return {
        "what": what,
        "block": [block, 0, 0],
        "start": start,
        "stop": stop,
        "tiles": [[time, 100] for time in tiles or []],
    }


# An actor that compiles for 10 s. Its tiles take 1 s, and it waits for 0.5 s between its two blocks.
FIRST_ACTOR = [
    make_row("block", 0, 100.0, 116.0),
    make_row("read", 0, 100.0, 101.0),
    make_row("compute", 0, 101.0, 115.0, [112.0, 113.0, 114.0]),
    make_row("read", 1, 102.0, 103.0),
    make_row("compute", 1, 115.5, 117.5, [116.5, 117.5]),
    make_row("block", 1, 102.0, 118.5),
]
# An actor that starts later and is done earlier.
SECOND_ACTOR = [
    make_row("compute", 2, 103.0, 116.0, [114.0, 115.0, 116.0]),
    make_row("block", 2, 102.5, 116.5),
    make_row("read", 2, 102.5, 103.0),
]


def test_the_times_of_an_actor_add_up_to_a_rate_without_compiling() -> None:
    summary = summarize_times([FIRST_ACTOR])
    assert summary["voxels"] == 500
    assert summary["compile_seconds"] == pytest.approx(10.0)
    assert summary["working_seconds"] == pytest.approx(18.5 - 10.0)
    assert summary["rate"] == pytest.approx(500 / 8.5)
    assert summary["read_seconds"] == pytest.approx([1.0, 1.0])
    assert summary["write_seconds"] == pytest.approx([1.0, 1.0])
    assert summary["tile_seconds"] == pytest.approx([1.0, 1.0, 1.0])


def test_what_an_actor_spent_its_time_on_adds_up_to_its_working_time() -> None:
    spent = spent_seconds(FIRST_ACTOR, 10.0)
    assert spent == pytest.approx({"network": 14.0 + 2.0 - 10.0, "reading": 1.0, "writing": 1.0, "between": 0.5})
    assert sum(spent.values()) == pytest.approx(summarize_times([FIRST_ACTOR])["working_seconds"])


def test_the_network_waits_for_a_read_that_ends_after_the_block_before() -> None:
    rows = [
        make_row("block", 0, 0.0, 3.0),
        make_row("read", 0, 0.0, 0.5),
        make_row("compute", 0, 0.5, 2.0, [1.0, 2.0]),
        make_row("block", 1, 0.5, 6.0),
        make_row("read", 1, 0.5, 3.5),
        make_row("compute", 1, 3.75, 5.0, [4.0, 5.0]),
    ]
    spent = spent_seconds(rows, 0.0)
    assert spent == pytest.approx({"network": 2.75, "reading": 0.5 + 1.5, "writing": 1.0, "between": 0.25})


def test_the_steady_rate_counts_from_the_later_first_tile_to_the_earlier_last_tile() -> None:
    summary = summarize_times([FIRST_ACTOR, SECOND_ACTOR])
    # After 114 and up to 116: two tiles of the second actor, none of the first.
    assert summary["steady_rate"] == pytest.approx(200 / 2)
    assert (summary["voxels"], summary["actors"]) == (800, 2)
    assert summarize_times([FIRST_ACTOR])["steady_rate"] == pytest.approx(400 / 5.5)
