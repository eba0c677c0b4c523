"""Cancel against what moves the job at the same moment, and what its answer says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from harness.graphs import release_all
from harness.protocol import Blocked, Steps, enqueue, places


@pytest.fixture
def worker(dsn: str) -> Iterator[Steps]:
    steps = Steps(dsn)
    yield steps
    steps.close()


def one_in_each_place(worker: Steps, connection: Any) -> dict[str, int]:
    """A job in each state that it can be in; the claimed ones first."""
    running, succeeded, failed = enqueue(connection, 3)
    claims = {claim["job_id"]: claim for claim in worker.claim(3)}
    worker.finish(claims[succeeded])
    worker.finish(claims[failed], outcome="failed")
    (ready,) = enqueue(connection)
    (scheduled,) = enqueue(connection, delay_s=3600, unique_key="k")
    return {"running": running, "ready": ready, "scheduled": scheduled, "succeeded": succeeded, "failed": failed}


def test_a_cancel_says_what_each_job_was_and_what_waits_ends_at_once(worker: Steps, connection: Any) -> None:
    jobs = one_in_each_place(worker, connection)
    answer = connection.execute("select * from pgsched.cancel_many(%s, 'enough')", ([*jobs.values()],)).fetchall()
    assert dict(answer) == {jobs[state]: state for state in ("running", "ready", "scheduled")}
    assert places(connection) == {
        jobs["running"]: "running", jobs["ready"]: "cancelled", jobs["scheduled"]: "cancelled",
        jobs["succeeded"]: "succeeded", jobs["failed"]: "failed",
    }  # fmt: skip
    assert connection.execute("select state from pgsched.jobs where id = %s", (jobs["running"],)).fetchone() == ("cancelling",)
    assert connection.execute("select reason from pgsched.finished where job_id = %s", (jobs["ready"],)).fetchone() == ("cancelled: enough",)
    assert connection.execute("select count(*) from pgsched.job_key").fetchone() == (0,), "the key is free again"
    assert connection.execute("select * from pgsched.cancel_many(%s)", ([*jobs.values()],)).fetchall() == [], "again changes nothing"


def test_a_dry_run_gives_the_same_answer_and_changes_nothing(worker: Steps, connection: Any) -> None:
    jobs = one_in_each_place(worker, connection)
    before = places(connection)
    dry = connection.execute("select * from pgsched.cancel_many(%s, 'x', true)", ([*jobs.values()],)).fetchall()
    assert places(connection) == before
    assert connection.execute("select count(*) from pgsched.running where stop_requested_at is not null").fetchone() == (0,)
    assert connection.execute("select count(*) from pgsched.job_key").fetchone() == (1,)
    assert dry == connection.execute("select * from pgsched.cancel_many(%s, 'x')", ([*jobs.values()],)).fetchall()


def test_a_dry_run_that_is_null_is_one(worker: Steps, connection: Any) -> None:
    (running,) = enqueue(connection)
    worker.claim()
    (ready,) = enqueue(connection)
    for job, was in ((running, "running"), (ready, "ready")):
        assert connection.execute("select * from pgsched.cancel(%s, null, null)", (job,)).fetchall() == [(job, was)]
    assert places(connection) == {running: "running", ready: "ready"}
    assert connection.execute("select count(*) from pgsched.running where stop_requested_at is not null").fetchone() == (0,)


def test_a_reason_is_cut_to_500_characters(worker: Steps, connection: Any) -> None:
    (running,) = enqueue(connection)
    claim = worker.claim()[0]
    (ready,) = enqueue(connection)
    connection.execute("select pgsched.cancel_many(%s, repeat('x', 20000000))", ([running, ready],))
    cut = "cancelled: " + 500 * "x"
    told = worker.work.execute("select note from pgsched.stops(%s)", (worker.id,)).fetchall()
    assert told == [{"note": cut}]
    assert worker.finish(claim, outcome="cancelled") == ["cancelled"]
    assert connection.execute("select reason from pgsched.finished").fetchall() == [(cut,), (cut,)]


@pytest.mark.parametrize("ids", ["array[[1, 2]]", "array[[1, null]]", "array[1, null]", "null"])
def test_what_is_no_list_of_ids_is_refused_as_such(connection: Any, ids: LiteralString) -> None:
    with pytest.raises(psycopg.Error, match="array of jobs' ids") as error:
        connection.execute(f"select pgsched.cancel_many({ids})")
    assert error.value.sqlstate == "PGS09"


def test_an_unknown_job_is_an_error_and_no_other_is_cancelled(worker: Steps, connection: Any) -> None:
    (job,) = enqueue(connection)
    with pytest.raises(psycopg.Error, match="there is no job 999") as error:
        connection.execute("select * from pgsched.cancel_many(%s)", ([job, 999],))
    assert error.value.sqlstate == "PGS05"
    assert places(connection) == {job: "ready"}


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_cancel_at_another_isolation_level_is_refused(connection: Any, level: str) -> None:
    (job,) = enqueue(connection)
    with connection.transaction():
        connection.execute(f"set transaction isolation level {level}")
        with pytest.raises(psycopg.Error, match="READ COMMITTED"):
            connection.execute("select pgsched.cancel(%s)", (job,))
        connection.execute("rollback; begin")


@pytest.mark.parametrize("claim_commits", [True, False])
def test_a_cancel_meets_a_claim_on_its_way_and_finds_the_job_where_it_went(
    worker: Steps, dsn: str, connection: Any, claim_commits: bool
) -> None:
    (job,) = enqueue(connection)
    worker.work.autocommit = False
    worker.claim()
    with psycopg.connect(dsn, autocommit=True) as canceller:
        waiting = Blocked(canceller, "select * from pgsched.cancel(%s)", (job,))
        waiting.until_blocked(worker.work)
        worker.work.commit() if claim_commits else worker.work.rollback()
        assert waiting.result() == [(job, "running" if claim_commits else "ready")]
    worker.work.rollback()
    assert places(connection) == {job: "running" if claim_commits else "cancelled"}


@pytest.mark.parametrize("outcome", ["succeeded", "retry", "give_back"])
def test_a_cancel_meets_a_finish_on_its_way(worker: Steps, dsn: str, connection: Any, outcome: str) -> None:
    (job,) = enqueue(connection, max_attempts=9)
    claim = worker.claim()[0]
    worker.work.autocommit = False
    worker.finish(claim, outcome=outcome, after_s=3600)
    with psycopg.connect(dsn, autocommit=True) as canceller:
        waiting = Blocked(canceller, "select * from pgsched.cancel(%s)", (job,))
        waiting.until_blocked(worker.work)
        worker.work.commit()
        was = {"succeeded": [], "retry": [(job, "retrying")], "give_back": [(job, "ready")]}[outcome]
        assert waiting.result() == was
    assert places(connection) == {job: "succeeded" if outcome == "succeeded" else "cancelled"}


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "retry", "snooze", "give_back", "conflict", "broken"])
def test_whatever_is_reported_of_a_cancelled_job_it_ends_as_cancelled(worker: Steps, connection: Any, outcome: str) -> None:
    (job,) = enqueue(connection, max_attempts=9)
    claim = worker.claim()[0]
    connection.execute("select pgsched.cancel(%s, 'enough')", (job,))
    assert worker.finish(claim, outcome=outcome, after_s=1, reason="its own") == ["cancelled"]
    assert connection.execute("select state, reason, result from pgsched.finished").fetchone() == ("cancelled", "cancelled: enough", None)


def test_a_cancel_goes_no_further_down_where_another_ends_one_in_between(dsn: str, connection: Any) -> None:
    (head,) = enqueue(connection)
    (expired,) = enqueue(connection, depends_on=[{"job": head}], expires_at="2001-01-01T00:00:00Z")
    (below,) = enqueue(connection, depends_on=[{"job": expired}])
    with psycopg.connect(dsn) as stager, psycopg.connect(dsn, autocommit=True) as canceller:
        stager.execute("select pgsched.stage()")
        waiting = Blocked(canceller, "select * from pgsched.cancel(%s)", (head,))
        waiting.until_blocked(stager)
        stager.commit()
        assert waiting.result() == [(head, "ready")]
    release_all(connection)
    ends = connection.execute("select job_id, state, cause_job_id from pgsched.finished order by 1").fetchall()
    assert ends == [(head, "cancelled", None), (expired, "skipped", None), (below, "skipped", expired)]


def test_a_cancel_takes_along_what_comes_below_while_it_waits(dsn: str, connection: Any) -> None:
    (head,) = enqueue(connection)
    (below,) = enqueue(connection, depends_on=[{"job": head}])
    with psycopg.connect(dsn) as other, psycopg.connect(dsn, autocommit=True) as canceller:
        other.execute("select from pgsched.waiting where job_id = %s for update", (below,))
        (new,) = enqueue(other, depends_on=[{"job": below}])
        waiting = Blocked(canceller, "select * from pgsched.cancel(%s)", (head,))
        waiting.until_blocked(other)
        other.commit()
        assert waiting.result() == [(head, "ready"), (below, "blocked"), (new, "blocked")]
    ends = connection.execute("select job_id, state, cause_job_id from pgsched.finished order by 1").fetchall()
    assert ends == [(head, "cancelled", None), (below, "cancelled", head), (new, "cancelled", below)]
    release_all(connection)


def test_jobs_that_are_claimed_finished_and_staged_all_the_time_are_always_found(dsn: str, connection: Any) -> None:
    over = threading.Event()
    errors: list[BaseException] = []

    def churn() -> None:
        steps = Steps(dsn)
        try:
            while not over.is_set():
                for claim in steps.claim(5):
                    steps.finish(claim, outcome="retry" if claim["job_id"] % 2 else "give_back", after_s=0)
                steps.work.execute("select pgsched.stage()")
        except BaseException as error:
            errors.append(error)
        finally:
            steps.close()

    ids = enqueue(connection, 200, max_attempts=2_000_000)
    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        was = [connection.execute("select was from pgsched.cancel(%s)", (job,)).fetchone() for job in ids]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert errors == [] and None not in was
    left = connection.execute("select count(*) from pgsched.running where stop_reason = 'cancel'").fetchone()[0]
    assert left + list(places(connection).values()).count("cancelled") == 200
