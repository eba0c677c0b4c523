"""What handlers do that nobody should: each such attempt ends alone, and its worker, its neighbours and its place go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import executing, slow_import
from harness.running import ENDED, child, ended, hurry, make_trace, wait_until, work_until, working

import pgsched
from pgsched.supervisor.child import ChildWorker
from pgsched.worker import ExitCode

pytestmark = pytest.mark.one_server

GRACE = timedelta(seconds=1)
TARGET = "harness.executing:app"
LATE = "TimeoutError: the attempt took longer than its timeout of 0:00:01"


@pytest.fixture
def app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    make_trace(dsn)
    executing.app.use(dsn)
    yield executing.app
    executing.app.close()


def rows(connection: Any, what: str = "state, reason") -> list[Any]:
    return connection.execute(f"select {what} from pgsched.jobs order by id").fetchall()


def traces(connection: Any, job: Any) -> list[str]:
    return [what for (what,) in connection.execute("select what from trace where job_id = %s order by id", (job.id,))]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def leave(worker: ChildWorker) -> int:
    """Let it stop; its exit code."""
    assert not worker.has_ended()
    worker.send(signal.SIGTERM)
    return hurry(worker)


@pytest.mark.parametrize("task", ["unspeakable_in_thread", "unspeakable_on_loop", "unspeakable_in_process"])
def test_an_exception_that_cannot_be_put_into_words_fails_its_job_and_frees_its_slot(
    app: Any, dsn: str, connection: Any, task: str
) -> None:
    getattr(executing, task).enqueue()
    executing.in_process.enqueue("after")
    assert work_until(app, dsn, ENDED, concurrency=1, executors=1) is ExitCode.OK
    (bad, after) = rows(connection)
    assert bad[0] == "failed" and bad[1].startswith("Unspeakable")
    assert after == ("succeeded", None)


def test_an_exit_in_a_task_of_a_handlers_own_fails_that_attempt_alone(app: Any, dsn: str, connection: Any) -> None:
    others = [executing.on_loop.enqueue(2), executing.in_thread.enqueue("sleep", 2)]
    with child(dsn, "--executors", "1", target=TARGET) as worker:
        wait_until(dsn, "(select count(*) from trace) = 2")
        bad = executing.exits_in_a_task.enqueue()
        wait_until(dsn, ended(bad.id, *(job.id for job in others)))
        assert leave(worker) == ExitCode.OK
    found = rows(connection, "state, reason, attempt")
    assert found[:2] == [("succeeded", None, 1)] * 2, "the others ran on beside it"
    assert found[2] == ("failed", "RuntimeError: SystemExit in a task of a handler: 3", 1)


def test_what_ended_well_in_a_chunk_before_its_process_died_has_succeeded(app: Any, dsn: str, connection: Any) -> None:
    with working(app, dsn, executors=1, concurrency=300) as worker:
        app.enqueue_many([executing.short.bind(i) for i in range(400)])  # (now they are known to be short, and go in chunks)
        worker.wait_until(ENDED)
        app.enqueue_many([executing.short.bind(i, i == 40) for i in range(100)])
        worker.wait_until(ENDED)
    query = "select state, reason, max(attempt), count(*) from pgsched.jobs group by 1, 2 order by 1"
    assert connection.execute(query).fetchall() == [
        ("failed", "ProcessDied: the process in which it ran has ended under it: exit code 7", 1, 1),
        ("succeeded", None, 1, 499),
    ]


@pytest.mark.parametrize("what", ["a copy", "a program"])
def test_what_a_process_leaves_behind_when_it_dies_is_ended_before_its_place_is_used_again(
    app: Any, dsn: str, connection: Any, what: str
) -> None:
    bad = executing.dies_and_leaves.enqueue(what)
    with working(app, dsn, executors=1) as worker:
        worker.wait_until(ended(bad.id))  # (what it has left would live for two minutes)
        (trace,) = traces(connection, bad)
        assert not lives(int(trace.split()[1]))
        after = executing.in_process.enqueue("after")
        worker.wait_until(ended(after.id))
    assert rows(connection) == [
        ("failed", "ProcessDied: the process in which it ran has ended under it: exit code 9"),
        ("succeeded", None),
    ]


@pytest.mark.parametrize("task", ["forks_in_transaction", "forks_in_transaction_in_process"])
def test_the_copy_of_a_transactional_handler_commits_nothing(app: Any, dsn: str, connection: Any, task: str) -> None:
    connection.execute("create table effect (i int, job_id bigint)")
    with child(dsn, "--executors", "1", target=TARGET) as worker:
        bad = getattr(executing, task).enqueue(1)
        wait_until(dsn, ended(bad.id))
        after = executing.writes.enqueue(2)
        wait_until(dsn, ended(after.id))
        assert leave(worker) == ExitCode.OK
    assert rows(connection) == [("failed", "ValueError: no"), ("succeeded", None)]
    assert connection.execute("select i from effect").fetchall() == [(2,)]


def test_the_copy_of_a_handler_that_returns_does_not_hide_that_the_handler_is_late(
    app: Any, dsn: str, connection: Any
) -> None:
    executing.forks_in_time.enqueue()
    executing.in_process.enqueue("after")
    work_until(app, dsn, ENDED, executors=1, grace=GRACE)
    assert rows(connection) == [("failed", LATE), ("succeeded", None)]


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_middleware_around_a_job_in_a_process_ends_with_its_time_and_by_a_cancel(
    app: Any, dsn: str, connection: Any, where: str, how: str
) -> None:
    with working(executing.surrounded, dsn, executors=1, grace=GRACE) as worker:
        busy = executing.keeps_it_busy.enqueue()  # (time in front of a process does not count)
        worker.wait_until("exists (select from trace)")
        task = {"before": executing.lingers_before, "after": executing.lingers_after}[where]
        job = (task.using(timeout=executing.SECOND) if how == "timeout" else task).enqueue()
        if how == "cancel":
            worker.wait_until("exists (select from trace where what = 'lingers')")
            job.cancel("enough")
        worker.wait_until(ended(busy.id, job.id))
    assert rows(connection)[1] == (("failed", LATE) if how == "timeout" else ("cancelled", "cancelled: enough"))
    assert traces(connection, job) == {"before": ["lingers"], "after": ["runs", "lingers"]}[where]


def test_a_handler_that_ignores_the_ends_of_children_leaves_no_job_running(app: Any, dsn: str, connection: Any) -> None:
    with child(dsn, "--executors", "2", target=TARGET) as worker:
        wait_until(dsn, ended(executing.in_process.enqueue("first").id))
        wait_until(dsn, ended(executing.ignores_children.enqueue().id))
        for _ in range(3):
            executing.misbehaves.enqueue("os._exit")
            executing.in_process.enqueue("after")
        wait_until(dsn, ENDED)
        assert leave(worker) == ExitCode.OK
    assert rows(connection, "state") == [("succeeded",)] * 2 + [("failed",), ("succeeded",)] * 3


def test_a_handler_that_waits_for_any_child_leaves_no_job_running(app: Any, dsn: str, connection: Any) -> None:
    with child(dsn, "--executors", "1", target=TARGET) as worker:
        wait_until(dsn, ended(executing.in_process.enqueue("first").id))
        thief = executing.steals_an_end.enqueue()
        wait_until(dsn, f"exists (select from trace where job_id = {thief.id})")
        for _ in range(2):
            executing.misbehaves.enqueue("os._exit")
            executing.in_process.enqueue("after")
        wait_until(dsn, ENDED)
        assert leave(worker) == ExitCode.OK
    assert rows(connection, "state") == [("succeeded",)] * 2 + [("failed",), ("succeeded",)] * 2


def test_an_alarm_that_a_handler_leaves_behind_does_not_hit_the_next_job(app: Any, dsn: str, connection: Any) -> None:
    executing.leaves_an_alarm.enqueue()
    job = executing.stubborn.enqueue("sleep", 2)
    work_until(app, dsn, ENDED, executors=1)
    (first, second) = rows(connection, "state, reason, result")
    assert first[0] == "succeeded" and second[:2] == ("succeeded", None)
    assert traces(connection, job) == [f"began {first[2]}"], "it ran in the same process"


def test_a_cancelled_job_that_waits_in_a_chunk_is_told_when_it_begins_rather_than_killed(
    app: Any, dsn: str, connection: Any
) -> None:
    with working(app, dsn, executors=1, concurrency=300, grace=GRACE) as worker:
        app.enqueue_many([executing.naps.bind() for _ in range(400)])  # (now they are known to be short, and go in chunks)
        worker.wait_until(ENDED)
        busy = executing.stubborn.enqueue("sleep", 2)
        worker.wait_until(f"exists (select from trace where job_id = {busy.id})")
        jobs = app.enqueue_many([executing.naps.bind(seconds) for seconds in (3, 60, 0)])
        worker.wait_until(f"exists (select from trace where job_id = {jobs[0].id})")
        assert worker.worker is not None
        (member,) = worker.worker._executor.processes._members
        assert [queued.work.job_id for queued in member.chunk] == [jobs[0].id, jobs[1].id]
        assert jobs[1].cancel("enough") == {jobs[1].id: "running"}
        worker.wait_until(ended(*(job.id for job in jobs)))
    (first, second, third) = rows(connection, "state, reason, result")[-3:]
    assert second == ("cancelled", "cancelled: enough", None)
    assert first == third and first[0] == "succeeded", "the process lives on"


def test_a_job_that_is_cancelled_while_its_module_is_imported_is_told_rather_than_killed(
    app: Any, dsn: str, connection: Any
) -> None:
    job = slow_import.comes_late.enqueue()
    with working(app, dsn, executors=1, grace=GRACE) as worker:
        worker.wait_until("exists (select from trace where what like 'imports %')")
        job.cancel("enough")
        worker.wait_until(ended(job.id))
        after = executing.in_process.enqueue("after")
        worker.wait_until(ended(after.id))
    (late, used) = rows(connection, "state, reason, result")
    assert late == ("cancelled", "cancelled: enough", None)
    (pid,) = connection.execute("select substr(what, 9)::int from trace where what like 'imports %'").fetchone()
    assert used[2][1] == pid, "the process lives on"


def test_jobs_that_have_ended_long_before_their_timeout_are_not_remembered(app: Any, dsn: str, connection: Any) -> None:
    soon = executing.noop_on_loop.using(timeout=timedelta(hours=1))
    app.enqueue_many([soon.bind(i) for i in range(5_000)])
    with working(app, dsn, concurrency=100) as worker:
        worker.wait_until(ENDED)
        assert worker.worker is not None
        assert len(worker.worker._executor._deadlines) < 500
    assert connection.execute("select count(*) from pgsched.jobs where state = 'succeeded'").fetchone() == (5_000,)
