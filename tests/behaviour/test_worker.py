"""What a worker does with jobs, in this process against a real server."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.running import ENDED, ended, work_until, working

import pgsched
from pgsched.worker import ExitCode

pytestmark = pytest.mark.one_server


@pytest.fixture
def app(dsn: str) -> Any:
    apps.app.use(dsn)
    yield apps.app
    apps.app.close()


def states(connection: psycopg.Connection[Any]) -> dict[int, tuple[str, str | None, Any]]:
    rows = connection.execute("select id, state, reason, result from pgsched.jobs order by id").fetchall()
    return {row[0]: row[1:] for row in rows}


def test_tasks_on_the_loop_and_in_threads_run_and_keep_their_results(app: Any, dsn: str, connection: Any) -> None:
    value = apps.echo.enqueue({"a": [1, None, "ü"]})
    thread = apps.about_itself.enqueue()
    assert work_until(app, dsn, ENDED) is ExitCode.OK
    assert states(connection)[value.id] == ("succeeded", None, {"a": [1, None, "ü"]})
    assert states(connection)[thread.id][2] == ["about_itself", 1, {"opened": "once"}, True, "middleware"]


def test_a_failed_attempt_is_retried_and_its_error_kept(app: Any, dsn: str, connection: Any) -> None:
    good, bad = apps.fails_twice.enqueue(), apps.fails.enqueue("boom")
    work_until(app, dsn, ENDED)
    assert states(connection)[good.id] == ("succeeded", None, 3)
    assert states(connection)[bad.id] == ("failed", "RuntimeError: boom", None)
    rows = connection.execute(
        "select attempt, state, error_type, error, traceback like '%%raise RuntimeError(message)%%' from pgsched.job_errors "
        "where job_id = %s order by attempt",
        (bad.id,),
    ).fetchall()
    assert rows == [(1, "retried", "RuntimeError", "boom", True), (2, "retried", "RuntimeError", "boom", True), (3, "failed", "RuntimeError", "boom", True)]


def test_what_cannot_be_stored_fails_the_job_with_that_reason_and_harms_no_neighbour(app: Any, dsn: str, connection: Any) -> None:
    bad = [apps.returns_no_json.enqueue(what).id for what in ("object", "nan", "nul", "surrogate")]
    good = [apps.echo.enqueue(i).id for i in range(20)]
    nul = apps.fails.using(max_attempts=1).enqueue("x").id
    work_until(app, dsn, ENDED)
    found = states(connection)
    for job_id in bad:
        assert found[job_id][0] == "failed"
        assert re.match(r'task "returns_no_json" returned the (object|float|str) .*; annotate a return type', found[job_id][1])
    assert [found[job_id] for job_id in good] == [("succeeded", None, i) for i in range(20)]
    assert found[nul][0] == "failed"


def test_what_only_the_server_finds_not_storable_fails_the_job_and_harms_no_neighbour(app: Any, dsn: str, connection: Any) -> None:
    jobs = [apps.measures.enqueue(value).id for value in ("1", "inf", "2", "-inf", "3")]
    work_until(app, dsn, ENDED)
    found = [states(connection)[job_id] for job_id in jobs]
    assert [result for _, _, result in found] == [{"value": 1}, None, {"value": 2}, None, {"value": 3}]
    for state, reason, _ in (found[1], found[3]):
        assert state == "failed" and reason == "its outcome could not be stored: invalid input syntax for type json"


def test_an_error_text_with_nul_and_surrogates_is_stored_cleaned(app: Any, dsn: str, connection: Any) -> None:
    job = pgsched.App("other")

    @job.task(name="cursed")
    async def cursed() -> None:
        raise ValueError("a\0b\ud800")

    job.use(dsn)
    cursed.enqueue()
    work_until(job, dsn, ENDED)
    assert connection.execute("select error from pgsched.job_errors").fetchall() == [("a\\0b\\ud800",)]


def test_sys_exit_in_a_handler_ends_the_attempt_and_not_the_worker(app: Any, dsn: str, connection: Any) -> None:
    bad = [apps.exits.enqueue("sys.exit").id, apps.exits.enqueue("interrupt").id]
    good = apps.echo.enqueue(1).id
    assert work_until(app, dsn, ENDED) is ExitCode.OK
    found = states(connection)
    assert [found[i][:2] for i in bad] == [("failed", "SystemExit: 3"), ("failed", "KeyboardInterrupt")]
    assert found[good][0] == "succeeded"


def test_an_attempt_that_outlasts_its_timeout_is_cancelled(app: Any, dsn: str, connection: Any) -> None:
    job = apps.too_slow.enqueue()
    work_until(app, dsn, ENDED)
    assert states(connection)[job.id][1] == "TimeoutError: the attempt took longer than its timeout of 0:00:00.050000"


def test_arguments_that_no_longer_fit_fail_the_job_at_once(app: Any, dsn: str, connection: Any) -> None:
    job_id = connection.execute(
        "select pgsched.enqueue('sleeps', '{\"seconds\": \"soon\"}', 'tests', max_attempts => 10)"
    ).fetchone()[0]
    work_until(app, dsn, ENDED)
    state, reason, _ = states(connection)[job_id]
    assert state == "failed" and "seconds is 'soon'" in reason and "has the code changed" in reason
    assert connection.execute("select count(*) from pgsched.job_errors").fetchone()[0] == 1


def test_a_secret_argument_reaches_the_handler_and_nobody_else(app: Any, dsn: str, connection: Any) -> None:
    job = apps.keeps_a_secret.enqueue("ann", pgsched_secret("hush-hush"))
    work_until(app, dsn, ENDED)
    assert states(connection)[job.id] == ("succeeded", None, "ann9")
    shown = connection.execute("select args from pgsched.jobs").fetchone()[0]
    assert shown == {"user": "ann", "password": "***"}
    assert connection.execute("select args ->> 'password' from pgsched.job").fetchone()[0] == "hush-hush"


def pgsched_secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)


def test_a_job_of_an_unknown_task_waits_unharmed_and_does_not_block_its_lane(app: Any, dsn: str, connection: Any) -> None:
    unknown = connection.execute("select pgsched.enqueue('of_the_next_deploy', queue => 'tests', priority => 0)").fetchone()[0]
    good = [apps.noop.enqueue(i).id for i in range(5)]
    work_until(app, dsn, ended(*good))
    row = connection.execute("select state, attempt, reason from pgsched.jobs where id = %s", (unknown,)).fetchone()
    assert row[:2] in (("held", 0), ("ready", 0))


def test_a_later_job_runs_when_its_time_has_come_and_an_expired_one_never(app: Any, dsn: str, connection: Any) -> None:
    later = apps.echo.using(delay=timedelta(milliseconds=300)).enqueue("later")
    never = apps.echo.using(delay=timedelta(hours=1)).enqueue("much later")
    expired = connection.execute(
        "select pgsched.enqueue('echo', '{\"value\": 1}', 'tests', expires_at => clock_timestamp() - interval '1 s')"
    ).fetchone()[0]
    work_until(app, dsn, ended(later.id, expired))
    found = states(connection)
    assert found[later.id][0] == "succeeded"
    assert found[expired] == ("skipped", "expired", None)
    assert found[never.id][0] == "scheduled"
    row = connection.execute("select finished_at - created_at >= interval '300 ms' from pgsched.jobs where id = %s", (later.id,))
    assert row.fetchone()[0]


def test_jobs_run_by_priority_and_within_it_in_the_order_of_entry(app: Any, dsn: str, connection: Any) -> None:
    low = [apps.noop.using(priority=9).enqueue(i).id for i in range(3)]
    high = [apps.noop.using(priority=0).enqueue(i).id for i in range(3)]
    work_until(app, dsn, ENDED, concurrency=1, sessions=1)
    order = [row[0] for row in connection.execute("select job_id from pgsched.finished order by claim_id").fetchall()]
    assert order == high + low


def test_a_lost_notification_is_made_good_by_the_poll(app: Any, dsn: str, connection: Any) -> None:
    first = apps.noop.enqueue(0)
    with working(app, dsn, poll=timedelta(milliseconds=100)) as worker:
        worker.wait_until(ended(first.id))
        connection.execute("select pgsched.enqueue('noop', queue => 'tests', notify => false)")
        worker.wait_until(ENDED)


def test_a_notification_wakes_a_worker_before_its_poll(app: Any, dsn: str, connection: Any) -> None:
    first = apps.noop.enqueue(0)
    with working(app, dsn, poll=timedelta(seconds=60)) as worker:
        worker.wait_until(ended(first.id))
        worker.wait_until("exists (select from pg_stat_activity where application_name like 'pgsched listener%' and query ilike 'listen%')")
        for i in range(3):
            second = apps.noop.enqueue(i)
            worker.wait_until(ended(second.id))


def test_a_worker_whose_sessions_are_all_ended_by_the_server_goes_on(app: Any, dsn: str, connection: Any) -> None:
    with working(app, dsn) as worker:
        for i in range(5):
            slow = apps.sleeps_a_little.enqueue(0.3)
            worker.wait_until(f"exists (select from pgsched.running where job_id = {slow.id})")
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched %'")
            quick = apps.echo.enqueue(i)
            worker.wait_until(ended(slow.id, quick.id))
            assert connection.execute("select distinct attempt from pgsched.finished").fetchall() == [(1,)]
    assert worker.code is ExitCode.OK
    assert connection.execute("select generation >= 1 from pgsched.worker").fetchall() == [(True,)]


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_worker_that_has_nothing_to_do_goes_on_by_itself_when_its_lease_session_was_lost(
    app: Any, dsn: str, connection: Any, sessions: int
) -> None:
    first = apps.noop.enqueue(0)
    with working(app, dsn, sessions=sessions, poll=timedelta(milliseconds=500)) as worker:
        worker.wait_until(ended(first.id))
        time.sleep(0.2)  # (by then it waits for its next poll)
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched lease%'")
        worker.wait_until("(select generation >= 1 from pgsched.worker)")
        connection.execute("select pgsched.enqueue('noop', queue => 'tests', notify => false)")
        worker.wait_until(ENDED)
    assert worker.code is ExitCode.OK


def test_a_worker_that_was_rescued_stops_its_handlers_and_ends(app: Any, dsn: str, connection: Any) -> None:
    with working(app, dsn) as worker:
        slow = apps.sleeps_a_little.enqueue(30)
        worker.wait_until(f"exists (select from pgsched.running where job_id = {slow.id})")
        connection.execute("update pgsched.worker set rescued_at = clock_timestamp()")
        apps.noop.enqueue(1)
        assert worker.over.wait(20)
    assert worker.code is ExitCode.RESCUED


def test_a_worker_serves_only_the_queues_it_is_told(app: Any, dsn: str, connection: Any) -> None:
    here, there = apps.noop.using(queue="a").enqueue(1), apps.noop.using(queue="b").enqueue(1)
    work_until(app, dsn, ended(here.id), queues=["a"])
    assert states(connection)[there.id][0] == "ready"


def test_queues_take_turns(app: Any, dsn: str, connection: Any) -> None:
    for queue in ("a", "b"):
        app.enqueue_many(apps.noop.using(queue=queue).bind(i) for i in range(10))
    work_until(app, dsn, ENDED, queues=["a", "b"], concurrency=1, sessions=1)
    rows = connection.execute("select queue from pgsched.finished order by claim_id limit 6").fetchall()
    assert {row[0] for row in rows} == {"a", "b"}


def test_a_worker_leaves_its_row_as_stopped(app: Any, dsn: str, connection: Any) -> None:
    apps.noop.enqueue(1)
    work_until(app, dsn, ENDED, name="the one")
    assert connection.execute("select name, state, running from pgsched.workers").fetchall() == [("the one", "stopped", 0)]
