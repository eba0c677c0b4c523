"""Poolers between us and the server: whether a connection has a backend of its own, and what is left out where it has none.

A pooler in transaction mode (PgBouncer's, and others') runs each transaction on whichever backend is free. A lock of a
session then belongs to whoever comes next on that backend, and a second taker gets it as well, for session locks are
re-entrant. So what lives by such locks asks first, before it sets or locks anything: what is set there stays there.

With the key for cancelling a server gives away its backend's pid. Poolers make keys of their own, so one that does not fit
tells of a pooler; it does not tell of which kind, and one that fits is a hint, no proof.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from pgsched.errors import ConnectError, PoolerError, primary
from pgsched.run import bounded
from pgsched.wire import Unanswered

_BACKEND = (
    b"select pg_backend_pid(), pg_postmaster_start_time()"  # (the pid of another server's backend may be the same)
)
_ROUNDS = 20
"""How often a connection through a pooler is asked: in a small, busy pool it finds its backend again every other time."""


def moved(who: str) -> PoolerError:
    """The error of a connection that changes its backend; `who` needs one that does not."""
    return PoolerError(
        "this connection changes its backend between transactions (PgBouncer in transaction mode?); "
        f"{who} needs a session of its own: use the direct port, or pool_mode = session"
    )


async def own_backend(
    connection: psycopg.AsyncConnection[Any],
    another: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
    who: str,
    patience_s: float,
    *,
    known: bool = False,
) -> int:
    """The pid of the backend that this connection has for itself: while `another` is in a transaction, it is still there.

    Each question is waited for at most `patience_s`. Where the address was proven before (`known`), a key that fits is
    enough, and no other connection is made. Nothing is set or locked; through a pooler nothing will be prepared. Raises
    `PoolerError` where the backend changes, `ConnectError` where a pooler has no session for `another`, else one of the
    connections' own errors.
    """
    mine = await bounded(connection, _ask(connection), patience_s)
    fits = mine[0] == connection.info.backend_pid
    if not fits:
        connection.prepare_threshold = None  # (a pooler may change its mode later, or not reset its backends)
    if not (known and fits):
        other = await _second(another, fits, patience_s)
        try:
            for _ in range(1 if fits else _ROUNDS):
                if not await _stays(connection, mine, other, fits, patience_s):
                    raise moved(who)
        finally:
            await other.close()
    return int(mine[0])


async def _second(
    another: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]], fits: bool, patience_s: float
) -> psycopg.AsyncConnection[Any]:
    """Another connection that has been answered."""
    other: psycopg.AsyncConnection[Any] | None = None
    try:
        other = await another()
        await bounded(other, _ask(other), patience_s)
        return other
    except BaseException as error:
        if other is not None:
            await other.close()
        if fits or not isinstance(error, (psycopg.OperationalError, ConnectError)):
            raise
        raise ConnectError(
            f"the pooler has no second session for this database and user at the moment ({primary(error)}): a worker needs "
            "four of its own, a leader one more; raise default_pool_size, or use the direct port"
        ) from error


async def _stays(
    connection: psycopg.AsyncConnection[Any],
    mine: tuple[Any, ...],
    other: psycopg.AsyncConnection[Any],
    fits: bool,
    patience_s: float,
) -> bool:
    """Whether `connection` is still on its backend while `other` is in a transaction, and after it."""
    try:
        await bounded(other, other.execute("begin", prepare=False), patience_s)
    except psycopg.errors.ProtocolViolation:  # a pooler in statement mode takes no transactions
        return False
    theirs = await bounded(other, _ask(other), patience_s)
    try:
        again = await bounded(connection, _ask(connection), patience_s)
    except (Unanswered, psycopg.errors.ProtocolViolation):
        # Either the server hangs, or the pool has one backend, for which this one waits (an error ends such a wait).
        if fits:
            raise
        await bounded(other, _ask(other), patience_s)
        return False
    await bounded(other, other.execute("rollback", prepare=False), patience_s)
    # (PgBouncer gives what was last given back: on a quiet pool each could meet its own for ever, but `theirs` is next now.)
    after = await bounded(connection, _ask(connection), patience_s)
    return mine == again == after and mine != theirs


async def _ask(connection: psycopg.AsyncConnection[Any]) -> tuple[Any, ...]:
    row = await (await connection.execute(_BACKEND, prepare=False)).fetchone()
    assert row is not None
    return tuple(row)


def spare(connection: psycopg.Connection[Any]) -> None:
    """Prepare no statements on a connection through a pooler: they would stay on a backend, and the connection would not."""
    row = connection.execute(_BACKEND, prepare=False).fetchone()
    if row is None or row[0] != connection.info.backend_pid:
        connection.prepare_threshold = None


async def aspare(connection: psycopg.AsyncConnection[Any]) -> None:
    """`spare` in an event loop."""
    if (await _ask(connection))[0] != connection.info.backend_pid:
        connection.prepare_threshold = None
