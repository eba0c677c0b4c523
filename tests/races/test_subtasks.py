"""Subtasks: jobs that a running job makes. None outlives the claim that made it, and their parent ends after them.

The numbers in brackets are the findings of the design's reviews (tests/README.md).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.graphs import AGAIN, Crowd, release, release_all, work
from harness.protocol import Blocked, Steps, enqueue, places, rescue

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))

pytestmark = pytest.mark.one_server


@pytest.fixture
def steps(dsn: str) -> Iterator[Steps]:
    worker = Steps(dsn)
    yield worker
    worker.close()


@pytest.fixture
def other(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


def running(connection: Any, steps: Steps, **options: Any) -> dict[str, Any]:
    """The claim of a job that runs."""
    enqueue(connection, **options)
    return steps.claim(1)[0]


def under(claim: dict[str, Any]) -> dict[str, int]:
    """The fields of a subtask that name its parent."""
    return {"parent_id": claim["job_id"], "parent_claim_id": claim["claim_id"]}


def pending(connection: Any, job_id: int) -> str | None:
    row = connection.execute("select outcome from pgsched.parked where job_id = %s", (job_id,)).fetchone()
    return row[0] if row else None


def state(connection: Any, job_id: int) -> tuple[str, str | None]:
    found: tuple[str, str | None] = connection.execute("select state, reason from pgsched.jobs where id = %s", (job_id,)).fetchone()
    return found


def test_a_parent_ends_after_its_subtasks_and_its_dependents_after_both(connection: Any, steps: Steps) -> None:
    parent = running(connection, steps)
    [after] = enqueue(connection, depends_on=[{"job": parent["job_id"]}])
    first, second = enqueue(connection, 2, **under(parent))
    assert steps.finish(parent, result="mine") == ["accepted"]
    assert steps.finish(parent, result="mine") == ["already"]
    release_all(connection)
    assert state(connection, parent["job_id"]) == ("parked", "its subtasks have still to end, then it has succeeded")
    for claim in steps.claim():
        release_all(connection)
        assert places(connection)[parent["job_id"]] == "waiting" == places(connection)[after]
        steps.finish(claim)
    release_all(connection)
    assert places(connection) == {parent["job_id"]: "succeeded", first: "succeeded", second: "succeeded", after: "ready"}
    row = connection.execute("select result, claim_id from pgsched.finished where job_id = %s", (parent["job_id"],)).fetchone()
    assert row == ("mine", parent["claim_id"])
    assert steps.finish(parent, result="mine") == ["already"]


def test_a_success_is_a_failure_where_a_subtask_has_failed_unless_it_is_lenient(connection: Any, steps: Steps) -> None:
    for lenient in (False, True):
        parent = running(connection, steps)
        [bad, good] = enqueue(connection, 2, **under(parent))
        steps.finish(parent, lenient=lenient)
        claims = {claim["job_id"]: claim for claim in steps.claim()}
        steps.finish(claims[bad], outcome="failed", error="broken")
        steps.finish(claims[good])
        release_all(connection)
        said = state(connection, parent["job_id"])
        assert said == (("succeeded", None) if lenient else ("failed", f"its subtask job {bad} has failed"))


@pytest.mark.parametrize("outcome", ["failed", "retry", "snooze", "give_back", "cancel"])
def test_where_the_parent_does_not_succeed_its_open_subtasks_are_cancelled_first(connection: Any, steps: Steps, outcome: str) -> None:
    parent = running(connection, steps, max_attempts=3)
    [runs] = enqueue(connection, **under(parent))
    claim = steps.claim(1)[0]
    [waits] = enqueue(connection, depends_on=[{"job": runs}], **under(parent))
    [is_ready] = enqueue(connection, **under(parent))
    if outcome == "cancel":
        answer = connection.execute("select * from pgsched.cancel(%s)", (parent["job_id"],)).fetchall()
        assert sorted(answer) == [(parent["job_id"], "running"), (runs, "running"), (waits, "blocked"), (is_ready, "ready")]
    steps.finish(parent, **({} if outcome == "cancel" else {"outcome": outcome, "after_s": 0}))
    release_all(connection)
    now = places(connection)
    assert (now[waits], now[is_ready], now[runs], now[parent["job_id"]]) == ("cancelled", "cancelled", "running", "waiting")
    assert connection.execute("select stop_reason from pgsched.running where job_id = %s", (runs,)).fetchone() == ("cancel",)
    steps.finish(claim)
    release_all(connection)
    connection.execute("select pgsched.stage()")
    now = places(connection)
    assert now[runs] == "cancelled"
    assert now[parent["job_id"]] == {"failed": "failed", "cancel": "cancelled"}.get(outcome, "ready")
    if outcome != "cancel":
        said = connection.execute("select reason from pgsched.finished where job_id = %s", (waits,)).fetchone()[0]
        assert said == f"cancelled: job {parent['job_id']}, of which it is a subtask, {'has failed' if outcome == 'failed' else 'runs again'}"


def test_a_dead_workers_job_runs_again_only_after_its_subtasks_have_been_stopped(dsn: str, connection: Any, steps: Steps) -> None:
    """(R49: no subtask outlives the claim that made it)"""
    dying = Steps(dsn, name="dying")
    parent = running(connection, dying)
    [sub] = enqueue(connection, **under(parent))
    claim = steps.claim(1)[0]
    dying.close()
    rescue(connection, dying)
    release_all(connection)
    assert (places(connection)[parent["job_id"]], pending(connection, parent["job_id"])) == ("waiting", "give_back")
    steps.finish(claim)
    release_all(connection)
    assert (places(connection)[parent["job_id"]], places(connection)[sub]) == ("ready", "cancelled")
    again = steps.claim(1)[0]
    assert (again["attempt"], again["extra"]) == (1, {"lost_attempts": 1})
    with pytest.raises(psycopg.DatabaseError, match=f"job {parent['job_id']} does not run under claim {parent['claim_id']}") as error:
        enqueue(connection, **under(parent))
    assert error.value.sqlstate == "PGS13"


def test_a_job_parks_while_its_last_subtask_ends(connection: Any, steps: Steps) -> None:
    """(R47, 5) Both of them leave an event: whichever commits last is looked at."""
    for parks_first in (True, False):
        parent = running(connection, steps)
        enqueue(connection, **under(parent))
        claim = steps.claim(1)[0]
        second = steps.open_session()
        steps.work.execute("begin")
        second.execute("begin")
        assert steps.finish(parent) == ["accepted"]
        assert steps.finish(claim, session=second) == ["accepted"]
        for session in (steps.work, second) if parks_first else (second, steps.work):
            for _ in range(3):
                release(connection)
            session.execute("commit")
        release_all(connection)
        assert places(connection)[parent["job_id"]] == "succeeded"


def test_a_cancel_waits_for_who_makes_a_subtask_and_takes_that_along(connection: Any, other: Any, dsn: str, steps: Steps) -> None:
    """(R47, 6)"""
    parent = running(connection, steps)
    other.execute("begin")
    [sub] = enqueue(other, **under(parent))
    with psycopg.connect(dsn, autocommit=True) as third:
        cancel = Blocked(third, "select * from pgsched.cancel(%s)", (parent["job_id"],))
        cancel.until_blocked(other)
        other.execute("commit")
        assert sorted(cancel.result()) == [(parent["job_id"], "running"), (sub, "ready")]
    with pytest.raises(psycopg.DatabaseError, match="is to stop: it cannot make subtasks") as error:
        enqueue(connection, **under(parent))
    assert error.value.sqlstate == "PGS14"
    steps.finish(parent)
    release_all(connection)
    assert (places(connection)[parent["job_id"]], places(connection)[sub]) == ("cancelled", "cancelled")


def test_who_makes_a_subtask_waits_for_a_cancel_and_is_refused(connection: Any, other: Any, dsn: str, steps: Steps) -> None:
    """(R47, 6, the other way round)"""
    parent = running(connection, steps)
    other.execute("begin")
    other.execute("select pgsched.cancel(%s)", (parent["job_id"],))
    with psycopg.connect(dsn, autocommit=True) as third:
        making = Blocked(third, "select pgsched.enqueue_many(%s)", (json.dumps([{"task": "t", "queue": "q"} | under(parent)]),))
        making.until_blocked(other)
        other.execute("commit")
        with pytest.raises(psycopg.DatabaseError, match="is to stop"):
            making.result()
    assert steps.finish(parent) == ["cancelled"]


def test_a_finish_steps_over_a_job_that_is_making_a_subtask(connection: Any, other: Any, steps: Steps) -> None:
    parent = running(connection, steps)
    with other.transaction():
        [sub] = enqueue(other, **under(parent))
        assert steps.finish(parent) == ["busy"]
    assert steps.finish(parent) == ["accepted"]
    assert places(connection) == {parent["job_id"]: "waiting", sub: "ready"}


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_transactional_job_makes_its_subtasks_in_its_own_transaction(connection: Any, other: Any, steps: Steps, level: str) -> None:
    """(R47, 7) On another connection they would be made beside an old snapshot; in its own they hold up no cancel, and come with
    its success or not at all."""
    for ends in ("accepted", "cancelled"):
        parent = running(connection, steps)
        claim = {"job_id": parent["job_id"], "claim_id": parent["claim_id"]}
        steps.work.execute("select * from pgsched.begin(%s, %s)", (steps.id, json.dumps([claim])))
        other.execute(f"begin isolation level {level}")
        other.execute("select pgsched.begin_transaction(%s, %s)", (parent["job_id"], parent["claim_id"]))
        with pytest.raises(psycopg.DatabaseError, match="its subtasks are made in its own transaction") as error:
            enqueue(connection, **under(parent))
        assert error.value.sqlstate == "PGS09"
        enqueue(other, 2, **under(parent))
        enqueue(other, 1, **under(parent))
        if ends == "cancelled":
            connection.execute("set lock_timeout = '2s'")
            assert connection.execute("select * from pgsched.cancel(%s)", (parent["job_id"],)).fetchall() == [(parent["job_id"], "running")]
            with pytest.raises(psycopg.DatabaseError) as error:
                other.execute("select pgsched.finish_transaction(%s, %s)", (parent["job_id"], parent["claim_id"]))
            assert error.value.sqlstate in ("PGS14", "40001")
            other.execute("rollback")
            assert steps.finish(parent, outcome="cancelled") == ["cancelled"]
        else:
            other.execute("select pgsched.finish_transaction(%s, %s)", (parent["job_id"], parent["claim_id"]))
            other.execute("commit")
            release_all(connection)
            assert state(connection, parent["job_id"])[0] == "parked"
            steps.finish(*steps.claim())
        release_all(connection)
        assert state(connection, parent["job_id"])[0] == {"accepted": "succeeded", "cancelled": "cancelled"}[ends]
    assert connection.execute("select count(*) from pgsched.job where parent_id is not null").fetchone() == (3,)


def test_the_subtasks_of_a_subtask_that_is_told_to_stop_end_although_it_runs_on(connection: Any, steps: Steps) -> None:
    top = running(connection, steps)
    enqueue(connection, **under(top))
    middle = steps.claim(1)[0]
    low = enqueue(connection, 2, **under(middle))
    steps.finish(top, outcome="failed", error="no")
    release_all(connection)
    assert [places(connection)[job] for job in low] == ["cancelled", "cancelled"]
    assert state(connection, low[0])[1] == f"cancelled: job {middle['job_id']}, of which it is a subtask, was cancelled"
    steps.finish(middle)
    release_all(connection)
    assert (places(connection)[middle["job_id"]], places(connection)[top["job_id"]]) == ("cancelled", "failed")


def test_a_cancel_finds_the_subtasks_of_one_that_was_told_before(connection: Any, steps: Steps) -> None:
    top = running(connection, steps)
    enqueue(connection, **under(top))
    middle = steps.claim(1)[0]
    [low] = enqueue(connection, **under(middle))
    steps.finish(top, outcome="failed", error="no")
    release(connection, 1)  # (it has told the one in the middle, and has not looked at that yet)
    answer = connection.execute("select * from pgsched.cancel(%s)", (top["job_id"],)).fetchall()
    assert places(connection)[low] == "cancelled"
    assert (low, "ready") in answer or answer == [(top["job_id"], "parked")]
    steps.finish(middle)
    release_all(connection)
    assert places(connection)[top["job_id"]] == "cancelled"


def test_a_subtask_that_is_to_end_is_not_let_run_by_the_end_of_its_sibling(connection: Any, steps: Steps) -> None:
    parent = running(connection, steps)
    [first] = enqueue(connection, **under(parent))
    [second] = enqueue(connection, depends_on=[{"job": first, "on": "done"}], **under(parent))
    steps.finish(parent, outcome="failed", error="no")
    for _ in range(20):
        release(connection, 1)  # (one at a time: the first one's end is known before the second one's turn has come)
        assert places(connection)[second] != "ready"
    release_all(connection, 1)
    assert (places(connection)[first], places(connection)[second]) == ("cancelled", "cancelled")


def test_a_release_ends_so_many_subtasks_and_says_that_there_are_more(connection: Any, steps: Steps) -> None:
    parents = [running(connection, steps) for _ in range(5)]
    for parent in parents:
        enqueue(connection, 20, **under(parent))
    steps.finish(*parents, outcome="failed", error="no")
    rounds = []
    while (answer := release(connection, 30))["more"]:
        rounds.append(connection.execute("select count(*) from pgsched.finished").fetchone()[0])
        assert len(rounds) < 50, answer
    assert max(b - a for a, b in zip([0, *rounds], rounds, strict=False)) <= 30 + len(parents)
    release_all(connection, 30)
    assert connection.execute("select state, count(*) from pgsched.finished group by state order by state").fetchall() == [("cancelled", 100), ("failed", 5)]
    reasons = connection.execute("select count(distinct reason) from pgsched.finished where state = 'cancelled'").fetchone()
    assert reasons == (5,), "each says whose subtask it was"


def test_a_parked_job_that_is_cancelled_ends_its_dependents_at_once_and_itself_with_its_subtasks(connection: Any, steps: Steps) -> None:
    parent = running(connection, steps)
    [sub] = enqueue(connection, **under(parent))
    [success] = enqueue(connection, depends_on=[{"job": parent["job_id"]}])
    [done] = enqueue(connection, depends_on=[{"job": parent["job_id"], "on": "done"}])
    claim = steps.claim(1)[0]
    steps.finish(parent)
    for dry_run in (True, False, False):
        answer = connection.execute("select * from pgsched.cancel(%s, 'enough', %s)", (parent["job_id"], dry_run)).fetchall()
        assert sorted(answer) == ([] if answer == [] else [(parent["job_id"], "parked"), (sub, "running"), (success, "blocked")])
    assert answer == []  # (the second time nothing is left to be changed)
    release_all(connection)
    now = places(connection)
    assert (now[parent["job_id"]], now[sub], now[success], now[done]) == ("waiting", "running", "cancelled", "waiting")
    [late] = enqueue(connection, depends_on=[{"job": parent["job_id"]}])
    release_all(connection)
    assert places(connection)[late] == "cancelled"  # (a new dependent does not wait for what can only end as cancelled)
    steps.finish(claim)
    release_all(connection)
    now = places(connection)
    assert (now[parent["job_id"]], now[sub], now[done]) == ("cancelled", "cancelled", "ready")
    assert connection.execute("select reason, result from pgsched.finished where job_id = %s", (parent["job_id"],)).fetchone() == ("cancelled: enough", None)


def test_subtasks_of_subtasks_go_with_a_cancel_and_hold_up_every_parent_above(connection: Any, steps: Steps) -> None:
    top = running(connection, steps)
    enqueue(connection, **under(top))
    middle = steps.claim(1)[0]
    enqueue(connection, **under(middle))
    low = steps.claim(1)[0]
    steps.finish(top)
    steps.finish(middle)
    release_all(connection)
    assert set(places(connection).values()) == {"waiting", "running"}
    answer = connection.execute("select * from pgsched.cancel(%s)", (top["job_id"],)).fetchall()
    assert sorted(answer) == [(top["job_id"], "parked"), (middle["job_id"], "parked"), (low["job_id"], "running")]
    steps.finish(low)
    release_all(connection)
    assert set(places(connection).values()) == {"cancelled"}


def test_edges_stay_among_the_subtasks_of_one_parent(connection: Any, steps: Steps) -> None:
    """(R32) Two that run cannot close a circle through each other's subtasks: what could is refused, both jobs named."""
    one, two = running(connection, steps), running(connection, steps)
    [sub] = enqueue(connection, **under(one))
    [sibling] = enqueue(connection, depends_on=[{"job": sub}], **under(one))
    refused = {
        "an outsider": ({"depends_on": [{"job": sub}]}, f"job 1 .* depends on job {sub}, a subtask of job {one['job_id']}"),
        "a cousin": ({"depends_on": [{"job": sub}], **under(two)}, f"depends on job {sub}, a subtask of job {one['job_id']}"),
        "its parent": ({"depends_on": [{"job": one["job_id"]}], **under(one)}, f"depends on job {one['job_id']}, which is no subtask of its own parent"),
        "another job": ({"depends_on": [{"job": two["job_id"]}], **under(one)}, f"no subtask of its own parent, job {one['job_id']}"),
        "half a parent": ({"parent_id": one["job_id"]}, "give both or neither"),
        "a key": ({"unique_key": "k", **under(one)}, "it is a subtask and has a unique_key"),
    }
    for what, (fields, message) in refused.items():
        with pytest.raises(psycopg.DatabaseError, match=message) as error:
            enqueue(connection, **fields)
        assert error.value.sqlstate == "PGS05", what
    jobs = [{"task": "t", "queue": "q", "name": "a", **under(one)}, {"task": "t", "queue": "q", "depends_on": [{"name": "a"}]}]
    with pytest.raises(psycopg.DatabaseError, match=r"depends on job .*, a subtask of job"):
        connection.execute("select pgsched.enqueue_many(%s)", (json.dumps(jobs),))
    with pytest.raises(psycopg.DatabaseError, match="a job of a workflow is not a subtask"):
        connection.execute("select pgsched.enqueue_workflow(%s)", (json.dumps({"name": "w", "jobs": jobs[:1]}),))
    assert places(connection)[sibling] == "waiting"


def test_a_subtask_is_not_retried_by_hand_and_its_parent_makes_new_ones(connection: Any, steps: Steps) -> None:
    """(R49, 5)"""
    parent = running(connection, steps)
    [sub] = enqueue(connection, **under(parent))
    steps.finish(parent)
    steps.finish(*steps.claim(1), outcome="failed", error="no")
    release_all(connection)
    assert places(connection)[parent["job_id"]] == "failed"
    with pytest.raises(psycopg.DatabaseError, match=f"job {sub} is a subtask of job {parent['job_id']}") as error:
        connection.execute("select * from pgsched.retry(%s)", (sub,))
    assert error.value.sqlstate == "PGS09"
    connection.execute("select * from pgsched.retry(%s)", (parent["job_id"],))
    again = steps.claim(1)[0]
    [new] = enqueue(connection, **under(again))
    steps.finish(again)
    steps.finish(*steps.claim(1))
    release_all(connection)
    now = places(connection)  # (what failed in its former life does not count in this one)
    assert (now[parent["job_id"]], now[sub], now[new]) == ("succeeded", "failed", "succeeded")


def test_subtasks_are_kept_as_long_as_their_parent_needs_them(connection: Any, steps: Steps) -> None:
    parent = running(connection, steps)
    [sub, slow] = enqueue(connection, 2, **under(parent))
    steps.finish(parent)
    claims = {claim["job_id"]: claim for claim in steps.claim()}
    steps.finish(claims[sub], outcome="failed", error="no")
    release_all(connection)
    assert connection.execute("select pgsched.prune('0 s')").fetchone() == (0,)
    steps.finish(claims[slow])
    release_all(connection)
    assert places(connection)[parent["job_id"]] == "failed"
    while connection.execute("select pgsched.prune('0 s')").fetchone()[0]:
        pass
    assert places(connection) == {}


def test_a_held_subtask_or_parent_holds_up_only_itself(connection: Any, other: Any, steps: Steps) -> None:
    parent, bystander = running(connection, steps), running(connection, steps)
    [held, free] = enqueue(connection, 2, **under(parent))
    [its] = enqueue(connection, **under(bystander))
    steps.finish(parent, outcome="failed", error="no")
    steps.finish(bystander, outcome="failed", error="no")
    other.execute("begin")
    other.execute("select from pgsched.ready where job_id = %s for update", (held,))
    for _ in range(5):
        release(connection)
    now = places(connection)
    assert (now[held], now[free], now[its], now[bystander["job_id"]]) == ("ready", "cancelled", "cancelled", "failed")
    other.execute("rollback")
    release_all(connection)
    assert (places(connection)[held], places(connection)[parent["job_id"]]) == ("cancelled", "failed")


def test_many_subtasks_are_cancelled_in_chunks_and_counted_from_where_the_last_look_ended(connection: Any, steps: Steps) -> None:
    parent = running(connection, steps)
    subs = enqueue(connection, 50, **under(parent))
    steps.finish(parent)
    steps.finish(*steps.claim(20))
    release_all(connection)
    assert connection.execute("select above from pgsched.parked").fetchone() == (subs[19],)
    connection.execute("select pgsched.cancel(%s)", (subs[-1],))
    steps.finish(*steps.claim(100))
    release_all(connection)
    assert places(connection)[parent["job_id"]] == "succeeded"  # (one that somebody cancelled on purpose is no failure)
    parent = running(connection, steps)
    enqueue(connection, 50, **under(parent))
    steps.finish(parent, outcome="failed", error="no")
    release_all(connection, 7)
    assert places(connection)[parent["job_id"]] == "failed"


def _works_with_subtasks(crowd: Crowd, rng: random.Random) -> None:
    """A worker whose jobs make subtasks, on another connection, and end at any moment around that."""
    steps = Steps(crowd.dsn)
    with psycopg.connect(crowd.dsn, autocommit=True) as making:
        try:
            while not crowd.stop.is_set():
                try:
                    for claim in steps.claim(3):
                        for _ in range(rng.choice([0, 0, 1, 2])):
                            _make(making, claim, rng)
                        outcome = rng.choices(["succeeded", "failed", "retry", "snooze", "give_back", "conflict"], [8, 2, 2, 1, 1, 1])[0]
                        while steps.finish(claim, outcome=outcome, after_s=0) == ["busy"] and not crowd.stop.is_set():
                            time.sleep(0.001)
                    steps.work.execute("select pgsched.stage()")
                    release(steps.work)
                except AGAIN:
                    continue
        finally:
            steps.close()


def _make(session: Any, claim: dict[str, Any], rng: random.Random) -> None:
    """A few subtasks with edges among themselves; now and then late, now and then taken back."""
    depth = claim["args"].get("depth", 0)
    if depth > 2:
        return
    n = rng.randint(1, 4)
    jobs = [
        {
            "task": "t", "queue": "q", "args": {"outcome": "succeeded", "depth": depth + 1}, "max_attempts": 2, "name": str(i), **under(claim),
            "depends_on": [{"name": str(p), "on": rng.choice(["success", "done"])} for p in rng.sample(range(i), rng.randint(0, min(i, 2)))],
        }
        for i in range(n)
    ]  # fmt: skip
    try:
        with session.transaction() as transaction:
            session.execute("select pgsched.enqueue_many(%s)", (json.dumps(jobs),))
            if rng.random() < 0.2:
                time.sleep(rng.random() * 0.02)
            if rng.random() < 0.15:
                raise psycopg.Rollback(transaction)
    except (*AGAIN, psycopg.DatabaseError) as error:
        if error.sqlstate not in ("PGS13", "PGS14", "40P01", "55P03", "57014"):
            raise


def test_a_storm_of_parking_parents_breaks_no_invariant(dsn: str, connection: Any) -> None:
    """Workers whose jobs make subtasks of subtasks, rolled back and late ones, cancels, retries, prune, releasers that are killed."""
    crowd = Crowd(dsn)
    seed = int(os.environ.get("PGSCHED_SEED", "11"))

    def meddle(crowd: Crowd, rng: random.Random) -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            while not crowd.stop.is_set():
                ids = [row[0] for row in session.execute("select id from pgsched.job order by id desc limit 60").fetchall()]
                what = rng.random()
                call, params = (
                    ("select * from pgsched.cancel(%s)", (rng.choice(ids or [0]),)) if what < 0.3
                    else ("select * from pgsched.retry(%s)", (rng.choice(ids or [0]),)) if what < 0.8
                    else ("select pgsched.enqueue_many(%s)", (json.dumps([{"task": "t", "queue": "q", "args": {"outcome": "succeeded"}, "depends_on": [{"job": rng.choice(ids or [1]), "on": rng.choice(["success", "done"])}]}]),)) if what < 0.9
                    else ("select pgsched.prune('0 s', 20)", ())
                )  # fmt: skip
                try:
                    with session.transaction() as transaction:
                        session.execute(call, params)
                        if rng.random() < 0.3:
                            time.sleep(rng.random() * 0.03)
                        if rng.random() < 0.2:
                            raise psycopg.Rollback(transaction)
                except psycopg.DatabaseError as error:
                    if error.sqlstate is None or not error.sqlstate.startswith(("PGS", "40P01", "55P03", "57014")):
                        raise
                time.sleep(rng.random() * 0.01)

    def watch(crowd: Crowd, rng: random.Random) -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            while not crowd.stop.is_set():
                found = session.execute("select * from pgsched.check_invariants()").fetchall()
                assert found == [], found[:5]
                time.sleep(0.2)

    for i in range(3):
        crowd.add(_works_with_subtasks, seed + i)
        crowd.add(meddle, seed + 100 + i)
    crowd.add(watch, seed + 200)
    end = time.monotonic() + (120 if FULL else 5)
    while time.monotonic() < end and not crowd.stop.is_set():
        enqueue(connection, 10, args={"outcome": "succeeded"}, max_attempts=3)
        while connection.execute("select (select count(*) from pgsched.ready) + (select count(*) from pgsched.waiting) > 300").fetchone()[0] and not crowd.stop.is_set():
            time.sleep(0.01)
    crowd.end()
    workers = [row[0] for row in connection.execute("select distinct worker_id from pgsched.running").fetchall()]
    for worker in workers:
        rescue(connection, worker)
    finishing = Crowd(dsn)
    finishing.add(work, 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not finishing.stop.is_set():
        release_all(connection, 100)
        if not connection.execute("select exists (select from pgsched.waiting) or exists (select from pgsched.ready) or exists (select from pgsched.running)").fetchone()[0]:
            break
        time.sleep(0.05)
    finishing.end()
    left = connection.execute("select id, state, reason, parent_id from pgsched.jobs where state not in ('succeeded', 'failed', 'skipped', 'cancelled')").fetchall()
    assert left == []
