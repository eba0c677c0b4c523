"""What `pgsched demo` shows: the jobs' progress, then what came of them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import psycopg
from psycopg import sql
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pgsched import dsn as dsns
from pgsched import embedded, migrate
from pgsched.cli.output import console
from pgsched.demo import FIRST_YEAR, LAST_YEAR, app, read_zone
from pgsched.errors import PgschedError
from pgsched.supervisor.child import ChildWorker

_LIMIT_S = 55.0
_SCHEMA = "pgsched"


def run(data: Path | None, dsn: str | None) -> int:
    """Run the demo on an embedded Postgres, or on the database at `dsn`; its exit code."""
    with _database(data, dsn) as database:
        migrate.upgrade(database, schema=_SCHEMA)
        app.use(database)
        zones = sorted(zone for zone in available_timezones() if zone not in ("localtime", "Factory"))
        began = time.monotonic()
        ids = [job.id for job in app.enqueue_many(read_zone.bind(zone) for zone in zones)]
        app.close()
        with ChildWorker(
            ["worker", "pgsched.demo:app", "--concurrency", "16", "--no-leader", "--log-level", "warning"], database
        ) as worker:
            with dsns.connect(database, autocommit=True) as connection:
                counts = _watch(connection, ids)
                seconds = time.monotonic() - began
                rows = _top(connection, ids)
                retries = _one(
                    connection, "select count(*) from {}.job_errors where job_id = any(%s) and state = 'retried'", ids
                )
            worker.stop()
        _report(database, rows, ids)
    done = counts.get("succeeded", 0)
    changes = sum(row["changes"] for row in rows)
    print(
        f"{done} of {len(ids)} zones read: {changes} clock changes from {FIRST_YEAR} to {LAST_YEAR}, {retries} attempts retried, "
        f"{counts.get('failed', 0)} jobs failed, in {seconds:.1f} s ({len(ids) / seconds:.0f} jobs a second)."
    )
    return 0 if done == len(ids) else 1


@contextlib.contextmanager
def _database(data: Path | None, dsn: str | None) -> Iterator[str]:
    if dsn is not None and dsn != "embedded":
        yield dsns.resolve(dsn)
        return
    with embedded.start(data) as server:
        print(f"Postgres {'was already running' if server.reused else 'runs'} ({server.dsn})", flush=True)
        yield server.dsn


def _watch(connection: psycopg.Connection[Any], ids: list[int]) -> dict[str, int]:
    """Follow the jobs until all have ended; how many are in each state."""
    out = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=out, disable=not out.is_terminal)
    deadline = time.monotonic() + _LIMIT_S
    with progress:
        bar = progress.add_task("reading zones", total=len(ids))
        while True:
            counts = dict(
                _all(connection, "select state, count(*) from {}.jobs where id = any(%s) group by state", ids)
            )
            ended = counts.get("succeeded", 0) + counts.get("failed", 0)
            what = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
            progress.update(bar, completed=ended, description=what)
            if ended == len(ids):
                return counts
            if time.monotonic() > deadline:
                raise PgschedError(f"the demo has not ended in {_LIMIT_S:.0f} s: {what}")
            time.sleep(0.1 if sys.stdout.isatty() else 0.3)


def _top(connection: psycopg.Connection[Any], ids: list[int]) -> list[dict[str, Any]]:
    rows = _all(
        connection,
        "select id, result ->> 'zone', jsonb_array_length(result -> 'changes'), result -> 'offsets_h', attempt from {}.jobs "
        "where id = any(%s) and state = 'succeeded' order by 3 desc, 2",
        ids,
    )
    return [dict(zip(("id", "zone", "changes", "offsets", "attempts"), row, strict=True)) for row in rows]


def _report(database: str, rows: list[dict[str, Any]], ids: list[int]) -> None:
    table = Table(
        title=f"zones with the most clock changes, {FIRST_YEAR} to {LAST_YEAR}", title_justify="left", box=None
    )
    for column in ("job", "zone", "changes", "hours from UTC", "attempts"):
        table.add_column(column, justify="left" if column == "zone" else "right")
    snowed_in = [row for row in rows if row["attempts"] > 1][:2]
    for row in rows[:8] + [row for row in snowed_in if row not in rows[:8]]:
        hours = " ".join(f"{hour:+g}" for hour in row["offsets"])
        table.add_row(str(row["id"]), row["zone"], str(row["changes"]), hours, str(row["attempts"]))
    out = console()
    out.print(table)
    out.print("\nLook for yourself (psql while a server runs, for example beside `pgsched dev`):", markup=False)
    out.print(f"  psql '{database}'", markup=False)
    out.print(
        f"  select id, state, attempt, result ->> 'zone' as zone from pgsched.jobs where id >= {ids[0]} limit 10;",
        markup=False,
    )
    out.print(
        "  select job_id, attempt, state, error from pgsched.job_errors order by ended_at desc limit 10;\n",
        markup=False,
    )


def _all(connection: psycopg.Connection[Any], text: str, ids: list[int]) -> list[tuple[Any, ...]]:
    query = sql.SQL(text).format(sql.Identifier(_SCHEMA))
    return connection.execute(query, (ids,)).fetchall()


def _one(connection: psycopg.Connection[Any], text: str, ids: list[int]) -> Any:
    return _all(connection, text, ids)[0][0]
