"""Workers that are killed with SIGKILL while they work: every job ends exactly once.

Short form every day; PGSCHED_CAMPAIGN=1 runs the full 200,000 jobs.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.running import child, make_trace

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
JOBS, EVERY_S = (200_000, 2.0) if FULL else (30_000, 0.5)


@pytest.mark.campaign
def test_every_job_ends_exactly_once_while_workers_are_killed(dsn: str, connection: psycopg.Connection[Any]) -> None:
    make_trace(dsn)
    apps.app.use(dsn)
    ids = [job.id for job in apps.app.enqueue_many(apps.noop.bind(i) for i in range(JOBS))]
    apps.app.close()
    kills = 0
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(child(dsn, "--concurrency", "50")) for _ in range(2)]
        next_kill = time.monotonic() + EVERY_S
        while connection.execute("select count(*) from pgsched.finished").fetchone() != (JOBS,):
            assert not any(w.has_ended() for w in workers), "a worker ended by itself"
            time.sleep(0.05)
            if time.monotonic() > next_kill:
                victim = random.choice(workers)
                victim.send(signal.SIGKILL)
                victim.reap()
                victim.start()
                kills += 1
                next_kill = time.monotonic() + EVERY_S
        for worker in workers:
            assert worker.stop() in (0, -signal.SIGTERM)  # (one that is still starting just goes)
    assert kills > 0
    finished = connection.execute("select job_id, state from pgsched.finished order by job_id").fetchall()
    assert finished == [(job_id, "succeeded") for job_id in ids]
    # Each claim ended once: a claim is either the one that finished its job, or one lost with its worker.
    doubled = connection.execute(
        "select count(*) from pgsched.finished f join pgsched.attempt_log a on a.job_id = f.job_id and a.claim_id = f.claim_id"
    )
    assert doubled.fetchone() == (0,)
    assert connection.execute("select count(*) from pgsched.running").fetchone() == (0,)
