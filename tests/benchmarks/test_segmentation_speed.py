"""The benchmark of segmentation: what it segments, and the comparison of its figures with goals."""

from pathlib import Path

import numpy as np
import pytest

from kasthuri_ray.benchmarks import segmentation_speed
from kasthuri_ray.benchmarks.harness import Usage
from kasthuri_ray.benchmarks.segmentation_speed import QUICK, SegmentationResults, SegmentationSize
from kasthuri_ray.output.block_grid import check_block_shape
from kasthuri_ray.output.layout import SHARD, plan_layout

GB = 10**9


@pytest.mark.parametrize("size", [SegmentationSize(), QUICK], ids=["full", "quick"])
def test_blocks_are_whole_shards_and_there_are_several(size: SegmentationSize) -> None:
    for image, block in ((size.image, size.block), (size.pair_image, size.pair_block)):
        shard = tuple(min(b, s) for b, s in zip(block, SHARD, strict=True))
        check_block_shape(block, plan_layout(image, shard).shard, image)
        assert np.prod([-(-n // b) for n, b in zip(image, block, strict=True)]) >= 4
    num_scheduled = np.prod([n // b for n, b in zip(size.scheduled, size.scheduled_block, strict=True)])
    assert size is QUICK or num_scheduled >= 100_000


def test_unet_2d_computes_few_voxels_of_a_default_block_twice() -> None:
    assert segmentation_speed.default_recomputed_share((0, 56, 56), (1, 2160, 2160)) == pytest.approx(
        (2160 / 2048) ** 2 - 1
    )
    assert segmentation_speed.default_recomputed_share((0, 56, 56), (1, 256, 256)) > 2


def test_the_image_is_mirrored_until_it_has_the_requested_shape(tmp_path: Path) -> None:
    from kasthuri_ray.volumes.opening import open_volume

    small = open_volume("phantom://em?shape=3,64,64&seed=7")
    path = segmentation_speed.mirror_image(str(tmp_path / "em.zarr"), small.uri, (2, 96, 160))
    large = open_volume(path)
    assert (large.dtype, large.bounds.shape) == (np.uint8, (2, 96, 160))
    voxels = large.read(large.bounds)
    np.testing.assert_array_equal(voxels[:, :64, :64], small.read(small.bounds)[:2])
    np.testing.assert_array_equal(voxels[:, 64:], voxels[:, 32:64][:, ::-1])
    np.testing.assert_array_equal(voxels[..., 64:128], voxels[..., :64][..., ::-1])


def make_results() -> SegmentationResults:
    """Return results of a machine that multiplies 0.8 TFLOP/s in bf16."""
    settings = {
        "precision": "bf16",
        "compile": True,
        "threads": 2,
        "tile": [1, 2160, 2160],
        "device": "cpu",
        "batch": 1,
    }
    network = {"rates": [2.7e6, 2.6e6], "products": {"1024": 0.8e12, "2048": 0.7e12}, "flop_per_voxel": 280256.0}
    job = {"rate": 2.4e6, "working_seconds": 100.0, "arithmetic": dict(settings), "margin": [0, 56, 56]}
    job |= {"box": "0:12,0:4096,0:4096", "seconds": 150.0, "compile_seconds": 20.0, "until_first_block": 15.0}
    job |= {"read_seconds": [0.5], "write_seconds": [1.0], "wait_seconds": []}
    parts = {
        "bare": [network | {"arithmetic": settings}],
        "job": [job],
        "seed": [{"rates": [0.6e6, 0.62e6]}],
        "monai": [{"rates": [0.8e6]}],
        "schedule": [{"blocks": 102_400, "seconds": 81.92, "rss": [500e6, 560e6]}],
        "1 x 1 thread": [{"steady_rate": 1.4e6}],
        "2 x 1 thread": [{"steady_rate": 2.4e6}],
    }
    usage = {name: Usage(2 * GB, GB, GB, GB // 10, 4 * GB) for name in parts}
    return SegmentationResults(parts, usage)  # type: ignore[arg-type]


def test_figures_are_compared_with_the_goals_of_segmentation() -> None:
    lines = {line.name.strip(): line for line in segmentation_speed.segmentation_lines(make_results())}
    assert lines["limit by matrix products"].figure == pytest.approx(0.8e12 / 280256 / 1e6)
    assert lines["3 the whole job"].figure == pytest.approx(12 * 4096 * 4096 / 100 / 1e6)
    assert lines["4 a block without a network"].figure == pytest.approx(0.8)
    assert {name: line.ok for name, line in lines.items() if line.goal} == {
        "of the limit by matrix products": True,
        "of the network alone": True,
        "computed twice": True,
        "times as fast as the seed": True,  # 2.01 / 0.61
        "times as fast as MONAI": False,  # 2.01 / 0.8
        "4 a block without a network": True,
        "growth of the driver": True,
        "times as fast as one actor": False,  # 1.71
    }
    assert "vnc.zarr" in lines["7 reduced precision"].note


def test_reduced_precision_is_compared_with_its_goals() -> None:
    results = make_results()
    comparison = {
        "task": "synapse",
        "precision": "bf16",
        "most": 0.1,
        "within": {"ours": 0.995, "plain": 0.993},
        "threshold": 0.4,
        "box": "17:20,:,:",
    }
    results.parts["honest"] = [comparison | {"f1": {"ours": 0.8848, "float32": 0.8879}}]
    lines = {line.name.strip(): line for line in segmentation_speed.segmentation_lines(results)}
    assert lines["7 within 0.02 of float32"].ok is True
    assert lines["difference of F1"].ok is False
    results.parts["honest"][0]["within"] = {"ours": 0.995, "plain": 0.997}
    lines = {line.name.strip(): line for line in segmentation_speed.segmentation_lines(results)}
    assert lines["7 within 0.02 of float32"].ok is False


def test_the_table_says_that_monai_is_not_installed() -> None:
    results = make_results()
    results.parts["monai"] = [{"rates": None}]
    line = next(line for line in segmentation_speed.segmentation_lines(results) if "MONAI" in line.name)
    assert (line.figure, line.ok) == (None, None)
    assert "not installed" in line.note


def test_a_job_with_other_settings_than_the_network_alone_is_an_error() -> None:
    results = make_results()
    results.parts["job"][0]["arithmetic"]["tile"] = [1, 1136, 1136]
    with pytest.raises(AssertionError, match="tile"):
        segmentation_speed.segmentation_lines(results)
