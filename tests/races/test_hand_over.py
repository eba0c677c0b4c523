"""A finish that claims, too, takes what waited for its success alone, without a stop in ready: when it does, and when it must not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.graphs import release_all
from harness.protocol import Blocked, Steps, child, enqueue, places

pytestmark = pytest.mark.one_server

LANES = [{"queue": "q", "priority": priority} for priority in range(10)]


@pytest.fixture
def steps(dsn: str) -> Iterator[Steps]:
    worker = Steps(dsn, tasks=["t"])
    yield worker
    worker.close()


def finish_and_claim(steps: Steps, *claims: dict[str, Any], session: Any = None, outcome: str = "succeeded", **want: Any) -> list[dict[str, Any]]:
    """What comes along with the answer."""
    results = [{"job_id": c["job_id"], "claim_id": c["claim_id"], "outcome": outcome} for c in claims]
    asked = {"lanes": LANES, "max_jobs": 10, "only_new": True} | want
    rows = (session or steps.work).execute("select * from pgsched.finish(%s, %s, %s)", (steps.id, json.dumps(results), json.dumps(asked))).fetchall()
    assert [row["verdict"] for row in rows if row["verdict"] is not None] == ["accepted"] * len(claims)
    return [row for row in rows if row["verdict"] is None and row["job_id"] is not None]


def taken_from_ready(connection: Any) -> int:
    """How many places in ready have been given away."""
    return connection.execute("select case when is_called then last_value else 0 end from pgsched.ready_position_seq").fetchone()[0]


def test_a_chains_next_job_comes_with_the_answer_and_never_is_in_ready(connection: Any, steps: Steps) -> None:
    first = enqueue(connection, args={"n": 1})[0]
    second = child(connection, first, args={"n": 2}, priority=3)
    claim = steps.claim()[0]
    before = taken_from_ready(connection)
    (came,) = finish_and_claim(steps, claim)
    assert (came["job_id"], came["lane"], came["position"], came["attempt"]) == (second, 3, None, 1)
    assert (came["task"], came["args"], came["extra"]) == ("t", {"n": 2}, None)
    assert came["claim_id"] > claim["claim_id"]
    row = connection.execute("select claim_id, worker_id, session_no, started_at is not null from pgsched.running").fetchone()
    assert row == (came["claim_id"], steps.id, 1, True)
    assert taken_from_ready(connection) == before
    assert steps.finish(came) == ["accepted"]
    assert places(connection) == {first: "succeeded", second: "succeeded"}


def test_results_come_along_with_the_job(connection: Any, steps: Steps) -> None:
    first = enqueue(connection)[0]
    child(connection, first)
    connection.execute("update pgsched.dependency set inputs = '[[\"x\"]]'")
    connection.execute("update pgsched.job set takes_results = true where id <> %s", (first,))
    claim = steps.claim()[0]
    results = json.dumps([{"job_id": claim["job_id"], "claim_id": claim["claim_id"], "outcome": "succeeded", "result": 7}])
    want = json.dumps({"lanes": LANES, "max_jobs": 1})
    rows = steps.work.execute("select * from pgsched.finish(%s, %s, %s)", (steps.id, results, want)).fetchall()
    assert [row["extra"] for row in rows if row["task"]] == [{"inputs": [[["x"], 7]]}]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"queue": "other"}, {}),
        ({"priority": 7}, {"lanes": LANES[:5]}),
        ({"task": "unknown"}, {}),
        ({"expires_at": "2999-01-01T00:00:00Z"}, {"max_jobs": 0}),
        ({}, {"max_jobs": 0}),
    ],
    ids=["another queue", "a lane not asked for", "a task not known", "it may expire", "no room"],
)
def test_what_this_call_may_not_claim_becomes_ready_as_ever(connection: Any, steps: Steps, options: dict[str, Any], want: dict[str, Any]) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first, **options)
    claim = steps.claim()[0]
    came = finish_and_claim(steps, claim, **want)
    assert [row["job_id"] for row in came] == []
    assert places(connection)[second] == ("waiting" if "task" in options else "ready")  # (what nobody knows waits for who does)


def test_what_may_expire_goes_through_ready_where_that_is_looked_at(connection: Any, steps: Steps) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first, expires_at="2999-01-01T00:00:00Z")
    before = taken_from_ready(connection)
    (came,) = finish_and_claim(steps, *steps.claim())
    assert came["job_id"] == second and taken_from_ready(connection) == before + 1


def test_what_is_ready_already_is_not_overtaken(connection: Any, steps: Steps) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    earlier = enqueue(connection, priority=9)[0]
    came = finish_and_claim(steps, claim, max_jobs=1)
    assert [row["job_id"] for row in came] == [second]  # (its lane comes first)
    assert places(connection)[earlier] == "ready"
    third = child(connection, second, priority=9)
    (came_now,) = finish_and_claim(steps, *came, max_jobs=1)
    assert came_now["job_id"] == earlier and places(connection)[third] == "ready"


def test_one_call_hands_over_one_and_claims_the_rest_that_it_may(connection: Any, steps: Steps) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    other = enqueue(connection, queue="p")[0]
    came = finish_and_claim(steps, claim, only_new=False, max_jobs=2, lanes=[*LANES, {"queue": "p", "priority": 5}])
    assert sorted(row["job_id"] for row in came) == [second, other]


def test_what_waits_for_another_too_is_not_handed_over(connection: Any, steps: Steps) -> None:
    first, held = enqueue(connection, 2)
    both = child(connection, first, held)
    claims = {claim["job_id"]: claim for claim in steps.claim()}
    assert finish_and_claim(steps, claims[first]) == []
    assert places(connection)[both] == "waiting"
    assert steps.finish(claims[held], outcome="failed", reason="x") == ["accepted"]
    release_all(connection)
    assert places(connection)[both] == "skipped"


def test_where_several_wait_or_a_success_does_not_meet_the_edge_the_edges_decide(connection: Any, steps: Steps) -> None:
    first, held = enqueue(connection, 2)
    both = child(connection, first, held)
    one, two = child(connection, first), child(connection, first)
    on_failure = child(connection, (held, "failure"))
    claims = {claim["job_id"]: claim for claim in steps.claim()}
    came = finish_and_claim(steps, claims[first])
    assert sorted(row["job_id"] for row in came) == [one, two]
    assert finish_and_claim(steps, claims[held]) == []
    release_all(connection)
    assert (places(connection)[both], places(connection)[on_failure]) == ("ready", "skipped")
    steps.finish(*came, *steps.claim())


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_only_a_success_hands_over(connection: Any, steps: Steps, outcome: str) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first)
    assert finish_and_claim(steps, *steps.claim(), outcome=outcome) == []
    release_all(connection)
    assert places(connection)[second] == {"failed": "skipped", "cancelled": "cancelled"}[outcome]


def test_a_cancel_that_holds_the_next_job_keeps_it(dsn: str, connection: Any, steps: Steps) -> None:
    """
    1  a cancel of the second job has not committed
    2  the finish of the first hands nothing over and waits for nobody
    3  the cancel commits: the second job has ended, and nothing remains to be looked at
    """
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    with psycopg.connect(dsn) as canceller:
        canceller.execute("select pgsched.cancel(%s)", (second,))
        assert finish_and_claim(steps, claim) == []
    release_all(connection)
    assert places(connection) == {first: "succeeded", second: "cancelled"}


def test_a_cancel_that_comes_while_the_job_is_handed_over_finds_it_running(dsn: str, connection: Any, steps: Steps) -> None:
    """
    1  a finish has handed the second job over and has not committed
    2  a cancel of that waits
    3  the finish commits: the cancel finds it running, and tells it to stop
    """
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    steps.work.execute("begin")
    (came,) = finish_and_claim(steps, claim)
    with psycopg.connect(dsn, autocommit=True) as canceller:
        cancel = Blocked(canceller, "select * from pgsched.cancel(%s)", (second,))
        cancel.until_blocked(steps.work)
        steps.work.execute("commit")
        assert cancel.result() == [(second, "running")]
    assert steps.finish(came) == ["cancelled"]
    assert places(connection) == {first: "succeeded", second: "cancelled"}


def test_a_dependent_that_is_enqueued_meanwhile_is_not_forgotten(dsn: str, connection: Any, steps: Steps) -> None:
    """
    1  a finish has handed the second job over and has not committed
    2  somebody enqueues one more that depends on the first
    3  the finish commits: the one more runs, too
    """
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    steps.work.execute("begin")
    (came,) = finish_and_claim(steps, claim)
    third = child(connection, first)
    steps.work.execute("commit")
    release_all(connection)
    assert places(connection) == {first: "succeeded", second: "running", third: "ready"}
    steps.finish(came, *steps.claim())


def test_a_job_that_was_handed_over_in_a_lost_answer_goes_back(connection: Any, steps: Steps) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    session = steps.open_session()
    assert len(finish_and_claim(steps, claim, session=session)) == 1
    session.close()
    back = steps.work.execute("select pgsched.reconcile(%s, %s, '{}')", (steps.id, [2])).fetchone()
    assert back == {"reconcile": 1}
    assert places(connection)[second] == "ready"
    steps.finish(*steps.claim())


def test_nothing_is_claimed_on_a_new_timeline_before_its_time(connection: Any, steps: Steps) -> None:
    first = enqueue(connection)[0]
    second = child(connection, first)
    claim = steps.claim()[0]
    connection.execute("update pgsched.installation set not_before = clock_timestamp() + interval '1 min'")
    assert finish_and_claim(steps, claim) == []
    assert places(connection)[second] == "ready"
    connection.execute("update pgsched.installation set not_before = null")
    steps.finish(*steps.claim())


@pytest.mark.parametrize("forged", ["another worker", "another session", "another epoch"])
def test_nothing_is_handed_to_who_has_not_asked_whatever_a_session_says(dsn: str, connection: Any, steps: Steps, forged: str) -> None:
    """pgsched.taker is a setting that anybody may set."""
    first = enqueue(connection)[0]
    second = child(connection, first)
    (claim,) = steps.claim()
    other = Steps(dsn)
    taker = {"worker_id": steps.id, "session_no": 1, "epoch": steps.epoch, "room": 1, "lanes": LANES}
    taker |= {"another worker": {"worker_id": other.id}, "another session": {"session_no": 7}, "another epoch": {"epoch": steps.epoch + 1}}[forged]
    steps.work.execute("select set_config('pgsched.taker', %s, false)", (json.dumps(taker),))
    assert steps.finish(claim) == ["accepted"]
    assert places(connection)[second] == "ready"
    other.close()


def test_a_note_left_in_the_session_hands_out_no_job_of_another(dsn: str, connection: Any, steps: Steps) -> None:
    other = Steps(dsn)
    first, second = enqueue(connection, 2)
    (claim,) = steps.claim(1)
    (foreign,) = other.claim()
    connection.execute("update pgsched.installation set not_before = clock_timestamp() + interval '1 min'")
    steps.work.execute("select set_config('pgsched.taker', %s, false)", (json.dumps({"job": foreign["job_id"]}),))
    assert finish_and_claim(steps, claim) == []
    connection.execute("update pgsched.installation set not_before = null")
    assert other.finish(foreign) == ["accepted"]
    assert places(connection) == {first: "succeeded", second: "succeeded"}
    other.close()


def test_a_job_that_runs_already_against_the_rules_is_only_dropped(connection: Any, steps: Steps) -> None:
    """As a claim drops it: it must not stop those that end together with its dependency."""
    first, neighbour = enqueue(connection, 2)
    second = child(connection, first)
    claims = steps.claim()
    doubled = {"job_id": second, "claim_id": claims[0]["claim_id"] - 1}
    connection.execute(
        "insert into pgsched.running (job_id, claim_id, attempt, worker_id, session_no, queue, claimed_at) values (%s, %s, 1, %s, 1, 'q', now())",
        (second, doubled["claim_id"], steps.id),
    )
    assert finish_and_claim(steps, *claims) == []
    assert places(connection) == {first: "succeeded", neighbour: "succeeded", second: "running"}
    assert steps.finish(doubled) == ["accepted"]
