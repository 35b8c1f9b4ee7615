"""Parts of the benchmark of segmentation: workers that write down their times."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import segmentation_processes
from kasthuri_ray.benchmarks.harness import TRAINER, process_role
from kasthuri_ray.benchmarks.job_times import summarize_times
from kasthuri_ray.benchmarks.segmentation_processes import TIMES, BlockWorkerWithTimes
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
    assert rows[2]["peak"] > 100_000_000 or not Path("/proc/self/status").exists()
    tiles = worker.segmenter.predictors[0].tiles(job.box, job.image.bounds)
    assert [voxels for _, voxels in rows[1]["tiles"]] == [tile.input.num_voxels for tile in tiles]
    assert summarize_times([rows])["voxels"] > job.box.num_voxels


def test_the_memory_of_these_workers_counts_as_that_of_actors() -> None:
    for kind in (BlockWorker, BlockWorkerWithTimes):
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
