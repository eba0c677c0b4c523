"""The connections of transactional jobs: one each, whose transaction is committed with the job's success or not at all.

Such a session holds no lock of the worker. What makes it safe is in sql/functions/transactional.sql: the transaction ends its own
row in running, or cannot commit. The handler works through an object of its own that is cut off from the session when the handler
has ended, so that nothing that it left behind can reach the commit, or the next job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn

from pgsched.bounds import network_wishes
from pgsched.calls import Calls
from pgsched.errors import TransactionEnded
from pgsched.wire import hang_up

ISOLATION = ("read committed", "repeatable read", "serializable")
"""The isolation levels that a transactional task may ask for."""

_IDLE_S = 60.0
_PATIENCE_S = 15
# A link that was cut is noticed within seconds, also while a statement runs; by the server too (`_BOUNDS`).
_NETWORK: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": _PATIENCE_S * 1000,
}
# (Each by itself: a managed server may refuse one, which must not end the transaction.)
_BOUNDS = "".join(
    f"begin set {wish}; exception when others then null; end; " for _, wish, _ in network_wishes(_PATIENCE_S)
)

# What DISCARD ALL does, but for the plans: they hold nothing of a job's, and finish_transaction would plan its statements anew.
_RESET = (
    b"close all; set session authorization default; reset all; deallocate all; unlisten *; "
    b"select pg_advisory_unlock_all(); discard temp; discard sequences"
)


class Gate:
    """A handler may not end its transaction. A call that it was refused is remembered, also where it swallowed the error."""

    def __init__(self) -> None:
        self._is_quiet = False
        self.refused: str | None = None

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """A library sets itself up or tidies up meanwhile: what it ends is not ended."""
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before

    def refuse(self, what: str) -> None:
        """Raise `TransactionEnded` in the handler."""
        if not self._is_quiet:
            self.refused = what
            self.complain()

    def complain(self) -> None:
        """Raise `TransactionEnded` if a call was refused."""
        if self.refused is not None:
            raise TransactionEnded(
                f"{self.refused}() on the connection of a transactional job: what it writes is committed with its success; "
                "return to commit, raise to roll back, use connection.transaction() for savepoints"
            )


class _CutOff:
    """In place of the session, once the handler has ended."""

    status = ConnStatus.BAD

    def __getattr__(self, name: str) -> Any:
        raise psycopg.OperationalError("the job that this connection was made for has ended")


class JobConnection(psycopg.Connection[Any]):
    """The connection of a transactional `def` task, as its handler has it: it cannot commit, roll back or close."""

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self.gate = Gate()

    def commit(self) -> None:
        """Not for handlers."""
        self.gate.refuse("commit")

    def rollback(self) -> None:
        """Not for handlers."""
        self.gate.refuse("rollback")

    def close(self) -> None:
        """Not for handlers."""
        self.gate.refuse("close")

    def cut_off(self) -> bool:
        """From now on this object reaches nothing. False where a statement was left open on it: then the session is lost."""
        is_free = self.lock.acquire(blocking=False)
        left = not is_free or _is_in_use(self)
        self.pgconn, self._autocommit = _CutOff(), False  # type: ignore[assignment]
        if is_free:
            self.lock.release()
        return not left


class AsyncJobConnection(psycopg.AsyncConnection[Any]):
    """`JobConnection` of an `async def` task."""

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self.gate = Gate()

    async def commit(self) -> None:
        """Not for handlers."""
        self.gate.refuse("commit")

    async def rollback(self) -> None:
        """Not for handlers."""
        self.gate.refuse("rollback")

    async def close(self) -> None:
        """Not for handlers."""
        self.gate.refuse("close")

    def cut_off(self) -> bool:
        """As of `JobConnection`."""
        left = self.lock.locked() or _is_in_use(self)
        self.pgconn, self._autocommit = _CutOff(), False  # type: ignore[assignment]
        return not left


def _is_in_use(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether it is in the middle of a statement, a COPY, a pipeline."""
    return connection._pipeline is not None or connection.pgconn.transaction_status == TransactionStatus.ACTIVE


class JobSessions:
    """The sessions of a worker's transactional jobs: at most `size` at once, opened when they are needed, kept for a minute.

    What is handed out is a connection in autocommit mode to begin and end the transaction with; each time a new object over the
    session, which was reset on the server: nothing of one job is met by the next.
    """

    def __init__(self, dsn: str, calls: Calls, size: int, name: str) -> None:
        self.calls = calls
        self.places = asyncio.Semaphore(size)
        """To be held on the loop by who uses a session."""
        self._dsn = dsn
        self._options: dict[str, Any] = {"autocommit": True, "application_name": f"pgsched job {name}"[:63], **_NETWORK}
        self._idle: deque[tuple[PGconn, float]] = deque()

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A session for one job, in this thread. Raises `psycopg.OperationalError` where none can be had."""
        if (pgconn := self._take()) is not None:
            session = psycopg.Connection[Any](pgconn)
            session.autocommit = True
        else:
            session = psycopg.connect(self._dsn, **self._options)
        try:
            yield session
        finally:
            with contextlib.suppress(psycopg.Error):
                if not session.closed and session.info.transaction_status == TransactionStatus.IDLE:
                    session.execute(_RESET)
                    self._put(session)
            session.close()

    @contextlib.asynccontextmanager
    async def aconnection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """`connection` on the loop."""
        if (pgconn := self._take()) is not None:
            session = psycopg.AsyncConnection[Any](pgconn)
            await session.set_autocommit(True)
        else:
            session = await psycopg.AsyncConnection.connect(self._dsn, **self._options)
        try:
            yield session
        finally:
            with contextlib.suppress(psycopg.Error):
                if not session.closed and session.info.transaction_status == TransactionStatus.IDLE:
                    await session.execute(_RESET)
                    self._put(session)
            await session.close()

    def close(self) -> None:
        """Close what is idle, and what comes back later."""
        self._options.clear()
        while self._idle:
            self._idle.popleft()[0].finish()

    def _take(self) -> PGconn | None:
        while self._idle:
            pgconn, since = self._idle.pop()
            if time.monotonic() - since < _IDLE_S and pgconn.status == ConnStatus.OK:
                return pgconn
            pgconn.finish()
        return None

    def _put(self, session: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        if self._options:  # (else it is closed)
            self._idle.append((session.pgconn, time.monotonic()))
            session.pgconn = _CutOff()  # type: ignore[assignment]


def beginning(isolation: str) -> bytes:
    """The statements that begin a job's transaction, in one message."""
    return f"begin isolation level {isolation}; do $$ begin {_BOUNDS}end $$".encode()


def abandon(session: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """End a session on which somebody may still be in the middle of a statement: it is hung up and let go."""
    hang_up(session)
    session.pgconn = _CutOff()  # type: ignore[assignment]


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
        one = getattr(one, "orig", None) or one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False
