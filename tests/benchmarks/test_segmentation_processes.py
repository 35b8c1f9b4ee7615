"""Parts of the benchmark of segmentation: workers that write down their times, and what the times add up to."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import segmentation_processes
from kasthuri_ray.benchmarks.harness import TRAINER, process_role
from kasthuri_ray.benchmarks.segmentation_processes import (
    TIMES,
    BlockWorkerWithoutNetwork,
    BlockWorkerWithTimes,
    summarize_times,
)
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.models.checkpoints import checkpoint_bytes, read_checkpoint
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.segmentation import block_segmenter
from kasthuri_ray.segmentation.block_worker import BlockWorker
from kasthuri_ray.segmentation.segmentation_inputs import prepare_segmentation
from kasthuri_ray.segmentation.segmentation_job import SegmentationInputs
from kasthuri_ray.segmentation.trained_network import build_trained_network, read_trained_network

SETTINGS = InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1)


def make_row(what: str, block: int, start: float, stop: float, tiles: list[float] | None = None) -> dict:
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


def test_the_times_of_an_actor_add_up_to_a_rate_without_compiling_and_to_waiting_times() -> None:
    summary = summarize_times([FIRST_ACTOR])
    assert summary["voxels"] == 500
    assert summary["compile_seconds"] == pytest.approx(10.0)
    assert summary["working_seconds"] == pytest.approx(18.5 - 10.0)
    assert summary["rate"] == pytest.approx(500 / 8.5)
    assert summary["wait_seconds"] == pytest.approx([0.5])
    assert summary["read_seconds"] == pytest.approx([1.0, 1.0])
    assert summary["write_seconds"] == pytest.approx([1.0, 1.0])
    assert summary["tile_seconds"] == pytest.approx([1.0, 1.0, 1.0])


def test_the_steady_rate_counts_from_the_later_first_tile_to_the_earlier_last_tile() -> None:
    summary = summarize_times([FIRST_ACTOR, SECOND_ACTOR])
    # After 114 and up to 116: two tiles of the second actor, none of the first.
    assert summary["steady_rate"] == pytest.approx(200 / 2)
    assert (summary["voxels"], summary["actors"]) == (800, 2)
    assert summarize_times([FIRST_ACTOR])["steady_rate"] == pytest.approx(400 / 5.5)


def prepare(weights: str, image: str, **sections: Any) -> SegmentationInputs:
    flags = {"segment": {"weights": weights, "image": image, "cache": "none"}, **sections}
    settings = resolve_settings(GivenSettings("synapse", "UNet_2D", flags=flags))
    trained = read_trained_network(weights)
    return prepare_segmentation(settings, trained, build_trained_network(settings, trained), lambda line: None)


def test_a_worker_with_times_makes_the_same_block_and_writes_down_every_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_segmenter, "prepare_process", lambda settings: None)  # it would set the number of threads
    network = {"n_blocks": 2, "start_filters": 4}
    torch.manual_seed(0)
    weights = tmp_path / "w.pt"
    weights.write_bytes(checkpoint_bytes(build_network(network).state_dict()))
    inputs = prepare(str(weights), "phantom://em?shape=4,64,64", network=network)
    blocks = []
    for kind in (BlockWorker, BlockWorkerWithTimes):
        job = inputs.make_job(str(tmp_path / kind.__name__), SETTINGS, None)
        worker = kind(job)
        output = OmeZarrOutput.create(job.output, job.spec)
        worker.ready()
        assert worker.work("s0", (0, 0, 0))["blank"] is False
        blocks.append(output.probabilities.read(0, Box.at((0, 0, 0), (4, 64, 64))))
    np.testing.assert_array_equal(*blocks)
    (file,) = Path(f"{job.output}.{TIMES}").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["what"] for row in rows] == ["read", "compute", "block"]
    tiles = worker.segmenter.predictor.tiles(job.box, job.image.bounds)
    assert [voxels for _, voxels in rows[1]["tiles"]] == [tile.input.num_voxels for tile in tiles]
    assert summarize_times([rows])["voxels"] > job.box.num_voxels


def test_a_worker_without_a_network_writes_only_the_ledger(tmp_path: Path) -> None:
    inputs = prepare(segmentation_processes.make_weights(str(tmp_path / "w.pt")), "phantom://em?shape=2,64,64")
    job = inputs.make_job(str(tmp_path / "out.zarr"), SETTINGS, None)
    worker = BlockWorkerWithoutNetwork(job)
    worker.ready()
    worker.work("s0", (0, 0, 0))
    assert list(worker.ledger.done("s0")) == ["0_0_0"]
    assert not Path(job.output).exists()


def test_the_memory_of_these_workers_counts_as_that_of_actors() -> None:
    for kind in (BlockWorker, BlockWorkerWithTimes, BlockWorkerWithoutNetwork):
        assert process_role(f"ray::{kind.__name__}.work", is_part=False, computes_itself=False) == TRAINER


def test_probabilities_of_the_random_weights_spread_widely(tmp_path: Path) -> None:
    path = segmentation_processes.make_weights(str(tmp_path / "w.pt"))
    network = build_network({"model_type": "unet"}).eval()
    load_weights(network, read_checkpoint(Path(path).read_bytes(), path).weights)
    image = torch.from_numpy(np.random.default_rng(1).random((1, 1, 16, 16), np.float32).repeat(8, 2).repeat(8, 3))
    with torch.no_grad():
        probabilities = torch.softmax(network(image), 1)[0, 1]
    assert probabilities.quantile(0.02) < 0.1
    assert probabilities.quantile(0.98) > 0.9


def test_without_monai_its_rates_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    assert segmentation_processes.time_monai(64, 0.25, (64, 64), 0.1) == {"rates": None}
