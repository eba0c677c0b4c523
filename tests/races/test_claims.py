"""Claims and finishes: each scenario is a script of steps. The guard that each one tests is named in tests/README.md."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from harness.protocol import Blocked, Steps, enqueue, places


@pytest.fixture
def worker(dsn: str) -> Any:
    steps = Steps(dsn)
    yield steps
    steps.close()


def test_two_claims_at_once_never_take_the_same_job(worker: Steps, connection: Any) -> None:
    ids = enqueue(connection, 10)
    other = worker.open_session()
    with worker.work.transaction():
        first = worker.claim(6)
        second = worker.claim(6, session=other)
    assert sorted(c["job_id"] for c in first + second) == ids
    assert [c["job_id"] for c in first] == ids[:6], "in the order of entry"


def test_a_claim_that_is_rolled_back_leaves_its_jobs_ready(worker: Steps, connection: Any) -> None:
    ids = enqueue(connection, 3)
    with worker.work.transaction(force_rollback=True):
        before = worker.claim()
    after = worker.claim()
    assert [c["job_id"] for c in after] == ids
    assert not {c["claim_id"] for c in before} & {c["claim_id"] for c in after}, "a claim's number never repeats"


def test_second_finish_of_a_claim_changes_nothing(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    claim = worker.claim()[0]
    assert worker.finish(claim, result=1) == ["accepted"]
    assert worker.finish(claim, outcome="failed") == ["already"]
    assert connection.execute("select state, result from pgsched.finished").fetchall() == [("succeeded", 1)]


def test_a_resent_retry_is_known_although_the_job_runs_again(worker: Steps, connection: Any) -> None:
    enqueue(connection, max_attempts=5)
    first = worker.claim()[0]
    assert worker.finish(first, outcome="retry", after_s=0) == ["accepted"]
    connection.execute("select pgsched.stage()")
    second = worker.claim()[0]
    assert worker.finish(first, outcome="succeeded") == ["already"], "a resend must not end the second claim"
    assert worker.finish(second) == ["accepted"]
    assert second["claim_id"] > first["claim_id"] and (first["attempt"], second["attempt"]) == (1, 2)


def test_a_snoozed_job_keeps_its_attempt_number_and_gets_another_fence(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    first = worker.claim()[0]
    worker.finish(first, outcome="snooze", after_s=0)
    connection.execute("select pgsched.stage()")
    second = worker.claim()[0]
    assert first["attempt"] == second["attempt"] == 1
    assert worker.finish(dict(second, claim_id=first["claim_id"])) == ["already"]
    assert places(connection) == {first["job_id"]: "running"}


def test_another_workers_finish_is_stale(worker: Steps, dsn: str, connection: Any) -> None:
    enqueue(connection)
    claim = worker.claim()[0]
    other = Steps(dsn)
    assert other.finish(claim) == ["stale"]
    assert worker.finish(dict(claim, claim_id=claim["claim_id"] + 1)) == ["stale"]
    assert worker.finish(claim) == ["accepted"]
    other.close()


def test_a_finish_steps_over_a_held_row_and_says_busy(worker: Steps, connection: Any) -> None:
    enqueue(connection, 2)
    held, free = worker.claim()
    with connection.transaction():
        connection.execute("select from pgsched.running where job_id = %s for update", (held["job_id"],))
        assert worker.finish(held, free) == ["busy", "accepted"]
    assert worker.finish(held) == ["accepted"]


def test_a_finish_whose_first_sending_is_not_committed_is_busy_then_already(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    claim = worker.claim()[0]
    second = worker.open_session()
    with worker.work.transaction():
        assert worker.finish(claim) == ["accepted"]
        assert worker.finish(claim, session=second) == ["busy"]
    assert worker.finish(claim, session=second) == ["already"]


STOP = "update pgsched.running set stop_requested_at = clock_timestamp(), stop_reason = %s"


@pytest.mark.parametrize("stop", ["cancel", "timeout"])
@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_finish_sees_a_cancel_that_commits_between_its_snapshot_and_its_lock(worker: Steps, dsn: str, connection: Any, outcome: str, stop: str) -> None:
    # 1. finish takes its snapshot and stops at a gate; 2. a cancel (or a timeout) commits; 3. finish goes on: the row it locks
    # is newer than its snapshot, and must still be deleted, once, and end as cancelled (or as reported).
    job_id = enqueue(connection)[0]
    claim = worker.claim()[0]
    connection.execute(
        "create function pgsched.pass_gate() returns boolean language plpgsql as $$ begin "
        "perform pg_advisory_xact_lock(4711); return true; end $$"
    )
    text = connection.execute("select pg_get_functiondef('pgsched.settle'::regproc)").fetchone()[0]
    plain = "where outcome = 'succeeded' and (result is null"
    general = "last_session integer, lenient boolean)\n    ),"
    if outcome == "succeeded":
        gated = text.replace(plain, plain.replace("where", "where pgsched.pass_gate() and"))
    else:
        gated = text.replace(general, "last_session integer, lenient boolean) where pgsched.pass_gate()\n    ),")
    assert gated.count("pass_gate") == 1
    connection.execute(gated)
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(4711)")
        results = f'[{{"job_id": {job_id}, "claim_id": {claim["claim_id"]}, "outcome": "{outcome}"}}]'
        finish = Blocked(worker.work, "select verdict from pgsched.finish(%s, %s)", (worker.id, results))
        finish.until_blocked(connection)
        with psycopg.connect(dsn, autocommit=True) as canceller:
            canceller.execute(STOP, (stop,))
    assert [row["verdict"] for row in finish.result()] == ["cancelled" if stop == "cancel" else "accepted"]
    assert places(connection) == {job_id: "cancelled" if stop == "cancel" else outcome}


def test_a_cancelled_job_ends_as_cancelled_whatever_is_reported_and_a_timed_out_one_as_reported(worker: Steps, connection: Any) -> None:
    outcomes = ("succeeded", "retry", "snooze", "give_back", "failed", "cancelled")
    ids = enqueue(connection, len(outcomes), max_attempts=5)
    claims = worker.claim()
    connection.execute(STOP, ("cancel",))
    for claim, outcome in zip(claims, outcomes, strict=True):
        assert worker.finish(claim, outcome=outcome) == ["cancelled"]
    assert places(connection) == dict.fromkeys(ids, "cancelled")
    late = enqueue(connection, max_attempts=5)[0]
    claim = worker.claim()[0]
    connection.execute(STOP, ("timeout",))
    assert worker.finish(claim, outcome="retry") == ["accepted"]
    assert places(connection)[late] == "waiting"


def test_a_transactional_success_is_not_accepted_from_a_work_session(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    claim = worker.claim()[0]
    connection.execute("update pgsched.running set transactional = true")
    assert worker.finish(claim) == ["rolled_back"]
    assert worker.finish(claim, outcome="failed") == ["accepted"]


@pytest.mark.parametrize("default", ["off", "local", "on", "remote_apply"])
def test_claims_and_finishes_are_durable_whatever_the_roles_default(worker: Steps, connection: Any, default: str) -> None:
    enqueue(connection)
    session = worker.work
    session.execute(f"set synchronous_commit = {default}")
    expected = "on" if default in ("off", "local") else default
    for call in (
        lambda: worker.claim(),
        lambda: session.execute("select pgsched.finish(%s, '[]')", (worker.id,)),
        lambda: session.execute("select pgsched.reconcile(%s, '{}', '{}')", (worker.id,)),
    ):
        with session.transaction():
            call()
            assert session.execute("show synchronous_commit").fetchone() == {"synchronous_commit": expected}
        assert session.execute("show synchronous_commit").fetchone() == {"synchronous_commit": default}


@pytest.mark.breaks_invariants
def test_one_bad_row_of_each_kind_never_stops_its_neighbours(worker: Steps, dsn: str, connection: Any) -> None:
    known = Steps(dsn, tasks=["t"])
    doubled, gone, expired, unknown, *good = enqueue(connection, 8)
    connection.execute("update pgsched.job set task = 'of another version' where id = %s", (unknown,))
    connection.execute("delete from pgsched.job where id = %s", (gone,))
    connection.execute("update pgsched.ready set expires_at = clock_timestamp() where job_id = %s", (expired,))
    running = known.claim(1)[0]
    assert running["job_id"] == doubled
    connection.execute("insert into pgsched.ready (queue, priority, job_id) values ('q', 0, %s)", (doubled,))
    claims = known.claim(100)
    assert [c["job_id"] for c in claims] == good
    found = places(connection)
    assert (found[doubled], found[gone], found[expired], found[unknown]) == ("running", "failed", "skipped", "waiting")
    row = connection.execute("select reason, attempt from pgsched.waiting where job_id = %s", (unknown,)).fetchone()
    assert row == ("unknown_task", 0)
    reason = connection.execute("select reason from pgsched.finished where job_id = %s", (gone,)).fetchone()[0]
    assert reason == "its definition is gone from the table job"
    assert known.finish(running, *claims) == ["accepted"] * 5
    known.close()


def test_a_claim_of_jobs_that_cannot_run_says_look_again_and_not_empty(dsn: str, connection: Any) -> None:
    known = Steps(dsn, tasks=["t"])
    enqueue(connection, 3, task="other")
    rows = known.work.execute(
        'select * from pgsched.claim(%s, \'{"lanes": [{"queue": "q", "priority": 5}], "max_jobs": 5}\')', (known.id,)
    ).fetchall()
    assert [(row["job_id"], row["extra"]) for row in rows] == [(None, {"again": True})]
    assert known.claim() == []
    known.close()


def test_what_is_only_held_keeps_its_expiry_and_comes_back_with_it(worker: Steps, connection: Any) -> None:
    enqueue(connection, 2, expires_at="2100-01-01T00:00:00Z")
    begun, held = worker.claim(2, free_slots=1)
    rows = connection.execute("select job_id, started_at is null, expires_at is null from pgsched.running order by job_id").fetchall()
    assert rows == [(begun["job_id"], False, False), (held["job_id"], True, False)]
    worker.finish(begun, held, outcome="give_back")
    rows = connection.execute("select job_id, expires_at is null from pgsched.ready order by job_id").fetchall()
    assert rows == [(begun["job_id"], True), (held["job_id"], False)]


def test_a_claim_on_a_session_that_is_not_the_workers_is_refused(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    with pytest.raises(psycopg.Error) as error:
        worker.claim(session=connection)
    assert error.value.sqlstate == "PGS02"
    connection.execute("select set_config('pgsched.session', %s, false)", (f"{worker.id}:guess:1",))
    with pytest.raises(psycopg.Error, match="is not one of worker"):
        worker.claim(session=connection)


def test_a_migration_that_changes_what_a_statement_answers_is_survived(dsn: str, connection: Any) -> None:
    # (R25) The worker drops the prepared statement by taking a new session.
    from harness import apps
    from harness.running import ENDED, ended, working

    with working(apps.app, dsn) as running:
        for i in range(8):
            running.wait_until(ended(*enqueue(connection, task="noop", queue="tests", args={"i": i})))
        with connection.transaction():
            connection.execute("alter function pgsched.finish(bigint, jsonb, jsonb) rename to finish_before")
            connection.execute(
                "create function pgsched.finish(worker_id bigint, results jsonb, want jsonb) returns table (verdict text, lane integer, "
                '"position" bigint, job_id bigint, claim_id bigint, attempt bigint, task text, args jsonb, "timeout" interval, extra jsonb) '
                'language sql as $$ select verdict, lane, "position", job_id, claim_id, attempt, task, args, timeout, extra '
                "from pgsched.finish_before(worker_id, results, want) $$"
            )
        apps.app.use(dsn)
        enqueue(connection, task="noop", queue="tests")
        running.wait_until(ENDED)
