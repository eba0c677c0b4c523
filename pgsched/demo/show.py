"""What `pgsched demo` shows: the workflow as it runs, the repair of what fails, then what came of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table

from pgsched import dsn as dsns
from pgsched import embedded, migrate
from pgsched.calls import Calls
from pgsched.cli.output import console
from pgsched.cli.workflows import Row, as_tree
from pgsched.demo import FIRST_YEAR, LAST_YEAR, LEFT_OUT, TABLES, app, regions, workflow
from pgsched.demo.clock import report, ticking
from pgsched.errors import PgschedError
from pgsched.run import run as send
from pgsched.supervisor.child import ChildWorker
from pgsched.workflow_run import WorkflowRun

_LIMIT_S = 55.0
_SCHEMA = "pgsched"
_ENDED = ("succeeded", "failed", "cancelled", "skipped")
Connection = psycopg.Connection[Any]


def run(data: Path | None, dsn: str | None) -> int:
    """Run the demo on an embedded Postgres, or on the database at `dsn`; its exit code."""
    with _database(data, dsn) as database, contextlib.closing(app):
        migrate.upgrade(database, schema=_SCHEMA)
        app.use(database)
        began = time.monotonic()
        with dsns.connect(database, autocommit=True) as connection:
            _make_tables(connection)
            clocks = workflow(regions()).enqueue()
            arguments = ["worker", "pgsched.demo:app", "--concurrency", "16", "--no-leader", "--log-level", "error"]
            since = connection.execute("select clock_timestamp()").fetchone()
            with ticking(database, _SCHEMA), ChildWorker(arguments, database) as worker:
                failed = [row for row in _watch(connection, clocks, began) if row["state"] == "failed"]
                if failed:
                    _repair(connection, clocks)
                rows = _watch(connection, clocks, began)
                seconds = time.monotonic() - began
                done = [row for row in rows if row["state"] == "succeeded"]
                zones, changes = _report(connection, database, clocks)
                report(connection, since and since[0], _LIMIT_S)
                worker.stop()
    print(
        f"{len(done)} of {len(rows)} jobs succeeded, {len(failed)} of them after a repair: {changes} clock changes of {zones} "
        f"zones, {FIRST_YEAR} to {LAST_YEAR}, are in the table pgsched_demo.clock_change, once each, in {seconds:.1f} s."
    )
    return 0 if len(done) == len(rows) and len(failed) == 1 else 1


@contextlib.contextmanager
def _database(data: Path | None, dsn: str | None) -> Iterator[str]:
    if dsn is not None and dsn != "embedded":
        yield dsns.resolve(dsn)
        return
    with embedded.start(data) as server:
        print(f"Postgres {'was already running' if server.reused else 'runs'} ({server.dsn})", flush=True)
        yield server.dsn


def _make_tables(connection: Connection) -> None:
    """The demo's own tables, anew; one region is left out."""
    connection.execute(TABLES)
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into pgsched_demo.region values (%s)", [(region,) for region in regions() if region != LEFT_OUT]
        )


def _repair(connection: Connection, clocks: WorkflowRun) -> None:
    """What has failed is explained, its cause put right, and it runs again, with what was skipped because of it."""
    job = clocks.jobs[f"load {LEFT_OUT}"]
    print(
        f"\n{job.explain()}\nThe repair: insert into pgsched_demo.region values ('{LEFT_OUT}'), then retry job {job.id}."
    )
    connection.execute("insert into pgsched_demo.region values (%s)", (LEFT_OUT,))
    names = {one.id: name for name, one in clocks.jobs.items()}
    for job_id, was in job.retry().items():
        print(f"job {job_id} ({names[job_id]}, {was}) {'runs' if job_id == job.id else 'waits'} again")
    print(flush=True)


def _watch(connection: Connection, clocks: WorkflowRun, began: float) -> list[Row]:
    """Follow the workflow until all of its jobs have ended; the jobs. A tree that changes, or a line for each end."""
    call = Calls(_SCHEMA).workflow_jobs(clocks.id)
    out = console()
    rows: list[Row] = send(connection, call)
    told = {row["id"] for row in rows if row["state"] in _ENDED}
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(_tree(rows), console=out, auto_refresh=False)) if out.is_terminal else None
        while True:
            rows = send(connection, call)
            if live is not None:
                live.update(_tree(rows), refresh=True)
            for row in rows:
                if live is None and row["state"] in _ENDED and row["id"] not in told:
                    told.add(row["id"])
                    print(f"{time.monotonic() - began:5.1f} s  {row['name']} {row['state']}", flush=True)
            if all(row["state"] in _ENDED for row in rows):
                return rows
            if time.monotonic() > began + _LIMIT_S:
                raise PgschedError(
                    f"the demo has not ended in {_LIMIT_S:.0f} s: pgsched workflow {clocks.id} says how far it is"
                )
            time.sleep(0.1)


def _tree(rows: list[Row]) -> RenderableType:
    return as_tree("clock changes", rows)


def _report(connection: Connection, database: str, clocks: WorkflowRun) -> tuple[int, int]:
    """The zones with the most changes, and where to look; how many zones and changes there are in all."""
    table = Table(
        title=f"zones with the most clock changes, {FIRST_YEAR} to {LAST_YEAR}", title_justify="left", box=None
    )
    for column in ("zone", "changes", "hours from UTC"):
        table.add_column(column, justify="left" if column == "zone" else "right")
    for zone, changes, hours in connection.execute(
        "select zone, count(*), array_agg(distinct after_h order by after_h) from pgsched_demo.clock_change "
        "group by zone order by 2 desc, 1 limit 8"
    ):
        table.add_row(zone, str(changes), " ".join(f"{hour:+g}" for hour in hours))
    out = console()
    out.print()
    out.print(table)
    out.print("\nLook for yourself (while a server runs, for example beside `pgsched dev`):", markup=False)
    out.print(f"  PGSCHED_DSN='{database}' pgsched workflow {clocks.id}", markup=False, soft_wrap=True)
    out.print(f"  psql '{database}'", markup=False, soft_wrap=True)
    out.print("  select * from pgsched_demo.clock_change where zone = 'Africa/Casablanca' order by at;", markup=False)
    out.print("  select job_id, task, state, error from pgsched.job_errors order by ended_at desc;\n", markup=False)
    row = connection.execute("select count(distinct zone), count(*) from pgsched_demo.clock_change").fetchone()
    assert row is not None
    return row[0], row[1]
