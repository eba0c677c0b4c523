"""Tasks for tests of workflows."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pgsched

app = pgsched.App("flows")


@app.task
def extract(region: str, n: int = 3) -> list[int]:
    return [len(region)] * n


@app.task
async def transform(rows: list[int], factor: int = 2) -> list[int]:
    return [row * factor for row in rows]


@app.task
def merge(parts: list[list[int]], title: str) -> dict[str, int]:
    return {title: sum(map(sum, parts))}


@app.task(executor="process")
def in_process(total: dict[str, int], nothing: None, *, plus: int) -> int:
    assert nothing is None
    return sum(total.values()) + plus


@app.task
def fails(*, message: str = "no") -> None:
    raise ValueError(message)


@app.task
async def passes(value: Any = None) -> Any:
    return value


@app.task
def takes_text(text: str) -> str:
    return text


@app.task
def sleeps(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pgsched.current_job().raise_if_stopping()
        time.sleep(0.01)


# ---- Jobs that make subtasks: {"of": how many, "then": what the last of them and the handler do}.


@app.task
def part(number: int, then: str = "") -> int:
    if then == "fails":
        raise ValueError(f"part {number}")
    if then == "sleeps":
        sleeps(60)
    return number


def _end(then: str) -> str:
    if then == "raises":
        raise LookupError("the parent")
    return "made"


@app.task
def splits(of: int, then: str = "", parts: str = "") -> str:
    me = pgsched.current_job()
    jobs = [part.using(parent=me).bind(i, parts if i == of - 1 else "") for i in range(of)]
    app.enqueue_many(jobs)
    return _end(then)


@app.task
async def splits_on_loop(of: int, then: str = "", parts: str = "") -> str:
    for i in range(of):
        await part.using(parent=pgsched.current_job()).aenqueue(i, parts if i == of - 1 else "")
    return _end(then)


@app.task(executor="process", subtask_failures="ignore")
def splits_in_process(of: int, then: str = "", parts: str = "") -> str:
    return splits(of, then, parts)


@app.task(transactional=True, retry=pgsched.Exponential(max_attempts=2, first=timedelta(0)))
def splits_in_transaction(of: int, then: str = "", parts: str = "") -> str:
    """Its subtasks come with its own commit, or not at all."""
    me = pgsched.current_job()
    first = part.using(parent=me, connection=me.connection).enqueue(0)
    for i in range(1, of):
        part.using(parent=me, connection=me.connection, depends_on=[first]).enqueue(i, parts if i == of - 1 else "")
    return _end(then)


@app.task
def squares(numbers: list[int]) -> int:
    """Its own number, for those who want its subtasks."""
    me = pgsched.current_job()
    app.enqueue_many(square.using(parent=me).bind(number) for number in numbers)
    return me.id


@app.task
def square(number: int) -> int:
    return number * number


@app.task
def sum_of(job_id: int) -> int:
    return sum(part.result for part in app.job(job_id).subtasks())
