"""Primaries that are deposed, stopped or crash, and standbys that are missing: what runs, what stops, and what is never doubled.

Real servers that stream, real worker processes. What an *asynchronous* standby cannot promise is written down here too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.notes import overlap, runs
from harness.protocol import Blocked, Steps, enqueue, places
from harness.replicas import Pair, Replica, pair
from harness.running import supervised, wait_until
from harness.server import Server

from pgsched.leader import Leader
from pgsched.lease import now
from pgsched.migrate import upgrade

FULL = pytest.mark.skipif(not os.environ.get("PGSCHED_CAMPAIGN"), reason="a variation: PGSCHED_CAMPAIGN=1 runs it")
DBNAME = "work"
CLIENT_S, KILL_S = 1.5, 2.5
LEASE = ("--lease", "1.5", "--kill", "2.5")
PATIENT = ("--lease", "4.5", "--kill", "5")  # for handlers that must not be harmed, also on a busy machine
PATIENCE_S = 45.0

STOPPED = "the lease has expired"
NO_QUORUM = "could not commit it with its quorum"
FORGOTTEN = "the server no longer knows claim"
AGAIN = "attached again"

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


@pytest.fixture(scope="module")
def seed(server: Server) -> Iterator[Server]:
    """A server with pgsched in it, shut down: what every pair begins as."""
    with Server(server.binaries, settings={"autovacuum": "off"}) as made:
        with psycopg.connect(made.conninfo(), autocommit=True) as connection:
            connection.execute(f"create database {DBNAME}")
        upgrade(made.conninfo(DBNAME))
        made.terminate()
        yield made


@pytest.fixture
def synchronous(seed: Server) -> Iterator[Pair]:
    """A commit on the primary is acknowledged only when the standby has it."""
    with pair(seed, DBNAME, synchronous=True) as made:
        yield made


@pytest.fixture
def asynchronous(seed: Server) -> Iterator[Pair]:
    """A commit on the primary waits for nobody: a standby that is promoted may have missed it."""
    with pair(seed, DBNAME, synchronous=False) as made:
        yield made


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the handlers of `runs_for` note that they run."""
    file = tmp_path / "notes"
    monkeypatch.setenv("PGSCHED_TEST_LOG", str(file))
    return file


class Said:
    """What the processes of this test have written to their log so far."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = ""

    @property
    def text(self) -> str:
        self._text += self._capfd.readouterr().err
        return self._text

    def has(self, words: str) -> bool:
        return words in self.text

    def forget(self) -> None:
        self._capfd.readouterr()
        self._text = ""


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    return Said(capfd)


def until(condition: Callable[[], Any], what: str, said: Said | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}\n{said.text if said else ''}"
        time.sleep(0.02)


def jobs_for(dsn: str, *seconds: float, **options: Any) -> list[int]:
    """Enqueue jobs that note for so long that they run; their ids."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [enqueue(connection, task="runs_for", queue="tests", args={"seconds": s}, **options)[0] for s in seconds]


def has_run_twice(notes: Path, job_id: int) -> bool:
    """Whether a second claim of this job runs, and has for half a second: long enough to meet the first, if that still does."""
    claims = runs(notes)[job_id]
    return len(claims) == 2 and max(claims[max(claims)]) - min(claims[max(claims)]) > 0.5


def first_and_second(notes: Path, job_id: int) -> tuple[list[float], list[float]]:
    """When the two claims of a job ran, by the order of their fences."""
    claims = runs(notes)[job_id]
    assert len(claims) == 2, f"{len(claims)} claims ran"
    return claims[min(claims)], claims[max(claims)]


def has_session(kind: str) -> str:
    """The condition that somebody has such a session of pgsched's on the server."""
    return f"exists (select from pg_stat_activity where application_name like 'pgsched {kind} %' and state = 'idle')"


def sound(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("select * from pgsched.check_invariants()").fetchall() == []


@contextlib.contextmanager
def standing(dsn: str) -> Iterator[Leader]:
    """A leader (or standby) in a thread of this process."""
    leader = Leader(dsn, name="the old leader")
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(leader.run(stop)))
    thread.start()
    try:
        yield leader
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


@contextlib.contextmanager
def cancelling(server: Replica) -> Iterator[list[int]]:
    """Somebody cancels every wait for the standby, again and again: such a commit is answered with a warning. The backends hit."""
    hit: list[int] = []
    over = threading.Event()

    def cancel() -> None:
        # (A limit: else the cancel may be tried before the filter, on everybody.)
        waiting = "(select pid from pg_stat_activity where wait_event = 'SyncRep' limit 100) w"
        query = f"select pid from {waiting} where pg_cancel_backend(pid)".encode()
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            while not over.wait(0.02):
                hit.extend(row[0] for row in connection.execute(query))

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        yield hit
    finally:
        over.set()
        thread.join(30)


# ---- A synchronous standby.


@pytest.mark.parametrize("default", [pytest.param("on", marks=FULL), "local"])
def test_what_a_deposed_primary_runs_has_ended_before_the_new_one_gives_it_out(
    synchronous: Pair, notes: Path, said: Said, default: str
) -> None:
    """R1. The old primary still runs, answers reads, and its workers reach nobody else."""
    old, new = synchronous.primary, synchronous.standby
    with psycopg.connect(old.conninfo(), autocommit=True) as connection:
        connection.execute(f"alter database {DBNAME} set synchronous_commit = {default}")
    job = jobs_for(synchronous.dsn(old), 60)[0]
    with supervised(synchronous.both(), *LEASE, "--no-leader", quiet=False) as before:
        until(lambda: runs(notes)[job], "the job runs", said)
        pids = before.workers()
        promoted_at = now()
        new.promote()
        assert old.ask("select count(*) from pgsched.running", DBNAME) == 1, "it answers reads"
        said.forget()
        with supervised(synchronous.dsn(new), *LEASE):
            until(lambda: has_run_twice(notes, job), "the job runs on the new primary", said)
        first, second = first_and_second(notes, job)
        assert overlap(notes) < 0
        assert max(first) - promoted_at < KILL_S
        assert said.has(STOPPED) and not said.has(AGAIN), said.text
        assert before.workers() == pids, "its handler was stopped at `client`, so that the process need not end"
        print(
            f"(synchronous_commit = {default}) after the promotion: the old run ended at {max(first) - promoted_at:.2f} s, "
            f"the job ran again at {min(second) - promoted_at:.2f} s"
        )
    sound(synchronous.dsn(new))


def test_a_leader_on_a_deposed_primary_gets_no_write_acknowledged(synchronous: Pair) -> None:
    """R1. Nor does anybody else there; the next leader is the new primary's."""
    old, new = synchronous.primary, synchronous.standby
    with standing(synchronous.dsn(old)) as leader:
        until(lambda: leader.leads, "it leads")
        new.promote()
        writer = psycopg.connect(synchronous.dsn(old), autocommit=True)
        writing = Blocked(writer, "select pg_logical_emit_message(true, 'test', '')")
        try:
            until(lambda: not leader.leads, "it no longer believes that it leads")
            with standing(synchronous.dsn(new)) as other:
                until(lambda: other.leads, "the new primary has a leader")
                began = time.monotonic()
                while time.monotonic() - began < 2.5:
                    assert not leader.leads, "it believes again: a write was acknowledged"
                    time.sleep(0.05)
            assert old.ask("select count(*) from pgsched.leader_term", DBNAME) == 1, "it answers reads"
            waits = "select array_agg(left(application_name, 14)) from pg_stat_activity where wait_event = 'SyncRep'"
            assert sorted(old.ask(waits)) == ["", "pgsched leader"]
        finally:
            # (Nothing else ends its wait, nor therefore the thread's.)
            old.ask(f"select pg_cancel_backend({writer.info.backend_pid})")
            writing.result()
            writer.close()


def test_an_answer_whose_wait_for_the_standby_was_cancelled_is_no_answer(
    synchronous: Pair, notes: Path, said: Said
) -> None:
    """R36. The answers come, each with a warning, also to attaching again; the lease expires all the same."""
    primary, standby = synchronous.primary, synchronous.standby
    job = jobs_for(synchronous.dsn(primary), 60)[0]
    with supervised(synchronous.both(), *LEASE, "--no-leader", quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        pids = one.workers()
        said.forget()
        with cancelling(primary) as hit:
            missing_since = now()
            standby.terminate()
            until(lambda: said.has(STOPPED), "the lease expires", said)
            # (Claims are acknowledged here, with a warning: none may begin.)
            time.sleep(1.0)
            first = next(iter(runs(notes)[job].values()))
            assert len(runs(notes)[job]) == 1 and max(first) - missing_since < KILL_S
            assert hit and said.has(NO_QUORUM) and not said.has(AGAIN), said.text
        standby.start()
        until(lambda: said.has(AGAIN), "it goes on", said)
        until(lambda: has_run_twice(notes, job), "the job runs again", said)
        assert one.workers() == pids and overlap(notes) < 0
    attempt = "select state || ': ' || error from pgsched.attempt_log"
    assert primary.ask(attempt, DBNAME) == "given_back: its worker's lease expired"
    sound(synchronous.dsn(primary))


@pytest.mark.parametrize("end", ["it comes back", pytest.param("it is taken off the list", marks=FULL)])
def test_a_standby_that_is_missing_for_less_than_client_harms_no_handler(
    synchronous: Pair, notes: Path, said: Said, end: str
) -> None:
    """R8. Longer than a heartbeat may wait, so that the session is lost and another one waits; shorter than the lease."""
    primary, standby = synchronous.primary, synchronous.standby
    job = jobs_for(synchronous.dsn(primary), 6)[0]
    with supervised(synchronous.both(), *PATIENT, quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        standby.terminate()
        until(lambda: said.has("the lease session was lost"), "a heartbeat is not answered in time", said)
        if end == "it comes back":
            standby.start()
        else:
            primary.set("synchronous_standby_names", "")
        wait_until(synchronous.dsn(primary), f"exists (select from pgsched.finished where job_id = {job})")
        assert one.stop() == 0
    assert said.has(AGAIN) and not said.has(STOPPED), said.text
    assert primary.ask("select state || attempt from pgsched.jobs", DBNAME) == "succeeded1"
    assert len(runs(notes)[job]) == 1
    sound(synchronous.dsn(primary))


def test_a_standby_that_is_missing_for_longer_than_client_stops_every_handler_and_charges_nobody(
    synchronous: Pair, notes: Path, said: Said
) -> None:
    """R8. By design: nobody can tell it from having been deposed. It goes on by itself when the standby is there again."""
    primary, standby = synchronous.primary, synchronous.standby
    job = jobs_for(synchronous.dsn(primary), 60)[0]
    with supervised(synchronous.both(), *LEASE, quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        pids = one.workers()
        standby.terminate()
        until(lambda: said.has(STOPPED), "the lease expires", said)
        ran_until = max(next(iter(runs(notes)[job].values())))
        until(lambda: now() - ran_until > 1.5 * KILL_S, "time passes")
        assert one.workers() == pids, "nothing runs in it, so it may live on"
        assert len(runs(notes)[job]) == 1 and max(next(iter(runs(notes)[job].values()))) == ran_until
        standby.start()
        until(lambda: has_run_twice(notes, job), "the job runs again", said)
        assert one.workers() == pids and overlap(notes) < 0
    rows = "select string_agg(state || ': ' || error, ', ') from pgsched.attempt_log"
    assert primary.ask(rows, DBNAME) == "given_back: its worker's lease expired"
    assert primary.ask("select attempt || ' ' || lost_attempts from pgsched.running", DBNAME) == "1 0"
    sound(synchronous.dsn(primary))


@FULL
def test_a_supervisor_whose_certificate_waits_for_a_standby_can_be_stopped(
    synchronous: Pair, notes: Path, said: Said
) -> None:
    """No timeout of the server's ends that wait; the jobs wait for a leader instead."""
    job = jobs_for(synchronous.dsn(synchronous.primary), 60)[0]
    with supervised(synchronous.both(), *LEASE, "--no-leader", quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        synchronous.standby.terminate()
        os.kill(one.worker(), signal.SIGKILL)
        presenting = "exists (select from pg_stat_activity where application_name = 'pgsched certificate' and wait_event = 'SyncRep')"
        wait_until(synchronous.primary.conninfo(), presenting)
        one.stop()  # (fails when it does not end)


# ---- A crash.


@pytest.mark.parametrize("whose", ["database", "role"])
def test_an_acknowledged_claim_or_finish_survives_a_crash_whatever_the_default(seed: Server, whose: str) -> None:
    """R2. The server writes its log lazily: what is not asked for is lost, as the last row of `plain` is."""
    lazy = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    with Replica(seed, settings=lazy) as server:
        dsn = server.conninfo(DBNAME)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table plain (what text)")
            target = f"database {DBNAME}" if whose == "database" else "role postgres"
            connection.execute(f"alter {target} set synchronous_commit = off")
        with psycopg.connect(dsn, autocommit=True) as connection:
            jobs = enqueue(connection, 2)
        worker = Steps(dsn)
        assert [row["job_id"] for row in worker.claim(1)] == jobs[:1]
        crash_after("a claim", server, dsn)
        worker.close()
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert places(connection) == {jobs[0]: "running", jobs[1]: "ready"}
        worker = Steps(dsn)
        rows = worker.claim(10)
        assert [row["job_id"] for row in rows] == jobs[1:], "no job is claimed twice"
        assert worker.finish(*rows) == ["accepted"]
        crash_after("a finish", server, dsn)
        worker.close()
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert places(connection) == {jobs[0]: "running", jobs[1]: "succeeded"}
            assert connection.execute("select count(*) from plain").fetchone() == (0,), "the server was not lazy"
        sound(dsn)


def crash_after(what: str, server: Replica, dsn: str) -> None:
    """Commit something that nobody has made durable, and crash."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into plain values (%s)", (what,))
        server.crash()
    server.start()


def test_a_worker_that_has_just_attached_goes_on_after_a_crash(seed: Server, said: Said) -> None:
    """R2. Its row too is durable: a server that did not know it would refuse it for ever."""
    with Replica(seed, settings={"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}) as server:
        dsn = server.conninfo(DBNAME)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"alter database {DBNAME} set synchronous_commit = off")
        # (So long a lease that no heartbeat comes in between, which would make everything before it durable.)
        with supervised(dsn, "--lease", "30", "--kill", "40", "--no-leader", quiet=False):
            wait_until(dsn, f"{has_session('lease')} and exists (select from pgsched.worker)")
            server.crash()
            server.start()
            with psycopg.connect(dsn, autocommit=True) as connection:
                assert connection.execute("select count(*) from pgsched.worker").fetchone() == (1,)
                job = enqueue(connection, task="noop", queue="tests")[0]
            wait_until(dsn, f"exists (select from pgsched.finished where job_id = {job})", patience_s=PATIENCE_S)
        sound(dsn)


# ---- An asynchronous standby.


def test_after_an_asynchronous_fail_over_forgotten_claims_are_stopped_and_forgotten_finishes_run_again(
    asynchronous: Pair, notes: Path, said: Said
) -> None:
    """Nothing can prevent that an acknowledged finish is forgotten; but never do two claims run at once, nor share a fence."""
    old, new = asynchronous.primary, asynchronous.standby
    ends = jobs_for(asynchronous.dsn(old), 4)[0]
    with supervised(asynchronous.both(), "--lease", "3", "--kill", "3.5", "--concurrency", "4", quiet=False) as one:
        until(lambda: runs(notes)[ends], "the first job runs", said)
        pids = one.workers()
        later = jobs_for(asynchronous.dsn(old), 60, delay_s=4.0)[0]
        asynchronous.catch_up()
        new.terminate()  # from here on everything will have been forgotten: an end, and a claim
        wait_until(asynchronous.dsn(old), f"exists (select from pgsched.finished where job_id = {ends})")
        until(lambda: runs(notes)[later], "the second job runs", said)
        assert old.ask("select count(*) from pgsched.running", DBNAME) == 1
        old.crash()
        new.start()
        assert new.ask("select string_agg(state, ' ' order by id) from pgsched.jobs", DBNAME) == "running scheduled"
        promoted_at = now()
        new.promote()
        for job in (ends, later):
            until(lambda job=job: has_run_twice(notes, job), "the job runs again", said)  # type: ignore[misc]
        assert said.has(FORGOTTEN) and one.workers() == pids, said.text
        assert overlap(notes) < 0
        fences = sorted(fence for claims in runs(notes).values() for fence in claims)
        assert [fence >> 44 for fence in fences] == [1, 1, 2, 2] and len(set(fences)) == 4
        first, second = first_and_second(notes, later)
        took, lasted = min(second) - promoted_at, max(first) - promoted_at
        print(f"after the promotion: the forgotten run ended at {lasted:.2f} s, the job ran again at {took:.2f} s")
    sound(asynchronous.dsn(new))


def test_a_worker_that_an_asynchronous_fail_over_has_forgotten_is_followed_by_a_fresh_one(
    asynchronous: Pair, notes: Path, said: Said
) -> None:
    """The new primary has never heard of it, so it can never attach again: it stops what runs, and ends."""
    old, new = asynchronous.primary, asynchronous.standby
    job = jobs_for(asynchronous.dsn(old), 60)[0]
    asynchronous.catch_up()
    new.terminate()
    # (A leader that comes first to a server that knows no worker lets claims wait for 60 s.)
    with supervised(asynchronous.both(), *LEASE, "--no-leader", quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        pids = one.workers()
        old.crash()
        new.start()
        new.promote()
        until(lambda: has_run_twice(notes, job), "the job runs again", said)
        assert overlap(notes) < 0 and one.workers() != pids
    sound(asynchronous.dsn(new))


def test_an_old_primary_that_comes_back_unfenced_cannot_keep_a_worker_that_has_left_it(
    asynchronous: Pair, notes: Path, said: Said
) -> None:
    """It answers, and is the first of the DSN; its epoch is too old. So the lease expires, and the job runs on the new one."""
    old, new = asynchronous.primary, asynchronous.standby
    job = jobs_for(asynchronous.dsn(old), 60)[0]
    with supervised(asynchronous.both(), *LEASE, "--no-leader", quiet=False):
        until(lambda: runs(notes)[job], "the job runs", said)
        asynchronous.catch_up()
        old.terminate()
        new.promote()
        wait_until(asynchronous.dsn(new), f"{has_session('lease')} and {has_session('work')}")
        until(lambda: said.has(AGAIN), "it has moved", said)
        old.start()
        new.ask(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'pgsched lease%'"
        )
        with supervised(asynchronous.dsn(new), *LEASE):
            until(lambda: has_run_twice(notes, job), "the job runs on the new primary", said)
        assert overlap(notes) < 0
        assert said.has("it is not the primary any more") and said.has(STOPPED), said.text
    sound(asynchronous.dsn(new))


# ---- A switch-over as planned.


def test_a_planned_switch_over_harms_no_handler_and_restarts_nobody(synchronous: Pair, notes: Path, said: Said) -> None:
    old, new = synchronous.primary, synchronous.standby
    job = jobs_for(synchronous.dsn(old), 5)[0]
    with supervised(synchronous.both(), *PATIENT, quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        wait_until(synchronous.dsn(old), "exists (select from pgsched.leader)")
        pids = one.workers()
        old.terminate()
        new.promote()
        dsn, promoted_at = synchronous.dsn(new), now()
        with psycopg.connect(dsn, autocommit=True) as connection:
            after = enqueue(connection, task="runs_for", queue="tests", args={"seconds": 0.1})[0]
        until(lambda: runs(notes)[after], "the job of the new timeline runs", said)
        waited = min(next(iter(runs(notes)[after].values()))) - promoted_at
        for what in ("lease", "work", "listener"):
            wait_until(dsn, has_session(what))
        wait_until(dsn, f"exists (select from pgsched.leader) and {has_session('leader')}")
        wait_until(dsn, f"(select count(*) from pgsched.finished where job_id in ({job}, {after})) = 2")
        not_before = new.ask("select extract(epoch from not_before)::float8 from pgsched.installation", DBNAME)
        claimed = new.ask(
            f"select extract(epoch from started_at)::float8 from pgsched.finished where job_id = {after}", DBNAME
        )
        assert claimed >= not_before, "the new timeline's claims waited once"
        quick = jobs_for(dsn, 0.1)[0]
        until(lambda: runs(notes)[quick], "and never again", said)
        assert one.workers() == pids and one.stop() == 0
    assert said.has("a new timeline") and not said.has(STOPPED) and not said.has(FORGOTTEN), said.text
    assert new.ask("select string_agg(distinct state || attempt, ' ') from pgsched.jobs", DBNAME) == "succeeded1"
    assert [fence >> 44 for fence in (*runs(notes)[job], *runs(notes)[after])] == [1, 2]
    print(f"the first claim of the new timeline came {waited:.2f} s after the promotion")
    sound(dsn)


def test_claims_on_a_new_timeline_wait_as_long_as_the_workers_need_whoever_is_first_there(asynchronous: Pair) -> None:
    """A leader that comes first has no lease of its own to wait for."""
    worker = Steps(asynchronous.dsn(asynchronous.primary), rescue_after_s=5)
    asynchronous.catch_up()
    worker.close()
    new = asynchronous.standby
    asynchronous.primary.crash()
    new.promote()
    with psycopg.connect(asynchronous.dsn(new), autocommit=True) as connection:
        term = connection.execute("select pgsched.lead(%s)", ('{"name": "first", "host": "h", "pid": 1}',)).fetchone()
        assert term == (1,)
        query = "select extract(epoch from not_before - clock_timestamp())::float8 from pgsched.installation"
        wait = connection.execute(query).fetchone()
        assert wait is not None and wait[0] <= 5


# ---- A standby that is none but that.


def test_a_standby_in_recovery_refuses_workers_and_leaders(asynchronous: Pair) -> None:
    worker = Steps(asynchronous.dsn(asynchronous.primary))
    asynchronous.catch_up()
    standby = asynchronous.dsn(asynchronous.standby)
    with pytest.raises(psycopg.Error, match="standby in recovery") as attaching:
        Steps(standby)
    calls = [
        ("select pgsched.open_session(%s, %s, 9)", (worker.id, worker.token)),
        ("select pgsched.reattach(%s, %s, '{}')", (worker.id, worker.token)),
        ("select pgsched.lead(%s)", ('{"name": "n", "host": "h", "pid": 1}',)),
    ]
    states = [attaching.value.sqlstate]
    with psycopg.connect(standby, autocommit=True) as connection:
        for text, params in calls:
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(text.encode(), params)
            states.append(refused.value.sqlstate)
        held = connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
    assert states == ["PGS08"] * 4 and held == (0,)
    worker.close()


def test_a_worker_that_starts_without_a_primary_waits_for_one(asynchronous: Pair, notes: Path, said: Said) -> None:
    old, new = asynchronous.primary, asynchronous.standby
    job = jobs_for(asynchronous.dsn(old), 0.2)[0]
    asynchronous.catch_up()
    old.terminate()
    # (As above: no leader, which would come first to a server that knows no worker.)
    with supervised(asynchronous.both(), *LEASE, "--no-leader", quiet=False) as one:
        until(lambda: said.text.count("trying again") >= 3, "it tries again and again", said)
        assert one.process.poll() is None and said.has("attach: ") and not runs(notes)
        pids = one.workers()
        new.promote()
        wait_until(asynchronous.dsn(new), f"exists (select from pgsched.finished where job_id = {job})")
        assert one.workers() == pids and one.stop() == 0
    sound(asynchronous.dsn(new))


def test_a_worker_that_meets_a_standby_during_a_fail_over_goes_on_trying(
    asynchronous: Pair, notes: Path, said: Said
) -> None:
    """Without target_session_attrs, or behind a name that moves too early."""
    old, new = asynchronous.primary, asynchronous.standby
    job = jobs_for(asynchronous.dsn(old), 5)[0]
    with supervised(asynchronous.both(read_write=False), *PATIENT, quiet=False) as one:
        until(lambda: runs(notes)[job], "the job runs", said)
        pids = one.workers()
        asynchronous.catch_up()
        old.crash()
        until(lambda: said.has("standby in recovery"), "it meets the standby", said)
        time.sleep(0.5)
        new.promote()
        wait_until(asynchronous.dsn(new), f"exists (select from pgsched.finished where job_id = {job})")
        assert one.workers() == pids
    assert len(runs(notes)[job]) == 1 and not said.has("own code failed"), said.text
    sound(asynchronous.dsn(new))
