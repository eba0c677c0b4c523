"""Sample code, not a test: what a type checker must accept, and the types that it must find. See test_types.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, assert_type

import psycopg
import sqlalchemy
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

import pgsched
from pgsched.schedules import Made
from pgsched.worker import EmbeddedWorker


class Receipt(BaseModel):
    order: int


class Totals(TypedDict):
    count: int


app = pgsched.App("shop", dsn="dbname=shop", schema="queue", timeout=timedelta(minutes=5))


@app.task
async def send(order: int, to: str = "nobody", *, loud: bool = False) -> Receipt:
    return Receipt(order=order)


@app.task
def count(rows: list[str]) -> Totals:
    return {"count": len(rows)}


@app.task(queue="mail", priority=1, retry=pgsched.Exponential(8, cap=timedelta(hours=2)), timeout=timedelta(seconds=30))
async def retried(order: int) -> None: ...


@app.task(name="charge", secret=["card"])
def charge(card: str, amount: float, /) -> int | None:
    return None


def by_error(error: OSError, attempt: int) -> pgsched.Fixed | timedelta | None:
    return None if attempt > 3 else timedelta(seconds=error.errno or 1)


hour = timedelta(hours=1)
app.task(
    retry=pgsched.Exponential(
        5,
        factor=1.5,
        jitter="full",
        max_age=hour,
        on={ValueError: pgsched.never, OSError: hour, ConnectionError: pgsched.Linear(3, step=hour)},
    )
)
app.task(retry=pgsched.Fixed(5, after=hour, on={TimeoutError: pgsched.never}))
app.task(retry=pgsched.Linear(max_age=hour, on=by_error))
assert_type(pgsched.Exponential(5).wait(51, random=0.5), timedelta)
assert_type(app.failed(task=send, error="ValueError").groups(), list[pgsched.FailedGroup])
assert_type(app.failed(task="send").jobs(limit=5), list[pgsched.FailedJob])
assert_type(app.failed().retry(dry_run=True).refused, dict[int, str])


def verdicts() -> None:
    raise pgsched.Retry(hour) from pgsched.Cancel("no more") if hour else pgsched.Snooze(hour, "later")


@app.lifespan
async def resources() -> AsyncIterator[dict[str, int]]:
    yield {"pool": 1}


@app.middleware
async def traced(job: pgsched.JobContext, run: Any) -> Any:
    return await run()


# Calling a task runs its function, and has its type.
async def call() -> None:
    assert_type(await send(1, "a@example.org", loud=True), Receipt)
    assert_type(count(["a"]), Totals)
    assert_type(charge("4111", 1.5), int | None)


# Enqueued, both kinds of task make a job of what they return.
assert_type(send.enqueue(1), pgsched.Job[Receipt])
assert_type(send.enqueue(order=1, to="a@example.org", loud=True), pgsched.Job[Receipt])
assert_type(count.enqueue([]), pgsched.Job[Totals])
assert_type(retried.enqueue(order=1), pgsched.Job[None])
assert_type(charge.enqueue("4111", 1), pgsched.Job[int | None])
assert_type(send.enqueue(1).id, int)
assert_type(send.enqueue(1).info(), pgsched.JobInfo)
assert_type(send.enqueue(1).info().finished_at, datetime | None)
assert_type(send.enqueue(1).result(), Receipt)
assert_type(charge.enqueue("4111", 1).result(timedelta(seconds=1)), int | None)
widened: pgsched.Job[BaseModel] = send.enqueue(1)


async def enqueue_in_a_loop() -> None:
    assert_type(await send.aenqueue(1, loud=True), pgsched.Job[Receipt])
    assert_type(await count.aenqueue(rows=["a"]), pgsched.Job[Totals])
    assert_type(await (await count.aenqueue([])).aresult(timeout=timedelta(seconds=1)), Totals)
    assert_type(await (await charge.aenqueue("4111", 1.0)).ainfo(), pgsched.JobInfo)
    assert_type(await retried.using(delay=timedelta(seconds=1)).aenqueue(1), pgsched.Job[None])
    assert_type(await app.aenqueue_many([send.bind(1), count.bind([])]), list[pgsched.Job[Any]])
    async with await psycopg.AsyncConnection.connect("") as connection:
        await send.using(connection=connection).aenqueue(1)
        await app.aenqueue_many([send.bind(1)], connection=connection)


# using() keeps the parameters and the result.
everything = send.using(
    queue="mail",
    priority=0,
    run_at=datetime(2030, 1, 1, tzinfo=UTC),
    expires_at=datetime.now(UTC) + timedelta(days=1),
    max_attempts=3,
    timeout=timedelta(seconds=1),
    tags=["a", "b"],
    metadata={"why": "test"},
    unique_key="order-1",
    notify=False,
)
assert_type(everything.enqueue(1, to="b@example.org"), pgsched.Job[Receipt])
assert_type(everything.bind(1), pgsched.BoundTask[Receipt])
assert_type(count.using(delay=timedelta(hours=1), tags=("a",)).enqueue(["a"]), pgsched.Job[Totals])

# Many at once, of several tasks.
assert_type(send.bind(1, loud=True), pgsched.BoundTask[Receipt])
assert_type(app.enqueue_many(send.bind(i) for i in range(3)), list[pgsched.Job[Any]])
app.enqueue_many([send.bind(1), count.using(priority=2).bind(["a"]), charge.bind("4111", 2.5)], notify=False)

# In the caller's transaction, whatever it is of.
engine = sqlalchemy.create_engine("postgresql+psycopg://")
with Session(engine) as session, session.begin():
    assert_type(send.using(connection=session).enqueue(1), pgsched.Job[Receipt])
    app.enqueue_many([send.bind(1)], connection=session)
with engine.begin() as of_sqlalchemy:
    count.using(connection=of_sqlalchemy).enqueue([])
with psycopg.connect("") as of_psycopg:
    count.using(connection=of_psycopg).enqueue([])


async def enqueue_with_sqlalchemy(session: AsyncSession, connection: AsyncConnection) -> None:
    assert_type(await send.using(connection=session).aenqueue(1), pgsched.Job[Receipt])
    await app.aenqueue_many([send.bind(1)], connection=connection)


# Workflows: results are typed where they are taken, groups are lists, a workflow within another keeps the types of its nodes.
etl = app.workflow("etl")
counted = etl.add(count, ["a"])
assert_type(counted, pgsched.Node[Totals])
assert_type(counted.result, Totals)
sent = etl.map(send, [1, 2], loud=True)
assert_type(sent, pgsched.Group[Receipt])
assert_type(sent.results, list[Receipt])
assert_type(list(sent), list[pgsched.Node[Receipt]])
charged = etl.after(sent, counted.done, rule="any").map(charge, ["4111"], 1.5)
assert_type(charged.results, list[int | None])
assert_type(etl.after(sent.failure).named("many").map(retried.using(priority=1), (1, 2)), pgsched.Group[None])
assert_type(etl.on_failure(send, 1, loud=True), pgsched.Node[Receipt])
outer = app.workflow("outer")
part = outer.named("part").add_workflow(etl)
assert_type(part, pgsched.Subworkflow)
assert_type(part[counted].result, Totals)
assert_type(part["count"], pgsched.Node[Any])
outer.after(part, part.done).add(send, 1)
outer.after(part.failure).on_failure(count, [])
the_run = outer.enqueue(deadline=timedelta(hours=1))
assert_type(the_run, pgsched.WorkflowRun)
assert_type(the_run[part[counted]].result(), Totals)
assert_type(the_run.rerun(from_=part[counted], dry_run=True), dict[int, str])
the_run.rerun(from_=["count", counted])
the_run.rerun(from_=sent)


async def workflows_in_a_loop() -> None:
    again = await outer.aenqueue(deadline=datetime(2030, 1, 1, tzinfo=UTC))
    assert_type(await again.arerun(from_="count"), dict[int, str])

# Schedules.
app.schedule("daily", send.bind(1), "0 9 * * *", "America/New_York", catch_up="last", overlap="skip", jitter=timedelta(minutes=1))
app.schedule("often", app.workflow("flow"), pgsched.every(timedelta(seconds=30)), catch_up="all", catch_up_limit=10)
assert_type(app.schedules.put("by hand", send.bind(1), "@daily"), int)
assert_type(app.schedules.run_now("daily").job_id, int | None)
assert_type(app.schedules.backfill("daily", datetime.now(UTC), datetime.now(UTC)), list[Made])
assert_type(pgsched.current_job().tick_at, datetime | None)

# Names and attributes that applications use.
assert_type(send.name, str)
assert_type(send.is_async, bool)
assert_type(pgsched.current_job().fence, int)
pgsched.current_job().progress(0.5, "half")
assert_type(app.run_worker(concurrency=1), int)


async def beside() -> None:
    async with app.worker(concurrency=1) as worker:
        assert_type(worker, EmbeddedWorker)
        assert_type((worker.healthy, worker.id, worker.running), tuple[bool, int | None, int])
        worker.stop()


asyncio.run(call())
