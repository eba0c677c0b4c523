"""`pgsched demo` as `make demo` runs it: everything on an embedded Postgres of its own, found afterwards on its disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zoneinfo import available_timezones

import psycopg
from psycopg.rows import dict_row

from pgsched import embedded


def test_the_demo_reads_every_zone_retries_and_says_so_in_its_last_line() -> None:
    with tempfile.TemporaryDirectory(prefix="pgsched-demo-") as folder:
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "HOME"))}
        ran = subprocess.run(
            [sys.executable, "-m", "pgsched", "demo", "--data", str(data)],
            env=environment | {"HOME": str(Path(folder) / "nowhere")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        last = ran.stdout.strip().splitlines()[-1]
        with embedded.start(data) as server, psycopg.connect(server.dsn, row_factory=dict_row) as session:
            rows = session.execute("select state, attempt, result from pgsched.jobs").fetchall()
    assert {row["state"] for row in rows} == {"succeeded"}
    results = {row["result"]["zone"]: row["result"]["changes"] for row in rows}
    assert len(results) == len(rows) > 400
    assert results.keys() >= {zone for zone in available_timezones() if zone.startswith(("America/", "Europe/"))}
    changes = sum(map(len, results.values()))
    retried = sum(row["attempt"] > 1 for row in rows)
    assert retried == sum(zone.startswith("Antarctica/") for zone in results) > 0
    counts = f"{len(rows)} of {len(rows)} zones read: {changes} clock changes from 2016 to 2025, {retried} attempts retried, 0 jobs failed"
    assert last.startswith(counts)
    # What the result says is what really happened: the law of 2005 gives New York two changes a year, at 2:00 local time.
    assert results["America/New_York"][0] == "2016-03-13T07:00:00+00:00"
    assert len(results["America/New_York"]) == 20
