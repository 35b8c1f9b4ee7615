"""Which blocks can be done now: after what they are made of, and never where there is nothing to read."""

import pytest

from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.segmentation_job import BlockTracker, phase_level


@pytest.fixture(scope="module")
def em(tmp_path_factory, stores):
    return stores.zarr(tmp_path_factory.mktemp("em") / "em.zarr", stores.image((2, 64, 600)))


@pytest.fixture
def job(tmp_path, write_run, em, job_of):
    """Of 2 x 5 blocks with a pyramid of two levels."""
    run = write_run(tmp_path / "run")
    cut = {"shard": [2, 32, 64], "chunk": [2, 32, 64], "block": [2, 32, 128]}
    return job_of(run, tmp_path / "out.zarr", copy=str(tmp_path / "copy"), image=em, objects=True, **cut)


def test_blocks_of_a_level_wait_for_those_below(job):
    todo = BlockTracker(job, Ledger.beside(job.output))
    assert len(list(todo.pending("s0"))) == 10
    assert list(todo.pending("s1")) == []
    for index in [(0, 0, 0), (0, 1, 0), (0, 0, 1)]:
        todo.note_done("s0", index, wrote=True)
    assert len(list(todo.pending("s0"))) == 7
    assert list(todo.pending("s1")) == [(0, 0, 0)]
    assert sorted(todo.pending("precomputed-s0")) == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert list(todo.pending("precomputed-s1")) == []
    assert not todo.is_whole("s0")


def test_what_was_recorded_is_done_for_whoever_comes_next(job):
    ledger = Ledger.beside(job.output)
    ledger.record("s0", "0_1_3")
    ledger.record("s0", "0_1_4", blank=True)
    todo = BlockTracker(job, ledger)
    assert (0, 1, 3) not in set(todo.pending("s0"))
    assert todo.done("s0") == {"0_1_3": True, "0_1_4": False}
    assert todo.num_blank("s0") == 1
    todo.note_done("s0", (0, 1, 4), wrote=False)  # heard of twice
    assert todo.num_blank("s0") == 1


def test_what_is_made_of_blank_blocks_is_done_by_that(job, content_of, tmp_path):
    todo = BlockTracker(job, Ledger.beside(job.output))
    for index in todo.pending("s0"):
        todo.note_done("s0", index, wrote=index in [(0, 0, 0), (0, 1, 4)])
    assert todo.is_whole("s0")
    assert len(list(todo.pending("s1"))) == 2
    assert todo.is_whole("s1") is False
    assert todo.num_blank("s1") == 3
    assert sorted(todo.pending("precomputed-s0")) == [(0, 0, 0), (0, 1, 4)]
    # A block is labelled with what lies beyond its upper ends: those before a block that is not blank are too.
    assert sorted(todo.pending("objects")) == [(0, 0, 0), (0, 0, 3), (0, 0, 4), (0, 1, 3), (0, 1, 4)]
    for index in list(todo.pending("objects")):
        todo.note_done("objects", index, wrote=True)
    assert todo.is_whole("objects")
    assert list(todo.written("objects")) == ["0_0_0", "0_0_3", "0_0_4", "0_1_3", "0_1_4"]
    assert not (tmp_path / "out.zarr.ledger").exists()


def test_names():
    assert phase_level("s3") == phase_level("precomputed-s3") == 3
    assert block_name((1, 20, 3)) == "1_20_3"
