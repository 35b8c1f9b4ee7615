"""jobs/benchmark.py: what its words mean."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kasthuri_ray.benchmarks import accuracy, predictor_speed, segmentation_speed, sweep_cost, training_speed
from kasthuri_ray.benchmarks.harness import Usage
from kasthuri_ray.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def job() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("benchmark_job", ROOT / "jobs" / "benchmark.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, runpy; sys.argv = ['benchmark.py', 'train', '--help']\n"
        "try: runpy.run_path('jobs/benchmark.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'numpy'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "--quick" in found.stdout
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_words_reach_the_benchmark(job: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(training_speed, "run_training_benchmark", lambda **options: called.append(options))
    monkeypatch.setattr(accuracy, "run_accuracy", lambda **options: called.append(options))
    monkeypatch.setattr(segmentation_speed, "run_segmentation_benchmark", lambda **options: called.append(options))
    monkeypatch.setattr(predictor_speed, "run_predictor_benchmark", lambda **options: called.append(options))
    monkeypatch.setattr(sweep_cost, "run_sweep_benchmark", lambda **options: called.append(options))
    job.main(["train", "--quick"])
    job.main(["accuracy", "--data", "d", "--task", "synapse", "--seeds", "3", "4", "--seed-recipe", "full"])
    assert called[0] == {"data": None, "quick": True, "out": "benchmark_train.json", "verbose": False}
    assert called[1] == {
        "data": "d",
        "tasks": ["synapse"],
        "seeds": [3, 4],
        "seed_recipe": "full",
        "out": "benchmark_accuracy.json",
        "verbose": False,
    }
    job.main(["segment", "--data", "d", "--weights", "r"])
    job.main(["predictor", "--device", "cpu"])
    assert called[2] == {
        **{"data": "d", "weights": "r", "quick": False, "out": "benchmark_segment.json", "verbose": False}
    }
    assert called[3] == {
        **{"device": "cpu", "networks": list(predictor_speed.FIVE), "quick": False, "out": "benchmark_predictor.json"},
        "verbose": False,
    }
    job.main(["tune", "--quick"])
    assert called[4] == {"quick": True, "out": "benchmark_tune.json", "verbose": False}


def test_without_vnc_it_says_where_to_get_it_and_nothing_is_written(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/benchmark.py"), "accuracy", "--data", str(tmp_path)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "git clone" in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_timed_are_the_defaults_on_synapse_tiles(tmp_path: Path) -> None:
    store = training_speed.make_store(str(tmp_path / "p.zarr"), (17, 256, 256))
    sections = json.loads(json.dumps(training_speed.benchmark_settings(store, 3, 40, str(tmp_path))))
    settings = Settings.model_validate(sections)
    assert settings.task.share_on_foreground == 0.5
    assert settings.task.tile == (1, 256, 256)
    assert (settings.network.epochs, settings.network.tiles_per_epoch) == (3, 40)
    assert (settings.network.loss, settings.network.augmentations) == ("dice_ce", "em")


def test_accuracy_keeps_each_tasks_defaults(tmp_path: Path) -> None:
    for task in ("membrane", "synapse"):
        settings = Settings.model_validate(accuracy.accuracy_settings(task, "/d/vnc.zarr", 2, str(tmp_path)))
        assert settings.task.task_type == task
        assert settings.task.annotation_chan == f"/d/vnc.zarr/{task}"
        assert (settings.task.z_train, settings.task.z_val, settings.task.z_test) == ([0, 14], [14, 17], [17, 20])
        assert (settings.network.epochs, settings.network.tiles_per_epoch, settings.network.seed) == (8, 224, 2)


def test_figures_are_held_against_the_goals_of_training() -> None:
    found = training_speed.TrainingResults(
        rates={"bare step": [10.0, 9.0, 11.0], "pipeline": [9.6], "seed's recipe": [2.0], "stream": [150.0]}
        | {training_speed.workers_name(1, 8): [5.0], training_speed.workers_name(2, 8): [9.5]}
        | {training_speed.workers_name(1, 2): [5.0], training_speed.workers_name(2, 2): [7.5]},
        waits=[0.01, 0.03],
        facts={"stream_cold": 40.0, "precision": "bf16", "threads": 2},
    )
    gb = 10**9
    found.usage = {
        "bare step": Usage(2 * gb, 0, 0, 0, 2 * gb),
        "pipeline": Usage(int(2.6 * gb), gb, int(1.7 * gb), gb // 10, 5 * gb),
        "phantom 0.1 GB": Usage(total_peak=2 * gb),
        "phantom 660 GB": Usage(total_peak=int(2.1 * gb)),
    }
    lines = {line.name.strip(): line for line in training_speed.training_lines(found)}
    verdicts = {name: line.ok for name, line in lines.items() if line.goal}
    assert verdicts.pop("pipeline, times as fast") in (True, None)  # None where the CPU has no bf16
    assert verdicts == {
        "of the bare step": True,
        "wait_share": False,
        "warm, times what training eats": True,
        "times as fast, steps of 8": True,
        "more than the bare step": False,
        "these two": True,
        "660 GB against 0.1 GB": True,
    }
    assert lines["more than the bare step"].figure == pytest.approx(600)


def test_medians_are_held_against_the_goals_of_accuracy() -> None:
    runs = [{"foreground_f1": f1, "seconds": s} for f1, s in ((0.60, 100.0), (0.54, 300.0), (0.56, 120.0))]
    found = {"runs": runs, "seed_recipe": [{"seconds": 400.0}, {"seconds": 440.0}]}
    lines = {line.name.strip(): line for line in accuracy.check_accuracy("synapse", found)}
    assert lines["synapse: test F1"].figure == 0.56
    assert lines["synapse: test F1"].ok
    assert lines["of the seed's recipe"].figure == pytest.approx(120 / 420)
    assert accuracy.check_accuracy("membrane", found)[0].ok is False


def sweep_of(scores: list[float | None], epochs: list[int], seconds: float) -> dict:
    rows = [
        {"id": f"{n:04d}", "score": score, "epochs": e, "wall_seconds": 10.0 + n}
        for n, (score, e) in enumerate(zip(scores, epochs, strict=True))
    ]
    return {"trials": rows, "seconds": seconds}


def test_a_sweep_is_held_against_the_goals_of_tuning() -> None:
    found = sweep_cost.SweepResults(
        full=sweep_of([0.5, 0.8, 0.6, None], [9, 9, 9, 0], 100.0),
        asha=sweep_of([0.5, 0.795, 0.4, None], [9, 3, 1, 0], 60.0),
        fits={"0000": 7.0, "0001": 8.0, "0002": 1.0},
    )
    lines = {line.name.strip(): line for line in sweep_cost.sweep_lines(found)}
    assert {name: line.ok for name, line in lines.items() if line.goal} == {
        "best above the median": True,
        "below the best of all": True,
        "share of their epochs": True,
        "a trial, more than the same run": True,
    }
    assert lines["share of their epochs"].figure == pytest.approx(13 / 27)
    assert lines["a trial, more than the same run"].figure == pytest.approx(3.0)


def test_the_sweeps_of_the_benchmark_differ_in_what_stops_trials_alone(tmp_path: Path) -> None:
    one, other = (
        sweep_cost.sweep_layers("/d/p.zarr", sweep_cost.QUICK, str(tmp_path), name)["flags"]
        for name in ("none", "asha")
    )
    assert one["tune"].pop("scheduler") == one["train"].pop("name") == "none"
    assert other["tune"].pop("scheduler") == other["train"].pop("name") == "asha"
    assert one == other
