"""Actors of a real Ray: they do blocks, raise, die, and are replaced."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kasthuri_ray.errors import ActorPoolStopped, NodeUnsuitable
from kasthuri_ray.segmentation.actor_pool import ActorPool
from kasthuri_ray.segmentation.actors import ActorPlan, PoolTimeouts

QUICK = PoolTimeouts(verdict=0.3, fate=30, ready=120, cluster=120, stuck=120, idle=0.5)


def worker_class():
    """An actor's class, made in here so that Ray carries it itself. Each block is a tuple of words that it obeys."""
    import ray

    class Worker:
        def __init__(self, folder, ready_seconds=0.0, unfit="", broken=""):
            self.folder, self.ready_seconds, self.unfit, self.broken = Path(folder), ready_seconds, unfit, broken

        def ready(self):
            time.sleep(self.ready_seconds)
            if self.broken:
                raise RuntimeError(self.broken)
            if self.unfit:
                raise NodeUnsuitable(self.unfit)
            self.cursed = not (self.folder / "first").exists()  # the first to come
            (self.folder / "first").touch()
            return {"pid": os.getpid()}

        def work(self, phase, block):
            _, do, *more = block
            with open(self.folder / "log", "a") as log:
                log.write(f"{phase} {block[0]} {os.getpid()}\n")
            first = not (self.folder / f"seen_{block[0]}").exists()
            (self.folder / f"seen_{block[0]}").touch()
            if do == "die" or (do == "die once" and first):
                os._exit(1)
            if do == "raise" or (do == "raise once" and first):
                raise ValueError(f"block {block[0]} is broken")
            if do == "full":
                raise OSError(errno.ENOSPC, "the disk is full: /data/x could not be written")
            if do == "do unless cursed":
                time.sleep(0.3)
                if self.cursed:
                    raise RuntimeError("the card is broken")
            if do == "unfit" and first:
                raise NodeUnsuitable("the card is too small")
            if do == "sleep":
                time.sleep(more[0])
            return {"block": block[0], "pid": os.getpid()}

    return ray.remote(Worker)


class Team:
    """A pool of such workers, what it said and what it has done."""

    def __init__(self, folder, crew, patience=QUICK, **worker):
        remote = worker_class()
        self.folder, self.said, self.done, self.ready = folder, [], [], []
        self.pool = ActorPool(
            lambda options: remote.options(**options).remote(str(folder), **worker),
            crew,
            self.said.append,
            patience=patience,
            on_ready=self.ready.append,
        )

    def run(self, blocks, phase="s0", **more):
        with self.pool:
            return self.pool.run(phase, blocks, on_done=lambda block, result: self.done.append(block[0]), **more)

    def times_started(self, name):
        return [line.split()[1] for line in (self.folder / "log").read_text().splitlines()].count(str(name))


@pytest.fixture
def team(ray_here, tmp_path):
    def make(fewest=2, most=None, in_flight=3, patience=QUICK, num_cpus=0.1, ask=False, **worker):
        crew = ActorPlan(fewest, most or fewest, num_cpus, in_flight=in_flight, ask=ask)
        return Team(tmp_path, crew, patience, **worker)

    return make


def plain(num):
    return [(number, "do") for number in range(num)]


def test_every_block_is_done_once_by_actors_that_end_afterwards(team):
    ours = team()
    ticks = []
    outcome = ours.run([(number, "sleep", 0.1) for number in range(50)], tick=ticks.append)
    assert (outcome.done, outcome.set_aside) == (50, [])
    assert sorted(ours.done) == list(range(50))
    assert len((ours.folder / "log").read_text().splitlines()) == 50
    assert len(ours.ready) == 2
    assert (ticks[-1].done, ticks[-1].in_flight, ticks[-1].phase) == (50, 0, "s0")
    assert ours.pool.progress.actors == 0
    wait_until(lambda: not any(alive(about["pid"]) for about in ours.ready))
    assert ours.said == []


def wait_until(happened, seconds=20):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_phases_follow_each_other_on_the_same_slow_actors(team):
    ours = team(ready_seconds=1.0)
    with ours.pool as pool:
        assert pool.run("s0", [(n, "sleep", 0.3) for n in range(10)]).done == 10
        assert pool.run("s1", plain(4)).done == 4
        assert pool.run("s2", []).done == 0
    lines = [line.split() for line in (ours.folder / "log").read_text().splitlines()]
    assert [line[0] for line in lines] == ["s0"] * 10 + ["s1"] * 4
    assert {line[2] for line in lines} <= {str(about["pid"]) for about in ours.ready}
    assert len(ours.ready) <= 2


def test_blocks_that_kill_or_raise_every_time_are_set_aside_and_the_others_are_done(team, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.segmentation.block_scheduler.RETRY_PAUSES_S", (0.2, 0.2))
    ours = team()
    told = []
    bad = [("killer", "die"), ("raiser", "raise"), ("shaky", "die once"), ("fragile", "raise once")]
    blocks = [*[(n, "sleep", 0.2) for n in range(10)], *bad, *[(n, "sleep", 0.2) for n in range(10, 20)]]
    outcome = ours.run(blocks, on_aside=told.append)
    assert set(ours.done) == {*range(20), "shaky", "fragile"}
    assert len(ours.done) == outcome.done == 22
    assert told == outcome.set_aside
    asides = {aside.block[0]: aside for aside in outcome.set_aside}
    assert asides.keys() == {"killer", "raiser"}
    assert "3 actors died on it, on nodes that live: its process ended suddenly" in asides["killer"].reason
    assert "actor_id" in asides["killer"].traceback
    assert asides["raiser"].reason == "raised 3 times: ValueError: block raiser is broken"
    assert "in work" in asides["raiser"].traceback
    assert "\x1b" not in asides["raiser"].traceback
    assert ours.times_started("killer") == 3
    assert 4 <= sum(" died: " in line for line in ours.said) <= 5
    assert any("block ('raiser', 'raise') is set aside: raised 3 times" in line for line in ours.said)
    redone = len((ours.folder / "log").read_text().splitlines()) - 24
    assert redone <= 2 + 3 * 5 + 1  # what was in flight at each death, and one more of the fragile one


def test_a_bug_that_hits_every_block_stops_early(team, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.segmentation.block_scheduler.RETRY_PAUSES_S", (0.2, 0.2))
    ours = team()
    with pytest.raises(ActorPoolStopped, match="none was done") as stopped:
        ours.run([(number, "raise") for number in range(500)])
    assert "in work" in stopped.value.traceback
    assert len((ours.folder / "log").read_text().splitlines()) <= 40
    assert ours.pool.progress.actors == 0


def test_a_full_disk_stops_the_job_in_words(team):
    with pytest.raises(ActorPoolStopped, match="the disk is full: /data/x"):
        team().run([(0, "full"), *plain(5)])


def test_a_machine_that_cannot_do_it_is_said_once_and_stops_where_it_is_the_only_one(team):
    ours = team(unfit="this machine has no bf16, the ledger wants it")
    with pytest.raises(ActorPoolStopped, match="no machine of the cluster can do this: this machine has no bf16"):
        ours.run(plain(5))
    assert sum("is left out" in line for line in ours.said) <= 2
    assert ours.done == []


def test_an_actor_that_turns_out_unfit_gives_its_blocks_back(team):
    ours = team(in_flight=2)
    outcome = ours.run([*[(n, "sleep", 0.3) for n in range(14)], ("large", "unfit"), (15, "sleep", 1)])
    assert outcome.set_aside == []
    assert set(ours.done) == {*range(14), "large", 15}
    assert len(ours.ready) == 2  # the other goes on, and nobody is started on that machine again
    assert sum("is left out: the card is too small" in line for line in ours.said) == 1


def test_actors_that_never_come_up_stop_the_job(team, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.segmentation.actors.MAX_FAILED_STARTS", 2)
    ours = team(broken="the weights are not there")
    with pytest.raises(
        ActorPoolStopped, match=r"no actor came up, 2 times in a row: RuntimeError: the weights are not"
    ):
        ours.run(plain(5))


def test_too_large_an_actor_is_told_with_both_numbers(team):
    ours = team(num_cpus=64, patience=PoolTimeouts(cluster=1.0))
    with pytest.raises(ActorPoolStopped, match=r"an actor needs 64 CPU; the cluster has 2 CPU \(.* free\) on 1 node"):
        ours.run(plain(5))


def test_no_more_actors_than_blocks(team):
    ours = team(fewest=8)
    assert ours.run([(0, "sleep", 0.5), (1, "sleep", 0.5)]).done == 2
    assert len(ours.ready) <= 2


def test_the_crew_grows_where_there_is_room_and_shrinks_when_blocks_run_out(team, monkeypatch):
    wishes = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: wishes.append(bundles))
    ours = team(fewest=1, most=3, in_flight=2, num_cpus=0.2, ask=True)
    seen = []
    blocks = [*[(n, "sleep", 0.3) for n in range(40)], ("long", "sleep", 4)]
    ours.run(blocks, tick=lambda progress: seen.append(progress.actors))
    assert max(seen) == 3
    assert seen[-1] < 3  # while the last block took its time
    assert len(ours.done) == 41
    assert wishes == [[{"CPU": 0.2}] * 3, []]


@pytest.mark.parametrize("how", ["tick raises", "SIGTERM", "SIGTERM while Ray waits", "Ctrl-C"])
def test_whatever_ends_the_run_ends_the_actors(team, how, ray_here):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background has it ignored
    ours, before = team(), signal.getsignal(signal.SIGTERM)

    def tick(progress):
        if progress.done and how == "tick raises":
            raise RuntimeError("the lease is lost")
        if progress.done and how == "SIGTERM while Ray waits":
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            ray_here.get(endless.remote())
        if progress.done:
            signal.raise_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)

    @ray_here.remote(num_cpus=0)
    def endless():
        time.sleep(60)

    raised = {"tick raises": RuntimeError, "Ctrl-C": KeyboardInterrupt}.get(how, SystemExit)
    with pytest.raises(raised) as error:
        ours.run(((n, "sleep", 0.05) for n in range(10_000)), tick=tick)
    if raised is SystemExit:
        assert error.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == before
    wait_until(lambda: not any(alive(about["pid"]) for about in ours.ready))


def test_an_actor_that_fails_what_others_do_is_replaced_and_no_block_is_blamed(team):
    ours = team()
    outcome = ours.run([(n, "do unless cursed") for n in range(30)])
    assert (outcome.done, outcome.set_aside) == (30, [])
    assert sum("is ended: blocks fail there that are done elsewhere" in line for line in ours.said) == 1
    assert len(ours.ready) in (2, 3)  # the next one may come when all is done


def test_actors_killed_from_outside_are_replaced_and_nothing_is_lost(team):
    ours = team(fewest=3)
    stop = threading.Event()
    struck = []

    def kill():
        while not stop.wait(0.4) and len(struck) < 3:
            pids = [about["pid"] for about in ours.ready if alive(about["pid"])]
            if pids and ours.pool.progress.in_flight:
                struck.append((len(ours.done), 100 - len(ours.done)))
                os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = ours.run([(n, "sleep", 0.1) for n in range(100)])
    stop.set()
    killer.join()
    assert outcome.set_aside == []
    assert sorted(ours.done) == list(range(100))
    assert struck
    assert all(pending > 0 for _, pending in struck)
    assert len((ours.folder / "log").read_text().splitlines()) <= 100 + 3 * len(struck)


def test_an_actor_that_is_stuck_is_replaced(team):
    ours = team(patience=PoolTimeouts(verdict=0.3, stuck=3))
    frozen = []

    def tick(progress):
        if progress.done > 3 and not frozen:
            frozen.append(ours.ready[0]["pid"])
            os.kill(frozen[0], signal.SIGSTOP)

    outcome = ours.run([(n, "sleep", 0.1) for n in range(60)], tick=tick)
    assert (outcome.done, outcome.set_aside) == (60, [])
    assert any("no block was done for 3 s" in line for line in ours.said)
