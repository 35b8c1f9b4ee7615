"""The predictor's benchmark, which has to run where there is only torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kasthuri_ray.benchmarks import predictor_processes, predictor_speed
from kasthuri_ray.config.settings import NetworkSettings
from kasthuri_ray.models.unet import build_network

ROOT = Path(__file__).resolve().parents[2]
BARE = """
import json, sys
sys.modules.update(dict.fromkeys(["ray", "pydantic", "zarr", "tensorstore", "intern"]))  # importing one is an error
from kasthuri_ray.benchmarks import predictor, predictor_parts, table
found = predictor_parts.measure("UNet_2D", "cpu", 0.01, [1, 32, 32], "off")
before = {"copy": 1e10, "products": {"1024": 8e11}}
json.dumps(found)
print(json.dumps([line.figure for line in predictor.judge(before, {"UNet_2D": found | {"host_peak": 1}}, "bf16")]))
"""


def test_it_runs_without_ray_and_pydantic() -> None:
    found = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout)
    assert len(figures) == 11
    assert all(figure > 0 for figure in figures)


@pytest.mark.parametrize("name", ["UNet_2D", "UNet_2D_attention", "UNet_3D"])
def test_flop_are_counted_as_torch_counts_them(name: str) -> None:
    dim = 3 if name == "UNet_3D" else 2
    network = predictor_processes.make_network(name)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *(32,) * dim))
    assert predictor_processes.flop_per_voxel(network, dim) == pytest.approx(counter.get_total_flops() / 32**dim)


def test_unet_2d_takes_what_is_known_of_it() -> None:
    assert predictor_processes.flop_per_voxel(predictor_processes.make_network("UNet_2D"), 2) == 280_256


def test_a_file_gives_the_network_that_a_job_runs() -> None:
    for name in predictor_speed.FIVE:
        given = NetworkSettings(**predictor_processes.network_settings(name)).model_dump()
        whole, ours = build_network(given), predictor_processes.make_network(name)
        assert str(whole.eval()) == str(ours)


def test_figures_stand_beside_the_ceilings() -> None:
    how = {"precision": "bf16", "compile": True, "tile": [1, 240, 240], "batch": 4}
    given = {
        "arithmetic": how,
        # Two layers: one that multiplies for 1 us a voxel, one that moves for 3 us.
        "layers": [["a", 1e6, 1e3], ["b", 1e5, 3e4]],
        "resident": [0.2e6, 0.3e6, 0.1e6],
        "predict": [0.16e6],
        "first_seconds": 3.0,
        "card_peak": None,
        "host_peak": 2e9,
    }
    lines = predictor_speed.predictor_lines(
        {"copy": 1e10, "products": {"1024": 1e12, "2048": 0.5e12}}, {"X": given}, "bf16"
    )
    found = {line.name.strip(): line.figure for line in lines}
    assert found["X"] == pytest.approx(0.2)
    assert found["by products alone"] == pytest.approx(1 / 1.1)
    assert found["by copies alone"] == pytest.approx(1 / 3.1)
    assert found["share of products"] == pytest.approx(0.2 * 1.1)
    assert found["share of both"] == pytest.approx(0.2 * (1 + 3))
    assert found["of the network alone"] == pytest.approx(0.8)
    assert found["peak memory"] == pytest.approx(2.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_told() -> None:
    command = [sys.executable, "-m", "kasthuri_ray.benchmarks.predictor_speed", "--device", "cuda"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode != 0
    assert "no CUDA card" in found.stderr
    assert "Traceback" not in found.stderr
