"""Waiting for a job's end beside its end: each scenario is a script of steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from harness.protocol import Blocked, Steps, enqueue
from harness.running import wait_until

import pgsched

RESULTS = "select job_id, state, result from pgsched.results(%s)"


@pytest.fixture
def worker(dsn: str) -> Iterator[Steps]:
    steps = Steps(dsn)
    yield steps
    steps.close()


@pytest.fixture
def listening(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that hears which jobs have ended."""
    with psycopg.connect(dsn, autocommit=True) as session:
        [(channel,)] = session.execute("select pgsched.ended_channel()").fetchall()
        session.execute(f"listen {channel}".encode())
        yield session


def heard(session: psycopg.Connection[Any]) -> list[int]:
    return sorted(int(notify.payload) for notify in session.notifies(timeout=0.5))


def test_only_the_end_of_a_job_that_somebody_waits_for_is_told(worker: Steps, connection: Any, listening: Any) -> None:
    waited, other = enqueue(connection, 2)
    assert connection.execute(RESULTS, [[waited, None, waited]]).fetchall() == []
    worker.finish(*worker.claim(), result=5)
    assert heard(listening) == [waited]
    assert connection.execute("select count(*) from pgsched.waiter").fetchone() == (0,)
    assert sorted(connection.execute(RESULTS, [[waited, other, 99]]).fetchall()) == [(waited, "succeeded", 5), (other, "succeeded", 5), (99, None, None)]
    assert connection.execute("select count(*) from pgsched.waiter").fetchone() == (0,), "none for what has ended or is not there"


def test_every_way_to_end_a_job_tells_who_waits(worker: Steps, connection: Any, listening: Any) -> None:
    soon = {"expires_at": "2001-01-01"}
    in_waiting = enqueue(connection, delay_s=1000)
    connection.execute("update pgsched.waiting set expires_at = '2001-01-01'")
    in_ready = enqueue(connection, queue="elsewhere", **soon)
    connection.execute(RESULTS, [in_waiting + in_ready])
    connection.execute("select pgsched.stage()")
    assert heard(listening) == in_waiting + in_ready
    at_claim, gone = enqueue(connection, **soon), enqueue(connection)
    connection.execute(RESULTS, [at_claim + gone])
    connection.execute("delete from pgsched.job where id = any (%s)", [gone])
    assert worker.claim() == []
    assert heard(listening) == at_claim + gone
    given_up = enqueue(connection, max_attempts=1)
    connection.execute(RESULTS, [given_up])
    worker.finish(*worker.claim(), outcome="retry")
    assert heard(listening) == given_up


def test_a_job_that_ends_as_somebody_begins_to_wait_is_found_by_the_poll(worker: Steps, dsn: str, connection: Any, listening: Any) -> None:
    [job_id] = enqueue(connection)
    claims = worker.claim()
    app = pgsched.App("q", dsn=dsn)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(pgsched.Job(job_id, app.client).result(timedelta(seconds=30))))
    with worker.work.transaction():
        worker.finish(*claims, result=5)  # has looked for who waits, and has not committed
        thread.start()
        wait_until(dsn, "exists (select from pgsched.waiter)")
    thread.join(30)
    assert found == [5] and heard(listening) == [], "nobody has told it"
    app.close()
    assert connection.execute("select count(*) from pgsched.waiter").fetchone() == (1,)
    connection.execute("select pgsched.prune('1 year')")
    assert connection.execute("select count(*) from pgsched.waiter").fetchone() == (0,)


def test_who_begins_to_wait_in_an_open_transaction_stops_neither_another_nor_the_end(worker: Steps, dsn: str, connection: Any, listening: Any) -> None:
    [job_id] = enqueue(connection)
    claims = worker.claim()
    with psycopg.connect(dsn, autocommit=True) as quick, psycopg.connect(dsn) as slow:
        slow.execute(RESULTS, [[job_id]])
        assert Blocked(quick, RESULTS, [[job_id]]).result() == []
        assert worker.finish(*claims) == ["accepted"]
        assert heard(listening) == [job_id]
        assert slow.execute(RESULTS, [[job_id]]).fetchall() == [(job_id, "succeeded", None)]


def test_a_transaction_that_is_rolled_back_tells_nobody(worker: Steps, connection: Any, listening: Any) -> None:
    [job_id] = enqueue(connection)
    claims = worker.claim()
    connection.execute(RESULTS, [[job_id]])
    with worker.work.transaction(force_rollback=True):
        worker.finish(*claims)
    assert heard(listening) == []
    worker.finish(*claims)
    assert heard(listening) == [job_id]
