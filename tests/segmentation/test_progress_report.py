"""Progress of a job: one live line, lines outside a terminal, and a file for scripts that watch."""

import io
import json
from pathlib import Path

import pytest

from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.progress import Reporter
from kasthuri_ray.segmentation import progress_report
from kasthuri_ray.segmentation.actor_pool import PhaseProgress
from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks
from kasthuri_ray.segmentation.progress_report import SegmentationProgress


class Gauge:
    """A metric of Ray that keeps its values."""

    def __init__(self, name, description, tag_keys):
        self.values = {}

    def set(self, value, tags):
        self.values[tags["phase"]] = value


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((2, 64, 128))


@pytest.fixture
def report(tmp_path, run, em, make_job, phases_of, monkeypatch):
    """Return the progress of a job of 8 blocks, of which two are done, its finished, its text, and a clock to set."""
    from ray.util import metrics

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    job = make_job(run, tmp_path / "out.zarr", image=em, shard=[2, 32, 32], block=[2, 32, 32])
    ledger = Ledger.beside(job.output)
    ledger.record("s0", "0_0_0")
    ledger.record("s0", "0_0_1", blank=True)
    finished, text, network = FinishedBlocks(ledger), io.StringIO(), phases_of(job)["s0"]
    now = [100.0]
    monkeypatch.setattr(progress_report.time, "monotonic", lambda: now[0])
    return SegmentationProgress(job.output, network, finished, Reporter(text, plain_period_s=60)), finished, text, now


def make_progress(done=0, set_aside=0, actors=2):
    return PhaseProgress("s0", done, set_aside, 2, actors, 0)


def read_state(progress):
    return json.loads(Path(f"{progress.output}.progress.json").read_text())


def test_the_file_holds_what_scripts_watch(report):
    progress, finished, _, now = report
    blocks = len(progress.network.grid)
    progress.start_phase(progress.network)
    assert read_state(progress) == {
        **{"state": "running", "blocks": blocks, "done": 2, "skipped": 1, "set_aside": []},
        **{"mvoxels_per_second": None, "seconds_left": None, "absent_chunks": 0, "nan_voxels": 0},
        "chunks": progress.network.job.image.count_chunks(progress.network.job.box),
    }
    progress.tick(make_progress())
    now[0] += 10
    finished.note_done(progress.network, (0, 1, 0), wrote=True)
    progress.note_done((0, 1, 0), True, {"absent_chunks": 2, "nan_voxels": 7})
    finished.note_done(progress.network, (0, 1, 1), wrote=False)
    progress.note_done((0, 1, 1), False, {"absent_chunks": 1})
    progress.note_set_aside((0, 1, 2))
    assert read_state(progress)["set_aside"] == ["0_1_2"]
    now[0] += 6
    progress.tick(make_progress(done=2, set_aside=1))
    state = read_state(progress)
    assert (state["done"], state["skipped"], state["set_aside"]) == (4, 2, ["0_1_2"])
    assert (state["absent_chunks"], state["nan_voxels"]) == (3, 7)
    voxels = progress.network.grid.box((0, 1, 0)).num_voxels
    assert state["mvoxels_per_second"] == pytest.approx(voxels / 16 / 1e6)
    assert state["seconds_left"] == pytest.approx(16 / 2 * (blocks - 4 - 1))
    progress.finish()
    assert read_state(progress)["state"] == "set aside"
    assert read_state(progress)["done"] == 4
    resumed = SegmentationProgress(progress.output, progress.network, finished, progress.reporter)
    assert (resumed.state["absent_chunks"], resumed.state["nan_voxels"]) == (3, 7)
    numbers = {"num_blocks": blocks, "num_done": 4, "num_skipped": 2}
    assert progress.metrics == {**numbers, "mvoxels_per_second": state["mvoxels_per_second"]}


def test_the_file_says_how_the_job_ended(report):
    progress, *_ = report
    progress.start_phase(progress.network)
    progress.fail()
    assert read_state(progress)["state"] == "failed"
    assert read_state(progress)["done"] == 2
    progress.finish()
    assert read_state(progress)["state"] == "done"
    assert read_state(progress)["seconds_left"] == 0


def test_the_live_line_and_the_metrics_show_blocks_actors_and_rate(report):
    progress, finished, _, now = report
    blocks = len(progress.network.grid)
    progress.start_phase(progress.network)
    progress.tick(make_progress())
    now[0] += 2
    finished.note_done(progress.network, (0, 1, 0), wrote=True)
    progress.note_done((0, 1, 0), computed=True)
    progress.state["set_aside"].append("0_1_3")
    progress.tick(make_progress(done=1))
    left = 2 * (blocks - 3)
    line = progress.line(make_progress(done=1), 3, left)
    assert line == f"segmenting: 3/{blocks} blocks  2 actors  0.00 Mvoxels/s  {left} s left  1 set aside"
    values = {name: gauge.values["s0"] for name, gauge in progress._gauges.items()}
    assert values["blocks_done"] == 3
    assert values["actors"] == 2
    assert values["mvoxels_per_second"] > 0


def test_outside_a_terminal_a_line_is_printed_once_a_minute(report, monkeypatch):
    progress, _, text, now = report
    monkeypatch.setattr("kasthuri_ray.progress.time.monotonic", lambda: now[0])
    progress.start_phase(progress.network)
    for _ in range(150):
        now[0] += 1
        progress.tick(make_progress())
    assert len([line for line in text.getvalue().splitlines() if line.startswith("segmenting: ")]) == 2


def test_a_progress_file_that_cannot_be_written_does_not_stop_the_work(report, monkeypatch):
    progress, *_ = report

    def fail(output, state):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(progress_report, "write_progress", fail)
    progress.start_phase(progress.network)
    progress.finish()
