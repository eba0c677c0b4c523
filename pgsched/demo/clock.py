"""The demo's schedule: one that ticks each two seconds in another zone, with the time there and UTC side by side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from rich.table import Table

from pgsched.cli.output import console
from pgsched.demo import app, look_at_the_clock
from pgsched.errors import PgschedError
from pgsched.supervisor.leading import Leading

_CRON, _ELSEWHERE, _TICKS = "*/2 * * * * *", "Asia/Kathmandu", 3
_QUERY = """
    select j.id, f.result #>> '{}', to_char(t.tick_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
        extract(epoch from t.lateness) * 1000
    from pgsched.schedule_ticks t
        join pgsched.job j on j.id = t.job_id
        join pgsched.finished f on f.job_id = j.id and f.state = 'succeeded'
    where t.name = 'clock' and t.app = 'demo' and t.fired_at >= %s
    order by t.tick_at
    limit %s
"""


@contextlib.contextmanager
def ticking(database: str, schema: str) -> Iterator[None]:
    """The schedule is there meanwhile, and somebody leads: its ticks are a leader's to make."""
    app.schedules.put("clock", look_at_the_clock.bind(_ELSEWHERE), _CRON, _ELSEWHERE)
    leading = Leading(database, schema)
    try:
        yield
    finally:
        leading.stop()
        leading.join(5)
        app.schedules.remove("clock")


def report(connection: psycopg.Connection[Any], since: Any, limit_s: float) -> None:
    """Wait for the first ticks since then whose jobs have ended, and show them."""
    deadline = time.monotonic() + limit_s
    while len(rows := connection.execute(_QUERY, (since, _TICKS)).fetchall()) < _TICKS:
        if time.monotonic() > deadline:
            raise PgschedError(f"the demo's schedule has not ticked {_TICKS} times in {limit_s:.0f} s")
        time.sleep(0.1)
    table = Table(title=f'a schedule, "{_CRON}" in {_ELSEWHERE}', title_justify="left", box=None)
    for column in ("job", "there", "UTC", "made after"):
        table.add_column(column, justify="right" if column in ("job", "made after") else "left")
    for job, there, utc, late in rows:
        table.add_row(str(job), there.replace("T", " "), utc, f"{late:.0f} ms")
    console().print(table)
    print()
