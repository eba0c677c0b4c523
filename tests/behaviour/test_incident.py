"""The incident that pgsched exists to make impossible, line by line, in the incident's own words and order."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.believing import pair, together
from harness.graphs import release
from harness.protocol import Steps, enqueue, places
from harness.server import Server
from harness.ticking import Reign, as_if_at, next_tick
from psycopg.types.json import Jsonb

import pgsched
from pgsched import App


@pytest.mark.one_server
def test_both_nodes_believe_they_are_the_leader_never_in_and_after_a_partition(server: Server, tmp_path: Path) -> None:
    """`Node 1 still believes it holds the lock`, and its `Renewal succeeded`: step by step as in `Split-Brain`."""
    with pair(server, tmp_path) as nodes:  # 1. Start two scheduler nodes
        prod_1, prod_2 = nodes.nodes
        assert nodes.leader() == "prod-1"
        prod_1.link.cut()  # 2. Simulate network partition (block traffic to node 1)
        nodes.wait("prod-2 acquires leadership", lambda: bool(prod_2.beliefs()), patience_s=10)  # 3. and 4.
        prod_1.link.restore()  # 5. Restore network
        nodes.wait("prod-1 is back", lambda: nodes.standing() == {"prod-1", "prod-2"})
        time.sleep(2)  # 6. Both nodes now claim leadership: they do not
        assert nodes.leader() == "prod-2"
        assert together(nodes.nodes) == [], "both believed at one time"
        assert [belief.term for belief in prod_1.beliefs()] == [1], "what prod-1 had was not renewed after its end"
        terms = nodes.watch.execute("select term, name, end_reason from pgsched.leader_term order by term").fetchall()
        assert terms == [(1, "prod-1", "its session ended"), (2, "prod-2", None)]


def test_jobs_executed_twice_53_should_be_0(dsn: str, connection: Any) -> None:
    """`Executing job: job_12345` by prod-1 and by prod-2 at 06:23:00: two that claim at once never get the same job."""
    ids = enqueue(connection, 1247)
    prod_1, prod_2 = Steps(dsn, name="prod-1"), Steps(dsn, name="prod-2")
    taken: list[int] = []
    while True:
        with prod_1.work.transaction():
            first = prod_1.claim(53)
            second = prod_2.claim(53)
        taken += [claim["job_id"] for claim in first + second]
        if not first and not second:
            break
    assert sorted(taken) == ids
    prod_1.close()
    prod_2.close()


def test_same_job_executed_by_both_the_second_result_is_not_accepted(dsn: str, connection: Any) -> None:
    """`Same job executed by both leaders!`: a job that was taken from a node and given to another has one result."""
    enqueue(connection)
    prod_1, prod_2 = Steps(dsn, name="prod-1"), Steps(dsn, name="prod-2")
    first = prod_1.claim()[0]
    prod_1.finish(first, outcome="give_back")
    second = prod_2.claim()[0]
    assert prod_1.finish(first, result="of prod-1") == ["stale"]
    assert prod_2.finish(second, result="of prod-2") == ["accepted"]
    assert connection.execute("select result from pgsched.jobs").fetchall() == [("of prod-2",)]
    prod_1.close()
    prod_2.close()


def test_a_result_that_nobody_received_does_not_exist(dsn: str, connection: Any) -> None:
    """`Nobody received the result`: what a finish has accepted is in the table, and stays there."""
    enqueue(connection)
    node = Steps(dsn)
    node.finish(node.claim()[0], result={"rows": 892})
    node.close()
    assert connection.execute("select state, result from pgsched.jobs").fetchall() == [("succeeded", {"rows": 892})]


def test_a_daily_cron_job_that_is_supposed_to_run_at_9_am_est_runs_at_9_am_est(dsn: str, connection: Any) -> None:
    """`Schedule: "0 9 * * *" (intended: 9 AM EST)`, `Executed at: 09:00 UTC (4 AM EST)`: `Timezone setting was stored but not used`."""
    app = App("ScheduleMax", dsn=dsn)

    @app.task(name="daily_refresh")
    async def daily_refresh() -> None: ...

    app.schedule("daily_refresh", daily_refresh, cron="0 9 * * *", timezone="America/New_York")
    app.schedules.declare()
    app.close()
    as_if_at(connection, "2024-01-17 05:00Z")
    connection.execute("update pgsched.schedule set base_at = '2024-01-17 05:00Z'")
    leader = Reign(dsn)
    leader.tick("2024-01-17 05:00Z")
    assert next_tick(connection, "daily_refresh") == "17 14:00"
    leader.tick("2024-01-17 09:00Z", "2024-01-17 13:59:59Z")
    assert connection.execute("select * from pgsched.job").fetchall() == [], "9 AM UTC is 4 AM EST"
    leader.tick("2024-01-17 14:00Z")
    assert connection.execute("select task, tick_at at time zone 'UTC' from pgsched.job").fetchall() == [
        ("daily_refresh", datetime(2024, 1, 17, 14))
    ]
    leader.close()


def test_retry_backoff_for_attempt_over_50_does_not_wait_forever(connection: Any) -> None:
    """`const delay = this.baseDelay * Math.pow(2, attempt); For attempt > 50, this exceeds MAX_SAFE_INTEGER. Math.min with Infinity
    returns Infinity, so retries wait forever`: attempt 51, 64, 1024 and 10^9 give the cap, in Postgres and in Python."""
    policy = pgsched.Exponential(10, first=timedelta(seconds=1), cap=timedelta(hours=1), jitter="none")
    attempts = [1, 2, 12, 13, 50, 51, 64, 1024, 10**6, 10**9, 2**31 - 1, 2**63 - 1]
    waits = [
        wait
        for (wait,) in connection.execute(
            "select pgsched.backoff(%s, a) from unnest(%s::bigint[]) a", [Jsonb(policy.as_data()), attempts]
        ).fetchall()
    ]
    assert [wait.total_seconds() for wait in waits] == [1, 2, 2048, *[3600] * 9]
    assert waits == [policy.wait(attempt) for attempt in attempts]


def test_a_job_with_over_50_failed_attempts_runs_again_when_the_cap_is_over(dsn: str, connection: Any) -> None:
    """`retries wait forever`: the attempts of one job, as a worker reports them."""
    enqueue(connection, max_attempts=2**31 - 2)
    node = Steps(dsn)
    policy = {"kind": "exponential", "first_s": 60, "cap_s": 3600, "jitter": "none"}
    for attempt in (1, 50, 51, 64, 1024, 10**9):
        connection.execute("update pgsched.ready set attempt = %s - 1", [attempt])
        assert node.finish(node.claim()[0], outcome="retry", policy=policy) == ["accepted"]
        waits = connection.execute("select attempt, run_at - now() <= '1 h', run_at - now() > '59 min' from pgsched.waiting").fetchone()
        assert waits == (attempt, True, attempt > 1)
        connection.execute("update pgsched.waiting set run_at = now()")
        assert connection.execute("select pgsched.stage() ->> 'staged'").fetchone() == ("1",)
    node.close()


def in_order(connection: Any) -> list[str]:
    """The names of a workflow's jobs, in the order in which their handlers began."""
    return [name for (name,) in connection.execute(
        "select j.name from pgsched.job j join pgsched.finished f on f.job_id = j.id where f.claim_id is not null order by f.started_at, j.id"
    )]  # fmt: skip


def run_all(dsn: str, connection: Any, outcomes: dict[str, str] | None = None) -> None:
    """Run all that becomes ready, one job after the other."""
    worker = Steps(dsn)
    names = dict(connection.execute("select id, name from pgsched.job").fetchall())
    while claims := (release(connection), worker.claim(1))[1]:
        worker.finish(*claims, outcome=(outcomes or {}).get(names[claims[0]["job_id"]], "succeeded"))
    worker.close()


def workflow(connection: Any, **edges: list[str]) -> list[int]:
    """A workflow of jobs by name, each with those that it depends on."""
    jobs = [{"task": "t", "queue": "q", "name": name, "depends_on": [{"name": on} for on in ons]} for name, ons in edges.items()]
    text = json.dumps({"name": "daily_etl_pipeline", "jobs": jobs})
    row = connection.execute("select pgsched.enqueue_workflow(%s)", (text,)).fetchone()
    ids: list[int] = row[0]["job_ids"]
    return ids


def test_transform_never_starts_before_extract_has_completed(dsn: str, connection: Any) -> None:
    """`Step 2 (transform): Started at 06:28 (BEFORE step 1!)`: daily_etl_pipeline, its steps given in the wrong order."""
    workflow(connection, transform=["extract"], extract=[], load=["transform"], validate=["load"])
    run_all(dsn, connection)
    assert in_order(connection) == ["extract", "transform", "load", "validate"]


def test_c_then_b_then_a_where_a_depends_on_b_and_b_on_c(dsn: str, connection: Any) -> None:
    """`Wrong DAG Order`: 1. Create DAG: A -> B -> C (A depends on B, B depends on C). 2. Execute DAG."""
    workflow(connection, A=["B"], B=["C"], C=[])
    run_all(dsn, connection)
    assert in_order(connection) == ["C", "B", "A"]


def test_a_dag_with_a_b_c_a_is_detected_and_named(connection: Any) -> None:
    """`We have a DAG with A->B->C->A and it wasn't detected.`"""
    with pytest.raises(psycopg.DatabaseError, match="these jobs wait for each other: A -> C -> B -> A"):
        workflow(connection, A=["B"], B=["C"], C=["A"])
    assert connection.execute("select count(*) from pgsched.job").fetchone() == (0,)


def test_dependents_of_a_cancelled_job_do_not_wait_forever(dsn: str, connection: Any) -> None:
    """`Job cancellation just removes the job from runningJobs but doesn't actually [...] cancel downstream dependencies.`"""
    extract, transform, load = workflow(connection, extract=[], transform=["extract"], load=["transform"])
    worker = Steps(dsn)
    claims = worker.claim()
    assert dict(connection.execute("select * from pgsched.cancel(%s)", (extract,)).fetchall()) == {
        extract: "running", transform: "blocked", load: "blocked",
    }  # fmt: skip
    assert places(connection) == {extract: "running", transform: "cancelled", load: "cancelled"}
    assert worker.finish(*claims, result="done") == ["cancelled"], "no result of it is accepted any more"
    assert places(connection)[extract] == "cancelled"
    worker.close()


def test_no_subtask_of_job_56789_runs_on_and_none_reports_to_nobody(dsn: str, connection: Any) -> None:
    """`Job marked as cancelled. Subtasks still running... Subtask of job_56789 completed: nobody received the result.`"""
    worker = Steps(dsn)
    [job_56789] = enqueue(connection)
    claim = worker.claim(1)[0]
    runs, waits = enqueue(connection, 2, parent_id=job_56789, parent_claim_id=claim["claim_id"])
    [downstream] = enqueue(connection, depends_on=[{"job": job_56789}])
    subtask = worker.claim(1)[0]
    assert subtask["job_id"] == runs
    changed = dict(connection.execute("select * from pgsched.cancel(%s)", (job_56789,)).fetchall())
    assert changed == {job_56789: "running", runs: "running", waits: "ready", downstream: "blocked"}
    told = {row["claim_id"] for row in worker.work.execute("select * from pgsched.stops(%s)", (worker.id,)).fetchall()}
    assert told == {claim["claim_id"], subtask["claim_id"]}, "its worker is told to end both"
    assert worker.finish(claim) == ["cancelled"]
    assert worker.finish(subtask, result="of a subtask") == ["cancelled"], "no result that nobody receives"
    release(connection)
    assert set(places(connection).values()) == {"cancelled"}
    worker.close()


def test_jobs_complete_and_their_dependents_start(dsn: str, connection: Any) -> None:
    """`Jobs completing but dependent jobs not starting`, `Jobs Stuck in Pending: 847`."""
    hub, *_ = workflow(connection, hub=[], **{f"job {i}": ["hub"] for i in range(847)})
    worker = Steps(dsn)
    worker.finish(*worker.claim(1))
    worker.close()
    while release(connection)["more"]:
        pass
    assert connection.execute("select count(*) from pgsched.ready").fetchone() == (847,)
    assert places(connection)[hub] == "succeeded"
