"""What an exchange does with what its ledger knows, over a session that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgsched.calls import Call, Calls
from pgsched.lease import LeaseTimes
from pgsched.worker.exchange import Exchange
from pgsched.worker.ledger import Ledger


def exchange(ledger: Ledger, answer: Callable[[Call[Any]], Awaitable[Any]]) -> Exchange:
    """One of two, whose session gives these answers."""
    identity: Any = SimpleNamespace(calls=Calls(), times=LeaseTimes(), id=1)
    made = Exchange(ledger, identity, {}, 1, 60.0)
    made._session = SimpleNamespace(call=answer)  # type: ignore[assignment]
    return made


def test_what_an_exchange_whose_session_is_lost_was_about_to_begin_is_for_another() -> None:
    async def lost(_: Call[Any]) -> Any:
        raise psycopg.OperationalError("lost")

    async def main() -> None:
        ledger, loop = Ledger(2, ["a"]), asyncio.get_running_loop()
        job: Any = SimpleNamespace(job_id=1, claim_id=1)
        ledger.beginning.append((job, loop.create_future()))
        ledger.hint = False
        other = asyncio.create_task(ledger.rest(loop.create_future()))
        await asyncio.sleep(0)
        with pytest.raises(psycopg.OperationalError):
            await exchange(ledger, lost)._exchange()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert other.done() and len(ledger.beginning) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first", "looks_for"),
    [("with", "anything"), ("without", "anything"), ("without", "what has ended here")],
)
def test_a_claim_that_may_bring_no_suspect_does_not_say_that_there_is_none(first: str, looks_for: str) -> None:
    """Two ask for one job each, of which only one may bring a suspect. It brings another job, and the second nothing."""

    async def main() -> None:
        ledger, loop = Ledger(3, ["a"]), asyncio.get_running_loop()
        ledger.start = lambda _: None
        answers: dict[bool, asyncio.Future[Any]] = {True: loop.create_future(), False: loop.create_future()}

        async def answer(call: Call[Any]) -> Any:
            return await answers[json.loads(call.params["want"])["suspects"]]

        both = [exchange(ledger, answer) for _ in range(2)]
        for one in both:
            one._tasks = {"noop": SimpleNamespace(name="noop")}
        if looks_for == "what has ended here":
            ledger.hint = False
            ledger.ended.append((SimpleNamespace(job_id=9, claim_id=9), "{}"))  # type: ignore[arg-type]
        asking = [asyncio.create_task(both[0]._exchange())]
        await asyncio.sleep(0)
        ledger.hint = True
        asking.append(asyncio.create_task(both[1]._exchange()))
        await asyncio.sleep(0)
        rows = {True: [(None, 1, 1, 1, "noop", b"{}", None, None)], False: []}
        for suspects in (True, False) if first == "with" else (False, True):
            answers[suspects].set_result(rows[suspects])
            await asyncio.sleep(0.01)
        await asyncio.gather(*asking)
        assert ledger.hint, "a suspect may be there still"

        answers[True] = loop.create_future()
        answers[True].set_result([])
        await both[0]._exchange()
        assert not ledger.hint

    asyncio.run(main())
