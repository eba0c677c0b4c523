"""One attempt at one job, from its arguments to its outcome, wherever it runs: on the loop, in a thread, in a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg

from pgsched.calls import Calls
from pgsched.context import JobContext, Stop, _current
from pgsched.edges import with_results
from pgsched.errors import (
    ArgumentsError,
    ClaimCancelled,
    JobStopped,
    PgschedError,
    ResultError,
    ResultTooLarge,
    StaleClaim,
    TransactionEnded,
    primary,
)
from pgsched.run import arun, run
from pgsched.task import AnyTask
from pgsched.verdicts import VERDICTS
from pgsched.worker import outcome
from pgsched.worker.transaction import (
    AsyncJobConnection,
    JobConnection,
    JobSessions,
    abandon,
    beginning,
    comes_of,
)

if TYPE_CHECKING:
    from pgsched.worker.claimed import Claimed

_CONFLICTS = psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected
_LEFT_OPEN = (
    "the handler has left a statement open on its connection (a stream, a COPY, a pipeline, or something of its own that still "
    "uses it): end all of them before it returns"
)


Inputs = Sequence[tuple[Sequence[str | int], Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: one claimed job, as it travels to a process that runs it."""

    job_id: int
    claim_id: int
    attempt: int
    args: bytes
    lost_attempts: int
    last_session: int
    inputs: Inputs = ()
    output: str = "inherit"
    """What becomes of what it prints in a process of its own: inherit, keep or discard."""
    tick_at: datetime | None = None


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
    """`run` or `arun` it once, in the process of this number."""

    def __init__(self, task: AnyTask, work: Work | Claimed, context: JobContext, pid: int) -> None:
        self.task = task
        self.work = work
        self.context = context
        self._pid = pid
        self._stage = "begin"
        self._doubt = False
        self._lock = threading.Lock()
        self._session: psycopg.Connection[Any] | None = None

    # ---- In this thread.

    def run(self, sessions: JobSessions) -> Ended:
        """Run a `def` task. It raises nothing: whatever the handler does becomes an outcome."""
        _current.set(self.context)
        try:
            args, kwargs = self._arguments()
            if not self.task.transactional:
                try:
                    value = self.task.function(*args, **kwargs)
                finally:
                    self._end_copy()
                return self.returned(value)
            with sessions.connection() as session:
                return self._commit(sessions.calls, session, lambda: self.task.function(*args, **kwargs))
        except BaseException as error:  # (also SystemExit: it ends the attempt, not the worker)
            return self._undone(error, False) if self.task.transactional else self.raised(error)

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        args, inputs = self.work.args, self.work.inputs
        if not inputs:
            return self.task.arguments.load(args)
        return self.task.arguments.load(with_results(args, inputs), {str(path[0]) for path, _ in inputs})

    def cancel_statement(self) -> None:
        """The handler is to end: a statement that its thread waits for ends with an error. Called in another thread."""
        with self._lock:
            if self._session is not None:
                with contextlib.suppress(Exception):
                    self._session.cancel_safe(timeout=2.0)

    def _commit(self, calls: Calls, session: psycopg.Connection[Any], handler: Callable[[], Any]) -> Ended:
        work, left_open = self.work, False
        session.add_notice_handler(self._noticed)
        try:
            session.execute(beginning(self.task.isolation))
            run(session, calls.begin_transaction(work.job_id, work.claim_id))
            self._stage = "handler"
            connection = JobConnection(session.pgconn)
            transaction = _Transaction(connection)
            self.context._transaction = transaction
            try:
                with self._cancellable(session):
                    self.context.raise_if_stopping()
                    try:
                        value = handler()
                    finally:
                        self._end_copy()
                    transaction.flush()
            finally:
                transaction.close()
                if left_open := not connection.cut_off():
                    with contextlib.suppress(Exception):
                        session.cancel_safe(timeout=2.0)
                    abandon(session)
            if left_open:
                raise TransactionEnded(_LEFT_OPEN)
            connection.gate.complain()
            result = None if value is None else self.task.returned.dump(value)
            self._stage = "finish"
            run(session, calls.finish_transaction(work.job_id, work.claim_id, result, self.task.lenient))
            self._stage = "commit"
            self._committed(session.execute("commit").statusmessage)
            return Ended("", value)
        except BaseException as error:
            is_broken = session.closed and not left_open
            with contextlib.suppress(psycopg.Error):
                session.execute("rollback")
            return self._undone(error, is_broken)

    @contextlib.contextmanager
    def _cancellable(self, session: psycopg.Connection[Any]) -> Iterator[None]:
        self._session = session
        try:
            yield
        finally:
            with self._lock:  # (whoever cancels now hits this job, and no later one)
                self._session = None

    def _end_copy(self) -> None:
        """A handler that forks comes back twice: the copy has no business here, where it would use the same sessions."""
        if os.getpid() != self._pid:
            os._exit(0)

    # ---- On the loop.

    async def arun(self, sessions: JobSessions) -> Ended:
        """Run an `async def` task."""
        _current.set(self.context)
        try:
            args, kwargs = self._arguments()
            if not self.task.transactional:
                try:
                    value = await self.task.function(*args, **kwargs)
                finally:
                    self._end_copy()
                return self.returned(value)
            async with sessions.aconnection() as session:
                return await self._acommit(sessions.calls, session, lambda: self.task.function(*args, **kwargs))
        except BaseException as error:
            return self._undone(error, False) if self.task.transactional else self.raised(error)

    async def _acommit(
        self, calls: Calls, session: psycopg.AsyncConnection[Any], handler: Callable[[], Awaitable[Any]]
    ) -> Ended:
        work, left_open = self.work, False
        session.add_notice_handler(self._noticed)
        try:
            await session.execute(beginning(self.task.isolation))
            await arun(session, calls.begin_transaction(work.job_id, work.claim_id))
            self._stage = "handler"
            connection = AsyncJobConnection(session.pgconn)
            transaction = _AsyncTransaction(connection)
            self.context._transaction = transaction
            try:
                self.context.raise_if_stopping()
                try:
                    value = await handler()
                finally:
                    self._end_copy()
                await transaction.flush()
            finally:
                await transaction.close()
                if left_open := not connection.cut_off():
                    with contextlib.suppress(Exception):
                        await session.cancel_safe(timeout=2.0)
                    abandon(session)
            if left_open:
                raise TransactionEnded(_LEFT_OPEN)
            connection.gate.complain()
            result = None if value is None else self.task.returned.dump(value)
            self._stage = "finish"
            await arun(session, calls.finish_transaction(work.job_id, work.claim_id, result, self.task.lenient))
            self._stage = "commit"
            self._committed((await session.execute("commit")).statusmessage)
            return Ended("", value)
        except BaseException as error:
            is_broken = session.closed and not left_open
            with contextlib.suppress(psycopg.Error):
                await session.execute("rollback")
            return self._undone(error, is_broken)

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        # (At the commit: that its wait for a synchronous standby was cancelled, so the quorum may not have it.)
        self._doubt |= self._stage == "commit" and notice.severity_nonlocalized == "WARNING"

    def _committed(self, tag: str | None) -> None:
        """Whether it really was. An aborted transaction answers COMMIT with ROLLBACK, and no error."""
        if tag != "COMMIT":
            raise TransactionEnded(
                f"the transaction was ended by {tag or 'nothing'} where it should have been committed"
            )
        if self._doubt:
            raise psycopg.OperationalError("the server could not commit it with its quorum")

    # ---- What it means.

    def returned(self, value: Any) -> Ended:
        """The handler has returned."""
        work = self.work
        try:
            text = outcome.succeeded(work.job_id, work.claim_id, self.task.returned, value, self.task.lenient)
            return Ended(text, value)
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
            return Ended(outcome.raised(work.job_id, work.claim_id, late, task.retry, work.attempt), error=late)
        final = isinstance(error, (ArgumentsError, TransactionEnded))
        text = outcome.raised(work.job_id, work.claim_id, error, task.retry, work.attempt, final=final)
        return Ended(text, error=error)

    def told(self, error: BaseException) -> Ended:
        """`raised`, whatever the exception's own code does when it is looked at."""
        try:
            return self.raised(error)
        except BaseException as worse:
            why = f"its end could not be told: {type(worse).__name__}"
            return Ended(outcome.failed(self.work.job_id, self.work.claim_id, why), error=worse)

    def _is_stopped(self, error: BaseException) -> bool:
        """Whether it ended because it was told to. (A thread that waited for the database had its statement
        cancelled; at repeatable read the word itself is a conflict.)"""
        if not self.context._stop:
            return False
        return isinstance(error, (JobStopped, asyncio.CancelledError)) or (
            self.task.transactional
            and comes_of(error, psycopg.errors.QueryCanceled, psycopg.errors.InFailedSqlTransaction, *_CONFLICTS)
        )

    def _undone(self, error: BaseException, is_broken: bool) -> Ended:
        """What the transaction has done is undone, as far as this end of its connection can tell."""
        work, stage = self.work, self._stage
        # (What the handler itself has decided holds: nothing of its transaction was to be committed.)
        if self._is_stopped(error) or (stage == "handler" and isinstance(error, VERDICTS)):
            return self.raised(error)
        if (
            stage == "begin"
            and isinstance(error, (psycopg.Error, PgschedError))
            and not isinstance(error, ArgumentsError)
        ):
            why = f"its transaction could not begin: {primary(error)}"
            return Ended(outcome.given_back(work.job_id, work.claim_id, why), error=error)
        if is_broken or self._doubt:
            why = f"the connection of its transaction ended: {primary(error)}"
            return Ended(outcome.broken(work.job_id, work.claim_id, why, work.last_session), error=error)
        if isinstance(error, StaleClaim):
            return Ended(outcome.given_back(work.job_id, work.claim_id, primary(error)), error=error)
        if isinstance(error, ClaimCancelled):
            return Ended(outcome.cancelled(work.job_id, work.claim_id, primary(error)), error=error)
        if comes_of(error, *_CONFLICTS) or (stage == "finish" and comes_of(error, psycopg.errors.LockNotAvailable)):
            text = outcome.raised(work.job_id, work.claim_id, error, self.task.retry, work.attempt, conflict=True)
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
        self._made: Any = None

    def alchemy(self) -> Any:
        """SQLAlchemy on it."""
        if self._made is None:
            from pgsched.worker.alchemy import Alchemy

            self._made = Alchemy(self.connection)
        return self._made

    def flush(self) -> None:
        """What SQLAlchemy's session has not sent yet."""
        if self._made is not None:
            self._made.flush()

    def close(self) -> None:
        """Let go of it."""
        if self._made is not None:
            with contextlib.suppress(Exception):  # (its connection may have ended)
                self._made.close()


class _AsyncTransaction:
    """`_Transaction` in an event loop."""

    def __init__(self, connection: AsyncJobConnection) -> None:
        self.connection = connection
        self._made: Any = None

    async def alchemy(self) -> Any:
        """SQLAlchemy on it."""
        if self._made is None:
            from pgsched.worker.alchemy import AsyncAlchemy

            made = AsyncAlchemy(self.connection)
            await made.open()
            self._made = made
        return self._made

    async def flush(self) -> None:
        """What SQLAlchemy's session has not sent yet."""
        if self._made is not None:
            await self._made.flush()

    async def close(self) -> None:
        """Let go of it."""
        if self._made is not None:
            with contextlib.suppress(Exception):
                await self._made.close()
