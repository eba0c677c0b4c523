"""What idle standbys cost the server: real `Leader` objects in one process, one of which leads while the others try.

    python benchmarks/standbys.py [--standbys 500] [--seconds 20]

It starts a Postgres of its own (the tests' `Server`: the embedded one takes 200 sessions) and prints statements a second, CPU seconds a second of all processes
of the server (from /proc: Linux only) and of this one, and sessions. Figures of a shared machine: read what a standby costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from pgsched import migrate
from pgsched.leader import Leader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from harness.server import Server, installations


def parent(pid: int) -> int:
    """The process that started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def cpu_s(postmaster: int) -> float:
    """The CPU seconds of a process, its children, and those of its children that have ended."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        pid, parent = int(stat.parent.name), int(fields[1])
        if postmaster in (pid, parent):
            ticks += sum(int(field) for field in fields[11 : 15 if pid == postmaster else 13])
    return ticks / os.sysconf("SC_CLK_TCK")


async def look(watch: psycopg.AsyncConnection[Any]) -> tuple[int, int]:
    """Transactions so far (each statement of a leader is one), and sessions of leaders."""
    row = await (
        await watch.execute(
            "select (select xact_commit + xact_rollback from pg_stat_database where datname = current_database()), "
            "(select count(*) from pg_stat_activity where application_name like 'pgsched leader%')"
        )
    ).fetchone()
    assert row is not None
    return row[0], row[1]


async def measure(dsn: str, standbys: int, seconds: float) -> None:
    """Let them stand, wait until all do, then measure and print."""
    stop = asyncio.Event()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watch:
        postmaster = parent(watch.info.backend_pid)
        leaders = [Leader(dsn, name=f"standby {i}") for i in range(standbys + 1)]
        running = []
        for leader in leaders:  # a few at a time: this is not about 500 handshakes at once
            running.append(asyncio.create_task(leader.run(stop)))
            await asyncio.sleep(0.02)
        while (await look(watch))[1] < len(leaders):
            await asyncio.sleep(0.1)
        await asyncio.sleep(3)
        before, server, own, began = (await look(watch))[0], cpu_s(postmaster), time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        after, sessions = await look(watch)
        took = time.monotonic() - began
        server, own = (cpu_s(postmaster) - server) / took, (time.process_time() - own) / took
        leading = sum(leader.leads for leader in leaders)
        stop.set()
        await asyncio.gather(*running)
    a_second = (after - before) / took
    print(f"{standbys} standbys and a leader ({leading} believes to lead), for {took:.0f} s")
    print(f"sessions             {sessions:>9}   ({sessions / len(leaders):.2f} a process)")
    print(f"statements/s         {a_second:>9.1f}   ({a_second / len(leaders):.2f} a process)")
    print(f"server's CPU, s/s    {server:>9.3f}   ({1e6 * server / max(a_second, 1):.0f} us a statement)")
    print(f"this process, s/s    {own:>9.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--standbys", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    with Server(installations()[0], fsync=True, settings={"max_connections": str(given.standbys + 20)}) as server:
        migrate.upgrade(server.conninfo())
        asyncio.run(measure(server.conninfo(), given.standbys, given.seconds))


if __name__ == "__main__":
    main()
