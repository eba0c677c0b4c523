"""Run workflows of no-op jobs of five shapes with one worker process, beside the same number of jobs without any edge.

    python benchmarks/workflows.py [--jobs 10000] [--concurrency 200]

flat: no edges; fan-out: one job, then all others; fan-in: all others, then one job; layers: 20 layers, each job with three
dependencies in the layer above; chain: one after the other. It starts a Postgres of its own (fsync on, in a temporary folder) and
prints jobs a second, enqueued in one call and drained, and ratios to flat in the same run. Figures of a shared machine: read the
ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import psycopg

import pgsched
from pgsched import embedded, migrate
from pgsched.worker import Settings, Worker

app = pgsched.App("bench")
LAYERS = 20


@app.task
async def nothing() -> None:
    pass


def shapes(n: int) -> dict[str, list[list[int]]]:
    """For each shape the dependencies of each job, as positions."""
    width = n // LAYERS
    layered = [[] if i < width else [(i // width - 1) * width + (i * 7 + k * 131) % width for k in range(3)] for i in range(width * LAYERS)]
    return {
        "flat": [[] for _ in range(n)],
        "fan-out": [[], *([0] for _ in range(n - 1))],
        "fan-in": [*([] for _ in range(n - 1)), list(range(n - 1))],
        "layers": [sorted(set(on)) for on in layered],
        "chain": [[i - 1] if i else [] for i in range(n)],
    }


def enqueue(dsn: str, edges: list[list[int]]) -> float:
    """Enqueue it in one call; the seconds."""
    jobs = [
        {"task": "nothing", "queue": "bench", "name": str(i)} | ({"depends_on": [{"name": str(on)} for on in ons]} if ons else {})
        for i, ons in enumerate(edges)
    ]
    text = json.dumps({"name": "bench", "jobs": jobs})
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = time.perf_counter()
        connection.execute("select pgsched.enqueue_workflow(%s)", (text,))
        return time.perf_counter() - began


async def drain(concurrency: int) -> float:
    """Run all that is there in one worker; the seconds."""
    worker = Worker(app, Settings(concurrency=concurrency))
    began = time.perf_counter()
    running = asyncio.create_task(worker.run())
    async with await psycopg.AsyncConnection.connect(app.client.dsn, autocommit=True) as c:
        left = "select exists (select from pgsched.waiting) or exists (select from pgsched.ready) or exists (select from pgsched.running)"
        while (await (await c.execute(left)).fetchone() or [True])[0]:
            await asyncio.sleep(0.02)
    took = time.perf_counter() - began
    worker.stop()
    await running
    await app.aclose()
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgsched-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded.start(Path(folder) / "data") as server:
            migrate.upgrade(server.dsn)
            app.use(server.dsn)
            asyncio.run(drain(given.concurrency))  # (what is imported and planned once)
            rows = {}
            for name, edges in shapes(given.jobs).items():
                enqueued = enqueue(server.dsn, edges)
                rows[name] = (len(edges) / enqueued, len(edges) / asyncio.run(drain(given.concurrency)))
    base = rows["flat"]
    print(f"{given.jobs} no-op jobs, {given.concurrency} slots, one worker process\n")
    print(f"{'':12}{'enqueue/s':>12}{'ratio':>8}{'drain/s':>12}{'ratio':>8}")
    for name, (enqueued, drained) in rows.items():
        print(f"{name:12}{enqueued:>12,.0f}{enqueued / base[0]:>8.2f}{drained:>12,.0f}{drained / base[1]:>8.2f}")


if __name__ == "__main__":
    main()
