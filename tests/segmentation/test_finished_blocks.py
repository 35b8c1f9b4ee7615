"""Which blocks can be done now: after their sources, and not at all if there is nothing to read."""

import pytest

from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((2, 64, 600))


@pytest.fixture
def job(tmp_path, run, em, make_job):
    """Return a job of 2 x 5 blocks with a pyramid of two levels."""
    cut = {"shard": [2, 32, 64], "chunk": [2, 32, 64], "block": [2, 32, 128]}
    return make_job(run, tmp_path / "out.zarr", copy=str(tmp_path / "copy"), image=em, objects=True, **cut)


@pytest.fixture
def phases(job, phases_of):
    return phases_of(job)


def test_blocks_of_a_level_wait_for_those_of_the_level_below(job, phases):
    finished = FinishedBlocks(Ledger.beside(job.output))
    assert len(list(finished.pending(phases["s0"]))) == 10
    assert list(finished.pending(phases["s1"])) == []
    for index in [(0, 0, 0), (0, 1, 0), (0, 0, 1)]:
        finished.note_done(phases["s0"], index, wrote=True)
    assert len(list(finished.pending(phases["s0"]))) == 7
    assert list(finished.pending(phases["s1"])) == [(0, 0, 0)]
    assert sorted(finished.pending(phases["precomputed-s0"])) == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert list(finished.pending(phases["precomputed-s1"])) == []
    assert not finished.is_complete(phases["s0"])


def test_blocks_recorded_in_the_ledger_are_done(job, phases):
    ledger = Ledger.beside(job.output)
    ledger.record("s0", "0_1_3")
    ledger.record("s0", "0_1_4", blank=True)
    finished = FinishedBlocks(ledger)
    assert (0, 1, 3) not in set(finished.pending(phases["s0"]))
    assert finished.done(phases["s0"]) == {"0_1_3": True, "0_1_4": False}
    assert finished.num_blank(phases["s0"]) == 1
    finished.note_done(phases["s0"], (0, 1, 4), wrote=False)  # a second time
    assert finished.num_blank(phases["s0"]) == 1


def test_blocks_made_only_from_blank_blocks_are_done_without_reading(job, phases, tmp_path):
    finished = FinishedBlocks(Ledger.beside(job.output))
    for index in finished.pending(phases["s0"]):
        finished.note_done(phases["s0"], index, wrote=index in [(0, 0, 0), (0, 1, 4)])
    assert finished.is_complete(phases["s0"])
    assert len(list(finished.pending(phases["s1"]))) == 2
    assert finished.is_complete(phases["s1"]) is False
    assert finished.num_blank(phases["s1"]) == 3
    assert sorted(finished.pending(phases["precomputed-s0"])) == [(0, 0, 0), (0, 1, 4)]
    # A block is labelled with the voxels beyond its upper ends: so are blank blocks before one that is not blank.
    assert sorted(finished.pending(phases["objects"])) == [(0, 0, 0), (0, 0, 3), (0, 0, 4), (0, 1, 3), (0, 1, 4)]
    for index in list(finished.pending(phases["objects"])):
        finished.note_done(phases["objects"], index, wrote=True)
    assert finished.is_complete(phases["objects"])
    assert list(finished.written(phases["objects"])) == ["0_0_0", "0_0_3", "0_0_4", "0_1_3", "0_1_4"]
    assert not (tmp_path / "out.zarr.ledger").exists()
