"""Workflows: jobs that are enqueued together, each of which waits for others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from pgsched.edges import Edge, Edges, HasEdge, HasEdges, Result, Rule, as_json, edges_to, refuse_foreign
from pgsched.errors import UsageError
from pgsched.job import Job
from pgsched.nested import ended_well, moved, rule_fields
from pgsched.run import AsyncConnection, Connection, arun, run
from pgsched.task import BoundTask, Enqueuer, Task, instant
from pgsched.workflow_run import WorkflowRun

if TYPE_CHECKING:
    from pgsched.app import App

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
R_co = TypeVar("R_co", covariant=True)
_MOST_IN_A_NAME = 60


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


@dataclass(frozen=True, eq=False)
class Group(Generic[R_co]):
    """Jobs of a workflow that differ in one argument: what `map` returns. In `after` it stands for all of them."""

    nodes: tuple[Node[R_co], ...]
    """Its nodes, in the order of the values."""

    @property
    def results(self) -> list[R_co]:
        """What they will have returned, in the order of the values: to be passed to `add` (or to `map`) as an argument."""
        return [node.result for node in self.nodes]

    @property
    def edges(self) -> tuple[Edge, ...]:
        """For `after`: when all have succeeded, as the group itself."""
        return tuple(node.edge for node in self.nodes)

    @property
    def failure(self) -> Edges:
        """For `after`: as soon as one has failed for good."""
        return Edges(tuple(node.failure for node in self.nodes), one_is_enough=True)

    @property
    def done(self) -> Edges:
        """For `after`: when all have ended, however."""
        return Edges(tuple(node.done for node in self.nodes))

    def __iter__(self) -> Iterator[Node[R_co]]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True, eq=False)
class Subworkflow:
    """A workflow within another: what `add_workflow` returns. In `after` it stands for all of its jobs.

    Its jobs are jobs of the outer workflow, under names that begin with its own: "eu.extract". `[node]` is the outer node for
    one of the inner workflow, `["extract"]` that of a name.
    """

    name: str
    """Its name within the outer workflow."""
    nodes: Mapping[str, Node[Any]]
    """Its nodes in the outer workflow, by their names in the inner one."""
    edges: tuple[Edge, ...]
    """For `after`: when all has gone well, as the workflow itself: each job that runs where nothing fails has succeeded."""
    _inner: Workflow = field(repr=False)

    @property
    def failure(self) -> Edges:
        """For `after`: as soon as one of its jobs has failed for good."""
        return Edges(tuple(node.failure for node in self.nodes.values()), one_is_enough=True)

    @property
    def done(self) -> Edges:
        """For `after`: when all its jobs have ended, however."""
        return Edges(tuple(node.done for node in self.nodes.values()))

    @overload
    def __getitem__(self, node: Node[R]) -> Node[R]: ...
    @overload
    def __getitem__(self, node: str) -> Node[Any]: ...
    def __getitem__(self, node: Node[Any] | str) -> Node[Any]:
        """The outer node for one of the inner workflow, by node or name. Raises `UsageError`."""
        name = node if isinstance(node, str) else node.name
        if name not in self.nodes or (not isinstance(node, str) and node._workflow is not self._inner):
            raise UsageError(f'workflow "{self.name}" was added without a job "{name}"')
        return self.nodes[name]


@dataclass(frozen=True)
class Adder:
    """Adds jobs that wait for the same others: what `Workflow.after` and `Workflow.named` return."""

    _workflow: Workflow
    _edges: tuple[Edge, ...] = ()
    _rule: Rule | None = None
    _at_least: int | None = None
    _name: str | None = None
    _is_alone: bool = False

    def after(self, *on: HasEdge | HasEdges, rule: Rule | None = None, at_least: int | None = None) -> Adder:
        """As `Workflow.after`, besides what was said already; one rule for all."""
        first = any(isinstance(one, Edges) and one.one_is_enough for one in on)
        given = (rule, at_least) != (None, None)
        if not given:
            rule, at_least = self._rule, self._at_least
        elif (self._rule, self._at_least) != (None, None):
            raise UsageError("a rule was given twice: one rule decides over all that a job waits for")
        if (self._is_alone and on) or (first and not given and (len(on) > 1 or self._edges)):
            raise UsageError(
                "the failure of several jobs is met by the first that fails: beside something else, give a rule"
            )
        if first and not given:
            rule = "any"
        return Adder(
            self._workflow, (*self._edges, *edges_to(on, first=True)), rule, at_least, self._name, first and not given
        )

    def named(self, name: str) -> Adder:
        """As `Workflow.named`."""
        return Adder(self._workflow, self._edges, self._rule, self._at_least, name, self._is_alone)

    def add(self, task: Task[P, Any, R] | Enqueuer[P, R], *args: P.args, **kwargs: P.kwargs) -> Node[R]:
        """As `Workflow.add`."""
        return self._workflow._add(self, task, args, kwargs)

    def map(
        self,
        task: Task[Concatenate[V, P], Any, R] | Enqueuer[Concatenate[V, P], R],
        values: Iterable[V],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Group[R]:
        """As `Workflow.map`."""
        return self._workflow._map(self, task, values, args, kwargs)

    def add_workflow(self, workflow: Workflow) -> Subworkflow:
        """As `Workflow.add_workflow`: the jobs in it that wait for none of its own wait for what was said here."""
        return self._workflow._add_workflow(self, workflow)

    def on_failure(self, task: Task[P, Any, R] | Enqueuer[P, R], *args: P.args, **kwargs: P.kwargs) -> Node[R]:
        """As `Workflow.on_failure`."""
        return self._workflow._on_failure(self, task, args, kwargs)


class Workflow:
    """Jobs that will be enqueued together; made by `App.workflow`."""

    def __init__(self, app: App, name: str) -> None:
        self.app = app
        self.name = name
        self._nodes: dict[str, Node[Any]] = {}
        self._hooks: set[str] = set()
        self._parts: set[str] = set()
        self._numbers: dict[str, int] = {}

    def add(self, task: Task[P, Any, R] | Enqueuer[P, R], *args: P.args, **kwargs: P.kwargs) -> Node[R]:
        """Add a job: `etl.add(load, transform.result)`. It waits for the jobs whose results it takes as arguments.

        `task` may carry options: `etl.add(load.using(priority=1), ...)`. Raises `ArgumentsError` as `Task.enqueue`; what a result
        is taken for is checked when the job runs.
        """
        return self._add(Adder(self), task, args, kwargs)

    def map(
        self,
        task: Task[Concatenate[V, P], Any, R] | Enqueuer[Concatenate[V, P], R],
        values: Iterable[V],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Group[R]:
        """Add a job for each value, which is its first argument: `parts = etl.map(extract, regions)`.

        The other arguments are the same for all. `parts.results` is the list of what they will have returned, to be passed on:
        `etl.add(load, parts.results)`. A short text or number is a part of the job's name, "extract eu"; else that has a number.
        """
        return self._map(Adder(self), task, values, args, kwargs)

    def add_workflow(self, workflow: Workflow) -> Subworkflow:
        """Add all jobs of another workflow, as it is now. What this returns stands for them: `etl.after(etl.add_workflow(eu))`.

        Their names begin with its own (or what `named` says) and a dot. It may be added several times: the next one has a number.
        """
        return self._add_workflow(Adder(self), workflow)

    def on_failure(self, task: Task[P, Any, R] | Enqueuer[P, R], *args: P.args, **kwargs: P.kwargs) -> Node[R]:
        """Add a job that runs as soon as one of the others has failed for good; it is skipped where none does.

        The others are all that the workflow has when it is enqueued, but for those that are added in this way, too.
        """
        return self._on_failure(Adder(self), task, args, kwargs)

    def after(self, *on: HasEdge | HasEdges, rule: Rule | None = None, at_least: int | None = None) -> Adder:
        """For jobs that wait for others: `etl.after(load).add(validate)`, `etl.after(load.failure).add(page_someone)`.

        on        nodes of this workflow or jobs that are there already (each is waited for until it has succeeded), or the
                  `failure` or `done` of one; groups and workflows within this one, too
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

    def enqueue(
        self,
        *,
        deadline: datetime | timedelta | None = None,
        connection: Connection | None = None,
        notify: bool = True,
    ) -> WorkflowRun:
        """Enqueue all of it, or, with an error, none; in the transaction of `connection` if one is given.

        deadline  what has not ended by this time (or so long after now) is cancelled; None: as long as it takes
        """
        call = self.app.client.calls.enqueue_workflow(self._text(deadline), notify)
        if connection is not None:
            return self._run(run(connection, call))
        return self._run(self.app.client.run(call, "enqueue", "aenqueue"))

    async def aenqueue(
        self,
        *,
        deadline: datetime | timedelta | None = None,
        connection: AsyncConnection | None = None,
        notify: bool = True,
    ) -> WorkflowRun:
        """`enqueue` in an event loop."""
        call = self.app.client.calls.enqueue_workflow(self._text(deadline), notify)
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

    def _map(self, how: Adder, task: Any, values: Iterable[Any], args: Any, kwargs: Any) -> Group[Any]:
        if not isinstance(task, (Task, Enqueuer)):
            raise UsageError(f"a workflow is made of tasks, and {task!r} is none: decorate its function with @app.task")
        stem = how._name if how._name is not None else (task if isinstance(task, Task) else task.task).name
        nodes: list[Node[Any]] = []
        for value in values:
            is_short = isinstance(value, (str, int)) and 0 < len(str(value)) <= _MOST_IN_A_NAME
            name = self._fresh(f"{stem} {value}") if is_short else self._fresh(stem, always=True)
            nodes.append(self._add(how.named(name), task, (value, *args), kwargs))
        return Group(tuple(nodes))

    def _add_workflow(self, how: Adder, workflow: Workflow) -> Subworkflow:
        if not isinstance(workflow, Workflow):
            raise UsageError(f"{workflow!r} is no workflow: make one by app.workflow(name)")
        if workflow is self:
            raise UsageError(f'workflow "{self.name}" cannot be a part of itself')
        refuse_foreign(how._edges, self)
        name = how._name if how._name is not None else self._fresh(workflow.name)
        jobs = workflow._jobs()
        nodes: dict[str, Node[Any]] = {}
        for job in jobs:
            there = moved(job, f"{name}.", how._edges, how._rule, how._at_least)
            if there["name"] in self._nodes:
                raise UsageError(
                    f'workflow "{self.name}" has a job "{there["name"]}" already: give this one another name'
                )
            bound: BoundTask[Any] = BoundTask(
                json.dumps(there, ensure_ascii=False), workflow._nodes[job["name"]]._bound.returned
            )
            nodes[job["name"]] = Node(there["name"], self, bound)
        self._nodes |= {node.name: node for node in nodes.values()}
        self._parts.add(name)
        edges = tuple(nodes[well].edge for well in ended_well(jobs))
        return Subworkflow(name, nodes, edges, workflow)

    def _on_failure(self, how: Adder, task: Task[P, Any, R] | Enqueuer[P, R], args: Any, kwargs: Any) -> Node[R]:
        if how._edges:
            raise UsageError("on_failure waits for the other jobs of its workflow, and for nothing else")
        node = self._add(how, task, args, kwargs)
        if json.loads(node._bound.text).get("depends_on"):
            del self._nodes[node.name]
            raise UsageError("on_failure waits for the other jobs of its workflow, and takes no results")
        self._hooks.add(node.name)
        return node

    def _fresh(self, stem: str, *, always: bool = False) -> str:
        """A name that no job and no part has: `stem` itself (unless `always` a number is wanted), else with the next number."""
        name = stem
        while name in self._nodes or name in self._parts or (always and name == stem):
            self._numbers[stem] = self._numbers.get(stem, 0 if always else 1) + 1
            name = f"{stem} {self._numbers[stem]}"
        return name

    def _jobs(self) -> list[dict[str, Any]]:
        """Its jobs, as enqueue_workflow takes them."""
        if len(self._nodes) == len(self._hooks):
            raise UsageError(f'workflow "{self.name}" has no jobs: add some first')
        jobs: list[dict[str, Any]] = [json.loads(node._bound.text) for node in self._nodes.values()]
        return [job | self._hook_fields() if job["name"] in self._hooks else job for job in jobs]

    def _hook_fields(self) -> dict[str, Any]:
        others = [Edge(name, "failure", self) for name in self._nodes if name not in self._hooks]
        return {"depends_on": as_json(others, {}), **rule_fields("any", None)}

    def _text(self, deadline: datetime | timedelta | None) -> str:
        until = ""
        if isinstance(deadline, timedelta):
            until = f'"deadline_s":{deadline.total_seconds()},'
        elif deadline is not None:
            until = f'"deadline":{json.dumps(instant("deadline", deadline))},'
        return f'{{"name":{json.dumps(self.name)},{until}"jobs":{self.as_text()}}}'

    def as_text(self) -> str:
        """Its jobs as the JSON array that enqueue_many takes. Raises `UsageError` where there are none."""
        if self._hooks:
            jobs = ",".join(json.dumps(job, ensure_ascii=False) for job in self._jobs())
        elif self._nodes:
            jobs = ",".join(node._bound.text for node in self._nodes.values())
        else:
            raise UsageError(f'workflow "{self.name}" has no jobs: add some first')
        return f"[{jobs}]"

    def _run(self, answer: dict[str, Any]) -> WorkflowRun:
        client = self.app.client
        jobs: dict[str, Job[Any]] = {
            name: Job(job_id, client, node._bound.returned)
            for (name, node), job_id in zip(self._nodes.items(), answer["job_ids"], strict=True)
        }
        return WorkflowRun(answer["workflow_id"], self.name, jobs, self)
