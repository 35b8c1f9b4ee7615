"""The benchmark of the predictor, which needs only torch, compares networks with the limits of the device."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kasthuri_ray.benchmarks import predictor_speed
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.progress import Reporter

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_RAY = """
import json, sys
sys.modules.update(dict.fromkeys(["ray", "pydantic", "zarr", "tensorstore", "intern"]))  # importing one is an error
from kasthuri_ray.benchmarks import predictor_processes, predictor_speed
result = predictor_processes.measure_network("UNet_2D", "cpu", 0.01, [1, 32, 32], "off") | {"host_peak": 1}
ceilings = {"copy": 1e10, "products": {"1024": 8e11}}
json.dumps(result)
print(json.dumps([line.figure for line in predictor_speed.predictor_lines(ceilings, {"UNet_2D": result}, "bf16")]))
"""


def test_it_runs_without_ray_and_pydantic() -> None:
    command = [sys.executable, "-c", WITHOUT_RAY]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    figures = json.loads(process.stdout)
    assert len(figures) == 11
    assert all(figure > 0 for figure in figures)


def test_figures_are_compared_with_the_limits_of_the_device() -> None:
    result = {
        "arithmetic": {"precision": "bf16", "compile": True, "tile": [1, 240, 240], "batch": 4, "fold": True},
        # Two layers: one that multiplies for 1 us a voxel, one that moves data for 3 us.
        "layers": [["a", 1e6, 1e3], ["b", 1e5, 3e4]],
        "resident": [0.2e6, 0.3e6, 0.1e6],
        "predict": [0.16e6],
        "first_seconds": 3.0,
        "card_peak": None,
        "host_peak": 2e9,
    }
    ceilings = {"copy": 1e10, "products": {"1024": 1e12, "2048": 0.5e12}}
    lines = predictor_speed.predictor_lines(ceilings, {"X": result}, "bf16")
    figures = {line.name.strip(): line.figure for line in lines}
    assert figures["X"] == pytest.approx(0.2)
    assert figures["limit by products"] == pytest.approx(1 / 1.1)
    assert figures["limit by copies"] == pytest.approx(1 / 3.1)
    assert figures["share of the limit by products"] == pytest.approx(0.2 * 1.1)
    assert figures["share of both limits"] == pytest.approx(0.2 * (1 + 3))
    assert figures["of the network alone"] == pytest.approx(0.8)
    assert figures["peak memory"] == pytest.approx(2.0)
    assert not any("not folded" in name for name in figures)
    plain = result | {"resident": [0.16e6], "host_peak": 3e9}
    lines = predictor_speed.predictor_lines(ceilings, {"X": result | {"not_folded": plain}}, "bf16")
    figures = {line.name.strip(): line.figure for line in lines}
    assert figures["folded, of not folded"] == pytest.approx(1.25)
    assert (figures["peak memory"], figures["peak memory, not folded"]) == (2.0, 3.0)


class FakeParts(PartRunner):
    """Answers as the parts do; UNet_2D can be folded, the network with attention cannot."""

    def run(self, part, arguments, environment=None, module="", timeout_s=None):
        if part == "ceilings":
            return {"copy": 1e10, "products": {"1024": 1e12}}, None
        folds = arguments["name"] == "UNet_2D" and arguments.get("fold") != "off"
        settings = {"precision": "bf16", "compile": False, "tile": [1, 2, 2], "batch": 1, "fold": folds}
        rates = {"resident": [2e6 if folds else 1e6], "predict": [1e6], "first_seconds": 1.0}
        usage = SimpleNamespace(trainer_peak=2e9 if folds else 3e9)
        return {"arithmetic": settings, "layers": [["conv", 10.0, 2.0]], "card_peak": None, **rates}, usage


def test_a_network_whose_norms_are_folded_is_also_measured_as_it_was_trained(tmp_path: Path) -> None:
    out = str(tmp_path / "predictor.json")
    names = ("UNet_2D", "UNet_2D_attention")
    lines = predictor_speed.run_predictor_benchmark(FakeParts(Reporter()), "cpu", names, quick=True, out=out)
    shown = [line.name.strip() for line in lines]
    figures = {line.name.strip(): line.figure for line in lines[: shown.index("UNet_2D_attention")]}
    assert (figures["UNet_2D"], figures["not folded"], figures["folded, of not folded"]) == (2, 1, 2)
    assert (figures["peak memory"], figures["peak memory, not folded"]) == (2, 3)
    assert shown.count("not folded") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_cuda_is_an_error_in_one_line() -> None:
    command = [sys.executable, "-m", "kasthuri_ray.benchmarks.predictor_speed", "--device", "cuda"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode != 0
    assert "no CUDA GPU" in process.stderr
    assert "Traceback" not in process.stderr
