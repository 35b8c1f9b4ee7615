"""Other tools that segment with the same network."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import chunkflow_model, other_tools
from kasthuri_ray.benchmarks.chunkflow_model import SectionNetwork
from kasthuri_ray.benchmarks.predictor_processes import make_network


def test_without_a_tool_its_rates_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("monai", "monai.inferers", "chunkflow", "chunkflow.chunk"):
        monkeypatch.setitem(sys.modules, name, None)
    assert other_tools.time_monai(64, 0.25, (64, 64), 0.1) == {"rates": None}
    assert other_tools.time_chunkflow(64, 16, (64, 64), 0.1)["rates"] is None


def test_the_model_for_chunkflow_returns_the_foreground_of_a_patch_of_one_section() -> None:
    network = make_network("UNet_2D")
    patch = torch.from_numpy(np.random.default_rng(0).random((1, 1, 1, 32, 32), np.float32))
    with torch.no_grad():
        expected = torch.softmax(network(patch[:, :, 0]), 1)[:, 1]
        found = SectionNetwork(network, "float32")(patch)
    assert found.shape == (1, 1, 1, 32, 32)
    torch.testing.assert_close(found[0, 0], expected)


def test_the_model_has_the_number_format_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, precision in (("avx2", "float32"), ("bf16", "bf16")):
        monkeypatch.setenv("KASTHURI_CPU", kind)
        assert chunkflow_model.load_model("UNet_2D").precision == precision


def test_chunkflow_gets_patches_with_an_overlap_and_every_run_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Inferencer:
        def __init__(self, model: str, weights: str, **options: object) -> None:
            calls.append((model, weights, options))

        def __call__(self, chunk: np.ndarray) -> np.ndarray:
            return chunk

    chunk, inferencer = ModuleType("chunkflow.chunk"), ModuleType("inferencer")
    chunk.Chunk, inferencer.Inferencer = (lambda voxels: voxels), Inferencer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chunkflow", ModuleType("chunkflow"))
    monkeypatch.setitem(sys.modules, "chunkflow.chunk", chunk)
    for name in ("chunkflow.flow", "chunkflow.flow.divid_conquer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "chunkflow.flow.divid_conquer.inferencer", inferencer)
    monkeypatch.setattr(other_tools.process_resources, "set_threads", lambda processes: 1)
    found = other_tools.time_chunkflow(64, 16, (64, 64), 0.0)
    assert len(found["rates"]) == 3
    ((model, weights, options),) = calls
    assert (model, weights) == (chunkflow_model.__file__, "UNet_2D")
    assert options["input_patch_size"] == (1, 64, 64)
    assert options["output_patch_overlap"] == (0, 16, 16)
