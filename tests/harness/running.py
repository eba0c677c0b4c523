"""Workers for tests: in this process, or as real child processes that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgsched.app import App
from pgsched.leader import Leader
from pgsched.supervisor.board import HURRY
from pgsched.supervisor.child import ChildWorker
from pgsched.worker import ExitCode, Settings, Worker

PATIENCE_S = 30.0


class Working:
    """A worker that runs in a thread of this process; `code` after its end."""

    def __init__(self) -> None:
        self.code: ExitCode | None = None
        self.over = threading.Event()
        self.worker: Worker | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def hurry(self) -> None:
        """Stop it at once: what runs is cancelled."""
        assert self.loop is not None and self.worker is not None
        for _ in range(2):
            self.loop.call_soon_threadsafe(self.worker.stop)

    def wait_until(self, condition: str) -> None:
        """Wait until the SQL `condition` is true while this worker runs."""
        wait_until(self.worker.app.client.dsn, condition, self.over.is_set)  # type: ignore[union-attr]


@contextlib.contextmanager
def working(app: App, dsn: str, **options: Any) -> Iterator[Working]:
    """Run a worker on `app` in a thread; it is stopped at the end, and must end."""
    app.use(dsn)
    state = Working()
    ready = threading.Event()
    errors: list[BaseException] = []

    async def main() -> None:
        state.loop = asyncio.get_running_loop()
        try:
            state.worker = Worker(app, Settings(**options))
            ready.set()
            state.code = await state.worker.run()
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()
            state.over.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    try:
        yield state
    finally:
        if not state.over.is_set() and state.worker is not None and state.loop is not None:
            state.loop.call_soon_threadsafe(state.worker.stop)
        thread.join(PATIENCE_S)
        app.close()
    assert not thread.is_alive(), "the worker did not stop"
    if errors:
        raise errors[0]


def work_until(app: App, dsn: str, condition: str, **options: Any) -> ExitCode:
    """Run a worker until the SQL `condition` is true (else fail), then stop it; its exit code."""
    with working(app, dsn, **options) as state:
        state.wait_until(condition)
    assert state.code is not None
    return state.code


def wait_until(dsn: str, condition: str, over: Callable[[], bool] = lambda: False, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until the SQL `condition` is true. Fails after `patience_s`, or when `over()` says that it never will be."""
    deadline = time.monotonic() + patience_s
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.execute(f"select {condition}").fetchone()[0]:  # type: ignore[index]
            assert time.monotonic() < deadline, f"never true: {condition}\n{_jobs(connection)}"
            assert not over(), f"the worker ended before: {condition}\n{_jobs(connection)}"
            time.sleep(0.01)


ENDED = "not exists (select from pgsched.job j where not exists (select from pgsched.finished f where f.job_id = j.id))"


def ended(*ids: int) -> str:
    """The condition that these jobs have ended."""
    return f"(select count(*) from pgsched.finished where job_id = any (array{list(ids)}::bigint[])) = {len(ids)}"


def make_trace(dsn: str) -> None:
    """The table in which the tests' tasks leave a trace of what really ran."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "create table if not exists trace "
            "(id bigserial, what text, job_id bigint, pid int, at timestamptz default clock_timestamp())"
        )


@contextlib.contextmanager
def leading(dsn: str, name: str) -> Iterator[Leader]:
    """A leader (or standby) in a thread of this process."""
    leader = Leader(dsn, name=name)
    started = threading.Event()
    state: list[Any] = []

    async def main() -> None:
        stop = asyncio.Event()
        state.extend((asyncio.get_running_loop(), stop))
        started.set()
        await leader.run(stop)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    started.wait()
    try:
        yield leader
    finally:
        state[0].call_soon_threadsafe(state[1].set)
        thread.join(20)
    assert not thread.is_alive()


@contextlib.contextmanager
def child(dsn: str, *options: str, quiet: bool = True, target: str = "harness.apps:app") -> Iterator[ChildWorker]:
    """A worker process on the tests' App, or another; reaped and, if need be, rescued at the end."""
    here = Path(__file__).parent.parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    worker = ChildWorker(["worker", target, *options], dsn, quiet=quiet)
    worker.start()
    try:
        yield worker
    finally:
        if worker.process is not None:
            worker.send(signal.SIGKILL)
            worker.reap()


@dataclass
class Supervised:
    """A supervisor as its own process, and what can be asked of its workers."""

    dsn: str
    process: subprocess.Popen[bytes]

    def workers(self) -> list[int]:
        """The worker processes that it has now."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in children for pid in task.read_text().split()]

    def worker(self, *, other_than: int = 0) -> int:
        """Its one worker, once it is attached."""
        deadline = time.monotonic() + PATIENCE_S
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while time.monotonic() < deadline:
                for pid in self.workers():
                    query = "select 1 from pgsched.workers where pid = %s and state = 'alive'"
                    if pid != other_than and connection.execute(query, (pid,)).fetchone():
                        return pid
                time.sleep(0.005)
        raise AssertionError("no worker has attached")

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def supervised(
    dsn: str, *options: str, quiet: bool = True, target: str = "harness.apps:app"
) -> Iterator[Supervised]:
    """`pgsched worker` on the tests' App, as a user starts it."""
    here = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "pgsched", "worker", target, *options],
        env=os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        stderr=subprocess.DEVNULL if quiet else None,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield Supervised(dsn, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def hurry(worker: ChildWorker) -> int:
    """SIGTERM again and again (two that come together count once) until the worker has ended; its exit code."""
    assert worker.process is not None
    while not worker.has_ended():
        worker.send(signal.SIGTERM)
        worker.send(HURRY)
        time.sleep(0.2)
    result = os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    assert result is not None
    return result.si_status


def _jobs(connection: psycopg.Connection[Any]) -> str:
    rows = connection.execute("select id, task, state, attempt, reason from pgsched.jobs order by id limit 20").fetchall()
    return "\n".join(map(str, rows))
