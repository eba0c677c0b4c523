"""Effects that happen once: transactional jobs while their connections, their workers and the server are ended at random.

Short form every day; PGSCHED_CAMPAIGN=1 runs 10,000 jobs.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from harness import executing
from harness.running import supervised
from harness.server import Server, installations

from pgsched.migrate import upgrade

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
JOBS = 10_000 if FULL else 1_500
TERMINATE_S, KILL_S, CRASH_S = (0.1, 4.0, 15.0) if FULL else (0.1, 3.0, 5.0)
PATIENCE_S = 900.0 if FULL else 120.0

pytestmark = [pytest.mark.faults, pytest.mark.campaign]


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that may crash."""
    with Server(installations()[0]) as running:
        yield running


def ask(dsn: str, query: str) -> list[Any]:
    """The rows, once the server answers."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                return connection.execute(query).fetchall()
        except psycopg.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("level", ["read committed", "serializable"])
def test_every_effect_is_there_once_whatever_ends(own: Server, level: str) -> None:
    dsn = own.database()
    upgrade(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "create table effect (id bigserial primary key, i int, job_id bigint);"
            "create table account (amount int, seen int primary key);"
            "insert into account select 0, s from generate_series(0, 9) s;"
            "update pgsched.setting set value = '100000' where name in ('max_lost_attempts', 'max_conflicts')"
        )
    executing.app.use(dsn)
    names = ["adds_in_thread", "adds_in_process", "adds_on_loop"] if level == "serializable" else ["writes", "writes_in_process", "writes_on_loop"]
    tasks = [executing.app.tasks[name] for name in names]
    executing.app.enqueue_many(tasks[i % 3].bind(i) for i in range(JOBS))
    executing.app.close()
    done = {"terminated": 0, "killed": 0, "crashed": 0}
    began = time.monotonic()
    due = {"terminated": 0.0, "killed": 1.0, "crashed": CRASH_S}
    with ExitStack() as stack:
        options = ("--executors", "2", "--concurrency", "12", "--job-sessions", "6")
        crews = [stack.enter_context(supervised(dsn, *options, target="harness.executing:app")) for _ in range(2)]
        while ask(dsn, "select count(*) from pgsched.finished") != [(JOBS,)]:
            at = time.monotonic() - began
            assert at < PATIENCE_S, ask(dsn, "select state, task, count(*) from pgsched.jobs group by 1, 2")
            if at > due["terminated"]:
                due["terminated"] = at + TERMINATE_S
                with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as other:
                    done["terminated"] += other.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where application_name like 'pgsched job %' and random() < 0.2"
                    ).rowcount
            if at > due["killed"]:
                due["killed"] = at + KILL_S
                if workers := random.choice(crews).workers():
                    os.kill(random.choice(workers), signal.SIGKILL)
                    done["killed"] += 1
            if at > due["crashed"]:
                due["crashed"] = at + CRASH_S
                own.crash()
                own.restart()
                done["crashed"] += 1
            time.sleep(0.02)
        assert [crew.stop() for crew in crews] == [0, 0]
    took = time.monotonic() - began
    repeated = ask(dsn, "select state, count(*) from pgsched.attempt_log group by 1 order by 1")
    print(f"{level}: {JOBS} transactional jobs in {took:.0f} s with {done}; attempts without success: {dict(repeated)}")
    assert done["terminated"] > 0 and done["killed"] > 0
    assert ask(dsn, "select distinct state, attempt from pgsched.jobs") == [("succeeded", 1)], "nobody was charged an attempt"
    assert ask(dsn, "select count(*), count(distinct i), count(distinct job_id) from effect") == [(JOBS, JOBS, JOBS)]
    if level == "serializable":
        assert ask(dsn, "select sum(amount)::int from account") == [(JOBS,)]
        assert dict(repeated).get("conflict", 0) > 0
    assert ask(dsn, "select * from pgsched.check_invariants()") == []
