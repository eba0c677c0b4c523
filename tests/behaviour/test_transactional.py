"""Transactional tasks: what the handler writes and the job's success are committed together, or neither is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from harness import executing
from harness.running import ENDED, ended, make_trace, supervised, wait_until, work_until, working

import pgsched
from pgsched.worker import ExitCode

pytestmark = pytest.mark.one_server

TASKS = ["writes", "writes_in_process", "writes_on_loop"]


@pytest.fixture
def app(dsn: str, connection: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    make_trace(dsn)
    connection.execute(
        "create table effect (id bigserial primary key, i int unique, job_id bigint);"
        "create table account (amount int, seen int); insert into account values (1, 0)"
    )
    executing.app.use(dsn)
    yield executing.app
    executing.app.close()


def rows(connection: Any, what: str = "state, reason, result") -> list[Any]:
    return connection.execute(f"select {what} from pgsched.jobs order by id").fetchall()


def effects(connection: Any) -> list[int]:
    return [i for (i,) in connection.execute("select i from effect order by id")]


def attempts(connection: Any) -> list[Any]:
    return connection.execute("select state, error_type from pgsched.job_errors order by claim_id").fetchall()


@pytest.mark.parametrize("task", TASKS)
def test_writes_and_success_are_committed_together(app: Any, dsn: str, connection: Any, task: str) -> None:
    app.tasks[task].enqueue(7)
    assert work_until(app, dsn, ENDED, executors=1) is ExitCode.OK
    assert rows(connection) == [("succeeded", None, 7)]
    assert effects(connection) == [7]
    assert attempts(connection) == []
    same = "select e.xmin = f.xmin from effect e join pgsched.finished f on f.job_id = e.job_id"
    assert connection.execute(same).fetchone() == (True,), "by one transaction"


@pytest.mark.parametrize("task", TASKS)
def test_what_a_failed_attempt_wrote_is_not_there(app: Any, dsn: str, connection: Any, task: str) -> None:
    app.tasks[task].enqueue(7, "raise")
    work_until(app, dsn, ENDED, executors=1)
    assert rows(connection) == [("failed", "ValueError: no", None)]
    assert effects(connection) == []
    assert attempts(connection) == [("retried", "ValueError")] * 2 + [("failed", "ValueError")]


@pytest.mark.parametrize(
    ("task", "then", "says"),
    [
        ("writes", "commit", "commit() on the connection of a transactional job"),
        ("writes", "rollback", "rollback() on the connection"),
        ("writes", "close", "close() on the connection"),
        ("writes_in_process", "commit", "commit() on the connection"),
        ("writes_on_loop", "commit", "commit() on the connection"),
        ("writes_on_loop", "close", "close() on the connection"),
        ("writes", "sql rollback", "its handler has ended the transaction by itself"),
        ("writes", "sql rollback and chain", "its handler has ended the transaction by itself"),
    ],
)
def test_a_handler_that_ends_its_transaction_gets_a_clear_error_and_is_not_repeated(
    app: Any, dsn: str, connection: Any, task: str, then: str, says: str
) -> None:
    app.tasks[task].enqueue(7, then)
    work_until(app, dsn, ENDED, executors=1)
    state, reason, _ = rows(connection)[0]
    assert state == "failed" and reason.startswith("TransactionEnded: ") and says in reason
    assert attempts(connection) == [("failed", "TransactionEnded")], "once more would do the same"
    assert effects(connection) == []


@pytest.mark.parametrize("then", ["sql commit", "sql commit and chain"])
def test_a_handler_that_commits_by_sql_never_succeeds_and_what_it_committed_stays(
    app: Any, dsn: str, connection: Any, then: str
) -> None:
    executing.writes.enqueue(7, then)
    work_until(app, dsn, ENDED)
    state, reason, _ = rows(connection)[0]
    assert state == "failed" and "its handler has ended the transaction by itself" in reason
    assert effects(connection) == [7]


def test_an_error_that_the_handler_swallowed_is_not_a_success(app: Any, dsn: str, connection: Any) -> None:
    executing.writes.enqueue(7, "swallow")
    work_until(app, dsn, ENDED)
    assert rows(connection, "state") == [("failed",)]
    assert effects(connection) == []
    text = connection.execute("select traceback from pgsched.job_errors limit 1").fetchone()[0]
    assert "The handler has caught an error of the database" in text


def test_savepoints_are_the_handlers_own(app: Any, dsn: str, connection: Any) -> None:
    executing.writes.enqueue(7, "savepoint")
    work_until(app, dsn, ENDED)
    assert rows(connection) == [("succeeded", None, 7)] and effects(connection) == [7]


def test_a_constraint_that_is_checked_at_the_commit_fails_the_attempt(app: Any, dsn: str, connection: Any) -> None:
    connection.execute("alter table effect drop constraint effect_i_key, add unique (i) deferrable initially deferred")
    connection.execute("insert into effect (i) values (7)")
    executing.writes.enqueue(7)
    work_until(app, dsn, ENDED)
    assert rows(connection, "state") == [("failed",)]
    assert attempts(connection) == [("retried", "UniqueViolation")] * 2 + [("failed", "UniqueViolation")]


@pytest.mark.parametrize("task", TASKS)
def test_a_connection_that_ends_costs_no_attempt_but_counts_as_a_death_where_the_workers_own_lived_on(
    app: Any, dsn: str, connection: Any, task: str
) -> None:
    app.tasks[task].enqueue(7, "terminate")  # (the first time)
    work_until(app, dsn, ENDED, executors=1)
    assert rows(connection) == [("succeeded", None, 7)]
    assert effects(connection) == [7]
    found = connection.execute("select state, attempt, error from pgsched.job_errors").fetchall()
    assert [row[:2] for row in found] == [("broken", 1)]
    assert found[0][2].startswith("the connection of its transaction ended: ")


def test_a_statement_that_kills_its_own_session_each_time_does_not_loop_for_ever(app: Any, dsn: str, connection: Any) -> None:
    executing.writes.enqueue(7, "sql select pg_terminate_backend(pg_backend_pid())")
    work_until(app, dsn, ENDED)
    assert rows(connection, "state, attempt") == [("failed", 1)]
    assert [state for state, _ in attempts(connection)] == ["broken"] * 3
    assert effects(connection) == []


@pytest.mark.parametrize("task", ["writes", "writes_in_process", "writes_on_loop"])
def test_a_cancelled_transaction_is_rolled_back_also_in_the_middle_of_a_statement(
    app: Any, dsn: str, connection: Any, task: str
) -> None:
    job = app.tasks[task].enqueue(7, "sleep")
    with working(app, dsn, executors=1) as worker:
        worker.wait_until("exists (select from trace)")
        job.cancel()
        worker.wait_until(ended(job.id))
    assert rows(connection) == [("cancelled", "cancelled", None)]
    assert effects(connection) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_transaction_is_given_back_at_a_shutdown(app: Any, dsn: str, connection: Any, task: str) -> None:
    app.tasks[task].enqueue(7, "sleep")
    with working(app, dsn, executors=1, drain=timedelta(milliseconds=100)) as worker:
        worker.wait_until("exists (select from trace)")
    assert worker.code is ExitCode.OK
    assert rows(connection, "state, attempt") == [("ready", 0)]
    assert effects(connection) == []


def test_a_process_that_dies_in_its_transaction_leaves_nothing_behind(app: Any, dsn: str, connection: Any) -> None:
    executing.writes_in_process.enqueue(7, "exit")
    work_until(app, dsn, ENDED, executors=1)
    assert rows(connection, "state") == [("failed",)]
    assert attempts(connection) == [("retried", "ProcessDied")] * 2 + [("failed", "ProcessDied")]
    assert effects(connection) == []


def test_conflicts_at_serializable_run_again_and_cost_no_attempt(app: Any, dsn: str, connection: Any) -> None:
    for _ in range(20):
        executing.moves.enqueue(1)
    work_until(app, dsn, ENDED, concurrency=8)
    assert set(rows(connection, "state, attempt")) == {("succeeded", 1)}
    seen = [seen for (seen,) in connection.execute("select seen from account order by seen")]
    assert seen == [0, *range(1, 21)], "as if one had come after the other"
    states = {state for state, _ in attempts(connection)}
    assert states == {"conflict"}, "there were some, and nothing else"


def test_conflicts_without_end_use_up_the_budget(app: Any, dsn: str, connection: Any) -> None:
    connection.execute("update pgsched.setting set value = '3' where name = 'max_conflicts'")
    executing.writes.enqueue(7, "sql do $$ begin raise serialization_failure; end $$")
    work_until(app, dsn, ENDED)
    assert rows(connection, "state, attempt") == [("failed", 3)]
    assert [state for state, _ in attempts(connection)] == [*["conflict"] * 3, "retried"] * 2 + [*["conflict"] * 3, "failed"]


def test_the_isolation_level_is_the_tasks_whatever_the_roles_default(app: Any, dsn: str, connection: Any) -> None:
    connection.execute("alter role current_user set default_transaction_isolation = 'repeatable read'")
    try:
        executing.isolation_of.enqueue()
        executing.writes.enqueue(1)
        work_until(app, dsn, ENDED)
    finally:
        connection.execute("alter role current_user reset default_transaction_isolation")
    assert rows(connection, "state, result") == [("succeeded", ["serializable"]), ("succeeded", 1)]


def test_sqlalchemy_works_in_the_same_transaction_in_a_thread_and_on_the_loop(app: Any, dsn: str, connection: Any) -> None:
    executing.writes_with_orm.enqueue(1)
    executing.adds_row.enqueue(2)
    executing.writes_with_async_orm.enqueue(3)
    executing.writes_with_orm.enqueue(4)  # (on a connection that has served before)
    work_until(app, dsn, ENDED, job_sessions=1)
    assert [state for (state,) in rows(connection, "state")] == ["succeeded"] * 4
    assert sorted(effects(connection)) == [-4, -3, -1, 1, 2, 3, 4]


@pytest.mark.parametrize(("task", "then"), [("adds_row", "commit"), ("adds_row", "rollback"), ("writes_with_async_orm", "commit")])
def test_a_session_of_sqlalchemy_cannot_end_the_transaction_either(app: Any, dsn: str, connection: Any, task: str, then: str) -> None:
    app.tasks[task].enqueue(1, then)
    work_until(app, dsn, ENDED)
    state, reason, _ = rows(connection)[0]
    assert state == "failed" and reason.startswith("TransactionEnded: ")
    assert effects(connection) == []


def test_connection_is_refused_in_a_task_that_is_not_transactional(app: Any, dsn: str, connection: Any) -> None:
    plain = pgsched.JobContext(1, "plain", 1, 1)
    with pytest.raises(pgsched.UsageError, match="not transactional"):
        _ = plain.connection
    with pytest.raises(pgsched.UsageError, match="not transactional"):
        asyncio.run(plain.asqlalchemy_session())


def test_more_transactional_jobs_than_connections_wait_for_one(app: Any, dsn: str, connection: Any) -> None:
    for i in range(100):
        app.tasks[TASKS[i % 3]].enqueue(i)
    work_until(app, dsn, ENDED, executors=1, job_sessions=2)
    assert sorted(effects(connection)) == [*range(100)]
    assert {state for (state,) in rows(connection, "state")} == {"succeeded"}


def test_the_wait_for_a_connection_is_not_the_handlers_time(app: Any, dsn: str, connection: Any) -> None:
    for i in range(6):
        app.tasks["writes_slowly"].enqueue(i)
    work_until(app, dsn, ENDED, executors=1, job_sessions=1)
    assert effects(connection) == [*range(6)]
    assert rows(connection, "state, attempt") == [("succeeded", 1)] * 6


def test_a_death_is_not_charged_to_a_job_that_waits_for_a_connection(app: Any, dsn: str, connection: Any) -> None:
    for i in range(6):
        app.tasks["writes_slowly"].enqueue(i)
    with supervised(dsn, "--concurrency", "10", "--job-sessions", "1", target="harness.executing:app") as one:
        wait_until(dsn, "(select count(*) = 6 from pgsched.running)")
        wait_until(dsn, "exists (select from pgsched.running where started_at is not null)")
        os.kill(one.workers()[0], signal.SIGKILL)
        wait_until(dsn, ENDED)
        assert one.stop() == ExitCode.OK
    assert sorted(rows(connection, "result")) == [(0,)] * 5 + [(1,)], "how many workers have died while it ran"
    assert sorted(effects(connection)) == [*range(6)]
