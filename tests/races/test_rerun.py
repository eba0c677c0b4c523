"""Jobs of a workflow that run again with all that comes after them: beside whoever decides over the same jobs, step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.graphs import release, release_all
from harness.protocol import Blocked, Steps, enqueue, places

pytestmark = pytest.mark.one_server

RERUN = "select * from pgsched.rerun_workflow(%s, %s)"


@pytest.fixture
def steps(dsn: str) -> Iterator[Steps]:
    worker = Steps(dsn)
    yield worker
    worker.close()


@pytest.fixture
def other(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


def job(name: str, *on: Any, **options: Any) -> dict[str, Any]:
    edges = [edge if isinstance(edge, dict) else {"name": edge} for edge in on]
    return {"name": name, "task": "t", "queue": "q", "depends_on": edges} | options


def workflow(connection: Any, *jobs: dict[str, Any], **options: Any) -> tuple[int, list[int]]:
    """Enqueue it; its number, and the jobs' ids."""
    text = json.dumps({"name": "w", "jobs": jobs} | options)
    answer = connection.execute("select pgsched.enqueue_workflow(%s)", (text,)).fetchone()[0]
    return answer["workflow_id"], answer["job_ids"]


def run_all(steps: Steps, **outcomes: str) -> list[int]:
    """Run what is ready, and what becomes ready, to the end; the ids in the order in which they ran. `outcomes`: by _id."""
    ran: list[int] = []
    while claims := steps.claim(1):
        ran.append(claims[0]["job_id"])
        outcome = outcomes.get(f"_{ran[-1]}", "succeeded")
        steps.finish(*claims, outcome=outcome, **({"result": ran[-1]} if outcome == "succeeded" else {}))
        release_all(steps.work)
    return ran


def rerun(connection: Any, the_workflow: int, *names: str, dry_run: bool = False) -> dict[int, str]:
    rows = connection.execute(RERUN.replace("%s)", "%s, %s)"), (the_workflow, list(names), dry_run)).fetchall()
    return dict(rows)


def state(connection: Any, job_id: int) -> Any:
    return connection.execute("select state, cause_job_id from pgsched.jobs where id = %s", (job_id,)).fetchone()


def test_what_has_succeeded_runs_again_in_order_under_larger_numbers_and_with_new_results(connection: Any, steps: Steps) -> None:
    w, (a, b, c, d, e) = workflow(
        connection, job("a"), job("b", {"name": "a", "inputs": [["x"]]}), job("c", "b"), job("d", {"name": "b", "on": "failure"}), job("e"))
    assert run_all(steps) == [a, e, b, c]
    before = dict(connection.execute("select job_id, claim_id from pgsched.finished").fetchall())
    told = rerun(connection, w, "b", dry_run=True)
    assert told == {b: "succeeded", c: "succeeded", d: "skipped"}
    assert places(connection) == {a: "succeeded", b: "succeeded", c: "succeeded", d: "skipped", e: "succeeded"}, "a dry run changes nothing"
    assert rerun(connection, w, "b") == told
    assert connection.execute("select result from pgsched.jobs where id = %s", (b,)).fetchone() == (None,), "no result until it ends again"
    claimed = steps.claim()
    assert [(one["job_id"], one["attempt"], one["extra"]) for one in claimed] == [(b, 1, {"inputs": [[["x"], a]]})]
    assert steps.finish({"job_id": b, "claim_id": before[b]}) == ["already"], "a resend of the end before is known"
    steps.finish(*claimed, result="new")
    release_all(connection)
    assert run_all(steps) == [c]
    after = dict(connection.execute("select job_id, claim_id from pgsched.finished").fetchall())
    assert after[b] > before[b] and after[c] > before[c] and after[a] == before[a]
    assert connection.execute("select job_id, state from pgsched.job_errors order by 1").fetchall() == [(b, "rerun"), (c, "rerun")]
    assert places(connection)[d] == "skipped"


def test_a_named_job_after_another_named_one_waits_for_it(connection: Any, steps: Steps) -> None:
    w, (a, b, c) = workflow(connection, job("a"), job("b", "a"), job("c", "a", "b"))
    run_all(steps)
    assert rerun(connection, w, "c", "a").keys() == {a, b, c}
    assert {i: p for i, p in places(connection).items() if p == "ready"} == {a: "ready"}
    assert run_all(steps) == [a, b, c]


def test_what_was_cancelled_on_purpose_stays_so_unless_it_is_named(connection: Any, steps: Steps) -> None:
    w, (a, b, c, d) = workflow(connection, job("a"), job("b", "a"), job("c", {"name": "b", "on": "done"}), job("d", "a"))
    connection.execute("select pgsched.cancel(%s)", (b,))
    release_all(connection)
    assert sorted(run_all(steps)) == [a, c, d]
    assert places(connection) == {a: "succeeded", b: "cancelled", c: "succeeded", d: "succeeded"}
    assert rerun(connection, w, "a").keys() == {a, d}, "nor does what comes after that alone"
    assert run_all(steps) == [a, d]
    assert rerun(connection, w, "a", "b").keys() == {a, b, c, d}
    again = run_all(steps)
    assert sorted(again) == [a, b, c, d] and again.index(b) < again.index(c)


def test_what_cannot_run_again_is_refused_with_its_name_and_nothing_changes(connection: Any, steps: Steps) -> None:
    w, (a, b, c) = workflow(connection, job("a"), job("b", "a"), job("c", "b"))

    def refused(*names: str) -> str:
        before = places(connection)
        with pytest.raises(psycopg.DatabaseError) as error:
            rerun(connection, w, *names)
        assert places(connection) == before
        assert (error.value.sqlstate or "").startswith("PGS")
        return str(error.value.diag.message_primary)

    assert refused("a") == f'rerun: "a" (job {a}) has not ended: it is ready'
    assert refused("b") == f'rerun: "b" (job {b}) has not ended: it is blocked'
    claims = steps.claim()
    assert refused("a") == f'rerun: "a" (job {a}) has not ended: it is running'
    steps.finish(*claims)
    (claim,) = steps.claim()
    assert refused("a") == f'rerun: "b" (job {b}) has not ended: it is running', "also what comes after it"
    steps.finish(claim, outcome="failed")
    release_all(connection)
    assert refused("c") == f'rerun: "c" (job {c}) ended because of "b" (job {b})'
    assert refused("nobody") == f'workflow {w} has no job named "nobody"'
    assert rerun(connection, w, "a") == {a: "succeeded", b: "failed", c: "skipped"}
    assert run_all(steps) == [a, b, c]


def test_one_that_waits_for_another_dependency_waits_on_for_both(connection: Any, steps: Steps) -> None:
    w, (a, slow, c) = workflow(connection, job("a"), job("slow", delay_s=3600), job("c", "a", "slow"))
    run_all(steps)
    assert rerun(connection, w, "a") == {a: "succeeded"}
    assert connection.execute("select outcome from pgsched.dependency where job_id = %s and depends_on_id = %s", (c, a)).fetchone() == (None,)
    run_all(steps)
    assert state(connection, c) == ("blocked", None) and state(connection, slow)[0] == "scheduled"


def test_keys_are_taken_again_and_a_taken_one_is_named(connection: Any, steps: Steps) -> None:
    w, (a, b) = workflow(connection, job("a"), job("b", "a", unique_key="k"))
    run_all(steps)
    (holder,) = enqueue(connection, unique_key="k", delay_s=3600)
    with pytest.raises(psycopg.DatabaseError, match=f"the unique key of .*job {b}.* is held by job {holder}") as error:
        rerun(connection, w, "a")
    assert error.value.sqlstate == "PGS10"
    connection.execute("select pgsched.cancel(%s)", (holder,))
    assert rerun(connection, w, "a").keys() == {a, b}
    assert enqueue(connection, unique_key="k") == [b]
    run_all(steps)


def test_jobs_elsewhere_wait_again_where_they_had_ended_by_a_cause_and_are_left_alone_where_they_ran(connection: Any, steps: Steps) -> None:
    w, (a,) = workflow(connection, job("a"))
    ran, skipped = (enqueue(connection, depends_on=[{"job": a, "on": on}])[0] for on in ("success", "failure"))
    run_all(steps)
    assert rerun(connection, w, "a") == {a: "succeeded", skipped: "skipped"}
    assert state(connection, ran)[0] == "succeeded"
    run_all(steps, **{f"_{a}": "failed"})
    assert (state(connection, ran), state(connection, skipped)) == (("succeeded", None), ("succeeded", None))


def test_whoever_is_about_to_take_a_result_is_not_robbed_of_it(connection: Any, steps: Steps) -> None:
    w, (a,) = workflow(connection, job("a"))
    run_all(steps)
    (taker,) = enqueue(connection, depends_on=[{"job": a, "inputs": [["x"]]}])
    release_all(connection)
    with pytest.raises(psycopg.DatabaseError, match=f"job {taker}.* takes the result of .*job {a}.*, and has not ended"):
        rerun(connection, w, "a")
    run_all(steps)
    assert rerun(connection, w, "a") == {a: "succeeded"}
    (late,) = enqueue(connection, depends_on=[{"job": a, "inputs": [["x"]]}])
    release_all(connection)
    assert state(connection, late)[0] == "blocked", "one that is enqueued meanwhile waits for the new one"
    run_all(steps)


def test_a_retry_of_what_took_a_result_that_is_gone_waits_for_the_new_one(connection: Any, steps: Steps) -> None:
    w, (a,) = workflow(connection, job("a"))
    (taker,) = enqueue(connection, depends_on=[{"job": a, "inputs": [["x"]]}])
    run_all(steps, **{f"_{taker}": "failed"})
    rerun(connection, w, "a")
    assert connection.execute("select * from pgsched.retry(%s)", (taker,)).fetchall() == [(taker, "failed")]
    assert state(connection, taker)[0] == "blocked"
    (claim,) = steps.claim()
    steps.finish(claim, result="new")
    release_all(connection)
    (claim,) = steps.claim()
    assert claim["extra"] == {"inputs": [[["x"], "new"]]}
    steps.finish(claim)


def test_a_job_that_was_let_run_again_and_cancelled_before_that_waits_when_it_is_retried(connection: Any, steps: Steps) -> None:
    """Its attempts of before do not mean that its rule is met now."""
    w, (a, b) = workflow(connection, job("a"), job("b", "a"))
    (claim,) = steps.claim()
    steps.finish(claim)
    release_all(connection)
    (claim,) = steps.claim()
    steps.finish(claim, outcome="failed")
    rerun(connection, w, "a")
    connection.execute("select pgsched.cancel(%s)", (b,))
    connection.execute("select pgsched.retry(%s)", (b,))
    assert [one["job_id"] for one in steps.claim()] == [a], "not before the one that it depends on"


def test_a_job_that_never_began_waits_also_where_its_edges_say_that_its_rule_was_met(connection: Any, steps: Steps) -> None:
    """It was cancelled before; then P failed, as it needs, and P runs again when it is retried."""
    (p,) = enqueue(connection, max_attempts=1)
    (c,) = enqueue(connection, depends_on=[{"job": p, "on": "failure"}])
    connection.execute("select pgsched.cancel(%s)", (c,))
    run_all(steps, **{f"_{p}": "failed"})
    assert connection.execute("select outcome from pgsched.dependency where job_id = %s", (c,)).fetchone() == ("failed",)
    connection.execute("select pgsched.retry(%s)", (p,))
    connection.execute("select pgsched.retry(%s)", (c,))
    assert run_all(steps) == [p], "it succeeds now"
    assert state(connection, c) == ("skipped", p)


def test_an_input_that_was_pruned_and_what_nobody_knows_any_more_are_refused(connection: Any, steps: Steps) -> None:
    w, (a, b, _c) = workflow(connection, job("a"), job("b", {"name": "a", "inputs": [["x"]]}), job("c", "b"))
    run_all(steps)
    connection.execute("select pgsched.prune('0 s', 1)")
    assert a not in places(connection)
    with pytest.raises(psycopg.DatabaseError, match=f"job {b}.* takes the result of a job that was pruned"):
        rerun(connection, w, "b")
    with pytest.raises(psycopg.DatabaseError, match=f"1 of the jobs of workflow {w} were pruned"):
        rerun(connection, w, "c")


def test_a_job_that_has_made_subtasks_makes_them_anew(connection: Any, steps: Steps) -> None:
    w, (a, b) = workflow(connection, job("a"), job("b", "a"))
    old, new = (_with_a_subtask(connection, steps, w, a) for _ in range(2))
    assert steps.claim()[0]["job_id"] == b and new > old
    assert {state(connection, i)[0] for i in (a, old, new)} == {"succeeded"}
    with pytest.raises(psycopg.DatabaseError, match=f"is a subtask of .*job {a}"):
        rerun(connection, w, "part")


def _with_a_subtask(connection: Any, steps: Steps, w: int, a: int) -> int:
    """Run A (again), which makes a subtask, to its end; what was refused meanwhile."""
    if places(connection)[a] == "succeeded":
        steps.finish(*steps.claim())
        release_all(connection)
        assert a in rerun(connection, w, "a")
    (parent,) = steps.claim()
    (part,) = enqueue(connection, name="part", parent_id=a, parent_claim_id=parent["claim_id"])
    steps.finish(parent)
    release_all(connection)
    with pytest.raises(psycopg.DatabaseError, match=f"job {a}.* has not ended: it is parked"):
        rerun(connection, w, "a")
    steps.finish(*steps.claim())
    release_all(connection)
    return part


# ---- Beside others -------------------------------------------------------------------------------------------------


def test_a_second_rerun_waits_for_the_first_and_is_refused(connection: Any, other: Any, dsn: str, steps: Steps) -> None:
    w, (a, b) = workflow(connection, job("a"), job("b", "a"))
    run_all(steps)
    connection.execute("begin")
    rerun(connection, w, "a")
    with psycopg.connect(dsn, autocommit=True) as third:
        second = Blocked(third, RERUN, (w, ["b"]))
        second.until_blocked(connection)
        connection.execute("commit")
        with pytest.raises(psycopg.DatabaseError, match=f"job {b}.* has not ended: it is blocked"):
            second.result()
    assert run_all(steps) == [a, b]


def test_a_second_rerun_goes_on_where_the_first_is_undone(connection: Any, dsn: str, steps: Steps) -> None:
    w, (_a, b) = workflow(connection, job("a"), job("b", "a"))
    run_all(steps)
    connection.execute("begin")
    rerun(connection, w, "a")
    with psycopg.connect(dsn, autocommit=True) as third:
        second = Blocked(third, RERUN, (w, ["b"]))
        second.until_blocked(connection)
        connection.execute("rollback")
        assert dict(second.result()) == {b: "succeeded"}
    assert run_all(steps) == [b]


@pytest.mark.parametrize("commits", [True, False])
def test_a_release_beside_an_open_rerun_decides_from_what_is_true_when_it_has_ended(connection: Any, other: Any, steps: Steps, commits: bool) -> None:
    """C waits for A, which has ended (not noticed yet), and for B: A runs again in an open transaction when B ends."""
    w, (a, _b, c) = workflow(connection, job("a"), job("b", queue="later"), job("c", "a", "b"))
    (claim,) = steps.claim()
    steps.finish(claim)
    connection.execute("begin")
    assert rerun(connection, w, "a") == {a: "succeeded"}
    (claim,) = steps.claim(queue="later")
    assert steps.finish(claim) == ["accepted"]
    for _ in range(5):
        release(other)
    assert state(other, c)[0] == "blocked"
    connection.execute("commit" if commits else "rollback")
    release_all(other)
    assert state(other, c)[0] == ("blocked" if commits else "ready")
    assert run_all(steps) == ([a, c] if commits else [c])


def test_a_rerun_waits_for_a_release_and_brings_back_what_that_has_ended(connection: Any, dsn: str, steps: Steps) -> None:
    """B failed, and C (skipped because of it) is being ended by a release that is not committed: C is not lost."""
    w, (_a, b, c) = workflow(connection, job("a"), job("b", "a"), job("c", "b"))
    (claim,) = steps.claim()
    steps.finish(claim)
    release_all(connection)
    (claim,) = steps.claim()
    steps.finish(claim, outcome="failed")
    with psycopg.connect(dsn, autocommit=True) as releaser, psycopg.connect(dsn, autocommit=True) as third:
        releaser.execute("begin")
        assert release(releaser)["ended"] == 1
        running = Blocked(third, RERUN, (w, ["b"]))
        running.until_blocked(releaser)
        releaser.execute("commit")
        assert dict(running.result()) == {b: "failed", c: "skipped"}
    assert run_all(steps) == [b, c]


def test_a_cancel_beside_an_open_rerun_comes_before_it_or_after_it(connection: Any, dsn: str, steps: Steps) -> None:
    w, (a, b, c) = workflow(connection, job("a"), job("b", "a"), job("c", "b"))
    run_all(steps)
    connection.execute("begin")
    rerun(connection, w, "a")
    with psycopg.connect(dsn, autocommit=True) as third:
        assert third.execute("select * from pgsched.cancel(%s)", (b,)).fetchall() == [], "it has ended, as far as can be seen"
    connection.execute("commit")
    assert dict(connection.execute("select * from pgsched.cancel(%s)", (b,)).fetchall()) == {b: "blocked", c: "blocked"}
    assert run_all(steps) == [a]
    assert (state(connection, b), state(connection, c)) == (("cancelled", None), ("cancelled", b))


def test_an_open_cancel_of_a_blocked_one_is_waited_for(connection: Any, dsn: str, steps: Steps) -> None:
    w, (a, _slow, c) = workflow(connection, job("a"), job("slow", delay_s=3600), job("c", "a", "slow"))
    run_all(steps)
    connection.execute("begin")
    connection.execute("select pgsched.cancel(%s)", (c,))
    with psycopg.connect(dsn, autocommit=True) as third:
        running = Blocked(third, RERUN, (w, ["a"]))
        running.until_blocked(connection)
        connection.execute("commit")
        assert dict(running.result()) == {a: "succeeded"}
    run_all(steps)
    assert state(connection, c) == ("cancelled", None), "cancelled on purpose"


def test_a_finish_beside_an_open_rerun_leaves_what_waits_for_both(connection: Any, steps: Steps) -> None:
    """The finish of one dependency would let C run at once: C's row is held, and A runs again."""
    w, (a, _b, c) = workflow(connection, job("a"), job("b", queue="later"), job("c", "a", "b"))
    (claim,) = steps.claim()
    steps.finish(claim)
    release_all(connection)
    (claim,) = steps.claim(queue="later")
    connection.execute("begin")
    rerun(connection, w, "a")
    assert steps.finish(claim) == ["accepted"]
    connection.execute("commit")
    release_all(connection)
    assert state(connection, c)[0] == "blocked"
    assert run_all(steps) == [a, c]


def test_what_runs_again_is_not_pruned_and_what_is_being_pruned_does_not_run_again(connection: Any, dsn: str, steps: Steps) -> None:
    w, (a, b) = workflow(connection, job("a"), job("b", "a"))
    run_all(steps)
    with psycopg.connect(dsn, autocommit=True) as third:
        connection.execute("begin")
        rerun(connection, w, "b")
        assert third.execute("select pgsched.prune('0 s')").fetchone() == (0,), "a's result and end are needed, b is held"
        connection.execute("commit")
        assert run_all(steps) == [b]
        third.execute("begin")
        assert third.execute("select pgsched.prune('0 s')").fetchone() == (2,)
        running = Blocked(connection, RERUN, (w, ["a"]))
        running.until_blocked(third)
        third.execute("commit")
        with pytest.raises(psycopg.DatabaseError, match=f"job {a} has not ended: it is between two states, or pruned at this moment"):
            running.result()


def test_what_is_brought_back_keeps_what_it_takes_from_a_prune_at_the_same_moment(connection: Any, dsn: str, steps: Steps) -> None:
    """Both have ended, so neither protects the other: a retry and a rerun hold what the job depends on, and look then."""
    w, (a, b) = workflow(connection, job("a"), job("b", {"name": "a", "inputs": [["x"]]}))
    again = {"rerun": f"select pgsched.rerun_workflow({w}, array['b'])", "retry": f"select pgsched.retry({b})"}
    run_all(steps, **{f"_{b}": "failed"})
    with psycopg.connect(dsn, autocommit=True) as third:
        for statement in again.values():
            connection.execute("begin")
            connection.execute(statement)
            assert third.execute("select pgsched.prune('0 s')").fetchone() == (0,)
            connection.execute("rollback")
        for statement in again.values():
            third.execute("begin")
            assert third.execute("select pgsched.prune('0 s', 1)").fetchone() == (1,)
            waiting = Blocked(connection, statement)
            waiting.until_blocked(third)
            third.execute("commit" if statement is again["retry"] else "rollback")
            if statement is again["retry"]:
                with pytest.raises(psycopg.DatabaseError, match="takes the result of a job that was pruned"):
                    waiting.result()
            else:
                waiting.result()
                assert run_all(steps, **{f"_{b}": "failed"}) == [b]
    assert a not in places(connection)


def test_a_rerun_at_another_isolation_level_is_refused(connection: Any, steps: Steps) -> None:
    w, _ = workflow(connection, job("a"))
    run_all(steps)
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        with pytest.raises(psycopg.DatabaseError, match="READ COMMITTED only"), connection.transaction():
            rerun(connection, w, "a")


# ---- Deadlines -----------------------------------------------------------------------------------------------------


def pass_deadline(connection: Any, w: int) -> None:
    connection.execute("update pgsched.workflow set deadline = clock_timestamp() where id = %s", (w,))


def enforce(connection: Any, n: int = 1000) -> dict[str, Any]:
    answer: dict[str, Any] = connection.execute("select pgsched.enforce_deadlines(%s)", (n,)).fetchone()[0]
    return answer


def test_a_deadline_cancels_what_has_not_ended_in_chunks_and_counts_once(connection: Any, steps: Steps) -> None:
    chain = [job("0")] + [job(str(i), str(i - 1)) for i in range(1, 10)]
    w, ids = workflow(connection, *chain, deadline_s=3600)
    assert enforce(connection) == {"cancelled": 0, "more": False}, "not yet"
    (claim,) = steps.claim()
    steps.finish(claim)
    release_all(connection)
    (claim,) = steps.claim()
    pass_deadline(connection, w)
    assert [enforce(connection, 4) for _ in range(3)] == [{"cancelled": 4, "more": True}, {"cancelled": 4, "more": True}, {"cancelled": 1, "more": False}]
    rows = connection.execute("select state, cause_job_id, reason from pgsched.jobs order by id").fetchall()
    assert [row[0] for row in rows] == ["succeeded", "cancelling"] + ["cancelled"] * 8
    assert all(row[1] is None and f"the deadline of workflow {w}" in row[2] for row in rows[2:]), "each for this reason, none by another's end"
    assert steps.finish(claim) == ["cancelled"]
    assert "has passed" in state_reason(connection, ids[1])
    assert enforce(connection) == {"cancelled": 0, "more": False}
    connection.execute("select pgsched.retry(%s)", (ids[9],))
    assert enforce(connection) == {"cancelled": 0, "more": False}, "what is retried after it has no deadline"
    connection.execute("select pgsched.cancel(%s)", (ids[9],))


def state_reason(connection: Any, job_id: int) -> str:
    return str(connection.execute("select reason from pgsched.jobs where id = %s", (job_id,)).fetchone()[0])


def test_a_deadline_ends_what_waits_for_subtasks_and_those(connection: Any, steps: Steps) -> None:
    w, (a,) = workflow(connection, job("a"), deadline_s=3600)
    (parent,) = steps.claim()
    (part,) = enqueue(connection, parent_id=a, parent_claim_id=parent["claim_id"])
    (claim,) = steps.claim()
    steps.finish(parent)
    pass_deadline(connection, w)
    enforce(connection)
    assert connection.execute("select count(*) from pgsched.workflow where deadline_over_at is null").fetchone() == (0,)
    assert steps.finish(claim) == ["cancelled"]
    release_all(connection)
    assert {i: state(connection, i)[0] for i in (a, part)} == {a: "cancelled", part: "cancelled"}
    assert "the deadline of workflow" in state_reason(connection, a)


def test_a_held_row_holds_up_no_deadline_but_its_own_jobs(connection: Any, other: Any, steps: Steps) -> None:
    w, (a, b, c) = workflow(connection, job("a"), job("b"), job("c"), deadline_s=3600)
    w2, (d,) = workflow(connection, job("d"), deadline_s=3600)
    other.execute("begin")
    other.execute("select from pgsched.ready where job_id = %s for update", (b,))
    pass_deadline(connection, w)
    pass_deadline(connection, w2)
    enforce(connection)
    assert {i: state(connection, i)[0] for i in (a, b, c, d)} == {a: "cancelled", b: "ready", c: "cancelled", d: "cancelled"}
    other.execute("rollback")
    assert enforce(connection)["cancelled"] == 1
    assert connection.execute("select count(*) from pgsched.workflow where deadline_over_at is null").fetchone() == (0,)


def test_the_deadline_is_shown_and_odd_ones_are_refused(connection: Any, steps: Steps) -> None:
    _w, (a,) = workflow(connection, job("a"), deadline="2222-02-02 02:02:02+00")
    assert connection.execute("select deadline::text from pgsched.workflows").fetchone()[0].startswith("2222-02-02")
    explained = connection.execute("select pgsched.explain(%s)", (a,)).fetchone()[0]
    assert "cancelled if it has not ended by 2222-02-02" in explained
    run_all(steps)
    assert "2222" not in connection.execute("select pgsched.explain(%s)", (a,)).fetchone()[0]
    for odd in ({"deadline": "soon"}, {"deadline": 5}, {"deadline_s": "5"}, {"deadline_s": 1e300}, {"deadline": "infinity"}, {"deadline": "2222-01-01", "deadline_s": 5}):
        with pytest.raises(psycopg.DatabaseError, match="enqueue_workflow: deadline is") as error:
            workflow(connection, job("a"), **odd)
        assert error.value.sqlstate == "PGS09"


def test_a_workflow_whose_jobs_are_anothers_says_so(connection: Any, steps: Steps) -> None:
    workflow(connection, job("a", unique_key="k"))
    workflow(connection, job("a", unique_key="k"))
    workflow(connection, job("a", unique_key="k"), job("b", "a"))
    rows = "select state, jobs, shared, open from pgsched.workflows order by id"
    assert connection.execute(rows).fetchall() == [("waiting", 1, 0, 1), ("shared", 1, 1, 0), ("waiting", 2, 1, 1)]
    run_all(steps)
    assert connection.execute(rows).fetchall() == [("succeeded", 1, 0, 0), ("shared", 1, 1, 0), ("succeeded", 2, 1, 0)]


def test_the_list_counts_until_enough_has_been_counted(connection: Any) -> None:
    for n in (3, 2, 4):
        workflow(connection, *(job(str(i)) for i in range(n)))
    listed = connection.execute("select jobs, open from pgsched.list_workflows(10, 6)").fetchall()
    assert listed == [(4, 4), (2, 2), (3, None)]
    assert connection.execute("select jobs, open from pgsched.list_workflows(2, 1)").fetchall() == [(4, 4), (2, None)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([["x"], ["x", "y"]], 'takes two results in one place: ["x"] and ["x","y"]'),
        ([["x", 0], ["x", 0]], 'takes two results in one place'),
        ([[0]], "inputs is"),
        ([["x", -1]], "inputs is"),
        ([["x", 1.5]], "inputs is"),
        ([["x", None]], "inputs is"),
    ],
)  # fmt: skip
def test_inputs_that_overlap_or_lead_nowhere_are_refused(connection: Any, inputs: Any, message: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as error:
        workflow(connection, job("a"), job("b", {"name": "a", "inputs": inputs}))
    assert message in str(error.value.diag.message_primary) and error.value.sqlstate == "PGS05"


def test_inputs_have_a_limit(connection: Any) -> None:
    connection.execute("update pgsched.setting set value = '1000' where name = 'max_args_bytes'")
    with pytest.raises(psycopg.DatabaseError, match=r"its inputs take \d+ bytes, the limit is 1000") as error:
        workflow(connection, job("a"), job("b", {"name": "a", "inputs": [[f"x{i}"] for i in range(300)]}))
    assert error.value.sqlstate == "PGS06"
