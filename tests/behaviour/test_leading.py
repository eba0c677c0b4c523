"""Leaders as processes and tasks: how one gives way to the next, what the leader does, and what a lost lease means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.protocol import Steps, enqueue
from harness.running import child, ended, leading, make_trace, supervised, wait_until, working

from pgsched.lease import LeaseTimes
from pgsched.worker import ExitCode

SHORT = LeaseTimes(timedelta(seconds=1), timedelta(seconds=2))

pytestmark = pytest.mark.one_server


def leads(name: str) -> str:
    return f"exists (select from pgsched.leader where name = '{name}')"


def test_the_next_leads_when_the_leader_stops_resigns_or_loses_its_session(dsn: str, connection: Any) -> None:
    with leading(dsn, "a") as a:
        wait_until(dsn, leads("a"))
        with leading(dsn, "b") as b:
            wait_until(dsn, "exists (select from pg_stat_activity where application_name = 'pgsched leader b' and state = 'idle' and query like '%lead(%')")
            connection.execute("select pgsched.ask_leader_to_resign()")
            wait_until(dsn, leads("b"))
            connection.execute("select pg_terminate_backend(backend_pid) from pgsched.leader")
            wait_until(dsn, "(select count(*) from pgsched.leader_term) >= 3 and exists (select from pgsched.leader)")
            assert (a.term is None) or (b.term is None)
        wait_until(dsn, leads("a"))
    reasons = {row[0] for row in connection.execute("select end_reason from pgsched.leader_term").fetchall()}
    assert reasons >= {"it was asked to resign", "its session ended", "it was stopped"}
    assert connection.execute("select count(*) from pgsched.leader").fetchone() == (0,)


def test_a_leader_stages_without_any_worker(dsn: str, connection: Any) -> None:
    job_id = enqueue(connection, delay_s=0.2)[0]
    with leading(dsn, "only"):
        wait_until(dsn, f"exists (select from pgsched.ready where job_id = {job_id})")


def test_a_silent_workers_jobs_run_elsewhere_after_its_rescue_time(dsn: str, connection: Any) -> None:
    job_id = enqueue(connection, task="noop", queue="tests")[0]
    lost = Steps(dsn, rescue_after_s=1)
    lost.claim(queue="tests")
    lost.close()
    with working(apps.app, dsn) as worker:
        worker.wait_until(ended(job_id))
    assert connection.execute("select attempt from pgsched.finished").fetchone() == (1,)
    row = connection.execute("select state, rescue_reason like 'its lock was free for%%' from pgsched.workers where id = %s", (lost.id,))
    assert row.fetchone() == ("rescued", True)


def test_a_worker_killed_with_its_parent_is_rescued_by_another_workers_leader(dsn: str, connection: Any) -> None:
    make_trace(dsn)
    job_id = enqueue(connection, task="traced", queue="tests", args={"i": 1}, delay_s=0)[0]
    slow = enqueue(connection, task="sleeps", queue="tests", args={"seconds": 0.5})[0]
    with supervised(dsn, "--lease", "1", "--kill", "1.5") as victim:
        wait_until(dsn, "exists (select from trace where what = 'began')")
        victim.process.kill()  # its worker dies with it, and nobody certifies that
        with supervised(dsn, "--lease", "1", "--kill", "1.5") as other:
            wait_until(dsn, ended(job_id, slow))
            assert other.stop() == ExitCode.OK
    rows = connection.execute("select count(*) from pgsched.attempt_log where state = 'lost'").fetchone()
    assert rows[0] >= 1


def test_a_frozen_workers_jobs_run_elsewhere_and_its_own_end_is_not_accepted(dsn: str, connection: Any) -> None:
    make_trace(dsn)
    job_id = enqueue(connection, task="sleeps", queue="tests", args={"seconds": 1.0})[0]
    with child(dsn, "--lease", "1", "--kill", "1.5") as frozen:
        wait_until(dsn, "exists (select from trace where what = 'began')")
        assert frozen.process is not None
        frozen.send(signal.SIGSTOP)
        try:
            with supervised(dsn, "--lease", "1", "--kill", "1.5") as other:
                wait_until(dsn, ended(job_id))
                assert other.stop() == ExitCode.OK
        finally:
            frozen.send(signal.SIGCONT)
        assert frozen.process.wait(20) in (ExitCode.RESCUED, ExitCode.LEASE_LOST)
    assert connection.execute("select state, attempt from pgsched.jobs").fetchall() == [("succeeded", 1)]
    assert connection.execute("select state from pgsched.attempt_log").fetchall() == [("lost",)]


def test_an_outage_longer_than_the_lease_stops_handlers_and_charges_nobody(dsn: str, connection: Any, server: Any) -> None:
    with working(apps.app, dsn, lease=SHORT) as worker:
        job = apps.sleeps_a_little.enqueue(60)
        worker.wait_until(f"exists (select from pgsched.running where job_id = {job.id})")
        assert worker.worker is not None
        ledger = worker.worker.ledger
        for _ in range(1000):  # (the claim's answer may still be on its way)
            if ledger.active:
                break
            threading.Event().wait(0.01)
        apps.app.close()
        connection.close()
        server.crash()
        for _ in range(1000):
            if not ledger.active:
                break
            threading.Event().wait(0.01)
        assert ledger.active == 0 and not ledger.accepting, "no answered heartbeat for 1 s: what ran was stopped"
        server.restart()
        with psycopg.connect(dsn, autocommit=True) as again:
            wait_until(dsn, f"exists (select from pgsched.attempt_log where job_id = {job.id})")
            row = again.execute("select state, error from pgsched.attempt_log").fetchall()
            assert row == [("given_back", "its worker's lease expired")]
            wait_until(dsn, f"exists (select from pgsched.running where job_id = {job.id} and attempt = 1 and lost_attempts = 0)")
            again.execute("update pgsched.running set stop_requested_at = clock_timestamp(), stop_reason = 'cancel'")
            worker.hurry()


def test_a_handler_that_does_not_end_when_the_lease_is_dead_costs_the_process_its_life(dsn: str, connection: Any, server: Any) -> None:
    make_trace(dsn)
    enqueue(connection, task="stuck_in_thread", queue="tests", args={"seconds": 60})
    with child(dsn, "--lease", "1", "--kill", "2") as worker:
        wait_until(dsn, "exists (select from trace where what = 'began')")
        connection.close()
        server.crash()
        try:
            assert worker.process is not None
            assert worker.process.wait(30) == ExitCode.LEASE_LOST
        finally:
            server.restart()


def test_the_scheduler_command_stands_for_leader_and_resigns_on_sigterm(dsn: str, connection: Any) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": str(root)}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "pgsched", *words]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    assert command("leader").stdout == "nobody leads\n"
    assert command("leader", "resign").returncode == 1
    line = [sys.executable, "-m", "pgsched", "scheduler", "--name", "the scheduler", "--log-level", "error"]
    process = subprocess.Popen(line, env=environment)
    try:
        wait_until(dsn, leads("the scheduler"))
        assert "the scheduler" in command("leader").stdout
        assert command("leader", "resign").stdout == "the leader of term 1 was asked to resign\n"
        wait_until(dsn, "exists (select from pgsched.leader where term = 2)")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert connection.execute("select end_reason from pgsched.leader_term where term = 2").fetchone() == ("it was stopped",)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    yield
    apps.app.close()
