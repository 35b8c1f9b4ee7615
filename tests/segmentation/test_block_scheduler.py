"""Who does which block and whom a failure is blamed on, in simulated crews: no Ray, no clock."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from kasthuri_ray.segmentation.block_scheduler import MAX_FAILURES_PER_BLOCK, ActorDeath, BlockScheduler, SetAsideBlock

LATE = 1e9  # after every pause


def crew(blocks, actors=1, in_flight=3, nodes=1, known_bad=()):
    work = BlockScheduler(blocks, in_flight, known_bad)
    for actor in range(actors):
        work.joined(actor, f"node{actor % nodes}")
    return work


def held(given):
    return [block for _, block in given]


def test_blocks_go_round_to_whoever_holds_fewest():
    work = crew(range(100), actors=2, in_flight=2)
    assert work.assign(0) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert work.assign(0) == []
    work.finished(1, 1)
    assert work.assign(0) == [(1, 4)]
    assert (work.num_in_flight, work.done) == (4, 1)


def test_the_last_blocks_are_left_for_actors_that_are_coming():
    work = crew(range(6), in_flight=4)
    work.coming = 3
    assert held(work.assign(0)) == [0, 1, 2]  # then fewer are left than there will be actors
    work.joined(1, "node0")
    assert work.assign(0) == [(1, 3), (1, 4)]


def test_blocks_are_drawn_as_they_are_needed():
    drawn = []

    def blocks():
        for block in range(1000):
            drawn.append(block)
            yield block

    work = crew(blocks(), actors=2)
    work.assign(0)
    assert len(drawn) < 20
    assert work.num_wanted(5) == 5


def test_only_as_many_actors_are_wanted_as_there_are_blocks():
    assert BlockScheduler(range(3), 3).num_wanted(8) == 3
    work = crew(range(3), in_flight=2)
    work.assign(0)
    assert work.num_wanted(8) == 2  # one at work with two blocks, and one for the block that waits
    for block in (0, 1):
        work.finished(0, block)
    work.assign(0)
    work.finished(0, 2)
    assert work.num_wanted(8) == 0
    assert work.over


def test_a_block_that_raises_three_times_is_set_aside_with_its_last_traceback():
    work = crew(["bad", "good"], in_flight=2)
    work.assign(0)
    work.finished(0, "good")
    assert work.raised(0, "bad", "ValueError: no", "trace 1", 0.0) == []
    assert work.assign(0.1) == []  # what was down for a moment is given time
    assert work.assign(LATE) == [(0, "bad")]
    assert work.raised(0, "bad", "ValueError: no", "trace 2", LATE) == []
    assert work.assign(2 * LATE) == [(0, "bad")]
    aside = SetAsideBlock("bad", "raised 3 times: ValueError: no", "trace 3")
    assert work.raised(0, "bad", "ValueError: no", "trace 3", 0.0) == [aside]
    assert work.over
    assert work.asides == [aside]


def test_a_block_that_raised_goes_to_another_actor():
    work = crew(["bad"], actors=3, nodes=2)
    tried = []
    for _ in range(MAX_FAILURES_PER_BLOCK):
        [(actor, _)] = work.assign(LATE)
        tried.append(actor)
        work.raised(actor, "bad", "no", "", 0.0)
    assert len(set(tried)) == 3


def test_the_only_actor_there_is_tries_again_what_it_failed():
    work = crew(["bad"], actors=1)
    for _ in range(MAX_FAILURES_PER_BLOCK):
        assert work.assign(LATE) == [(0, "bad")]
        work.raised(0, "bad", "no", "", 0.0)
    assert work.over


def test_a_block_that_failed_one_way_here_and_another_way_there_still_finds_an_actor():
    work = crew(["bad"], actors=2, nodes=2)
    [(actor, _)] = work.assign(LATE)
    work.raised(actor, "bad", "no", "", 0.0)
    [(other, _)] = work.assign(LATE)
    work.died(other, "killed")
    work.joined(7, f"node{other}")
    assert held(work.assign(LATE)) == ["bad"]


def test_after_a_death_each_suspect_runs_alone():
    work = crew(range(20), actors=1)
    work.assign(0)
    death = work.died(0, "killed")
    assert set(death.blocks) == {0, 1, 2}
    work.joined(1, "node0")
    for block in range(3):
        assert work.assign(0) == [(1, block)]
        assert work.assign(0) == []
        work.finished(1, block)
    assert held(work.assign(0)) == [3, 4, 5]
    assert work.fate(death, True) == []


def test_an_actor_is_emptied_for_a_suspect_while_the_others_go_on():
    work = crew(range(100), actors=3, in_flight=2)
    given = work.assign(0)
    work.died(0, "killed")
    emptied, other = 1, 2
    first, second = [block for actor, block in given if actor == emptied]
    work.finished(emptied, first)
    assert work.assign(0) == []  # it drains
    work.finished(other, next(block for actor, block in given if actor == other))
    assert held(work.assign(0)) == [6]
    work.finished(emptied, second)
    assert work.assign(0) == [(emptied, 0)]


def test_a_block_is_set_aside_when_its_third_death_on_living_nodes_is_certain():
    work = crew(["bad", "good"], in_flight=2)
    assert held(work.assign(0)) == ["bad", "good"]
    deaths = []
    for actor in range(MAX_FAILURES_PER_BLOCK):
        deaths.append(work.died(actor, f"killed {actor}"))
        work.joined(actor + 1, "node0")
        if held(work.assign(0)) == ["good"]:
            work.finished(actor + 1, "good")
            work.assign(0)
    assert work.num_in_flight == 0  # the bad one is held until it is known whether the nodes live
    assert [work.fate(death, True) for death in deaths[:2]] == [[], []]
    reason = "3 actors died on it, on nodes that live: killed 2"
    assert work.fate(deaths[2], True) == [SetAsideBlock("bad", reason, "killed 2")]
    assert work.over


def test_a_lost_node_blames_nobody():
    work = crew(["block"], nodes=1)
    for actor in range(10):
        assert work.assign(0) == [(actor, "block")]
        death = work.died(actor, "gone")
        assert work.fate(death, False) == []
        work.joined(actor + 1, f"node{actor + 1}")
    work.assign(0)
    work.finished(10, "block")
    assert work.over
    assert work.asides == []


def test_a_held_block_goes_on_when_a_node_turns_out_to_be_gone():
    work = crew(["block"])
    deaths = []
    for actor in range(MAX_FAILURES_PER_BLOCK):
        work.assign(0)
        deaths.append(work.died(actor, "killed"))
        work.joined(actor + 1, "node0")
    assert work.assign(0) == []
    assert not work.over
    work.fate(deaths[0], False)
    assert work.assign(0) == [(3, "block")]


def test_blocks_of_a_lost_node_are_no_longer_suspects():
    work = crew(range(3))
    work.assign(0)
    death = work.died(0, "gone")
    work.fate(death, False)
    work.joined(1, "node1")
    assert len(work.assign(0)) == 3


def test_blocks_of_an_unfit_actor_are_given_back_without_blame():
    work = crew(range(2))
    for actor in range(5):
        assert set(held(work.assign(0))) == {0, 1}
        work.left(actor)
        work.joined(actor + 1, "node0")
    assert not work.asides


def test_a_bug_that_hits_every_block_stops_early():
    work = crew(range(1000), actors=2)
    raises = 0
    while not (stop := work.why_stop()):
        for actor, block in work.assign(LATE * raises):
            raises += 1
            work.raised(actor, block, "TypeError: bug", "the trace", 0.0)
    assert raises <= 24
    assert "none was done" in str(stop)
    assert "TypeError: bug" in str(stop)
    assert stop.traceback == "the trace"


def test_bad_blocks_at_the_start_are_no_bug():
    work = crew(range(100), actors=1)
    simulate_raises(work, bad=set(range(7)))
    assert [aside.block for aside in work.asides] == list(range(7))
    assert work.done == 93


def test_set_asides_that_clearly_outnumber_what_is_done_stop_the_job():
    work = crew(range(1000), actors=2)
    with pytest.raises(Exception, match=r"blocks were set aside and \d were done"):
        simulate_raises(work, bad=set(range(4, 1000)))
    assert len(work.asides) <= 20


def test_a_small_volume_of_bad_blocks_is_told_as_a_list():
    work = crew(range(2))
    simulate_raises(work, bad={0, 1})
    assert len(work.asides) == 2


def test_blocks_that_were_set_aside_before_run_alone_and_are_no_bug():
    work = crew(range(30), actors=1, known_bad=set(range(30)))
    together = []
    simulate_raises(work, bad=set(range(30)), together=together)
    assert len(work.asides) == 30
    assert max(together) == 1


def simulate_raises(work, bad, together=None):
    now = 0.0
    while not work.over:
        if stop := work.why_stop():
            raise stop
        now += 10
        given = work.assign(now)
        if together is not None:
            together.append(work.num_in_flight)
        for actor, block in given:
            if block in bad:
                work.raised(actor, block, "no", "", now)
            else:
                work.finished(actor, block)


def test_an_actor_whose_failures_others_mend_is_sick():
    work = crew(range(100), actors=2)
    now = 0.0
    while not work.sick() and not work.over:
        now += 10
        for actor, block in work.assign(now):
            if actor == 0:
                work.raised(actor, block, "the card is broken", "", now)
            else:
                work.finished(actor, block)
    assert work.sick() == [0]
    assert not work.asides


def test_a_node_whose_deaths_others_mend_is_sick():
    work = crew(range(200), actors=2, nodes=2, in_flight=1)
    now, next_actor = 0.0, 2
    while not work.sick() and not work.over:
        now += 10
        for actor, block in work.assign(now):
            if actor != 1:  # on node0
                work.fate(work.died(actor, "killed"), True)
                work.joined(next_actor, "node0")
                next_actor += 1
            else:
                work.finished(actor, block)
    assert work.sick() == ["node0"]
    assert not work.asides


@dataclass
class World:
    """Actors, nodes and blocks that behave at random: `raising` and `killing` blocks always do, nodes come and go."""

    rng: random.Random
    num_blocks: int
    in_flight: int
    raising: set = field(default_factory=set)
    killing: set = field(default_factory=set)
    once: set = field(default_factory=set)  # raise or kill the first time
    node_losses: int = 0
    kills: int = 0  # from outside

    def __post_init__(self):
        self.work = BlockScheduler(iter(range(self.num_blocks)), self.in_flight)
        self.actors, self.next_actor, self.nodes = {}, 0, [f"n{i}" for i in range(self.rng.randint(1, 4))]
        self.deaths: list[tuple[ActorDeath, bool, int]] = []
        self.ended, self.started, self.redone_at_most, self.now = Counter(), Counter(), 0, 0.0

    def hire(self):
        node = self.rng.choice(self.nodes)
        self.actors[self.next_actor] = (node, set())
        self.work.joined(self.next_actor, node)
        self.next_actor += 1

    def end(self, asides):
        self.ended.update(aside.block for aside in asides)

    def die(self, actor, lives):
        _, blocks = self.actors.pop(actor)
        self.redone_at_most += len(blocks)
        death = self.work.died(actor, "killed")
        assert set(death.blocks if death else ()) == blocks
        if death:
            self.deaths.append((death, lives, self.steps + self.rng.randint(0, 60)))

    def run(self, crew_size):
        self.steps = 0
        while not self.work.over:
            self.steps += 1
            assert self.steps < 200_000, "it hangs"
            self.now += self.rng.choice([0.1, 1.0, 5.0])
            while len(self.actors) < crew_size and self.rng.random() < 0.3:
                self.hire()
            self._give()
            self._something_happens()
            for item in [item for item in self.deaths if item[2] <= self.steps]:
                self.deaths.remove(item)
                self.end(self.work.fate(item[0], item[1]))

    def _give(self):
        for actor, block in self.work.assign(self.now):
            self.started[block] += 1
            blocks = self.actors[actor][1]
            blocks.add(block)
            assert len(blocks) <= self.in_flight
            assert self.ended[block] == 0

    def _something_happens(self):
        if self.node_losses and len(self.nodes) > 0 and self.rng.random() < 0.02:
            self.node_losses -= 1
            lost = self.rng.choice(self.nodes)
            self.nodes.remove(lost)
            self.nodes.append(f"m{self.next_actor}-{self.steps}")
            for actor in [actor for actor, (node, _) in self.actors.items() if node == lost]:
                self.die(actor, lives=False)
        elif self.kills and self.actors and self.rng.random() < 0.02:
            self.kills -= 1
            self.die(self.rng.choice(list(self.actors)), lives=True)
        elif busy := [actor for actor, (_, blocks) in self.actors.items() if blocks]:
            self._a_block_ends(self.rng.choice(busy))

    def _a_block_ends(self, actor):
        blocks = self.actors[actor][1]
        block = self.rng.choice(sorted(blocks))
        fails_now = block in self.once and self.started[block] == 1
        if block in self.killing or (fails_now and block % 2):
            self.die(actor, lives=True)
            return
        blocks.remove(block)
        if block in self.raising or fails_now:
            self.redone_at_most += 1
            self.end(self.work.raised(actor, block, "no", "trace", self.now))
        else:
            self.work.finished(actor, block)
            self.ended[block] += 1


@pytest.mark.parametrize("seed", range(150))
def test_every_block_ends_once_and_the_bad_ones_alone_are_set_aside(seed):
    rng = random.Random(seed)
    num = rng.choice([1, 5, 40, 150])
    bad = rng.sample(range(num), rng.randint(0, num // 8))
    cut = rng.randint(0, len(bad))
    once = set(rng.sample(range(num), num // 5)) - set(bad)
    world = World(
        rng,
        num,
        in_flight=rng.choice([1, 2, 3, 5]),
        raising=set(bad[:cut]),
        killing=set(bad[cut:]),
        once=once,
        node_losses=rng.choice([0, 3, 10]),
        kills=rng.choice([0, 1]),
    )
    world.run(crew_size=rng.choice([1, 2, 5, 12]))
    assert world.ended == Counter(range(num))
    assert {aside.block for aside in world.work.asides} == set(bad)
    assert world.work.done == num - len(bad)
    assert sum(world.started.values()) - num <= world.redone_at_most
    assert all(world.started[block] >= MAX_FAILURES_PER_BLOCK for block in bad)
    assert world.work.num_in_flight == 0


def test_blocks_in_trouble_are_all_that_is_remembered():
    work = crew(range(20_000), actors=2)
    while not work.over:
        for actor, block in work.assign(0):
            work.finished(actor, block)
    assert not any(len(part) for part in (work._ahead, work._again, work._suspects, work._trouble))
