"""How a call is sent: on a psycopg connection, sync or async, or inside the transaction of somebody's SQLAlchemy session.

The database's errors come out as pgsched's own where they are (see `errors.translate`), else as they are.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import psycopg
from psycopg.rows import tuple_row

from pgsched.calls import Call
from pgsched.errors import UsageError, translate
from pgsched.wire import Unanswered, hang_up

if TYPE_CHECKING:
    from sqlalchemy import Connection as SAConnection
    from sqlalchemy.ext.asyncio import AsyncConnection as SAAsyncConnection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

T = TypeVar("T")

Connection: TypeAlias = "psycopg.Connection[Any] | SAConnection | Session"
AsyncConnection: TypeAlias = "psycopg.AsyncConnection[Any] | SAAsyncConnection | AsyncSession"


def run(connection: Connection, call: Call[T]) -> T:
    """Send `call` on a connection of psycopg or SQLAlchemy, in whatever transaction it is in."""
    if isinstance(connection, psycopg.Connection):
        with ours(call), connection.cursor(row_factory=tuple_row) as cursor:
            return call.read(cursor.execute(call.text, call.params).fetchall())
    if _is_a(connection, "sqlalchemy.orm", "Session", "scoped_session"):
        connection = cast("Session", connection).connection()
    if _is_a(connection, "sqlalchemy", "Connection"):
        connection = cast("SAConnection", connection)
        _check_driver(connection.dialect.driver)
        with ours(call):
            return call.read([tuple(row) for row in connection.exec_driver_sql(call.text, dict(call.params))])
    raise UsageError(
        f"connection= is a {type(connection).__name__}: it must be a psycopg.Connection, or a SQLAlchemy Connection or "
        "Session (an asynchronous one goes to the async twin, for example aenqueue)"
    )


async def arun(connection: AsyncConnection, call: Call[T]) -> T:
    """`run` on an asynchronous connection of psycopg or SQLAlchemy."""
    if isinstance(connection, psycopg.AsyncConnection):
        with ours(call):
            async with connection.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(call.text, call.params)
                return call.read(await cursor.fetchall())
    if _is_a(connection, "sqlalchemy.ext.asyncio", "AsyncSession", "async_scoped_session"):
        connection = await cast("AsyncSession", connection).connection()
    if _is_a(connection, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        connection = cast("SAAsyncConnection", connection)
        _check_driver(connection.dialect.driver)
        with ours(call):
            result = await connection.exec_driver_sql(call.text, dict(call.params))
            return call.read([tuple(row) for row in result])
    raise UsageError(
        f"connection= is a {type(connection).__name__}: the async twins take a psycopg.AsyncConnection, or a SQLAlchemy "
        "AsyncConnection or AsyncSession"
    )


async def bounded(connection: psycopg.AsyncConnection[Any], work: Coroutine[Any, Any, T], at_most_s: float) -> T:
    """The outcome of `work`, which waits for answers on this connection. Raises `Unanswered` when it takes too long.

    The connection is hung up then, and when the caller is cancelled: psycopg would first ask the server to cancel the
    statement, on a new connection, and then wait for the answer, so that a link on which nothing arrives would hold it longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=max(at_most_s, 0.0))
        if not task.done():
            raise Unanswered(f"no answer came in {at_most_s:.0f} s")
        return task.result()
    finally:
        if not task.done():
            hang_up(connection)
            await asyncio.wait({task})
            task.exception()


def refuse_in_loop(name: str, twin: str) -> None:
    """Raise `UsageError` when a blocking call is made inside a running event loop, which it would stop."""
    if asyncio._get_running_loop() is not None:
        raise UsageError(f"{name}() blocks, and this is a running event loop: use `await {twin}()`")


@contextmanager
def ours(call: Call[T]) -> Iterator[None]:
    """The database's errors come out as pgsched's own, where they are."""
    try:
        yield
    except psycopg.Error as error:
        if ours := translate(error, call.schema):
            raise ours from error
        raise
    except Exception as error:
        # SQLAlchemy wraps the driver's error and keeps it as `orig`.
        original = getattr(error, "orig", None)
        if isinstance(original, psycopg.Error) and (ours := translate(original, call.schema)):
            raise ours from error
        raise


def _is_a(value: object, module: str, *names: str) -> bool:
    """isinstance without the import: nothing is of a class whose module nobody has imported."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, tuple(getattr(loaded, name) for name in names))


def _check_driver(driver: str) -> None:
    if driver not in ("psycopg", "psycopg_async", "psycopg2"):
        raise UsageError(
            f"the SQLAlchemy engine uses the driver {driver}: pgsched can join transactions of psycopg "
            '(create_engine("postgresql+psycopg://...")) and psycopg2'
        )
