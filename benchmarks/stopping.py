"""How long it takes from the order to stop until a handler has really ended: by executor, and by what the handler does.

    python benchmarks/stopping.py [--rounds 5] [--grace 2]

Each cell is the median of the rounds, in seconds: a cancelled job, then one whose timeout of a second has passed (from that moment).
A handler would go on for 6 s; one that nobody can stop is shown as such. It starts a Postgres and a worker of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

import pgsched
from pgsched import embedded, migrate

app = pgsched.App("stopping")
LASTS_S = 6.0


def sleep() -> None:
    time.sleep(LASTS_S)


def spin() -> None:
    until = time.monotonic() + LASTS_S
    while time.monotonic() < until:
        pass


def hold_the_gil() -> None:
    until = time.monotonic() + LASTS_S
    while time.monotonic() < until:
        sum(itertools.repeat(1, 400_000_000))  # (some seconds in one call)


def ignore() -> None:
    """SIGTERM ignored, every exception swallowed."""
    with contextlib.suppress(ValueError):  # (in a thread)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + LASTS_S
    while time.monotonic() < until:
        try:
            time.sleep(0.01)
        except BaseException:
            continue


def with_children() -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({LASTS_S})"], start_new_session=True)


def asks() -> None:
    until = time.monotonic() + LASTS_S
    while time.monotonic() < until:
        time.sleep(0.01)
        pgsched.current_job().raise_if_stopping()


WAYS: dict[str, Callable[[], Any]] = {
    "sleeps": sleep,
    "computes in Python": spin,
    "C code that holds the GIL": hold_the_gil,
    "ignores every word": ignore,
    "waits for a child": with_children,
    "asks now and then": asks,
}


def touch(note: str) -> None:
    Path(note).touch()


def begin(way: str, note: str) -> Any:
    touch(note)
    return WAYS[way]()


@app.task(executor="process")
def in_process(way: str, note: str) -> None:
    begin(way, note)


@app.task(executor="thread")
def in_thread(way: str, note: str) -> None:
    begin(way, note)


@app.task
async def on_loop(way: str, note: str) -> None:
    if way == "sleeps":
        touch(note)
        await asyncio.sleep(LASTS_S)
    elif way == "asks now and then":
        touch(note)
        for _ in range(int(LASTS_S / 0.01)):
            await asyncio.sleep(0.01)
            pgsched.current_job().raise_if_stopping()
    elif way == "waits for a child":
        touch(note)
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import time; time.sleep({LASTS_S})")
        await child.wait()
    elif way == "ignores every word":
        touch(note)
        until = time.monotonic() + LASTS_S
        while time.monotonic() < until:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
    else:
        begin(way, note)


def once(connection: Any, folder: Path, task: Any, way: str, by_timeout: bool) -> float:
    """Seconds from the order until the job has ended."""
    note = folder / f"began-{time.monotonic_ns()}"
    job = task.using(timeout=timedelta(seconds=1) if by_timeout else None).enqueue(way, str(note))
    while not note.exists():
        time.sleep(0.002)
    began = time.monotonic()
    if by_timeout:
        time.sleep(1.0)
    else:
        time.sleep(0.3)
        connection.execute("select pgsched.cancel(%s)", (job.id,))
    ordered = time.monotonic()
    while not connection.execute("select 1 from pgsched.finished where job_id = %s", (job.id,)).fetchone():
        time.sleep(0.002)
    took = time.monotonic() - ordered
    return float("inf") if time.monotonic() - began >= LASTS_S else took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grace", type=float, default=2.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgsched-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with embedded.start(folder / "data") as server:
            migrate.upgrade(server.dsn)
            app.use(server.dsn)
            environment = os.environ | {"PGSCHED_DSN": server.dsn}
            command = [sys.executable, "-m", "pgsched", "worker", "stopping:app", "--executors", "2", "--grace", str(given.grace)]
            worker = subprocess.Popen([*command, "--log-level", "error"], env=environment, cwd=Path(__file__).parent)
            try:
                with psycopg.connect(server.dsn, autocommit=True) as connection:
                    for _ in range(4):
                        once(connection, folder, in_process, "asks now and then", False)  # (the processes are there)
                    print(f"from the order to the end, in seconds: cancelled / out of time; grace {given.grace} s\n")
                    print(f"{'the handler':28}" + "".join(f"{task.name:>20}" for task in (on_loop, in_thread, in_process)))
                    for way in WAYS:
                        cells = []
                        for task in (on_loop, in_thread, in_process):
                            times = [
                                statistics.median(once(connection, folder, task, way, by_timeout) for _ in range(given.rounds))
                                for by_timeout in (False, True)
                            ]
                            cells.append(" / ".join("its own end" if t == float("inf") else f"{t:.2f}" for t in times))
                        print(f"{way:28}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
            finally:
                worker.terminate()
                worker.wait()
                app.close()


if __name__ == "__main__":
    main()
