"""The check of a GPU machine, tried on a CPU: its parts run, and their rows are judged."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kasthuri_ray.benchmarks import gpu, gpu_processes
from kasthuri_ray.benchmarks.harness import PartFailed, PartRunner
from kasthuri_ray.progress import Reporter


def test_the_predictor_and_the_training_step_are_compared_with_the_cpu() -> None:
    predicted = gpu_processes.compare_predictors("UNet_2D", "cpu", start_filters=8)
    low, high = predicted["range"]
    assert high - low > 100
    exact = {way: row for way, row in predicted["rows"].items() if way.startswith("float32")}
    assert {"float32", "float32, tta", "float32, folded", "float32, tta, folded"} <= exact.keys()
    assert all(row["within"] == 1 and row["most"] <= 1 for row in exact.values())
    trained = gpu_processes.compare_training("cpu")
    assert trained["losses"]["float32"] == trained["exact"]
    assert trained["exact"][-1] < trained["exact"][0]


class FakeParts(PartRunner):
    """Answers as the parts do; the comparison of the predictor takes too long."""

    def run(self, part, arguments, environment=None, module="", timeout_s=None):
        assert module == gpu.GPU_PARTS
        assert timeout_s <= 60
        if part == "predict":
            raise PartFailed("the part predict took longer than 60 s")
        if part == "train":
            return {"exact": [1.0, 0.5], "losses": {"float32": [1.0, 0.5], "bf16": [1.0, 0.8]}}, None
        if part == "memory":
            return {"refused": True, "resumes": True}, None
        if part == "training_speed":
            return {"tiles_per_second": 7.0, "plan": "bf16"}, None
        if part == "ceilings":
            return {"copy": 1e9, "products": {"8": 1e12}}, None
        settings = {"precision": "bf16", "compile": False, "tile": [1, 2, 2], "batch": 1, "fold": False}
        result = {"arithmetic": settings, "layers": [["conv", 10.0, 2.0]], "resident": [2e6], "predict": [1e6]}
        return result | {"card_peak": 1e9, "first_seconds": 1.0}, None


def test_a_part_that_fails_is_a_line_and_the_others_are_written_as_they_come(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KASTHURI_CPU", "bf16")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: (9, 0))
    properties = SimpleNamespace(name="a GPU", total_memory=8 << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    out = tmp_path / "gpu.json"
    lines = gpu.GpuCheck(FakeParts(Reporter()), "cuda", str(out), 1.0).run()
    by_name = {line.name.strip(): line for line in lines}
    assert by_name["predictor of UNet_2D"].note == "the part predict took longer than 60 s"
    assert by_name["training float32"].ok
    assert by_name["training bf16"].ok is False
    assert by_name["two processes"].figure == 2 * by_name["one process a GPU"].figure
    assert {"UNet_3D", "too large a batch is refused in words", "training UNet_2D"} <= by_name.keys()
    assert len(json.loads(out.read_text())["lines"]) == len(lines)


def test_all_parts_together_take_at_most_eight_minutes() -> None:
    limits = gpu.LIMITS_S
    networks = len(gpu.NETWORKS) * limits["measure"]
    twice = limits["predict"] + limits["training_speed"]
    once = ("train", "memory", "ceilings", "measure", "sharing", "predict_compiled", "train_compiled")
    assert sum(limits[part] for part in once) + 2 * twice + networks <= 8 * 60


def test_a_machine_without_a_gpu_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no CUDA GPU on this machine; --device cpu tries the script"):
        gpu.run_gpu_check([])
