"""Phases of a job: their order, names and blocks, and what their blocks are made from."""

import pytest


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((3, 110, 600))


@pytest.fixture
def phases(run, em, make_job, phases_of, tmp_path):
    """Return the phases, by name, of a job with all that it can write, in 2 x 10 blocks off the start of the image."""
    cut = {"box": "1:3,10:70,:", "shard": [2, 32, 64], "chunk": [2, 32, 32], "block": [2, 32, 64]}
    return phases_of(make_job(run, tmp_path / "out.zarr", image=em, objects=True, copy=str(tmp_path / "copy"), **cut))


def test_phases_run_in_the_order_network_pyramid_objects_copy(phases):
    assert {name: phase.label for name, phase in phases.items()} == {
        "s0": "segmenting",
        "s1": "pyramid s1",
        "objects": "objects",
        "precomputed-s0": "precomputed s0",
        "precomputed-s1": "precomputed s1",
    }


def test_without_objects_and_copy_there_are_only_the_network_and_the_pyramid(run, em, make_job, phases_of, tmp_path):
    assert list(phases_of(make_job(run, tmp_path / "out.zarr", image=em))) == ["s0", "s1"]


def test_blocks_of_the_network_are_of_the_image_and_those_of_the_other_phases_of_a_level(phases):
    assert str(phases["s0"].grid.box((0, 1, 9))) == "1:3,42:70,576:600"
    assert str(phases["objects"].grid.box((0, 1, 9))) == str(phases["precomputed-s0"].grid.box((0, 1, 9)))
    assert str(phases["objects"].grid.box((0, 1, 9))) == "0:2,32:60,576:600"
    assert str(phases["s1"].grid.box((0, 0, 4))) == str(phases["precomputed-s1"].grid.box((0, 0, 4)))
    assert phases["s1"].grid.bounds.shape == (2, 30, 300)


def test_a_block_is_made_from_the_blocks_that_hold_its_voxels(phases):
    assert phases["s0"].source_blocks((0, 0, 0)) == []
    assert phases["s1"].source_blocks((0, 0, 4)) == ["0_0_8", "0_0_9", "0_1_8", "0_1_9"]
    assert phases["objects"].source_blocks((0, 0, 3)) == ["0_0_3", "0_0_4", "0_1_3", "0_1_4"]
    assert phases["objects"].source_blocks((0, 1, 9)) == ["0_1_9"]
    assert phases["precomputed-s0"].source_blocks((0, 1, 3)) == ["0_1_3"]
    assert phases["precomputed-s1"].source is phases["s1"]
    assert phases["precomputed-s1"].source_blocks((0, 0, 2)) == ["0_0_2"]


def test_only_the_objects_wait_until_their_source_is_complete(phases):
    assert [name for name, phase in phases.items() if phase.postponed] == ["objects"]
