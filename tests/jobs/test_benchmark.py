"""jobs/benchmark.py: its flags reach the benchmark that they belong to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import (
    accuracy,
    challenge,
    io_speed,
    phantom_difficulty,
    predictor_speed,
    scale_speed,
    segmentation_speed,
    sweep_cost,
    training_speed,
)
from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, benchmark_record
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.errors import WorkFailed

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "jobs/benchmark.py"


def test_help_lists_the_benchmarks_and_the_flags(help_text) -> None:
    text = help_text(SCRIPT)
    kinds = ("train", "segment", "predictor", "scale", "io", "tune", "accuracy", "challenge", "phantom", "vnc")
    for kind in (*kinds, "--quick"):
        assert kind in text


def test_flags_reach_the_benchmark(load_module, monkeypatch: pytest.MonkeyPatch) -> None:
    job, calls = load_module(ROOT / SCRIPT), []

    def record(parts: PartRunner, **options: object) -> None:
        calls.append({**options, "verbose": parts.verbose})

    monkeypatch.setattr(training_speed, "run_training_benchmark", record)
    monkeypatch.setattr(accuracy, "run_accuracy", record)
    monkeypatch.setattr(segmentation_speed, "run_segmentation_benchmark", record)
    monkeypatch.setattr(predictor_speed, "run_predictor_benchmark", record)
    monkeypatch.setattr(sweep_cost, "run_sweep_benchmark", record)
    monkeypatch.setattr(scale_speed, "run_scale_benchmark", record)
    monkeypatch.setattr(io_speed, "run_io_benchmark", record)
    job.main(["train", "--quick"])
    assert calls[0] == {"data": None, "quick": True, "out": "benchmark_train.json", "verbose": False}
    job.main(["accuracy", "--data", "d", "--task", "synapse", "--seeds", "3", "4", "--seed-recipe", "full"])
    assert calls[1] == {
        "data": "d",
        "tasks": ["synapse"],
        "seeds": [3, 4],
        "seed_recipe": "full",
        "out": "benchmark_accuracy.json",
        "verbose": False,
    }
    job.main(["segment", "--data", "d", "--weights", "r"])
    assert calls[2] == {
        "data": "d",
        "weights": "r",
        "quick": False,
        "out": "benchmark_segment.json",
        "verbose": False,
    }
    job.main(["predictor", "--device", "cpu"])
    assert calls[3] == {
        "device": "cpu",
        "networks": list(predictor_speed.NETWORKS),
        "quick": False,
        "out": "benchmark_predictor.json",
        "verbose": False,
    }
    job.main(["tune", "--quick"])
    assert calls[4] == {"quick": True, "out": "benchmark_tune.json", "verbose": False}
    job.main(["scale"])
    assert calls[5] == {"quick": False, "out": "benchmark_scale.json", "verbose": False}
    job.main(["io", "--data", "d"])
    assert calls[6] == {"data": "d", "quick": False, "out": "benchmark_io.json", "verbose": False}


def test_the_flags_of_the_scoreboard_say_what_takes_part_and_how_it_is_resumed(
    load_module, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, calls = load_module(ROOT / SCRIPT), []
    monkeypatch.setattr(challenge, "run_challenge", lambda request, reporter, command: calls.append((request, command)))
    words = ["challenge", "--data", "phantom", "--tasks", "synapse", "--networks", "mine.json", "x.pt", "--seeds", "5"]
    job.main([*words, "--set", "network.epochs=3", "--no-recipe"])
    request, command = calls[0]
    assert (request.data, request.tasks, request.num_seeds) == ("phantom", ["synapse"], 5)
    assert (request.networks, request.has_recipe) == (["mine.json", "x.pt"], False)
    assert request.all_assignments == ["network.epochs=4", "network.tiles_per_epoch=88", "network.epochs=3"]
    assert command.endswith(f"{' '.join(words)} --set network.epochs=3 --no-recipe --name challenge_phantom")
    job.main(["challenge"])
    assert (calls[1][0].data, calls[1][0].networks, calls[1][0].board_name) == ("vnc", None, "challenge_vnc")


@pytest.mark.parametrize("kind", ["train", "segment", "predictor", "scale", "io", "tune", "accuracy", "phantom"])
def test_every_benchmark_with_a_json_file_is_compared_with_an_earlier_one(
    load_module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    line = BenchmarkLine("what", 1.0, "Mvoxels/s")
    before = tmp_path / "before.json"
    before.write_text(json.dumps(benchmark_record(kind, [BenchmarkLine("what", 2.0, "Mvoxels/s")], {})))
    for module, name in (
        (training_speed, "run_training_benchmark"),
        (segmentation_speed, "run_segmentation_benchmark"),
        (predictor_speed, "run_predictor_benchmark"),
        (scale_speed, "run_scale_benchmark"),
        (io_speed, "run_io_benchmark"),
        (sweep_cost, "run_sweep_benchmark"),
        (accuracy, "run_accuracy"),
        (phantom_difficulty, "run_phantom_benchmark"),
    ):
        monkeypatch.setattr(module, name, lambda *parts, **options: [line])
    with pytest.raises(WorkFailed, match=r"below 0\.95 of .*before\.json: what"):
        load_module(ROOT / SCRIPT).main([kind, "--compare", str(before)])


def test_without_vnc_the_message_says_where_to_get_it_and_nothing_is_written(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / SCRIPT), "accuracy", "--data", str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert "git clone" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())
