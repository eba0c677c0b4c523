"""How a worker process ends: what SIGTERM does to each kind of job, and what the exit code says."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from harness import apps
from harness.running import ENDED, child, hurry, make_trace, wait_until

from pgsched.worker import ExitCode

pytestmark = pytest.mark.one_server


@pytest.fixture
def app(dsn: str) -> Any:
    make_trace(dsn)
    apps.app.use(dsn)
    yield apps.app
    apps.app.close()


def states(connection: Any) -> list[tuple[Any, ...]]:
    return connection.execute("select state, attempt, result from pgsched.jobs order by id").fetchall()


def test_sigterm_lets_running_jobs_end(app: Any, dsn: str, connection: Any) -> None:
    apps.sleeps.enqueue(0.5)
    apps.sleeps_in_thread.enqueue(0.5)
    with child(dsn) as worker:
        wait_until(dsn, "(select count(*) from trace) = 2")
        assert worker.stop() == ExitCode.OK
    assert states(connection) == [("succeeded", 1, "slept"), ("succeeded", 1, "slept")]


def test_after_the_drain_async_jobs_go_back_uncharged_and_threads_are_told(app: Any, dsn: str, connection: Any) -> None:
    apps.sleeps.enqueue(60)
    apps.sleeps_in_thread.enqueue(60)
    with child(dsn, "--drain", "0.2") as worker:
        wait_until(dsn, "(select count(*) from trace) = 2")
        assert worker.stop() == ExitCode.OK
    assert states(connection) == [("ready", 0, None), ("succeeded", 1, "told")]
    assert connection.execute("select state, error from pgsched.job_errors").fetchall() == [("given_back", "its worker was told to stop")]


def test_a_worker_that_drains_keeps_its_sessions_although_it_has_nothing_to_say(app: Any, dsn: str, connection: Any) -> None:
    apps.sleeps.enqueue(4.0)
    sessions = "select array_agg(pid order by pid) from pg_stat_activity where application_name like 'pgsched work %'"
    with child(dsn, "--lease", "1.5", "--kill", "2.5") as worker:
        wait_until(dsn, "(select count(*) from trace) = 1")
        before = connection.execute(sessions).fetchone()
        worker.send(signal.SIGTERM)
        wait_until(dsn, "exists (select from trace where clock_timestamp() > at + interval '3.5 s')")
        assert connection.execute(sessions).fetchone() == before, "the server ends a work session that is silent for 1.5 s"
        assert worker.reap() == ExitCode.OK
    assert states(connection) == [("succeeded", 1, "slept")]


def test_a_second_sigterm_stops_at_once(app: Any, dsn: str, connection: Any) -> None:
    apps.sleeps.enqueue(60)
    with child(dsn) as worker:
        wait_until(dsn, "(select count(*) from trace) = 1")
        assert hurry(worker) == ExitCode.OK
    assert states(connection) == [("ready", 0, None)]


def test_a_thread_that_does_not_return_keeps_its_job_in_running_and_the_exit_code_says_so(app: Any, dsn: str, connection: Any) -> None:
    apps.stuck_in_thread.enqueue(60)
    with child(dsn, "--drain", "0.1") as worker:
        wait_until(dsn, "(select count(*) from trace) = 1")
        assert hurry(worker) == ExitCode.STILL_RUNNING
        assert states(connection) == [("running", 1, None)]
        assert worker.reap() == ExitCode.STILL_RUNNING
    assert connection.execute("select state, attempt, lost_attempts from pgsched.jobs").fetchall() == [("ready", 0, 0)]


def test_a_handler_that_swallows_its_cancellation_is_waited_for_a_while_and_then_said(app: Any, dsn: str, connection: Any) -> None:
    apps.swallows.enqueue(0.6)
    with child(dsn, "--drain", "0.1") as worker:
        wait_until(dsn, "(select count(*) from trace) = 1")
        assert worker.stop() == ExitCode.OK
    assert states(connection) == [("succeeded", 1, "swallowed")]


def test_a_job_that_kills_its_worker_each_time_ends_as_failed_and_its_neighbours_go_on(app: Any, dsn: str, connection: Any) -> None:
    bad = apps.dies.enqueue()
    good = apps.noop.using(delay=None).enqueue(1)
    for _ in range(3):
        with child(dsn) as worker:
            assert worker.reap() == 7
    with child(dsn) as worker:
        wait_until(dsn, ENDED)
        worker.stop()
    rows = connection.execute("select id, state, attempt from pgsched.jobs order by id").fetchall()
    assert rows[0][:2] == (bad.id, "failed")
    reason = connection.execute("select reason from pgsched.jobs where id = %s", (bad.id,)).fetchone()[0]
    assert "died" in reason and "3" in reason
    assert rows[1][0] == good.id


def test_a_worker_that_starts_without_a_database_waits_for_it(app: Any, dsn: str, connection: Any, server: Any) -> None:
    apps.noop.enqueue(1)
    app.close()
    connection.close()
    server.crash()
    try:
        with child(dsn) as worker_without:
            assert worker_without.process is not None and worker_without.process.poll() is None
            server.restart()
            wait_until(dsn, ENDED)
            assert worker_without.stop() == ExitCode.OK
    finally:
        server.restart()


def test_a_restart_of_the_server_harms_no_running_job(app: Any, dsn: str, connection: Any, server: Any) -> None:
    with child(dsn) as worker:
        slow = [apps.sleeps.enqueue(1.0).id for _ in range(5)]
        wait_until(dsn, "(select count(*) from trace) = 5")
        app.close()
        connection.close()
        server.crash()
        server.restart()
        app.use(dsn)
        quick = apps.noop.enqueue(1).id
        wait_until(dsn, ENDED)
        assert worker.stop() == ExitCode.OK
    rows = app.client.run(app.client.calls.list_jobs(None, None, None, None, 50), "", "")
    assert {(row["state"], row["attempt"]) for row in rows} == {("succeeded", 1)}
    assert {row["id"] for row in rows} == {*slow, quick}
