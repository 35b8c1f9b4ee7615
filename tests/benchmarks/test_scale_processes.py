"""Parts of the benchmark of growth: actors that sleep, and samples of the driver."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kasthuri_ray.benchmarks import scale_processes
from kasthuri_ray.benchmarks.harness import TRAINER, process_role
from kasthuri_ray.benchmarks.scale_processes import (
    GREY,
    BlockWorkerThatSleeps,
    BlockWorkerThatWrites,
    SamplingReporter,
    done_and_actors,
)
from kasthuri_ray.benchmarks.segmentation_processes import make_weights
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.segmentation.segmentation_inputs import prepare_segmentation
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.segmentation.trained_network import build_trained_network, read_trained_network

SETTINGS = InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1)


@pytest.fixture
def job(tmp_path: Path) -> SegmentationJob:
    weights = make_weights(str(tmp_path / "w.pt"))
    flags = {"segment": {"weights": weights, "image": "phantom://em?shape=2,64,64", "cache": "none"}}
    settings = resolve_settings(GivenSettings("synapse", "UNet_2D", flags=flags))
    trained = read_trained_network(weights)
    inputs = prepare_segmentation(settings, trained, build_trained_network(settings, trained), lambda line: None)
    return inputs.make_job(str(tmp_path / "out.zarr"), SETTINGS, None)


def test_a_worker_that_sleeps_writes_only_the_ledger(job: SegmentationJob) -> None:
    worker = BlockWorkerThatSleeps(job)
    worker.ready()
    assert worker.work("s0", (0, 0, 0)) == {"blank": False}
    assert list(worker.ledger.done("s0")) == ["0_0_0"]
    assert not Path(job.output).exists()


def test_a_worker_that_writes_writes_voxels_too(job: SegmentationJob) -> None:
    output = OmeZarrOutput.create(job.output, job.spec)
    assert BlockWorkerThatWrites(job).work("s0", (0, 0, 0)) == {"blank": False}
    voxels = output.probabilities.read(0, Box.at((0, 0, 0), (2, 64, 64)))
    np.testing.assert_array_equal(voxels, GREY)


def test_the_memory_of_these_workers_counts_as_that_of_actors() -> None:
    for kind in (BlockWorkerThatSleeps, BlockWorkerThatWrites):
        assert process_role(f"ray::{kind.__name__}.work", is_part=False, computes_itself=False) == TRAINER


def test_the_reporter_samples_this_process_and_kills_it_in_the_middle(tmp_path: Path, monkeypatch: Any) -> None:
    killed: list[int] = []
    monkeypatch.setattr(scale_processes.os, "kill", lambda pid, signal: killed.append(signal))
    reporter = SamplingReporter(str(tmp_path / "samples"), kill_at=1000)
    reporter.show_live("segmenting: 999/2,048 blocks  4 actors")
    assert not killed
    reporter.show_live("segmenting: 1,000/2,048 blocks  4 actors")
    assert killed == [9]
    samples = [json.loads(line) for line in (tmp_path / "samples").read_text().splitlines()]
    assert [sample["done"] for sample in samples] == [999, 1000]
    assert samples[1]["cpu"] >= samples[0]["cpu"] > 0
    assert samples[1]["actors"] == 4
    assert done_and_actors("segmenting: 0/1 block  1,000 actors  2.00 Mvoxels/s") == (0, 1000)
    with pytest.raises(AssertionError, match="blocks"):
        done_and_actors("no numbers of blocks")


def test_many_blocks_are_recorded_and_a_finished_segmentation_is_found_finished(
    local_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KASTHURI_THREADS", "1")
    output, shape, block = str(tmp_path / "out.zarr"), (1, 64, 128), (1, 16, 16)
    given = {"shape": shape, "block": block, "weights": make_weights(str(tmp_path / "w.pt")), "output": output}
    given |= {"samples": str(tmp_path / "samples"), "actors": 2, "slots": 4}
    plan_actors = scale_processes.segmentation.plan_actors
    first = scale_processes.segment_many_blocks(**given)
    assert (first["done"], first["set_aside"]) == (32, 0)
    assert scale_processes.segmentation.plan_actors is plan_actors
    state = scale_processes.read_state(output, shape, block)
    assert state == {"blocks": 32, "recorded": 32, "strange": 0, "wrong": None}
    again = scale_processes.segment_many_blocks(**given)
    assert again["done"] == 32
    Path(f"{output}.ledger/s0/0_0_0.json").unlink()
    Path(f"{output}.ledger/s0/7_7_7.json").write_text("{}\n")
    assert scale_processes.read_state(output, shape, block)["recorded"] == 31
    assert scale_processes.read_state(output, shape, block)["strange"] == 1
