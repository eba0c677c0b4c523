"""A session that ends at any statement of a finish, a release, a cancel or a retry: nothing is lost, nothing starts early."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import psycopg
import pytest
from harness.graphs import release, release_all
from harness.protocol import Steps, enqueue, places

pytestmark = pytest.mark.one_server

CHILDREN = 1_000
TABLES = ["running", "waiting", "ready", "finished", "dependency", "release_check", "attempt_log"]
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


@pytest.fixture
def armed(connection: Any) -> Any:
    """Every statement that writes on a state table, before and after it, may be the last of its session."""
    connection.execute(BOMB)
    for table in TABLES:
        for when in ("before", "after"):
            connection.execute(
                f"create trigger bomb_{when} {when} insert or update or delete on pgsched.{table} for each statement execute function pgsched.bomb()"
            )
    return connection


def explode(connection: Any, at: int) -> None:
    connection.execute("update pgsched.bomb_at set n = %s", (at,))
    connection.execute("select setval('pgsched.bomb_clock', 1, false)")


def survives(dsn: str, connection: Any, at: int, call: Any) -> bool:
    """Make the call on a session that ends at its statement number `at`; whether it came to its end."""
    explode(connection, at)
    try:
        with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as victim:
            call(victim)
            return True
    except psycopg.OperationalError:
        return False
    finally:
        explode(connection, 0)


def test_a_release_of_a_thousand_children_that_is_killed_at_every_statement(dsn: str, armed: Any) -> None:
    steps = Steps(dsn)
    survived, at = False, 0
    while not survived:
        at += 1
        [parent] = enqueue(armed)
        children = enqueue(armed, CHILDREN, depends_on=[{"job": parent, "on": "success" if at % 2 else "failure"}])
        skipped = enqueue(armed, 5, depends_on=[{"job": children[0], "on": "failure"}])
        release_all(armed)
        steps.finish(*steps.claim(1))
        survived = survives(dsn, armed, at, lambda victim: release(victim, 400))
        early = [i for i in skipped if places(armed)[i] != "waiting"] if at % 2 else []
        assert early == []
        release_all(armed, 400)
        found = places(armed)
        assert {found[i] for i in children} == {"ready" if at % 2 else "skipped"}, at
        armed.execute("select pgsched.cancel_many(%s)", (children,))
        release_all(armed)
        armed.execute("delete from pgsched.job; delete from pgsched.finished; delete from pgsched.dependency; delete from pgsched.attempt_log")
    assert at > 8, "it was killed at each of its statements"
    steps.close()


@pytest.mark.parametrize("what", ["finish", "cancel", "retry"])
def test_a_call_that_is_killed_at_every_statement_is_whole_or_nothing(dsn: str, armed: Any, what: str) -> None:
    steps = Steps(dsn)
    survived, at = False, 0
    while not survived:
        at += 1
        parent, other = enqueue(armed, 2)
        chain = [parent]
        for _ in range(4):
            chain += enqueue(armed, depends_on=[{"job": chain[-1]}])
        both = enqueue(armed, depends_on=[{"job": chain[-1], "on": "done"}, {"job": other}])[0]
        alone = enqueue(armed, depends_on=[{"job": parent, "on": "done"}])[0]
        release_all(armed)
        claims = {row["job_id"]: row for row in steps.claim(2)}
        result = [{"job_id": parent, "claim_id": claims[parent]["claim_id"], "outcome": "failed" if what == "retry" else "succeeded"}]
        if what == "retry":
            steps.finish(claims[parent], outcome="failed")
            release_all(armed)
            survived = survives(dsn, armed, at, lambda victim: victim.execute("select pgsched.retry(%s)", (parent,)))  # noqa: B023
            if not survived:
                assert places(armed)[parent] == "failed"
                armed.execute("select pgsched.retry(%s)", (parent,))
            assert {places(armed)[i] for i in chain[1:]} == {"waiting"}
            steps.finish(*steps.claim(10))
        elif what == "cancel":
            survived = survives(dsn, armed, at, lambda victim: victim.execute("select pgsched.cancel(%s)", (parent,)))  # noqa: B023
            if not survived:
                assert {places(armed)[i] for i in chain} == {"running", "waiting"}
                armed.execute("select pgsched.cancel(%s)", (parent,))
            assert {places(armed)[i] for i in chain[1:]} == {"cancelled"}
            steps.finish(claims[parent])
        else:
            explode(armed, at)
            with contextlib.suppress(psycopg.OperationalError):
                steps.work.execute("select * from pgsched.finish(%s, %s)", (steps.id, json.dumps(result)))
            explode(armed, 0)
            survived = not steps.work.closed
            if not survived:
                assert places(armed)[parent] == "running"
                assert [places(armed)[i] for i in (chain[1], alone)] == ["waiting"] * 2
                steps.work = steps.open_session()
                steps.finish(claims[parent])
        steps.finish(claims[other])
        for _ in range(12):
            release_all(armed)
            steps.finish(*steps.claim(10))
        found = places(armed)
        expected = "cancelled" if what == "cancel" else "succeeded"
        assert {found[i] for i in chain[1:]} == {expected}, at
        assert [found[i] for i in (both, alone)] == ["succeeded"] * 2, at
    assert at > 4
    steps.close()
