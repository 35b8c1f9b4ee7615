"""How many actors are started, and when it is no use to wait for them."""

import pytest

from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_scaling import MAX_FAILED_STARTS, ActorScaling, find_surplus_actors
from kasthuri_ray.segmentation.actor_state import ActorState


def make_scaling(min_actors=2, max_actors=8, autoscale=False, **timeouts):
    return ActorScaling(ActorPlan(min_actors, max_actors, 1.0, autoscale=autoscale), PoolTimeouts(**timeouts))


@pytest.mark.parametrize(
    ("num_actors", "num_unplaced", "num_usable", "num_fitting", "num_started"),
    [
        (0, 0, 100, 0, 2),  # the least number is started whether there is room or not
        (1, 1, 100, 0, 1),
        (2, 0, 100, 0, 0),
        (2, 0, 100, 3, 3),  # more where there is room
        (2, 0, 100, 50, 6),
        (2, 1, 100, 50, 0),  # not while others are placed: free resources are known late
        (0, 0, 1, 50, 1),  # no more than there are blocks
        (3, 0, 1, 50, 0),
        (9, 0, 100, 50, 0),
    ],
)
def test_actors_are_started_as_far_as_there_is_room_and_work(
    num_actors, num_unplaced, num_usable, num_fitting, num_started
):
    assert make_scaling().num_to_start(0.0, num_actors, num_unplaced, num_usable, num_fitting) == num_started


def test_pauses_grow_while_actors_die_before_they_are_ready():
    scaling = make_scaling()
    now, pauses = 100.0, []
    for _ in range(9):
        scaling.note_failed_start(now, created_at=now - 0.5, reason="no weights")
        pauses.append(scaling.next_start_at - now)
        assert scaling.num_to_start(scaling.next_start_at - 0.1, 0, 0, 5, 5) == 0
        assert scaling.num_to_start(scaling.next_start_at, 0, 0, 5, 5) == 5
        now = scaling.next_start_at + 1
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    scaling.note_ready()
    assert scaling.num_to_start(now, 0, 0, 5, 5) == 5


def test_actors_that_were_started_together_fail_as_one():
    scaling = make_scaling()
    for _ in range(20):
        scaling.note_failed_start(10.0, created_at=9.0, reason="the node is gone")
    assert scaling.num_failed_in_a_row == 1
    assert scaling.stop_reason(10.0, 0, 0, [], False) == ""


def test_the_pool_stops_if_no_actor_ever_becomes_ready():
    scaling, now = make_scaling(), 0.0
    for _ in range(MAX_FAILED_STARTS):
        assert scaling.stop_reason(now, 0, 0, [], False) == ""
        scaling.note_failed_start(now, created_at=now, reason="no weights")
        now = scaling.next_start_at + 1
    assert scaling.stop_reason(now, 0, 0, [], False) == "no actor became ready in 5 starts in a row: no weights"


def test_actors_that_no_longer_become_ready_are_started_again_for_a_while():
    scaling, now = make_scaling(placement_s=600), 0.0
    scaling.note_ready()
    while not (reason := scaling.stop_reason(now, 1, 0, [], False)):
        scaling.note_failed_start(now, created_at=now, reason="the weights are gone")
        now = scaling.next_start_at + 1
        assert now < 2000
    assert now >= 600
    assert "the weights are gone" in reason


def test_a_pool_without_actors_waits_up_to_a_limit_and_reports_it_from_time_to_time():
    scaling = make_scaling(placement_s=600)
    reported_at = []
    for now in range(0, 600):
        assert scaling.stop_reason(now, 0, 0, [], False) == ""
        if line := scaling.shortage_line(now, []):
            reported_at.append((now, line))
    assert [now for now, _ in reported_at[:3]] == [10, 70, 130]
    assert reported_at[1][1] == "no actor has started yet; waiting up to 530 s more"
    assert scaling.stop_reason(600, 0, 0, [], False) == "waited 600 s, and no actor has started"


def test_an_actor_on_a_node_ends_the_wait():
    scaling = make_scaling(placement_s=600)
    scaling.stop_reason(0.0, 0, 0, [], False)
    assert scaling.stop_reason(599.0, 1, 0, [], False) == ""
    assert scaling.stop_reason(700.0, 0, 0, [], False) == ""
    assert scaling.stop_reason(1299.0, 0, 0, [], False) == ""
    assert scaling.stop_reason(1300.0, 0, 0, [], False)


def test_the_pool_stops_if_no_node_can_run_the_job_unless_the_cluster_may_grow():
    reason = "no node of the cluster can run this job: no bf16"
    assert make_scaling().stop_reason(0.0, 0, 0, ["no bf16"], True) == reason
    assert make_scaling(autoscale=True).stop_reason(0.0, 0, 0, ["no bf16"], True) == ""


def test_actors_that_wait_for_a_node_while_others_have_one_are_reported_once():
    actors = [ActorState(0, created_at=0.0, placed_at=1.0), ActorState(1, created_at=0.0)]
    scaling = make_scaling()
    scaling.stop_reason(5.0, 1, 1, [], False)
    assert scaling.shortage_line(5.0, actors) == ""
    assert scaling.shortage_line(11.0, actors) == "1 of 2 actors have started so far"
    assert scaling.shortage_line(99.0, actors) == ""


def test_actors_that_the_last_blocks_cannot_use_are_ended_at_once_if_they_have_no_node_and_else_when_idle():
    def actor(number, **state):
        return ActorState(number, created_at=0.0, **({"placed_at": 1.0, "is_ready": True} | state))

    working, idle, was_busy = actor(0, num_blocks=2), actor(1), actor(2, last_result_at=95.0)
    starting, waiting = actor(3, is_ready=False), actor(4, placed_at=None, is_ready=False)
    actors = [working, idle, was_busy, starting, waiting]
    assert find_surplus_actors(actors, 1, 60.0, 100.0) == [idle, waiting]
    assert find_surplus_actors(actors, 4, 60.0, 100.0) == [idle]
    assert find_surplus_actors(actors, 5, 60.0, 100.0) == []
    assert find_surplus_actors(actors, 0, 60.0, 1000.0) == [idle, was_busy, waiting]
