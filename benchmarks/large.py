"""Claims, lists, and the look for what is due beside many other jobs: what they take on small tables and on large ones, on every
Postgres found.

    python benchmarks/large.py [--rows 1000000] [--times 200] [--pg 18]

Each Postgres is one of its own (fsync on, in a temporary folder: TMPDIR says on which disk). It gets as many ready,
waiting (scheduled far ahead) and finished jobs as --rows says, by SQL that fills the tables directly; half of each
for the lists. A claim of 100 jobs is timed as a call and with its commit, and finished outside the time; in turn with it
the floor is timed: the same moves of rows in one bare statement. At the end as many jobs wait for their next attempt, some of
them due each time stage() is called, and a hundredth of as many more jobs have failed. Figures of a shared machine: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgsched import embedded, migrate
from pgsched.embedded import Binaries, all_binaries

Session = psycopg.Connection[dict[str, Any]]

# Jobs number %(start)s + 1 to %(start)s + 3 * %(n)s. One in 100,000 is in the queue "rare", one in 10 in "other".
FILL = """
create temp table plan on commit drop as
    select i, case when i %% 100000 = 7 then 'rare' when i %% 10 = 1 then 'other' else 'mail' end as queue
    from generate_series(1, %(n)s) i;
insert into job (id, task, queue, args)
    select %(start)s + i + k * %(n)s, 'send', queue, jsonb_build_object('i', i, 'to', 'somebody@example.org')
    from plan, generate_series(0, 2) k;
insert into ready (queue, priority, job_id) select queue, 5, %(start)s + i from plan order by i;
insert into waiting (job_id, queue, reason, run_at)
    select %(start)s + i + %(n)s, queue, 'scheduled', now() + interval '1 year' + i * interval '1 s' from plan;
insert into finished (job_id, queue, state, claim_id, attempt, worker_id, started_at, finished_at)
    select %(start)s + i + 2 * %(n)s, queue, case when i %% 100 = 7 then 'failed' else 'succeeded' end, i, 1, 1,
        now(), now()
    from plan;
select setval('job_id_seq', %(start)s + 3 * %(n)s);
"""
# As many in backoff, within the hour; of each 100 that will be due first, the time is moved to now before a call of stage().
BACKOFF = """
insert into waiting (job_id, queue, reason, run_at, attempt)
select %(start)s + i, 'mail', 'retry', now() + interval '10 min' + i * interval '3 ms', 1 from generate_series(1, %(n)s) i;
insert into job (id, task, queue, max_attempts) select %(start)s + i, 'send', 'mail', 9 from generate_series(1, %(n)s) i;
insert into attempt_log (job_id, claim_id, attempt, state, error_type, error, ended_at)
    select f.job_id, f.claim_id, 1, 'failed', 'ValueError', 'no order ' || f.job_id, now() from finished f where f.state = 'failed';
"""
INFO = {
    "protocol": 1, "name": "bench", "host": "here", "pid": 1, "app": "bench", "queues": ["mail"], "concurrency": 100,
    "version": "0", "rescue_after_s": 60,
}  # fmt: skip
WANT = {"lanes": [{"queue": "mail", "priority": 5}], "max_jobs": 100, "free_slots": 100}
CLAIM = "select * from pgsched.claim(%s, %s::jsonb)"
FLOOR = """
with picked as (
    delete from pgsched.ready where ctid = any (array(
        select ctid from pgsched.ready where queue = 'mail' and priority = 5 order by position limit 100 for update skip locked))
    returning job_id, queue, attempt
), entered as (
    insert into pgsched.running (job_id, claim_id, attempt, worker_id, session_no, queue, claimed_at, started_at)
    select job_id, nextval('pgsched.claim_number'), attempt + 1, 1, 1, queue, now(), now() from picked
    returning job_id, claim_id, attempt
)
select e.*, j.task, j.args, j.timeout from entered e join pgsched.job j on j.id = e.job_id
"""
PINNED = "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off"
FLOOR_ENDS = """
with ended as (delete from pgsched.running where worker_id = 1 and session_no = 1 returning *)
insert into pgsched.finished (job_id, queue, state, claim_id, attempt, finished_at)
select job_id, queue, 'succeeded', claim_id, attempt, now() from ended
"""
LISTS = list(product(("ready", "scheduled", "succeeded", "failed", "running"), ("mail", "rare", "none")))


class Bench:
    """One server, one worker's session on it, and how many jobs were filled in."""

    def __init__(self, dsn: str) -> None:
        self.session: Session = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        self.worker = self.rows("select worker_id from pgsched.attach(%s)", json.dumps(INFO))[0]["worker_id"]
        self.filled = 0

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        return self.session.execute(query, values).fetchall()

    def fill(self, n: int) -> None:
        """Add n ready, n waiting and n finished jobs."""
        with self.session.transaction(), psycopg.ClientCursor(self.session) as cursor:
            cursor.execute("set local search_path = pgsched, pg_temp")
            cursor.execute(FILL, {"n": n, "start": self.filled * 3})
        self.filled += n

    def claims(self, times: int, beside: str) -> Iterator[tuple[str, list[float]]]:
        """Milliseconds of claims of 100 jobs, in turn with the floor; both are finished outside the time."""
        took: dict[str, list[float]] = {}
        for _ in range(times):
            jobs = self.moved("claim of 100", took, CLAIM, self.worker, json.dumps(WANT))
            ended = [{"job_id": job["job_id"], "claim_id": job["claim_id"], "outcome": "succeeded"} for job in jobs]
            self.rows("select * from pgsched.finish(%s, %s)", self.worker, json.dumps(ended))
            self.moved("   floor", took, FLOOR)
            self.session.execute(FLOOR_ENDS)
        return ((name.replace("100: call", f"100{beside}: call"), each) for name, each in took.items())

    def moved(self, name: str, took: dict[str, list[float]], query: str, *values: Any) -> list[dict[str, Any]]:
        """The 100 jobs that the query moves in a transaction; adds the milliseconds of the call and with the commit."""
        with self.session.transaction():
            self.session.execute(PINNED)
            began = time.perf_counter()
            rows = self.session.execute(query, values, prepare=True).fetchall()
            called = time.perf_counter()
        committed = time.perf_counter()
        assert len(rows) == 100, f"{len(rows)} jobs came"
        took.setdefault(f"{name}: call", []).append((called - began) * 1000)
        took.setdefault(f"{name}: with commit", []).append((committed - began) * 1000)
        return rows

    def fill_backoff(self, n: int) -> None:
        """Let n more jobs wait for their next attempt."""
        with self.session.transaction(), psycopg.ClientCursor(self.session) as cursor:
            cursor.execute("set local search_path = pgsched, pg_temp")
            cursor.execute(BACKOFF, {"n": n, "start": self.filled * 3})

    def staged(self, times: int, due: int) -> Iterator[float]:
        """Milliseconds of calls of stage() when so many are due."""
        move = (
            "update pgsched.waiting set run_at = now() where job_id = any (array("
            "select job_id from pgsched.waiting where reason = 'retry' order by run_at limit %s))"
        )
        for _ in range(times):
            if due:
                self.session.execute(move, [due])
            took, rows = self.timed("select pgsched.stage(1000) as said")
            assert rows[0]["said"]["staged"] == due and rows[0]["said"]["next_at"], rows
            yield took

    def listed(self, times: int, state: str | None, queue: str | None) -> Iterator[float]:
        """Milliseconds of lists of 50 jobs."""
        for _ in range(times):
            yield self.timed("select * from pgsched.list_jobs(state => %s, queue => %s)", state, queue)[0]

    def timed(self, query: str, *values: Any) -> tuple[float, list[dict[str, Any]]]:
        began = time.perf_counter()
        rows = self.rows(query, *values)
        return (time.perf_counter() - began) * 1000, rows


def measure(binaries: Binaries, n: int, times: int) -> Iterator[tuple[str, list[float]]]:
    """What was measured, and its milliseconds."""
    with tempfile.TemporaryDirectory(prefix="pgsched-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded.start(Path(folder) / "data", binaries=binaries) as server:
            migrate.upgrade(server.dsn)
            bench = Bench(server.dsn)
            assert bench.rows("show fsync") == [{"fsync": "on"}]
            small = min(n // 2, 400 * times)
            bench.fill(small)
            yield from bench.claims(times, f", {small:,} ready, waiting, finished")
            bench.fill(n // 2 - small)
            of = f"of {3 * (n // 2):,} jobs"
            lists = {(state, queue): list(bench.listed(times // 10, state, queue)) for state, queue in LISTS}
            yield f"list by state and queue {of}", [took for times_of in lists.values() for took in times_of]
            worst = max(lists, key=lambda key: statistics.median(lists[key]))
            yield f"   its slowest: {worst[0]}, {worst[1]}", lists[worst]
            rare = [took for (_, queue), times_of in lists.items() if queue == "rare" for took in times_of]
            yield "   by state and the rare queue", rare
            yield f"list by queue {of}", list(bench.listed(times // 10, None, "mail"))
            yield f"list by state {of}", list(bench.listed(times // 10, "failed", None))
            bench.fill(n - n // 2)
            yield from bench.claims(times, f", {n:,} ready, waiting, finished")
            bench.session.execute("vacuum (analyze)")
            yield from bench.claims(times, ", the same after vacuum and analyze")
            bench.fill_backoff(n)
            beside = f", {n:,} in backoff, {n:,} scheduled"
            yield f"stage{beside}: nothing is due", list(bench.staged(times, 0))
            yield "   100 are due", list(bench.staged(times, 100))
            bench.session.execute("vacuum (analyze)")
            yield "   nothing is due, after vacuum and analyze", list(bench.staged(times, 0))
            yield "   100 are due", list(bench.staged(times, 100))
            for what in ("failed_groups()", "failed_groups(error => 'no such')", "list_failed(error => 'no such', queue => 'rare')"):
                query = f"select * from pgsched.{what}"
                yield f"{what}, {n // 100:,} of {n:,}", [bench.timed(query)[0] for _ in range(times // 10)]
            bench.session.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="ready, waiting and finished jobs each")
    parser.add_argument("--times", type=int, default=200, help="how often a claim is timed; a list a tenth of it")
    parser.add_argument("--pg", type=int, help="this major version only")
    given = parser.parse_args()
    if given.rows < 1000 * given.times or given.times < 20:
        parser.error("--rows must be at least 1,000 times --times, and --times at least 20")
    print(f"{'milliseconds':62}{'median':>9}{'95 %':>9}{'max':>9}")
    for binaries in all_binaries():
        if given.pg in (None, binaries.major):
            print(f"Postgres {binaries.version}")
            for what, took in measure(binaries, given.rows, given.times):
                p95 = statistics.quantiles(took, n=20, method="inclusive")[-1]
                print(f"  {what:60}{statistics.median(took):>9.2f}{p95:>9.2f}{max(took):>9.2f}", flush=True)


if __name__ == "__main__":
    main()
