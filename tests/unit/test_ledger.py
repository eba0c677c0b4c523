"""Which of the exchanges that wait are woken."""

from __future__ import annotations

import asyncio

from pgsched.worker.ledger import Ledger


async def resting(ledger: Ledger, n: int) -> list[asyncio.Task[None]]:
    """So many that wait, the last one for the shortest time."""
    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(ledger.rest(loop.create_future())) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


async def done(tasks: list[asyncio.Task[None]]) -> list[bool]:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return [task.done() for task in tasks]


def test_one_looks_for_all_that_has_come_and_the_next_is_woken_when_it_has() -> None:
    async def main() -> None:
        ledger = Ledger(4, ["a"])
        tasks = await resting(ledger, 3)
        ledger.ring()
        ledger.ring()
        assert await done(tasks) == [False, False, True]
        ledger.ring()
        assert await done(tasks) == [False, True, True]
        ledger.attended = True
        ledger.ring()
        assert await done(tasks) == [False, True, True], "one looks anyhow"
        ledger.ring_for_all()
        assert await done(tasks) == [True, True, True]

    asyncio.run(main())


def test_one_that_is_cancelled_or_has_been_woken_by_its_timer_takes_no_ring_away() -> None:
    async def main() -> None:
        ledger = Ledger(4, ["a"])
        tasks = await resting(ledger, 2)
        tasks[1].cancel()
        ledger.ring()
        assert await done(tasks) == [True, True]

        waiter = asyncio.get_running_loop().create_future()
        tasks = [*await resting(ledger, 1), asyncio.create_task(ledger.rest(waiter))]
        await asyncio.sleep(0)
        waiter.set_result(None)
        ledger.ring()
        assert await done(tasks) == [True, True]
        assert not ledger.attended

    asyncio.run(main())
