"""Where handlers run, and how far each place can stop them: on the loop, in threads, in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import executing
from harness.running import ENDED, ended, make_trace, wait_until, work_until, working

import pgsched
from pgsched.worker import ExitCode

pytestmark = pytest.mark.one_server

GRACE = timedelta(milliseconds=300)


@pytest.fixture
def app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    make_trace(dsn)
    executing.app.use(dsn)
    yield executing.app
    executing.app.close()


def rows(connection: Any, what: str = "state, reason, result") -> list[Any]:
    return connection.execute(f"select {what} from pgsched.jobs order by id").fetchall()


def pids(connection: Any, what: str) -> list[int]:
    found = connection.execute("select what from trace where what like %s order by id", (f"{what} %",)).fetchall()
    return [int(text.split()[1]) for (text,) in found]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_of_its_own_runs_one_job_after_the_other_and_its_results_and_errors_come_back(
    app: Any, dsn: str, connection: Any
) -> None:
    for value in ({"a": [1, None, "ü"]}, "two"):
        executing.in_process.enqueue(value)
    executing.fails_in_process.enqueue("boom")
    assert work_until(app, dsn, ENDED, executors=1) is ExitCode.OK
    (one, two, bad) = rows(connection)
    assert one[2][0] == {"a": [1, None, "ü"]} and one[2][2:] == ["in_process", 1, True]
    assert one[2][1] == two[2][1] != os.getpid()
    assert bad == ("failed", "LookupError: boom", None)
    attempts = connection.execute(
        "select state, error_type, error, traceback like '%%raise LookupError(message)%%' from pgsched.job_errors order by attempt"
    ).fetchall()
    assert attempts == [(state, "LookupError", "boom", True) for state in ("retried", "retried", "failed")]
    assert not lives(one[2][1]), "the process ends with its worker"


def test_a_worker_can_run_all_def_tasks_in_processes(app: Any, dsn: str, connection: Any) -> None:
    executing.by_default.enqueue()
    work_until(app, dsn, ENDED, executor="process", executors=1)
    executing.by_default.enqueue()
    work_until(app, dsn, ENDED)
    (elsewhere, here) = [result for (result,) in rows(connection, "result")]
    assert here == os.getpid() != elsewhere


@pytest.mark.parametrize("way", ["sleep", "spin", "hold_the_gil", "ignore", "swallow", "with_children"])
def test_a_cancelled_job_in_a_process_ends_within_its_grace_whatever_it_does(
    app: Any, dsn: str, connection: Any, way: str
) -> None:
    job = executing.stubborn.enqueue(way)
    with working(app, dsn, executors=1, grace=GRACE) as worker:
        worker.wait_until("exists (select from trace where what like 'began %')")
        assert job.cancel("enough") == {job.id: "running"}
        worker.wait_until(ended(job.id))
        after = executing.in_process.enqueue("after")
        worker.wait_until(ended(after.id))
    assert rows(connection)[0] == ("cancelled", "cancelled: enough", None)
    assert rows(connection)[1][0] == "succeeded"
    children = pids(connection, "child")
    assert len(children) == (3 if way == "with_children" else 0)
    assert not [pid for pid in children if lives(pid)], "every child of a killed process goes with it"


@pytest.mark.parametrize("way", ["spin", "ignore"])
def test_a_timeout_in_a_process_ends_the_attempt_and_the_retry_may_begin_only_then(
    app: Any, dsn: str, connection: Any, way: str
) -> None:
    executing.stubborn_in_time.enqueue(way)
    work_until(app, dsn, ENDED, executors=2, grace=GRACE)
    assert rows(connection, "state, reason, attempt") == [
        ("failed", "TimeoutError: the attempt took longer than its timeout of 0:00:01", 2)
    ]
    overlap = connection.execute(
        "select count(*) from pgsched.job_errors a, pgsched.job_errors b where b.attempt > a.attempt and b.started_at < a.ended_at"
    ).fetchone()
    assert overlap == (0,)


def test_time_in_front_of_a_busy_process_does_not_count_for_the_timeout(app: Any, dsn: str, connection: Any) -> None:
    executing.stubborn.using(priority=0).enqueue("sleep", 1.5)
    executing.in_process.using(timeout=timedelta(seconds=1)).enqueue(1)
    work_until(app, dsn, ENDED, executors=1)
    assert [state for (state,) in rows(connection, "state")] == ["succeeded", "succeeded"]


def test_a_job_that_waits_for_a_process_is_cancelled_without_ever_running(app: Any, dsn: str, connection: Any) -> None:
    first = executing.stubborn.enqueue("sleep", 60)
    with working(app, dsn, executors=1, grace=GRACE) as worker:
        worker.wait_until(f"exists (select from trace where job_id = {first.id})")
        second = executing.stubborn.enqueue("sleep", 60)
        worker.wait_until("(select count(*) from pgsched.running) = 2")
        second.cancel()
        worker.wait_until(ended(second.id))
        first.cancel()
        worker.wait_until(ended(first.id))
    assert [state for (state,) in rows(connection, "state")] == ["cancelled", "cancelled"]
    assert connection.execute("select count(*) from trace where job_id = %s", (second.id,)).fetchone() == (0,)


@pytest.mark.parametrize("task", ["on_loop", "in_thread"])
def test_a_cancelled_job_of_the_worker_itself_is_told_within_a_second_and_ends_as_cancelled(
    app: Any, dsn: str, connection: Any, task: str
) -> None:
    job = executing.on_loop.enqueue() if task == "on_loop" else executing.in_thread.enqueue("asks")
    with working(app, dsn) as worker:
        worker.wait_until("exists (select from trace)")
        at = time.monotonic()
        job.cancel()
        worker.wait_until(ended(job.id))
        assert time.monotonic() - at < 10  # (it would have slept for a minute)
    assert rows(connection) == [("cancelled", "cancelled", None)]


def test_a_cancel_whose_notification_is_lost_is_found_by_the_poll(app: Any, dsn: str, connection: Any) -> None:
    job = executing.on_loop.enqueue()
    with working(app, dsn) as worker:
        worker.wait_until("exists (select from trace)")
        connection.execute(  # (as cancel() does, without a word)
            "update pgsched.running set stop_requested_at = clock_timestamp(), stop_reason = 'cancel' where job_id = %s", (job.id,)
        )
        worker.wait_until(ended(job.id))
    assert rows(connection)[0][0] == "cancelled"


def test_a_timed_out_thread_is_shown_as_cancelling_keeps_its_slot_and_is_believed_when_it_returns(
    app: Any, dsn: str, connection: Any
) -> None:
    job = executing.in_thread_in_time.enqueue("hold_the_gil", 0.01)
    stuck = executing.in_thread_in_time.enqueue("sleep", 3)
    waiting = executing.noop_in_thread.using(priority=9).enqueue()
    with working(app, dsn, concurrency=1, poll=timedelta(milliseconds=100)) as worker:
        worker.wait_until(f"(select state = 'cancelling' and reason = 'timeout' from pgsched.jobs where id = {stuck.id})")
        assert rows(connection, "state")[2] == ("ready",), "its slot counts as taken until the thread returns"
        worker.wait_until(ended(job.id, stuck.id, waiting.id))
    assert [state for (state,) in rows(connection, "state")] == ["succeeded"] * 3


def test_a_timeout_on_the_loop_and_in_a_thread_that_asks_fails_the_attempt(app: Any, dsn: str, connection: Any) -> None:
    executing.on_loop_in_time.enqueue()
    executing.in_thread_in_time.enqueue("asks")
    work_until(app, dsn, ENDED)
    reason = "TimeoutError: the attempt took longer than its timeout of 0:00:01"
    assert rows(connection, "state, reason, attempt") == [("failed", reason, 3), ("failed", reason, 1)]


def test_a_cancel_replaces_a_timeout_and_never_the_reverse(app: Any, dsn: str, connection: Any) -> None:
    job = executing.in_thread_in_time.enqueue("sleep", 2.5)
    with working(app, dsn, poll=timedelta(milliseconds=100)) as worker:
        worker.wait_until(f"(select state = 'cancelling' and reason = 'timeout' from pgsched.jobs where id = {job.id})")
        assert job.cancel() == {job.id: "cancelling"}
        worker.wait_until(ended(job.id))
    assert rows(connection)[0][0] == "cancelled"


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [
        ("exit", "failed", "SystemExit: 3"),
        ("os._exit", "failed", "ProcessDied: the process in which it ran has ended under it: exit code 7"),
        ("segfault", "failed", "ProcessDied: the process in which it ran has ended under it: killed by SIGSEGV"),
        ("forks", "succeeded", None),
        ("threads", "succeeded", None),
        ("unpicklable", "failed", "Unpicklable: <unlocked _thread.lock object"),
        ("no JSON", "failed", 'task "misbehaves" returned the object'),
    ],
)
def test_what_a_handler_in_a_process_should_not_do_ends_its_own_attempt_alone(
    app: Any, dsn: str, connection: Any, how: str, state: str, reason: str | None
) -> None:
    bad = executing.misbehaves.using(priority=0).enqueue(how)
    good = [executing.in_process.enqueue(i) for i in range(20)]
    work_until(app, dsn, ENDED, executors=2)
    found = {row[0]: row[1:] for row in rows(connection, "id, state, reason, result")}
    assert found[bad.id][0] == state
    assert (found[bad.id][1] or "").startswith(reason or "")
    assert [found[job.id][0] for job in good] == ["succeeded"] * 20
    if how == "forks":
        assert found[bad.id][2] == "forks", "the copy's answer counts for nothing"


def test_what_a_job_prints_in_a_process_is_kept_with_its_error_or_dropped(app: Any, dsn: str, connection: Any, capfd: Any) -> None:
    executing.prints_and_fails.enqueue("héllo")
    executing.prints_and_fails.enqueue("x" * 2**19, 40)
    executing.prints_into_nothing.enqueue(100)
    work_until(app, dsn, ENDED, executors=1)
    assert [state for (state,) in rows(connection, "state")] == ["failed", "failed", "succeeded"]
    small, large = (text for (text,) in connection.execute("select traceback from pgsched.job_errors order by job_id"))
    assert small.endswith("ValueError: after that\n\nIt has printed:\na child\nhéllo\n")
    assert "bytes left out] ...xxxx" in large and len(large) < 20_000
    assert "xxxx" not in capfd.readouterr().out


def test_large_arguments_and_results_pass_through_a_process(app: Any, dsn: str, connection: Any) -> None:
    executing.takes.enqueue("x" * 1_000_000)
    executing.large.enqueue(1)
    work_until(app, dsn, ENDED, executors=1)
    assert rows(connection, "state")[0] == ("succeeded",) and rows(connection, "result")[0] == (1_000_000,)


def test_a_task_that_another_process_cannot_find_fails_with_that_reason(app: Any, dsn: str, connection: Any) -> None:
    executing.hidden.enqueue()
    work_until(app, dsn, ENDED, executors=1)
    state, reason, _ = rows(connection)[0]
    assert state == "failed"
    assert reason.startswith('TaskError: task "hidden" cannot run in a process of its own: its function harness.executing._hidden.<locals>')


def test_a_process_is_followed_by_a_fresh_one_after_its_jobs(app: Any, dsn: str, connection: Any) -> None:
    for i in range(6):
        executing.in_process.enqueue(i)
    work_until(app, dsn, ENDED, executors=1, executor_recycle_jobs=2)
    used = [result[1] for (result,) in rows(connection, "result")]
    assert len(set(used)) >= 3 and all(used.count(pid) <= 2 for pid in used)


def test_a_process_that_holds_too_much_memory_is_followed_by_a_fresh_one(app: Any, dsn: str, connection: Any) -> None:
    for i in range(3):
        executing.in_process.enqueue(i)
    work_until(app, dsn, ENDED, executors=1, executor_recycle_mb=1)
    assert len({result[1] for (result,) in rows(connection, "result")}) == 3


def test_what_waits_in_a_chunk_behind_a_crash_runs_elsewhere_and_is_charged_nothing(app: Any, dsn: str, connection: Any) -> None:
    for i in range(300):  # (now they are known to be short, and go in chunks)
        executing.in_process.enqueue(i)
        if i % 50 == 49:
            executing.misbehaves.enqueue("segfault")
    work_until(app, dsn, ENDED, executors=2)
    counts = connection.execute("select task, state, max(attempt), count(*) from pgsched.jobs group by 1, 2 order by 1").fetchall()
    assert counts == [("in_process", "succeeded", 1, 300), ("misbehaves", "failed", 1, 6)]


def test_processes_die_with_their_worker_however_it_ends(app: Any, dsn: str, connection: Any) -> None:
    from pgsched.supervisor.child import ChildWorker

    here = Path(__file__).parent.parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    executing.stubborn.enqueue("ignore")
    worker = ChildWorker(["worker", "harness.executing:app", "--executors", "1"], dsn, quiet=True)
    worker.start()
    wait_until(dsn, "exists (select from trace where what like 'began %')")
    worker.send(signal.SIGKILL)
    worker.reap()
    (pid,) = pids(connection, "began")
    assert not lives(pid)
    assert rows(connection, "state, lost_attempts") == [("ready", 1)], "it had begun, and that was known"


def test_stopping_a_worker_gives_back_what_runs_in_processes(app: Any, dsn: str, connection: Any) -> None:
    executing.stubborn.enqueue("ignore")
    executing.stubborn.enqueue("sleep")
    executing.stubborn.enqueue("sleep")  # (waits for a process)
    with working(app, dsn, executors=2, grace=GRACE, drain=timedelta(milliseconds=100)) as worker:
        worker.wait_until("(select count(*) from trace) = 2")
    assert worker.code is ExitCode.OK
    assert rows(connection, "state, attempt") == [("ready", 0)] * 3
