"""What dependents cost those who finish, and how soon they are ready, by bare SQL sessions on a Postgres of its own.

    python benchmarks/releasing.py [--parents 8000] [--sessions 8] [--batch 1] [--rounds 3]

- fan-in under load: so many sessions finish jobs, one a call or --batch, all of which one child waits for, beside the same without a child
  (and a session that releases as a worker would); finishes a second, and their ratio.
- from a parent's finish to its child in ready: the time between the commit of the one and the first moment at which the other is seen,
  for a child that the finish decides itself and for one that the releaser does (it has two parents that end at once).
- a chain, one session, one call a step: a finish that hands the next job over, beside the bare moves of rows (five tables, one statement, no
  rules and no triggers); steps a second.
- a finish without dependents: bytes of write-ahead log and the server's CPU a job, in batches of 100.

Figures of a shared machine: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from pgsched import embedded, migrate

INFO = {
    "protocol": 1, "name": "bench", "host": "here", "pid": 1, "app": "bench", "queues": ["q"], "concurrency": 10,
    "version": "0", "rescue_after_s": 60,
}  # fmt: skip


class Worker:
    """A worker of bare sessions: one lease, and as many work sessions as are asked for."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lease = psycopg.connect(dsn, autocommit=True)
        row = self._lease.execute("select worker_id, token from pgsched.attach(%s)", (json.dumps(INFO),)).fetchone()
        assert row is not None
        self.id, self._token = row
        self._count = 0

    def session(self) -> psycopg.Connection[Any]:
        """One more work session."""
        self._count += 1
        session = psycopg.connect(self._dsn, autocommit=True)
        session.execute("select pgsched.open_session(%s, %s, %s)", (self.id, self._token, self._count))
        return session

    def claim(self, session: psycopg.Connection[Any], n: int) -> list[tuple[int, int]]:
        """Claim up to n jobs: their ids and claims."""
        want = json.dumps({"lanes": [{"queue": "q", "priority": 5}], "max_jobs": n})
        rows = session.execute("select job_id, claim_id from pgsched.claim(%s, %s)", (self.id, want)).fetchall()
        return [(row[0], row[1]) for row in rows if row[0] is not None]

    def finish(self, session: psycopg.Connection[Any], claims: list[tuple[int, int]]) -> None:
        """End them as succeeded."""
        results = [{"job_id": job, "claim_id": claim, "outcome": "succeeded"} for job, claim in claims]
        session.execute("select from pgsched.finish(%s, %s)", (self.id, json.dumps(results)))


def enqueue(session: psycopg.Connection[Any], jobs: list[dict[str, Any]]) -> None:
    """As one workflow."""
    text = json.dumps({"name": "bench", "jobs": [{"task": "t", "queue": "q"} | job for job in jobs]})
    session.execute("select pgsched.enqueue_workflow(%s)", (text,))


def fan_in(dsn: str, parents: int, sessions: int, batch: int, child: bool) -> float:
    """Finishes a second, so many jobs a call, by several sessions."""
    worker = Worker(dsn)
    with psycopg.connect(dsn, autocommit=True) as c:
        jobs: list[dict[str, Any]] = [{"name": str(i)} for i in range(parents)]
        if child:
            jobs.append({"name": "child", "depends_on": [{"name": str(i)} for i in range(parents)]})
        enqueue(c, jobs)
    claims = worker.claim(worker.session(), parents)
    parts = [claims[i::sessions] for i in range(sessions)]
    over = threading.Event()

    def run(part: list[tuple[int, int]]) -> None:
        session = worker.session()
        for i in range(0, len(part), batch):
            worker.finish(session, part[i : i + batch])

    def release() -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            while not over.is_set():
                session.execute("select pgsched.release(1000)")
                time.sleep(0.02)

    threads = [threading.Thread(target=run, args=(part,)) for part in parts]
    releasing = threading.Thread(target=release)
    releasing.start()
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    over.set()
    releasing.join()
    with psycopg.connect(dsn, autocommit=True) as c:
        while json.loads(json.dumps(c.execute("select pgsched.release(1000)").fetchone()[0]))["more"]:  # type: ignore[index]
            pass
        ready = worker.claim(worker.session(), 10)
        assert len(ready) == child
        worker.finish(worker.session(), ready)
    return parents / took


def latencies(dsn: str, rounds: int, at_once: bool) -> list[float]:
    """Milliseconds from a finish's commit until its child is seen in ready, with a releaser that is called as a worker does."""
    worker = Worker(dsn)
    one, two = worker.session(), worker.session()
    took: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as watch:
        for _ in range(rounds):
            names = ["a", "b"] if at_once else ["a"]
            enqueue(watch, [*({"name": name} for name in names), {"name": "child", "depends_on": [{"name": name} for name in names]}])
            claims = worker.claim(one, 2)
            if at_once:
                one.execute("begin")
                two.execute("begin")
                worker.finish(one, claims[:1])
                worker.finish(two, claims[1:])
                one.execute("commit")
                began = time.perf_counter()
                two.execute("commit")
                two.execute("select pgsched.release(1000)")
            else:
                began = time.perf_counter()
                worker.finish(one, claims)
            while not watch.execute("select exists (select from pgsched.ready)").fetchone()[0]:  # type: ignore[index]
                two.execute("select pgsched.release(1000)")
            took.append(1000 * (time.perf_counter() - began))
            worker.finish(one, worker.claim(one, 1))
    return took


FLOOR = """
with r as (delete from running where job_id = %s and claim_id = %s returning *),
f as (insert into finished (job_id, queue, state, claim_id, attempt, worker_id, started_at, finished_at)
    select job_id, queue, 'succeeded', claim_id, attempt, worker_id, started_at, clock_timestamp() from r),
d as (update dependency set outcome = 'succeeded' where depends_on_id = (select job_id from r) returning job_id),
w as (delete from waiting where job_id = (select job_id from d) returning *),
n as (insert into running (job_id, claim_id, attempt, worker_id, session_no, queue, claimed_at, started_at)
    select job_id, (1::bigint << 44) | nextval('claim_number'), attempt + 1, 1, 1, queue, clock_timestamp(), clock_timestamp() from w
    returning job_id, claim_id)
select n.job_id, n.claim_id, j.task, j.args from n join job j on j.id = n.job_id"""
PINNED = ["search_path = pgsched", "session_replication_role = replica", "plan_cache_mode = force_generic_plan", *(
    f"enable_{way} = off" for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin")
)]  # fmt: skip


def chain(dsn: str, jobs: int, bare: bool) -> float:
    """Steps a second of a chain."""
    worker = Worker(dsn)
    session = worker.session()
    with psycopg.connect(dsn, autocommit=True) as c:
        enqueue(c, [{"name": str(i)} | ({"depends_on": [{"name": str(i - 1)}]} if i else {}) for i in range(jobs)])
    if bare:
        for setting in PINNED:
            session.execute(f"set {setting}")
    session.prepare_threshold = 0
    want = json.dumps({"lanes": [{"queue": "q", "priority": 5}], "max_jobs": 10, "only_new": True})
    [(job, claim)] = worker.claim(session, 1) if not bare else worker.claim(worker.session(), 1)
    began = time.perf_counter()
    for _ in range(jobs):
        if bare:
            rows = session.execute(FLOOR, (job, claim)).fetchall()
        else:
            text = f'[{{"job_id": {job}, "claim_id": {claim}, "outcome": "succeeded"}}]'
            asked = "select job_id, claim_id, task, args, extra from pgsched.finish(%s, %s, %s) where verdict is null and job_id is not null"
            rows = session.execute(asked, (worker.id, text, want)).fetchall()
        job, claim = rows[0][:2] if rows else (0, 0)
    return jobs / (time.perf_counter() - began)


def without_dependents(dsn: str, jobs: int) -> tuple[float, float]:
    """Bytes of write-ahead log and microseconds of the backend's CPU a job, of finishes of 100."""
    worker = Worker(dsn)
    session = worker.session()
    with psycopg.connect(dsn, autocommit=True) as c:
        c.execute("select pgsched.enqueue_many((select jsonb_agg(jsonb_build_object('task', 't', 'queue', 'q')) from generate_series(1, %s)))", (jobs,))
        c.execute("checkpoint")
        claims = worker.claim(session, jobs)
        worker.finish(session, claims[:1000])  # (what is planned once)
        cpu = Path(f"/proc/{session.info.backend_pid}/stat")
        before, wal = _ticks(cpu), c.execute("select pg_current_wal_insert_lsn()").fetchone()
        for i in range(1000, jobs, 100):
            worker.finish(session, claims[i : i + 100])
        ticks = _ticks(cpu) - before
        size = c.execute("select pg_current_wal_insert_lsn() - %s", wal).fetchone()
    assert size is not None
    return float(size[0]) / (jobs - 1000), ticks * 10_000 / (jobs - 1000)


def _ticks(stat: Path) -> int:
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parents", type=int, default=8000)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgsched-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded.start(Path(folder) / "data") as server:
            migrate.upgrade(server.dsn)
            fan_in(server.dsn, 1000, given.sessions, given.batch, True)  # (what is done once)
            pairs = [[fan_in(server.dsn, given.parents, given.sessions, given.batch, child) for child in (False, True)] for _ in range(given.rounds)]
            for alone, with_child in pairs:
                print(f"fan-in of {given.parents} by {given.sessions} sessions, {given.batch} a call: {with_child:,.0f} finishes/s, {alone:,.0f} without a child, ratio {with_child / alone:.2f}")
            for name, at_once in (("decided by the finish", False), ("two parents at once, decided by the releaser", True)):
                took = sorted(latencies(server.dsn, 500, at_once))
                print(f"parent's finish to child ready, {name}: p50 {statistics.median(took):.2f} ms, p99 {took[int(len(took) * 0.99)]:.2f} ms")
            for _ in range(given.rounds):
                floor, steps = (chain(server.dsn, 3000, bare) for bare in (True, False))
                print(f"a chain: {steps:,.0f} steps/s, bare moves of rows {floor:,.0f}, ratio {steps / floor:.2f}")
            wal, cpu = without_dependents(server.dsn, 50_000)
            print(f"a finish without dependents: {wal:.0f} bytes of WAL and {cpu:.1f} us of the backend's CPU a job")


if __name__ == "__main__":
    main()
