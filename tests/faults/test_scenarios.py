"""What a bad day costs: sessions ended, Postgres away, no connections left, workers killed. Nothing is lost, and nobody helps.

Each scenario measures how fast jobs that do nothing go through before it, straight after it, and once the workers have their
sessions again, and prints the ratios; only that they go through at all is asserted. Short form every day; PGSCHED_CAMPAIGN=1 runs the full times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.checker import executions, violations
from harness.protocol import enqueue
from harness.running import ENDED
from harness.server import Server
from harness.sites import Site, until

from pgsched.exit_code import ExitCode
from pgsched.migrate import upgrade

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
NOOPS = 40_000 if FULL else 8_000
OURS = "application_name like 'pgsched %%'"

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


class Day:
    """A site on a server, jobs that note what they do, and how fast jobs go through."""

    def __init__(self, dsn: str, folder: Path, site: Site) -> None:
        self.dsn = dsn
        self.folder = folder
        self.site = site
        self.promised: list[int] = []
        """The noted jobs whose enqueuing was acknowledged."""

    def query(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """The rows, on a session of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(query, params).fetchall()

    def holds(self, condition: str) -> bool:
        """Whether an SQL condition is true; one that cannot be asked is not."""
        with contextlib.suppress(psycopg.OperationalError):
            return bool(self.query(f"select {condition}")[0][0])
        return False

    def until(self, condition: str) -> None:
        """Wait until an SQL condition is true."""
        until(lambda: self.holds(condition), condition, [self.site], 300.0 if FULL else 60.0)

    def enqueue(self, n: int, connection: psycopg.Connection[Any] | None = None, longest_s: float = 0.06) -> None:
        """n jobs that note what they do, for up to `longest_s` seconds each."""
        with contextlib.ExitStack() as stack:
            session = connection or stack.enter_context(psycopg.connect(self.dsn, autocommit=True))
            seconds = round(random.uniform(0, longest_s), 3)
            self.promised += enqueue(session, n, task="noted", queue="faulty", args={"seconds": seconds})

    def sessions(self) -> int:
        """How many sessions the workers have."""
        return int(self.query(f"select count(*) from pg_stat_activity where {OURS} and datname = current_database()")[0][0])

    def rate(self) -> float:
        """How many jobs that do nothing go through in a second, from the first one's enqueuing to the last one's end."""
        began = time.monotonic()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for _ in range(NOOPS // 500):
                enqueue(connection, 500, task="noop", queue="faulty")
        self.until(ENDED)
        return NOOPS / (time.monotonic() - began)


@contextlib.contextmanager
def day(name: str, dsn: str, folder: Path, *options: str) -> Iterator[Day]:
    """Measure, let the scenario happen, and measure again: then nothing may be lost, and the site must still be the same."""
    site = Site("site", dsn, folder, *options)
    made = Day(dsn, folder, site)
    with site:
        made.until("exists (select from pgsched.workers where state = 'alive')")
        made.rate()  # (so that nothing is done for the first time)
        before, sessions = made.rate(), made.sessions()
        yield made
        healed_at = time.monotonic()
        made.until(ENDED)
        took = time.monotonic() - healed_at
        at_once = made.rate()
        until(lambda: made.sessions() >= sessions, "the workers have their sessions again", [site], 60.0)
        back, after = time.monotonic() - healed_at, made.rate()
        assert site.alive, f"the supervisor has ended:\n{site.log[-3000:]}"
        assert site.stop() == ExitCode.OK, site.log[-3000:]
    print(
        f"{name}: {len(made.promised)} jobs went through it, the last {took:.1f} s after it; "
        f"{before:.0f} jobs/s before it, ratio {at_once / before:.2f} straight after it, {after / before:.2f} when all sessions were "
        f"back (at most {back:.1f} s after it)"
    )
    assert before > 0 and after > 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert violations(connection, folder, made.promised) == []
        states = connection.execute("select distinct state from pgsched.jobs").fetchall()
    assert states == [("succeeded",)]
    assert made.promised


def keep(seconds: float, every_s: float, what: Callable[[], object]) -> int:
    """Do it again and again for so long; how often."""
    deadline, times = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        what()
        times += 1
        time.sleep(every_s)
    return times


@pytest.mark.campaign
def test_sessions_that_are_ended_ten_times_a_second(dsn: str, connection: Any, tmp_path: Path) -> None:
    ended = 0

    def end_some(day: Day) -> None:
        nonlocal ended
        day.enqueue(20, connection)
        query = f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS} and datname = current_database() and random() < 0.3"
        ended += len(connection.execute(query, ()).fetchall())

    with day("sessions ended ten times a second", dsn, tmp_path, "--processes", "2") as it:
        keep(60.0 if FULL else 5.0, 0.1, lambda: end_some(it))
    print(f"{ended} sessions were ended")
    assert ended > 20


@pytest.mark.campaign
def test_postgres_is_stopped_for_a_while(dsn: str, server: Server, tmp_path: Path) -> None:
    with day("Postgres stopped", dsn, tmp_path, "--processes", "2") as it:
        for _ in range(5):
            it.enqueue(200)
        server.terminate()
        time.sleep(30.0 if FULL else 3.0)
        server.start()
        it.enqueue(200)
    assert set(executions(tmp_path)) == set(it.promised)


@pytest.fixture
def small(server: Server) -> Iterator[Server]:
    """A server that takes few connections."""
    with Server(server.binaries, settings={"max_connections": "320" if FULL else "40"}) as running:
        yield running


class Crowd:
    """Idle connections that take every place there is, also those that become free."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._held: list[psycopg.Connection[Any]] = []

    def fill(self) -> None:
        """Take what is free."""
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                self._held.append(psycopg.connect(self._dsn, autocommit=True, application_name="crowd"))

    def leave(self) -> int:
        """Give all back; how many they were."""
        for connection in self._held:
            connection.close()
        count = len(self._held)
        self._held.clear()
        return count


@pytest.mark.campaign
def test_idle_connections_use_up_all_there_are(small: Server, tmp_path: Path) -> None:
    dsn = small.database()
    upgrade(dsn)
    seconds = 60.0 if FULL else 4.0
    with psycopg.connect(dsn, autocommit=True) as inside:
        crowd = Crowd(dsn)
        with day("no connections left", dsn, tmp_path, "--processes", "2") as it:

            def take_all() -> None:
                # (The crowd is there before them when their places become free.)
                crowd.fill()
                inside.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS} and random() < 0.2", ())
                crowd.fill()
                it.enqueue(5, inside)

            keep(seconds, 0.1, take_all)
            held = crowd.leave()
            assert held > 30
        assert "too many clients already" in it.site.log or "connection slots" in it.site.log

        # A worker that starts now waits, and says so.
        crowd.fill()
        with Site("late", dsn, tmp_path) as late:
            until(lambda: "attach: " in late.log and "trying again" in late.log, "it says that it waits", [late])
            it.enqueue(20, inside)
            time.sleep(seconds / 2)
            assert late.alive and len(late.workers()) == 1
            crowd.leave()
            it.until(ENDED)
            assert late.stop() == ExitCode.OK
        assert violations(inside, tmp_path, it.promised) == []
        assert inside.execute("select * from pgsched.check_invariants()").fetchall() == []
    print(f"{held} idle connections held all places")


@pytest.mark.campaign
def test_one_of_two_workers_is_killed_again_and_again(dsn: str, connection: Any, tmp_path: Path) -> None:
    kills, every_s = (24, 5.0) if FULL else (3, 1.3)
    # (A job whose worker was killed runs alone the next time; here that may happen to one and the same three times.)
    connection.execute("update pgsched.setting set value = '1000' where name = 'max_lost_attempts'")
    with day("one of two workers killed", dsn, tmp_path, "--processes", "2") as it:
        for _ in range(kills):
            keep(every_s, 0.1, lambda: it.enqueue(20, connection, 0.2))
            os.kill(random.choice(it.site.workers()), signal.SIGKILL)
    runs = executions(tmp_path)
    print(f"{kills} kills; {sum(map(len, runs.values())) - len(runs)} executions of {len(runs)} jobs were repeated")
    deaths = it.site.log.count("has ended with -9")
    assert deaths == kills
