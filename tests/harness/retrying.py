"""The App of the tests of retries: the same handler in each place. Executor processes import it as `harness.retrying`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pgsched
from harness.apps import record

app = pgsched.App("retrying")
HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=10)


def decide(error: BaseException, attempt: int) -> Any:
    """What the errors of `Asks` ask for."""
    wish = error.args[0] if isinstance(error, Asks) else None
    if wish == "raise":
        raise ZeroDivisionError("in the function itself")
    return {"hour": HOUR, "never": pgsched.never, "policy": pgsched.Fixed(after=2 * HOUR), "nonsense": "soon"}.get(wish or "")


class Asks(Exception):
    """An error that `decide` reads."""


class Unwieldy(Exception):
    """One that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("unwieldy")
        self.lock = threading.Lock()
        self.call = lambda: None


class Slippery(Exception):
    """One that raises when it is looked at."""

    @property
    def __class__(self) -> Any:
        raise ZeroDivisionError

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Rude(BaseException):
    """One that no `except Exception` catches."""


by_type = pgsched.Exponential(
    3,
    first=MOMENT,
    jitter="none",
    on={
        LookupError: pgsched.never,
        ConnectionError: pgsched.Fixed(after=HOUR),
        PermissionError: pgsched.Fixed(2, after=timedelta(0)),
        TimeoutError: pgsched.Fixed(after=2 * HOUR),
        pgsched.ProcessDied: timedelta(hours=3),
    },
)
by_function = pgsched.Exponential(2, first=3 * HOUR, cap=3 * HOUR, jitter="none", on=decide)
by_age = pgsched.Fixed(after=HOUR, max_age=timedelta(minutes=30))


def act(what: str) -> Any:
    """The body of every handler here."""
    job = pgsched.current_job()
    acts: dict[str, Callable[[], BaseException]] = {
        "retry": lambda: pgsched.Retry(MOMENT),
        "retry later": lambda: pgsched.Retry(HOUR),
        "retry as usual": lambda: pgsched.Retry(),
        "retry at no such time": lambda: pgsched.Retry(-HOUR),
        "cancel": lambda: pgsched.Cancel("sold out"),
        "snooze": lambda: pgsched.Snooze(HOUR, "no stock"),
        "lookup": lambda: KeyError("of no use"),
        "connection": lambda: ConnectionRefusedError("nobody there"),
        "permission": lambda: PermissionError("not you"),
        "unwieldy": Unwieldy,
        "slippery": Slippery,
        "group": lambda: ExceptionGroup("several", [ValueError("one"), OSError("two")]),
        "rude": lambda: Rude("rude"),
        "nul": lambda: type("Nul", (Exception,), {"__qualname__": "Nu\0l"})("a\0b"),
        "exit": lambda: SystemExit(3),
    }
    if what.startswith("ask "):
        raise Asks(what.removeprefix("ask "))
    if what == "retry" and job.attempt == 3:
        return job.attempt
    if what == "die":
        os._exit(9)
    raise acts[what]()


def write() -> Any:
    """In a transaction: what must not be there unless the job succeeds."""
    return "insert into wrote values (%s)", (pgsched.current_job().id,)


@app.task(retry=by_type)
async def on_loop(what: str) -> Any:
    return act(what)


@app.task(retry=by_type)
def in_thread(what: str) -> Any:
    return act(what)


@app.task(retry=by_type, executor="process")
def in_process(what: str) -> Any:
    return act(what)


@app.task(retry=by_type, transactional=True)
async def in_transaction_on_loop(what: str) -> Any:
    await pgsched.current_job().connection.execute(*write())
    return act(what)


@app.task(retry=by_type, transactional=True)
def in_transaction_in_thread(what: str) -> Any:
    pgsched.current_job().connection.execute(*write())
    return act(what)


@app.task(retry=by_type, transactional=True, executor="process")
def in_transaction_in_process(what: str) -> Any:
    pgsched.current_job().connection.execute(*write())
    return act(what)


@app.task(retry=by_function)
async def function_on_loop(what: str) -> Any:
    return act(what)


@app.task(retry=by_function)
def function_in_thread(what: str) -> Any:
    return act(what)


@app.task(retry=by_function, executor="process")
def function_in_process(what: str) -> Any:
    return act(what)


@app.task(retry=by_age)
async def aged(what: str) -> Any:
    return act(what)


@app.task
async def without(what: str) -> Any:
    return act(what)


@app.task(retry=by_type, timeout=timedelta(milliseconds=200))
async def late_on_loop() -> None:
    await asyncio.sleep(30)


@app.task(retry=by_type, timeout=timedelta(milliseconds=200))
def late_in_thread() -> None:
    while True:
        pgsched.current_job().raise_if_stopping()
        time.sleep(0.01)


@app.task(retry=by_type, timeout=timedelta(milliseconds=200), executor="process")
def late_in_process() -> None:
    time.sleep(30)


@app.task(retry=by_type)
async def snoozes_when_told() -> None:
    """It waits for its cancel, and then says something else."""
    await asyncio.to_thread(record, "began", pgsched.current_job().id)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        raise pgsched.Snooze(HOUR) from None
