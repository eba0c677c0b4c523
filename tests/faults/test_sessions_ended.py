"""The server ends random sessions of two workers ten times a second: nothing is lost, nothing runs twice, nobody is charged."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.running import ENDED, child, make_trace, wait_until

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
JOBS, SECONDS = (60_000, 60.0) if FULL else (1_500, 4.0)

pytestmark = pytest.mark.one_server


@pytest.mark.campaign
def test_every_job_runs_once_while_sessions_are_ended_at_random(dsn: str, connection: psycopg.Connection[Any]) -> None:
    make_trace(dsn)
    apps.app.use(dsn)
    apps.app.enqueue_many(apps.sleeps_a_little.bind(i % 7 / 100) for i in range(JOBS))
    apps.app.enqueue_many(apps.traced.bind(i) for i in range(JOBS // 5))
    apps.app.close()
    with child(dsn, "--concurrency", "20") as one, child(dsn, "--concurrency", "20") as two:
        wait_until(dsn, "exists (select from pgsched.finished)")
        until = time.monotonic() + SECONDS
        ended = 0
        while time.monotonic() < until:
            cursor = connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched %' and random() < 0.5"
            )
            ended += cursor.rowcount
            time.sleep(0.1)
        wait_until(dsn, ENDED, patience_s=300.0 if FULL else 30.0)
        assert (one.stop(), two.stop()) == (0, 0)
    assert ended > 20
    assert connection.execute("select distinct state, attempt from pgsched.jobs").fetchall() == [("succeeded", 1)]
    assert connection.execute("select count(*), count(distinct job_id) from trace").fetchone() == (JOBS // 5, JOBS // 5)
    assert (
        connection.execute("select distinct state from pgsched.attempt_log where state <> 'given_back'").fetchall()
        == []
    )
