"""Whom a job waits for: by which end of another job an edge is met, and results that are taken as arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from pgsched.errors import ArgumentsError, UsageError

Condition = Literal["success", "failure", "done"]
Rule = Literal["all", "any", "none_failed"]
Path = tuple[str | int, ...]
"""Where in the arguments something goes: a parameter's name, then keys and positions."""


@dataclass(frozen=True, slots=True)
class Edge:
    """That something waits for a job, which `on` names: by its id, or by its name within the workflow `of`."""

    on: int | str
    condition: Condition = "success"
    of: object = None

    @property
    def edge(self) -> Edge:
        """Itself."""
        return self


class HasEdge(Protocol):
    """What a job can wait for: a job, a node of a workflow, or the `failure` or `done` of one."""

    @property
    def edge(self) -> Edge:
        """The edge that leads to it."""


@dataclass(frozen=True, slots=True)
class Edges:
    """That something waits for several jobs. `one_is_enough`: for the first of them that meets its edge."""

    edges: tuple[Edge, ...]
    one_is_enough: bool = False


class HasEdges(Protocol):
    """Several that a job can wait for as one: a group of nodes, a workflow within another, or the `failure` or `done` of one."""

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges that lead to them."""


def edges_to(on: Iterable[HasEdge | HasEdges], *, first: bool = False) -> tuple[Edge, ...]:
    """Each of these as an edge; `first`: also where one of several is enough. Raises `UsageError`."""
    found: list[Edge] = []
    try:
        for one in on:
            if isinstance(one, Edges) and one.one_is_enough and not first:
                raise UsageError("the failure of several jobs is met by the first that fails: wait for it by after()")
            several: tuple[Edge, ...] | None = getattr(one, "edges", None)
            found += (cast("HasEdge", one).edge,) if several is None else several
    except (AttributeError, TypeError):
        raise UsageError(f"a job cannot wait for {on!r}: give it jobs, nodes, or the failure or done of one") from None
    return tuple(found)


def refuse_foreign(edges: Iterable[Edge], workflow: object) -> None:
    """Refuse edges that lead to jobs of another workflow than this one."""
    for edge in edges:
        if isinstance(edge.on, str) and edge.of is not workflow:
            raise UsageError(f'"{edge.on}" is a job of another workflow: wait for its Job, once that is enqueued')


class Result:
    """In place of an argument: what the job of this name in this workflow will have returned. It can be passed on, no more."""

    __slots__ = ("name", "workflow")

    def __init__(self, name: str, workflow: object) -> None:
        self.name = name
        self.workflow = workflow

    def _refuse(self, *_: Any) -> Any:
        raise UsageError(
            f'the result of "{self.name}" is not there yet: it can be passed on as an argument, and no more'
        )

    __str__ = __format__ = __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __call__ = __int__ = (
        __float__
    ) = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = (
        __rmul__
    ) = _refuse
    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __and__ = __or__ = __neg__ = __hash__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __repr__(self) -> str:
        return f'<the result of "{self.name}">'


def find_results(value: Any, at: Path, within: tuple[int, ...] = ()) -> Iterator[tuple[Path, Result]]:
    """Every place in an argument that takes a result."""
    if isinstance(value, Result):
        yield at, value
    elif isinstance(value, (dict, list, tuple)) and id(value) not in within:
        within = (*within, id(value))
        for place, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from find_results(inner, (*at, place), within)


def without_results(value: Any) -> Any:
    """The same argument as JSON can hold it: null in each place that takes a result."""
    if isinstance(value, Result):
        return None
    if isinstance(value, dict):
        return {key: without_results(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_results(inner) for inner in value]
    return value


def with_results(args: bytes, inputs: Sequence[tuple[Sequence[str | int], Any]]) -> bytes:
    """Stored arguments with results put into their places. Raises `ArgumentsError` where there is no such place."""
    values = json.loads(args)
    for path, result in inputs:
        place = values
        try:
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = result
        except (KeyError, IndexError, TypeError):
            raise ArgumentsError(
                f"a result goes to {list(path)} in the arguments, and there is no such place"
            ) from None
    return json.dumps(values).encode()


def as_json(edges: Sequence[Edge], inputs: Mapping[str, list[Path]]) -> list[dict[str, Any]]:
    """Edges as enqueue_many takes them; a result that is taken is an edge, too."""
    conditions: dict[int | str, Condition] = {}
    for edge in edges:
        if conditions.setdefault(edge.on, edge.condition) != edge.condition:
            raise UsageError(
                f"one job waits for {edge.on!r} twice, once on {conditions[edge.on]} and once on {edge.condition}"
            )
    for name in inputs:
        if conditions.setdefault(name, "success") == "failure":
            raise UsageError(f'"{name}" is waited for on failure, and its result is taken: a job that failed has none')
    return [
        {("job" if isinstance(on, int) else "name"): on, "on": condition}
        | ({"inputs": [list(path) for path in inputs[on]]} if isinstance(on, str) and on in inputs else {})
        for on, condition in conditions.items()
    ]
