"""The benchmark of segmentation: what it times, what the notes of actors come to, and which goals they meet."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import segmentation_processes, segmentation_speed
from kasthuri_ray.benchmarks.harness import TRAINER, Usage, role_of
from kasthuri_ray.benchmarks.segmentation_processes import TIMES, IdleBlockWorker, TimedBlockWorker, summarize_times
from kasthuri_ray.benchmarks.segmentation_speed import QUICK, SegmentationResults, SegmentationSize
from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.models.checkpoints import checkpoint_bytes, read_weights
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.output.block_grid import check_block_shape
from kasthuri_ray.output.pyramid import SHARD, plan_layout
from kasthuri_ray.ray_cluster.process_priority import WORKING
from kasthuri_ray.segmentation import block_worker
from kasthuri_ray.segmentation.segmentation_inputs import prepare_segmentation
from kasthuri_ray.segmentation.trained_network import read_trained_network

GB = 10**9


def note(what: str, block: int, start: float, stop: float, tiles: list[float] | None = None) -> dict:
    return {
        "what": what,
        "block": [block, 0, 0],
        "start": start,
        "stop": stop,
        "tiles": [[t, 100] for t in tiles or []],
    }


# Of one actor: 10 s of compiling, tiles of 1 s, 0.5 s between its two blocks.
ONE = [
    note("block", 0, 100.0, 116.0),
    note("read", 0, 100.0, 101.0),
    note("compute", 0, 101.0, 115.0, [112.0, 113.0, 114.0]),
    note("read", 1, 102.0, 103.0),
    note("compute", 1, 115.5, 117.5, [116.5, 117.5]),
    note("block", 1, 102.0, 118.5),
]
# Of another, that began later and was done earlier.
OTHER = [
    note("compute", 2, 103.0, 116.0, [114.0, 115.0, 116.0]),
    note("block", 2, 102.5, 116.5),
    note("read", 2, 102.5, 103.0),
]


def test_notes_come_to_a_rate_without_compiling_and_to_what_is_waited_for() -> None:
    found = summarize_times([ONE])
    assert found["voxels"] == 500
    assert found["compile_seconds"] == pytest.approx(10.0)
    assert found["working_seconds"] == pytest.approx(18.5 - 10.0)
    assert found["rate"] == pytest.approx(500 / 8.5)
    assert found["wait_seconds"] == pytest.approx([0.5])
    assert found["read_seconds"] == pytest.approx([1.0, 1.0])
    assert found["write_seconds"] == pytest.approx([1.0, 1.0])
    assert found["tile_seconds"] == pytest.approx([1.0, 1.0, 1.0])


def test_two_actors_are_steady_from_the_later_first_tile_to_the_earlier_last_one() -> None:
    found = summarize_times([ONE, OTHER])
    # After 114 and up to 116: two tiles of the second, none of the first.
    assert found["steady_rate"] == pytest.approx(200 / 2)
    assert (found["voxels"], found["actors"]) == (800, 2)
    assert summarize_times([ONE])["steady_rate"] == pytest.approx(400 / 5.5)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_worker, "prepare_process", lambda arithmetic: None)


@pytest.mark.usefixtures("one_thread")
def test_an_actor_with_times_makes_the_same_block_and_notes_every_tile(tmp_path: Path) -> None:
    settings = {"n_blocks": 2, "start_filters": 4}
    torch.manual_seed(0)
    weights = tmp_path / "w.pt"
    weights.write_bytes(checkpoint_bytes(build_network(settings).state_dict()))
    flags = {
        "network": settings,
        "segment": {"weights": str(weights), "image": "phantom://em?shape=4,64,64", "cache": "none"},
    }
    prepared = prepare_segmentation(
        resolve_settings("synapse", "UNet_2D", flags=flags), read_trained_network(str(weights)), lambda line: None
    )
    how = InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1)
    blocks = []
    for kind in (block_worker.BlockWorker, TimedBlockWorker):
        job = prepared.job(str(tmp_path / kind.__name__), how, None)
        segmenter = kind(job)
        segmenter.output.create(job.output, job.spec)
        segmenter.ready()
        assert segmenter.work("s0", (0, 0, 0))["blank"] is False
        blocks.append(segmenter.output.read(0, Box.at((0, 0, 0), (4, 64, 64))))
    np.testing.assert_array_equal(*blocks)
    (file,) = Path(f"{job.output}.{TIMES}").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["what"] for row in rows] == ["read", "compute", "block"]
    tiles = segmenter.predictor.tiles(job.box, job.image.bounds)
    assert [voxels for _, voxels in rows[1]["tiles"]] == [tile.input.num_voxels for tile in tiles]
    assert summarize_times([rows])["voxels"] > job.box.num_voxels


def test_an_actor_that_does_nothing_leaves_the_ledger_alone_behind(tmp_path: Path) -> None:
    weights = segmentation_processes.make_weights(str(tmp_path / "w.pt"))
    flags = {"segment": {"weights": weights, "image": "phantom://em?shape=2,64,64", "cache": "none"}}
    prepared = prepare_segmentation(
        resolve_settings("synapse", "UNet_2D", flags=flags), read_trained_network(weights), lambda line: None
    )
    job = prepared.job(str(tmp_path / "out.zarr"), InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1), None)
    segmenter = IdleBlockWorker(job)
    segmenter.ready()
    segmenter.work("s0", (0, 0, 0))
    assert list(segmenter.ledger.done("s0")) == ["0_0_0"]
    assert not Path(job.output).exists()


def test_these_actors_keep_their_cores_and_their_memory_counts_as_an_actors() -> None:
    for kind in (TimedBlockWorker, IdleBlockWorker):
        name = f"ray::{kind.__name__}.work"
        assert name.startswith(WORKING)  # else they would give way to everything
        assert role_of(name, is_part=False, trains_itself=False) == TRAINER


@pytest.mark.parametrize("size", [SegmentationSize(), QUICK], ids=["full", "quick"])
def test_blocks_are_whole_shards_and_there_are_several(size: SegmentationSize) -> None:
    for image, block in ((size.image, size.block), (size.pair_image, size.pair_block)):
        shard = tuple(min(b, s) for b, s in zip(block, SHARD, strict=True))
        check_block_shape(block, plan_layout(image, shard).shard, image)
        assert np.prod([-(-n // b) for n, b in zip(image, block, strict=True)]) >= 4
    scheduled = np.prod([n // b for n, b in zip(size.scheduled, size.scheduled_block, strict=True)])
    assert size is QUICK or scheduled >= 100_000


def test_a_default_block_of_unet_2d_computes_little_twice() -> None:
    assert segmentation_speed.default_recomputed_share((0, 56, 56), (1, 2160, 2160)) == pytest.approx(
        (2160 / 2048) ** 2 - 1
    )
    assert segmentation_speed.default_recomputed_share((0, 56, 56), (1, 256, 256)) > 2


def test_the_image_is_mirrored_to_its_size(tmp_path: Path) -> None:
    from kasthuri_ray.volumes.opening import open_volume

    small = open_volume("phantom://em?shape=3,64,64&seed=7")
    path = segmentation_speed.make_image(str(tmp_path / "em.zarr"), small.uri, (2, 96, 160))
    made = open_volume(path)
    assert (made.dtype, made.bounds.shape) == (np.uint8, (2, 96, 160))
    voxels = made.read(made.bounds)
    np.testing.assert_array_equal(voxels[:, :64, :64], small.read(small.bounds)[:2])
    np.testing.assert_array_equal(voxels[:, 64:], voxels[:, 32:64][:, ::-1])
    np.testing.assert_array_equal(voxels[..., 64:128], voxels[..., :64][..., ::-1])


def test_fresh_weights_give_probabilities_that_differ(tmp_path: Path) -> None:
    path = segmentation_processes.make_weights(str(tmp_path / "w.pt"))
    network = build_network({"model_type": "unet"}).eval()
    load_weights(network, read_weights(Path(path).read_bytes(), path))
    image = torch.from_numpy(np.random.default_rng(1).random((1, 1, 16, 16), np.float32).repeat(8, 2).repeat(8, 3))
    with torch.no_grad():
        found = torch.softmax(network(image), 1)[0, 1]
    assert found.quantile(0.02) < 0.1
    assert found.quantile(0.98) > 0.9


def test_without_monai_there_is_nothing_and_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    given = segmentation_processes.monai(64, 0.25, (64, 64), 0.1)
    assert given == {"rates": None}
    found = measured()
    found.parts["monai"] = [given]
    line = next(line for line in segmentation_speed.segmentation_lines(found) if "MONAI" in line.name)
    assert (line.figure, line.ok) == (None, None)
    assert "not installed" in line.note


def measured() -> SegmentationResults:
    """Figures of a machine that multiplies 0.8 TFLOP/s in bf16."""
    how = {"precision": "bf16", "compile": True, "threads": 2, "tile": [1, 2160, 2160], "device": "cpu", "batch": 1}
    bare = {"rates": [2.7e6, 2.6e6], "products": {"1024": 0.8e12, "2048": 0.7e12}, "flop_per_voxel": 280256.0}
    job = {"rate": 2.4e6, "working_seconds": 100.0, "arithmetic": dict(how), "margin": [0, 56, 56]}
    job |= {"box": "0:12,0:4096,0:4096", "seconds": 150.0, "compile_seconds": 20.0, "until_first_block": 15.0}
    job |= {"read_seconds": [0.5], "write_seconds": [1.0], "wait_seconds": []}
    parts = {
        "bare": [bare | {"arithmetic": how}],
        "job": [job],
        "seed": [{"rates": [0.6e6, 0.62e6]}],
        "monai": [{"rates": [0.8e6]}],
        "schedule": [{"blocks": 102_400, "seconds": 81.92, "rss": [500e6, 560e6]}],
        "1 x 1 thread": [{"steady_rate": 1.4e6}],
        "2 x 1 thread": [{"steady_rate": 2.4e6}],
    }
    usage = {name: Usage(2 * GB, GB, GB, GB // 10, 4 * GB) for name in parts}
    return SegmentationResults(parts, usage)  # type: ignore[arg-type]


def test_figures_are_held_against_the_goals_of_segmentation() -> None:
    lines = {line.name.strip(): line for line in segmentation_speed.segmentation_lines(measured())}
    assert lines["what matrix products reach"].figure == pytest.approx(0.8e12 / 280256 / 1e6)
    assert lines["3 the whole job"].figure == pytest.approx(12 * 4096 * 4096 / 100 / 1e6)
    assert lines["4 a block of nothing"].figure == pytest.approx(0.8)
    assert {name: line.ok for name, line in lines.items() if line.goal} == {
        "of what they reach": True,
        "of the network alone": True,
        "computed twice": True,
        "times as fast": False,  # of both lines of that name the later: two actors, 1.71
        "times as fast as that": False,  # 2.01 / 0.8
        "4 a block of nothing": True,
        "the driver grew": True,
    }
    assert "vnc.zarr" in lines["7 reduced precision"].note


def test_reduced_precision_is_held_against_its_goals() -> None:
    found = measured()
    honest = {
        "task": "synapse",
        "precision": "bf16",
        "most": 0.1,
        "within": 0.995,
        "threshold": 0.4,
        "box": "17:20,:,:",
    }
    found.parts["honest"] = [honest | {"f1": {"ours": 0.8848, "float32": 0.8879}}]
    lines = {line.name.strip(): line for line in segmentation_speed.segmentation_lines(found)}
    assert lines["7 within 0.02 of float32"].ok is True
    assert lines["F1 apart"].ok is False


def test_a_job_that_runs_another_network_than_was_timed_alone_is_an_error() -> None:
    found = measured()
    found.parts["job"][0]["arithmetic"]["tile"] = [1, 1136, 1136]
    with pytest.raises(AssertionError, match="tile"):
        segmentation_speed.segmentation_lines(found)
