"""The connection of a work session: prepared statements, and an end of every wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from pgsched import wire
from pgsched.wire import Unanswered, WorkConnection

ASLEEP = "select pg_sleep(%(seconds)s)"


def using(dsn: str, body: Callable[[WorkConnection], Awaitable[None]]) -> None:
    """Run `body` with a connection of its own."""

    async def main() -> None:
        connection = await WorkConnection.connect(dsn, autocommit=True)
        try:
            await body(connection)
        finally:
            await connection.close()

    asyncio.run(main())


def test_calls_of_any_types_wait_for_each_other_and_are_prepared_once(dsn: str) -> None:
    async def body(connection: WorkConnection) -> None:
        text = "select %(b)s::text || %(a)s || '%%', array_length(%(c)s::int[], 1), %(a)s::text"
        calls = [connection.rows(text, {"a": a, "b": "é", "c": [1, 2]}) for a in ("x", None, "y", "z")]
        assert await asyncio.gather(*calls) == [[("éx%", 2, "x")], [(None, 2, None)], [("éy%", 2, "y")], [("éz%", 2, "z")]]
        prepared = await connection.rows("select count(*) from pg_prepared_statements where statement like %(like)s", {"like": "%||%"})
        assert prepared[0][0] <= 2

    using(dsn, body)


def test_an_error_comes_out_by_its_class_and_the_session_goes_on(dsn: str) -> None:
    async def body(connection: WorkConnection) -> None:
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.rows("select 1 / %(n)s::int", {"n": 0})
            with pytest.raises(psycopg.errors.UndefinedFunction):
                await connection.rows("select no_such_function()", {})
        assert await connection.rows("select 1", {}) == [(1,)]
        with pytest.raises(psycopg.DataError):
            await connection.rows("select %(text)s::text", {"text": "a\0b"})
        assert await connection.rows("select 2", {}) == [(2,)]

    using(dsn, body)


def test_an_answer_that_takes_too_long_is_given_up_by_its_own_time(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ANSWER_S", 0.5)

    async def body(connection: WorkConnection) -> None:
        for _ in range(3):  # (each as long as a good part of the time that one answer may take)
            await connection.rows(ASLEEP, {"seconds": 0.3})
        began = time.monotonic()
        with pytest.raises(Unanswered):
            await connection.rows(ASLEEP, {"seconds": 30})
        assert 0.5 <= time.monotonic() - began < 5
        with pytest.raises(psycopg.OperationalError):
            await connection.rows("select 1", {})

    using(dsn, body)


def test_whoever_is_cancelled_hangs_up_at_once(dsn: str) -> None:
    async def body(connection: WorkConnection) -> None:
        waiting = asyncio.create_task(connection.rows(ASLEEP, {"seconds": 30}))
        behind = asyncio.create_task(connection.rows("select 1", {}))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(psycopg.OperationalError):
            await behind
        assert time.monotonic() - began < 2

    using(dsn, body)
