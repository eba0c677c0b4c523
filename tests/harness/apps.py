"""The App that the tests' workers run. Child processes import it as `harness.apps:app`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel, ConfigDict, SecretStr

import pgsched

app = pgsched.App("tests")
quick = pgsched.Exponential(max_attempts=3, first=timedelta(milliseconds=10))


@app.lifespan
async def resources() -> AsyncIterator[dict[str, str]]:
    time.sleep(float(os.environ.get("PGSCHED_TEST_OPENING", "0")))  # (a model that is loaded, and blocks the loop)
    if os.environ.get("PGSCHED_TEST_NEVER_OPENS"):
        await asyncio.Event().wait()
    yield {"opened": "once"}


@app.middleware
async def numbered(job: pgsched.JobContext, run: Callable[[], Awaitable[Any]]) -> Any:
    result = await run()
    return [*result, "middleware"] if isinstance(result, list) else result


def record(what: str, job_id: int) -> None:
    """Leave a trace outside pgsched's tables, committed at once: what really ran."""
    if dsn := os.environ.get("PGSCHED_DSN"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("insert into trace (what, job_id, pid) values (%s, %s, %s)", (what, job_id, os.getpid()))


@app.task
async def noop(i: int = 0) -> None:
    pass


@app.task
def noop_thread(i: int = 0) -> None:
    pass


@app.task
async def traced(i: int) -> None:
    job = pgsched.current_job()
    await asyncio.to_thread(record, "ran", job.id)


@app.task
async def echo(value: Any) -> Any:
    return value


@app.task
def about_itself() -> list[Any]:
    job = pgsched.current_job()
    return [job.task, job.attempt, job.state, threading.current_thread() is not threading.main_thread()]


@app.task(retry=quick)
async def fails(message: str = "no luck") -> None:
    raise RuntimeError(message)


@app.task(retry=quick)
async def fails_twice() -> int:
    if pgsched.current_job().attempt < 3:
        raise ConnectionError("not yet")
    return pgsched.current_job().attempt


@app.task
async def sleeps(seconds: float) -> str:
    await asyncio.to_thread(record, "began", pgsched.current_job().id)
    await asyncio.sleep(seconds)
    return "slept"


@app.task
async def sleeps_a_little(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@app.task
def sleeps_in_thread(seconds: float) -> str:
    record("began", pgsched.current_job().id)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not pgsched.current_job().stopping:
        time.sleep(0.01)
    return "told" if pgsched.current_job().stopping else "slept"


@app.task
def stuck_in_thread(seconds: float) -> None:
    record("began", pgsched.current_job().id)
    time.sleep(seconds)


@app.task(timeout=timedelta(milliseconds=50))
async def too_slow() -> None:
    await asyncio.sleep(60)


@app.task
async def swallows(seconds: float) -> str:
    until = time.monotonic() + seconds
    await asyncio.to_thread(record, "began", pgsched.current_job().id)
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue
    return "swallowed"


@app.task
async def exits(how: str) -> None:
    if how == "sys.exit":
        sys.exit(3)
    raise KeyboardInterrupt


@app.task
def returns_no_json(what: str) -> Any:
    return {"object": object(), "nan": float("nan"), "nul": "a\0b", "surrogate": "\ud800"}[what]


class Measured(BaseModel):
    """In JSON its number may be Infinity, which pydantic takes back and Postgres does not."""

    model_config = ConfigDict(ser_json_inf_nan="constants")
    value: float


@app.task
async def measures(value: str) -> Measured:
    return Measured(value=float(value))


@app.task
async def keeps_a_secret(user: str, password: SecretStr) -> str:
    return user + str(len(password.get_secret_value()))


@app.task
async def dies() -> None:
    os._exit(7)


@app.task
async def crashes(how: str) -> None:
    record("began", pgsched.current_job().id)
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "memory":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, resource.RLIM_INFINITY))
        kept = []
        try:
            while True:
                kept.append(bytearray(2**24))
        except MemoryError:
            os.abort()  # as the kernel does without asking
    else:
        os._exit(3)  # (what a worker itself ends with that had to leave a thread behind)


@app.task
async def blocks_the_loop(seconds: float) -> None:
    await asyncio.to_thread(record, "began", pgsched.current_job().id)
    time.sleep(seconds)
    record("after", pgsched.current_job().id)


@app.task
async def waits_in_a_thread(seconds: float) -> None:
    await asyncio.to_thread(time.sleep, seconds)


@app.task
def holds_the_gil() -> None:
    record("began", pgsched.current_job().id)
    re.match(r"(a+)+$", "a" * 60 + "c")  # (for many minutes)
    record("after", pgsched.current_job().id)


@app.task
def has_children() -> None:
    """Three grandchildren: an ordinary one, one in a session of its own, and a daemon without our variables."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    daemon = "import os, subprocess, sys; print(subprocess.Popen(sys.argv[1:], env={}, start_new_session=True, stdout=-3, stderr=-3).pid)"
    found = subprocess.run([sys.executable, "-c", daemon, *sleep], capture_output=True, text=True, check=True)
    for pid in [*pids, int(found.stdout)]:
        record(f"child {pid}", pgsched.current_job().id)
    record("began", pgsched.current_job().id)
    time.sleep(600)


@app.task
async def runs_for(seconds: float) -> None:
    """Notes every 10 ms that it runs: who ran, and until when, by the clock that all processes of a machine share."""
    job = pgsched.current_job()
    with Path(os.environ["PGSCHED_TEST_LOG"]).open("a", buffering=1) as notes:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            notes.write(f"{job.id} {job.fence} {time.clock_gettime(time.CLOCK_BOOTTIME):.4f}\n")
            await asyncio.sleep(0.01)
