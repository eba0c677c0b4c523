"""Random graphs, run by several workers at once: every end is one that the rules allow, and nothing is left waiting.

Short form every day; PGSCHED_CAMPAIGN=1 runs 2,000 graphs and storms of minutes.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

import psycopg
import pytest
from harness.graphs import AGAIN, Crowd, as_jobs, ends, judge, random_graph, release, release_all, work

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))

pytestmark = pytest.mark.one_server


def started(connection: Any, nodes: Any) -> list[int]:
    row = connection.execute("select pgsched.enqueue_workflow(%s)", (json.dumps({"name": "random", "jobs": as_jobs(nodes)}),)).fetchone()
    ids: list[int] = row[0]["job_ids"]
    return ids


def until_all_ended(connection: Any, ids: list[int], crowd: Crowd, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while None in ends(connection, ids):
        assert time.monotonic() < deadline and not crowd.stop.is_set(), [
            connection.execute("select id, state, reason from pgsched.jobs where id = any (%s) and state not in ('succeeded', 'failed', 'skipped', 'cancelled')", (ids,)).fetchall()[:10],
            connection.execute("select * from pgsched.release_check").fetchall()[:10],
            crowd.errors,
        ]
        time.sleep(0.01)


def test_random_graphs_end_as_the_rules_say(dsn: str, connection: Any) -> None:
    crowd = Crowd(dsn)
    for i in range(3):
        crowd.add(work, i)
    try:
        for seed in range(2000 if FULL else 40):
            rng = random.Random(seed)
            nodes = random_graph(rng, 300 if seed % 10 == 0 else 40)
            ids = started(connection, nodes)
            cancelled: set[int] = set()
            if seed % 2:
                for i in rng.sample(range(len(nodes)), min(len(nodes), 3)):
                    time.sleep(rng.random() * 0.03)
                    for _ in range(100):
                        try:
                            cancelled |= {row[0] for row in connection.execute("select * from pgsched.cancel(%s)", (ids[i],))}
                            break
                        except AGAIN:
                            continue
            until_all_ended(connection, ids, crowd)
            assert judge(nodes, ends(connection, ids), lambda i: ids[i] in cancelled) == [], f"seed {seed}"  # noqa: B023
    finally:
        crowd.end()
    release_all(connection)


def take_the_rare_ways(connection: Any) -> None:
    """Each pass of release() raises the floor, and leaves out what waits for more, as it does for what is slow or many."""
    [text] = connection.execute("select pg_get_functiondef('pgsched.release'::regproc)").fetchone()
    for old, new in (("interval := '5 ms'", "interval := '-1 s'"), ("many constant integer := 8", "many constant integer := 1")):
        assert old in text
        text = text.replace(old, new)
    connection.execute(text)


def test_a_storm_of_everything_breaks_no_invariant(dsn: str, connection: Any) -> None:
    """Workers, late commits, rollbacks, releasers that are killed, cancels, several who retry and rerun, prune, edges from outside."""
    take_the_rare_ways(connection)
    crowd = Crowd(dsn)
    ids: list[int] = []

    def again(session: Any, statement: str, params: Any, rng: random.Random) -> None:
        try:
            with session.transaction() as transaction:
                session.execute(statement, params)
                if rng.random() < 0.3:
                    time.sleep(rng.random() * 0.05)
                if rng.random() < 0.2:
                    raise psycopg.Rollback(transaction)
        except (*AGAIN, psycopg.errors.RaiseException, psycopg.DatabaseError) as error:
            if error.sqlstate is None or not error.sqlstate.startswith(("PGS", "40P01", "55P03", "57014")):
                raise

    def meddle(crowd: Crowd, rng: random.Random) -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            while not crowd.stop.is_set():
                if not ids:
                    time.sleep(0.001)
                    continue
                some = rng.sample(ids[-400:], min(len(ids), 3))
                what = rng.random()
                if what < 0.35:
                    again(session, "select * from pgsched.retry(%s)", (some[0],), rng)
                elif what < 0.45:
                    rerun = "select pgsched.rerun_workflow(workflow_id, array[name]) from pgsched.job where id = any (%s) and workflow_id is not null limit 1"
                    again(session, rerun, (rng.sample(ids[-4000:], 1),), rng)
                elif what < 0.6:
                    again(session, "select * from pgsched.cancel_many(%s)", (some,), rng)
                elif what < 0.9:
                    edges = [{"job": i, "on": rng.choice(["success", "failure", "done"])} for i in some]
                    job = {"task": "t", "queue": "q", "args": {"outcome": "succeeded"}, "depends_on": edges, "rule": rng.choice(["all", "any", "none_failed"])}
                    again(session, "select pgsched.enqueue_many(%s)", (json.dumps([job]),), rng)
                else:
                    again(session, "select pgsched.prune('0 s', 20)", (), rng)
                time.sleep(rng.random() * 0.01)

    def releases(crowd: Crowd, rng: random.Random) -> None:
        while not crowd.stop.is_set():
            with psycopg.connect(dsn, autocommit=True) as session:
                for _ in range(rng.randint(1, 50)):
                    again(session, "select pgsched.release(%s)", (rng.choice([1, 5, 100, 1000]),), rng)

    for i in range(3):
        crowd.add(work, i)
    for i in range(3):
        crowd.add(meddle, 100 + i)
    crowd.add(releases, 200)
    rng = random.Random(os.environ.get("PGSCHED_SEED", "7"))
    end = time.monotonic() + (180 if FULL else 5)
    while time.monotonic() < end and not crowd.stop.is_set():
        ids += started(connection, random_graph(rng, 30))
        while connection.execute("select count(*) > 500 from pgsched.waiting").fetchone()[0] and not crowd.stop.is_set():
            time.sleep(0.01)
    crowd.end()
    finishing = Crowd(dsn)
    for i in range(2):
        finishing.add(work, i)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not finishing.stop.is_set():
        release_all(connection, 100)
        if not connection.execute("select exists (select from pgsched.waiting) or exists (select from pgsched.ready) or exists (select from pgsched.running)").fetchone()[0]:
            break
        time.sleep(0.05)
    finishing.end()
    left = connection.execute("select id, state, reason from pgsched.jobs where state not in ('succeeded', 'failed', 'skipped', 'cancelled')").fetchall()
    assert left == [], connection.execute(
        "select d.*, f.state, f.cause_job_id, f.claim_id, f.finished_at, j.rule, j.rule_n from pgsched.dependency d join pgsched.job j on j.id = d.job_id "
        "left join pgsched.finished f on f.job_id = d.depends_on_id where d.job_id = any (%s)", ([row[0] for row in left],)
    ).fetchall()
    assert release(connection)["kept"] == 0
    assert connection.execute("select first_id > 1000 from pgsched.release_floor").fetchone() == (True,)
