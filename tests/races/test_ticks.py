"""Ticks beside others who hold, change or break something at that moment, step by step: what is bad stops no neighbour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.protocol import Blocked, enqueue, places
from harness.running import leading, wait_until
from harness.ticking import Reign, as_if_at, history, schedule

pytestmark = pytest.mark.one_server

AT = "2200-01-01"


@pytest.fixture
def reign(dsn: str) -> Iterator[Reign]:
    leader = Reign(dsn)
    yield leader
    leader.close()


def test_a_schedule_that_nobody_can_plan_ends_no_leader_and_is_shown(dsn: str, connection: Any) -> None:
    schedule(connection, "odd", cron="* * * * *", starts_at="0001-01-01 00:00+00")
    schedule(connection, "good", every="1 s")
    connection.execute("alter role current_user set timezone = 'America/New_York'")  # (where the first hours of year 1 are BC)
    try:
        with leading(dsn, "only"):
            wait_until(dsn, "(select count(*) from pgsched.schedule_ticks where name = 'good') >= 2")
            wait_until(dsn, "exists (select from pgsched.schedules where name = 'odd' and (problem <> '' or next_tick_at is not null))")
            assert connection.execute("select count(*) from pgsched.leader_term").fetchone() == (1,)
    finally:
        connection.execute("alter role current_user reset timezone")


def test_a_key_that_somebody_holds_stops_its_own_schedule_alone(dsn: str, connection: Any, reign: Reign) -> None:
    for n in range(2):
        connection.execute(
            "select pgsched.put_schedule(%s)",
            (json.dumps({"name": f"keyed{n}", "cron": "* * * * *", "catch_up": "all", "jobs": [{"task": "t", "queue": "q", "unique_key": f"k{n}"}]}),),
        )
    for n in range(20):
        schedule(connection, f"plain{n}", cron="* * * * *", catch_up="all")
    as_if_at(connection, f"{AT} 00:00:30Z")
    reign.tick(f"{AT} 00:00:31Z")
    with psycopg.connect(dsn) as holder:
        enqueue(holder, 1, unique_key="k0")
        enqueue(holder, 1, unique_key="k1")
        entries = reign.entries(f"{AT} 00:01:01Z")
        answer = reign.send(entries, f"{AT} 00:01:01Z")
        assert (answer["moved"], len(answer["alone"])) == (20, 2)
        for one in entries:
            if one["id"] in answer["alone"]:
                assert reign.send([one], f"{AT} 00:01:01Z")["left"] == [one["id"]]
        holder.rollback()
    reign.tick(f"{AT} 00:01:02Z")
    assert all(history(connection, name) == [("01 00:01", "made")] for name in ("keyed0", "keyed1", "plain0", "plain19"))


def test_a_server_that_is_out_of_room_for_a_moment_loses_no_tick(connection: Any, reign: Reign) -> None:
    schedule(connection, cron="* * * * *", catch_up="all", overlap="skip", at=f"{AT} 00:00:30Z")
    reign.tick(f"{AT} 00:00:31Z")
    connection.execute("create function public.no_room() returns trigger language plpgsql as $$ begin raise exception using errcode = '53100', message = 'no room'; end $$")
    connection.execute("create trigger no_room before insert on pgsched.job for each row execute function public.no_room()")
    [entry] = reign.entries(f"{AT} 00:01:01Z")
    assert reign.send([entry], f"{AT} 00:01:01Z")["left"] == [entry["id"]]
    connection.execute("drop trigger no_room on pgsched.job")
    reign.tick(f"{AT} 00:01:02Z")
    assert history(connection) == [("01 00:01", "made")]


def test_what_was_due_before_a_change_or_a_pause_is_judged_by_catch_up(connection: Any, reign: Reign) -> None:
    for name, options in (("none", {}), ("last", {"catch_up": "last"}), ("window", {"catch_up": "all", "catch_up_window": "1 h"})):
        schedule(connection, name, cron="0 * * * *", at=f"{AT} 00:30Z", **options)
    reign.tick(f"{AT} 00:31Z")
    connection.execute("select pgsched.pause_schedule(name) from pgsched.schedule")
    connection.execute("update pgsched.schedule set paused_at = %s", (f"{AT} 05:10Z",))
    connection.execute("select pgsched.resume_schedule(name) from pgsched.schedule")
    as_if_at(connection, f"{AT} 05:35Z")
    reign.tick(f"{AT} 05:35Z", f"{AT} 06:00Z")
    assert history(connection, "none") == [("01 01:00 to 01 05:35 (None)", "missed"), ("01 06:00", "made")]
    assert history(connection, "last") == [("01 01:00", "made"), ("01 05:35 to 01 05:35 (None)", "missed"), ("01 06:00", "made")]
    assert history(connection, "window") == [("01 01:00 to 01 05:35 (None)", "missed"), ("01 06:00", "made")]


def test_a_strangers_job_that_holds_the_key_is_neither_waited_for_nor_cancelled(connection: Any, reign: Reign) -> None:
    [stranger] = enqueue(connection, 1, unique_key="k")
    given = {"name": "s", "cron": "* * * * *", "overlap": "cancel", "catch_up": "all", "jobs": [{"task": "t", "queue": "q", "unique_key": "k"}]}
    connection.execute("select pgsched.put_schedule(%s)", (json.dumps(given),))
    as_if_at(connection, f"{AT} 00:00:30Z")
    reign.tick(f"{AT} 00:00:31Z", f"{AT} 00:01:01Z", f"{AT} 00:02:01Z")
    assert history(connection) == [("01 00:01", "skipped"), ("01 00:02", "skipped")]
    assert places(connection) == {stranger: "ready"}


def test_what_was_backfilled_and_forgotten_is_not_made_again(connection: Any, reign: Reign) -> None:
    schedule(connection, cron="0 0 1 1 *", catch_up="all", at="2019-12-31 12:00Z")
    reign.tick("2019-12-31 12:01Z")
    connection.execute("select pgsched.pause_schedule('s')")
    connection.execute("update pgsched.schedule set paused_at = '2020-01-02'")  # (it is due, and not made)
    connection.execute("select pgsched.backfill_schedule('s', array['2020-01-01 00:00Z'::timestamptz])")
    connection.execute("delete from pgsched.schedule_tick")
    connection.execute("update pgsched.schedule set pruned_until = '2020-01-01 00:00Z'")
    connection.execute("select pgsched.resume_schedule('s')")
    reign.tick("2020-01-03 00:00Z")
    assert connection.execute("select count(*) from pgsched.job").fetchone() == (1,)
    connection.execute("update pgsched.job set schedule_id = null, tick_at = null")  # (its history was taken away by hand)


@pytest.mark.parametrize("first", ["run time", "code"])
def test_who_comes_second_is_refused_also_where_the_first_is_not_committed_yet(dsn: str, connection: Any, first: str) -> None:
    one = {"name": "x", "cron": "0 3 * * *", "jobs": [{"task": "t", "queue": "q"}]}
    by_hand = ("select pgsched.put_schedule(%s)", (json.dumps(one),))
    by_code = ("select pgsched.declare_schedules('q', %s, 1)", (json.dumps([one | {"cron": "0 4 * * *"}]),))
    before, after = (by_hand, by_code) if first == "run time" else (by_code, by_hand)
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as other:
        holder.execute(*before)
        second = Blocked(other, *after)
        second.until_blocked(holder)
        holder.commit()
        with pytest.raises(psycopg.DatabaseError, match="was made at run time" if first == "run time" else "is declared by its code") as error:
            second.result()
    assert error.value.sqlstate == "PGS16"
    cron = connection.execute("select cron from pgsched.schedule").fetchone()
    assert cron == ("0 3 * * *" if first == "run time" else "0 4 * * *",)


def test_a_schedule_that_is_made_again_by_hand_is_not_paused_from_birth(connection: Any) -> None:
    schedule(connection, cron="0 3 * * *")
    connection.execute("select pgsched.pause_schedule('s')")
    connection.execute("select pgsched.unschedule('s')")
    schedule(connection, cron="0 4 * * *")
    assert connection.execute("select paused_at from pgsched.schedule").fetchone() == (None,)
