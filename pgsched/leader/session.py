"""The session on which a process stands for election: how it is made, what bounds it on both sides, and how it is given up."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgsched.bounds import network_wishes, set_bounds
from pgsched.calls import Calls
from pgsched.dsn import unreachable
from pgsched.lease import now
from pgsched.pooler import own_backend
from pgsched.run import arun, bounded

SILENCE_S = 2.0
"""The server ends a session that sends nothing for so long, and no sooner."""

_TRY_S = 10.0
_PER_HOST_S = 3
_ANSWER_S = 2.0

# The server ends a leader that is silent, whatever its process believes; its statements may take as long.
_BOUNDS = (
    "set default_transaction_isolation = 'read committed'; set timezone = 'UTC'; "
    "set statement_timeout = '2s'; set lock_timeout = '800ms'; "
    f"set idle_session_timeout = '{SILENCE_S:.0f}s'; set idle_in_transaction_session_timeout = '2s'"
)
_WISHES = [
    *network_wishes(2),
    # Longer than statement_timeout: that one only ends the statement, this one the session.
    (170000, "transaction_timeout = '3s'", "a transaction is bounded by its statements alone"),
]
# And a cut link is noticed on this side too.
_NETWORK: dict[str, Any] = {
    "connect_timeout": _PER_HOST_S,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 2000,
}


async def open_session(dsn: str, calls: Calls, name: str, *, known: bool) -> psycopg.AsyncConnection[Any]:
    """A new session that hears what concerns the leadership. The whole try takes at most 10 s (3 s more a further host).

    `known`: a session at this address has been opened before. Raises `ConnectError` when it takes longer or the database
    does not answer, `PoolerError` where the connection is no session, else the database's error.
    """
    deadline = now() + _TRY_S + _PER_HOST_S * (str(conninfo_to_dict(dsn).get("host") or "").count(","))

    async def connected(kind: str) -> psycopg.AsyncConnection[Any]:
        try:
            async with asyncio.timeout(deadline - now()):
                return await psycopg.AsyncConnection.connect(
                    dsn, autocommit=True, application_name=f"pgsched {kind} {name}"[:63], **_NETWORK
                )
        except psycopg.OperationalError as error:
            raise unreachable(dsn, error) from error
        except TimeoutError as error:
            raise unreachable(dsn, Exception(f"it took longer than {_TRY_S:.0f} s")) from error

    connection = await connected("leader")
    try:
        await own_backend(
            connection, lambda: connected("probe"), "a leader", min(_ANSWER_S, deadline - now()), known=known
        )
        await bounded(connection, _prepare(connection, calls), deadline - now())
    except BaseException:
        await connection.close()
        raise
    return connection


async def _prepare(connection: psycopg.AsyncConnection[Any], calls: Calls) -> None:
    await set_bounds(connection, _BOUNDS, _WISHES)
    channel = await arun(connection, calls.channel())
    await connection.execute(f"listen {channel}_leader".encode())
