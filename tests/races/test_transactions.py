"""A claim's own transaction against everything else that may end the claim: each scenario is a script of steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.protocol import Blocked, Steps, enqueue, places, rescue

LEVELS = ["read committed", "repeatable read", "serializable"]


@pytest.fixture
def worker(dsn: str, connection: Any) -> Iterator[Steps]:
    connection.execute("create table effect (i int)")
    steps = Steps(dsn)
    yield steps
    steps.close()


class JobSession:
    """The connection of one transactional job."""

    def __init__(self, dsn: str, claim: dict[str, Any], level: str = "read committed") -> None:
        self.claim = claim
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(f"begin isolation level {level}")
        self.connection.execute("select pgsched.begin_transaction(%s, %s)", self._ids)

    @property
    def _ids(self) -> tuple[int, int]:
        return self.claim["job_id"], self.claim["claim_id"]

    def write(self) -> None:
        self.connection.execute("insert into effect values (1)")

    FINISH = "select pgsched.finish_transaction(%s, %s, '7')"

    def finish(self) -> None:
        self.connection.execute(self.FINISH, self._ids)

    def finish_blocked(self) -> Blocked:
        return Blocked(self.connection, self.FINISH, self._ids)

    def commit(self) -> None:
        self.connection.execute("commit")

    def rollback(self) -> None:
        self.connection.execute("rollback")


def begin(worker: Steps, *claims: dict[str, Any]) -> list[str]:
    pairs = [{"job_id": c["job_id"], "claim_id": c["claim_id"]} for c in claims]
    rows = worker.work.execute("select * from pgsched.begin(%s, %s)", (worker.id, json.dumps(pairs))).fetchall()
    verdicts = {row["claim_id"]: row["verdict"] for row in rows}
    return [verdicts[c["claim_id"]] for c in claims]


def begun(worker: Steps, dsn: str, connection: Any, level: str = "read committed", **options: Any) -> JobSession:
    """A job whose handler has begun and written."""
    enqueue(connection, **options)
    claim = worker.claim()[0]
    assert begin(worker, claim) == ["accepted"]
    session = JobSession(dsn, claim, level)
    session.write()
    return session


def effects(connection: Any) -> int:
    return connection.execute("select count(*) from effect").fetchone()[0]


def broken(worker: Steps, claim: dict[str, Any], last_session: int = 0) -> list[str]:
    return worker.finish(claim, outcome="broken", last_session=last_session, reason="its connection ended")


@pytest.mark.parametrize("level", LEVELS)
def test_writes_and_end_are_one_at_every_isolation_level(worker: Steps, dsn: str, connection: Any, level: str) -> None:
    session = begun(worker, dsn, connection, level)
    session.finish()
    assert effects(connection) == 0 and set(places(connection).values()) == {"running"}
    session.commit()
    assert effects(connection) == 1 and set(places(connection).values()) == {"succeeded"}
    assert connection.execute("select result from pgsched.finished").fetchone() == (7,)
    assert worker.finish(session.claim) == ["already"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_rollback_after_the_finish_undoes_both(worker: Steps, dsn: str, connection: Any, level: str) -> None:
    session = begun(worker, dsn, connection, level)
    session.finish()
    session.rollback()
    assert effects(connection) == 0 and set(places(connection).values()) == {"running"}
    assert worker.finish(session.claim, outcome="retry") == ["accepted"]


def test_the_lost_commit_had_been_done_and_the_report_is_told_already(worker: Steps, dsn: str, connection: Any) -> None:
    # 1. COMMIT is sent; 2. its answer is lost; 3. the worker reports the claim as broken.
    session = begun(worker, dsn, connection)
    session.finish()
    session.commit()
    assert broken(worker, session.claim, last_session=1) == ["already"]
    assert effects(connection) == 1 and set(places(connection).values()) == {"succeeded"}


def test_the_lost_commit_had_not_been_done_and_the_job_runs_again(worker: Steps, dsn: str, connection: Any) -> None:
    # 1. The connection ends before COMMIT arrives; 2. the report finds the claim as it was.
    session = begun(worker, dsn, connection)
    session.finish()
    session.connection.close()
    while (verdict := broken(worker, session.claim)) == ["busy"]:
        time.sleep(0.005)
    assert verdict == ["accepted"]
    assert effects(connection) == 0 and set(places(connection).values()) == {"ready"}
    again = worker.claim()[0]
    assert (again["attempt"], again["claim_id"] > session.claim["claim_id"]) == (1, True), "no attempt is charged"
    assert broken(worker, session.claim) == ["already"], "the report itself may be sent again"


def test_a_report_while_the_transaction_is_open_is_busy_and_then_knows(worker: Steps, dsn: str, connection: Any) -> None:
    # 1. finish_transaction has run, its COMMIT is still under way; 2. the report must neither wait nor guess.
    session = begun(worker, dsn, connection)
    session.finish()
    assert broken(worker, session.claim) == ["busy"]
    session.commit()
    assert broken(worker, session.claim) == ["already"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_finish_that_arrives_after_the_report_finds_nothing_and_raises(
    worker: Steps, dsn: str, connection: Any, level: str
) -> None:
    # 1. The worker gives its connection up and reports; 2. what was in the server's buffer is executed now.
    session = begun(worker, dsn, connection, level)
    assert broken(worker, session.claim) == ["accepted"]
    with pytest.raises(psycopg.Error) as error:
        session.finish()
    assert error.value.sqlstate in ("PGS13", "40001")
    session.rollback()
    assert effects(connection) == 0 and set(places(connection).values()) == {"ready"}


def test_a_broken_connection_is_charged_only_where_the_reporting_session_is_older(worker: Steps, dsn: str, connection: Any) -> None:
    # A query that kills its backend each time must not loop for ever; a server's restart is nobody's fault.
    session = begun(worker, dsn, connection)
    newer = worker.open_session()
    assert worker.finish(session.claim, session=newer, outcome="broken", last_session=1, reason="x") == ["accepted"]
    assert connection.execute("select attempt, lost_attempts from pgsched.ready").fetchone() == (0, 0)
    for lost in range(3):
        claim = worker.claim()[0]
        assert begin(worker, claim) == ["accepted"]
        assert broken(worker, claim, last_session=2) == ["accepted"]
        left = connection.execute("select attempt, lost_attempts from pgsched.ready").fetchone()
        assert left == ((0, lost + 1) if lost < 2 else None)
    assert connection.execute("select state, reason, attempt from pgsched.finished").fetchone() == ("failed", "its connection ended", 1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_cancel_that_commits_first_wins_and_nothing_is_kept(worker: Steps, dsn: str, connection: Any, level: str) -> None:
    session = begun(worker, dsn, connection, level)
    connection.execute("select pgsched.cancel(%s, 'enough')", (session.claim["job_id"],))
    with pytest.raises(psycopg.Error) as error:
        session.finish()
    assert error.value.sqlstate == ("PGS14" if level == "read committed" else "40001")
    session.rollback()
    assert worker.finish(session.claim, outcome="retry") == ["cancelled"]
    assert effects(connection) == 0 and set(places(connection).values()) == {"cancelled"}


def test_a_finish_waits_for_an_open_cancel_and_does_as_it_ends(worker: Steps, dsn: str, connection: Any) -> None:
    for commits in (True, False):
        session = begun(worker, dsn, connection)
        with psycopg.connect(dsn) as canceller:
            canceller.execute("select pgsched.cancel(%s)", (session.claim["job_id"],))
            waiting = session.finish_blocked()
            waiting.until_blocked(canceller)
            canceller.commit() if commits else canceller.rollback()
        if commits:
            with pytest.raises(psycopg.Error, match="was cancelled"):
                waiting.result()
            session.rollback()
            assert worker.finish(session.claim, outcome="cancelled") == ["cancelled"]
        else:
            waiting.result()
            session.commit()
    assert effects(connection) == 1 and sorted(places(connection).values()) == ["cancelled", "succeeded"]


def test_a_cancel_waits_for_an_open_finish_and_finds_the_end(worker: Steps, dsn: str, connection: Any) -> None:
    session = begun(worker, dsn, connection)
    session.finish()
    with psycopg.connect(dsn, autocommit=True) as canceller:
        waiting = Blocked(canceller, "select * from pgsched.cancel(%s)", (session.claim["job_id"],))
        waiting.until_blocked(session.connection)
        session.commit()
        assert waiting.result() == [], "it has ended: nothing is changed"
    assert set(places(connection).values()) == {"succeeded"}


def test_a_cancel_waits_for_a_finish_that_is_rolled_back_and_stops_the_job(worker: Steps, dsn: str, connection: Any) -> None:
    session = begun(worker, dsn, connection)
    session.finish()
    with psycopg.connect(dsn, autocommit=True) as canceller:
        waiting = Blocked(canceller, "select * from pgsched.cancel(%s)", (session.claim["job_id"],))
        waiting.until_blocked(session.connection)
        session.rollback()
        assert waiting.result() == [(session.claim["job_id"], "running")]
    assert worker.finish(session.claim, outcome="retry") == ["cancelled"]


def test_a_job_that_was_cancelled_before_it_began_must_not_begin(worker: Steps, dsn: str, connection: Any) -> None:
    first, _, third = enqueue(connection, 3)
    claims = worker.claim()
    connection.execute("select pgsched.cancel(%s)", (first,))
    worker.finish(claims[1], outcome="give_back")
    with psycopg.connect(dsn) as holder:
        holder.execute("select from pgsched.running where job_id = %s for update", (third,))
        assert begin(worker, *claims) == ["cancelled", "stale", "busy"]
    assert begin(worker, claims[2]) == ["accepted"]
    flags = connection.execute("select job_id, transactional from pgsched.running order by 1").fetchall()
    assert flags == [(first, False), (third, True)]
    assert begin(worker, claims[2]) == ["accepted"], "an answer may be lost: asking again is safe"


def test_a_timed_out_transaction_that_ends_well_after_all_is_believed(worker: Steps, dsn: str, connection: Any) -> None:
    # R47: a timeout leaves the outcome as reported, with attempts left too; only a cancel turns it.
    for outcome, place in ((None, "succeeded"), ("retry", "waiting")):
        session = begun(worker, dsn, connection, max_attempts=3)
        pair = [{"job_id": session.claim["job_id"], "claim_id": session.claim["claim_id"]}]
        rows = worker.work.execute("select * from pgsched.stops(%s, %s)", (worker.id, json.dumps(pair))).fetchall()
        assert [(row["claim_id"], row["reason"]) for row in rows] == [(session.claim["claim_id"], "timeout")]
        assert connection.execute("select state, reason from pgsched.jobs order by id desc limit 1").fetchone() == ("cancelling", "timeout")
        if outcome is None:
            session.finish()
            session.commit()
        else:
            session.rollback()
            assert worker.finish(session.claim, outcome=outcome, after_s=60) == ["accepted"]
        assert places(connection)[session.claim["job_id"]] == place


def test_a_rescue_steps_over_an_open_finish_and_takes_what_is_left(worker: Steps, dsn: str, connection: Any) -> None:
    session = begun(worker, dsn, connection)
    session.finish()
    worker.close()
    assert rescue(connection, worker) == {"moved": 0, "left": 1}
    session.commit()
    assert rescue(connection, worker) == {"moved": 0, "left": 0}
    assert effects(connection) == 1 and set(places(connection).values()) == {"succeeded"}


def test_after_a_rescue_the_old_transaction_cannot_finish(worker: Steps, dsn: str, connection: Any) -> None:
    session = begun(worker, dsn, connection)
    worker.close()
    rescue(connection, worker)
    other = Steps(dsn)
    try:
        claim = other.claim()[0]
        assert begin(other, claim) == ["accepted"]
        with pytest.raises(psycopg.Error, match="no longer"):
            session.finish()
        session.rollback()
        second = JobSession(dsn, claim)
        second.write()
        second.finish()
        second.commit()
    finally:
        other.close()
    assert effects(connection) == 1 and set(places(connection).values()) == {"succeeded"}


def test_a_machine_that_loses_its_power_before_the_commit_holds_the_row_no_longer_than_a_rescue_waits(
    dsn: str, connection: Any
) -> None:
    # H13: nothing is ever said again on that connection; keepalives alone would take two hours.
    connection.execute("create table effect (i int)")
    worker = Steps(dsn, rescue_after_s=1)
    session = begun(worker, dsn, connection)
    session.connection.execute("set local idle_in_transaction_session_timeout = 0")
    session.finish()
    assert session.connection.execute("show idle_in_transaction_session_timeout").fetchone() == ("1s",)
    until = time.monotonic() + 30
    while broken(worker, session.claim) == ["busy"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    worker.close()
    assert effects(connection) == 0 and set(places(connection).values()) == {"ready"}


def test_a_handler_that_has_ended_its_transaction_cannot_finish(worker: Steps, dsn: str, connection: Any) -> None:
    for how in ("rollback", "commit", "rollback and chain"):
        session = begun(worker, dsn, connection)
        session.connection.execute(how)
        with pytest.raises(psycopg.Error) as error:
            session.finish()
        assert error.value.sqlstate == "PGS12"
        session.rollback()
        worker.finish(session.claim, outcome="failed")


def test_a_savepoint_that_is_rolled_back_does_not_hide_that_it_is_the_same_transaction(worker: Steps, dsn: str, connection: Any) -> None:
    session = begun(worker, dsn, connection)
    session.connection.execute("savepoint a")
    session.write()
    session.connection.execute("rollback to a")
    session.finish()
    session.commit()
    assert effects(connection) == 1 and set(places(connection).values()) == {"succeeded"}


def test_a_success_that_was_not_announced_does_not_count(worker: Steps, dsn: str, connection: Any) -> None:
    # Without begin() a success may come from the work session: then two could be accepted.
    enqueue(connection)
    claim = worker.claim()[0]
    session = JobSession(dsn, claim)
    with pytest.raises(psycopg.Error, match="no longer"):
        session.finish()
    session.rollback()
    assert worker.finish(claim) == ["accepted"]


def test_conflicts_are_repeated_uncharged_up_to_their_limit_for_each_attempt(worker: Steps, connection: Any) -> None:
    connection.execute("update pgsched.setting set value = '2' where name = 'max_conflicts'")
    enqueue(connection, max_attempts=2)
    seen = []
    while not (ends := connection.execute("select state, attempt from pgsched.finished").fetchall()):
        connection.execute("update pgsched.waiting set run_at = clock_timestamp()")
        connection.execute("select pgsched.stage()")
        for claim in worker.claim():
            seen.append(claim["attempt"])
            assert worker.finish(claim, outcome="conflict", error="could not serialize", after_s=0) == ["accepted"]
    assert seen == [1, 1, 1, 2, 2, 2] and ends == [("failed", 2)]
    states = [state for (state,) in connection.execute("select state from pgsched.attempt_log order by claim_id")]
    assert states == ["conflict", "conflict", "retried", "conflict", "conflict", "failed"]


def test_a_job_that_takes_the_whole_server_down_each_time_is_charged_after_max_conflicts(worker: Steps, connection: Any) -> None:
    # Each report comes from a session newer than the attempt: by that alone it would be nobody's fault, for ever.
    connection.execute("update pgsched.setting set value = '3' where name = 'max_conflicts'")
    enqueue(connection)
    charged = []
    while (claims := worker.claim()) and len(charged) < 8:
        assert begin(worker, *claims) == ["accepted"]
        last = len(worker.sessions)
        session = worker.open_session()
        assert worker.finish(claims[0], session=session, outcome="broken", last_session=last, reason="the server crashed") == ["accepted"]
        left = connection.execute("select lost_attempts from pgsched.ready").fetchone()
        charged.append(left and left[0])
    assert charged == [0, 0, 0, 1, 2, None]
    assert connection.execute("select state, reason from pgsched.finished").fetchone() == ("failed", "the server crashed")


@pytest.mark.parametrize("value", ['"x"', '"3"', "null", "{}", "[3]", "true", "3.5", "-1", "99999999999"])
def test_a_setting_that_is_no_count_is_refused(connection: Any, value: str) -> None:
    for name in ("max_conflicts", "max_lost_attempts"):
        with pytest.raises(psycopg.errors.CheckViolation, match="setting_value_is_a_count"):
            connection.execute("update pgsched.setting set value = %s where name = %s", (value, name))
