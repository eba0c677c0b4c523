"""A leader's session that ends at any statement of its ticks: each (schedule, tick) exactly once, whoever leads next."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import psycopg
import pytest
from harness.protocol import Steps
from harness.ticking import Reign, history, schedule

pytestmark = pytest.mark.one_server

TABLES = ["schedule", "schedule_tick", "job", "ready", "waiting", "running", "finished", "dependency", "release_check", "job_key", "workflow"]
BOMB = """
create sequence pgsched.bomb_clock;
create table pgsched.bomb_at (n bigint);
insert into pgsched.bomb_at values (0);
create function pgsched.bomb() returns trigger language plpgsql as $$
begin
    if nextval('pgsched.bomb_clock') = (select n from pgsched.bomb_at) then
        perform pg_terminate_backend(pg_backend_pid());
        perform pg_sleep(10);
    end if;
    return null;
end $$;
"""
HOURS = 200
DAYS = [(hour // 24 + 1, hour % 24) for hour in range(HOURS)]


def at(hour: int, minute: int = 0) -> str:
    return f"2200-01-{DAYS[hour][0]:02} {DAYS[hour][1]:02}:{minute:02}Z"


@pytest.fixture
def armed(connection: Any) -> Any:
    """Every statement that writes, before and after it, may be the last of its session."""
    connection.execute(BOMB)
    for table in TABLES:
        for when in ("before", "after"):
            connection.execute(
                f"create trigger bomb_{when} {when} insert or update or delete on pgsched.{table} for each statement execute function pgsched.bomb()"
            )
    return connection


def explode(connection: Any, n: int) -> None:
    connection.execute("update pgsched.bomb_at set n = %s", (n,))
    connection.execute("select setval('pgsched.bomb_clock', 1, false)")


def test_leaders_killed_at_every_statement_of_their_ticks(dsn: str, armed: Any) -> None:
    job = {"task": "t", "queue": "q"}
    for overlap in ("allow", "skip", "queue", "cancel"):
        schedule(armed, overlap, cron="0 * * * *", overlap=overlap, catch_up="all", at=at(0, 30))
    workflow = {"name": "etl", "cron": "0 * * * *", "catch_up": "all", "workflow": "etl", "overlap": "queue", "jobs": [
        job | {"name": "a"}, job | {"name": "b", "depends_on": [{"name": "a"}]}]}  # fmt: skip
    keyed = {"name": "keyed", "cron": "0 * * * *", "catch_up": "all", "jobs": [job | {"unique_key": "k"}]}
    for given in (workflow, keyed):
        armed.execute("select pgsched.put_schedule(%s)", (json.dumps(given),))
    armed.execute("update pgsched.schedule set plan_after = %s", (at(0, 30),))
    names = ["allow", "skip", "queue", "cancel", "etl", "keyed"]
    steps = Steps(dsn)
    hour, bomb, survived = 0, 0, False
    while not survived:
        # A round: the leader dies at its statement number `bomb`, if it has so many; the next one leads at the same time.
        hour, bomb = hour + 1, bomb + 1
        assert hour < HOURS - 1, "it never came to its end"
        explode(armed, bomb)
        victim = Reign(dsn, f"number {bomb}")
        try:
            victim.tick(at(hour))
            survived = True
        except psycopg.OperationalError:
            pass
        finally:
            explode(armed, 0)
            with contextlib.suppress(psycopg.Error):
                victim.close()
        while armed.execute("select count(*) from pgsched.leader").fetchone()[0]:
            pass
        heir = Reign(dsn, "heir")
        heir.tick(at(hour))
        heir.close()
        if hour % 3 == 0:  # (now and then a run ends, so that ticks meet ended runs, ready ones and running ones)
            steps.finish(*steps.claim(3))
        if hour % 7 == 0:
            armed.execute("select pgsched.cancel_many(array(select job_id from pgsched.waiting union all select job_id from pgsched.ready))")
    assert bomb > 20, "it was killed at each of its statements"
    expected = [f"{DAYS[h][0]:02} {DAYS[h][1]:02}:00" for h in range(1, hour + 1)]
    for name in names:
        found = history(armed, name)
        assert [tick for tick, _ in found] == expected, name
        assert {outcome for _, outcome in found} <= {"made", "queued", "skipped"}
    assert [outcome for _, outcome in history(armed, "allow")] == ["made"] * hour
    steps.close()
