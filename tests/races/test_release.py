"""Who waits for whom: two who decide at the same moment, step by step, and what each of them can see.

The numbers in brackets are the findings of the design's reviews (tests/README.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.graphs import release, release_all, release_some
from harness.protocol import Blocked, Steps, child, enqueue, places

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


def finish_running(steps: Steps, job_id: int, **outcome: Any) -> str:
    row = steps.work.execute("select job_id, claim_id from pgsched.running where job_id = %s", (job_id,)).fetchone()
    return steps.finish(row, **outcome)[0]


def finish_claimed(steps: Steps, **outcome: Any) -> None:
    """Claim what is ready, and end it."""
    steps.finish(*steps.claim(100), **outcome)


def edge(connection: Any, child_id: int, on: int) -> str | None:
    row = connection.execute("select outcome from pgsched.dependency where job_id = %s and depends_on_id = %s", (child_id, on)).fetchone()
    return None if row is None else row[0]


def test_two_parents_that_finish_at_once_let_their_child_run_once(dsn: str, connection: Any, steps: Steps) -> None:
    a, b = enqueue(connection, 2)
    c = child(connection, a, b)
    claims = {row["job_id"]: row for row in steps.claim()}
    second = steps.open_session()
    steps.work.execute("begin")
    second.execute("begin")
    assert steps.finish(claims[a]) == ["accepted"]
    assert steps.finish(claims[b], session=second) == ["accepted"]
    release_now = release(connection)
    assert release_now["ready"] == 0
    steps.work.execute("commit")
    second.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_child_that_is_enqueued_while_its_parent_finishes_is_looked_at(connection: Any, other: Any, steps: Steps) -> None:
    """(R5)"""
    [p] = enqueue(connection)
    steps.claim()
    with other.transaction():
        c = child(other, p)
        assert finish_running(steps, p) == "accepted"  # (it cannot see the edge, and leaves no event)
        release_all(connection)
    assert places(connection)[c] == "waiting"
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_child_that_is_enqueued_while_its_parent_is_cancelled_ends(connection: Any, other: Any, steps: Steps) -> None:
    """(R5)"""
    [p] = enqueue(connection)
    with other.transaction():
        c = child(other, p)
        connection.execute("select pgsched.cancel(%s)", (p,))
        release_all(connection)
    release_all(connection)
    assert places(connection)[c] == "cancelled"


def test_a_finish_that_began_before_the_child_was_there_and_ends_after_it_is_waited_for(connection: Any, other: Any, steps: Steps) -> None:
    """(R27)"""
    [p] = enqueue(connection)
    steps.claim()
    other.execute("begin")
    c = child(other, p)
    steps.work.execute("begin")
    assert finish_running(steps, p) == "accepted"
    other.execute("commit")
    for _ in range(3):
        assert release(connection) == {"ready": 0, "ended": 0, "more": False, "kept": 1}
    steps.work.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_users_open_transaction_holds_up_its_own_job_alone(connection: Any, other: Any, steps: Steps) -> None:
    """(R28)"""
    [p] = enqueue(connection)
    held, free = child(connection, p), child(connection, p)
    steps.claim()
    other.execute("begin")
    other.execute("select from pgsched.waiting where job_id = %s for update", (held,))
    finish_running(steps, p)
    connection.execute("set lock_timeout = '2s'")
    for _ in range(3):
        release(connection)
    assert places(connection)[free] == "ready"
    assert places(connection)[held] == "waiting"
    other.execute("rollback")
    release_all(connection)
    assert places(connection)[held] == "ready"


def test_an_edge_that_somebody_holds_holds_up_its_own_job_alone(connection: Any, other: Any, steps: Steps) -> None:
    """(R28) Who cancels another job may hold an edge whose job he does not."""
    [p] = enqueue(connection)
    held, free = child(connection, p), child(connection, p)
    release_all(connection)
    steps.claim()
    other.execute("begin")
    other.execute("select from pgsched.dependency where job_id = %s for update", (held,))
    for session in (connection, steps.work):
        session.execute("set lock_timeout = '2s'")
    assert finish_running(steps, p) == "accepted"
    release_some(connection)
    assert (places(connection)[free], places(connection)[held]) == ("ready", "waiting")
    other.execute("rollback")
    release_all(connection)
    assert places(connection)[held] == "ready"


def test_an_edge_that_has_come_to_the_place_of_another_is_not_taken_for_it(connection: Any) -> None:
    p, q = enqueue(connection, 2)
    c, d = child(connection, p), child(connection, q)
    [place] = connection.execute("select ctid::text from pgsched.dependency where job_id = %s", (d,)).fetchone()
    call = "select pgsched.write_outcomes(array[%s]::tid[], array[%s::bigint], array[%s::bigint], array[%s::bigint], array['failed'])"
    assert connection.execute(call, (place, c, p, p)).fetchone() == ([c],)
    assert (edge(connection, c, p), edge(connection, d, q)) == (None, None)


@pytest.mark.parametrize(("condition", "outcome"), [("success", "failed"), ("failure", "succeeded")])
def test_a_job_with_many_dependencies_ends_with_the_first_that_it_cannot_have(connection: Any, steps: Steps, condition: str, outcome: str) -> None:
    """Of one that needs all of them, nothing but their successes is read while another has not ended."""
    parents = enqueue(connection, 50)
    c = child(connection, *[(p, condition if p == parents[9] else "success") for p in parents])
    release_all(connection)
    claims = sorted(steps.claim(50), key=lambda row: row["job_id"])
    steps.finish(*claims[:9])
    steps.finish(*claims[10:20])
    release_all(connection)
    assert places(connection)[c] == "waiting"
    steps.finish(*claims[20:30])
    steps.finish(claims[9], outcome=outcome)
    release_all(connection)
    assert places(connection)[c] == "skipped"
    steps.finish(*claims[30:])


def test_a_job_with_many_dependencies_runs_when_the_last_has_ended(connection: Any, steps: Steps) -> None:
    parents = enqueue(connection, 50)
    c = child(connection, *parents)
    claims = sorted(steps.claim(50), key=lambda row: -row["job_id"])  # (the oldest edge is the last that is written)
    for some in (claims[:20], claims[20:49], claims[49:]):
        assert places(connection)[c] == "waiting"
        steps.finish(*some)
        release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_look_at_a_job_with_many_dependencies_is_not_lost_among_their_ends(connection: Any, steps: Steps) -> None:
    parents = enqueue(connection, 50)
    claims = sorted(steps.claim(50), key=lambda row: row["job_id"])
    connection.execute("select pgsched.cancel(%s)", (parents[0],))
    c = child(connection, *parents)  # (the look finds that the first one can only end as cancelled)
    steps.finish(*claims[1:30])
    release_all(connection)
    assert places(connection)[c] == "cancelled"
    steps.finish(claims[0], *claims[30:])


@pytest.mark.parametrize("n", [1, 1000])
@pytest.mark.parametrize("held_by", ["a finish", "a cancel", "a retry"])
def test_events_do_not_multiply_while_somebody_holds_both_ends_of_an_edge(connection: Any, other: Any, steps: Steps, held_by: str, n: int) -> None:
    [p] = enqueue(connection)
    (claim,) = steps.claim()
    if held_by == "a retry":
        steps.finish(claim, outcome="failed")
    c, d = child(connection, p), child(connection, p)
    if held_by == "a finish":
        steps.work.execute("begin")
        steps.finish(claim)
    else:
        other.execute("begin")
        other.execute("select pgsched.cancel_many(%s)" if held_by == "a cancel" else "select pgsched.retry(%s[1])", ([p, c, d],))
    for _ in range(20):
        release(connection, n)
    assert connection.execute("select count(*) <= 4 from pgsched.release_check").fetchone() == (True,)
    (steps.work if held_by == "a finish" else other).execute("commit")
    if held_by == "a cancel":
        assert steps.finish(claim) == ["cancelled"]
    release_all(connection)
    assert [places(connection)[x] for x in (c, d)] == [{"a finish": "ready", "a cancel": "cancelled", "a retry": "waiting"}[held_by]] * 2


def test_a_second_end_is_a_second_event(connection: Any, steps: Steps) -> None:
    """(R31)"""
    p, q = enqueue(connection, 2)
    c = child(connection, p, q)
    release_all(connection)
    steps.claim()
    finish_running(steps, p, outcome="failed")
    connection.execute("select pgsched.retry(%s)", (p,))
    steps.claim()
    finish_running(steps, p)
    finish_running(steps, q)
    assert connection.execute("select count(*) from pgsched.release_check where ended_id = %s", (p,)).fetchone() == (2,)
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_retry_waits_for_a_release_and_brings_back_what_that_has_ended(dsn: str, connection: Any, other: Any, steps: Steps) -> None:
    """(R34 i)"""
    [p] = enqueue(connection)
    c = child(connection, p)
    steps.claim()
    finish_running(steps, p, outcome="failed")
    other.execute("begin")
    while not release(other)["ended"]:
        pass
    with psycopg.connect(dsn, autocommit=True) as third:
        retrying = Blocked(third, "select * from pgsched.retry(%s)", (p,))
        retrying.until_blocked(other)
        other.execute("commit")
        assert dict(retrying.result()) == {p: "failed", c: "skipped"}
    steps.claim()
    finish_running(steps, p)
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_job_that_was_cancelled_before_its_rule_was_met_waits_again(connection: Any, steps: Steps) -> None:
    """(R34 iv)"""
    [p] = enqueue(connection)
    c = child(connection, p)
    connection.execute("select pgsched.cancel(%s)", (c,))
    connection.execute("select pgsched.retry(%s)", (c,))
    release_all(connection)
    assert places(connection)[c] == "waiting"
    steps.claim()
    finish_running(steps, p)
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_what_has_run_keeps_the_outcome_under_which_it_ran(connection: Any, steps: Steps) -> None:
    """(R34 iii)"""
    [p] = enqueue(connection)
    c = child(connection, (p, "failure"))
    steps.claim()
    finish_running(steps, p, outcome="failed")
    release_all(connection)
    steps.claim()
    finish_running(steps, c)
    assert connection.execute("select * from pgsched.retry(%s)", (p,)).fetchall() == [(p, "failed")]
    assert edge(connection, c, p) == "failed"


def test_two_retries_that_cross_bring_their_child_back(dsn: str, connection: Any, other: Any, steps: Steps) -> None:
    """(R47 1)"""
    p, q = enqueue(connection, 2)
    c = child(connection, p, q)
    for one in steps.claim():
        steps.finish(one, outcome="failed")
    release_all(connection)
    assert places(connection)[c] == "skipped"
    other.execute("begin")
    other.execute("select pgsched.retry(%s)", (q,))
    with psycopg.connect(dsn, autocommit=True) as third:
        retrying = Blocked(third, "select * from pgsched.retry(%s)", (p,))
        retrying.until_blocked(other)
        other.execute("commit")
        retrying.result()
    assert (edge(connection, c, p), edge(connection, c, q)) == (None, None)
    release_all(connection)
    for one in steps.claim():
        steps.finish(one)
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_cancelled_job_is_retried_by_what_its_dependencies_are_now(connection: Any, steps: Steps) -> None:
    """(R47 2)"""
    [x] = enqueue(connection)
    p = child(connection, x)
    connection.execute("select pgsched.cancel(%s)", (p,))
    steps.claim()
    finish_running(steps, x, outcome="failed")
    release_all(connection)
    connection.execute("select pgsched.retry(%s)", (x,))
    steps.claim()
    finish_running(steps, x)
    connection.execute("select pgsched.retry(%s)", (p,))
    release_all(connection)
    assert places(connection)[p] == "ready"


def test_what_an_open_transaction_depends_on_is_not_pruned(connection: Any, other: Any, steps: Steps) -> None:
    """(R47 3)"""
    [p] = enqueue(connection)
    steps.claim()
    finish_running(steps, p)
    other.execute("begin")
    c = child(other, p)
    assert connection.execute("select pgsched.prune('0 s')").fetchone() == (0,)
    other.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "ready"
    assert connection.execute("select pgsched.prune('0 s')").fetchone() == (0,), "its result may be wanted"
    steps.claim()
    finish_running(steps, c)
    release_all(connection)
    assert connection.execute("select pgsched.prune('0 s')").fetchone() == (2,)
    assert connection.execute("select count(*) from pgsched.dependency").fetchone() == (0,)


def test_small_chunks_come_to_an_end_beside_held_rows(connection: Any, other: Any, steps: Steps) -> None:
    """(R47 4, R49 9)"""
    p, q = enqueue(connection, 2)
    many = enqueue(connection, 300, depends_on=[{"job": p}])
    few = enqueue(connection, 20, depends_on=[{"job": q}])
    release_all(connection)
    for one in steps.claim():
        steps.finish(one)
    other.execute("begin")
    other.execute("select from pgsched.waiting where job_id = any (%s) for update", (many[:10],))
    for _ in range(120):
        release(connection, 5)
    found = places(connection)
    assert [found[i] for i in many[10:] + few] == ["ready"] * 310
    other.execute("rollback")
    release_all(connection, 5)
    assert set(places(connection).values()) == {"ready", "succeeded"}


def test_a_new_child_of_a_job_that_is_being_cancelled_does_not_wait_for_its_thread(connection: Any, steps: Steps) -> None:
    """(R47 8, R45)"""
    [p] = enqueue(connection)
    steps.claim()
    connection.execute("select pgsched.cancel(%s)", (p,))
    c, d = child(connection, p), child(connection, (p, "done"))
    release_some(connection)
    assert (places(connection)[c], places(connection)[d]) == ("cancelled", "waiting")
    assert finish_running(steps, p) == "cancelled"
    release_all(connection)
    assert places(connection)[d] == "ready"


def test_an_event_looks_at_all_that_waits_not_only_where_it_wrote(dsn: str, connection: Any, other: Any, steps: Steps) -> None:
    """(R48)"""
    p, q = enqueue(connection, 2)
    c = child(connection, p, q)
    release_all(connection)
    claims = {row["job_id"]: row for row in steps.claim()}
    steps.finish(claims[p], outcome="failed")
    release_all(connection)
    assert places(connection)[c] == "skipped"
    other.execute("begin")
    other.execute("select pgsched.retry(%s)", (p,))  # C waits again, not committed
    with psycopg.connect(dsn, autocommit=True) as third:
        cancelling = Blocked(third, "select pgsched.cancel(%s)", (q,))  # it cannot see C waiting, but its edge is held
        cancelling.until_blocked(other)
        other.execute("commit")
        cancelling.result()
    steps.claim()
    finish_running(steps, p)
    release_some(connection)
    assert places(connection)[c] == "cancelled"


def test_a_look_stays_until_no_dependency_is_in_between(connection: Any, other: Any, steps: Steps) -> None:
    """(R49 2)"""
    [p] = enqueue(connection)
    c = child(connection, p)
    connection.execute("select pgsched.cancel(%s)", (c,))
    steps.claim()
    finish_running(steps, p)
    release_all(connection)
    connection.execute("select pgsched.retry(%s)", (c,))
    other.execute("begin")
    other.execute("select from pgsched.finished where job_id = %s for update", (p,))
    for _ in range(3):
        assert release(connection)["kept"] == 1
    other.execute("rollback")
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_a_scheduled_dependent_is_left_alone(connection: Any, steps: Steps) -> None:
    """(R33, R49 10)"""
    [p] = enqueue(connection)
    c = child(connection, p, max_attempts=3)
    later = child(connection, p, delay_s=3600)
    steps.claim()
    finish_running(steps, p, outcome="failed")
    connection.execute("select pgsched.retry(%s)", (p,))
    steps.claim()
    finish_running(steps, p)
    release_all(connection)
    steps.claim()
    finish_running(steps, c, outcome="retry", after_s=3600)
    state = "select reason from pgsched.waiting where job_id = %s"
    assert [connection.execute(state, (i,)).fetchone() for i in (c, later)] == [("retry",), ("scheduled",)]
    connection.execute("insert into pgsched.release_check (ended_id) values (%s)", (p,))
    release_all(connection)
    assert [connection.execute(state, (i,)).fetchone() for i in (c, later)] == [("retry",), ("scheduled",)]


def test_a_cancel_of_what_ended_by_a_cause_keeps_it_so(connection: Any, steps: Steps) -> None:
    """(R49 12)"""
    [p] = enqueue(connection)
    c = child(connection, p)
    steps.claim()
    finish_running(steps, p, outcome="failed")
    release_all(connection)
    assert connection.execute("select * from pgsched.cancel(%s)", (c,)).fetchall() == [(c, "skipped")]
    assert connection.execute("select * from pgsched.cancel(%s)", (c,)).fetchall() == []
    assert connection.execute("select * from pgsched.retry(%s)", (p,)).fetchall() == [(p, "failed")]
    assert places(connection)[c] == "skipped"


def test_an_end_in_a_transaction_with_an_old_snapshot_is_always_noted(connection: Any, other: Any, steps: Steps) -> None:
    """(R12)"""
    [p] = enqueue(connection)
    claim = steps.claim()[0]
    steps.work.execute("select * from pgsched.begin(%s, %s)", (steps.id, json.dumps([{"job_id": p, "claim_id": claim["claim_id"]}])))
    other.execute("begin isolation level repeatable read")
    other.execute("select pgsched.begin_transaction(%s, %s)", (p, claim["claim_id"]))
    other.execute("select 1 from pgsched.job limit 1")
    c = child(connection, p)
    release_all(connection)
    other.execute("select pgsched.finish_transaction(%s, %s)", (p, claim["claim_id"]))
    other.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_rules_other_than_read_committed_are_refused(connection: Any) -> None:
    """(R12)"""
    for call in ("pgsched.release()", "pgsched.retry(1)", "pgsched.cancel(1)"):
        with pytest.raises(psycopg.DatabaseError, match="decides at READ COMMITTED only"), connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            connection.execute(f"select {call}")


def test_a_killed_releaser_loses_nothing(dsn: str, connection: Any, steps: Steps) -> None:
    [p] = enqueue(connection)
    many = enqueue(connection, 50, depends_on=[{"job": p}])
    release_all(connection)
    steps.claim()
    finish_running(steps, p)
    for _ in range(5):
        victim = psycopg.connect(dsn)
        release(victim, 7)
        connection.execute("select pg_terminate_backend(%s, 10000)", (victim.info.backend_pid,))
        victim.close()
    release_all(connection)
    assert [places(connection)[i] for i in many] == ["ready"] * 50


def test_the_last_of_three_says_what_becomes_of_the_rest(connection: Any, steps: Steps) -> None:
    """A chain of skipped jobs ends by itself, level by level."""
    [p] = enqueue(connection)
    chain = [p]
    for _ in range(20):
        chain.append(child(connection, chain[-1]))
    tidy = child(connection, (chain[-1], "done"))
    release_all(connection)
    steps.claim()
    finish_running(steps, p, outcome="failed")
    while release(connection)["more"]:  # (as a worker does)
        pass
    found = places(connection)
    assert [found[i] for i in chain[1:]] == ["skipped"] * 20
    assert found[tidy] == "ready"
    assert dict(connection.execute("select * from pgsched.retry(%s)", (p,)).fetchall()).keys() == set(chain)


def test_a_chunk_that_was_rolled_back_is_read_again(connection: Any, other: Any, steps: Steps) -> None:
    """The cursor is kept by sequences, which know no rollback: dependents whose outcome had been written before were lost."""
    p, q = enqueue(connection, 2)
    many = enqueue(connection, 12, depends_on=[{"job": p}, {"job": q}])
    release_all(connection)
    steps.claim()
    finish_running(steps, q, outcome="failed")
    connection.execute("update pgsched.dependency set outcome = 'failed' where depends_on_id = %s", (q,))  # (as a cancel might have)
    for undo in ("rollback", "rollback to savepoint s"):
        other.execute("begin")
        other.execute("savepoint s")
        release(other, 5)
        other.execute(undo)
        other.execute("commit")
        release(connection, 5)
    release_all(connection, 5)
    assert [places(connection)[i] for i in many] == ["skipped"] * 12


def test_a_release_is_a_transaction_of_its_own(connection: Any, other: Any, steps: Steps) -> None:
    """A look at what nobody else can see yet would pass for settled, and the finish that goes on meanwhile sees nothing."""
    [p] = enqueue(connection)
    steps.claim()
    other.execute("begin")
    c = child(other, p)
    with pytest.raises(psycopg.DatabaseError, match="this transaction has written something"), other.transaction():
        release(other)
    finish_running(steps, p)
    other.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_an_open_retry_holds_the_edges_of_what_it_brings_back(connection: Any, other: Any, steps: Steps) -> None:
    [q] = enqueue(connection)
    c = child(connection, q)
    connection.execute("select pgsched.cancel(%s)", (c,))
    other.execute("begin")
    other.execute("select pgsched.retry(%s)", (c,))
    steps.claim()
    finish_running(steps, q, outcome="failed")
    release_some(connection)
    connection.execute("select pgsched.retry(%s)", (q,))
    other.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "waiting"
    steps.claim()
    finish_running(steps, q)
    release_all(connection)
    assert places(connection)[c] == "ready"


def test_what_is_brought_back_keeps_its_time_and_its_expiry(connection: Any, steps: Steps) -> None:
    [p] = enqueue(connection)
    later = child(connection, p, delay_s=3600)
    gone = child(connection, p, expires_at="2999-01-01T00:00:00Z")
    steps.claim()
    finish_running(steps, p, outcome="failed")
    release_all(connection)
    connection.execute("select pgsched.retry(%s)", (p,))
    assert connection.execute("select expires_at is not null from pgsched.waiting where job_id = %s", (gone,)).fetchone() == (True,)
    steps.claim()
    finish_running(steps, p)
    release_all(connection)
    assert connection.execute("select reason from pgsched.waiting where job_id = %s", (later,)).fetchone() == ("scheduled",)


def test_a_running_row_that_is_held_for_a_moment_does_not_hide_a_cancel(connection: Any, other: Any, steps: Steps) -> None:
    [p] = enqueue(connection)
    steps.claim()
    connection.execute("select pgsched.cancel(%s)", (p,))
    c = child(connection, p)
    other.execute("begin")
    other.execute("select from pgsched.running where job_id = %s for update", (p,))
    assert release(connection)["kept"] == 1
    other.execute("commit")
    release_some(connection)
    assert places(connection)[c] == "cancelled"
    finish_running(steps, p)


def test_prune_goes_past_what_is_needed_and_past_what_is_held(connection: Any, other: Any, steps: Steps) -> None:
    parents = enqueue(connection, 5)
    for p in parents:
        child(connection, p, delay_s=3600)
    rest = enqueue(connection, 20)
    q = enqueue(connection, delay_s=3600)[0]
    held = child(connection, q, (rest[0], "done"), rule="any")
    for _ in range(3):
        finish_claimed(steps)
        release_all(connection)
    other.execute("begin")
    other.execute("select pgsched.cancel(%s)", (q,))
    connection.execute("set lock_timeout = '2s'")
    assert connection.execute("select pgsched.prune('0 s', 5)").fetchone() == (5,)
    while connection.execute("select pgsched.prune('0 s', 5)").fetchone() != (0,):
        pass
    assert set(places(connection)) >= {*parents, held}
    assert not set(places(connection)) & set(rest)
    other.execute("rollback")
    assert connection.execute("select pgsched.prune('0 s', 5)").fetchone() == (1,)


def test_an_input_that_was_pruned_is_never_taken_for_nothing(connection: Any, steps: Steps) -> None:
    p, q = enqueue(connection, 2)
    [d] = enqueue(connection, depends_on=[{"job": p, "inputs": [["x"]]}, {"job": q}])
    claims = {row["job_id"]: row for row in steps.claim()}
    steps.finish(claims[p], result=7)
    steps.finish(claims[q], outcome="failed")
    release_all(connection)
    assert connection.execute("select pgsched.prune('0 s', 1)").fetchone() == (1,)
    assert connection.execute("select * from pgsched.retry(%s)", (q,)).fetchall() == [(q, "failed")], "the other one stays ended"
    finish_claimed(steps)
    with pytest.raises(psycopg.DatabaseError, match="takes the result of a job that was pruned"):
        connection.execute("select * from pgsched.retry(%s)", (d,))


def test_what_could_not_come_back_with_its_cause_is_retried_by_itself(connection: Any, steps: Steps) -> None:
    [p] = enqueue(connection)
    [d] = enqueue(connection, depends_on=[{"job": p}], unique_key="k")
    finish_claimed(steps, outcome="failed")
    release_all(connection)
    [holder] = enqueue(connection, unique_key="k")
    assert connection.execute("select * from pgsched.retry(%s)", (p,)).fetchall() == [(p, "failed")]
    with pytest.raises(psycopg.DatabaseError, match=f"the unique key of job {d} is held by job {holder}"):
        connection.execute("select * from pgsched.retry(%s)", (d,))
    finish_claimed(steps)
    assert connection.execute("select * from pgsched.retry(%s)", (d,)).fetchall() == [(d, "skipped")]
    release_all(connection)
    assert places(connection)[d] == "ready"


def test_a_job_that_has_run_is_not_judged_anew(connection: Any, steps: Steps) -> None:
    [p] = enqueue(connection)
    c = child(connection, (p, "failure"), max_attempts=3)
    finish_claimed(steps, outcome="failed")
    release_all(connection)
    finish_claimed(steps, outcome="retry", after_s=3600)
    connection.execute("select pgsched.retry(%s)", (p,))
    finish_claimed(steps)
    connection.execute("select pgsched.cancel(%s)", (c,))
    connection.execute("select pgsched.retry(%s)", (c,))
    release_all(connection)
    assert places(connection)[c] == "ready"
