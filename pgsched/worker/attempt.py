"""One attempt at one job, from its arguments to its outcome, wherever it runs: on the loop, in a thread, in a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from pgsched.calls import Calls
from pgsched.context import JobContext, Stop, _current
from pgsched.errors import (
    ArgumentsError,
    ClaimCancelled,
    JobStopped,
    ResultError,
    ResultTooLarge,
    StaleClaim,
    TransactionEnded,
    primary,
)
from pgsched.run import arun, run
from pgsched.task import AnyTask
from pgsched.worker import outcome
from pgsched.worker.transaction import ISOLATION, AsyncJobConnection, JobConnection, JobSessions, comes_of


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: one claimed job, as it travels to whoever runs it."""

    job_id: int
    claim_id: int
    attempt: int
    args: bytes
    lost_attempts: int
    last_session: int
    """The number of the worker's newest work session when the attempt began."""


@dataclass(slots=True)
class Ended:
    """How it ended."""

    text: str
    """The outcome as `finish` takes it; empty where the handler's own transaction has said it already."""
    value: Any = None
    """What the handler returned."""
    error: BaseException | None = None
    """What it raised."""


class Attempt:
    """`run` or `arun` it once."""

    def __init__(self, task: AnyTask, work: Work, context: JobContext) -> None:
        self.task = task
        self.work = work
        self.context = context
        self._stage = "begin"
        self.opened: Callable[[JobConnection], None] = lambda connection: None
        """Called in a thread with the connection of its transaction, so that a statement of it can be cancelled."""

    # ---- In this thread.

    def run(self, sessions: JobSessions) -> Ended:
        """Run a `def` task. It raises nothing: whatever the handler does becomes an outcome."""
        _current.set(self.context)
        try:
            args, kwargs = self.task.arguments.load(self.work.args)
            if not self.task.transactional:
                return self.returned(self.task.function(*args, **kwargs))
            with sessions.connection() as connection:
                self.opened(connection)
                return self._commit(sessions.calls, connection, lambda: self.task.function(*args, **kwargs))
        except BaseException as error:  # (also SystemExit: it ends the attempt, not the worker)
            return self._undone(error, False) if self.task.transactional else self.raised(error)

    def _commit(self, calls: Calls, connection: JobConnection, handler: Callable[[], Any]) -> Ended:
        transaction = _Transaction(connection)
        self.context._transaction = transaction
        work = self.work
        try:
            connection.isolation_level = ISOLATION[self.task.isolation]
            run(connection, calls.begin_transaction(work.job_id, work.claim_id))
            self._stage = "handler"
            with connection.gate.held():
                value = handler()
                if transaction.made is not None:
                    transaction.made.flush()
            result = None if value is None else self.task.returned.dump(value)
            self._stage = "finish"
            run(connection, calls.finish_transaction(work.job_id, work.claim_id, result))
            self._stage = "commit"
            connection.commit()
            return Ended("", value)
        except BaseException as error:
            with contextlib.suppress(psycopg.Error):
                if connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    connection.cancel_safe(timeout=2.0)  # (it was left in the middle of a statement)
                    connection.close()
                connection.rollback()
            return self._undone(error, connection.closed)
        finally:
            if transaction.made is not None:
                with contextlib.suppress(Exception):  # (its connection may have ended)
                    transaction.made.close()

    # ---- On the loop.

    async def arun(self, sessions: JobSessions) -> Ended:
        """Run an `async def` task."""
        _current.set(self.context)
        try:
            args, kwargs = self.task.arguments.load(self.work.args)
            if not self.task.transactional:
                return self.returned(await self.task.function(*args, **kwargs))
            async with sessions.aconnection() as connection:
                return await self._acommit(sessions.calls, connection, lambda: self.task.function(*args, **kwargs))
        except BaseException as error:
            return self._undone(error, False) if self.task.transactional else self.raised(error)

    async def _acommit(self, calls: Calls, connection: AsyncJobConnection, handler: Callable[[], Any]) -> Ended:
        transaction = _AsyncTransaction(connection)
        self.context._transaction = transaction
        work = self.work
        try:
            await connection.set_isolation_level(ISOLATION[self.task.isolation])
            await arun(connection, calls.begin_transaction(work.job_id, work.claim_id))
            self._stage = "handler"
            with connection.gate.held():
                value = await handler()
                if transaction.made is not None:
                    await transaction.made.flush()
            result = None if value is None else self.task.returned.dump(value)
            self._stage = "finish"
            await arun(connection, calls.finish_transaction(work.job_id, work.claim_id, result))
            self._stage = "commit"
            await connection.commit()
            return Ended("", value)
        except BaseException as error:
            with contextlib.suppress(psycopg.Error):
                if connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    await connection.close()
                await connection.rollback()
            return self._undone(error, connection.closed)
        finally:
            if transaction.made is not None:
                with contextlib.suppress(Exception):
                    await transaction.made.close()

    # ---- What it means.

    def returned(self, value: Any) -> Ended:
        """The handler has returned."""
        work = self.work
        try:
            return Ended(outcome.succeeded(work.job_id, work.claim_id, self.task.returned, value), value)
        except ResultError as error:
            return Ended(outcome.failed(work.job_id, work.claim_id, str(error)), value, error)

    def raised(self, error: BaseException) -> Ended:
        """The handler has raised, or could not even begin."""
        work, task = self.work, self.task
        if self._is_stopped(error):
            kind, words = self.context._stop[0]
            if kind is Stop.SHUTDOWN:
                return Ended(outcome.given_back(work.job_id, work.claim_id, words), error=error)
            if kind is Stop.CANCEL:
                return Ended(outcome.cancelled(work.job_id, work.claim_id, words), error=error)
            late = TimeoutError(words)
            late.__cause__ = error
            return Ended(outcome.raised(work.job_id, work.claim_id, late, task.retry), error=late)
        final = isinstance(error, (ArgumentsError, TransactionEnded))
        return Ended(outcome.raised(work.job_id, work.claim_id, error, task.retry, final=final), error=error)

    def _is_stopped(self, error: BaseException) -> bool:
        """Whether it ended because it was told to. (A thread that waited for the database had its statement cancelled.)"""
        if not self.context._stop:
            return False
        return isinstance(error, (JobStopped, asyncio.CancelledError)) or (
            self.task.transactional and comes_of(error, psycopg.errors.QueryCanceled)
        )

    def _undone(self, error: BaseException, is_broken: bool) -> Ended:
        """What the transaction has done is undone, as far as this end of its connection can tell."""
        work, stage = self.work, self._stage
        if self._is_stopped(error):
            return self.raised(error)
        if stage == "begin" and isinstance(error, psycopg.Error):  # (an idle connection that has ended, for one)
            why = f"its transaction could not begin: {primary(error)}"
            return Ended(outcome.given_back(work.job_id, work.claim_id, why), error=error)
        if is_broken:
            why = f"the connection of its transaction ended: {primary(error)}"
            return Ended(outcome.broken(work.job_id, work.claim_id, why, work.last_session), error=error)
        if isinstance(error, StaleClaim):
            return Ended(outcome.given_back(work.job_id, work.claim_id, primary(error)), error=error)
        if isinstance(error, ClaimCancelled):
            return Ended(outcome.cancelled(work.job_id, work.claim_id, primary(error)), error=error)
        if comes_of(error, psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
            text = outcome.raised(work.job_id, work.claim_id, error, self.task.retry, conflict=True)
            return Ended(text, error=error)
        if isinstance(error, (ResultError, ResultTooLarge)):
            return Ended(outcome.failed(work.job_id, work.claim_id, str(error)), error=error)
        if stage == "finish" and isinstance(error, psycopg.DataError):
            why = f"its result could not be stored: {primary(error)}"
            return Ended(outcome.failed(work.job_id, work.claim_id, why), error=error)
        if stage == "finish" and isinstance(error, psycopg.errors.InFailedSqlTransaction):
            error.add_note("The handler has caught an error of the database, after which its transaction cannot go on.")
        return self.raised(error)


class _Transaction:
    """A transaction as the handler sees it."""

    def __init__(self, connection: JobConnection) -> None:
        self.connection = connection
        self.made: Any = None

    def alchemy(self) -> Any:
        """SQLAlchemy on it."""
        if self.made is None:
            from pgsched.worker.alchemy import Alchemy

            self.made = Alchemy(self.connection)
        return self.made


class _AsyncTransaction:
    """`_Transaction` in an event loop."""

    def __init__(self, connection: AsyncJobConnection) -> None:
        self.connection = connection
        self.made: Any = None

    async def alchemy(self) -> Any:
        """SQLAlchemy on it."""
        if self.made is None:
            from pgsched.worker.alchemy import AsyncAlchemy

            made = AsyncAlchemy(self.connection)
            await made.open()
            self.made = made
        return self.made
