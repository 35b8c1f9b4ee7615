"""The benchmark of growth: its arithmetic and its goals."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kasthuri_ray.benchmarks import scale_speed
from kasthuri_ray.benchmarks.harness import PartFailed, Usage
from kasthuri_ray.benchmarks.loopback_s3 import LoopbackS3, count_repeated, count_requests
from kasthuri_ray.benchmarks.scale_speed import (
    ACTOR_BYTES,
    ScaleResults,
    choose_actors,
    count_changed,
    driver_costs,
    record_times,
    scale_lines,
)
from kasthuri_ray.errors import WorkFailed

MB = 1e6


def test_fewer_actors_with_several_blocks_at_once_are_started_where_not_all_fit() -> None:
    assert choose_actors(200, 200 * ACTOR_BYTES) == (200, 4)
    assert choose_actors(200, 199 * ACTOR_BYTES) == (50, 4)
    assert choose_actors(200, 20 * ACTOR_BYTES) == (20, 4)
    assert choose_actors(4, 100 * ACTOR_BYTES) == (4, 4)


def make_sample(done: int, time: float, cpu: float, rss_mb: float) -> dict[str, float]:
    return {"done": done, "actors": 48, "time": time, "cpu": cpu, "rss": rss_mb * MB}


# The driver needs 2 s of CPU time before the first blocks, and more before the first of the resumed run.
KILLED = [
    make_sample(0, 0.0, 2.0, 400),
    make_sample(1000, 10.0, 3.0, 500),
    make_sample(3000, 14.0, 4.0, 510),
]
RESUMED = [
    make_sample(3100, 30.0, 9.0, 520),
    make_sample(4100, 40.0, 10.0, 590),
    make_sample(6100, 44.0, 12.0, 580),
]


def test_blocks_cost_the_driver_what_it_used_between_samples_with_new_blocks() -> None:
    costs = driver_costs([KILLED, RESUMED], few_blocks=1000)
    assert costs["ms_per_block"] == pytest.approx(1000 * (1.0 + 2.0) / 4000)
    assert costs["blocks_per_second"] == pytest.approx(4000 / 8.0)
    assert costs["growth_mb"] == pytest.approx(10.0 + 70.0)
    assert driver_costs([[]], 1000) == {"ms_per_block": None, "blocks_per_second": None, "growth_mb": None}


def test_records_that_were_written_again_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "out.zarr.ledger/s0"
    folder.mkdir(parents=True)
    for name in "abc":
        (folder / name).write_text("{}\n")
    before = record_times(str(tmp_path / "out.zarr"))
    assert count_changed(before, before | {"d": 5}) == 0
    assert count_changed(before, before | {"a": 5}) == 1
    assert count_changed(before, {"a": before["a"]}) == 2


def make_results() -> ScaleResults:
    state = {"blocks": 6000, "recorded": 6000, "strange": 0, "wrong": None, "repeated": 0}
    return ScaleResults(
        actors={"disk": 50, "s3": 50},
        slots={"disk": 4, "s3": 4},
        samples={"disk": [KILLED, RESUMED], "s3": [KILLED, RESUMED]},
        state={"disk": dict(state), "s3": state | {"wrong": 0}},
        finished_seconds={"disk": 40.0, "s3": 40.0},
        requests={"data": 6000, "other": 9000},
    )


def test_figures_are_compared_with_the_goals_of_growth() -> None:
    lines = scale_lines(make_results())
    assert [(line.name.strip(), line.ok) for line in lines if line.goal] == [
        ("missing, strange or wrong blocks", True),
        ("finished blocks that were made again", True),
        ("CPU time of the driver", True),
        ("memory of the driver, growth", True),
        ("to find that all is done", False),
        ("missing, strange or wrong blocks", True),
        ("finished blocks that were made again", True),
        ("memory of the driver, growth", True),
        ("requests beside the data", True),
    ]
    assert lines[-1].figure == pytest.approx(1.5)
    assert lines[0].note == "50 actors x 4 blocks at once, 48 were ready; killed at 3,000 and resumed"


def test_a_block_that_is_missing_or_was_made_again_misses_the_goal() -> None:
    results = make_results()
    results.state["disk"] |= {"recorded": 5999, "repeated": 1}
    assert [line.ok for line in scale_lines(results)[1:3]] == [False, False]


def test_without_moto_s3_is_not_measured() -> None:
    results = make_results()
    del results.state["s3"]
    assert (scale_lines(results)[-1].figure, scale_lines(results)[-1].ok) == (None, None)
    assert "moto" in scale_lines(results)[-1].note


def test_requests_of_voxels_are_counted_apart() -> None:
    requests = Counter(
        {
            ("PUT", "/b/out.zarr/s0/c/0"): 2,
            ("GET", "/b/out.zarr/s0/c/0"): 1,
            ("PUT", "/b/out.zarr.ledger/s0/0.json"): 2,
            ("PUT", "/b/out.zarr.ledger/s0/1.json"): 1,
        }
    )
    assert count_requests(requests, "/b/out.zarr/s0/c/") == {"data": 2, "other": 4}
    assert count_repeated(requests, "/b/out.zarr.ledger/s0/") == 1


def test_the_server_counts_requests_of_our_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    from kasthuri_ray.storage.folder import open_storage

    server = LoopbackS3()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        open_storage("s3://benchmark/folder").write_bytes("a.json", b"{}\n")
        assert open_storage("s3://benchmark/folder").read_bytes("a.json") == b"{}\n"
        assert server.requests == {("PUT", "/benchmark/folder/a.json"): 1, ("GET", "/benchmark/folder/a.json"): 1}
    finally:
        server.close()


class Parts:
    """Runs nothing: the first run of a segmentation is killed, and each leaves samples and records."""

    reporter: Any = None

    def __init__(self, is_killed: bool = True) -> None:
        self.is_killed, self.runs = is_killed, []

    def show(self, text: str) -> None:
        pass

    def run(self, part: str, arguments: dict[str, Any], environment: Any, module: str) -> tuple[dict[str, Any], Usage]:
        if part == "state":
            return {"blocks": 32, "recorded": 32, "strange": 0, "wrong": None}, Usage()
        self.runs.append(arguments)
        Path(arguments["samples"]).write_text('{"done": 16, "time": 1, "cpu": 1, "rss": 1}\n')
        Path(f"{arguments['output']}.ledger/s0").mkdir(parents=True, exist_ok=True)
        if "kill_at" in arguments and self.is_killed:
            raise PartFailed("the part scale exited with code -9:\n")
        return {"seconds": 1.0}, Usage()


def test_a_segmentation_is_killed_in_the_middle_resumed_and_run_once_more(tmp_path: Path) -> None:
    parts, results = Parts(), ScaleResults()
    measurement = scale_speed._Measurement(parts, results, (1, 16, 16), "w.pt", str(tmp_path))  # type: ignore[arg-type]
    measurement.run("disk", (1, 64, 128), 2, str(tmp_path / "out.zarr"))
    assert [each.get("kill_at") for each in parts.runs] == [16, None, None]
    assert (len(results.samples["disk"]), results.state["disk"]["repeated"]) == (2, 0)


def test_a_segmentation_that_ends_before_it_is_killed_is_an_error(tmp_path: Path) -> None:
    parts = Parts(is_killed=False)
    measurement = scale_speed._Measurement(parts, ScaleResults(), (1, 16, 16), "w.pt", str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(WorkFailed, match="before it was killed"):
        measurement.run("disk", (1, 64, 128), 2, str(tmp_path / "out.zarr"))
