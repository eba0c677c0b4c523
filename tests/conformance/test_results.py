"""One suite for every way to learn how a job ended: Python sync and async, and SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from harness.protocol import Steps, enqueue

import pgsched

Answer = tuple[str | None, Any, str | None, str | None, str | None, str | None]
LONG = timedelta(seconds=30)


def of_python(get: Callable[[pgsched.Job[Any]], Any]) -> Callable[[str, int], Answer]:
    def ask(dsn: str, job_id: int) -> Answer:
        app = pgsched.App("q", dsn=dsn)
        try:
            return "succeeded", get(pgsched.Job(job_id, app.client)), None, None, None, None
        except pgsched.JobUnsuccessful as error:
            assert type(error).__name__ == f"Job{error.state.capitalize()}" and error.job_id == job_id
            return error.state, None, error.reason, error.error_type, error.error, error.traceback
        except pgsched.UsageError:
            return None, None, None, None, None, None
        finally:
            app.close()

    return ask


def of_sql(dsn: str, job_id: int) -> Answer:
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = "select state, result, reason, error_type, error, traceback from pgsched.results(%s)"
        [row] = connection.execute(query, [[job_id]]).fetchall()
        return row


WAYS: dict[str, Callable[[str, int], Answer]] = {
    "result": of_python(lambda job: job.result(LONG)),
    "aresult": of_python(lambda job: asyncio.run(job.aresult(LONG))),
    "sql": of_sql,
}
ERROR = {"error_type": "ValueError", "error": "no luck", "traceback": "line 1"}
ENDS: list[tuple[dict[str, Any], Answer]] = [
    ({"outcome": "succeeded", "result": {"a": [1, None]}}, ("succeeded", {"a": [1, None]}, None, None, None, None)),
    ({"outcome": "succeeded"}, ("succeeded", None, None, None, None, None)),
    ({"outcome": "retry"} | ERROR, ("failed", None, "ValueError: no luck", "ValueError", "no luck", "line 1")),
    ({"outcome": "failed", "reason": "bad"}, ("failed", None, "bad", None, "bad", None)),
    ({"outcome": "cancelled", "reason": "enough"}, ("cancelled", None, "enough", None, "enough", None)),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("outcome", "answer"), ENDS, ids=str)
def test_every_way_tells_the_same_of_an_end(dsn: str, connection: Any, way: str, outcome: dict[str, Any], answer: Answer) -> None:
    worker = Steps(dsn)
    [job_id] = enqueue(connection)
    worker.finish(*worker.claim(), **outcome)
    assert WAYS[way](dsn, job_id) == answer
    worker.close()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_tells_a_skipped_job_and_one_that_is_not_there(dsn: str, connection: Any, way: str) -> None:
    [job_id] = enqueue(connection, expires_at="2001-01-01")
    connection.execute("select pgsched.stage()")
    assert WAYS[way](dsn, job_id) == ("skipped", None, "expired", None, None, None)
    assert WAYS[way](dsn, job_id + 1) == (None,) * 6


@pytest.mark.parametrize(("level", "may"), [("reader", False), ("client", True), ("worker", True)])
def test_who_may_enqueue_may_wait_for_results(dsn: str, connection: Any, level: str, may: bool) -> None:
    role = f"waits_{level}"
    connection.execute(f"drop role if exists {role}; create role {role}")
    try:
        connection.execute("select pgsched.grant_access(%s, %s)", [role, level])
        connection.execute(f"set role {role}")
        if may:
            assert connection.execute("select state from pgsched.results('{7}')").fetchall() == [(None,)]
            assert connection.execute("select pgsched.ended_channel()").fetchone()[0].endswith("_ended")
        else:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select * from pgsched.results('{7}')")
    finally:
        connection.execute(f"reset role; drop owned by {role}; drop role {role}")
