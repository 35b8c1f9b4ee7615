"""What counts against a block, and against the actor or node where it failed."""

from kasthuri_ray.segmentation.block_failures import ActorDeath, FailedBlocks, SetAsideBlock


def die(failed, *blocks, node="a"):
    death = ActorDeath(blocks, node, "killed", "all that is known")
    failed.note_death(death)
    return death


def test_a_death_counts_against_a_block_only_if_its_node_is_alive():
    failed = FailedBlocks()
    deaths = [die(failed, "bad") for _ in range(3)]
    assert failed.get("bad").is_on_hold
    assert failed.resolve_death("bad", deaths[0], node_is_alive=False) is None
    assert not failed.get("bad").is_on_hold
    deaths.append(die(failed, "bad"))
    assert [failed.resolve_death("bad", death, node_is_alive=True) for death in deaths[1:3]] == [None, None]
    reason = "3 actors died on it while their nodes stayed alive: killed"
    assert failed.resolve_death("bad", deaths[3], node_is_alive=True) == SetAsideBlock(
        "bad", reason, "all that is known"
    )
    assert len(failed) == 0


def test_a_block_whose_only_death_was_of_a_lost_node_is_cleared():
    failed = FailedBlocks()
    death = die(failed, "one", "other")
    assert failed.resolve_death("one", death, node_is_alive=False) is None
    assert failed.get("one") is None
    assert failed.get("other").is_suspect


def test_a_node_is_failing_after_three_blocks_that_killed_actors_there_alone_and_were_done_elsewhere():
    failed = FailedBlocks()
    for block in range(3):
        die(failed, block)
        assert failed.failing_places() == []
        failed.note_done(block, (1, "b"))
    assert failed.failing_places() == ["a"]
    failed.note_done(3, (0, "a"))
    assert failed.failing_places() == []


def test_a_death_with_several_blocks_is_no_sign_against_its_node():
    failed = FailedBlocks()
    for first in (0, 2, 4):
        die(failed, first, first + 1)
        failed.note_done(first, (1, "b"))
        failed.note_done(first + 1, (1, "b"))
    assert failed.failing_places() == []
    assert len(failed) == 0
