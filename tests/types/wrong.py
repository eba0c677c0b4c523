"""Sample code, not a test: each line that ends in `# error` must be refused by a type checker. See test_types.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pgsched

app = pgsched.App("shop")
pgsched.App()  # error
pgsched.App(1)  # error
pgsched.App("shop", timeout=30)  # error


@app.task
async def send(order: int, to: str = "nobody", *, loud: bool = False) -> str:
    return to


@app.task
def count(rows: list[str]) -> int:
    return len(rows)


@app.task(queue="mail", retry=pgsched.Exponential(max_attempts=3))
async def retried(order: int) -> None: ...


@app.task(priority=1)
def charge(card: str, amount: float, /) -> bytes:
    return b""


# A wrong type, one argument too few, one too many, an unknown name, a name that is positional.
send.enqueue("one")  # error
send.enqueue(1, 2)  # error
send.enqueue()  # error
send.enqueue(1, "a", True)  # error
send.enqueue(1, at="a")  # error
send.enqueue(1, loud="yes")  # error
count.enqueue("rows")  # error
count.enqueue(["a"], ["b"])  # error
count.enqueue(rows=[1])  # error
retried.enqueue("1")  # error
retried.enqueue()  # error
charge.enqueue("4111")  # error
charge.enqueue(card="4111", amount=1)  # error


async def enqueue_in_a_loop() -> None:
    await send.aenqueue("one")  # error
    await send.aenqueue()  # error
    await count.aenqueue(1)  # error
    await retried.aenqueue(1, 2)  # error
    await charge.aenqueue("4111", "1")  # error
    await send.using(priority=1).aenqueue("one")  # error
    await send.enqueue(1)  # error
    print(send.aenqueue(1).id)  # error


async def of_another_type() -> pgsched.Job[int]:
    return await send.aenqueue(1)  # error


# The same through bind and using.
send.bind("one")  # error
send.bind()  # error
count.bind([], 1)  # error
retried.bind(order=None)  # error
send.using(priority=1).enqueue("one")  # error
send.using(priority=1).bind(1, loud=1.5)  # error
count.using().enqueue()  # error
charge.using(unique_key="k").enqueue(1, 1.0)  # error

# Options.
send.using(priority="high")  # error
send.using(delay=5)  # error
send.using(run_at="tomorrow")  # error
send.using(timeout=1.5)  # error
send.using(tags=[1])  # error
send.using(unique_keys="k")  # error
send.using(connection="dbname=shop")  # error
send.using(1)  # error

# What comes back.
receipt: pgsched.Job[int] = send.enqueue(1)  # error
number: pgsched.Job[str] = count.enqueue([])  # error
bound: pgsched.BoundTask[int] = send.bind(1)  # error
print(send.enqueue(1).outcome)  # error
send.enqueue(1).id = 2  # error

# Many at once.
app.enqueue_many([send])  # error
app.enqueue_many([send.enqueue(1)])  # error
app.enqueue_many(send.bind(1))  # error
app.enqueue_many([send.bind("one")])  # error

# Calling a task is calling its function.
count("rows")  # error
count(["a"]).upper()  # error
charge(1, 1.0)  # error
text: str = send(1)  # error

# Workflows.
etl = app.workflow("etl")
etl.add(count, ["a"], 1)  # error
etl.add(send, etl.add(count, []).result, to=1)  # error
etl.add(count, etl.add(count, []).result)  # error
etl.map(send, ["one"])  # error
etl.map(send, [1], loud="yes")  # error
etl.map(count, [1])  # error
etl.map(send, 1)  # error
etl.add(count, etl.map(count, [["a"]]).results)  # error
etl.on_failure(send, "one")  # error
etl.add_workflow(send)  # error
etl.after("send").add(count, [])  # error
etl.enqueue(deadline=5)  # error
etl.enqueue().rerun("a")  # error
etl.enqueue().rerun(from_=5)  # error

# Decorating.
app.task(retry=3)  # error
app.task(timeout=30)  # error
app.task(queue=1)  # error
app.task(colour="red")  # error
app.task("name")  # error
app.schedule("s", 3, "@daily")  # error
app.schedule("s", send.bind(1), 5)  # error
app.schedule("s", send.bind(1), "@daily", catch_up="some")  # error
app.schedule("s", send.bind(1), "@daily", overlap="never")  # error
app.schedule("s", send.bind(1), "@daily", jitter=5)  # error
pgsched.Exponential(3, first=1)  # error
pgsched.Exponential(3, timedelta(hours=1))  # error
pgsched.Exponential(3, factor="2")  # error
pgsched.Exponential(3, jitter="some")  # error
pgsched.Exponential(3, on={ValueError: 5})  # error
pgsched.Exponential(3, on={"ValueError": pgsched.never})  # error
pgsched.Exponential(3, on=lambda error: None)  # error
pgsched.Fixed(3)  # error
pgsched.Linear(3, step=1)  # error
pgsched.Retry(5)  # error
pgsched.Snooze()  # error
pgsched.Cancel(5)  # error
app.task(retry=pgsched.never)  # error
app.failed(task=1)  # error
app.failed().retry(1)  # error
app.failed("send")  # error


@app.task(name=1)  # error
def named() -> None: ...


@app.lifespan  # error
async def no_generator() -> Any: ...


@app.middleware  # error
def no_coroutine(job: pgsched.JobContext) -> None: ...
