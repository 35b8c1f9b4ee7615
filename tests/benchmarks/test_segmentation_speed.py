"""The benchmark of segmentation: what it segments, and the comparison of its figures with goals."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kasthuri_ray.benchmarks import sample_image, segmentation_lines, segmentation_speed
from kasthuri_ray.benchmarks.harness import Usage
from kasthuri_ray.benchmarks.segmentation_lines import (
    BARE,
    BARE_PLAIN,
    CHUNKFLOW,
    JOB,
    JOB_PLAIN,
    MONAI,
    SEED,
    SegmentationResults,
)
from kasthuri_ray.benchmarks.segmentation_speed import QUICK, SegmentationSize, job_shape
from kasthuri_ray.output.block_grid import check_block_shape
from kasthuri_ray.output.layout import SHARD, plan_layout

GB = 10**9


@pytest.mark.parametrize("size", [SegmentationSize(), QUICK], ids=["full", "quick"])
@pytest.mark.parametrize("rate", [0.2e6, 4e6])
def test_blocks_are_whole_shards_and_there_are_several(size: SegmentationSize, rate: float) -> None:
    for seconds in (size.job_seconds, size.plain_seconds):
        image = job_shape(size, rate, seconds)
        shard = tuple(min(b, s) for b, s in zip(size.block, SHARD, strict=True))
        check_block_shape(size.block, plan_layout(image, shard).shard, image)
        assert np.prod([-(-n // b) for n, b in zip(image, size.block, strict=True)]) >= 4


def test_a_fast_network_segments_a_larger_image() -> None:
    size = SegmentationSize()
    slow, fast = (np.prod(job_shape(size, rate, 20.0)) / rate for rate in (0.4e6, 4e6))
    assert slow == pytest.approx(20.0, rel=0.2)
    assert fast == pytest.approx(20.0, rel=0.2)


def test_unet_2d_computes_few_voxels_of_a_default_block_twice() -> None:
    assert segmentation_lines.default_recomputed_share((0, 56, 56), (1, 2160, 2160)) == pytest.approx(
        (2160 / 2048) ** 2 - 1
    )
    assert segmentation_lines.default_recomputed_share((0, 56, 56), (1, 256, 256)) > 2


def test_the_image_is_mirrored_until_it_has_the_requested_shape(tmp_path: Path) -> None:
    from kasthuri_ray.volumes.opening import open_volume

    small = open_volume("phantom://em?shape=3,64,64&seed=7")
    path = sample_image.mirror_image(str(tmp_path / "em.zarr"), small.uri, (2, 96, 160))
    large = open_volume(path)
    assert (large.dtype, large.bounds.shape) == (np.uint8, (2, 96, 160))
    voxels = large.read(large.bounds)
    np.testing.assert_array_equal(voxels[:, :64, :64], small.read(small.bounds)[:2])
    np.testing.assert_array_equal(voxels[:, 64:], voxels[:, 32:64][:, ::-1])
    np.testing.assert_array_equal(voxels[..., 64:128], voxels[..., :64][..., ::-1])


def make_results() -> SegmentationResults:
    """Return results of a machine that multiplies 0.8 TFLOP/s in bf16."""
    settings = {"precision": "bf16", "compile": True, "threads": 2, "tile": [1, 1136, 1136], "fold": True, "batch": 1}
    network = {
        "products": {"1024": 0.8e12, "2048": 0.7e12},
        "flop_per_voxel": 280256.0,
        "default_tile": [1, 2160, 2160],
        "kind": "bf16",
    }
    job: dict[str, Any] = {"rate": 2.4e6, "working_seconds": 10.0, "voxels": 24_000_000, "margin": [0, 56, 56]}
    job |= {"box": "0:10,0:2048,0:2048", "seconds": 50.0, "compile_seconds": 20.0, "until_first_block": 15.0}
    job |= {"read_seconds": [0.5], "write_seconds": [1.0], "arithmetic": dict(settings), "actor_peak": 3 * GB}
    job |= {"spent": {"network": 9.4, "reading": 0.3, "writing": 0.2, "between": 0.1}}
    parts: dict[str, list[dict[str, Any]]] = {
        BARE: [network | {"rates": [2.7e6, 2.6e6], "arithmetic": settings}],
        BARE_PLAIN: [network | {"rates": [2.1e6], "arithmetic": settings | {"fold": False}}],
        JOB: [job],
        JOB_PLAIN: [job | {"rate": 2.0e6}],
        SEED: [{"rates": [0.6e6, 0.62e6]}],
        MONAI: [{"rates": [1.8e6]}],
        CHUNKFLOW: [{"rates": [1.1e6]}],
    }
    usage = {name: Usage(2 * GB, GB, GB, GB // 10, 4 * GB) for name in parts}
    return SegmentationResults(parts, usage)


def test_figures_are_compared_with_the_goals_of_segmentation() -> None:
    lines = {line.name.strip(): line for line in segmentation_lines.segmentation_lines(make_results(), 500.0)}
    assert lines["limit by matrix products"].figure == pytest.approx(0.8e12 / 280256 / 1e6)
    assert lines["4 the whole job"].figure == pytest.approx(10 * 2048 * 2048 / 10 / 1e6)
    assert "1 turn, 2 runs" in lines["1 network alone"].note
    assert {name: line.ok for name, line in lines.items() if line.goal} == {
        "of the limit by matrix products": True,
        "of the network alone": True,
        "computed twice": True,
        "times as fast as seed": True,  # 4.19 / 0.61
        "times as fast as MONAI": False,  # 4.19 / 1.8
        "times as fast as chunkflow": True,
        "7 this benchmark": False,  # 8.3 minutes
    }
    assert "vnc.zarr" in lines["6 reduced precision"].note


def test_memory_of_the_process_that_computes_stands_below_each_speed() -> None:
    lines = segmentation_lines.segmentation_lines(make_results())
    after = {one.name.strip(): other for one, other in itertools.pairwise(lines)}
    for name in ("1 network alone", "seed", "MONAI", "chunkflow"):
        assert (after[name].name.strip(), after[name].figure) == ("its peak memory", 2.0)
    for name in ("2 the whole job", "not folded"):  # as an actor itself says
        assert (after[name].name.strip(), after[name].figure) == ("its peak memory", 3.0)


def test_the_shares_of_the_time_of_a_job_add_up_to_all_of_it() -> None:
    lines = segmentation_lines.segmentation_lines(make_results())
    names = [line.name.strip() for line in lines]
    start = names.index("3 time of the job: the network")
    shares = [line.figure for line in lines[start : start + 5]]
    assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx(24 / 2.65 / 10.0)
    assert shares[2:] == pytest.approx([0.03, 0.01, 0.02])


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
    lines = {line.name.strip(): line for line in segmentation_lines.segmentation_lines(results, 600.0)}
    assert lines["6 within 0.02 of float32"].ok is True
    assert lines["difference of F1"].ok is False
    assert lines["7 this benchmark"].ok is None  # 8 minutes are for the other parts
    results.parts["honest"][0]["within"] = {"ours": 0.995, "plain": 0.997}
    lines = {line.name.strip(): line for line in segmentation_lines.segmentation_lines(results)}
    assert lines["6 within 0.02 of float32"].ok is False


def test_the_table_says_which_tools_are_not_installed() -> None:
    results = make_results()
    results.parts[MONAI] = results.parts[CHUNKFLOW] = [{"rates": None}]
    lines = {line.name.strip(): line for line in segmentation_lines.segmentation_lines(results)}
    for name in (MONAI, CHUNKFLOW):
        assert (lines[name].figure, lines[name].ok) == (None, None)
        assert f"pip install --no-deps {name.lower()}" in lines[name].note


def test_a_job_with_other_settings_than_the_network_alone_is_an_error() -> None:
    results = make_results()
    results.parts[JOB][0]["arithmetic"]["tile"] = [1, 2160, 2160]
    with pytest.raises(AssertionError, match="tile"):
        segmentation_lines.segmentation_lines(results)


def test_candidates_are_measured_in_turns_and_the_job_follows_from_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results, calls = make_results(), []

    class Parts:
        reporter = None

        def show(self, text: str) -> None:
            pass

        def run(self, part: str, arguments: dict[str, Any], module: str) -> tuple[dict[str, Any], Usage]:
            calls.append((part, arguments))
            names = {"bare": BARE, "job": JOB, "seed": SEED, "monai": MONAI, "chunkflow": CHUNKFLOW}
            return results.parts[names[part]][0], Usage(GB)

    monkeypatch.setattr(segmentation_speed, "report_lines", lambda *given: None)
    monkeypatch.setattr(segmentation_speed, "mirror_image", lambda path, source, shape: path)
    segmentation_speed.run_segmentation_benchmark(Parts(), quick=True, out=str(tmp_path / "x.json"))  # type: ignore[arg-type]
    assert [part for part, _ in calls] == ["bare", "job", "seed", "monai", "chunkflow", "bare", "job"]
    assert [arguments["fold"] for _, arguments in calls if "fold" in arguments] == ["on", "on", "off", "off"]
