"""The epoch barrier without Ray: which calls wait, what lets them continue, and what a restarted worker receives."""

import asyncio

from kasthuri_ray.tuning.epoch_barrier import _EpochBarrier

ONE_EPOCH, TWO_EPOCHS = [{"epoch": 1}], [{"epoch": 1}, {"epoch": 2}]


def run_with_timeout(work):
    """Run a coroutine, and fail if it takes longer than 10 seconds."""
    return asyncio.run(asyncio.wait_for(work, 10))


def test_a_worker_waits_until_its_epoch_is_approved():
    async def work():
        barrier = _EpochBarrier()
        waiting = asyncio.create_task(barrier.wait_for_approval("a", ONE_EPOCH))
        assert await barrier.wait_for_history("a", 0, 5) == ONE_EPOCH
        await barrier.approve("b", 1)  # another trial
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await barrier.approve("a", 1)
        assert await waiting
        assert await barrier.wait_for_approval("a", ONE_EPOCH)  # a restarted worker brings the same history
        waiting = asyncio.create_task(barrier.wait_for_approval("a", TWO_EPOCHS))
        assert await barrier.wait_for_history("a", 1, 5) == TWO_EPOCHS
        await barrier.stop("a")
        assert not await waiting
        assert not await barrier.wait_for_approval("a", TWO_EPOCHS)

    run_with_timeout(work())


def test_waiting_for_an_epoch_that_does_not_come_returns_the_history_so_far():
    async def work():
        barrier = _EpochBarrier()
        assert await barrier.wait_for_history("a", 0, 0.05) == []
        await barrier.store_history("a", ONE_EPOCH)  # the last epoch: no worker waits
        assert await barrier.wait_for_history("a", 1, 0.05) == ONE_EPOCH
        assert await barrier.wait_for_history("a", 0, 5) == ONE_EPOCH

    run_with_timeout(work())
