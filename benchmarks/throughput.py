"""Enqueue and drain no-op jobs with one worker process, beside the floor: the same moves of rows in bare SQL.

    python benchmarks/throughput.py [--jobs 50000] [--concurrency 200]

It starts a Postgres of its own (fsync on, in a temporary folder) and prints a table of jobs a second and of ratios to the
floor, measured in the same run. Figures of a shared machine: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

import pgsched
from pgsched import embedded, migrate
from pgsched.worker import Settings, Worker

app = pgsched.App("bench")


@app.task
async def on_loop(i: int) -> None:
    pass


@app.task
def in_thread(i: int) -> None:
    pass


@app.task(executor="process")
def in_process(i: int) -> None:
    pass


@app.task(transactional=True)
async def in_transaction(i: int) -> None:
    pass


def floor(dsn: str, jobs: int, batch: int) -> dict[str, float]:
    """Rows through four tables like ours, without any rule: what the server must do at the least."""
    with psycopg.connect(dsn, autocommit=True) as c:
        c.execute(
            "create schema if not exists floor; set search_path = floor; "
            "create table job (id bigint generated always as identity primary key, task text, queue text, args jsonb); "
            "create table ready (queue text, priority smallint, position bigint generated always as identity, job_id bigint, "
            "primary key (queue, priority, position)); create index on ready (job_id); "
            "create table running (job_id bigint primary key, claim_id bigint, worker_id bigint, queue text, at timestamptz); "
            "create table finished (job_id bigint primary key, queue text, state text, claim_id bigint, at timestamptz); "
            "create index on finished (queue, state, job_id); create sequence claim; "
            "set enable_seqscan = off; set enable_sort = off; set enable_hashjoin = off; set enable_mergejoin = off"
        )
        began = time.perf_counter()
        for _ in range(jobs // 1000):
            c.execute(
                "with j as (insert into job (task, queue, args) select 't', 'q', '{\"i\": 1}' from generate_series(1, 1000) returning id) "
                "insert into ready (queue, priority, job_id) select 'q', 5, id from j"
            )
        enqueued = time.perf_counter() - began
        began = time.perf_counter()
        ids: list[int] = []
        while True:
            with c.transaction():
                c.execute(
                    "with d as (delete from running where job_id = any (%s) returning *) insert into finished "
                    "select job_id, queue, 'succeeded', claim_id, clock_timestamp() from d",
                    (ids,),
                    prepare=True,
                )
                rows = c.execute(
                    "with p as (delete from ready where ctid = any (array(select ctid from ready where queue = 'q' and priority = 5 "
                    "order by position limit %s for update skip locked)) returning job_id), "
                    "r as (insert into running select job_id, nextval('claim'), 1, 'q', clock_timestamp() from p returning *) "
                    "select r.job_id, r.claim_id, j.task, j.args from r join job j on j.id = r.job_id",
                    (batch,),
                    prepare=True,
                ).fetchall()
            ids = [row[0] for row in rows]
            if not ids:
                break
        drained = time.perf_counter() - began
    return {"enqueue": jobs / enqueued, "drain": jobs / drained}


async def drain(task: Any, jobs: int, concurrency: int) -> dict[str, float]:
    """Enqueue in one call, then run them all in one worker."""
    began = time.perf_counter()
    await app.aenqueue_many(task.bind(i) for i in range(jobs))
    enqueued = time.perf_counter() - began
    worker = Worker(app, Settings(concurrency=concurrency, executors=2))
    began = time.perf_counter()
    running = asyncio.create_task(worker.run())
    async with await psycopg.AsyncConnection.connect(app.client.dsn, autocommit=True) as c:
        left = "select exists (select from pgsched.ready) or exists (select from pgsched.running)"
        while (await (await c.execute(left)).fetchone() or [True])[0]:
            await asyncio.sleep(0.02)
    drained = time.perf_counter() - began
    worker.stop()
    await running
    await app.aclose()
    return {"enqueue": jobs / enqueued, "drain": jobs / drained}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgsched-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded.start(Path(folder) / "data") as server:
            migrate.upgrade(server.dsn)
            app.use(server.dsn)
            rows = {"floor (bare SQL)": floor(server.dsn, given.jobs, given.concurrency // 2)}
            rows["async def, on the loop"] = asyncio.run(drain(on_loop, given.jobs, given.concurrency))
            rows["def, in threads"] = asyncio.run(drain(in_thread, given.jobs, given.concurrency))
            rows["def, in 2 processes"] = asyncio.run(drain(in_process, given.jobs, given.concurrency))
            rows["async def, transactional"] = asyncio.run(drain(in_transaction, given.jobs // 5, given.concurrency))
    base = rows["floor (bare SQL)"]
    print(f"{given.jobs} no-op jobs, {given.concurrency} slots, one worker process\n")
    print(f"{'':26}{'enqueue/s':>12}{'ratio':>8}{'drain/s':>12}{'ratio':>8}")
    for name, row in rows.items():
        print(
            f"{name:26}{row['enqueue']:>12,.0f}{row['enqueue'] / base['enqueue']:>8.2f}"
            f"{row['drain']:>12,.0f}{row['drain'] / base['drain']:>8.2f}"
        )


if __name__ == "__main__":
    main()
