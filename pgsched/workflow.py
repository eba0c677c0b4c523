"""Workflows: jobs that are enqueued together, each of which waits for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from pgsched.answers import Ended
from pgsched.edges import Edge, HasEdge, Result, Rule, edges_to
from pgsched.errors import JobUnsuccessful, UsageError, WorkflowFailed
from pgsched.job import Job
from pgsched.run import AsyncConnection, Connection, arun, refuse_in_loop, run
from pgsched.task import BoundTask, Enqueuer, Task

if TYPE_CHECKING:
    from pgsched.app import App

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Node(Generic[R_co]):
    """A job of a workflow that has not been enqueued yet."""

    name: str
    """Its name within the workflow."""
    _workflow: Workflow = field(repr=False)
    _bound: BoundTask[Any] = field(repr=False)

    @property
    def result(self) -> R_co:
        """What it will have returned: to be passed to `add` as an argument (also within a list or a dict), no more."""
        return cast("R_co", Result(self.name, self._workflow))

    @property
    def edge(self) -> Edge:
        """For `after`: when it has succeeded, as the node itself."""
        return Edge(self.name, of=self._workflow)

    @property
    def failure(self) -> Edge:
        """For `after`: when it has failed for good."""
        return Edge(self.name, "failure", self._workflow)

    @property
    def done(self) -> Edge:
        """For `after`: when it has ended, however."""
        return Edge(self.name, "done", self._workflow)


@dataclass(frozen=True)
class Adder:
    """Adds jobs that wait for the same others: what `Workflow.after` and `Workflow.named` return."""

    _workflow: Workflow
    _edges: tuple[Edge, ...] = ()
    _rule: Rule | None = None
    _at_least: int | None = None
    _name: str | None = None

    def after(self, *on: HasEdge, rule: Rule | None = None, at_least: int | None = None) -> Adder:
        """As `Workflow.after`, besides what was said already; one rule for all."""
        if (rule, at_least) == (None, None):
            rule, at_least = self._rule, self._at_least
        elif (self._rule, self._at_least) != (None, None):
            raise UsageError("a rule was given twice: one rule decides over all that a job waits for")
        return Adder(self._workflow, (*self._edges, *edges_to(on)), rule, at_least, self._name)

    def named(self, name: str) -> Adder:
        """As `Workflow.named`."""
        return Adder(self._workflow, self._edges, self._rule, self._at_least, name)

    def add(self, task: Task[P, Any, R] | Enqueuer[P, R], *args: P.args, **kwargs: P.kwargs) -> Node[R]:
        """As `Workflow.add`."""
        return self._workflow._add(self, task, args, kwargs)


class Workflow:
    """Jobs that will be enqueued together; made by `App.workflow`."""

    def __init__(self, app: App, name: str) -> None:
        self.app = app
        self.name = name
        self._nodes: dict[str, Node[Any]] = {}

    def add(self, task: Task[P, Any, R] | Enqueuer[P, R], *args: P.args, **kwargs: P.kwargs) -> Node[R]:
        """Add a job: `etl.add(load, transform.result)`. It waits for the jobs whose results it takes as arguments.

        `task` may carry options: `etl.add(load.using(priority=1), ...)`. Raises `ArgumentsError` as `Task.enqueue`; what a result
        is taken for is checked when the job runs.
        """
        return self._add(Adder(self), task, args, kwargs)

    def after(self, *on: HasEdge, rule: Rule | None = None, at_least: int | None = None) -> Adder:
        """For jobs that wait for others: `etl.after(load).add(validate)`, `etl.after(load.failure).add(page_someone)`.

        on        nodes of this workflow or jobs that are there already (each is waited for until it has succeeded), or the
                  `failure` or `done` of one
        rule      how they decide together: "all" of them (the default); "any" one; "none_failed": all have ended, none of them
                  as failed or cancelled
        at_least  instead of a rule: so many of them
        """
        return Adder(self).after(*on, rule=rule, at_least=at_least)

    def named(self, name: str) -> Adder:
        """For a job with a name of its own: `etl.named("extract eu").add(extract, "eu")`.

        Else it has the task's name, made unique by a number.
        """
        return Adder(self, _name=name)

    def enqueue(self, *, connection: Connection | None = None, notify: bool = True) -> WorkflowRun:
        """Enqueue all of it, or, with an error, none; in the transaction of `connection` if one is given."""
        call = self.app.client.calls.enqueue_workflow(self._text(), notify)
        if connection is not None:
            return self._run(run(connection, call))
        return self._run(self.app.client.run(call, "enqueue", "aenqueue"))

    async def aenqueue(self, *, connection: AsyncConnection | None = None, notify: bool = True) -> WorkflowRun:
        """`enqueue` in an event loop."""
        call = self.app.client.calls.enqueue_workflow(self._text(), notify)
        if connection is not None:
            return self._run(await arun(connection, call))
        return self._run(await self.app.client.arun(call))

    def _add(self, how: Adder, task: Task[P, Any, R] | Enqueuer[P, R], args: Any, kwargs: Any) -> Node[R]:
        if not isinstance(task, (Task, Enqueuer)):
            raise UsageError(f"a workflow is made of tasks, and {task!r} is none: decorate its function with @app.task")
        enqueuer = task if isinstance(task, Enqueuer) else task.using()
        name = how._name if how._name is not None else self._fresh(enqueuer.task.name)
        if name in self._nodes:
            raise UsageError(f'workflow "{self.name}" has a job "{name}" already: give this one another name')
        bound = enqueuer.bind_in_workflow(name, self, how._edges, how._rule, how._at_least, args, kwargs)
        self._nodes[name] = node = Node[R](name, self, bound)
        return node

    def _fresh(self, task: str) -> str:
        name, n = task, 1
        while name in self._nodes:
            n += 1
            name = f"{task} {n}"
        return name

    def _text(self) -> str:
        if not self._nodes:
            raise UsageError(f'workflow "{self.name}" has no jobs: add some first')
        jobs = ",".join(node._bound.text for node in self._nodes.values())
        return f'{{"name":{json.dumps(self.name)},"jobs":[{jobs}]}}'

    def _run(self, answer: dict[str, Any]) -> WorkflowRun:
        client = self.app.client
        jobs: dict[str, Job[Any]] = {
            name: Job(job_id, client, node._bound.returned)
            for (name, node), job_id in zip(self._nodes.items(), answer["job_ids"], strict=True)
        }
        return WorkflowRun(answer["workflow_id"], self.name, jobs, self)


@dataclass(frozen=True)
class WorkflowRun:
    """A workflow that was enqueued."""

    id: int
    """Its number, the same in every view and command."""
    name: str
    jobs: Mapping[str, Job[Any]] = field(repr=False)
    """Its jobs by their names."""
    _workflow: Workflow = field(repr=False, compare=False)

    def __getitem__(self, node: Node[R]) -> Job[R]:
        """The job of a node. Raises `UsageError` for one that this run does not have."""
        if node._workflow is not self._workflow or node.name not in self.jobs:
            raise UsageError(f'workflow {self.id} "{self.name}" was not enqueued with this job "{node.name}"')
        return self.jobs[node.name]

    def result(self, timeout: timedelta | None = None) -> dict[str, Any]:
        """Wait until all its jobs have ended; what each that has succeeded returned, by its name.

        Raises `WorkflowFailed` where one has failed or was cancelled (a skipped one is no failure); `TimeoutError`.
        """
        refuse_in_loop("result", "aresult")
        ended = self._workflow.app.client.results.all_ended([job.id for job in self.jobs.values()], timeout)
        return self._outcome(ended)

    async def aresult(self, timeout: timedelta | None = None) -> dict[str, Any]:  # noqa: ASYNC109 (as its twin)
        """`result` in an event loop."""
        ended = await self._workflow.app.client.results.aall_ended([job.id for job in self.jobs.values()], timeout)
        return self._outcome(ended)

    def cancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[int, str]:
        """Cancel all its jobs that have not ended; as `Job.cancel`."""
        return self._workflow.app.client.run(
            self._workflow.app.client.calls.cancel_workflow(self.id, reason, dry_run), "cancel", "acancel"
        )

    async def acancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[int, str]:
        """`cancel` in an event loop."""
        return await self._workflow.app.client.arun(
            self._workflow.app.client.calls.cancel_workflow(self.id, reason, dry_run)
        )

    def _outcome(self, ended: list[Ended]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        failed: dict[str, JobUnsuccessful] = {}
        for (name, job), one in zip(self.jobs.items(), ended, strict=True):
            try:
                found[name] = job.value_of(one)
            except JobUnsuccessful as error:
                if error.state != "skipped":
                    failed[name] = error
        if failed:
            raise WorkflowFailed(self.id, self.name, failed)
        return found
