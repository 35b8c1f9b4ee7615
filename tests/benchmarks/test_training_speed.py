"""The benchmark of training times the defaults on synapse tiles, and compares its figures with goals."""

import json
from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import training_speed
from kasthuri_ray.benchmarks.harness import PartRunner, Usage
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.process_resources import usable_cpus
from kasthuri_ray.progress import Reporter

GB = 10**9


def test_the_timed_settings_are_the_defaults_on_synapse_tiles(tmp_path: Path) -> None:
    store = training_speed.make_phantom_store(str(tmp_path / "p.zarr"), (17, 256, 256))
    plain = json.loads(json.dumps(training_speed.benchmark_settings(store, 3, 40, str(tmp_path))))
    settings = Settings.model_validate(plain)
    assert settings.task.share_on_foreground == 0.5
    assert settings.task.tile == (1, 256, 256)
    assert (settings.network.epochs, settings.network.tiles_per_epoch) == (3, 40)
    assert (settings.network.loss, settings.network.augmentations) == ("dice_ce", "em")


@pytest.mark.parametrize(("kind", "is_fast"), [("amx", True), ("avx2", True), ("avx512", None), ("arm", None)])
def test_figures_are_compared_with_the_goals_of_training(monkeypatch, kind, is_fast) -> None:
    monkeypatch.setenv("KASTHURI_CPU", kind)
    results = training_speed.TrainingResults(
        PartRunner(Reporter()),
        rates={"bare step": [10.0, 9.0, 11.0], "pipeline": [9.6], "seed's recipe": [2.0], "stream": [150.0]}
        | {training_speed.workers_name(1, 8): [5.0], training_speed.workers_name(2, 8): [9.5]}
        | {training_speed.workers_name(1, 2): [5.0], training_speed.workers_name(2, 2): [7.5]},
        wait_shares=[0.01, 0.03],
        facts={"stream_cold": 40.0, "plan": "bf16, channels last, compiled", "threads": 2},
    )
    results.usage = {
        "bare step": Usage(2 * GB, 0, 0, 0, 2 * GB),
        "pipeline": Usage(int(2.6 * GB), GB, int(1.7 * GB), GB // 10, 5 * GB, cores={"trainer": 1.8, "ray": 0.1}),
        "phantom 0.1 GB": Usage(total_peak=2 * GB),
        "phantom 660 GB": Usage(total_peak=int(2.1 * GB)),
    }
    lines = {line.name.strip(): line for line in training_speed.training_lines(results)}
    reached = {name: line.ok for name, line in lines.items() if line.goal}
    assert reached.pop("pipeline, times as fast", None) is is_fast
    assert reached.pop("of the bare step", None) is (None if kind == "arm" else True)
    assert reached == {
        "wait_share": False,
        "warm, times the bare step": True,
        "times as fast, steps of 8": True,
        "more than the bare step": False,
        "Ray's other processes and object store": True,
        "660 GB divided by 0.1 GB": True,
    }
    assert lines["more than the bare step"].figure == pytest.approx(600)
    assert lines["share of Ray, readers and driver"].figure == pytest.approx(0.1 / usable_cpus())
