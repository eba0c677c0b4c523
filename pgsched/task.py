"""A task: a function that can be enqueued. `using()` chooses how, `enqueue` and its twins do it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from pgsched.arguments import Arguments
from pgsched.context import JobContext
from pgsched.edges import Edge, HasEdge, Path, Rule, as_json, edges_to, refuse_foreign
from pgsched.errors import ArgumentsError, TaskError, UsageError
from pgsched.job import Job
from pgsched.retry import Policy
from pgsched.returned import Returned
from pgsched.run import AsyncConnection, Connection, arun, run

if TYPE_CHECKING:
    from pgsched.app import App

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Options:
    """How a job is enqueued; None means that the task's own value, or the default, holds."""

    queue: str | None = None
    priority: int | None = None
    run_at: datetime | None = None
    delay: timedelta | None = None
    expires_at: datetime | None = None
    max_attempts: int | None = None
    timeout: timedelta | None = None
    tags: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None
    unique_key: str | None = None
    depends_on: Iterable[HasEdge] | None = None
    rule: Rule | None = None
    at_least: int | None = None
    parent: JobContext | None = None
    connection: Connection | AsyncConnection | None = None
    notify: bool = True


@dataclass(frozen=True, slots=True)
class Running:
    """How a task's jobs are run.

    executor       "thread" or "process"; None: as its worker's setting says (`async def` tasks run on the event loop)
    transactional  the handler works in a transaction that is committed with the job's success
    isolation      that transaction's isolation level
    output         what becomes of what it prints in a process of its own: "inherit", "keep" or "discard"
    lenient        its success stays one where subtasks that it made have failed
    """

    executor: str | None = None
    transactional: bool = False
    isolation: str = "read committed"
    output: str = "inherit"
    lenient: bool = False


class Task(Generic[P, C, R]):
    """A function of an App that can be enqueued; calling it just runs it. `P` its parameters, `R` a job's result."""

    def __init__(
        self,
        app: App,
        function: Callable[P, C],
        name: str,
        defaults: Options,
        retry: Policy | None,
        secret: tuple[str, ...],
        running: Running = Running(),
    ) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.retry = retry
        self.is_async = inspect.iscoroutinefunction(function)
        self.executor = running.executor
        self.transactional = running.transactional
        self.isolation = running.isolation
        self.output = running.output
        self.lenient = running.lenient
        self.arguments = Arguments(name, function, secret)
        self.returned = Returned(name, function)
        self._defaults = defaults
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Run the function, here and now."""
        return self.function(*args, **kwargs)

    @property
    def queue(self) -> str:
        """The queue that its jobs go to unless `using(queue=...)` says otherwise."""
        return self.app.name if self._defaults.queue is None else self._defaults.queue

    def using(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        expires_at: datetime | None = None,
        max_attempts: int | None = None,
        timeout: timedelta | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        unique_key: str | None = None,
        depends_on: Iterable[HasEdge] | None = None,
        rule: Rule | None = None,
        at_least: int | None = None,
        parent: JobContext | None = None,
        connection: Connection | AsyncConnection | None = None,
        notify: bool = True,
    ) -> Enqueuer[P, R]:
        """The same task with other options for the jobs that are enqueued through what this returns.

        queue       the queue's name (1 to 100 characters)
        priority    0 (first) to 9
        run_at      not before this time (an aware datetime); or `delay`: not before so long after the enqueuing
        expires_at  not begun by then, the job ends as skipped
        max_attempts, timeout   as in `App.task`
        tags, metadata          for finding the job and for the application's own use
        unique_key  at most one job of this task with this key has not ended: while one has not, `enqueue` answers it
        depends_on  jobs that it waits for, until each has succeeded; or the `failure` or `done` of one: `depends_on=[a, b.done]`
        rule        how they decide together: "all" (the default), "any", "none_failed"; or `at_least` so many of them
        parent      in a handler, `current_job()`: the job is its subtask, which that one ends after, and which is cancelled where
                    that one does not succeed. It may wait for older subtasks of the same parent, and nobody else for it
        connection  the job is made in that connection's transaction and commits with it or not at all
        notify      False: no NOTIFY (which PREPARE TRANSACTION refuses); workers find the job when they poll
        """
        options = Options(
            queue,
            priority,
            run_at,
            delay,
            expires_at,
            max_attempts,
            timeout,
            tags,
            metadata,
            unique_key,
            depends_on,
            rule,
            at_least,
            parent,
            connection,
            notify,
        )
        return Enqueuer(self, self._merge(options))

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a job with these arguments; it is committed when this returns.

        Raises `ArgumentsError` when they do not fit the signature or JSON cannot hold them, `UsageError` inside a
        running event loop, `ConnectError`, `SchemaError`, and the errors of the SQL function enqueue_many.
        """
        return Enqueuer(self, self._defaults).enqueue(*args, **kwargs)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """`enqueue` in an event loop."""
        return await Enqueuer(self, self._defaults).aenqueue(*args, **kwargs)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> BoundTask[R]:
        """A job to be, for `App.enqueue_many`. Raises `ArgumentsError` at once."""
        return Enqueuer(self, self._defaults).bind(*args, **kwargs)

    def _merge(self, options: Options) -> Options:
        given = {name: value for name in Options.__slots__ if (value := getattr(options, name)) is not None}
        return replace(self._defaults, **given)

    def __repr__(self) -> str:
        return f"Task({self.name!r})"


class Enqueuer(Generic[P, R]):
    """A task with options for the jobs enqueued through it: what `Task.using` returns."""

    def __init__(self, task: Task[P, Any, R], options: Options) -> None:
        self._task = task
        self._options = options

    @property
    def task(self) -> Task[P, Any, R]:
        """The task itself."""
        return self._task

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a job, in the transaction of `connection` if one was given. Raises as `Task.enqueue`."""
        job = self.bind(*args, **kwargs)
        client = self._task.app.client
        call = client.calls.enqueue_many(f"[{job.text}]", self._options.notify)
        if self._options.connection is None:
            return Job(client.run(call, "enqueue", "aenqueue")[0], client, job.returned)
        return Job(run(cast("Connection", self._options.connection), call)[0], client, job.returned)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """`enqueue` in an event loop; `connection` is then an asynchronous one."""
        job = self.bind(*args, **kwargs)
        client = self._task.app.client
        call = client.calls.enqueue_many(f"[{job.text}]", self._options.notify)
        if self._options.connection is None:
            return Job((await client.arun(call))[0], client, job.returned)
        return Job((await arun(cast("AsyncConnection", self._options.connection), call))[0], client, job.returned)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> BoundTask[R]:
        """A job to be, for `App.enqueue_many` (which has its own `connection`). Raises `ArgumentsError` at once."""
        edges = edges_to(self._options.depends_on or ())
        if names := [edge.on for edge in edges if isinstance(edge.on, str)]:
            raise UsageError(
                f"{names[0]!r} is a job of a workflow that is not enqueued yet: add this one to the workflow"
            )
        text = self._task.arguments.dump(args, kwargs)
        return self._bound(text, edges, {}, self._options.rule, self._options.at_least, None)

    def bind_in_workflow(
        self,
        name: str,
        workflow: object,
        edges: tuple[Edge, ...],
        rule: Rule | None,
        at_least: int | None,
        args: Any,
        kwargs: Any,
    ) -> BoundTask[R]:
        """`bind` for a job of a workflow, which may take results of others as arguments (for `Workflow.add`)."""
        options = self._options
        if options.parent is not None:
            raise UsageError(
                "a job of a workflow is not a subtask: make it with using(parent=...).enqueue() in the handler"
            )
        if options.connection is not None or not options.notify:
            raise UsageError("connection and notify are for the whole workflow: give them to its enqueue()")
        if (options.rule, options.at_least) != (None, None):
            if (rule, at_least) != (None, None):
                raise UsageError("a rule was given twice: by using() and by after()")
            rule, at_least = options.rule, options.at_least
        text, taking = self._task.arguments.dump_with_results(args, kwargs)
        inputs: dict[str, list[Path]] = {}
        for path, result in taking:
            if result.workflow is not workflow:
                raise UsageError(f'"{result.name}", whose result is taken, is a job of another workflow')
            inputs.setdefault(result.name, []).append(path)
        edges = (*edges_to(options.depends_on or ()), *edges)
        refuse_foreign(edges, workflow)
        return self._bound(text, edges, inputs, rule, at_least, name)

    def _bound(
        self,
        args: str,
        edges: tuple[Edge, ...],
        inputs: dict[str, list[Path]],
        rule: Rule | None,
        at_least: int | None,
        name: str | None,
    ) -> BoundTask[R]:
        task, options = self._task, self._options
        waits_for = as_json(edges, inputs)
        if rule is not None and at_least is not None:
            raise UsageError("give a rule or at_least, not both")
        if (rule, at_least) != (None, None) and not waits_for:
            raise UsageError("a rule was given, and nothing that the job waits for")
        fields = {
            "name": name,
            "depends_on": waits_for or None,
            "rule": "at_least" if at_least is not None else rule if waits_for else None,
            "rule_n": at_least,
            "task": task.name,
            "queue": task.app.name if options.queue is None else options.queue,
            "priority": options.priority,
            "run_at": instant("run_at", options.run_at),
            "delay_s": options.delay.total_seconds() if options.delay is not None else None,
            "expires_at": instant("expires_at", options.expires_at),
            "max_attempts": options.max_attempts,
            "timeout_s": options.timeout.total_seconds() if options.timeout is not None else None,
            "tags": _tags(options.tags),
            "metadata": options.metadata,
            "unique_key": options.unique_key,
            **_under(options.parent),
            "secret": task.arguments.secret or None,
        }
        head = _json({name: value for name, value in fields.items() if value is not None})
        return BoundTask(f'{head[:-1]},"args":{args}}}', task.returned)


@dataclass(frozen=True, slots=True)
class BoundTask(Generic[R]):
    """A job to be: a task with its arguments and options, as the JSON object that enqueue_many takes."""

    text: str = field(repr=False)  # (it has secrets in the clear)
    returned: Returned = field(repr=False)


class TaskDecorator:
    """What `app.task(...)` with options returns."""

    def __init__(
        self,
        app: App,
        name: str | None,
        defaults: Options,
        retry: Policy | None,
        secret: tuple[str, ...],
        running: Running,
    ):
        self._app, self._name, self._defaults, self._retry, self._secret = app, name, defaults, retry, secret
        self._running = running

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
    def __call__(self, function: Callable[P, Any], /) -> Task[P, Any, Any]:
        """Make a task of the function."""
        if not inspect.isfunction(function):
            raise TaskError(f"@task stands above a {type(function).__name__}: it makes tasks of functions")
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TaskError(f'task "{function.__qualname__}" is a generator: a task returns once')
        name = self._name or function.__qualname__.replace("<locals>.", "")
        if inspect.iscoroutinefunction(function) and self._running.executor is not None:
            raise TaskError(
                f'task "{name}": executor="{self._running.executor}" is for def tasks; an async def task runs on the event loop'
            )
        return self._app.register(
            Task(self._app, function, name, self._defaults, self._retry, self._secret, self._running)
        )


def _under(parent: JobContext | None) -> dict[str, int]:
    if parent is None:
        return {}
    if not isinstance(parent, JobContext):
        raise UsageError(f"parent is {parent!r}: it is the job that runs here, pgsched.current_job()")
    return {"parent_id": parent.id, "parent_claim_id": parent.fence}


def instant(name: str, value: datetime | None) -> str | None:
    """An aware datetime as text. Raises `UsageError` for another one."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise UsageError(f"{name} is {value!r}: it must be an aware datetime")
    if value.utcoffset() is None:
        raise UsageError(
            f"{name} is {value!r}, a naive datetime: nobody knows which moment it means; give it a time zone, for example "
            "datetime.now(timezone.utc) + timedelta(hours=1)"
        )
    return value.isoformat()


def _tags(tags: Sequence[str] | None) -> list[str] | None:
    if tags is None:
        return None
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise UsageError(f"tags is {tags!r}: it must be a list of texts")
    return list(tags)


def _json(fields: dict[str, Any]) -> str:
    try:
        text = json.dumps(fields, allow_nan=False, ensure_ascii=False, default=_refuse)
        text.encode()
    except (ValueError, TypeError) as error:
        raise ArgumentsError(f'task "{fields["task"]}": its options are no JSON: {error}') from error
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):  # (not the text that only looks like one: its backslash is doubled)
        raise ArgumentsError(f'task "{fields["task"]}": its options have a NUL character, which Postgres cannot store')
    return text


def _refuse(value: object) -> Any:
    raise TypeError(f"{value!r} is a {type(value).__name__}")


AnyTask = Task[..., Any, Any]
