"""What is told of a job: one live line, lines, and a file for scripts that watch."""

import io
import json

import pytest

from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.progress import Reporter
from kasthuri_ray.segmentation import progress_report, segmentation_job
from kasthuri_ray.segmentation.actor_pool import PhaseProgress
from kasthuri_ray.segmentation.progress_report import SegmentationProgress
from kasthuri_ray.segmentation.segmentation_job import BlockTracker


class Gauge:
    def __init__(self, name, description, tag_keys):
        self.values = {}

    def set(self, value, tags):
        self.values[tags["phase"]] = value


@pytest.fixture
def told(tmp_path, write_run, stores, job_of, monkeypatch):
    """A Telling of a job of 8 blocks, two of them done before, its Todo, the text it wrote, and a clock to turn."""
    from ray.util import metrics

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    em = stores.zarr(tmp_path / "em.zarr", stores.image((2, 64, 128)))
    job = job_of(write_run(tmp_path / "run"), tmp_path / "out.zarr", image=em, shard=[2, 32, 32], block=[2, 32, 32])
    ledger = Ledger.beside(job.output)
    ledger.record("s0", "0_0_0")
    ledger.record("s0", "0_0_1", blank=True)
    todo, text = BlockTracker(job, ledger), io.StringIO()
    now = [100.0]
    monkeypatch.setattr(progress_report.time, "monotonic", lambda: now[0])
    telling = SegmentationProgress(job, todo, Reporter(text, plain_period_s=60))
    return telling, todo, text, now


def progress(done=0, aside=0, actors=2):
    return PhaseProgress("s0", done, aside, 2, actors, 0)


def state_of(telling):
    return json.loads(open(f"{telling.job.output}.progress.json").read())


def test_the_file_holds_what_scripts_watch(told):
    telling, todo, _, now = told
    blocks = len(segmentation_job.phase_grid(telling.job, "s0"))
    telling.begin("s0")
    begun = state_of(telling)
    assert begun == {
        **{"state": "running", "blocks": blocks, "done": 2, "skipped": 1, "set_aside": []},
        **{"mvoxels_per_second": None, "seconds_left": None},
    }
    telling.tick(progress())
    now[0] += 10
    todo.note_done("s0", (0, 1, 0), wrote=True)
    telling.note_done((0, 1, 0), computed=True)
    todo.note_done("s0", (0, 1, 1), wrote=False)
    telling.note_done((0, 1, 1), computed=False)
    telling.note_aside((0, 1, 2))
    assert state_of(telling)["set_aside"] == ["0_1_2"]
    now[0] += 6
    telling.tick(progress(done=2, aside=1))
    state = state_of(telling)
    assert (state["done"], state["skipped"], state["set_aside"]) == (4, 2, ["0_1_2"])
    voxels = segmentation_job.phase_grid(telling.job, "s0").box((0, 1, 0)).num_voxels
    assert state["mvoxels_per_second"] == pytest.approx(voxels / 16 / 1e6)
    assert state["seconds_left"] == pytest.approx(16 / 2 * (blocks - 4 - 1))
    telling.finish()
    assert state_of(telling)["state"] == "set aside"
    assert state_of(telling)["done"] == 4


def test_a_job_that_ends_says_how(told):
    telling, *_ = told
    telling.begin("s0")
    telling.fail()
    assert state_of(telling)["state"] == "failed"
    assert state_of(telling)["done"] == 2
    telling.finish()
    assert state_of(telling)["state"] == "done"
    assert state_of(telling)["seconds_left"] == 0


def test_the_live_line_and_the_metrics(told):
    telling, todo, _, now = told
    blocks = len(segmentation_job.phase_grid(telling.job, "s0"))
    telling.begin("s0")
    telling.tick(progress())
    now[0] += 2
    todo.note_done("s0", (0, 1, 0), wrote=True)
    telling.note_done((0, 1, 0), computed=True)
    telling.state["set_aside"].append("0_1_3")
    telling.tick(progress(done=1))
    left = 2 * (blocks - 3)
    line = telling.line(progress(done=1), 3, left)
    assert line == f"segmenting: 3/{blocks} blocks  2 actors  0.00 Mvoxels/s  {left} s left  1 set aside"
    values = {name: gauge.values["s0"] for name, gauge in telling._metrics.items()}
    assert values["blocks_done"] == 3
    assert values["actors"] == 2
    assert values["mvoxels_per_second"] > 0


def test_elsewhere_than_in_a_terminal_it_is_a_line_a_minute(told, monkeypatch):
    telling, _, text, now = told
    monkeypatch.setattr("kasthuri_ray.progress.time.monotonic", lambda: now[0])
    telling.begin("s0")
    for _ in range(150):
        now[0] += 1
        telling.tick(progress())
    assert len([line for line in text.getvalue().splitlines() if line.startswith("segmenting: ")]) == 2


def test_a_store_that_takes_no_progress_does_not_stop_the_work(told, monkeypatch):
    telling, *_ = told

    def full(output, state):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(progress_report, "write_progress", full)
    telling.begin("s0")
    telling.finish()
