"""What schedules cost a leader: `python benchmarks/schedules.py DSN`, on a database with pgsched that is empty.

Two figures. How much of a core the ticker needs while many schedules are there and few are due (its own process and its backend
together), and how late the ticks are when many are due in the same second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psycopg

from pgsched.leader import Leader

TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """How long a process has run on a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def lead(dsn: str, seconds: float) -> tuple[float, float, float, float]:
    """Lead for so long once all is planned: how long that took; seconds of a processor, here and in the backend; the time."""
    stop = asyncio.Event()
    began = time.monotonic()
    leading = asyncio.ensure_future(Leader(dsn, name="benchmark").run(stop))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching:
        unplanned = "select count(*) from pgsched.schedule where next_tick_at is null"
        while (await (await watching.execute(unplanned)).fetchone())[0]:  # type: ignore[index]
            await asyncio.sleep(0.2)
        planned = time.monotonic() - began
        await watching.execute("vacuum pgsched.schedule")  # (as autovacuum does within a minute)
        await asyncio.sleep(3)
        row = await (await watching.execute("select backend_pid from pgsched.leader")).fetchone()
    assert row is not None
    began, own, backend = time.monotonic(), time.process_time(), cpu_s(row[0])
    await asyncio.sleep(seconds)
    figures = planned, time.process_time() - own, cpu_s(row[0]) - backend, time.monotonic() - began
    stop.set()
    await leading
    return figures


def fill(connection: Any, many: int, every_s: int) -> None:
    connection.execute("truncate pgsched.schedule, pgsched.schedule_tick, pgsched.job, pgsched.ready, pgsched.waiting")
    connection.execute(
        """
        insert into pgsched.schedule (app, name, origin, jobs, every, anchor, timezone, catch_up, catch_up_limit, plan_after)
        select 'b', 's' || i, 'runtime', '[{"task": "t", "queue": "q"}]', make_interval(secs => %(every)s),
            date_trunc('second', now()) + make_interval(secs => i %% %(every)s), 'Europe/Paris', 'all', 10000, clock_timestamp()
        from generate_series(1, %(many)s) i
        """,
        {"many": many, "every": every_s},
    )
    connection.execute("analyze pgsched.schedule")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dsn")
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=86_400, help="seconds between two ticks of one schedule")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    with psycopg.connect(arguments.dsn, autocommit=True) as connection:
        fill(connection, arguments.many, arguments.every)
        planned, own, backend, passed = asyncio.run(lead(arguments.dsn, arguments.seconds))
        ticks = connection.execute(
            """
            select count(*), percentile_disc(array[0.5, 0.99, 1.0]) within group (order by extract(epoch from fired_at - tick_at) * 1000)
            from pgsched.schedule_tick where tick_at > clock_timestamp() - make_interval(secs => %s)
            """,
            (arguments.seconds,),
        ).fetchone()
    rate = ticks[0] / passed
    print(f"{arguments.many} schedules, each ticks every {arguments.every} s: {rate:.1f} ticks/s; planned in {planned:.1f} s")
    print(f"  the leader {100 * own / passed:.1f} % and its backend {100 * backend / passed:.1f} % of a core")
    if ticks[0]:
        print("  lateness " + " / ".join(f"{float(ms):.1f}" for ms in ticks[1]) + " ms (median, 99 %, most)")


if __name__ == "__main__":
    main()
