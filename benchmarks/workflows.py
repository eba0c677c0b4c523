"""Run workflows of no-op jobs of five shapes (see shapes.py) by pgsched and by pg-boss, each on a Postgres of its own.

    python benchmarks/workflows.py [--jobs 10000 100000] [--rounds 3] [--pg-boss FOLDER]

It compares two ways of each side with the same of the other:

calls   the queue alone: loops that ask for a batch of jobs and end it, without handlers. Ours are sessions of one
        Python process, which end a batch and claim the next in one call and release dependents where a note says so; pg-boss's
        are loops of fetch() and complete() in one Node process, and of resolveFlow() by hand where they find nothing.
worker  a worker process with a handler for each job: ours, and pg-boss's work() with handlers of a batch and of single jobs.

Each measurement is a process or sessions of its own on a database of its own, after a small run of the same kind (--warm jobs), and
both sides take turns. A chain has one loop on each side. It prints jobs a second, medians of the rounds, and ratios, ours to theirs.
pg-boss is installed by npm in a temporary folder, or taken from FOLDER; where that cannot be, it is left out. Figures of a shared
machine: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from drains import by_calls, by_worker
from peers import pg_boss
from psycopg.conninfo import make_conninfo
from shapes import SHAPES

from pgsched import embedded, migrate

Seconds = dict[str, float]
SIDES = OURS, BOSS, OUR_WORKER, BOSS_BATCHES, BOSS_SINGLE = ["ours", "pg-boss", "worker", "pg-boss-batches", "pg-boss-single"]


@contextlib.contextmanager
def fresh(server: str) -> Iterator[str]:
    """The dsn of a new, empty database."""
    with psycopg.connect(server, dbname="postgres", autocommit=True) as c:
        c.execute("create database run")
        try:
            yield make_conninfo(server, dbname="run")
        finally:
            c.execute("drop database run with (force)")


def loops(shape: str, many: list[int]) -> int:
    """How many loops run it: the first number without edges, the second with edges, one for a chain."""
    return {"flat": many[0], "chain": 1}.get(shape, many[1])


def sides(given: argparse.Namespace, ours: str, theirs: str, boss: pg_boss.PgBoss | None) -> dict[str, Callable[[str, int], Seconds]]:
    """How each side is measured: by a shape and a number of jobs."""

    def calls(shape: str, n: int) -> Seconds:
        edges = SHAPES[shape]
        with fresh(ours) as dsn:
            migrate.upgrade(dsn)
            return asyncio.run(by_calls(dsn, edges(given.warm), edges(n), loops(shape, given.sessions), given.batch))

    def worker(shape: str, n: int) -> Seconds:
        edges = SHAPES[shape]
        with fresh(ours) as dsn:
            migrate.upgrade(dsn)
            return asyncio.run(by_worker(dsn, edges(given.warm), edges(n), given.concurrency))

    def of_boss(way: str, many: list[int], batch: int) -> Callable[[str, int], Seconds]:
        def measure(shape: str, n: int) -> Seconds:
            assert boss is not None
            edges = SHAPES[shape]
            order: dict[str, Any] = {"way": way, "batch": batch, "wake": given.boss_wake, "small": edges(given.warm), "edges": edges(n)}
            order["loops"] = loops(shape, many)
            with fresh(theirs) as dsn:
                return boss.measure(dsn, order)

        return measure

    all_: dict[str, Callable[[str, int], Seconds]] = {OURS: calls}
    if boss:
        all_[BOSS] = of_boss("calls", given.boss_loops, given.boss_batch)
    all_[OUR_WORKER] = worker
    if boss:
        all_[BOSS_BATCHES] = of_boss("worker", [given.boss_workers] * 2, given.boss_batch)
        all_[BOSS_SINGLE] = of_boss("worker", [given.boss_singles] * 2, 1)
    return all_


def server(stack: contextlib.ExitStack) -> str:
    """The dsn of a Postgres of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsched-bench-")))
    folder.chmod(0o755)
    return stack.enter_context(embedded.start(folder / "data")).dsn


def measure(given: argparse.Namespace, boss: pg_boss.PgBoss | None) -> None:
    """Measure and print a table for each number of jobs."""
    with contextlib.ExitStack() as stack:
        those = {side: run for side, run in sides(given, server(stack), server(stack), boss).items() if side in given.sides}
        for n in given.jobs:
            rates: dict[tuple[str, str, str], list[float]] = defaultdict(list)
            for round_ in range(given.rounds):
                for shape in given.shapes:
                    for side, run in those.items():
                        took = run(shape, n)
                        count = len(SHAPES[shape](n))
                        rates["enqueue", shape, side].append(count / took["enqueue_s"])
                        rates["drain", shape, side].append(count / took["drain_s"])
                        print(f"{n} round {round_ + 1} {shape:8} {side:18} {count / took['drain_s']:10,.0f}/s", file=sys.stderr, flush=True)
            report(given, n, {key: statistics.median(several) for key, several in rates.items()})


def report(given: argparse.Namespace, n: int, rate: dict[tuple[str, str, str], float]) -> None:
    """Print the tables of so many jobs; a ratio is ours to theirs."""
    ours, theirs = ("{} (flat) and {} (others)".format(*many) for many in (given.sessions, given.boss_loops))
    table(
        f"{n:,} jobs, calls: {ours} sessions, batches of {given.batch}; pg-boss {theirs} loops, batches of {given.boss_batch}",
        given.shapes,
        [
            ("enqueue/s", ("enqueue", OURS), None),
            ("pg-boss", ("enqueue", BOSS), None),
            ("ratio", ("enqueue", OURS), ("enqueue", BOSS)),
            ("drain/s", ("drain", OURS), None),
            ("pg-boss", ("drain", BOSS), None),
            ("ratio", ("drain", OURS), ("drain", BOSS)),
        ],
        rate,
    )
    woken = "woken" if given.boss_wake else "polling"
    table(
        f"{n:,} jobs, worker: {given.concurrency} slots; pg-boss, {woken}, {given.boss_workers} loops and batches of {given.boss_batch}, "
        f"{given.boss_singles} loops of single jobs",
        given.shapes,
        [
            ("drain/s", ("drain", OUR_WORKER), None),
            ("pg-boss, batches", ("drain", BOSS_BATCHES), None),
            ("ratio", ("drain", OUR_WORKER), ("drain", BOSS_BATCHES)),
            ("pg-boss, single", ("drain", BOSS_SINGLE), None),
            ("ratio", ("drain", OUR_WORKER), ("drain", BOSS_SINGLE)),
        ],
        rate,
    )


def table(
    title: str,
    shapes: list[str],
    columns: list[tuple[str, tuple[str, str], tuple[str, str] | None]],
    rate: dict[tuple[str, str, str], float],
) -> None:
    """Print a line for each shape: of each column the rate, or its ratio to another; without the columns of a side that is left out."""
    there = {(what, side) for what, _, side in rate}
    shown = [(head, of, to) for head, of, to in columns if of in there and (to is None or to in there)]
    if not shown:
        return
    print(f"\n{title}\n")
    print(f"| | {' | '.join(head for head, _, _ in shown)} |\n|---|{'---|' * len(shown)}")
    for shape in shapes:
        cells = []
        for _, (what, side), to in shown:
            value = rate[what, shape, side]
            cells.append(f"{value:,.0f}" if to is None else f"{value / rate[to[0], shape, to[1]]:.2f}")
        print(f"| {shape} | {' | '.join(cells)} |", flush=True)


def options() -> argparse.Namespace:
    """What is asked for. The defaults are what served each side best on two cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--warm", type=int, default=1000, help="jobs of the small run before")
    parser.add_argument("--sessions", type=int, nargs=2, default=[2, 2], help="ours, calls: without edges, with edges")
    parser.add_argument("--batch", type=int, default=250, help="ours, calls")
    parser.add_argument("--concurrency", type=int, default=200, help="slots of our worker")
    parser.add_argument("--boss-loops", type=int, nargs=2, default=[4, 2], help="pg-boss, calls: without edges, with edges")
    parser.add_argument("--boss-batch", type=int, default=500, help="pg-boss, calls and batches")
    parser.add_argument("--boss-workers", type=int, default=4, help="loops of pg-boss's work() with batches")
    parser.add_argument("--boss-singles", type=int, default=20, help="loops of pg-boss's work() with single jobs")
    parser.add_argument("--boss-wake", action=argparse.BooleanOptionalAction, default=True, help="wake pg-boss's loops instead of leaving them to poll")
    parser.add_argument("--pg-boss", type=Path, metavar="FOLDER", help="where pg-boss is installed")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = options()
    with tempfile.TemporaryDirectory(prefix="pgsched-npm-") as folder:
        try:
            boss = pg_boss.PgBoss(given.pg_boss) if given.pg_boss else pg_boss.install(Path(folder))
            print(f"beside {boss.version}")
        except pg_boss.NotThereError as why:
            boss = None
            print(f"without pg-boss: {why}")
        measure(given, boss)


if __name__ == "__main__":
    main()
