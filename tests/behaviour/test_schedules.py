"""Schedules as users see them. Where a clock is needed it is moved: nothing here waits for a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from harness.graphs import release
from harness.protocol import Steps, places
from harness.ticking import Reign, as_if_at, history, next_tick, schedule

import pgsched
from pgsched import App, ScheduleError, every
from pgsched.errors import ArgumentsError, InvalidSchedule

DAY = "2200-01-01"


@pytest.fixture
def reign(dsn: str) -> Any:
    """A session that leads."""
    leader = Reign(dsn)
    yield leader
    leader.session.close()


def one(connection: Any, query: str, *params: Any) -> Any:
    return connection.execute(query, params).fetchone()[0]


# ---- Which ticks are made late ----------------------------------------------------------------------------------------

# A schedule of each hour; nobody led since half past midnight. At a time, what is made and what is missed of 1, 2, 3 o'clock.
CATCH_UP: list[tuple[dict[str, Any], str, list[tuple[str, str]]]] = [
    ({"catch_up": "none"}, "01:00:00.003", [("01 01:00", "made")]),
    ({"catch_up": "none"}, "03:00:30", [("01 01:00 to 01 02:00 (2)", "missed"), ("01 03:00", "made")]),
    ({"catch_up": "none"}, "03:01:00", [("01 01:00 to 01 02:00 (2)", "missed"), ("01 03:00", "made")]),
    ({"catch_up": "none"}, "03:01:01", [("01 01:00 to 01 03:00 (3)", "missed")]),
    ({"catch_up": "last"}, "03:59:59", [("01 01:00 to 01 02:00 (2)", "missed"), ("01 03:00", "made")]),
    ({"catch_up": "last"}, "01:59:59", [("01 01:00", "made")]),
    ({"catch_up": "last", "catch_up_window": "30 min"}, "03:30", [("01 01:00 to 01 02:00 (2)", "missed"), ("01 03:00", "made")]),
    ({"catch_up": "last", "catch_up_window": "30 min"}, "03:31", [("01 01:00 to 01 03:00 (3)", "missed")]),
    ({"catch_up": "all"}, "03:59", [("01 01:00", "made"), ("01 02:00", "made"), ("01 03:00", "made")]),
    ({"catch_up": "all", "catch_up_limit": 2}, "03:59", [("01 01:00 to 01 01:00 (1)", "missed"), ("01 02:00", "made"), ("01 03:00", "made")]),
    ({"catch_up": "all", "catch_up_window": "90 min"}, "03:15", [("01 01:00 to 01 01:00 (1)", "missed"), ("01 02:00", "made"), ("01 03:00", "made")]),
    ({"catch_up": "all", "catch_up_window": "1 h", "catch_up_limit": 1}, "03:59", [("01 01:00 to 01 02:00 (2)", "missed"), ("01 03:00", "made")]),
    ({"catch_up": "all", "catch_up_window": "1 min"}, "03:59", [("01 01:00 to 01 03:00 (3)", "missed")]),
    ({"catch_up": "all", "ends_at": f"{DAY} 02:30+00"}, "09:59", [("01 01:00", "made"), ("01 02:00", "made")]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "at", "expected"), CATCH_UP, ids=[f"{o} at {at}" for o, at, _ in CATCH_UP])
def test_catch_up_says_which_ticks_are_made_late(
    reign: Reign, connection: Any, options: dict[str, Any], at: str, expected: list[tuple[str, str]]
) -> None:
    schedule(connection, cron="0 * * * *", at=f"{DAY} 00:30Z", **options)
    reign.tick(f"{DAY} 00:30:01Z")
    assert next_tick(connection) == "01 01:00"
    reign.tick(f"{DAY} {at}Z")
    assert history(connection) == expected
    made = [at for at, outcome in expected if outcome == "made"]
    assert one(connection, "select count(*) from pgsched.job") == len(made)
    if "ends_at" not in options:
        hour = int(at[:2])
        assert next_tick(connection) == f"01 {hour + 1:02}:00"
        reign.tick(f"{DAY} {hour + 1:02}:00Z")
        assert history(connection)[-1] == (f"01 {hour + 1:02}:00", "made")
    else:
        assert next_tick(connection) is None


def test_a_year_that_was_missed_is_one_row_and_takes_no_time(reign: Reign, connection: Any) -> None:
    schedule(connection, every="1 s", at=f"{DAY} 00:00:00.5Z", catch_up="all", catch_up_limit=5)
    schedule(connection, "none", every="1 s", at=f"{DAY} 00:00:00.5Z")
    reign.tick(f"{DAY} 00:00:00.6Z", "2201-01-01 00:00:00Z")
    found = history(connection)
    assert found[0] == ("01 00:00:01 to 31 23:59:55 (None)", "missed"), "more than a thousand are not counted"
    assert [outcome for _, outcome in found[1:]] == ["made"] * 5
    assert history(connection, "none") == [("01 00:00:01 to 31 23:59:59 (None)", "missed"), ("01 00:00", "made")]


# ---- What a tick does while an earlier run has not ended -----------------------------------------------------------------


@pytest.fixture
def minutely(reign: Reign, connection: Any, request: Any) -> Any:
    """A schedule of each minute with this overlap, which has made its first job: the job."""
    schedule(connection, cron="* * * * *", overlap=request.param, at=f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:00:31Z", f"{DAY} 00:01Z")
    return one(connection, "select job_id from pgsched.schedule_tick")


def outcomes(connection: Any) -> list[tuple[str, str | None]]:
    rows = connection.execute("select outcome, reason from pgsched.schedule_tick order by tick_at").fetchall()
    return [(outcome, reason) for outcome, reason in rows]


@pytest.mark.parametrize("minutely", ["allow"], indirect=True)
def test_overlap_allow_makes_the_next_job_all_the_same(reign: Reign, connection: Any, minutely: int) -> None:
    reign.tick(f"{DAY} 00:02Z")
    assert places(connection) == {minutely: "ready", minutely + 1: "ready"}
    assert outcomes(connection)[1] == ("made", None)


@pytest.mark.parametrize("minutely", ["skip"], indirect=True)
def test_overlap_skip_makes_none_and_names_the_job_that_has_not_ended(dsn: str, reign: Reign, connection: Any, minutely: int) -> None:
    steps = Steps(dsn)
    reign.tick(f"{DAY} 00:02Z")
    [claim] = steps.claim()
    reign.tick(f"{DAY} 00:03Z")
    steps.finish(claim, outcome="snooze", after_s=600)
    reign.tick(f"{DAY} 00:04Z")
    assert outcomes(connection)[1:] == [("skipped", f"job {minutely} of an earlier tick has not ended")] * 3
    connection.execute("select pgsched.cancel(%s)", (minutely,))
    reign.tick(f"{DAY} 00:05Z")
    assert outcomes(connection)[4] == ("made", None)
    steps.close()


@pytest.mark.parametrize("minutely", ["queue"], indirect=True)
def test_overlap_queue_lets_the_next_job_wait_for_every_earlier_one(dsn: str, reign: Reign, connection: Any, minutely: int) -> None:
    steps = Steps(dsn)
    reign.tick(f"{DAY} 00:02Z", f"{DAY} 00:03Z")
    second, third = minutely + 1, minutely + 2
    assert places(connection) == {minutely: "ready", second: "waiting", third: "waiting"}
    assert outcomes(connection)[1:] == [("queued", f"it waits for job {minutely} of an earlier tick")] * 2
    connection.execute("select pgsched.cancel(%s)", (second,))
    release(connection)
    assert places(connection)[third] == "waiting", "the first has not ended"
    steps.finish(*steps.claim(), outcome="failed")
    release(connection)
    assert places(connection)[third] == "ready", "however the first has ended"
    steps.close()


@pytest.mark.parametrize("minutely", ["queue"], indirect=True)
def test_overlap_queue_is_bounded(reign: Reign, connection: Any, minutely: int) -> None:
    for minute in range(2, 104):
        reign.tick(f"{DAY} {minute // 60:02}:{minute % 60:02}Z")
    found = outcomes(connection)
    assert [outcome for outcome, _ in found] == ["made"] + ["queued"] * 99 + ["skipped"] * 3
    assert found[-1][1] == "100 earlier runs have not ended, as many as may wait for each other"


@pytest.mark.parametrize("minutely", ["cancel"], indirect=True)
def test_overlap_cancel_ends_what_waits_and_tells_what_runs_to_stop(dsn: str, reign: Reign, connection: Any, minutely: int) -> None:
    steps = Steps(dsn)
    reign.tick(f"{DAY} 00:02Z")
    second = minutely + 1
    assert places(connection) == {minutely: "cancelled", second: "ready"}
    assert outcomes(connection)[1] == ("made", None)
    [claim] = steps.claim()
    reign.tick(f"{DAY} 00:03Z")
    third = second + 1
    assert places(connection) == {minutely: "cancelled", second: "running", third: "waiting"}
    assert outcomes(connection)[2] == ("queued", f"it waits for job {second} of an earlier tick, which was told to stop")
    assert one(connection, "select stop_note from pgsched.running") == 'cancelled: the next tick of schedule "s" came'
    steps.finish(claim)
    release(connection)
    assert places(connection) == {minutely: "cancelled", second: "cancelled", third: "ready"}
    steps.close()


def test_ticks_that_are_made_late_together_keep_the_overlap(reign: Reign, connection: Any) -> None:
    for overlap in ("allow", "skip", "queue", "cancel"):
        schedule(connection, overlap, cron="0 * * * *", overlap=overlap, catch_up="all", at=f"{DAY} 00:30Z")
    reign.tick(f"{DAY} 00:30:01Z", f"{DAY} 03:30Z")
    found = {name: [outcome for _, outcome in history(connection, name)] for name in ("allow", "skip", "queue", "cancel")}
    assert found == {
        "allow": ["made"] * 3,
        "skip": ["made", "skipped", "skipped"],
        "queue": ["made", "queued", "queued"],
        "cancel": ["made"] * 3,
    }
    states = connection.execute(
        "select state, count(*) from pgsched.jobs j where id in (select job_id from pgsched.schedule_ticks where name = 'cancel') group by 1"
    ).fetchall()
    assert dict(states) == {"cancelled": 2, "ready": 1}


def test_a_change_from_allow_to_skip_counts_what_had_been_made(reign: Reign, connection: Any) -> None:
    schedule(connection, cron="* * * * *", at=f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:00:31Z", f"{DAY} 00:01Z")
    schedule(connection, cron="* * * * *", overlap="skip")
    reign.tick(f"{DAY} 00:02Z")
    assert history(connection) == [("01 00:01", "made"), ("01 00:02", "skipped")]


# ---- Workflows, jitter, unique keys ----------------------------------------------------------------------------------------

ETL = {
    "name": "etl", "app": "a", "cron": "0 * * * *", "workflow": "etl", "overlap": "queue",
    "jobs": [
        {"name": "load", "task": "load", "queue": "q", "depends_on": [{"name": "extract", "inputs": [["rows"]]}]},
        {"name": "extract", "task": "extract", "queue": "q"},
    ],
}  # fmt: skip


def test_a_schedule_may_start_a_workflow_whose_roots_wait_for_the_run_before(dsn: str, reign: Reign, connection: Any) -> None:
    connection.execute("select pgsched.put_schedule(%s)", (json.dumps(ETL),))
    as_if_at(connection, f"{DAY} 00:30Z")
    reign.tick(f"{DAY} 00:31Z", f"{DAY} 01:00Z", f"{DAY} 02:00Z")
    runs = connection.execute("select workflow_id, outcome from pgsched.schedule_tick order by tick_at").fetchall()
    assert [outcome for _, outcome in runs] == ["made", "queued"]
    jobs = connection.execute(
        "select j.workflow_id, j.name, s.state from pgsched.job j join pgsched.jobs s using (id) where j.tick_at is not null order by 1, 2"
    ).fetchall()
    (first, _), (second, _) = runs
    assert jobs == [(first, "extract", "ready"), (first, "load", "blocked"), (second, "extract", "blocked"), (second, "load", "blocked")]
    steps = Steps(dsn)
    for _ in range(2):
        steps.finish(*steps.claim())
        release(connection)
    states = connection.execute("select j.name, s.state from pgsched.job j join pgsched.jobs s using (id) where j.workflow_id = %s order by 1", (second,)).fetchall()
    assert states == [("extract", "ready"), ("load", "blocked")]
    steps.close()


def test_jitter_moves_the_job_and_not_the_tick(reign: Reign, connection: Any) -> None:
    for number in range(200):
        schedule(connection, f"s{number}", every="1 h", jitter="30 min", at=f"{DAY} 00:30Z")
    reign.tick(f"{DAY} 00:30:01Z", f"{DAY} 01:00Z")
    rows = connection.execute("select tick_at, extract(epoch from run_at - tick_at) / 60 from pgsched.job").fetchall()
    assert {tick for tick, _ in rows} == {datetime(2200, 1, 1, 1, tzinfo=UTC)}
    minutes = [float(minute) for _, minute in rows]
    assert len(minutes) == 200 and 0 <= min(minutes) < 5 and 25 < max(minutes) <= 30


def test_a_tick_whose_unique_key_is_taken_is_skipped_and_says_by_whom(reign: Reign, connection: Any) -> None:
    job = {"task": "t", "queue": "q", "unique_key": "k"}
    connection.execute("select pgsched.put_schedule(%s)", (json.dumps({"name": "s", "every_s": 60, "jobs": [job]}),))
    as_if_at(connection, f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:00:31Z", f"{DAY} 00:01Z", f"{DAY} 00:02Z")
    assert outcomes(connection) == [("made", None), ("skipped", "job 1 holds its unique key")]


# ---- What cannot be made, or planned -------------------------------------------------------------------------------------------


def test_one_bad_schedule_stops_none_of_its_neighbours_and_is_shown(reign: Reign, connection: Any) -> None:
    for name in ("a", "bad", "c"):
        schedule(connection, name, every="60 s", args=json.dumps({"x": "y" * (5000 if name == "bad" else 5)}), at=f"{DAY} 00:00:30Z")
    connection.execute("update pgsched.setting set value = '1000' where name = 'max_args_bytes'")
    reign.tick(f"{DAY} 00:00:31Z", f"{DAY} 00:01Z", f"{DAY} 00:02Z")
    assert history(connection, "a") == history(connection, "c") == [("01 00:01", "made"), ("01 00:02", "made")]
    assert history(connection, "bad") == [("01 00:01", "refused"), ("01 00:02", "refused")]
    problem = one(connection, "select problem from pgsched.schedules where name = 'bad'")
    assert problem.startswith('a tick could not be made: job 1 (task "t"): its args takes 50')
    connection.execute("update pgsched.setting set value = '1000000' where name = 'max_args_bytes'")
    reign.tick(f"{DAY} 00:03Z")
    assert history(connection, "bad")[-1] == ("01 00:03", "made")
    assert one(connection, "select problem from pgsched.schedules where name = 'bad'") == 'no live worker knows the task "t"'


def test_a_schedule_that_somebody_holds_is_left_for_the_next_round_and_stops_no_other(dsn: str, reign: Reign, connection: Any) -> None:
    for name in ("held", "free"):
        schedule(connection, name, every="60 s", catch_up="last", at=f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:00:31Z")
    with psycopg.connect(dsn) as other:
        other.execute("select from pgsched.schedule where name = 'held' for update")
        entries = reign.entries(f"{DAY} 00:01Z")
        answer = reign.send(entries, f"{DAY} 00:01Z")
        assert (answer["moved"], len(answer["left"])) == (1, 1)
        assert (history(connection, "free"), history(connection, "held")) == ([("01 00:01", "made")], [])
    reign.tick(f"{DAY} 00:01:30Z")
    assert history(connection, "held") == [("01 00:01", "made")]
    assert reign.send(entries, f"{DAY} 00:02Z")["moved"] == 0, "the same batch again moves nothing, also when the next tick is due"


def test_a_jitter_that_only_the_leader_can_see_through_is_shown_as_a_problem(reign: Reign, connection: Any) -> None:
    schedule(connection, cron="*/20 * * * *", jitter="21 min", at=f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:01Z")
    problem = one(connection, "select problem from pgsched.schedules")
    assert problem.startswith("jitter is 0:21:00, longer than the 0:20:00 between two of its ticks")
    assert next_tick(connection) is None
    schedule(connection, cron="*/20 * * * *", jitter="20 min", at=f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:01Z")
    assert next_tick(connection) == "01 00:20"


def test_a_change_that_a_leader_has_not_seen_makes_its_batch_void(reign: Reign, connection: Any) -> None:
    schedule(connection, every="60 s", at=f"{DAY} 00:00:30Z")
    reign.tick(f"{DAY} 00:00:31Z")
    for change in ("select pgsched.schedule('s', 't', 'q', every => '60 s', priority => 1)", "select pgsched.pause_schedule('s')"):
        entries = reign.entries(f"{DAY} 00:01Z")
        connection.execute(change)
        assert reign.send(entries, f"{DAY} 00:01Z")["moved"] == 0
    assert history(connection) == []


# ---- Deploys --------------------------------------------------------------------------------------------------------------------


def version(dsn: str, cron: str | None, deployment: int | None) -> App:
    """A version of an application: with a schedule of this cron text, or with none."""
    app = App("shop", dsn=dsn, deployment=deployment)

    @app.task(name="t")
    async def task() -> None: ...

    if cron is not None:
        app.schedule("s", task, cron, catch_up="last")
    return app


def deploy(connection: Any, app: App, at: str, *, apply: bool = False) -> Any:
    """A worker of this version starts at this time; what its declaration answers."""
    try:
        answer = app.schedules.declare(apply=apply)
    finally:
        app.close()
    as_if_at(connection, at)
    return answer


def test_a_deploy_its_rollback_and_both_versions_at_once(dsn: str, reign: Reign, connection: Any) -> None:
    """The table of docs/schedules.md."""
    hourly, half_past = "0 * * * *", "30 * * * *"
    steps: list[tuple[str, int, str, str]] = [
        ("00:50", 1, hourly, "added"),
        ("01:10", 2, half_past, "changed"),  # a deploy
        ("01:20", 1, hourly, "older"),  # a worker of the version before starts again
        ("01:25", 2, half_past, "same"),
        ("02:40", 3, hourly, "changed"),  # a rollback is a deploy, too
        ("02:45", 2, half_past, "older"),
        ("04:10", 3, hourly, "same"),
    ]
    for minute in range(50, 5 * 60):
        at = f"{minute // 60:02}:{minute % 60:02}"
        for when, number, cron, expected in steps:
            if when == at:
                answer = deploy(connection, version(dsn, cron, number), f"{DAY} {at}:00Z")
                what = {"added": answer.added, "changed": answer.changed, "older": answer.older_than is not None and ["s"]}
                assert [key for key, names in what.items() if names] == ([] if expected == "same" else [expected]), at
        reign.tick(f"{DAY} {at}:01Z")
    assert history(connection) == [(f"01 {at}", "made") for at in ("01:00", "01:30", "02:30", "03:00", "04:00")]


def test_without_a_number_a_worker_adds_and_only_apply_changes_and_removes(dsn: str, connection: Any) -> None:
    at = f"{DAY} 00:00Z"
    assert deploy(connection, version(dsn, "0 * * * *", None), at).added == ["s"]
    kept = deploy(connection, version(dsn, "30 * * * *", None), at)
    assert (kept.changed, kept.kept) == ([], ["s"])
    assert one(connection, "select cron from pgsched.schedules") == "0 * * * *"
    assert deploy(connection, version(dsn, "30 * * * *", None), at, apply=True).changed == ["s"]
    assert deploy(connection, version(dsn, None, None), at).removed == []
    assert deploy(connection, version(dsn, None, None), at, apply=True).removed == ["s"]
    assert connection.execute("select * from pgsched.schedules").fetchall() == []
    again = deploy(connection, version(dsn, "30 * * * *", None), at)
    assert (again.added, again.kept) == ([], ["s"]), "what was removed is not brought back by a worker"
    assert deploy(connection, version(dsn, "30 * * * *", None), at, apply=True).added == ["s"]
    assert one(connection, "select count(*) from pgsched.schedule") == 1


def test_an_older_deployment_is_refused_by_apply(dsn: str, connection: Any) -> None:
    deploy(connection, version(dsn, "0 * * * *", 7), f"{DAY} 00:00Z")
    with pytest.raises(InvalidSchedule, match=r'deployment 6 of application "shop" is older than 7.*a number of its own'):
        deploy(connection, version(dsn, None, 6), f"{DAY} 00:00Z", apply=True)


def test_a_declaration_touches_neither_other_applications_nor_what_was_made_at_run_time(dsn: str, connection: Any) -> None:
    schedule(connection, "by hand", every="60 s", app="shop")
    schedule(connection, "s", every="60 s", app="other")
    assert deploy(connection, version(dsn, "0 * * * *", 1), f"{DAY} 00:00Z").added == ["s"]
    assert deploy(connection, version(dsn, None, 2), f"{DAY} 00:00Z").removed == ["s"]
    rows = connection.execute("select app, name, origin from pgsched.schedules order by 1").fetchall()
    assert rows == [("other", "s", "runtime"), ("shop", "by hand", "runtime")]
    schedule(connection, "s", every="60 s", app="shop")
    with pytest.raises(InvalidSchedule, match=r'schedule "s" of application "shop" was made at run time'):
        deploy(connection, version(dsn, "0 * * * *", 3), f"{DAY} 00:00Z")


def test_a_deploy_leaves_a_pause_as_it_is_and_a_change_of_arguments_the_next_tick(dsn: str, reign: Reign, connection: Any) -> None:
    deploy(connection, version(dsn, "0 * * * *", 1), f"{DAY} 00:30Z")
    reign.tick(f"{DAY} 00:31Z")
    connection.execute("select pgsched.pause_schedule('s')")
    app = version(dsn, None, 2)
    app.schedule("s", app.tasks["t"].using(priority=1), "0 * * * *", catch_up="last")
    assert deploy(connection, app, f"{DAY} 00:40Z").changed == ["s"]
    assert (one(connection, "select is_paused from pgsched.schedules"), next_tick(connection)) == (True, "01 01:00")
    reign.tick(f"{DAY} 01:30Z")
    assert history(connection) == []


def test_a_tick_that_was_due_when_the_definition_changed_is_still_made(reign: Reign, connection: Any) -> None:
    """With times of today: what is overdue is decided by the server's clock."""
    now = datetime.now(UTC).replace(microsecond=0)
    schedule(connection, every="60 s", anchor=now - timedelta(seconds=30), at=(now - timedelta(seconds=45)).isoformat())
    reign.tick((now - timedelta(seconds=44)).isoformat())
    schedule(connection, every="86400 s", anchor=now)
    reign.tick((now + timedelta(seconds=1)).isoformat())
    ticks = connection.execute("select tick_at, outcome from pgsched.schedule_tick").fetchall()
    assert ticks == [(now - timedelta(seconds=30), "made")]
    assert one(connection, "select next_tick_at from pgsched.schedule") == now + timedelta(days=1)


# ---- By hand --------------------------------------------------------------------------------------------------------------------


def test_pause_resume_run_now_and_backfill(dsn: str, reign: Reign, connection: Any) -> None:
    app = App("shop", dsn=dsn)

    @app.task(name="t")
    async def task(where: str = "here") -> None: ...

    day = datetime(2020, 2, 1, tzinfo=UTC)
    app.schedules.put("s", task.bind(where="eu"), "0 * * * *", overlap="skip")
    assert (app.schedules.pause("s"), app.schedules.pause("s")) == (True, False)
    by_hand = app.schedules.run_now("s")
    assert by_hand.outcome == "made" and by_hand.job_id is not None
    again = app.schedules.run_now("s")
    assert (again.outcome, again.reason) == ("skipped", f"by hand, by postgres: job {by_hand.job_id} of an earlier tick has not ended")
    with pytest.raises(ScheduleError, match="would make more than 10 ticks"):
        app.schedules.backfill("s", day, day + timedelta(hours=11), at_most=10)
    first = app.schedules.backfill("s", day, day + timedelta(hours=2))
    assert [(made.outcome, made.tick_at) for made in first] == [("queued", day + timedelta(hours=n)) for n in range(3)]
    second = app.schedules.backfill("s", day + timedelta(hours=1), day + timedelta(hours=3))
    assert [made.outcome for made in second] == ["there", "there", "queued"]
    assert [made.job_id for made in second[:2]] == [made.job_id for made in first[1:]]
    with pytest.raises(InvalidSchedule, match="is not in the past"):
        app.schedules.backfill("s", datetime(2199, 12, 31, 23, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))
    assert (app.schedules.resume("s"), app.schedules.resume("s")) == (True, False)
    assert [row["name"] for row in app.schedules.all()] == ["s"]
    app.schedules.remove("s")
    assert app.schedules.all() == []
    app.close()


def test_a_backfill_makes_what_was_missed_and_not_what_was_made(reign: Reign, connection: Any) -> None:
    schedule(connection, cron="0 * * * *", at="2020-02-01 00:30Z")
    reign.tick("2020-02-01 00:31Z", "2020-02-01 03:00:10Z")
    assert history(connection) == [("01 01:00 to 01 02:00 (2)", "missed"), ("01 03:00", "made")]
    ticks = [f"2020-02-01 0{hour}:00Z" for hour in (1, 2, 3)]
    rows = connection.execute("select pgsched.backfill_schedule('s', %s::timestamptz[])", (ticks,)).fetchall()
    assert [row["outcome"] for (row,) in rows] == ["made", "made", "there"]
    assert one(connection, "select count(*) from pgsched.job") == 3


def test_prune_never_lets_a_tick_be_made_again(reign: Reign, connection: Any) -> None:
    schedule(connection, cron="0 * * * *", at="2020-02-01 00:30Z", catch_up="all")
    reign.tick("2020-02-01 00:31Z", "2020-02-01 03:00:10Z")
    connection.execute("select pgsched.cancel_many(array(select id from pgsched.job))")
    assert one(connection, "select pgsched.prune('0')") == 3
    assert history(connection) == []
    with pytest.raises(psycopg.Error, match=r"the history is pruned up to .*: whether the tick at .* was made is not known"):
        connection.execute("select pgsched.backfill_schedule('s', '{2020-02-01 03:00Z}')")
    reign.tick("2020-02-01 03:30Z")
    assert history(connection) == [] and next_tick(connection) == "01 04:00"


def test_a_pause_leaves_out_its_ticks_and_not_what_was_due_before(reign: Reign, connection: Any) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    schedule(connection, every="60 s", anchor=now - timedelta(seconds=30), catch_up="last", at=(now - timedelta(seconds=45)).isoformat())
    reign.tick((now - timedelta(seconds=44)).isoformat())
    connection.execute("select pgsched.pause_schedule('s')")
    reign.tick((now + timedelta(hours=1)).isoformat())
    assert connection.execute("select * from pgsched.schedule_tick").fetchall() == []
    connection.execute("select pgsched.resume_schedule('s')")
    reign.tick((now + timedelta(seconds=29)).isoformat())
    ticks = connection.execute("select tick_at, outcome from pgsched.schedule_tick").fetchall()
    assert ticks == [(now - timedelta(seconds=30), "made")]


# ---- What bad input gets ----------------------------------------------------------------------------------------------------------

BAD_CODE: list[tuple[dict[str, Any], str]] = [
    ({"cron": "61 * * * *"}, 'cron "61 \\* \\* \\* \\*": "61" cannot be the minute .field 1 of 5.'),
    ({"cron": "0 0 30 2 *"}, "never fires"),
    ({"timezone": "EST"}, 'timezone "EST" is an abbreviation.*America/New_York'),
    ({"timezone": "America/New_Yrok"}, "did you mean America/New_York"),
    ({"starts_at": datetime(2030, 1, 1)}, "starts_at is datetime.datetime.2030, 1, 1, 0, 0.: it must be an aware datetime"),
    ({"jitter": timedelta(minutes=61)}, "jitter is 1:01:00, longer than the 1:00:00 between two of its ticks"),
    ({"jitter": timedelta(seconds=-1)}, "must not be negative"),
    ({"name": "n" * 1000}, "its name is .*: a text of 1 to 200 characters"),
    ({"makes": "a text"}, "a tick enqueues a task, one with its arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_CODE, ids=[str(options)[:40] for options, _ in BAD_CODE])
def test_what_cannot_be_meant_is_refused_where_it_is_written(options: dict[str, Any], message: str) -> None:
    app = App("shop")

    @app.task
    async def task() -> None: ...

    given: dict[str, Any] = {"name": "s", "makes": task, "cron": "0 * * * *"}
    with pytest.raises(ScheduleError, match=message):
        app.schedule(**(given | options))
    assert app.schedules.declared == {}


def test_a_task_that_needs_arguments_and_a_doubled_name_are_refused() -> None:
    app = App("shop")

    @app.task
    async def task(where: str) -> None: ...

    with pytest.raises(ArgumentsError, match="where"):
        app.schedule("s", task, "@daily")  # type: ignore[arg-type]
    app.schedule("s", task.bind("eu"), every(timedelta(days=1)))
    with pytest.raises(ScheduleError, match='two schedules of App "shop" are named "s"'):
        app.schedule("s", task.bind("us"), "@daily")
    with pytest.raises(pgsched.UsageError, match="deployment is -1"):
        App("shop", deployment=-1)


BAD_SQL: list[tuple[str, str]] = [
    ("cron => '61 * * * *'", 'schedule "s": cron "61 * * * *": "61" cannot be the minute; allowed are * and 0-59'),
    ("cron => '0 0 30 2 *'", 'cron "0 0 30 2 *" never fires'),
    ("cron => '@daily', timezone => 'EST'", 'timezone "EST" is an abbreviation, which says nothing about summer time'),
    ("cron => '@daily', timezone => 'Nowhere'", 'timezone "Nowhere" is unknown'),
    ("every => '-1 s'", "every is -1 s: it must be whole seconds"),
    ("every => '0.5 s'", "every is 0.5 s: it must be whole seconds"),
    ("every => '60 s', cron => '@daily'", "give either cron or every"),
    ("every => '60 s', jitter => '61 s'", "jitter is 61 s, longer than the 60 s between its ticks"),
    ("every => '60 s', jitter => '-1 s'", "jitter is -1 s: it must lie between 0 and 100 years"),
    ("every => '60 s', catch_up => 'all', catch_up_limit => 10001", "catch_up_limit is 10001: it must lie between 1 and 10000"),
    ("every => '60 s', catch_up => 'some'", 'catch_up is "some": it is none, last or all'),
    ("every => '60 s', catch_up_window => '-1 s'", "catch_up_window is -1 s"),
    ("every => '60 s', overlap => 'never'", 'overlap is "never": it is allow, skip, queue or cancel'),
    ("every => '60 s', starts_at => '2200-01-02', ends_at => '2200-01-01'", "not after starts_at"),
    ("every => '60 s', starts_at => 'infinity'", "they must lie in the years 1 to 9998"),
    ("every => '60 s', args => '[]'", "args is a JSON array: it must be an object keyed by parameter name"),
    ("every => '60 s', priority => 10", "priority is 10: it is a number from 0"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_SQL, ids=[options for options, _ in BAD_SQL])
def test_what_cannot_be_is_refused_from_sql_and_leaves_nothing(connection: Any, options: str, message: str) -> None:
    with pytest.raises(psycopg.Error) as error:
        connection.execute(f"select pgsched.schedule('s', 't', 'q', {options})")
    assert message in str(error.value)
    assert error.value.sqlstate in ("PGS16", "PGS05")
    assert one(connection, "select count(*) from pgsched.schedule") == 0


def test_a_name_of_a_thousand_characters_an_absolute_time_and_another_jobs_id_are_refused(connection: Any) -> None:
    job = {"task": "t", "queue": "q"}
    cases = [
        ({"name": "n" * 1000}, "a schedule's name has 1 to 200 characters"),
        ({"jobs": [job | {"run_at": "2200-01-01"}]}, "run_at, delay and expires_at are of one job, not of a schedule"),
        ({"jobs": [job | {"depends_on": [{"job": 1}]}]}, "depends on a job that is there already"),
        ({"jobs": [job, job]}, "jobs is what each tick enqueues: an array of one job"),
        ({"every": 5}, "has unknown fields: every"),
        ({"every_s": "often"}, "every_s is"),
    ]
    for change, message in cases:
        with pytest.raises(psycopg.Error, match=message):
            connection.execute("select pgsched.put_schedule(%s)", (json.dumps({"name": "s", "every_s": 60, "jobs": [job]} | change),))


def test_a_task_that_no_code_registers_is_accepted_and_shown(dsn: str, connection: Any) -> None:
    schedule(connection, every="60 s")
    problem = "select problem from pgsched.schedules"
    assert one(connection, problem) == 'no live worker knows the task "t"'
    steps = Steps(dsn, tasks=["t"])
    assert one(connection, problem) == ""
    steps.close()


def test_what_the_code_declares_is_neither_changed_nor_removed_by_a_call(dsn: str, connection: Any) -> None:
    deploy(connection, version(dsn, "0 * * * *", 1), f"{DAY} 00:00Z")
    for call in ("schedule('s', 't', 'q', every => '60 s', app => 'shop')", "unschedule('s')"):
        with pytest.raises(psycopg.Error, match=r'schedule "s" of application "shop" is declared by its code'):
            connection.execute(f"select pgsched.{call}")
    schedule(connection, "s", every="60 s", app="other")
    with pytest.raises(psycopg.Error, match='schedules of "other", "shop" are named "s"'):
        connection.execute("select pgsched.pause_schedule('s')")
    with pytest.raises(psycopg.Error, match='there is no schedule "x"'):
        connection.execute("select pgsched.pause_schedule('x')")


def test_a_client_may_schedule_a_reader_may_look_and_only_a_workers_role_may_tick(server: Any, dsn: str, connection: Any) -> None:
    roles = [f"{level}_{connection.info.dbname}" for level in ("reader", "client", "worker")]
    for role in roles:
        connection.execute(f'create role "{role}"')
        connection.execute("select pgsched.grant_access(%s, %s)", (role, role.split("_")[0]))
    calls = {
        "select * from pgsched.schedules": roles,
        "select * from pgsched.schedule_ticks": roles,
        "select pgsched.schedule('s', 't', 'q', every => '60 s')": roles[1:],
        "select pgsched.pause_schedule('s')": roles[1:],
        "select pgsched.declare_schedules('shop', '[]')": roles[1:],
        "select pgsched.due_schedules(1)": [],
        "select pgsched.tick_schedules('[]')": [],
    }
    try:
        for call, allowed in calls.items():
            for role in roles:
                connection.execute(f'set role "{role}"')
                try:
                    connection.execute(call)
                    found = True
                except psycopg.Error as error:
                    assert error.sqlstate in (("PGS11",) if role == roles[2] else ("42501",)), (call, role)
                    found = False
                finally:
                    connection.execute("reset role")
                assert found == (role in allowed), (call, role)
    finally:
        for role in roles:
            connection.execute(f'drop owned by "{role}"')
            connection.execute(f'drop role "{role}"')
