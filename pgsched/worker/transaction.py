"""The connections of transactional jobs: one each, whose transaction is committed with the job's success or not at all.

Such a session holds no lock of the worker. What makes it safe is in sql/functions/transactional.sql: the transaction ends its own
row in running, or cannot commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgsched.calls import Calls
from pgsched.errors import TransactionEnded

ISOLATION = {
    "read committed": psycopg.IsolationLevel.READ_COMMITTED,
    "repeatable read": psycopg.IsolationLevel.REPEATABLE_READ,
    "serializable": psycopg.IsolationLevel.SERIALIZABLE,
}
"""The isolation levels that a transactional task may ask for."""

_WAIT_S = 30.0
_CLOSE_S = 2.0
# A link that was cut is noticed within seconds, also while a statement runs.
_NETWORK: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


class Gate:
    """Who may end the transaction: whoever runs the job, but not the handler."""

    def __init__(self) -> None:
        self._holds = False
        self._is_quiet = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The handler has the connection meanwhile."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """A library sets itself up or tidies up meanwhile: what it ends is not ended."""
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before

    def passes(self, what: str) -> bool:
        """Whether this may be done. Raises `TransactionEnded` in the handler."""
        if self._is_quiet:
            return False
        if self._holds:
            raise TransactionEnded(
                f"{what}() on the connection of a transactional job: what the handler writes is committed with its success; "
                "return to commit, raise to roll back, use connection.transaction() for savepoints"
            )
        return True


class JobConnection(psycopg.Connection[Any]):
    """The connection of a transactional `def` task: a handler cannot commit, roll back or close it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = Gate()

    def commit(self) -> None:
        """Not for handlers."""
        if self.gate.passes("commit"):
            super().commit()

    def rollback(self) -> None:
        """Not for handlers."""
        if self.gate.passes("rollback"):
            super().rollback()

    def close(self) -> None:
        """Not for handlers."""
        if self.gate.passes("close"):
            super().close()


class AsyncJobConnection(psycopg.AsyncConnection[Any]):
    """The connection of a transactional `async def` task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = Gate()

    async def commit(self) -> None:
        """Not for handlers."""
        if self.gate.passes("commit"):
            await super().commit()

    async def rollback(self) -> None:
        """Not for handlers."""
        if self.gate.passes("rollback"):
            await super().rollback()

    async def close(self) -> None:
        """Not for handlers."""
        if self.gate.passes("close"):
            await super().close()


class JobSessions:
    """The connections of a worker's transactional jobs: at most `size`, opened when they are needed, kept for a minute."""

    def __init__(self, dsn: str, calls: Calls, size: int, name: str) -> None:
        self.calls = calls
        self._dsn = dsn
        self._options: dict[str, Any] = {
            "min_size": 0,
            "max_size": size,
            "timeout": _WAIT_S,
            "max_idle": 60.0,
            "name": "pgsched-jobs",
            "kwargs": {"application_name": f"pgsched job {name}"[:63], **_NETWORK},
        }
        self._pool: ConnectionPool[JobConnection] | None = None
        self._async_pool: AsyncConnectionPool[AsyncJobConnection] | None = None

    def open(self) -> None:
        """Make the pools, in the event loop that uses them. Nothing is connected yet."""
        self._pool = ConnectionPool(self._dsn, connection_class=JobConnection, open=False, **self._options)
        self._async_pool = AsyncConnectionPool(
            self._dsn, connection_class=AsyncJobConnection, open=False, **self._options
        )

    @contextlib.contextmanager
    def connection(self) -> Iterator[JobConnection]:
        """A connection for one job. Raises `psycopg.OperationalError` (PoolTimeout) where none can be had within 30 s."""
        assert self._pool is not None
        self._pool.open()
        connection = self._pool.getconn()
        try:
            yield connection
        finally:
            self._pool.putconn(connection)

    @contextlib.asynccontextmanager
    async def aconnection(self) -> Any:
        """`connection` for an `async def` task."""
        assert self._async_pool is not None
        await self._async_pool.open()
        connection = await self._async_pool.getconn()
        try:
            yield connection
        finally:
            await self._async_pool.putconn(connection)

    async def close(self) -> None:
        """Close what is idle; what a job still uses is closed when it gives it back."""
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close, _CLOSE_S)
        if self._async_pool is not None:
            await self._async_pool.close(_CLOSE_S)


def comes_of(error: BaseException, *kinds: type[psycopg.Error]) -> bool:
    """Whether it is an error of the database of one of these kinds, or was raised because of one.

    Libraries wrap the database's error: as its cause, or as SQLAlchemy does in `orig`.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, kinds):
            return True
        one = getattr(one, "orig", None) or one.__cause__ or one.__context__
    return False
