"""`pgsched demo` as `make demo` runs it: everything on an embedded Postgres of its own, found afterwards on its disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import available_timezones

import psycopg

from pgsched import embedded
from pgsched.demo import regions, zones_of

NEW_YORK = "select at, before_h, after_h from pgsched_demo.clock_change where zone = 'America/New_York' order by at"


def test_the_demo_loads_every_change_once_repairs_what_fails_and_says_so_in_its_last_line() -> None:
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
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        last = ran.stdout.strip().splitlines()[-1]
        with embedded.start(data) as server, psycopg.connect(server.dsn) as session:
            jobs = session.execute("select d.name, j.state, j.result from pgsched.jobs j join pgsched.job d on d.id = j.id where d.tick_at is null").fetchall()
            ticks = session.execute("select j.tick_at, f.result from pgsched.job j join pgsched.finished f on f.job_id = j.id where j.tick_at is not null").fetchall()
            assert session.execute("select * from pgsched.schedules").fetchall() == []
            errors = session.execute("select j.name, e.state, e.error_type from pgsched.job_errors e join pgsched.job j on j.id = e.job_id").fetchall()
            zones, changes, in_regions = session.execute(
                "select count(distinct zone), count(*), count(distinct region) from pgsched_demo.clock_change"
            ).fetchone() or (0, 0, 0)
            new_york = session.execute(NEW_YORK).fetchall()
            assert session.execute("select * from pgsched.check_invariants()").fetchall() == []
    assert {state for _, state, _ in jobs} == {"succeeded"}
    assert len(jobs) == 3 * len(regions()) + 1 == 31
    assert errors == [("load Antarctica", "failed", "ForeignKeyViolation")]
    assert "load Antarctica failed" in ran.stdout and "validate skipped" in ran.stdout
    assert re.search(r"load Antarctica, failed\) runs again\njob \d+ \(validate, skipped\) waits again", ran.stdout)
    results = {name: result for name, _, result in jobs}
    assert results["validate"] == {"zones": zones, "changes": changes}
    assert sum(results[f"load {region}"] for region in regions()) == changes > 4000
    assert in_regions == sum(results[f"load {region}"] > 0 for region in regions()) and zones > 200
    read = {zone for region in regions() for zone in results[f"extract {region}"]}
    assert read == {zone for zone in available_timezones() if zone not in ("localtime", "Factory")}
    assert last.startswith(f"31 of 31 jobs succeeded, 1 of them after a repair: {changes} clock changes of {zones} zones, 2016 to 2025, are in")
    # A schedule ticked in another zone, and both times stand side by side.
    assert len(ticks) >= 3
    for tick, shown in sorted(ticks)[:3]:
        local = datetime.fromisoformat(shown)
        assert (local, local.utcoffset()) == (tick, timedelta(hours=5, minutes=45))
        assert f"{local:%Y-%m-%d %H:%M:%S}+05:45" in ran.stdout and f"{tick.astimezone(UTC):%Y-%m-%d %H:%M:%S}" in ran.stdout
    # What is in the table is what really happened: the law of 2005 gives New York two changes a year, at 2:00 local time.
    assert new_york[0] == (datetime(2016, 3, 13, 7, tzinfo=UTC), -5, -4)
    assert len(new_york) == 20


def test_every_zone_is_in_one_region() -> None:
    zones = [zone for region in regions() for zone in zones_of(region)]
    assert len(zones) == len(set(zones)) > 400
