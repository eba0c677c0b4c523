"""Executor processes that come and go leave nothing behind, and the worker's memory does not grow.

Short form every day; PGSCHED_CAMPAIGN=1 runs 1,000 processes and 100,000 jobs of each kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import executing
from harness.running import ENDED, wait_until

from pgsched.supervisor.child import ChildWorker
from pgsched.supervisor.surroundings import resident_mb

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
CYCLES, JOBS = (1_000, 100_000) if FULL else (25, 5_000)

pytestmark = [pytest.mark.faults, pytest.mark.campaign, pytest.mark.one_server]


@contextmanager
def worker(dsn: str, *options: str) -> Iterator[ChildWorker]:
    here = Path(__file__).parent.parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    made = ChildWorker(["worker", "harness.executing:app", *options], dsn, quiet=True)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def run(dsn: str, *bound: Any) -> None:
    executing.app.use(dsn)
    executing.app.enqueue_many(bound)
    executing.app.close()
    wait_until(dsn, ENDED, patience_s=900)


def shared() -> set[str]:
    """Named shared memory that is no server's."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(("PostgreSQL", "pgsched-test"))}


def held(pid: int) -> dict[str, int]:
    """What a process holds of the system: descriptors (of shared memory among them), threads, children that were not reaped."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    children = sum(len(task.read_text().split()) for task in Path(f"/proc/{pid}/task").glob("*/children"))
    return {
        "descriptors": len(links),
        "shared memory": sum("memfd" in link for link in links),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "children": children,
    }


def test_processes_that_come_and_go_leave_nothing_behind(dsn: str, connection: Any) -> None:
    with worker(dsn, "--executors", "2", "--executor-recycle-jobs", "1") as one:
        run(dsn, *(executing.in_process.bind(i) for i in range(4)))
        assert one.process is not None
        before = held(one.process.pid)
        shm = shared()
        run(dsn, *(executing.in_process.bind(i) for i in range(CYCLES)))
        after = held(one.process.pid)
        print(f"{CYCLES} processes: {before} before, {after} after")
        assert {name: after[name] - before[name] for name in before} == {name: pytest.approx(0, abs=2) for name in before}
        assert shared() <= shm
        assert one.stop() == 0
    used = {result[1] for (result,) in connection.execute("select result from pgsched.finished").fetchall()}
    assert len(used) > CYCLES * 0.9  # (numbers of processes may come again)
    assert not [pid for pid in used if "pgsched" in _command(pid)]


@pytest.mark.parametrize("kind", ["noop_in_process", "noop_in_thread", "noop_on_loop"])
def test_the_memory_of_a_worker_does_not_grow_with_the_jobs_that_it_has_run(dsn: str, kind: str) -> None:
    task = executing.app.tasks[kind]
    with worker(dsn, "--executors", "2") as one:
        assert one.process is not None
        held_mb = []
        for _ in range(5):
            run(dsn, *(task.bind(i) for i in range(JOBS // 5)))
            held_mb.append(resident_mb(one.process.pid))
        print(f"{kind}: {held_mb} MB after each fifth of {JOBS} jobs")
        assert held_mb[-1] - held_mb[1] <= 4


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
