"""Former lives of a job: what a retry, a rerun or a deadline leaves behind must not reach into the next one. Step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.graphs import release_all
from harness.protocol import Blocked, Steps, enqueue, places

pytestmark = pytest.mark.one_server

RERUN = "select * from pgsched.rerun_workflow(%s, %s)"


@pytest.fixture
def steps(dsn: str) -> Iterator[Steps]:
    worker = Steps(dsn)
    yield worker
    worker.close()


def flow(connection: Any, *jobs: dict[str, Any], **options: Any) -> tuple[int, list[int]]:
    text = json.dumps({"name": "w", "jobs": [{"task": "t", "queue": "q"} | job for job in jobs]} | options)
    answer = connection.execute("select pgsched.enqueue_workflow(%s)", (text,)).fetchone()[0]
    return answer["workflow_id"], answer["job_ids"]


def takes_a_result(connection: Any, steps: Steps) -> tuple[int, int, int, int]:
    """P in one workflow has succeeded; T in another takes its result and has failed."""
    w, [p] = flow(connection, {"name": "p"})
    steps.finish(*steps.claim(), result="first life")
    w2, [t] = flow(connection, {"name": "t", "depends_on": [{"job": p, "inputs": [["rows"]]}]})
    release_all(connection)
    steps.finish(*steps.claim(), outcome="failed", error="no")
    return w, p, w2, t


@pytest.mark.parametrize("how", ["retry", "rerun"])
def test_who_takes_a_result_waits_for_an_open_rerun_that_takes_it_away(connection: Any, dsn: str, steps: Steps, how: str) -> None:
    w, p, w2, t = takes_a_result(connection, steps)
    with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn, autocommit=True) as two:
        one.execute("begin")
        one.execute(RERUN, (w, ["p"]))
        call = ("select * from pgsched.retry(%s)", (t,)) if how == "retry" else (RERUN, (w2, ["t"]))
        second = Blocked(two, *call)
        second.until_blocked(one)
        one.execute("commit")
        second.result()
    release_all(connection)
    assert (places(connection)[p], places(connection)[t]) == ("ready", "waiting")
    steps.finish(*steps.claim(), result="second life")
    release_all(connection)
    [claim] = steps.claim()
    assert (claim["job_id"], claim["extra"]) == (t, {"inputs": [[["rows"], "second life"]]})
    steps.finish(claim)


def test_a_rerun_waits_for_who_is_about_to_take_a_result_and_is_refused(connection: Any, dsn: str, steps: Steps) -> None:
    w, p, _, t = takes_a_result(connection, steps)
    with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn, autocommit=True) as two:
        one.execute("begin")
        one.execute("select * from pgsched.retry(%s)", (t,))
        second = Blocked(two, RERUN, (w, ["p"]))
        second.until_blocked(one)
        one.execute("commit")
        with pytest.raises(psycopg.DatabaseError, match=f"takes the result of .*job {p}.*, and has not ended"):
            second.result()
    assert steps.claim()[0]["extra"] == {"inputs": [[["rows"], "first life"]]}


def test_a_deadline_takes_subtasks_along_with_their_parent_and_never_alone(connection: Any, steps: Steps) -> None:
    w, [p, x] = flow(connection, {"name": "p"}, {"name": "x", "depends_on": [{"name": "p"}]}, deadline_s=3600)
    [claim] = steps.claim()
    subs = enqueue(connection, 4, parent_id=p, parent_claim_id=claim["claim_id"])
    steps.finish(claim)
    connection.execute("update pgsched.workflow set deadline = clock_timestamp() where id = %s", (w,))
    for _ in range(5):
        connection.execute("select pgsched.enforce_deadlines(1)")
        release_all(connection)
        assert places(connection)[x] != "ready"
    assert {places(connection)[job] for job in (p, x, *subs)} == {"cancelled"}


def test_a_job_that_cannot_be_cancelled_stops_no_deadline(connection: Any) -> None:
    (w, [a, lost]), (_, [other]) = flow(connection, {"name": "a"}, {"name": "lost"}, deadline_s=3600), flow(connection, {"name": "b"}, deadline_s=3600)
    connection.execute("delete from pgsched.ready where job_id = %s", (lost,))
    connection.execute("update pgsched.workflow set deadline = clock_timestamp()")
    for _ in range(2):  # (it is looked for a second before it is given up)
        connection.execute("select pgsched.enforce_deadlines(1000)")
    assert (places(connection)[a], places(connection)[other]) == ("cancelled", "cancelled")
    assert connection.execute("select deadline_over_at is null from pgsched.workflow where id = %s", (w,)).fetchone() == (True,)
    connection.execute("insert into pgsched.ready (queue, priority, job_id) values ('q', 5, %s)", (lost,))  # (as it was)


def test_conflicts_of_a_former_life_or_attempt_are_not_counted(connection: Any, steps: Steps) -> None:
    connection.execute("update pgsched.setting set value = '3' where name = 'max_conflicts'")
    [job] = enqueue(connection, max_attempts=1)

    def conflict() -> str:
        connection.execute("update pgsched.waiting set run_at = clock_timestamp() - interval '1 s'")
        connection.execute("select pgsched.stage()")
        steps.finish(*steps.claim(), outcome="conflict")
        return places(connection)[job]

    assert [conflict() for _ in range(4)] == ["waiting", "waiting", "waiting", "failed"]
    connection.execute("select * from pgsched.retry(%s)", (job,))
    assert [conflict() for _ in range(2)] == ["waiting", "waiting"]
    connection.execute("update pgsched.waiting set run_at = clock_timestamp() - interval '1 s'")
    connection.execute("select pgsched.stage()")
    steps.finish(*steps.claim(), outcome="snooze", after_s=0)
    assert [conflict() for _ in range(4)] == ["waiting", "waiting", "waiting", "failed"]


def test_what_had_ended_by_a_cause_and_was_cancelled_then_stays_out_of_a_rerun(connection: Any, steps: Steps) -> None:
    w, [a, d] = flow(connection, {"name": "a"}, {"name": "d", "depends_on": [{"name": "a"}]})
    steps.finish(*steps.claim(), outcome="failed", error="no")
    release_all(connection)
    connection.execute("select * from pgsched.cancel(%s)", (d,))
    assert connection.execute(RERUN, (w, ["a"])).fetchall() == [(a, "failed")]
    steps.finish(*steps.claim())
    release_all(connection)
    assert places(connection) == {a: "succeeded", d: "skipped"}


def test_who_needs_a_parent_that_has_cancelled_itself_does_not_wait_for_its_subtasks(connection: Any, steps: Steps) -> None:
    _, [p, x] = flow(connection, {"name": "p"}, {"name": "x", "depends_on": [{"name": "p"}]})
    [claim] = steps.claim()
    enqueue(connection, 1, parent_id=p, parent_claim_id=claim["claim_id"])
    [sub] = steps.claim()
    steps.finish(claim, outcome="cancelled")
    release_all(connection)
    assert (places(connection)[p], places(connection)[x]) == ("waiting", "cancelled")
    assert connection.execute("select state from pgsched.workflows").fetchone() == ("running",)
    steps.finish(sub)
    release_all(connection)
    assert places(connection)[p] == "cancelled"


def test_a_retry_in_bulk_passes_by_subtasks(connection: Any, steps: Steps) -> None:
    enqueue(connection)
    [claim] = steps.claim()
    enqueue(connection, 3, parent_id=claim["job_id"], parent_claim_id=claim["claim_id"])
    steps.finish(claim)
    steps.finish(*steps.claim(), outcome="failed", error="no")
    release_all(connection)
    rows = connection.execute('select job_id, outcome from pgsched.retry_failed("limit" => 3)').fetchall()
    assert rows == [(claim["job_id"], "retried")]
