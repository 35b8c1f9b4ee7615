"""Which actor gets which block, and what a failure counts against, without Ray and without a clock."""

import pytest

from kasthuri_ray.segmentation.block_failures import MAX_FAILURES_PER_BLOCK, SetAsideBlock
from kasthuri_ray.segmentation.block_scheduler import BlockScheduler

LATE = 1e9  # after every pause


def make_scheduler(blocks, actors=1, in_flight=3, nodes=1, known_bad=()):
    scheduler = BlockScheduler(blocks, in_flight, known_bad)
    for actor in range(actors):
        scheduler.add_actor(actor, f"node{actor % nodes}")
    return scheduler


def blocks_of(assigned):
    return [block for _, block in assigned]


def test_the_next_block_goes_to_the_actor_that_holds_fewest():
    scheduler = make_scheduler(range(100), actors=2, in_flight=2)
    assert scheduler.assign(0) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert scheduler.assign(0) == []
    scheduler.note_done(1, 1)
    assert scheduler.assign(0) == [(1, 4)]
    assert (scheduler.held.num_blocks, scheduler.tally.num_done) == (4, 1)


def test_the_last_blocks_are_left_for_actors_that_are_starting():
    scheduler = make_scheduler(range(6), in_flight=4)
    assert blocks_of(scheduler.assign(0, num_starting=3)) == [0, 1, 2]  # then fewer are left than there will be actors
    scheduler.add_actor(1, "node0")
    assert scheduler.assign(0, num_starting=3) == [(1, 3), (1, 4)]


def test_blocks_are_drawn_from_their_iterable_when_they_are_needed():
    drawn = []

    def blocks():
        for block in range(1000):
            drawn.append(block)
            yield block

    scheduler = make_scheduler(blocks(), actors=2)
    scheduler.assign(0)
    assert len(drawn) < 20
    assert scheduler.num_usable_actors(5) == 5


def test_no_more_actors_are_usable_than_there_are_blocks():
    assert BlockScheduler(range(3), 3).num_usable_actors(8) == 3
    scheduler = make_scheduler(range(3), in_flight=2)
    scheduler.assign(0)
    assert scheduler.num_usable_actors(8) == 2  # one that holds two blocks, and one for the block that waits
    for block in (0, 1):
        scheduler.note_done(0, block)
    scheduler.assign(0)
    scheduler.note_done(0, 2)
    assert scheduler.num_usable_actors(8) == 0
    assert scheduler.is_finished


def test_a_block_that_raises_three_times_is_set_aside_with_its_last_traceback():
    scheduler = make_scheduler(["bad", "good"], in_flight=2)
    scheduler.assign(0)
    scheduler.note_done(0, "good")
    assert scheduler.note_error(0, "bad", "ValueError: no", "trace 1", 0.0) == []
    assert scheduler.assign(0.1) == []  # a pause comes before the retry
    assert scheduler.assign(LATE) == [(0, "bad")]
    assert scheduler.note_error(0, "bad", "ValueError: no", "trace 2", LATE) == []
    assert scheduler.assign(2 * LATE) == [(0, "bad")]
    set_aside = SetAsideBlock("bad", "raised 3 times: ValueError: no", "trace 3")
    assert scheduler.note_error(0, "bad", "ValueError: no", "trace 3", 0.0) == [set_aside]
    assert scheduler.is_finished
    assert scheduler.tally.set_aside == [set_aside]


def test_a_block_that_raised_is_retried_on_another_actor():
    scheduler = make_scheduler(["bad"], actors=3, nodes=2)
    tried = []
    for _ in range(MAX_FAILURES_PER_BLOCK):
        [(actor, _)] = scheduler.assign(LATE)
        tried.append(actor)
        scheduler.note_error(actor, "bad", "no", "", 0.0)
    assert len(set(tried)) == 3


def test_a_single_actor_retries_the_block_that_failed_on_it():
    scheduler = make_scheduler(["bad"], actors=1)
    for _ in range(MAX_FAILURES_PER_BLOCK):
        assert scheduler.assign(LATE) == [(0, "bad")]
        scheduler.note_error(0, "bad", "no", "", 0.0)
    assert scheduler.is_finished


def test_a_block_that_raised_on_one_node_and_killed_its_actor_on_another_is_still_retried():
    scheduler = make_scheduler(["bad"], actors=2, nodes=2)
    [(actor, _)] = scheduler.assign(LATE)
    scheduler.note_error(actor, "bad", "no", "", 0.0)
    [(other, _)] = scheduler.assign(LATE)
    scheduler.note_death(other, "killed")
    scheduler.add_actor(7, f"node{other}")
    assert blocks_of(scheduler.assign(LATE)) == ["bad"]


def test_after_a_death_each_block_of_the_actor_runs_alone():
    scheduler = make_scheduler(range(20), actors=1)
    scheduler.assign(0)
    death = scheduler.note_death(0, "killed")
    assert set(death.blocks) == {0, 1, 2}
    scheduler.add_actor(1, "node0")
    for block in range(3):
        assert scheduler.assign(0) == [(1, block)]
        assert scheduler.assign(0) == []
        scheduler.note_done(1, block)
    assert blocks_of(scheduler.assign(0)) == [3, 4, 5]
    assert scheduler.resolve_death(death, True) == []


def test_one_actor_drains_for_a_suspect_while_the_others_continue():
    scheduler = make_scheduler(range(100), actors=3, in_flight=2)
    assigned = scheduler.assign(0)
    scheduler.note_death(0, "killed")
    draining, other = 1, 2
    first, second = [block for actor, block in assigned if actor == draining]
    scheduler.note_done(draining, first)
    assert scheduler.assign(0) == []  # the actor drains
    scheduler.note_done(other, next(block for actor, block in assigned if actor == other))
    assert blocks_of(scheduler.assign(0)) == [6]
    scheduler.note_done(draining, second)
    assert scheduler.assign(0) == [(draining, 0)]


def test_a_block_is_set_aside_once_the_nodes_of_three_deaths_are_known_to_be_alive():
    scheduler = make_scheduler(["bad", "good"], in_flight=2)
    assert blocks_of(scheduler.assign(0)) == ["bad", "good"]
    deaths = []
    for actor in range(MAX_FAILURES_PER_BLOCK):
        deaths.append(scheduler.note_death(actor, f"killed {actor}"))
        scheduler.add_actor(actor + 1, "node0")
        if blocks_of(scheduler.assign(0)) == ["good"]:
            scheduler.note_done(actor + 1, "good")
            scheduler.assign(0)
    assert scheduler.held.num_blocks == 0  # the bad block waits until it is known whether the nodes are alive
    assert [scheduler.resolve_death(death, True) for death in deaths[:2]] == [[], []]
    reason = "3 actors died on it while their nodes stayed alive: killed 2"
    assert scheduler.resolve_death(deaths[2], True) == [SetAsideBlock("bad", reason, "killed 2")]
    assert scheduler.is_finished


def test_deaths_on_lost_nodes_do_not_count():
    scheduler = make_scheduler(["block"], nodes=1)
    for actor in range(10):
        assert scheduler.assign(0) == [(actor, "block")]
        death = scheduler.note_death(actor, "gone")
        assert scheduler.resolve_death(death, False) == []
        scheduler.add_actor(actor + 1, f"node{actor + 1}")
    scheduler.assign(0)
    scheduler.note_done(10, "block")
    assert scheduler.is_finished
    assert scheduler.tally.set_aside == []


def test_a_block_on_hold_is_retried_when_a_node_turns_out_to_be_gone():
    scheduler = make_scheduler(["block"])
    deaths = []
    for actor in range(MAX_FAILURES_PER_BLOCK):
        scheduler.assign(0)
        deaths.append(scheduler.note_death(actor, "killed"))
        scheduler.add_actor(actor + 1, "node0")
    assert scheduler.assign(0) == []
    assert not scheduler.is_finished
    scheduler.resolve_death(deaths[0], False)
    assert scheduler.assign(0) == [(3, "block")]


def test_blocks_of_a_lost_node_are_no_longer_suspects():
    scheduler = make_scheduler(range(3))
    scheduler.assign(0)
    death = scheduler.note_death(0, "gone")
    scheduler.resolve_death(death, False)
    scheduler.add_actor(1, "node1")
    assert len(scheduler.assign(0)) == 3


def test_blocks_of_a_removed_actor_are_queued_again_and_no_failure_counts():
    scheduler = make_scheduler(range(2))
    for actor in range(5):
        assert set(blocks_of(scheduler.assign(0))) == {0, 1}
        scheduler.remove_actor(actor)
        scheduler.add_actor(actor + 1, "node0")
    assert not scheduler.tally.set_aside


def test_an_error_of_every_block_stops_the_phase_early():
    scheduler = make_scheduler(range(1000), actors=2)
    num_errors = 0
    while not (error := scheduler.check_for_bug()):
        for actor, block in scheduler.assign(LATE * num_errors):
            num_errors += 1
            scheduler.note_error(actor, block, "TypeError: bug", "the trace", 0.0)
    assert num_errors <= 24
    assert "none was done" in str(error)
    assert "TypeError: bug" in str(error)
    assert error.traceback == "the trace"


def test_bad_blocks_at_the_start_do_not_stop_the_phase():
    scheduler = make_scheduler(range(100), actors=1)
    run_with_errors(scheduler, bad=set(range(7)))
    assert [each.block for each in scheduler.tally.set_aside] == list(range(7))
    assert scheduler.tally.num_done == 93


def test_the_phase_stops_if_far_more_blocks_are_set_aside_than_done():
    scheduler = make_scheduler(range(1000), actors=2)
    with pytest.raises(Exception, match=r"blocks were set aside and \d were done"):
        run_with_errors(scheduler, bad=set(range(4, 1000)))
    assert len(scheduler.tally.set_aside) <= 20


def test_a_volume_of_two_bad_blocks_ends_with_both_set_aside():
    scheduler = make_scheduler(range(2))
    run_with_errors(scheduler, bad={0, 1})
    assert len(scheduler.tally.set_aside) == 2


def test_blocks_set_aside_by_an_earlier_run_run_alone_and_do_not_stop_the_phase():
    scheduler = make_scheduler(range(30), actors=1, known_bad=set(range(30)))
    loads = []
    run_with_errors(scheduler, bad=set(range(30)), loads=loads)
    assert len(scheduler.tally.set_aside) == 30
    assert max(loads) == 1


def run_with_errors(scheduler, bad, loads=None):
    now = 0.0
    while not scheduler.is_finished:
        if error := scheduler.check_for_bug():
            raise error
        now += 10
        assigned = scheduler.assign(now)
        if loads is not None:
            loads.append(scheduler.held.num_blocks)
        for actor, block in assigned:
            if block in bad:
                scheduler.note_error(actor, block, "no", "", now)
            else:
                scheduler.note_done(actor, block)


def test_an_actor_whose_failed_blocks_are_done_elsewhere_is_a_failing_place():
    scheduler = make_scheduler(range(100), actors=2)
    now = 0.0
    while not scheduler.failures.failing_places() and not scheduler.is_finished:
        now += 10
        for actor, block in scheduler.assign(now):
            if actor == 0:
                scheduler.note_error(actor, block, "the GPU is broken", "", now)
            else:
                scheduler.note_done(actor, block)
    assert scheduler.failures.failing_places() == [0]
    assert not scheduler.tally.set_aside


def test_a_node_whose_actors_die_on_blocks_done_elsewhere_is_a_failing_place():
    scheduler = make_scheduler(range(200), actors=2, nodes=2, in_flight=1)
    now, next_actor = 0.0, 2
    while not scheduler.failures.failing_places() and not scheduler.is_finished:
        now += 10
        for actor, block in scheduler.assign(now):
            if actor != 1:  # on node0
                scheduler.resolve_death(scheduler.note_death(actor, "killed"), True)
                scheduler.add_actor(next_actor, "node0")
                next_actor += 1
            else:
                scheduler.note_done(actor, block)
    assert scheduler.failures.failing_places() == ["node0"]
    assert not scheduler.tally.set_aside


def test_only_blocks_that_failed_are_remembered():
    scheduler = make_scheduler(range(20_000), actors=2)
    while not scheduler.is_finished:
        for actor, block in scheduler.assign(0):
            scheduler.note_done(actor, block)
    queue = scheduler._queue
    assert not any(len(blocks) for blocks in (queue._peeked, queue.retries, queue.suspects, scheduler.failures))
