"""Transactional jobs whose handlers leave something behind, swallow errors, or do not listen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from harness import executing
from harness.running import ENDED, ended, make_trace, work_until, working

import pgsched
from pgsched.worker import ExitCode

pytestmark = pytest.mark.one_server

SLEEPS = "exists (select from pg_stat_activity where state = 'active' and query like '%pg_sleep(60)%' and pid <> pg_backend_pid())"


@pytest.fixture
def app(dsn: str, connection: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    make_trace(dsn)
    connection.execute("create table effect (id bigserial primary key, i int unique, job_id bigint)")
    executing.app.use(dsn)
    executing.left_behind.clear()
    yield executing.app
    executing.app.close()


def rows(connection: Any, what: str = "state, reason") -> list[Any]:
    return connection.execute(f"select {what} from pgsched.jobs order by id").fetchall()


def effects(connection: Any) -> list[int]:
    return [i for (i,) in connection.execute("select i from effect order by id")]


def attempts(connection: Any) -> list[Any]:
    return connection.execute("select state, error_type from pgsched.job_errors order by claim_id").fetchall()


@pytest.mark.parametrize("then", ["select 1 / 0", executing.DIVIDES, "rollback", "rollback and chain"])
@pytest.mark.parametrize("task", ["leaves_task", "leaves_thread"])
def test_what_uses_the_connection_after_its_handler_cannot_make_a_success_without_its_writes(
    app: Any, dsn: str, connection: Any, task: str, then: str
) -> None:
    ids = [app.tasks[task].enqueue(i, then, after_s).id for i, after_s in enumerate([0, 0.001, 0.003, 0.01, 0.1, 0])]
    work_until(app, dsn, ENDED, job_sessions=1)
    succeeded = [ids.index(i) for i, state in rows(connection, "id, state") if state == "succeeded"]
    assert effects(connection) == succeeded
    assert {state for (state,) in rows(connection, "state")} <= {"succeeded", "failed"}


@pytest.mark.parametrize("task", ["leaves_task", "leaves_thread"])
def test_a_statement_that_is_under_way_when_the_handler_returns_fails_the_attempt(
    app: Any, dsn: str, connection: Any, task: str
) -> None:
    app.tasks[task].enqueue(7, executing.DIVIDES, 0)
    work_until(app, dsn, ENDED)
    state, reason = rows(connection)[0]
    assert state == "failed" and "left a statement open" in reason
    assert effects(connection) == []


@pytest.mark.parametrize(
    "what",
    [
        "autocommit", "row_factory", "pipeline", "set search_path = pg_catalog", "set statement_timeout = '300ms'",
        "set session characteristics as transaction read only", "create temp table leftover (i int)",
        "select pg_advisory_lock(7)", "prepare left as select 1",
    ],
)  # fmt: skip
def test_what_one_job_leaves_on_the_session_is_not_met_by_the_next(app: Any, dsn: str, connection: Any, what: str) -> None:
    with working(app, dsn, job_sessions=1) as worker:
        for task in (executing.finds_on_session, executing.leaves_on_session, executing.finds_on_session):
            job = task.enqueue(*([what] if task is executing.leaves_on_session else []))
            worker.wait_until(ended(job.id))
    (before, found), (after, found_later) = [r for (r,) in rows(connection, "result") if r is not None]
    assert found_later == found
    assert (after == before) is (what != "pipeline"), "the same session, unless it had to be given up"


def test_a_job_after_one_that_left_autocommit_on_keeps_nothing_when_it_fails(app: Any, dsn: str, connection: Any) -> None:
    with working(app, dsn, job_sessions=1) as worker:
        worker.wait_until(ended(executing.leaves_on_session.enqueue("autocommit").id))
        worker.wait_until(ended(executing.writes.using(max_attempts=1).enqueue(8, "raise").id))
    assert rows(connection, "state") == [("failed",), ("failed",)]
    assert effects(connection) == []


def test_a_coroutine_that_a_job_left_behind_cannot_write_in_the_transaction_of_the_next(
    app: Any, dsn: str, connection: Any
) -> None:
    with working(app, dsn, job_sessions=1) as worker:
        worker.wait_until(ended(executing.leaves_coroutine.enqueue(1).id))
        worker.wait_until(ended(executing.meets_coroutine.enqueue(2).id))
    assert rows(connection, "state, result") == [("failed", None), ("succeeded", "OperationalError")]
    assert attempts(connection) == [("failed", "TimeoutError")]
    assert effects(connection) == [2]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_job_that_is_in_a_statement_when_its_worker_stops_is_given_back_uncharged(
    app: Any, dsn: str, connection: Any, at_once: bool
) -> None:
    executing.runs.enqueue("select pg_sleep(60)")
    with working(app, dsn, drain=timedelta(milliseconds=100)) as worker:
        worker.wait_until(SLEEPS)
        if at_once:
            worker.hurry()
    assert worker.code is ExitCode.OK
    assert rows(connection, "state, attempt") == [("ready", 0)]


@pytest.mark.parametrize("then", ["raise", "return"])
@pytest.mark.parametrize("what", ["stream", "copy"])
def test_a_statement_left_open_ends_the_attempt_and_gives_its_place_to_the_next(
    app: Any, dsn: str, connection: Any, what: str, then: str
) -> None:
    executing.leaves_open.enqueue(what, then)
    executing.writes.enqueue(7)
    work_until(app, dsn, ENDED, job_sessions=1)
    (state, reason), other = rows(connection)
    assert state == "failed" and ("left a statement open" if then == "return" else "ValueError: mine") in reason
    assert len(attempts(connection)) == 1
    assert other == ("succeeded", None) and effects(connection) == [7]


def test_a_job_that_is_cancelled_before_its_turn_does_not_go_on_when_it_comes(app: Any, dsn: str, connection: Any) -> None:
    until = "exists (select from pgsched.finished)"
    with working(app, dsn, job_sessions=1) as worker:
        first = executing.runs.enqueue(f"do $$ begin while not ({until}) loop perform pg_sleep(0.05); end loop; end $$")
        worker.wait_until("exists (select from pg_stat_activity where state = 'active' and query like 'do $$ begin while%')")
        late = executing.runs.enqueue("select pg_sleep(60)")
        worker.wait_until(f"exists (select from pgsched.running where job_id = {late.id})")
        assert late.cancel() == {late.id: "running"}
        worker.wait_until(ended(first.id, late.id))
    assert rows(connection, "state") == [("succeeded",), ("cancelled",)]
    assert attempts(connection) == [("cancelled", None)]


def test_a_timeout_between_two_statements_ends_the_second(app: Any, dsn: str, connection: Any) -> None:
    executing.runs_once_told_to_stop.using(timeout=timedelta(milliseconds=300)).enqueue("select pg_sleep(60)")
    work_until(app, dsn, ENDED)
    assert attempts(connection) == [("failed", "TimeoutError")]
    assert effects(connection) == []


def test_a_timeout_at_repeatable_read_is_no_conflict(app: Any, dsn: str, connection: Any) -> None:
    # That it has timed out is written into its row in running, which it cannot end from its snapshot any more.
    executing.works_in_python.using(timeout=timedelta(milliseconds=400), max_attempts=1).enqueue(1.5)
    work_until(app, dsn, ENDED)
    ends = rows(connection, "state"), attempts(connection), effects(connection)
    assert ends in [([("failed",)], [("failed", "TimeoutError")], []), ([("succeeded",)], [], [1])]


@pytest.mark.parametrize("what", ["commit", "rollback", "close"])
def test_a_handler_that_swallows_the_refusal_to_end_its_transaction_does_not_succeed(
    app: Any, dsn: str, connection: Any, what: str
) -> None:
    executing.swallows.enqueue(what)
    work_until(app, dsn, ENDED)
    assert attempts(connection) == [("failed", "TransactionEnded")]
    assert effects(connection) == []


def test_a_conflict_in_another_database_that_the_handler_has_dealt_with_is_none_of_this_job(
    app: Any, dsn: str, connection: Any
) -> None:
    executing.fails_because_of_another_database.enqueue()
    work_until(app, dsn, ENDED)
    assert attempts(connection) == [("failed", "ValueError")]
    assert effects(connection) == []
