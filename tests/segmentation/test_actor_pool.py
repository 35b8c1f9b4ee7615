"""Pools of actors on a real Ray: actors do blocks, raise, die, and are replaced."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kasthuri_ray.errors import ActorPoolStopped, NodeUnsuitable
from kasthuri_ray.segmentation.actor_plan import ActorPlan, PoolTimeouts
from kasthuri_ray.segmentation.actor_pool import ActorPool

SHORT_TIMEOUTS = PoolTimeouts(
    death_check_s=0.3, node_answer_s=30, ready_s=120, placement_s=120, stuck_s=120, idle_s=0.5
)


def worker_class():
    """Return an actor's class, made in a function so that Ray pickles it. A block is a tuple of its name and orders."""
    import ray

    class Worker:
        def __init__(self, folder, ready_seconds=0.0, unsuitable="", broken=""):
            self.folder, self.ready_seconds = Path(folder), ready_seconds
            self.unsuitable, self.broken = unsuitable, broken

        def ready(self):
            time.sleep(self.ready_seconds)
            if self.broken:
                raise RuntimeError(self.broken)
            if self.unsuitable:
                raise NodeUnsuitable(self.unsuitable)
            self.is_first = not (self.folder / "first").exists()
            (self.folder / "first").touch()
            return {"pid": os.getpid()}

        def work(self, phase, block):
            name, order, *more = block
            with open(self.folder / "log", "a") as log:
                log.write(f"{phase} {name} {os.getpid()}\n")
            is_first_try = not (self.folder / f"seen_{name}").exists()
            (self.folder / f"seen_{name}").touch()
            if order == "die" or (order == "die once" and is_first_try):
                os._exit(1)
            if order == "raise" or (order == "raise once" and is_first_try):
                raise ValueError(f"block {name} is broken")
            if order == "fill disk":
                raise OSError(errno.ENOSPC, "the disk is full: /data/x could not be written")
            if order == "raise on the first actor":
                time.sleep(0.3)
                if self.is_first:
                    raise RuntimeError("the GPU is broken")
            if order == "unsuitable once" and is_first_try:
                raise NodeUnsuitable("the GPU is too small")
            if order == "sleep":
                time.sleep(more[0])
            return {"block": name, "pid": os.getpid()}

    return ray.remote(Worker)


class LoggedPool:
    """A pool of such workers, the lines that it reported, and the blocks that are done."""

    def __init__(self, folder, plan, timeouts=SHORT_TIMEOUTS, **worker):
        remote = worker_class()
        self.folder, self.lines, self.done, self.ready = folder, [], [], []
        self.pool = ActorPool(
            lambda options: remote.options(**options).remote(str(folder), **worker),
            plan,
            self.lines.append,
            timeouts=timeouts,
            on_ready=self.ready.append,
        )

    def run(self, blocks, phase="s0", after_block=lambda result: None, **more):
        def note_done(block, result):
            self.done.append(block[0])
            after_block(result)

        with self.pool:
            return self.pool.run(phase, blocks, on_done=note_done, **more)

    def started(self):
        """Return phase, block and process of every start of a block."""
        return [line.split() for line in (self.folder / "log").read_text().splitlines()]


@pytest.fixture
def make_pool(local_ray, tmp_path):
    def make(
        min_actors=2, max_actors=None, in_flight=3, timeouts=SHORT_TIMEOUTS, num_cpus=0.1, autoscale=False, **worker
    ):
        plan = ActorPlan(min_actors, max_actors or min_actors, num_cpus, in_flight=in_flight, autoscale=autoscale)
        return LoggedPool(tmp_path, plan, timeouts, **worker)

    return make


def plain_blocks(num):
    return [(number, "do") for number in range(num)]


def test_every_block_is_done_once_by_actors_that_end_afterwards(make_pool):
    logged = make_pool()
    ticks = []
    outcome = logged.run([(number, "sleep", 0.1) for number in range(50)], tick=ticks.append)
    assert (outcome.num_done, outcome.set_aside) == (50, [])
    assert sorted(logged.done) == list(range(50))
    assert len(logged.started()) == 50
    assert len(logged.ready) == 2
    assert (ticks[-1].done, ticks[-1].in_flight, ticks[-1].phase) == (50, 0, "s0")
    assert logged.pool.progress.actors == 0
    wait_until(lambda: not any(is_alive(machine["pid"]) for machine in logged.ready))
    assert logged.lines == []


def wait_until(condition, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_phases_run_one_after_the_other_on_the_same_actors(make_pool):
    logged = make_pool(ready_seconds=0.5)
    with logged.pool as pool:
        assert pool.run("s0", [(n, "sleep", 0.1) for n in range(10)]).num_done == 10
        assert pool.run("s1", plain_blocks(4)).num_done == 4
        assert pool.run("s2", []).num_done == 0
    assert [phase for phase, _, _ in logged.started()] == ["s0"] * 10 + ["s1"] * 4
    assert {pid for _, _, pid in logged.started()} <= {str(machine["pid"]) for machine in logged.ready}
    assert len(logged.ready) <= 2


def test_blocks_that_kill_or_raise_every_time_are_set_aside_and_the_others_are_done(make_pool, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.segmentation.block_failures.RETRY_PAUSES_S", (0.2, 0.2))
    logged = make_pool()
    set_aside = []
    bad = [("killer", "die"), ("raiser", "raise"), ("kills_once", "die once"), ("raises_once", "raise once")]
    blocks = [*[(n, "sleep", 0.2) for n in range(10)], *bad, *[(n, "sleep", 0.2) for n in range(10, 20)]]
    outcome = logged.run(blocks, on_set_aside=set_aside.append)
    assert set(logged.done) == {*range(20), "kills_once", "raises_once"}
    assert len(logged.done) == outcome.num_done == 22
    assert set_aside == outcome.set_aside
    by_name = {each.block[0]: each for each in outcome.set_aside}
    assert by_name.keys() == {"killer", "raiser"}
    assert "3 actors died on it while their nodes stayed alive: its process ended suddenly" in by_name["killer"].reason
    assert "actor_id" in by_name["killer"].traceback
    assert by_name["raiser"].reason == "raised 3 times: ValueError: block raiser is broken"
    assert "in work" in by_name["raiser"].traceback
    assert "\x1b" not in by_name["raiser"].traceback
    assert [name for _, name, _ in logged.started()].count("killer") == 3
    assert 4 <= sum(" died: " in line for line in logged.lines) <= 5
    assert any("block ('raiser', 'raise') is set aside: raised 3 times" in line for line in logged.lines)
    num_redone = len(logged.started()) - 24
    assert num_redone <= 2 + 3 * 5 + 1  # what was in flight at each death, and a retry of raises_once


def test_an_error_of_every_block_stops_the_pool_early(make_pool, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.segmentation.block_failures.RETRY_PAUSES_S", (0.2, 0.2))
    logged = make_pool()
    with pytest.raises(ActorPoolStopped, match="none was done") as stopped:
        logged.run([(number, "raise") for number in range(500)])
    assert "in work" in stopped.value.traceback
    assert len(logged.started()) <= 40
    assert logged.pool.progress.actors == 0


def test_a_full_disk_stops_the_pool_with_its_message(make_pool):
    with pytest.raises(ActorPoolStopped, match="the disk is full: /data/x"):
        make_pool().run([(0, "fill disk"), *plain_blocks(5)])


def test_the_pool_stops_if_the_only_node_is_unsuitable_and_says_so_once(make_pool):
    logged = make_pool(unsuitable="this machine has no bf16, the ledger wants it")
    with pytest.raises(ActorPoolStopped, match="no node of the cluster can run this job: this machine has no bf16"):
        logged.run(plain_blocks(5))
    assert sum("is excluded" in line for line in logged.lines) <= 2
    assert logged.done == []


def test_blocks_of_an_actor_that_turns_out_to_be_unsuitable_are_done_by_another(make_pool):
    logged = make_pool(in_flight=2)
    outcome = logged.run([*[(n, "sleep", 0.3) for n in range(14)], ("large", "unsuitable once"), (15, "sleep", 1)])
    assert outcome.set_aside == []
    assert set(logged.done) == {*range(14), "large", 15}
    assert len(logged.ready) == 2  # the other one continues, and none is started on that machine again
    assert sum("is excluded: the GPU is too small" in line for line in logged.lines) == 1


def test_the_pool_stops_if_no_actor_ever_becomes_ready(make_pool, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.segmentation.actor_scaling.MAX_FAILED_STARTS", 2)
    logged = make_pool(broken="the weights are not there")
    message = r"no actor became ready in 2 starts in a row: RuntimeError: the weights are not"
    with pytest.raises(ActorPoolStopped, match=message):
        logged.run(plain_blocks(5))


def test_an_actor_that_is_too_large_for_the_cluster_is_an_error_with_both_numbers(make_pool):
    logged = make_pool(num_cpus=64, timeouts=PoolTimeouts(placement_s=1.0))
    with pytest.raises(ActorPoolStopped, match=r"an actor needs 64 CPU; the cluster has 2 CPU \(.* free\) on 1 node"):
        logged.run(plain_blocks(5))


def test_no_more_actors_are_started_than_there_are_blocks(make_pool):
    logged = make_pool(min_actors=8)
    assert logged.run([(0, "sleep", 0.2), (1, "sleep", 0.2)]).num_done == 2
    assert len(logged.ready) <= 2


def test_the_pool_grows_where_there_is_room_and_shrinks_when_blocks_run_out(make_pool, monkeypatch):
    requests = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: requests.append(bundles))
    logged = make_pool(min_actors=1, max_actors=3, in_flight=2, num_cpus=0.2, autoscale=True)
    num_actors = []
    blocks = [*[(n, "sleep", 0.3) for n in range(40)], ("long", "sleep", 4)]
    logged.run(blocks, tick=lambda progress: num_actors.append(progress.actors))
    assert max(num_actors) == 3
    assert num_actors[-1] < 3  # while the last block ran
    assert len(logged.done) == 41
    assert requests == [[{"CPU": 0.2}] * 3, []]


@pytest.mark.parametrize("how", ["tick raises", "SIGTERM", "SIGTERM while Ray waits", "Ctrl-C"])
def test_whatever_ends_the_run_ends_the_actors(make_pool, how, local_ray):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background ignores it
    logged, handler = make_pool(), signal.getsignal(signal.SIGTERM)

    def tick(progress):
        if progress.done and how == "tick raises":
            raise RuntimeError("the lease is lost")
        if progress.done and how == "SIGTERM while Ray waits":
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            local_ray.get(sleep_long.remote())
        if progress.done:
            signal.raise_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)

    @local_ray.remote(num_cpus=0)
    def sleep_long():
        time.sleep(60)

    raised = {"tick raises": RuntimeError, "Ctrl-C": KeyboardInterrupt}.get(how, SystemExit)
    with pytest.raises(raised) as error:
        logged.run(((n, "sleep", 0.05) for n in range(10_000)), tick=tick)
    if raised is SystemExit:
        assert error.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == handler
    wait_until(lambda: not any(is_alive(machine["pid"]) for machine in logged.ready))


def test_an_actor_that_fails_blocks_which_others_do_is_replaced_and_no_block_is_set_aside(make_pool):
    logged = make_pool()
    outcome = logged.run([(n, "raise on the first actor") for n in range(30)])
    assert (outcome.num_done, outcome.set_aside) == (30, [])
    assert sum("is ended: blocks fail there that are done elsewhere" in line for line in logged.lines) == 1
    assert len(logged.ready) in (2, 3)  # the next one may become ready when all is done


def test_actors_killed_from_outside_are_replaced_and_no_block_is_lost(make_pool):
    logged = make_pool(min_actors=3)
    stop = threading.Event()
    kills = []  # blocks that were done and that were left, at each kill
    hit = set()  # blocks that the last kill may have hit: one that is hit three times is set aside

    def kill():
        while not stop.wait(0.4) and len(kills) < 3:
            pids = [machine["pid"] for machine in logged.ready if is_alive(machine["pid"])]
            if pids and logged.pool.progress.in_flight and hit <= set(logged.done):
                kills.append((len(logged.done), 100 - len(logged.done)))
                hit.update(range(min(100, len(logged.done) + 3 * 3 + 3)))
                os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = logged.run([(n, "sleep", 0.1) for n in range(100)])
    stop.set()
    killer.join()
    assert outcome.set_aside == []
    assert sorted(logged.done) == list(range(100))
    assert kills
    assert all(num_left > 0 for _, num_left in kills)
    assert len(logged.started()) <= 100 + 3 * len(kills)


def test_an_actor_that_is_stuck_is_replaced(make_pool):
    logged = make_pool(timeouts=PoolTimeouts(death_check_s=0.3, stuck_s=3))
    frozen = []

    def freeze(result):
        if len(logged.done) == 4:
            frozen.append(result["pid"])
            os.kill(result["pid"], signal.SIGSTOP)

    outcome = logged.run([(n, "sleep", 0.1) for n in range(40)], after_block=freeze)
    assert (outcome.num_done, outcome.set_aside) == (40, [])
    assert any("no block was done for 3 s" in line for line in logged.lines)
