"""The benchmark of reading and writing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kasthuri_ray.benchmarks import io_processes, io_speed, loopback_boss
from kasthuri_ray.benchmarks.harness import Usage
from kasthuri_ray.benchmarks.io_speed import FORMATS, WRITING, cores_per_card, io_lines, smooth_probabilities
from kasthuri_ray.progress import Reporter
from kasthuri_ray.segmentation.io_rates import reading_rate
from kasthuri_ray.volumes.opening import open_volume


class InProcess:
    """Runs parts in this process."""

    def __init__(self) -> None:
        self.reporter = Reporter()

    def show(self, text: str) -> None:
        pass

    def run(self, part: str, arguments: dict[str, Any], module: str) -> tuple[dict[str, Any], Usage]:
        parts = {
            "stores": io_processes.write_stores,
            "read": io_processes.time_reading,
            "write": io_processes.time_writing,
        }
        return json.loads(json.dumps(parts[part](**arguments))), Usage()  # type: ignore[operator]


def test_every_format_is_read_and_the_output_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "io.json"
    lines = io_speed.run_io_benchmark(InProcess(), quick=True, out=str(out))  # type: ignore[arg-type]
    assert len(lines) == 2 * len(FORMATS) + 1
    record = json.loads(out.read_text())
    assert set(record["parts"]) == {*FORMATS, WRITING}
    for name in FORMATS:
        found = record["parts"][name]
        assert len(found["rates"]) >= 2
        assert reading_rate(found["format"]) is not None  # a plan finds the rate of this format
    assert "cores read and write 500 Mvoxels/s" in capsys.readouterr().out


def test_the_stores_hold_the_voxels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 256, (3, 96, 64), np.uint8)
    np.save(tmp_path / "em.npy", voxels)
    uris = io_processes.write_stores(str(tmp_path / "em.npy"), str(tmp_path))
    for name, uri in uris.items():
        volume = open_volume(uri)
        found = volume.read(volume.bounds)
        if name == "precomputed jpeg":
            assert found.shape == voxels.shape  # jpeg loses details
        else:
            np.testing.assert_array_equal(found, voxels)


def test_the_loopback_boss_serves_the_voxels() -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (4, 40, 50), np.uint8)
    with loopback_boss.loopback_boss(voxels) as options:
        volume = open_volume(loopback_boss.URI, boss=options)
        np.testing.assert_array_equal(volume.read(volume.bounds), voxels)


def test_cores_for_a_card_follow_from_the_rates_of_reading_and_writing() -> None:
    assert cores_per_card(250.0, 500.0) == pytest.approx(3.0)
    results = {name: {"rates": [250e6, 240e6, 260e6]} for name in FORMATS}
    lines = io_lines({**results, WRITING: {"rates": [500e6], "compression": 20.0}})
    assert lines[0].figure == pytest.approx(250.0)
    assert (lines[1].figure, lines[1].unit) == (pytest.approx(3.0), "cores")
    assert "3 runs" in lines[0].note
    assert lines[-1].figure == pytest.approx(500.0)


def test_the_probabilities_that_are_written_are_mostly_0_or_255_and_compress_well() -> None:
    volume = open_volume("phantom://em?shape=2,256,256&seed=7")
    voxels = smooth_probabilities(volume.read(volume.bounds))
    assert voxels.dtype == np.uint8
    assert ((voxels < 10) | (voxels > 245)).mean() > 0.6
    assert 0.5 < voxels.mean() / 255 < 0.95 or 0.05 < voxels.mean() / 255 < 0.5
