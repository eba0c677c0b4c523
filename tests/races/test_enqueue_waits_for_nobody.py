"""Enqueue inserts only rows of its own, so nobody's open transaction is in its way; unique keys are the one exception."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from harness.protocol import Blocked, Steps, enqueue, places


def test_open_transactions_that_enqueue_the_same_lanes_do_not_meet(dsn: str, connection: Any) -> None:
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        for session in (one, two, one, two):
            session.execute("set lock_timeout = '100ms'")
            for priority in range(10):
                enqueue(session, 2, priority=priority, queue="new queue")
        assert places(connection) == {}
    assert len(places(connection)) == 80


def test_a_taken_key_answers_its_holder_and_is_free_again_after_its_end(dsn: str, connection: Any) -> None:
    worker = Steps(dsn)
    first = enqueue(connection, unique_key="k")
    assert enqueue(connection, 2, unique_key="k") == first * 2
    assert enqueue(connection, unique_key="k", task="another") != first
    claim = worker.claim(1)[0]
    assert enqueue(connection, unique_key="k") == first, "a running job holds its key"
    worker.finish(claim)
    assert enqueue(connection, unique_key="k") != first
    worker.close()


def test_a_key_in_an_open_transaction_is_waited_for_and_its_end_decides(dsn: str, connection: Any) -> None:
    for commits in (True, False):
        key = f"k{commits}"
        with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as waiter:
            held = enqueue(holder, unique_key=key)
            jobs = json.dumps([{"task": "t", "queue": "q", "unique_key": key}])
            blocked = Blocked(waiter, "select pgsched.enqueue_many(%s)", (jobs,))
            blocked.until_blocked(holder)
            holder.commit() if commits else holder.rollback()
            assert (blocked.result() == [(held[0],)]) is commits


def test_the_wait_for_a_key_is_bounded_and_the_callers_own_bound_is_kept(dsn: str) -> None:
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as waiter:
        enqueue(holder, unique_key="k")
        waiter.execute("set lock_timeout = '50ms'; set statement_timeout = '2s'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            enqueue(waiter, unique_key="k")
        assert waiter.execute("show lock_timeout").fetchone() == ("50ms",)


def test_keys_are_taken_in_sorted_order_so_that_batches_do_not_deadlock(dsn: str, connection: Any) -> None:
    def batch(keys: list[str]) -> str:
        return json.dumps([{"task": "t", "queue": "q", "unique_key": key} for key in keys])

    call = "select pgsched.enqueue_many(%s)"
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn) as one, psycopg.connect(dsn, autocommit=True) as two:
        enqueue(holder, unique_key="m")
        first = Blocked(one, call, (batch(["a", "m"]),))
        first.until_blocked(holder)
        second = Blocked(two, call, (batch(["m", "a"]),))
        second.until_blocked(one)  # it waits for `a` first: not for `m`, which it could get while the other holds `a`
        holder.rollback()
        ids = first.result()
        one.commit()
        assert second.result() == ids[::-1]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_key_whose_holder_ended_behind_an_old_snapshot_is_taken_whole_or_not_at_all(dsn: str, connection: Any, level: str) -> None:
    # 1. a transaction takes its snapshot; 2. the key's holder ends; 3. the transaction enqueues with that key.
    worker = Steps(dsn)
    enqueue(connection, unique_key="k")
    claim = worker.claim()[0]
    with psycopg.connect(dsn) as user:
        user.execute(f"set transaction isolation level {level}")
        user.execute("select count(*) from pgsched.job")
        worker.finish(claim)
        jobs = json.dumps([{"task": "t", "queue": "q", "unique_key": "k"}, {"task": "t", "queue": "q"}])
        ids = [row[0] for row in user.execute("select pgsched.enqueue_many(%s)", (jobs,)).fetchall()]
    assert len(ids) == 2
    assert {job_id: "ready" for job_id in ids}.items() <= places(connection).items()
    worker.close()


def test_a_batch_that_finds_a_holder_gone_begins_its_round_anew(dsn: str, connection: Any) -> None:
    # (Two batches of the same keys: A gets b and meets a's holder, who ends; B takes a and waits for b; A must not hold b
    # while it waits for a.)
    def batch() -> str:
        return json.dumps([{"task": "t", "queue": "q", "unique_key": key} for key in ("a", "b")])

    connection.execute("alter system set deadlock_timeout = '50ms'")
    worker = Steps(dsn)
    for _ in range(15):
        enqueue(connection, unique_key="a")
        claims = worker.claim()
        with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn, autocommit=True) as two:
            calls = [Blocked(c, "select pgsched.enqueue_many(%s)", (batch(),)) for c in (one, two)]
            worker.finish(*claims)
            assert len(set(map(tuple, [sorted(call.result()) for call in calls]))) <= 2
        for claim in worker.claim():
            worker.finish(claim)
    connection.execute("alter system reset deadlock_timeout")
    worker.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_enqueue_works_in_transactions_of_any_isolation_level(dsn: str, connection: Any, level: str) -> None:
    with psycopg.connect(dsn) as user:
        user.execute(f"set transaction isolation level {level}")
        user.execute("select 1")
        ids = enqueue(user, 3) + enqueue(user, unique_key="k")
    assert places(connection) == dict.fromkeys(ids, "ready")


def test_a_temp_table_named_like_ours_in_the_callers_session_has_no_effect(connection: Any) -> None:
    connection.execute("create temp table job (id bigint); create temp table ready (x int); create temp table setting (x int)")
    connection.execute("set search_path = pg_temp, pgsched")
    ids = enqueue(connection, 2)
    assert places(connection) == dict.fromkeys(ids, "ready")


@pytest.mark.parametrize("name", ["job_id_seq", "ready_position_seq", "claim_number"])
def test_sequences_hand_out_one_number_at_a_time(connection: Any, name: str) -> None:
    row = connection.execute("select cache_size from pg_sequences where schemaname = 'pgsched' and sequencename = %s", (name,))
    assert row.fetchone() == (1,)
