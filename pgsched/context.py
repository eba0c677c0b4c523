"""What a handler can ask about the job that it runs: `pgsched.current_job()`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from pgsched.errors import JobStopped, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection as SAConnection
    from sqlalchemy.ext.asyncio import AsyncConnection as SAAsyncConnection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


class Stop(enum.Enum):
    """Why a handler is to end before its time, and what becomes of its job."""

    SHUTDOWN = "shutdown"
    """Its worker ends or has lost its lease: the job goes back, uncharged."""
    TIMEOUT = "timeout"
    """The attempt took longer than its timeout: it has failed."""
    CANCEL = "cancel"
    """Somebody cancelled the job: it ends as cancelled."""


class Transaction(Protocol):
    """The transaction of a transactional job, as its handler may use it."""

    @property
    def connection(self) -> Any:
        """The psycopg connection."""

    def alchemy(self) -> Any:
        """SQLAlchemy's connection and session in the same transaction, or a coroutine that answers them in an event loop."""


_MOST_CHARS = 1000


def _to_nobody(job_id: int, claim_id: int, fraction: float | None, message: str | None) -> None:
    """A handler that runs without a worker reports into the void."""


@dataclass(slots=True)
class JobContext:
    """The job that runs here."""

    id: int
    """Its number."""
    task: str
    """Its task's name."""
    attempt: int
    """The number of this attempt in its retry budget, from 1."""
    fence: int
    """This claim's number: new at every claim, only grows for a job. A token for conditional writes outside Postgres."""
    lost_attempts: int = 0
    """How many workers died before while they ran it."""
    state: Any = None
    """What the app's lifespan has yielded; None in a process of its own."""
    tick_at: datetime | None = None
    """The time of the schedule's tick that made it, which is not the time at which it runs; None where no schedule did."""
    _stop: list[tuple[Stop, str]] = field(default_factory=list, repr=False)
    _transaction: Transaction | None = field(default=None, repr=False)
    _report: Callable[[int, int, float | None, str | None], None] = field(default=_to_nobody, repr=False)

    @property
    def stopping(self) -> bool:
        """True when the handler is to end: cancelled, out of time, or its worker ends.

        A thread, which nobody can stop, looks here now and then and calls `raise_if_stopping()`.
        """
        return bool(self._stop)

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Say how far this job is: `fraction` 0 to 1, a `message` of which the first 1,000 characters are kept, or both.

        It replaces what was said before. Cheap, and never waits: the worker sends what is new about once a second, so what was
        said in between, or just before the end, may never be seen. Raises `UsageError` for a fraction out of range, or nothing.
        """
        if fraction is None and message is None:
            raise UsageError("progress() says nothing: give it a fraction from 0 to 1, a message, or both")
        if fraction is not None and not (isinstance(fraction, Real) and 0 <= fraction <= 1):
            raise UsageError(f"progress({fraction!r}): the fraction of the work that is done is a number from 0 to 1")
        if message is not None and not isinstance(message, str):
            raise UsageError(f"progress(): its message is a {type(message).__name__}, not a text")
        self._report(self.id, self.fence, fraction, message[:_MOST_CHARS] if message else message)

    def raise_if_stopping(self) -> None:
        """Raise `JobStopped` when the handler is to end. (One that returns instead is believed: its work is done.)"""
        if self._stop:
            raise JobStopped(self._stop[0][1])

    @property
    def connection(self) -> Any:
        """The psycopg connection whose transaction is committed together with the job's success, or not at all.

        A `psycopg.Connection` in a `def` task, a `psycopg.AsyncConnection` in an `async def` one. The handler must not commit or
        roll it back (`TransactionEnded`); `with connection.transaction()` makes savepoints. Raises `UsageError` in a task that is
        not `transactional`.
        """
        return self._in_transaction("connection").connection

    def sqlalchemy_connection(self) -> SAConnection:
        """`connection` as one of SQLAlchemy (2.0). The same rules hold."""
        found: SAConnection = self._in_transaction("sqlalchemy_connection").alchemy().connection
        return found

    def sqlalchemy_session(self) -> Session:
        """A session of SQLAlchemy's ORM on the same transaction, flushed before the commit; one and the same in an attempt."""
        found: Session = self._in_transaction("sqlalchemy_session").alchemy().session
        return found

    async def asqlalchemy_connection(self) -> SAAsyncConnection:
        """`sqlalchemy_connection` in an `async def` task."""
        found: SAAsyncConnection = (await self._in_transaction("asqlalchemy_connection").alchemy()).connection
        return found

    async def asqlalchemy_session(self) -> AsyncSession:
        """`sqlalchemy_session` in an `async def` task."""
        found: AsyncSession = (await self._in_transaction("asqlalchemy_session").alchemy()).session
        return found

    def _in_transaction(self, name: str) -> Transaction:
        if self._transaction is None:
            raise UsageError(
                f'current_job().{name}: task "{self.task}" is not transactional: declare it with @app.task(transactional=True)'
            )
        return self._transaction


_current: ContextVar[JobContext] = ContextVar("pgsched_current_job")


def current_job() -> JobContext:
    """The job that runs here. Raises `UsageError` outside a job's handler."""
    try:
        return _current.get()
    except LookupError:
        raise UsageError("current_job() was called outside a job's handler") from None
