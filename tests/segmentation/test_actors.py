"""How many actors there should be, and when nobody is worth waiting for."""

import pytest

from kasthuri_ray.ray_cluster.resources import count_fitting_actors, missing_resources_text, nodes_large_enough
from kasthuri_ray.segmentation.actors import MAX_FAILED_STARTS, ActorPlan, ActorScaling, PoolTimeouts


def staffing(fewest=2, most=8, ask=False, **patience):
    return ActorScaling(ActorPlan(fewest, most, 1.0, ask=ask), PoolTimeouts(**patience))


@pytest.mark.parametrize(
    ("have", "unplaced", "wanted", "room", "started"),
    [
        (0, 0, 100, 0, 2),  # the fewest are started whether there is room or not
        (1, 1, 100, 0, 1),
        (2, 0, 100, 0, 0),
        (2, 0, 100, 3, 3),  # more where there is room
        (2, 0, 100, 50, 6),
        (2, 1, 100, 50, 0),  # one after the other: what is free is told late
        (0, 0, 1, 50, 1),  # no more than there are blocks
        (3, 0, 1, 50, 0),
        (9, 0, 100, 50, 0),
    ],
)
def test_actors_are_started_up_to_what_there_is_room_and_work_for(have, unplaced, wanted, room, started):
    assert staffing().num_to_start(0.0, have, unplaced, wanted, room) == started


def test_pauses_grow_while_actors_die_before_they_are_ready():
    ours = staffing()
    now, pauses = 100.0, []
    for _ in range(9):
        ours.failed(now, created=now - 0.5, reason="no weights")
        pauses.append(ours.not_before - now)
        assert ours.num_to_start(ours.not_before - 0.1, 0, 0, 5, 5) == 0
        assert ours.num_to_start(ours.not_before, 0, 0, 5, 5) == 5
        now = ours.not_before + 1
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    ours.came_ready()
    assert ours.num_to_start(now, 0, 0, 5, 5) == 5


def test_actors_that_were_started_together_fail_as_one():
    ours = staffing()
    for _ in range(20):
        ours.failed(10.0, created=9.0, reason="the node went")
    assert ours.failed_in_a_row == 1
    assert ours.why_stop(10.0, 0, 0, [], False) == ""


def test_starts_that_all_fail_are_given_up():
    ours, now = staffing(), 0.0
    for _ in range(MAX_FAILED_STARTS):
        assert ours.why_stop(now, 0, 0, [], False) == ""
        ours.failed(now, created=now, reason="no weights")
        now = ours.not_before + 1
    assert ours.why_stop(now, 0, 0, [], False) == "no actor came up, 5 times in a row: no weights"


def test_actors_that_no_longer_come_up_are_tried_for_a_while():
    ours, now = staffing(cluster=600), 0.0
    ours.came_ready()
    while not (why := ours.why_stop(now, 1, 0, [], False)):
        ours.failed(now, created=now, reason="the weights are gone")
        now = ours.not_before + 1
        assert now < 2000
    assert now >= 600
    assert "the weights are gone" in why


def test_nobody_is_waited_for_up_to_a_limit_with_a_line_now_and_then():
    ours = staffing(cluster=600)
    said = []
    for now in range(0, 600):
        assert ours.why_stop(now, 0, 0, [], False) == ""
        if ours.says_now(now):
            said.append(now)
    assert said[:3] == [10, 70, 130]
    assert ours.why_stop(600, 0, 0, [], False) == "waited 600 s, and no actor has started"


def test_an_actor_with_a_place_ends_the_wait():
    ours = staffing(cluster=600)
    ours.why_stop(0.0, 0, 0, [], False)
    assert ours.why_stop(599.0, 1, 0, [], False) == ""
    assert ours.why_stop(700.0, 0, 0, [], False) == ""
    assert ours.why_stop(1299.0, 0, 0, [], False) == ""
    assert ours.why_stop(1300.0, 0, 0, [], False)


def test_a_cluster_of_unfit_machines_is_given_up_unless_it_may_grow():
    assert staffing().why_stop(0.0, 0, 0, ["no bf16"], True) == "no machine of the cluster can do this: no bf16"
    assert staffing(ask=True).why_stop(0.0, 0, 0, ["no bf16"], True) == ""


def test_room_is_what_the_scarcest_resource_leaves():
    assert count_fitting_actors({"CPU": 0.5, "GPU": 1.0}, {"CPU": 8.0, "GPU": 3.0}) == 3
    assert count_fitting_actors({"CPU": 0.1}, {"CPU": 0.3}) == 3
    assert count_fitting_actors({"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}) == 0


def test_machines_are_large_enough_by_all_that_they_have():
    def node(name, alive=True, **resources):
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    nodes = [node("head", CPU=0.0), node("a", CPU=4.0, GPU=1.0), node("dead", alive=False, CPU=4.0, GPU=1.0)]
    assert nodes_large_enough({"CPU": 1.0, "GPU": 1.0}, nodes) == ["a"]


def test_what_lacks_is_said_with_both_numbers():
    words = missing_resources_text({"CPU": 1.0, "GPU": 0.5}, {"CPU": 8.0}, {"CPU": 2.0}, 1)
    assert words == "an actor needs 1 CPU and 0.5 GPU; the cluster has 8 CPU (2 free) and 0 GPU (0 free) on 1 node"


def test_a_crew_of_nobody_is_refused():
    with pytest.raises(ValueError, match="a crew of 3 to 2 actors"):
        ActorPlan(3, 2, 1.0)
