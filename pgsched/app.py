"""The App: the door that registers an application's tasks and sends what it enqueues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from pgsched.calls import Call
from pgsched.client import Client
from pgsched.context import JobContext
from pgsched.cron import Every
from pgsched.errors import ScheduleError, TaskError, UsageError
from pgsched.failed import FailedJobs, such
from pgsched.job import Job
from pgsched.retry import Policy, for_task
from pgsched.run import AsyncConnection, Connection, arun, run
from pgsched.schedule import CatchUp, Makes, Overlap, define
from pgsched.schedules import Schedules
from pgsched.task import AnyTask, BoundTask, Options, Running, Task, TaskDecorator
from pgsched.workflow import Workflow

if TYPE_CHECKING:
    from pgsched.worker import EmbeddedWorker

P = ParamSpec("P")
R = TypeVar("R")

Lifespan = Callable[[], AsyncIterator[Any]]
Middleware = Callable[[JobContext, Callable[[], Awaitable[Any]]], Awaitable[Any]]

_CHUNK_BYTES = 32 * 1024 * 1024


class App:
    """One application: its tasks, and the database that its jobs are in.

    name     1 to 100 characters; also the queue that its jobs go to unless a task or a call says otherwise
    dsn      a libpq string or URL; else the variable PGSCHED_DSN; else libpq's own variables. "embedded" starts a Postgres
             of its own on this machine, for development
    schema   the schema that `pgsched migrate` made
    timeout  how long an attempt of its tasks may take unless the task says otherwise; None: as long as it needs
    deployment  the number of this version's deploy, higher each time: then workers that start bring the schedules to what their
             code says, and an older version that still runs does not take them back. Without it they only add what is missing

    Nothing is opened before the first call. Raises `UsageError` for a name that cannot be a queue.
    """

    def __init__(
        self,
        name: str,
        *,
        dsn: str | None = None,
        schema: str = "pgsched",
        timeout: timedelta | None = None,
        deployment: int | None = None,
    ) -> None:
        if not isinstance(name, str) or not 1 <= len(name) <= 100:
            raise UsageError(f"App: its name is {name!r:.80}; it is also a queue's name: a text of 1 to 100 characters")
        if deployment is not None and (not isinstance(deployment, int) or not 0 <= deployment < 2**31 - 1):
            raise UsageError(f"App: deployment is {deployment!r}: a whole number from 0 on, higher at each deploy")
        self.name = name
        self.deployment = deployment
        self.schedules = Schedules(self)
        """Its schedules at run time."""
        self.client = Client(dsn, schema)
        self.tasks: dict[str, AnyTask] = {}
        self.middlewares: list[Middleware] = []
        self.make_state: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext
        self._timeout = timeout

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        retry: Policy | None = None,
        timeout: timedelta | None = None,
        secret: Iterable[str] = (),
        executor: Literal["thread", "process"] | None = None,
        transactional: bool = False,
        isolation: Literal["read committed", "repeatable read", "serializable"] = "read committed",
        output: Literal["inherit", "keep", "discard"] = "inherit",
        subtask_failures: Literal["fail", "ignore"] = "fail",
    ) -> TaskDecorator: ...
    def task(
        self,
        function: Any = None,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        retry: Policy | None = None,
        timeout: timedelta | None = None,
        secret: Iterable[str] = (),
        executor: Literal["thread", "process"] | None = None,
        transactional: bool = False,
        isolation: Literal["read committed", "repeatable read", "serializable"] = "read committed",
        output: Literal["inherit", "keep", "discard"] = "inherit",
        subtask_failures: Literal["fail", "ignore"] = "fail",
    ) -> Any:
        """Make a task of a function, `async def` or `def`: `@app.task` or `@app.task(...)`.

        name      how it is stored; else the function's qualified name without the module (which differs between
                  `python producer.py` and a worker)
        queue, priority   for its jobs, unless a call says otherwise
        retry     what happens after a failed attempt: `Exponential`, `Linear` or `Fixed`; without it a job has one
        timeout   how long one attempt may take
        secret    names of parameters that are shown masked (they are stored in the clear)
        executor  where a `def` task runs: "thread", or "process" for one of its own, which can be killed; else as the worker's
                  setting says
        transactional   what the handler writes through `current_job().connection` is committed with the job's success, or
                  not at all: exactly once
        isolation of that transaction
        output    of a task in a process of its own: "keep" logs the end of what each job prints (16 kB) and shows it after the
                  traceback of an attempt that failed; "discard" drops it; else it goes where the worker's own goes
        subtask_failures   where a subtask that its job has made fails, the job fails, too; "ignore": its own success counts

        Raises `TaskError` for a doubled name, or a signature whose arguments cannot be stored by name.
        """
        policy, max_attempts = for_task(retry)
        defaults = Options(
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            timeout=self._timeout if timeout is None else timeout,
        )
        if subtask_failures not in ("fail", "ignore"):
            raise TaskError(f'@task: subtask_failures is {subtask_failures!r}: it is "fail" or "ignore"')
        running = Running(executor, transactional, isolation, output, subtask_failures == "ignore")
        if executor not in (None, "thread", "process"):
            raise TaskError(f'@task: executor is {executor!r}: it is "thread" or "process"')
        if isolation not in ("read committed", "repeatable read", "serializable"):
            raise TaskError(
                f'@task: isolation is {isolation!r}: it is "read committed", "repeatable read" or "serializable"'
            )
        if output not in ("inherit", "keep", "discard"):
            raise TaskError(f'@task: output is {output!r}: it is "inherit", "keep" or "discard"')
        hidden = (secret,) if isinstance(secret, str) else tuple(secret)
        decorator = TaskDecorator(self, name, defaults, policy, hidden, running)
        return decorator if function is None else decorator(function)

    def register(self, task: Task[P, Any, R]) -> Task[P, Any, R]:
        """Add a task. Raises `TaskError` when another one has its name."""
        if task.name in self.tasks:
            raise TaskError(
                f'two tasks of App "{self.name}" are named "{task.name}": {_where(self.tasks[task.name])} and {_where(task)}; '
                "give one of them name="
            )
        self.tasks[task.name] = task
        task.function.__pgsched_task__ = task  # type: ignore[attr-defined]  # (how another process finds it)
        return task

    def lifespan(self, function: Lifespan) -> Lifespan:
        """Register what a worker opens once and closes at its end: an async generator that yields `current_job().state`."""
        self.make_state = asynccontextmanager(function)
        return function

    def middleware(self, function: Middleware) -> Middleware:
        """Register a coroutine `(job, run)` around every job: it must await `run()` and return what that returns."""
        self.middlewares.append(function)
        return function

    def enqueue_many(
        self, jobs: Iterable[BoundTask[Any]], *, connection: Connection | None = None, notify: bool = True
    ) -> list[Job[Any]]:
        """Enqueue many jobs, all or none, in the order given: `app.enqueue_many(send.bind(i) for i in rows)`.

        In the transaction of `connection` if one is given, else in one of its own. Raises as `Task.enqueue`.
        """
        if connection is not None:
            return [job for c in _chunks(jobs) for job in self._jobs(c, run(connection, self._many(c, notify)))]
        chunks = list(_chunks(jobs))
        if len(chunks) <= 1:
            own = [self.client.run(self._many(c, notify), "enqueue_many", "aenqueue_many") for c in chunks]
        else:
            with self.client.transaction("enqueue_many", "aenqueue_many") as connection:
                own = [run(connection, self._many(c, notify)) for c in chunks]
        return [job for c, ids in zip(chunks, own, strict=True) for job in self._jobs(c, ids)]

    async def aenqueue_many(
        self, jobs: Iterable[BoundTask[Any]], *, connection: AsyncConnection | None = None, notify: bool = True
    ) -> list[Job[Any]]:
        """`enqueue_many` in an event loop."""
        if connection is not None:
            return [job for c in _chunks(jobs) for job in self._jobs(c, await arun(connection, self._many(c, notify)))]
        chunks = list(_chunks(jobs))
        if len(chunks) <= 1:
            own = [await self.client.arun(self._many(c, notify)) for c in chunks]
        else:
            async with self.client.atransaction() as connection:
                own = [await arun(connection, self._many(c, notify)) for c in chunks]
        return [job for c, ids in zip(chunks, own, strict=True) for job in self._jobs(c, ids)]

    def job(self, job_id: int) -> Job[Any]:
        """A handle on a job by its number, whoever enqueued it: its result is what JSON holds."""
        if not isinstance(job_id, int) or isinstance(job_id, bool) or not 0 < job_id < 2**63:
            raise UsageError(f"job: {job_id!r:.80} is no job's number")
        return Job(job_id, self.client)

    def workflow(self, name: str) -> Workflow:
        """A workflow to be made: add jobs to it, then `enqueue` it. `name`: 1 to 200 characters; each run has a number, too."""
        if not isinstance(name, str) or not 1 <= len(name) <= 200 or "\0" in name:
            raise UsageError(f"workflow: its name is {name!r:.80}: a text of 1 to 200 characters without NUL")
        return Workflow(self, name)

    def failed(
        self,
        *,
        task: str | AnyTask | None = None,
        error: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> FailedJobs:
        """Jobs that have failed for good, in every queue of the database unless one is named: `app.failed(task=send).groups()`,
        `.jobs()`, `.retry()`.

        error   the type of the last attempt's error, or a part of its text, in any case of letters
        since, until   when they ended: from `since` to before `until`

        Nothing is sent yet. Raises `UsageError` for a naive time.
        """
        return FailedJobs(self.client, such(task, error, queue, since, until))

    def schedule(
        self,
        name: str,
        makes: Makes,
        cron: str | Every,
        timezone: str = "UTC",
        *,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        jitter: timedelta | None = None,
        catch_up: CatchUp = "none",
        catch_up_limit: int = 100,
        catch_up_window: timedelta | None = None,
        overlap: Overlap = "allow",
    ) -> None:
        """Declare a schedule: `app.schedule("refresh", refresh, "0 9 * * *", "America/New_York")`; workers bring it there.

        name       1 to 200 characters, unique in this App
        makes      what each tick enqueues: a task, one with its arguments (`send.bind("eu")`) or options
                   (`send.using(priority=0)`), or a workflow
        cron       a cron text, or `every(timedelta(...))`
        timezone   the IANA name of the zone in which the cron text is read
        starts_at, ends_at   no tick before, none after (aware datetimes)
        jitter     a job begins up to so long after its tick, by chance; at most the shortest span between two ticks
        catch_up   of ticks whose time passed while nobody could make them: "none" makes the newest if it is at most a minute
                   late; "last" the newest, however late; "all" the newest `catch_up_limit`. The last two within
                   `catch_up_window`, if one is given
        overlap    what a tick does while an earlier run has not ended: "allow" makes its job all the same, "skip" makes none,
                   "queue" lets it wait for that (100 at most), "cancel" cancels that first

        Raises `ScheduleError` for what cannot be meant, and for a doubled name.
        """
        made = define(
            self.name,
            name,
            makes,
            cron,
            timezone,
            starts_at=starts_at,
            ends_at=ends_at,
            jitter=jitter,
            catch_up=catch_up,
            catch_up_limit=catch_up_limit,
            catch_up_window=catch_up_window,
            overlap=overlap,
        )
        if self.schedules.declared.setdefault(name, made) is not made:
            raise ScheduleError(f'two schedules of App "{self.name}" are named "{name}": give one of them another name')

    def run_worker(self, **options: Any) -> int:
        """Run a worker as the main program of this process until it is told to stop (SIGTERM, SIGINT); its exit code.

        The options are those of `pgsched.worker.Settings`. For many processes and restarts use `pgsched worker`; for a worker
        beside something else, `worker`.
        """
        from pgsched.worker import run_worker

        return run_worker(self, **options)

    def worker(self, **options: Any) -> AbstractAsyncContextManager[EmbeddedWorker]:
        """A worker in the running event loop, beside what the process is for: `async with app.worker(concurrency=10) as worker:`.

        The options are those of `pgsched.worker.Settings`. Entering returns when it takes jobs, or after 5 s without an answer
        from the database, for which it then waits in the background (`worker.healthy` is False until then); it raises what makes
        a worker impossible: `SchemaError`, `ProtocolMismatch`, `NotAdopted`, `AccessError`, `UsageError`, the lifespan's own
        error. Leaving stops it as SIGTERM stops a worker, however the body ends. No signal handler is installed.

        **It may end the whole process** (`ExitCode.LEASE_LOST`): at the lease's `kill`, where a handler still runs.
        """
        from pgsched.worker import Settings
        from pgsched.worker.embedding import embedded

        return embedded(self, Settings(**options))

    def use(self, dsn: str) -> None:
        """Use this database from now on, whatever the App was made with (`pgsched worker --dsn`)."""
        self.client.close()
        self.client = Client(dsn, self.client.schema)

    def close(self) -> None:
        """Close what the App has opened for synchronous calls."""
        self.client.close()

    async def aclose(self) -> None:
        """Close what the App has opened in this event loop, and the rest."""
        await self.client.aclose()

    def _many(self, chunk: list[BoundTask[Any]], notify: bool) -> Call[list[int]]:
        return self.client.calls.enqueue_many(f"[{','.join(job.text for job in chunk)}]", notify)

    def _jobs(self, chunk: list[BoundTask[Any]], ids: list[int]) -> list[Job[Any]]:
        return [Job(job_id, self.client, job.returned) for job, job_id in zip(chunk, ids, strict=True)]


def _chunks(jobs: Iterable[BoundTask[Any]]) -> Iterator[list[BoundTask[Any]]]:
    """Jobs of at most about 32 MB each time: a jsonb array ends at 256 MB."""
    source = iter(jobs)
    chunk: list[BoundTask[Any]] = []
    size = 0
    while batch := list(islice(source, 1000)):
        chunk += batch
        size += sum(len(job.text) for job in batch)
        if size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _where(task: AnyTask) -> str:
    code = task.function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
