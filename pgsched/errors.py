"""Every error that pgsched raises, in one tree.

An error names the thing, what is wrong with it, and what to do. Errors that a SQL function raises carry one of pgsched's
own SQLSTATEs; `translate` is the one way from a database error to the class, and the SQL function `errors()` lists them.
"""

from __future__ import annotations

import psycopg


class PgschedError(Exception):
    """The root: `except pgsched.PgschedError` catches everything that pgsched raises by itself."""


class UsageError(PgschedError):
    """A call that cannot be meant as it stands: an unknown task, a blocking call in a running event loop, no DSN."""


class ScheduleError(UsageError):
    """A schedule that cannot be meant: a cron text that is wrong or never fires, an unknown time zone, a naive datetime."""


class ConnectError(PgschedError):
    """The database does not answer."""


class PoolerError(PgschedError):
    """A pooler does not give what is needed: a session of its own, or a parameter at the start of a connection."""


class EmbeddedPostgresError(PgschedError):
    """The embedded Postgres could not be found, made or started."""


class SchemaError(PgschedError):
    """The database has no pgsched schema, or one that this version cannot work with."""


class AccessError(PgschedError):
    """The role may not do this; `pgsched grant` gives it the level that it needs."""


class TaskError(PgschedError):
    """A task that cannot be registered: a doubled name, a parameter that cannot be stored by name, an unknown type."""


class ArgumentsError(PgschedError):
    """Arguments that do not fit the task's signature, or that JSON cannot hold."""


class ResultError(PgschedError):
    """What a handler returned cannot be stored, or what was stored does not fit the task's return annotation."""


class JobUnsuccessful(PgschedError):
    """A job that was waited for has ended without a success: `state`, `reason`, and of its last attempt, where there was one,
    `error_type`, `error` and `traceback`, as texts."""

    def __init__(
        self,
        job_id: int,
        state: str,
        reason: str | None,
        error_type: str | None = None,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        super().__init__(f"job {job_id} has ended as {state}: {reason}")
        self.job_id = job_id
        self.state = state
        self.reason = reason
        self.error_type = error_type
        self.error = error
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        """Made anew from its fields where it is unpickled (an exception's own way knows the message alone)."""
        return type(self), (self.job_id, self.state, self.reason, self.error_type, self.error, self.traceback)


class WorkflowFailed(PgschedError):
    """A workflow that was waited for has ended, and some of its jobs have failed or were cancelled: `failed` has them by name."""

    def __init__(self, workflow_id: int, name: str, failed: dict[str, JobUnsuccessful]) -> None:
        some = "; ".join(f'"{job}": {error}' for job, error in list(failed.items())[:5])
        super().__init__(f'workflow {workflow_id} "{name}": {len(failed)} of its jobs did not succeed: {some}')
        self.workflow_id = workflow_id
        self.name = name
        self.failed = failed

    def __reduce__(self) -> tuple[object, ...]:
        """Made anew from its fields where it is unpickled."""
        return type(self), (self.workflow_id, self.name, self.failed)


class JobFailed(JobUnsuccessful):
    """Its last attempt failed."""


class JobCancelled(JobUnsuccessful):
    """It was cancelled."""


class JobSkipped(JobUnsuccessful):
    """It never began: it expired."""


class DatabaseError(PgschedError):
    """An error that one of pgsched's SQL functions raised; `sqlstate` is its code."""

    sqlstate = ""


class ProtocolMismatch(SchemaError, DatabaseError):
    """The worker and the schema speak different protocols."""

    sqlstate = "PGS01"


class NoSession(DatabaseError):
    """The connection is not (or no longer) a session of that worker."""

    sqlstate = "PGS02"


class WorkerRescued(DatabaseError):
    """The worker's jobs were taken from it: it must stop and attach under a new identity."""

    sqlstate = "PGS03"


class NotAdopted(SchemaError, DatabaseError):
    """The database is a copy of another installation: `pgsched adopt` if it shall work."""

    sqlstate = "PGS04"


class InvalidJob(DatabaseError):
    """A value of a job is refused; the message names it."""

    sqlstate = "PGS05"


class ArgumentsTooLarge(DatabaseError):
    """The arguments exceed the setting max_args_bytes."""

    sqlstate = "PGS06"


class WorkerAlive(DatabaseError):
    """The worker still holds its lock, so its jobs cannot be taken."""

    sqlstate = "PGS07"


class ReadOnlyServer(DatabaseError):
    """The server is a standby in recovery."""

    sqlstate = "PGS08"


class InvalidCall(DatabaseError):
    """An argument of a SQL function is refused; the message names it."""

    sqlstate = "PGS09"


class KeyContended(DatabaseError):
    """A unique key is held by a transaction that stays open, or changes hands again and again."""

    sqlstate = "PGS10"


class NotLeader(DatabaseError):
    """The session does not hold the leader's lock (or no longer)."""

    sqlstate = "PGS11"


class TransactionEnded(DatabaseError):
    """A transactional handler has committed or rolled back by itself; its success cannot be a part of what it wrote."""

    sqlstate = "PGS12"


class StaleClaim(DatabaseError):
    """A claim is no longer the worker's own: its outcome was not accepted and nothing changed."""

    sqlstate = "PGS13"


class ClaimCancelled(DatabaseError):
    """The job was cancelled while its transaction was under way: nothing of it is kept."""

    sqlstate = "PGS14"


class ResultTooLarge(DatabaseError):
    """The result of a transactional job exceeds the setting max_result_bytes: nothing of the job is kept."""

    sqlstate = "PGS15"


class InvalidSchedule(ScheduleError, DatabaseError):
    """A value of a schedule is refused, or another one has its name; the message names it."""

    sqlstate = "PGS16"


class ProcessDied(PgschedError):
    """The process of its own in which a handler ran has ended under it: a crash, `os._exit`, or the kernel for want of memory."""


class RemoteError(PgschedError):
    """What a handler raised in a process of its own, as a middleware sees it: `error_type` is the class's name there."""

    def __init__(self, error_type: str | None, message: str, traceback: str | None) -> None:
        super().__init__(f"{error_type}: {message}" if error_type else message)
        self.error_type = error_type
        self.traceback = traceback


class JobStopped(BaseException):
    """Raised in a handler that is to end before its time: by `current_job().raise_if_stopping()`, and by itself in a handler that
    runs in a process of its own.

    No `Exception`, as `asyncio.CancelledError` is none: a handler may clean up and let it go on.
    """


BY_SQLSTATE: dict[str, type[DatabaseError]] = {
    cls.sqlstate: cls
    for cls in (
        ProtocolMismatch,
        NoSession,
        WorkerRescued,
        NotAdopted,
        InvalidJob,
        ArgumentsTooLarge,
        WorkerAlive,
        ReadOnlyServer,
        InvalidCall,
        KeyContended,
        NotLeader,
        TransactionEnded,
        StaleClaim,
        ClaimCancelled,
        ResultTooLarge,
        InvalidSchedule,
    )
}


def translate(error: psycopg.Error, schema: str) -> PgschedError | None:
    """Our error for a database error, with its hint; None when it is none of ours (then the original is right)."""
    text = (error.diag.message_primary or str(error)).strip()
    if error.diag.message_hint:
        text += f". {error.diag.message_hint}"
    code = error.sqlstate or ""
    if code in BY_SQLSTATE:
        return BY_SQLSTATE[code](text)
    if isinstance(error, psycopg.errors.InvalidSchemaName) or (
        isinstance(error, psycopg.errors.UndefinedFunction) and f"{schema}." in text
    ):
        return SchemaError(
            f'the database has no schema "{schema}" that fits this version of pgsched ({text.splitlines()[0]}): '
            'run "pgsched migrate"'
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return AccessError(
            f'{text}: ask the owner of schema "{schema}" to run "pgsched grant ROLE --as client|worker|reader"'
        )
    return None


def primary(error: BaseException) -> str:
    """What an error says, in one line: of a database's error its primary message alone, without detail and context."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    text = str(error).strip()
    return (text if isinstance(error, ConnectError) else text.partition("\n")[0]) or type(error).__name__


def shown(text: str) -> str:
    """A text of somebody else's as it can stand in a message: not too long, and nothing in it that cannot be printed."""
    short = text if len(text) <= 80 else f"{text[:77]}..."
    return short if short.isprintable() else short.encode("unicode_escape").decode()
