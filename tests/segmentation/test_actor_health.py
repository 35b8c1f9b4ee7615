"""Which actors are ended, and which nodes are excluded, from plain data."""

from kasthuri_ray.segmentation.actor_health import ExcludedNodes, find_failing_actors, find_stuck_actors
from kasthuri_ray.segmentation.actor_plan import PoolTimeouts
from kasthuri_ray.segmentation.actor_state import ActorState


def make_actor(number, node="a", **state):
    return ActorState(number, created_at=0.0, node=node, **({"placed_at": 1.0, "is_ready": True} | state))


def test_an_actor_is_stuck_if_it_holds_blocks_and_finishes_none():
    busy, idle = make_actor(0, num_blocks=1, last_result_at=10.0), make_actor(1)
    timeouts = PoolTimeouts(stuck_s=30.0)
    assert find_stuck_actors([busy, idle], timeouts, 40.0) == []
    [(actor, error)] = find_stuck_actors([busy, idle], timeouts, 41.0)
    assert actor is busy
    assert str(error) == "no block was done for 30 s"


def test_an_actor_is_stuck_if_it_is_on_a_node_and_does_not_become_ready():
    starting = make_actor(0, is_ready=False, placed_at=5.0)
    unplaced = make_actor(1, is_ready=False, placed_at=None)
    [(actor, error)] = find_stuck_actors([starting, unplaced], PoolTimeouts(ready_s=20.0), 26.0)
    assert actor is starting
    assert str(error) == "it was not ready after 20 s"


def test_an_actor_where_blocks_fail_is_ended_alone_and_one_node_with_all_its_actors():
    actors = [make_actor(0), make_actor(1), make_actor(2, "b"), make_actor(3, is_ready=False)]
    assert find_failing_actors(1, actors) == [actors[1]]
    assert find_failing_actors("a", actors) == actors[:2]
    assert find_failing_actors("b", actors) == [actors[2]]


def test_the_only_node_that_works_is_kept_though_blocks_fail_there():
    assert find_failing_actors("a", [make_actor(0), make_actor(1, "b", is_ready=False)]) == []
    assert find_failing_actors(0, only := [make_actor(0)]) == only


def test_a_node_is_excluded_once_for_each_reason_and_readmitted_if_it_has_done_blocks_since():
    excluded = ExcludedNodes()
    excluded.note_done("a")  # before any exclusion: it says nothing
    assert [excluded.add("a", "no bf16"), excluded.add("a", "no bf16"), excluded.add("a", "too small")] == [1, 0, 1]
    assert not excluded.readmit_working()
    excluded.note_done("a")
    excluded.add("b", "no bf16")
    assert excluded.readmit_working()
    assert excluded.reasons == {"b": "no bf16"}
    assert not excluded.readmit_working()
