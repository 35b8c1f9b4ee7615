"""Which actors are started and ended, and which nodes are excluded, with actors and a cluster that are not Ray's."""

from types import SimpleNamespace

import pytest

from kasthuri_ray.errors import ActorPoolStopped
from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_state import ActorState
from kasthuri_ray.segmentation.actor_supervisor import ActorSupervisor
from kasthuri_ray.segmentation.block_scheduler import BlockScheduler


class Actors:
    """Actors that start on the node with the fewest that is not excluded, and are ready after `become_ready`."""

    def __init__(self, plan, nodes):
        self.plan, self.nodes, self.by_number, self.ended = plan, nodes, {}, []

    def __iter__(self):
        return iter(list(self.by_number.values()))

    def __len__(self):
        return len(self.by_number)

    num_ready = property(lambda self: sum(actor.is_ready for actor in self))
    num_placed = property(lambda self: sum(actor.placed_at is not None for actor in self))

    def start(self, excluded):
        number = len(self.by_number) + len(self.ended)
        actor = ActorState(number, created_at=0.0, name=f"actor {number}")
        if nodes := [node for node in self.nodes if node not in excluded]:
            taken = [each.node for each in self]
            actor.node, actor.placed_at = min(nodes, key=taken.count), 0.0
        self.by_number[number] = actor

    def end(self, actor):
        del self.by_number[actor.number]
        self.ended.append(actor.number)

    def fetch_placement(self, actor):
        pass


@pytest.fixture
def pool():
    """Return actors on two nodes, their supervisor with the scheduler of 100 blocks, and what it reported."""
    plan, nodes, lines = ActorPlan(2, 4, 1.0, in_flight=1), ["a", "b"], []
    actors = Actors(plan, nodes)
    cluster = SimpleNamespace(
        room=0,
        count_startable_actors=lambda: cluster.room,
        all_nodes_excluded=lambda excluded: set(nodes) <= set(excluded),
        describe_shortage=lambda: "an actor needs 1 CPU",
    )
    supervisor = ActorSupervisor(actors, cluster, PoolTimeouts(), lines.append)
    scheduler = BlockScheduler(range(100), plan.in_flight)
    supervisor.start_phase(scheduler)
    return SimpleNamespace(actors=actors, cluster=cluster, supervisor=supervisor, scheduler=scheduler, lines=lines)


def become_ready(pool):
    for actor in pool.actors:
        if not actor.is_ready:
            actor.is_ready = True
            pool.supervisor.admit(actor)


def test_the_least_number_of_actors_is_started_and_more_where_there_is_room(pool):
    pool.supervisor.review(0.0)
    assert len(pool.actors) == 2
    become_ready(pool)
    pool.supervisor.review(1.0)
    assert len(pool.actors) == 2
    pool.cluster.room = 9
    pool.supervisor.review(2.0)
    assert len(pool.actors) == 4


def test_an_actor_that_died_with_a_block_is_replaced_and_its_block_is_queued_again(pool):
    pool.supervisor.review(0.0)
    become_ready(pool)
    assert pool.scheduler.assign(0.0) == [(0, 0), (1, 1)]
    death = pool.supervisor.remove_dead(pool.actors.by_number[0], RuntimeError("killed"))
    assert (death.blocks, death.node) == ((0,), "a")
    assert pool.lines == ["actor 0 died: RuntimeError: killed; 1 block is retried"]
    pool.supervisor.review(1.0)
    assert set(pool.actors.by_number) == {1, 2}


def test_nodes_that_cannot_run_the_job_are_excluded_and_the_pool_stops_when_none_is_left(pool):
    pool.supervisor.review(0.0)
    pool.supervisor.exclude_node(pool.actors.by_number[0], "no bf16")
    pool.supervisor.review(1.0)
    assert [actor.node for actor in pool.actors] == ["b", "b"]
    for actor in pool.actors:
        pool.supervisor.exclude_node(actor, "no bf16")
    assert len(pool.lines) == 2
    with pytest.raises(ActorPoolStopped, match=r"no node .* can run this job: no bf16 \(an actor needs 1 CPU\)"):
        pool.supervisor.review(2.0)


def test_an_excluded_node_that_has_done_blocks_since_is_admitted_again_before_the_pool_stops(pool):
    pool.supervisor.review(0.0)
    first, second = pool.actors
    pool.supervisor.exclude_node(second, "no bf16")
    pool.supervisor.review(1.0)
    become_ready(pool)
    pool.supervisor.exclude_node(first, "too small for one block")
    (last,) = pool.actors
    pool.supervisor.note_done(last)
    pool.supervisor.review(2.0)
    assert list(pool.actors) == [last]  # it continues, and no other is started
    pool.supervisor.remove_dead(last, RuntimeError("killed"))
    pool.supervisor.review(3.0)
    assert [actor.node for actor in pool.actors] == ["a", "a"]


def test_a_node_where_blocks_fail_that_are_done_elsewhere_is_excluded(pool):
    for now in range(0, 100, 10):
        pool.supervisor.review(now)
        become_ready(pool)
        for number, block in pool.scheduler.assign(now):
            actor = pool.actors.by_number[number]
            if actor.node == "a":
                pool.scheduler.resolve_death(pool.supervisor.remove_dead(actor, RuntimeError("killed")), True)
            else:
                pool.scheduler.note_done(number, block)
    assert pool.lines[-1] == "node a is excluded: blocks fail there that are done elsewhere"
    assert {actor.node for actor in pool.actors} == {"b"}
