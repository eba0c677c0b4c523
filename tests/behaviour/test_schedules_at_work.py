"""Schedules with a real worker that leads: declared at its start, made by the second, run wherever handlers run."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from harness.running import leading, wait_until, working
from harness.ticking import schedule
from harness.ticking_app import app

pytestmark = pytest.mark.one_server


def test_a_worker_declares_and_makes_the_ticks_of_its_code_and_its_jobs_know_them(dsn: str, connection: Any) -> None:
    made = """not exists (
        select from (values ('loop'), ('thread'), ('process'), ('flow')) n (name)
        where (select count(*) from pgsched.schedule_ticks t
            where t.name = n.name and t.outcome in ('made', 'queued') and not exists (
                select from pgsched.job j where (j.id = t.job_id or j.workflow_id = t.workflow_id) and not exists (
                    select from pgsched.finished f where f.job_id = j.id and f.state = 'succeeded'))) < 2)"""
    with working(app, dsn, concurrency=20) as state:
        state.wait_until(made)
        problems = connection.execute("select name, problem from pgsched.schedules where problem <> ''").fetchall()
        assert problems == []
    rows = connection.execute(
        "select j.tick_at, f.result from pgsched.job j join pgsched.finished f on f.job_id = j.id where j.task <> 'after' or j.tick_at is not null"
    ).fetchall()
    assert rows and all(datetime.fromisoformat(result) == tick for tick, result in rows)
    late = connection.execute("select max(lateness) < '5 s', min(lateness) >= '0' from pgsched.schedule_ticks").fetchone()
    assert late == (True, True)
    assert connection.execute("select deployment from pgsched.schedule_deployment").fetchall() == [(3,)]


def test_a_call_from_psql_wakes_the_leader(dsn: str, connection: Any) -> None:
    with working(app, dsn, concurrency=5) as state:
        state.wait_until("exists (select from pgsched.schedule where next_tick_at is not null)")
        given = {"name": "by hand", "every_s": 86400, "jobs": [{"task": "after", "queue": "ticking", "args": {"tick": None}}]}
        connection.execute("select pgsched.put_schedule(%s)", (json.dumps(given),))
        state.wait_until("(select next_tick_at from pgsched.schedule where name = 'by hand') is not null")
        connection.execute("select pgsched.unschedule('by hand')")


def test_a_schedule_whose_ticks_take_too_long_is_refused_and_stops_no_other(dsn: str, connection: Any) -> None:
    connection.execute("create function public.dawdle() returns trigger language plpgsql as 'begin perform pg_sleep(5); return new; end'")
    connection.execute("create trigger dawdle before insert on pgsched.job for each row when (new.task = 'slow') execute function public.dawdle()")
    schedule(connection, "slow", task="slow", every="3600 s", anchor="2020-01-01Z", catch_up="all")
    for number in range(5):
        schedule(connection, f"quick{number}", every="1 s", catch_up="all")
    with leading(dsn, "only"):
        wait_until(dsn, "(select count(*) from pgsched.schedule where next_tick_at is not null) = 6")
        connection.execute(
            "update pgsched.schedule set next_tick_at = date_trunc('second', clock_timestamp()), base_at = clock_timestamp() - interval '1 h' where name = 'slow'"
        )
        wait_until(dsn, "exists (select from pgsched.schedule_ticks where name = 'slow' and outcome = 'refused')")
        rows = connection.execute("select reason from pgsched.schedule_ticks where name = 'slow'").fetchall()
        assert rows == [("it takes longer to make than a statement of the leader may",)]
        fewest = """(select min(c) from (
            select count(j.id) as c from pgsched.schedule s left join pgsched.job j on j.schedule_id = s.id where s.name <> 'slow' group by s.id) x)"""
        done = connection.execute(f"select {fewest}").fetchone()[0]
        wait_until(dsn, f"{fewest} >= {done + 3}")
    assert connection.execute("select count(*) from pgsched.job where task = 'slow'").fetchone() == (0,)
