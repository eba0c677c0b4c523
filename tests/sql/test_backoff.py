"""The wait after a failed attempt, as Postgres computes it: the same number as Python's, and harmless for any data."""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg
from harness.policies import policies
from harness.protocol import Steps, enqueue
from hypothesis import given, settings
from hypothesis import strategies as st

EACH = 200
PAIRS = 10_000


def test_postgres_and_python_compute_the_same_wait_for_10000_policies_and_attempts(connection: psycopg.Connection[Any]) -> None:
    """To the microsecond, before jitter and after it."""
    seen = 0
    case = st.tuples(
        policies(),
        st.one_of(st.integers(1, 70), st.integers(1, 10**9), st.integers(1, 2**63 - 1), st.sampled_from([1, 50, 51, 64, 1024, 10**9])),
        st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
    )
    drawn = random.Random(8)

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(st.lists(case, min_size=20, max_size=EACH))
    def compare(cases: list[Any]) -> None:
        nonlocal seen
        # (Beside what was drawn, which is near the edges, the same policies with any attempt and random number, so that they are enough.)
        more = (cases * EACH)[: EACH + PAIRS // 50]
        cases = [*cases, *((policy, drawn.randrange(1, 10 ** drawn.randrange(1, 18)), drawn.random()) for policy, _, _ in more)]
        theirs = connection.execute(
            """
            select round(extract(epoch from pgsched.backoff(c -> 0, (c ->> 1)::bigint, (c ->> 2)::float8)) * 1000000)::bigint
            from jsonb_array_elements(%s::jsonb) c
            """,
            [json.dumps([(policy.as_data(), attempt, share) for policy, attempt, share in cases])],
        ).fetchall()
        ours = [policy.wait(attempt, random=share) for policy, attempt, share in cases]
        assert [row[0] for row in theirs] == [(wait.days * 86400 + wait.seconds) * 10**6 + wait.microseconds for wait in ours]
        seen += len(cases)

    compare()
    assert seen >= PAIRS


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.text(max_size=5).filter(lambda t: "\0" not in t), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["kind", "first_s"]), inner)),
)
numbers = st.one_of(anything, st.sampled_from([0, -1, 1e308, -1e308, 1e-308, 10**400]))
data = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"kind": st.one_of(st.sampled_from(["fixed", "linear", "exponential"]), anything)},
        optional={name: numbers for name in ("first_s", "step_s", "cap_s", "after_s", "factor")} | {"jitter": st.one_of(st.sampled_from(["full", "equal"]), anything)},
    ),
)


def test_no_data_makes_a_wait_negative_or_longer_than_100_years(connection: psycopg.Connection[Any]) -> None:
    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(data, st.integers(-(2**63), 2**63 - 1), st.one_of(st.none(), st.floats()))
    def throw(policy: Any, attempt: int, drawn: float | None) -> None:
        row = connection.execute(
            "select pgsched.backoff(%s::jsonb, %s::bigint, %s::float8) between interval '0' and interval '36525 days'", [json.dumps(policy), attempt, drawn]
        ).fetchone()
        assert row == (True,)

    throw()


def wait_of(connection: psycopg.Connection[Any]) -> tuple[str, float | None, str | None]:
    """The state of the one job, how long it waits, and why it has ended."""
    row = connection.execute(
        "select state, extract(epoch from run_at - clock_timestamp())::float8, reason from pgsched.jobs"
    ).fetchone()
    assert row is not None
    return row


def fail(dsn: str, connection: psycopg.Connection[Any], max_attempts: int = 5, **outcome: Any) -> tuple[str, float | None, str | None]:
    """What becomes of a job whose first attempt fails so."""
    enqueue(connection, max_attempts=max_attempts)
    steps = Steps(dsn)
    assert steps.finish(steps.claim()[0], **({"outcome": "retry", "error_type": "ValueError", "error": "boom"} | outcome)) == ["accepted"]
    steps.close()
    return wait_of(connection)


def test_a_policy_travels_with_the_outcome_and_decides_the_wait(dsn: str, connection: psycopg.Connection[Any]) -> None:
    state, wait, _ = fail(dsn, connection, policy={"kind": "fixed", "after_s": 500})
    assert state == "retrying" and wait is not None and 490 < wait <= 500


def test_without_a_policy_the_first_wait_is_a_second(dsn: str, connection: psycopg.Connection[Any]) -> None:
    state, wait, _ = fail(dsn, connection)
    assert state == "retrying" and wait is not None and wait <= 1


def test_the_jitter_of_a_policy_is_drawn_by_the_server(dsn: str, connection: psycopg.Connection[Any]) -> None:
    enqueue(connection, 40, max_attempts=2)
    steps = Steps(dsn)
    claims = steps.claim(40)
    steps.finish(*claims, outcome="retry", policy={"kind": "fixed", "after_s": 1000, "jitter": "equal"})
    steps.close()
    spread = connection.execute("select count(distinct run_at), min(run_at) - now() > '490 s', max(run_at) - now() <= '1000 s' from pgsched.waiting").fetchone()
    assert spread == (40, True, True)


def test_the_wish_of_a_handler_stands_in_for_the_wait_and_not_for_the_budget(dsn: str, connection: psycopg.Connection[Any]) -> None:
    state, wait, _ = fail(dsn, connection, policy={"kind": "fixed", "after_s": 5}, after_s=500)
    assert state == "retrying" and wait is not None and 490 < wait <= 500


def test_a_wish_on_the_last_attempt_fails_the_job(dsn: str, connection: psycopg.Connection[Any]) -> None:
    assert fail(dsn, connection, max_attempts=1, after_s=500) == ("failed", None, "ValueError: boom")


def test_an_error_may_have_fewer_attempts_than_the_job(dsn: str, connection: psycopg.Connection[Any]) -> None:
    assert fail(dsn, connection, policy={"max_attempts": 1}) == ("failed", None, "ValueError: boom (attempt 1 of 1 for this error)")


def test_no_attempt_is_due_after_the_policys_age(dsn: str, connection: psycopg.Connection[Any]) -> None:
    policy = {"kind": "fixed", "after_s": 60, "max_age_s": 30}
    state, _, reason = fail(dsn, connection, policy=policy)
    assert (state, reason) == (
        "failed", "ValueError: boom (the next attempt would be due more than max_age, 00:00:30, after it was enqueued or due first)"
    )  # fmt: skip


def test_the_age_counts_from_run_at_and_not_from_an_earlier_enqueuing(dsn: str, connection: psycopg.Connection[Any]) -> None:
    policy = {"kind": "fixed", "after_s": 60, "max_age_s": 100}
    steps = Steps(dsn)
    for queue, due in (("old", "-3 h"), ("due", "-10 s")):
        enqueue(connection, queue=queue, max_attempts=5)
        connection.execute("update pgsched.job set created_at = created_at - interval '3 h', run_at = now() + %s::interval where queue = %s", [due, queue])
        steps.finish(steps.claim(queue=queue)[0], outcome="retry", policy=policy)
    steps.close()
    assert connection.execute("select queue, state from pgsched.jobs order by id").fetchall() == [("old", "failed"), ("due", "retrying")]


def test_a_retry_of_a_cancelled_or_snoozed_job_ends_as_it_was_told(dsn: str, connection: psycopg.Connection[Any]) -> None:
    ids = enqueue(connection, 2, max_attempts=2)
    steps = Steps(dsn)
    first, second = steps.claim()
    connection.execute("select pgsched.cancel(%s)", [ids[0]])
    assert steps.finish(first, outcome="snooze", after_s=500) == ["cancelled"]
    assert steps.finish(second, outcome="snooze", after_s=500, reason="not now") == ["accepted"]
    steps.close()
    states = connection.execute("select state, attempt from pgsched.jobs order by id").fetchall()
    assert states == [("cancelled", 1), ("scheduled", 0)], "a snooze is not charged"
