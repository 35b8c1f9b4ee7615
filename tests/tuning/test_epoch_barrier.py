"""The gate, without Ray: who waits, who is let through, and what a worker that comes twice finds."""

import asyncio

from kasthuri_ray.tuning.epoch_barrier import _EpochBarrier

ONE, TWO = [{"epoch": 1}], [{"epoch": 1}, {"epoch": 2}]


def together(work):
    """Run a coroutine, which must not hang."""
    return asyncio.run(asyncio.wait_for(work, 10))


def test_a_worker_waits_until_its_epoch_has_been_seen():
    async def work():
        gate = _EpochBarrier()
        asking = asyncio.create_task(gate.ask("a", ONE))
        assert await gate.history("a", 0, 5) == ONE
        await gate.approve("b", 1)  # another's
        await asyncio.sleep(0.05)
        assert not asking.done()
        await gate.approve("a", 1)
        assert await asking
        assert await gate.ask("a", ONE)  # a worker that died comes with the same history
        again = asyncio.create_task(gate.ask("a", TWO))
        assert await gate.history("a", 1, 5) == TWO
        await gate.stop("a")
        assert not await again
        assert not await gate.ask("a", TWO)

    together(work())


def test_who_looks_for_an_epoch_that_does_not_come_gets_what_there_is():
    async def work():
        gate = _EpochBarrier()
        assert await gate.history("a", 0, 0.05) == []
        await gate.leave("a", ONE)  # the last epoch: nobody waits
        assert await gate.history("a", 1, 0.05) == ONE
        assert await gate.history("a", 0, 5) == ONE

    together(work())
