"""Failed jobs: found and counted by task, error, queue and time, and let run again in bulk."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from harness.graphs import release
from harness.protocol import Steps, enqueue

import pgsched
from pgsched import failed

Connection = psycopg.Connection[Any]


def fail(dsn: str, connection: Connection, error: str = "boom", error_type: str = "ValueError", n: int = 1, **options: Any) -> list[int]:
    """Jobs that have failed of this; their ids."""
    ids = enqueue(connection, n, **options)
    steps = Steps(dsn)
    claims = [claim for claim in steps.claim(n, queue=options.get("queue", "q")) if claim["job_id"] in ids]
    steps.finish(*claims, outcome="failed", error_type=error_type, error=error, traceback=f"  line 7\n{error_type}: {error}")
    steps.close()
    return ids


def retry(connection: Connection, arguments: str = "") -> list[tuple[int, str, str | None]]:
    return connection.execute(f"select job_id, outcome, why from pgsched.retry_failed({arguments})".encode()).fetchall()


def listed(connection: Connection, arguments: str = "") -> list[int]:
    return [row[0] for row in connection.execute(f"select job_id from pgsched.list_failed({arguments})".encode()).fetchall()]


def test_failed_jobs_are_found_by_task_error_queue_and_time(dsn: str, connection: Connection) -> None:
    [a] = fail(dsn, connection, "no order 17", task="send")
    [b] = fail(dsn, connection, "No Order 18", "LookupError", task="charge")
    [c] = fail(dsn, connection, "100% of {all}", queue="other", task="send")
    enqueue(connection)
    connection.execute("update pgsched.finished set finished_at = '2001-01-01 12:00+00' where job_id = %s", [b])
    asked = {
        "": [c, b, a],
        "task => 'send'": [c, a],
        "error => 'ValueError'": [c, a],
        "error => 'no order'": [b, a],
        "error => '0% of {'": [c],
        "error => 'none'": [],
        "queue => 'other'": [c],
        "since => '2001-01-01 12:00+00', until => '2001-01-01 12:00:01+00'": [b],
        "until => '2001-01-01 12:00+00'": [],
        "since => '2020-01-01'": [c, a],
        '"limit" => 1': [c],
        f"before_id => {b}": [a],
        "task => 'send', error => 'order', queue => 'q', since => '2020-01-01'": [a],
    }
    assert {arguments: listed(connection, arguments) for arguments in asked} == asked
    row = connection.execute("select * from pgsched.list_failed(task => 'charge')").fetchone()
    assert row is not None and row[:6] == (b, "charge", "q", "LookupError", "No Order 18", 1)


def test_errors_that_differ_in_numbers_are_one_group_and_the_newest_shows_its_text(dsn: str, connection: Connection) -> None:
    for order in (1, 22, 333):
        fail(dsn, connection, f"no order {order}\nmore of it {order}")
    fail(dsn, connection, "no order 4", "LookupError")
    fail(dsn, connection, "something else", n=2)
    rows = connection.execute("select task, queue, error_type, error, jobs, looked_at from pgsched.failed_groups()").fetchall()
    assert rows == [
        ("t", "q", "ValueError", "no order 333", 3, 6),
        ("t", "q", "ValueError", "something else", 2, 6),
        ("t", "q", "LookupError", "no order 4", 1, 6),
    ]
    cut = connection.execute("select error, jobs, looked_at from pgsched.failed_groups(look => 3)").fetchall()
    assert cut == [("something else", 2, 3), ("no order 4", 1, 3)], "a bounded look says so"


def test_a_job_that_failed_without_an_attempt_is_in_a_group_by_its_reason(dsn: str, connection: Connection) -> None:
    connection.execute("insert into pgsched.ready (queue, priority, job_id) values ('q', 5, 4711)")
    steps = Steps(dsn)
    steps.claim()
    steps.close()
    rows = connection.execute("select task, error_type, jobs, job_id from pgsched.failed_groups()").fetchall()
    assert rows == [(None, None, 1, 4711)]


def test_every_attempts_error_type_and_traceback_is_kept(dsn: str, connection: Connection) -> None:
    [job] = enqueue(connection, max_attempts=3)
    steps = Steps(dsn)
    for attempt in (1, 2, 3):
        steps.finish(steps.claim()[0], outcome="retry", after_s=0, error_type=f"E{attempt}", error=f"error {attempt}", traceback=f"trace {attempt}")
        connection.execute("select pgsched.stage()")
    steps.close()
    kept = connection.execute("select attempt, state, error_type, error, traceback from pgsched.job_errors where job_id = %s order by claim_id", [job]).fetchall()
    assert kept == [(n, "failed" if n == 3 else "retried", f"E{n}", f"error {n}", f"trace {n}") for n in (1, 2, 3)]
    connection.execute("select pgsched.retry(%s)", [job])
    assert connection.execute("select count(*) from pgsched.job_errors where job_id = %s", [job]).fetchone() == (3,), "a retry forgets none"


def test_a_bulk_retry_goes_by_ids_and_what_is_in_the_way_of_one_stops_no_other(dsn: str, connection: Connection) -> None:
    first = fail(dsn, connection, n=2)
    [keyed] = fail(dsn, connection, unique_key="k")
    holder = enqueue(connection, unique_key="k", queue="elsewhere")
    [last] = fail(dsn, connection)
    why = f"retry: the unique key of job {keyed} is held by job {holder[0]}"
    expected = [(first[0], "retried", None), (first[1], "retried", None), (keyed, "refused", why), (last, "retried", None)]
    assert retry(connection, "dry_run => true") == expected
    assert len(listed(connection)) == 4, "a dry run changes nothing"
    assert retry(connection) == expected
    assert listed(connection) == [keyed]
    assert connection.execute("select * from pgsched.check_invariants()").fetchall() == []


def test_a_bulk_retry_goes_on_where_the_piece_before_ended(dsn: str, connection: Connection) -> None:
    ids = fail(dsn, connection, n=5)
    assert retry(connection, '"limit" => 2') == [(ids[0], "retried", None), (ids[1], "retried", None), (ids[1], "more", f"call again with above => {ids[1]}")]
    assert retry(connection, f'"limit" => 2, above => {ids[2]}')[:2] == [(ids[3], "retried", None), (ids[4], "retried", None)]
    assert listed(connection) == [ids[2]]


def test_a_bulk_retry_looks_at_so_many_and_says_where_to_go_on(dsn: str, connection: Connection) -> None:
    ids = fail(dsn, connection, n=5)
    [odd] = fail(dsn, connection, "odd")
    assert retry(connection, "error => 'odd', look => 3") == [(ids[2], "more", f"call again with above => {ids[2]}")]
    assert retry(connection, f"error => 'odd', look => 4, above => {ids[2]}") == [(odd, "retried", None)]


def test_what_had_ended_because_of_a_retried_job_waits_again_and_is_named(dsn: str, connection: Connection) -> None:
    [a] = fail(dsn, connection, task="first")
    [b] = enqueue(connection, depends_on=[{"job": a}])
    release(connection)
    assert connection.execute("select state from pgsched.jobs where id = %s", [b]).fetchone() != ("blocked",)
    assert retry(connection, "task => 'first'") == [(a, "retried", None), (b, "waits", f"for job {a}")]


def test_a_bulk_retry_needs_read_committed(dsn: str, connection: Connection) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match="READ COMMITTED"), connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        retry(connection)


@pytest.mark.parametrize("bad", ['"limit" => 0', '"limit" => 10001', '"limit" => null', "look => 0", "look => null"])
@pytest.mark.parametrize("function", ["list_failed", "failed_groups", "retry_failed"])
def test_bounds_that_cannot_be_meant_are_refused_by_name(connection: Connection, function: str, bad: str) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match=f"{function}: {bad.split()[0].strip(chr(34))} is") as caught:
        connection.execute(f"select pgsched.{function}({bad})".encode())
    assert caught.value.sqlstate == "PGS09"


def test_python_finds_and_retries_them_in_pieces(dsn: str, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed, "_PIECE", 2)
    ids = fail(dsn, connection, "no order 1", n=5, task="send")
    [keyed] = fail(dsn, connection, unique_key="k")
    enqueue(connection, unique_key="k", queue="elsewhere")
    app = pgsched.App("q", dsn=dsn)

    @app.task(name="send")
    def send() -> None: ...

    [group] = app.failed(task=send).groups()
    assert (group.jobs, group.error, group.error_type, group.job_id, group.last_at.tzinfo) == (5, "no order 1", "ValueError", ids[4], UTC)
    assert [job.job_id for job in app.failed(error="order").jobs(limit=2)] == [ids[4], ids[3]]
    assert [job.job_id for job in app.failed(error="order").jobs(before_id=ids[1])] == [ids[0]]
    assert app.failed(until=datetime.now(UTC) - timedelta(hours=1)).jobs() == []
    tried = app.failed().retry(dry_run=True)
    assert (tried.retried, tried.waiting, list(tried.refused)) == (ids, [], [keyed])
    assert app.failed().retry(limit=3).retried == ids[:3]
    rest = app.failed().retry()
    assert (rest.retried, list(rest.refused)) == (ids[3:], [keyed]) and "is held by" in rest.refused[keyed]
    app.close()


def test_async_python_does_the_same(dsn: str, connection: Connection) -> None:
    ids = fail(dsn, connection, n=3)
    app = pgsched.App("q", dsn=dsn)

    async def main() -> None:
        assert [group.jobs for group in await app.failed().agroups()] == [3]
        assert [job.job_id for job in await app.failed().ajobs(limit=1)] == [ids[2]]
        assert (await app.failed().aretry(limit=2)).retried == ids[:2]
        with pytest.raises(pgsched.UsageError, match="aretry"):
            app.failed().retry()
        await app.aclose()

    asyncio.run(main())


def test_python_refuses_what_cannot_be_meant() -> None:
    app = pgsched.App("q")
    with pytest.raises(pgsched.UsageError, match=r"since is .* aware"):
        app.failed(since=datetime(2030, 1, 1))
    with pytest.raises(pgsched.UsageError, match="NUL"):
        app.failed(error="a\0b")
    with pytest.raises(pgsched.UsageError, match="limit is 0"):
        app.failed().retry(limit=0)
