"""Death: who may take a worker's jobs, and what happens to each; lost answers; copies of a database."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
from harness.protocol import Steps, enqueue, places, rescue


@pytest.fixture
def worker(dsn: str) -> Any:
    steps = Steps(dsn)
    yield steps
    steps.close()


def test_a_worker_that_lives_cannot_be_rescued(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    worker.claim()
    for call, session in (("true", connection), ("true", worker.work), ("false", connection)):
        with pytest.raises(psycopg.Error) as error:
            session.execute(f"select pgsched.rescue(%s, null, {call})", (worker.id,))
        assert error.value.sqlstate == ("PGS07" if call == "true" else "PGS09")
    worker.lease.close()
    with pytest.raises(psycopg.Error, match="still hold its lock"):
        connection.execute("select pgsched.rescue(%s, null, true)", (worker.id,))


def test_only_jobs_that_had_begun_are_charged_and_none_costs_an_attempt(worker: Steps, connection: Any) -> None:
    enqueue(connection, 3)
    begun, told, held = worker.claim(3, free_slots=2)
    worker.close()
    assert rescue(connection, worker, [begun["claim_id"]]) == {"moved": 3, "left": 0}
    rows = connection.execute("select job_id, attempt, lost_attempts from pgsched.ready order by job_id").fetchall()
    assert rows == [(begun["job_id"], 0, 1), (told["job_id"], 0, 0), (held["job_id"], 0, 0)]
    assert connection.execute("select distinct state from pgsched.attempt_log").fetchall() == [("lost",)]


def test_without_the_supervisors_list_started_jobs_count_as_begun(worker: Steps, connection: Any) -> None:
    enqueue(connection, 2)
    worker.claim(2, free_slots=1)
    worker.close()
    rescue(connection, worker)
    assert connection.execute("select lost_attempts from pgsched.ready order by job_id").fetchall() == [(1,), (0,)]


def test_where_suspects_had_begun_only_they_are_charged(dsn: str, connection: Any) -> None:
    # 1. A worker dies with two jobs. 2. They and three more run in another, which dies too: whoever ran beside the suspects by
    # chance is not charged, also where the rescue goes in chunks and the suspects have been moved by an earlier one.
    suspects = enqueue(connection, 2)
    first = Steps(dsn)
    first.claim()
    first.close()
    rescue(connection, first)
    others = enqueue(connection, 3)
    second = Steps(dsn)
    assert [c["job_id"] for c in second.claim()] == [suspects[0], *others], "one suspect an answer: they run alone"
    assert [c["job_id"] for c in second.claim()] == [suspects[1]]
    second.close()
    assert [rescue(connection, second, n=1)["left"] for _ in range(5)] == [4, 3, 2, 1, 0]
    rows = dict(connection.execute("select job_id, lost_attempts from pgsched.ready").fetchall())
    assert rows == dict.fromkeys(suspects, 2) | dict.fromkeys(others, 0)
    lost = connection.execute("select job_id, error from pgsched.attempt_log order by ended_at desc limit 5").fetchall()
    assert {error.partition("(")[2] for job_id, error in lost if job_id in others} == {"lost attempts: 0)"}


def test_a_job_that_loses_its_third_worker_ends_as_failed(dsn: str, connection: Any) -> None:
    job_id = enqueue(connection)[0]
    for deaths in range(3):
        steps = Steps(dsn)
        assert [c["job_id"] for c in steps.claim()] == [job_id], f"after {deaths} deaths"
        steps.close()
        rescue(connection, steps)
    assert places(connection) == {job_id: "failed"}
    reason = connection.execute("select reason from pgsched.jobs").fetchone()[0]
    assert "died while it held the job (lost attempts: 3)" in reason


def test_a_rescued_workers_late_finish_is_stale_and_its_sessions_refused(worker: Steps, connection: Any) -> None:
    enqueue(connection)
    claim = worker.claim()[0]
    worker.lease.close()
    zombie = worker.work
    zombie.execute("select pg_advisory_unlock_shared(%s)", (worker.id,))
    rescue(connection, worker)
    with pytest.raises(psycopg.Error) as error:
        worker.finish(claim)
    assert error.value.sqlstate == "PGS03"
    connection.execute("update pgsched.worker set rescued_at = null")
    assert worker.finish(claim) == ["stale"], "even if it were let in"
    with pytest.raises(psycopg.Error, match="was rescued"):
        connection.execute("update pgsched.worker set rescued_at = clock_timestamp()")
        connection.execute("select pgsched.open_session(%s, %s, 9)", (worker.id, worker.token))


def test_a_cancelled_job_of_a_dead_worker_ends_as_cancelled(worker: Steps, connection: Any) -> None:
    job_id = enqueue(connection)[0]
    worker.claim()
    connection.execute("update pgsched.running set stop_requested_at = clock_timestamp(), stop_reason = 'cancel'")
    worker.close()
    rescue(connection, worker)
    assert places(connection) == {job_id: "cancelled"}


def test_a_held_row_is_left_for_the_next_rescue_and_stops_no_other(worker: Steps, dsn: str, connection: Any) -> None:
    held, free = enqueue(connection, 2)
    worker.claim()
    worker.close()
    with psycopg.connect(dsn) as holder:
        holder.execute("select from pgsched.running where job_id = %s for update", (held,))
        assert rescue(connection, worker) == {"moved": 1, "left": 1}
    assert rescue(connection, worker) == {"moved": 1, "left": 0}
    assert places(connection) == {held: "ready", free: "ready"}


def test_a_row_that_raises_does_not_stop_the_rescue_of_the_others(worker: Steps, connection: Any) -> None:
    ids = enqueue(connection, 3)
    worker.claim()
    connection.execute(
        "create function pgsched.bad_row() returns trigger language plpgsql as $$ begin raise 'no'; end $$; create trigger bad "
        f"before insert on pgsched.ready for each row when (new.job_id = {ids[1]}) execute function pgsched.bad_row()"
    )
    worker.close()
    connection.execute("set client_min_messages = error")
    assert rescue(connection, worker) == {"moved": 2, "left": 1}
    assert places(connection) == {ids[0]: "ready", ids[1]: "running", ids[2]: "ready"}


def test_rescue_goes_by_the_rows_in_running_also_without_a_worker_row_and_in_chunks(worker: Steps, connection: Any) -> None:
    enqueue(connection, 5)
    worker.claim()
    worker.close()
    connection.execute("delete from pgsched.worker")
    moved = [rescue(connection, worker, n=2) for _ in range(3)]
    assert moved == [{"moved": 2, "left": 3}, {"moved": 2, "left": 1}, {"moved": 1, "left": 0}]


def test_a_claim_whose_answer_was_lost_goes_back_uncharged(worker: Steps, connection: Any) -> None:
    enqueue(connection, 2)
    lost, known = worker.claim(1)[0], worker.claim(1)[0]
    worker.work.close()
    second = worker.open_session()
    third = worker.claim(session=second)
    assert third == []
    call = "select pgsched.reconcile(%s, %s, %s) as n"
    assert second.execute(call, (worker.id, [1], [known["claim_id"]])).fetchone() == {"n": 1}
    assert places(connection) == {lost["job_id"]: "ready", known["job_id"]: "running"}
    assert connection.execute("select attempt, lost_attempts from pgsched.ready").fetchone() == (0, 0)
    assert second.execute(call, (worker.id, [1], [known["claim_id"]])).fetchone() == {"n": 0}


def test_reconcile_takes_nothing_that_another_session_has_claimed(worker: Steps, connection: Any) -> None:
    enqueue(connection, 1)
    worker.work.close()
    second, third = worker.open_session(), worker.open_session()
    claim = worker.claim(session=second)[0]
    third.execute("select pgsched.reconcile(%s, '{1}', '{}')", (worker.id,))
    assert worker.finish(claim, session=second) == ["accepted"]
    with pytest.raises(psycopg.Error, match="this session is 3"):
        third.execute("select pgsched.reconcile(%s, '{3}', '{}')", (worker.id,))


def test_what_never_began_comes_back_with_its_expiry(worker: Steps, connection: Any) -> None:
    enqueue(connection, 2, expires_at="2100-01-01T00:00:00Z")
    worker.claim(1)
    worker.work.close()
    second = worker.open_session()
    second.execute("select pgsched.reconcile(%s, '{1}', '{}')", (worker.id,))
    begun, held = worker.claim(session=second, free_slots=1)
    worker.close()
    rescue(connection, worker, [])  # nobody's fault, and yet one of them had begun
    rows = dict(connection.execute("select job_id, expires_at is null from pgsched.ready").fetchall())
    assert rows == {begun["job_id"]: True, held["job_id"]: False}
    assert connection.execute("select max(lost_attempts) from pgsched.ready").fetchone() == (0,)


def test_slots_of_dropped_jobs_go_to_the_next_so_that_what_begins_is_charged(dsn: str, connection: Any) -> None:
    steps = Steps(dsn, tasks=["t"])
    enqueue(connection, task="unknown")
    good = enqueue(connection, 2)
    claims = steps.claim(3, free_slots=1)
    assert [c["job_id"] for c in claims] == good
    rows = connection.execute("select started_at is not null from pgsched.running order by job_id").fetchall()
    assert rows == [(True,), (False,)]
    steps.close()


def test_a_worker_that_has_said_that_it_ended_works_no_more(worker: Steps, connection: Any) -> None:
    with pytest.raises(psycopg.Error, match="another session of worker"):
        worker.lease.execute("select pgsched.detach(%s)", (worker.id,))
    worker.work.close()
    for _ in range(1000):
        try:
            worker.lease.execute("select pgsched.detach(%s)", (worker.id,))
            break
        except psycopg.Error as error:
            assert error.sqlstate == "PGS07"
            time.sleep(0.01)
    for refused in (lambda: worker.open_session(), lambda: worker.claim(session=worker.lease)):
        with pytest.raises(psycopg.Error, match="that it ended"):
            refused()


@pytest.mark.parametrize("tasks", ["t", ["t", None], [1], {"t": 1}])
def test_a_worker_that_names_its_tasks_wrongly_is_refused(dsn: str, tasks: Any) -> None:
    with pytest.raises(psycopg.Error, match="tasks an array of names") as error:
        Steps(dsn, tasks=tasks)
    assert error.value.sqlstate == "PGS09"


def test_at_other_isolation_levels_a_worker_is_refused(worker: Steps) -> None:
    worker.work.execute("set default_transaction_isolation = 'repeatable read'")
    with pytest.raises(psycopg.Error, match="READ COMMITTED only"):
        worker.claim()


def test_reattaching_raises_the_generation_and_names_claims_that_are_unknown(worker: Steps, dsn: str, connection: Any) -> None:
    enqueue(connection)
    claim = worker.claim()[0]
    worker.lease.close()
    again = psycopg.connect(dsn, autocommit=True)
    unknown = again.execute("select pgsched.reattach(%s, %s, %s)", (worker.id, worker.token, [claim["claim_id"], 42])).fetchall()
    assert unknown == [(42,)]
    assert connection.execute("select generation from pgsched.worker").fetchone() == (1,)
    with pytest.raises(psycopg.Error, match="not its token"):
        connection.execute("select pgsched.reattach(%s, 'guess', '{}')", (worker.id,))
    again.close()


def test_a_copy_of_the_database_is_refused_until_it_is_adopted(dsn: str, server: Any, connection: Any) -> None:
    enqueue(connection)
    connection.close()
    copy = server.database(dsn.split("dbname=")[1])
    try:
        with pytest.raises(psycopg.Error, match="is a copy") as error:
            Steps(copy)
        assert error.value.sqlstate == "PGS04"
        with psycopg.connect(copy, autocommit=True) as adopting:
            before = adopting.execute("select epoch from pgsched.installation").fetchone()[0]  # type: ignore[index]
            assert adopting.execute("select pgsched.adopt()").fetchone() == (before + 1,)
        adopted = Steps(copy)
        assert adopted.claim()[0]["claim_id"] >> 44 == before + 1, "no claim number of the original is given again"
        adopted.close()
    finally:
        server.drop(copy)


def test_a_new_timeline_raises_the_epoch_and_lets_claims_wait(dsn: str, connection: Any) -> None:
    enqueue(connection)
    connection.execute("update pgsched.installation set timeline = timeline - 1")
    before = connection.execute("select epoch from pgsched.installation").fetchone()[0]
    steps = Steps(dsn)
    assert steps.epoch == before + 1
    rows = steps.work.execute('select * from pgsched.claim(%s, \'{"lanes": []}\')', (steps.id,)).fetchall()
    assert "not_before" in rows[0]["extra"]
    connection.execute("update pgsched.installation set not_before = clock_timestamp()")
    assert steps.claim()[0]["claim_id"] >> 44 == before + 1
    steps.close()


def test_another_protocol_number_is_refused_with_both_numbers(dsn: str) -> None:
    for theirs, do in ((0, "install the pgsched version"), (2, "pgsched migrate")):
        with pytest.raises(psycopg.Error, match=f"speaks protocol {theirs}, the schema \"pgsched\" speaks 1") as error:
            Steps(dsn, protocol=theirs)
        assert error.value.sqlstate == "PGS01" and do in (error.value.diag.message_hint or "")
