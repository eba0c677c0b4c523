"""The session on which a process stands for election: how it is made, what bounds it on both sides, and how it is given up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgsched.calls import Calls
from pgsched.dsn import unreachable
from pgsched.errors import ConnectError
from pgsched.lease import now
from pgsched.run import arun

T = TypeVar("T")
log = logging.getLogger("pgsched.leader")

SILENCE_S = 2.0
"""The server ends a session that sends nothing for so long, and no sooner."""

_TRY_S = 10.0
_PER_HOST_S = 3

# The server ends a leader that is silent, whatever its process believes; its statements may take as long.
_BOUNDS = (
    "set default_transaction_isolation = 'read committed'; set statement_timeout = '2s'; set lock_timeout = '800ms'; "
    f"set idle_session_timeout = '{SILENCE_S:.0f}s'; set idle_in_transaction_session_timeout = '2s'"
)
# What a managed server may withhold or its system lack, and what is weaker then. (The first Postgres that knows it; what.)
_WISHES = (
    (0, "tcp_user_timeout = '2s'", "an answer that cannot be delivered holds a lost leader's session for minutes"),
    (0, "tcp_keepalives_idle = 1", "a cut link is noticed by idle_session_timeout alone"),
    (0, "tcp_keepalives_interval = 1", "a cut link is noticed by idle_session_timeout alone"),
    (0, "tcp_keepalives_count = 2", "a cut link is noticed by idle_session_timeout alone"),
    (0, "client_connection_check_interval = '1s'", "a statement goes on for up to 2 s after its client has hung up"),
    # Longer than statement_timeout: that one only ends the statement, this one the session.
    (170000, "transaction_timeout = '3s'", "a transaction is bounded by its statements alone"),
)
# And a cut link is noticed on this side too.
_NETWORK: dict[str, Any] = {
    "connect_timeout": _PER_HOST_S,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 2000,
}


async def open_session(dsn: str, calls: Calls, name: str) -> psycopg.AsyncConnection[Any]:
    """A new session that hears what concerns the leadership. The whole try takes at most 10 s (3 s more a further host).

    Raises `ConnectError` when it takes longer or the database does not answer, else the database's error.
    """
    deadline = now() + _TRY_S + _PER_HOST_S * (str(conninfo_to_dict(dsn).get("host") or "").count(","))
    try:
        async with asyncio.timeout(deadline - now()):
            connection = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, application_name=f"pgsched leader {name}"[:63], **_NETWORK
            )
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from error
    except TimeoutError as error:
        raise unreachable(dsn, Exception(f"it took longer than {_TRY_S:.0f} s")) from error
    try:
        await bounded(connection, _prepare(connection, calls), deadline - now())
    except BaseException:
        await connection.close()
        raise
    return connection


async def _prepare(connection: psycopg.AsyncConnection[Any], calls: Calls) -> None:
    await connection.execute(_BOUNDS.encode())
    for since, setting, weaker in _WISHES:
        if connection.info.server_version < since:
            continue
        try:
            await connection.execute(f"set {setting}".encode())
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.info("the server refuses %s (%s): %s", setting, primary(error), weaker)
    channel = await arun(connection, calls.channel())
    await connection.execute(f"listen {channel}_leader".encode())


async def bounded(connection: psycopg.AsyncConnection[Any], work: Coroutine[Any, Any, T], at_most_s: float) -> T:
    """The outcome of `work`, which waits for answers on this connection. Raises `OperationalError` when it takes too long.

    The connection is hung up then, and when the caller is cancelled: psycopg would first ask the server to cancel the
    statement, on a new connection, and then wait for the answer, so that a link on which nothing arrives would hold it longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=max(at_most_s, 0.0))
        if not task.done():
            raise psycopg.OperationalError(f"no answer came in {at_most_s:.0f} s")
        return task.result()
    finally:
        if not task.done():
            # Only its socket: a libpq connection must not be freed under a call. This wakes the call, which fails at once.
            with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as link:
                link.shutdown(socket.SHUT_RDWR)
            await asyncio.wait({task})
            task.exception()


def primary(error: BaseException) -> str:
    """What an error says, in one line: of a database's error its primary message alone, without detail and context."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    text = str(error).strip()
    return (text if isinstance(error, ConnectError) else text.partition("\n")[0]) or type(error).__name__
