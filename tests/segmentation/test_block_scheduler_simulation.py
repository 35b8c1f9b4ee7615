"""The block scheduler in random simulations: actors, nodes and blocks fail at any moment."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from kasthuri_ray.segmentation.block_failures import MAX_FAILURES_PER_BLOCK, ActorDeath
from kasthuri_ray.segmentation.block_scheduler import BlockScheduler


@dataclass
class Simulation:
    """A phase on a cluster that behaves at random: some blocks raise or kill every time, nodes come and go."""

    rng: random.Random
    num_blocks: int
    in_flight: int
    raising: set = field(default_factory=set)
    killing: set = field(default_factory=set)
    failing_once: set = field(default_factory=set)  # raise or kill the first time
    num_node_losses: int = 0
    num_kills: int = 0  # from outside

    def __post_init__(self):
        self.scheduler = BlockScheduler(iter(range(self.num_blocks)), self.in_flight)
        self.actors, self.next_actor, self.nodes = {}, 0, [f"n{i}" for i in range(self.rng.randint(1, 4))]
        self.deaths: list[tuple[ActorDeath, bool, int]] = []
        self.ended, self.started, self.max_redone, self.now = Counter(), Counter(), 0, 0.0

    def run(self, num_actors):
        self.num_steps = 0
        while not self.scheduler.is_finished:
            self.num_steps += 1
            assert self.num_steps < 200_000, "it hangs"
            self.now += self.rng.choice([0.1, 1.0, 5.0])
            while len(self.actors) < num_actors and self.rng.random() < 0.3:
                self._start_actor()
            self._assign()
            self._make_one_event()
            for item in [item for item in self.deaths if item[2] <= self.num_steps]:
                self.deaths.remove(item)
                self._end(self.scheduler.resolve_death(item[0], item[1]))

    def _start_actor(self):
        node = self.rng.choice(self.nodes)
        self.actors[self.next_actor] = (node, set())
        self.scheduler.add_actor(self.next_actor, node)
        self.next_actor += 1

    def _assign(self):
        for actor, block in self.scheduler.assign(self.now):
            self.started[block] += 1
            blocks = self.actors[actor][1]
            blocks.add(block)
            assert len(blocks) <= self.in_flight
            assert self.ended[block] == 0

    def _make_one_event(self):
        if self.num_node_losses and len(self.nodes) > 0 and self.rng.random() < 0.02:
            self.num_node_losses -= 1
            lost = self.rng.choice(self.nodes)
            self.nodes.remove(lost)
            self.nodes.append(f"m{self.next_actor}-{self.num_steps}")
            for actor in [actor for actor, (node, _) in self.actors.items() if node == lost]:
                self._kill(actor, node_is_alive=False)
        elif self.num_kills and self.actors and self.rng.random() < 0.02:
            self.num_kills -= 1
            self._kill(self.rng.choice(list(self.actors)), node_is_alive=True)
        elif busy := [actor for actor, (_, blocks) in self.actors.items() if blocks]:
            self._finish_a_block(self.rng.choice(busy))

    def _kill(self, actor, node_is_alive):
        _, blocks = self.actors.pop(actor)
        self.max_redone += len(blocks)
        death = self.scheduler.note_death(actor, "killed")
        assert set(death.blocks if death else ()) == blocks
        if death:
            self.deaths.append((death, node_is_alive, self.num_steps + self.rng.randint(0, 60)))

    def _finish_a_block(self, actor):
        blocks = self.actors[actor][1]
        block = self.rng.choice(sorted(blocks))
        fails_now = block in self.failing_once and self.started[block] == 1
        if block in self.killing or (fails_now and block % 2):
            self._kill(actor, node_is_alive=True)
            return
        blocks.remove(block)
        if block in self.raising or fails_now:
            self.max_redone += 1
            self._end(self.scheduler.note_error(actor, block, "no", "trace", self.now))
        else:
            self.scheduler.note_done(actor, block)
            self.ended[block] += 1

    def _end(self, set_aside):
        self.ended.update(each.block for each in set_aside)


@pytest.mark.parametrize("seed", range(150))
def test_every_block_ends_once_and_only_the_bad_ones_are_set_aside(seed):
    rng = random.Random(seed)
    num = rng.choice([1, 5, 40, 150])
    bad = rng.sample(range(num), rng.randint(0, num // 8))
    cut = rng.randint(0, len(bad))
    failing_once = set(rng.sample(range(num), num // 5)) - set(bad)
    simulation = Simulation(
        rng,
        num,
        in_flight=rng.choice([1, 2, 3, 5]),
        raising=set(bad[:cut]),
        killing=set(bad[cut:]),
        failing_once=failing_once,
        num_node_losses=rng.choice([0, 3, 10]),
        num_kills=rng.choice([0, 1]),
    )
    simulation.run(num_actors=rng.choice([1, 2, 5, 12]))
    assert simulation.ended == Counter(range(num))
    assert {each.block for each in simulation.scheduler.tally.set_aside} == set(bad)
    assert simulation.scheduler.tally.num_done == num - len(bad)
    assert sum(simulation.started.values()) - num <= simulation.max_redone
    assert all(simulation.started[block] >= MAX_FAILURES_PER_BLOCK for block in bad)
    assert simulation.scheduler.held.num_blocks == 0
