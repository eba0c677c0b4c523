"""Many schedules that tick each second, while leaders are killed, hung, cut off and ended at random: each tick exactly once.

Short form 300 schedules and 20 s; PGSCHED_CAMPAIGN=1 runs 10,000 for ten minutes, or as PGSCHED_SCHEDULES and PGSCHED_SECONDS say.
Skipped, with the reason, where no network namespaces can be made.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.network import Link, NoLinksError
from harness.server import Server
from psycopg.conninfo import make_conninfo

from pgsched.migrate import upgrade

CAMPAIGN = bool(os.environ.get("PGSCHED_CAMPAIGN"))
SCHEDULES = int(os.environ.get("PGSCHED_SCHEDULES") or (10_000 if CAMPAIGN else 300))
SECONDS = float(os.environ.get("PGSCHED_SECONDS") or (600 if CAMPAIGN else 20))
SEED = int(os.environ.get("PGSCHED_SEED") or random.SystemRandom().randrange(2**31))
NODES = 3

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


class Standing:
    """A node: `pgsched scheduler` behind a link, started again whenever it was killed."""

    def __init__(self, number: int, link: Link, dsn: str, log: Any) -> None:
        self.name, self.link, self._dsn, self._log = f"node-{number}", link, dsn, log
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pgsched", "scheduler", "--name", self.name, "--dsn", self._dsn, "--log-level", "warning"]
        root = Path(__file__).parents[2]
        return self.link.run(command, env=os.environ | {"PYTHONPATH": str(root)}, stderr=self._log, cwd=str(root))

    def kill(self) -> None:
        """End the process at once, and start another."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()


@contextlib.contextmanager
def nodes(server: Server, folder: Path) -> Iterator[tuple[list[Standing], psycopg.Connection[Any]]]:
    """Some nodes on a server of their own, and a session of that server."""
    with contextlib.ExitStack() as stack:
        try:
            links = [stack.enter_context(Link()) for _ in range(NODES)]
        except NoLinksError as error:
            print(f"skipped: {error}")
            pytest.skip(str(error))
        linked = stack.enter_context(Server(server.binaries, links=tuple(link.here for link in links)))
        upgrade(linked.conninfo())
        watch = stack.enter_context(psycopg.connect(linked.conninfo(), autocommit=True))
        log = stack.enter_context((folder / "nodes.log").open("ab"))
        made = [Standing(n, link, make_conninfo(linked.conninfo(), host=link.here), log) for n, link in enumerate(links, 1)]
        try:
            yield made, watch
        finally:
            for one in made:
                one.process.kill()
                one.process.wait()


def befall(made: list[Standing], watch: psycopg.Connection[Any], chance: random.Random) -> str:
    """Something happens to whoever leads (or, if nobody does, to anybody); what it was."""
    row = watch.execute("select name, backend_pid from pgsched.leader").fetchone()
    leader = next((one for one in made if row is not None and one.name == row[0]), chance.choice(made))
    what = chance.choice(["killed", "hung", "cut off", "cut off one way", "session ended", "asked to resign"])
    if what == "killed":
        leader.kill()
    elif what == "hung":
        leader.process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0.5, 4))
        leader.process.send_signal(signal.SIGCONT)
    elif what.startswith("cut off"):
        leader.link.cut(incoming=what == "cut off" or chance.random() < 0.5)
        time.sleep(chance.uniform(0.5, 5))
        leader.link.restore()
    elif what == "session ended" and row is not None:
        watch.execute("select pg_terminate_backend(%s)", (row[1],))
    else:
        watch.execute("select pgsched.ask_leader_to_resign()")
    return what


def test_each_tick_comes_exactly_once_whatever_befalls_the_leaders(server: Server, tmp_path: Path) -> None:
    print(f"\nseed {SEED}: {SCHEDULES} schedules at 1-second ticks, {SECONDS:.0f} s")
    chance = random.Random(SEED)
    befell: Counter[str] = Counter()
    with nodes(server, tmp_path) as (made, watch):
        watch.execute(
            """
            insert into pgsched.schedule (app, name, origin, jobs, every, timezone, catch_up, catch_up_limit, starts_at, ends_at, plan_after)
            select 'c', 's' || i, 'runtime', '[{"task": "t", "queue": "q"}]', '1 s', 'UTC', 'all', 10000,
                date_trunc('second', clock_timestamp()) + interval '5 s',
                date_trunc('second', clock_timestamp()) + make_interval(secs => 5 + %s), clock_timestamp()
            from generate_series(1, %s) i
            """,
            (SECONDS, SCHEDULES),
        )
        begins, ends = watch.execute("select min(starts_at), min(ends_at) from pgsched.schedule").fetchone()  # type: ignore[misc]
        while watch.execute("select clock_timestamp() < %s", (ends,)).fetchone()[0]:  # type: ignore[index]
            befell[befall(made, watch, chance)] += 1
            time.sleep(chance.uniform(0.2, 3))
        deadline = time.monotonic() + 60 + SECONDS
        while watch.execute("select count(*) from pgsched.schedule where next_tick_at is not null").fetchone()[0]:  # type: ignore[index]
            assert time.monotonic() < deadline, (tmp_path / "nodes.log").read_text()[-3000:]
            time.sleep(0.2)
        expected = SCHEDULES * (int((ends - begins).total_seconds()) + 1)
        rows = watch.execute(
            "select count(*), count(distinct (schedule_id, tick_at)), count(*) filter (where outcome = 'made') from pgsched.schedule_tick"
        ).fetchone()
        assert rows == (expected, expected, expected)
        jobs = "select count(*), count(distinct (schedule_id, tick_at)), min(tick_at), max(tick_at) from pgsched.job"
        assert watch.execute(jobs).fetchone() == (expected, expected, begins, ends)
        assert watch.execute("select * from pgsched.check_invariants()").fetchall() == []
        late = watch.execute(
            """
            select percentile_disc(array[0.5, 0.9, 0.99, 1.0]) within group (order by extract(epoch from fired_at - tick_at))
            from pgsched.schedule_tick
            """
        ).fetchone()
        terms = watch.execute("select count(*) from pgsched.leader_term").fetchone()
    print(f"{expected} ticks, each once; {terms[0]} terms; the leader was: " + ", ".join(f"{what} {n}" for what, n in befell.items()))  # type: ignore[index]
    print("late by " + " / ".join(f"{float(s):.3f}" for s in late[0]) + " s (median, 90 %, 99 %, most)")  # type: ignore[index]
