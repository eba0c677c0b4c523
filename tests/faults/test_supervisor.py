"""The supervisor against real processes: kills, freezes, stuck interpreters, grandchildren, crash loops."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.notes import overlap
from harness.protocol import enqueue
from harness.running import ENDED, ended, make_trace, supervised, wait_until

from pgsched.exit_code import ExitCode

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
SHORT = ("--lease", "1", "--kill", "2")

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


@pytest.fixture(autouse=True)
def _traces(dsn: str) -> Any:
    make_trace(dsn)
    apps.app.use(dsn)
    yield
    apps.app.close()


def began(n: int = 1) -> str:
    return f"(select count(*) from trace where what = 'began') >= {n}"


def until(condition: Callable[[], bool], what: str, patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def lost_attempts(connection: Any, job_id: int) -> int:
    row = connection.execute(
        "select lost_attempts from (select job_id, lost_attempts from pgsched.ready union all select job_id, lost_attempts from pgsched.running) x where job_id = %s",
        (job_id,),
    ).fetchone()
    return int(row[0])


@pytest.mark.campaign
def test_after_kill_nine_the_job_runs_elsewhere_and_quickly(dsn: str, connection: Any) -> None:
    rounds = 50 if FULL else 4
    took = []
    with supervised(dsn, "--processes", "2", "--concurrency", "2"):
        for _ in range(rounds):
            wait_until(dsn, "(select count(*) from pgsched.workers where state = 'alive') = 2")
            job = apps.sleeps.enqueue(600)
            wait_until(dsn, f"exists (select from trace where what = 'began' and job_id = {job.id})")
            query = "select w.pid from pgsched.workers w join pgsched.running r on r.worker_id = w.id where r.job_id = %s"
            victim = connection.execute(query, (job.id,)).fetchone()
            assert victim is not None
            killed_at = time.monotonic()
            os.kill(victim[0], signal.SIGKILL)
            wait_until(dsn, f"(select count(*) from trace where what = 'began' and job_id = {job.id}) = 2")
            took.append(time.monotonic() - killed_at)
            # (It was told to cancel, so the next death ends it.)
            connection.execute("update pgsched.running set stop_requested_at = now(), stop_reason = 'cancel'")
            os.kill(connection.execute(query, (job.id,)).fetchone()[0], signal.SIGKILL)  # type: ignore[index]
            wait_until(dsn, ended(job.id))
    print(f"kill -9 to running elsewhere, {rounds} rounds: median {statistics.median(took):.2f} s, slowest {max(took):.2f} s")
    assert connection.execute("select count(*) from pgsched.attempt_log where state = 'lost'").fetchone() == (2 * rounds,)


def test_a_frozen_worker_is_killed_and_its_job_never_runs_twice_at_once(
    dsn: str, connection: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setenv("PGSCHED_TEST_LOG", str(notes))
    job = apps.runs_for.enqueue(4.0)
    with supervised(dsn, *SHORT) as one:
        until(lambda: notes.exists() and bool(notes.read_text()), "it never began")
        frozen = one.worker()
        os.kill(frozen, signal.SIGSTOP)
        wait_until(dsn, ended(job.id))
        assert is_gone(frozen)
        assert one.stop() == ExitCode.OK
    assert connection.execute("select state, attempt from pgsched.jobs").fetchall() == [("succeeded", 1)]
    assert connection.execute("select state from pgsched.attempt_log").fetchall() == [("lost",)]
    assert overlap(notes) < 0


@pytest.mark.parametrize("task", ["holds_the_gil", "blocks_the_loop"])
def test_a_worker_that_is_stuck_is_ended_at_kill_and_the_job_is_charged(dsn: str, connection: Any, task: str) -> None:
    job_id = enqueue(connection, task=task, queue="tests", args={} if task == "holds_the_gil" else {"seconds": 60})[0]
    with supervised(dsn, *SHORT) as one:
        wait_until(dsn, began())
        stuck = one.worker()
        until(lambda: is_gone(stuck), "it was not ended")
        wait_until(dsn, began(2))
        assert lost_attempts(connection, job_id) == 1
    assert connection.execute("select count(*) from trace where what = 'after'").fetchone() == (0,)


def test_an_outage_is_nobodys_fault_even_where_a_handler_has_to_be_killed(
    dsn: str, connection: Any, server: Any
) -> None:
    job_id = enqueue(connection, task="stuck_in_thread", queue="tests", args={"seconds": 60})[0]
    with supervised(dsn, *SHORT) as one:
        wait_until(dsn, began())
        first = one.worker()
        connection.close()
        apps.app.close()
        server.crash()
        until(lambda: is_gone(first), "it was not ended")
        server.restart()
        wait_until(dsn, began(2))
        with psycopg.connect(dsn, autocommit=True) as again:
            assert lost_attempts(again, job_id) == 0


def test_every_grandchild_goes_with_its_worker(dsn: str, connection: Any) -> None:
    enqueue(connection, task="has_children", queue="tests")
    with supervised(dsn, "--drain", "0.1") as one:
        wait_until(dsn, began())
        pids = [
            int(row[0].split()[1]) for row in connection.execute("select what from trace where what like 'child %'")
        ]
        assert len(pids) == 3 and not any(is_gone(pid) for pid in pids)
        os.kill(one.worker(), signal.SIGKILL)
        wait_until(dsn, began(2))
        assert all(is_gone(pid) for pid in pids), "the job runs again, so nothing of its first run may"
        one.process.terminate()
        time.sleep(0.3)
        assert one.stop() == ExitCode.STILL_RUNNING
    left = [int(row[0].split()[1]) for row in connection.execute("select what from trace where what like 'child %'")]
    assert all(is_gone(pid) for pid in left)


def test_workers_die_with_their_supervisor(dsn: str) -> None:
    with supervised(dsn, "--processes", "2") as one:
        wait_until(dsn, "(select count(*) from pgsched.workers where state = 'alive') = 2")
        pids = one.workers()
        assert len(pids) == 2
        one.process.kill()
        until(lambda: all(is_gone(pid) for pid in pids), "a worker outlived its parent", 5.0)


@pytest.mark.parametrize("how", ["segfault", "memory", "exit"])
def test_a_job_that_crashes_its_worker_fails_after_its_limit_and_harms_no_neighbour(
    dsn: str, connection: Any, how: str
) -> None:
    neighbours = [apps.sleeps_a_little.enqueue(1.0).id for _ in range(5)]
    bad = apps.crashes.enqueue(how)
    neighbours += [apps.sleeps_a_little.enqueue(0.1).id for _ in range(5)]
    with supervised(dsn, "--concurrency", "20") as one:
        wait_until(dsn, ENDED)
        assert one.stop() == ExitCode.OK
    rows = connection.execute("select id, state, attempt, reason from pgsched.jobs order by id").fetchall()
    assert {row[0]: row[1:3] for row in rows if row[0] in neighbours} == dict.fromkeys(neighbours, ("succeeded", 1))
    reason = next(row[3] for row in rows if row[0] == bad.id)
    assert next(row[1] for row in rows if row[0] == bad.id) == "failed" and "lost attempts: 3" in reason
    deaths = connection.execute(
        "select job_id, count(*) from pgsched.attempt_log where state = 'lost' group by 1"
    ).fetchall()
    assert {job_id: n for job_id, n in deaths if n > 1} == {bad.id: 3}, "a neighbour was there at the first death only"


def test_a_worker_is_followed_by_a_fresh_one_after_so_many_jobs(dsn: str, connection: Any) -> None:
    apps.app.enqueue_many(apps.noop.bind(i) for i in range(300))
    with supervised(dsn, "--recycle-jobs", "100", "--concurrency", "10") as one:
        first = one.worker()
        until(lambda: is_gone(first), "it was not recycled")
        second = one.worker(other_than=first)
        apps.app.enqueue_many(apps.noop.bind(i) for i in range(5))
        wait_until(dsn, ENDED)
        assert second != first and one.stop() == ExitCode.OK
    assert connection.execute("select distinct state, attempt from pgsched.jobs").fetchall() == [("succeeded", 1)]
    assert connection.execute("select distinct state from pgsched.attempt_log where state <> 'given_back'").fetchall() == []


def test_a_service_that_is_stopped_as_a_whole_lets_its_jobs_end(dsn: str, connection: Any) -> None:
    # (systemd sends SIGTERM to every process of a service, and the supervisor sends it on.)
    apps.sleeps.enqueue(1.5)
    with supervised(dsn) as one:
        wait_until(dsn, began())
        worker = one.worker()
        os.kill(one.process.pid, signal.SIGTERM)
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.3)
        os.kill(worker, signal.SIGTERM)
        assert one.process.wait(30) == ExitCode.OK
    assert connection.execute("select state, attempt from pgsched.jobs").fetchall() == [("succeeded", 1)]
    assert connection.execute("select count(*) from pgsched.attempt_log").fetchone() == (0,)


def test_a_second_sigterm_to_the_supervisor_stops_at_once(dsn: str, connection: Any) -> None:
    apps.sleeps.enqueue(60)
    with supervised(dsn) as one:
        wait_until(dsn, began())
        one.process.terminate()
        time.sleep(0.3)
        assert one.stop() == ExitCode.OK
    assert connection.execute("select state, attempt from pgsched.jobs").fetchall() == [("ready", 0)]


def test_a_lifespan_that_blocks_for_longer_than_the_lease_comes_up(dsn: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGSCHED_TEST_OPENING", "4")
    apps.noop.enqueue(1)
    with supervised(dsn, *SHORT) as one:
        wait_until(dsn, ENDED)
        assert one.stop() == ExitCode.OK


def test_a_worker_whose_lifespan_never_opens_can_be_stopped(dsn: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGSCHED_TEST_NEVER_OPENS", "1")
    with supervised(dsn) as one:
        one.worker()
        assert one.stop() == ExitCode.OK


def test_a_supervisor_whose_starter_ignored_sigchld_still_notices_deaths(dsn: str) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with supervised(dsn) as one:
            signal.signal(signal.SIGCHLD, before)
            first = one.worker()
            os.kill(first, signal.SIGKILL)
            assert one.worker(other_than=first)
            assert one.stop() == ExitCode.OK
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_worker_that_cannot_start_ends_the_supervisor_with_its_error(dsn: str) -> None:
    with supervised(dsn, "--concurrency", "0") as wrong:
        assert wrong.process.wait(20) not in (0, None)


def test_two_workers_of_one_supervisor_share_the_work_and_stop_together(dsn: str, connection: Any) -> None:
    with supervised(dsn, "--processes", "2", "--concurrency", "5") as one:
        wait_until(dsn, "(select count(*) from pgsched.workers where state = 'alive') = 2")
        wait_until(dsn, "exists (select from pgsched.leader)")
        apps.app.enqueue_many(apps.sleeps_a_little.bind(0.05) for _ in range(50))
        wait_until(dsn, ENDED)
        assert one.stop() == ExitCode.OK
    assert connection.execute("select count(distinct worker_id) from pgsched.finished").fetchone() == (2,)
    assert connection.execute("select count(*) from pgsched.leader").fetchone() == (0,)
    assert connection.execute("select end_reason from pgsched.leader_term").fetchall() == [("it was stopped",)]
