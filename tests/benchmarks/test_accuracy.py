"""The benchmark of accuracy trains the defaults of each task on VNC, and compares the medians with goals."""

from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import accuracy
from kasthuri_ray.config.settings import Settings


def test_the_settings_are_the_defaults_of_each_task(tmp_path: Path) -> None:
    for task in ("membrane", "synapse"):
        settings = Settings.model_validate(accuracy.accuracy_settings(task, "/d/vnc.zarr", 2, str(tmp_path)))
        assert settings.task.task_type == task
        assert settings.task.annotation_chan == f"/d/vnc.zarr/{task}"
        assert (settings.task.z_train, settings.task.z_val, settings.task.z_test) == ([0, 14], [14, 17], [17, 20])
        assert (settings.network.epochs, settings.network.tiles_per_epoch, settings.network.seed) == (8, 224, 2)


def test_medians_are_compared_with_the_goals() -> None:
    runs = [{"foreground_f1": f1, "seconds": s} for f1, s in ((0.60, 100.0), (0.54, 300.0), (0.56, 120.0))]
    results = {"runs": runs, "seed_recipe": [{"seconds": 400.0}, {"seconds": 440.0}]}
    lines = {line.name.strip(): line for line in accuracy.accuracy_lines("synapse", results)}
    assert lines["synapse: test F1"].figure == 0.56
    assert lines["synapse: test F1"].ok
    assert lines["of the seed's recipe"].figure == pytest.approx(120 / 420)
    assert accuracy.accuracy_lines("membrane", results)[0].ok is False
