"""The demo's App: a workflow that finds every change of the world's clocks in a decade and loads them into a table.

`pgsched demo` runs it; so does `pgsched worker pgsched.demo:app` on any database with the schema and the demo's tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import psycopg
from typing_extensions import TypedDict

import pgsched

FIRST_YEAR, LAST_YEAR = 2016, 2025
LEFT_OUT = "Antarctica"
"""The region that `make_tables` forgets, so that there is something to repair."""

TABLES = """
drop schema if exists pgsched_demo cascade;
create schema pgsched_demo;
create table pgsched_demo.region (name text primary key);
create table pgsched_demo.clock_change (
    region text not null references pgsched_demo.region,
    zone text not null,
    at timestamptz not null,
    before_h double precision not null,
    after_h double precision not null,
    primary key (zone, at)
);
"""

app = pgsched.App("demo")


class Change(TypedDict):
    """A change of a zone's clocks: the moment, and the hours from UTC before and after it."""

    zone: str
    at: datetime
    before_h: float
    after_h: float


class Totals(TypedDict):
    """What the table holds in the end."""

    zones: int
    changes: int


@app.task
def extract(region: str) -> dict[str, list[datetime]]:
    """Find, for each zone of a region, every moment in the decade at which its offset from UTC changed, to the second."""
    zones = zones_of(region)
    found: dict[str, list[datetime]] = {}
    for n, zone in enumerate(zones):
        pgsched.current_job().progress(n / len(zones))
        pgsched.current_job().raise_if_stopping()
        found[zone] = _changes(ZoneInfo(zone))
    return found


@app.task
def transform(changes: dict[str, list[datetime]]) -> list[Change]:
    """A row for each change: how the clocks stood before it and after it."""
    second = timedelta(seconds=1)
    return [
        {"zone": zone, "at": at, "before_h": _hours(info, at - second), "after_h": _hours(info, at)}
        for zone, info in ((zone, ZoneInfo(zone)) for zone in changes)
        for at in changes[zone]
    ]


@app.task(transactional=True)
def load(region: str, rows: list[Change]) -> int:
    """Write the rows of a region, in the transaction that ends the job: all of them exactly once, or none."""
    connection: psycopg.Connection[object] = pgsched.current_job().connection
    connection.cursor().executemany(
        "insert into pgsched_demo.clock_change (region, zone, at, before_h, after_h) values (%s, %s, %s, %s, %s)",
        [(region, row["zone"], row["at"], row["before_h"], row["after_h"]) for row in rows],
    )
    return len(rows)


@app.task(transactional=True)
def validate(loaded: list[int]) -> Totals:
    """What was loaded is there, once each, and New York's clocks changed twice a year, as the law of 2005 has it."""
    connection: psycopg.Connection[tuple[int, int, int]] = pgsched.current_job().connection
    row = connection.execute(
        "select count(distinct zone), count(*), count(*) filter (where zone = 'America/New_York') from pgsched_demo.clock_change"
    ).fetchone()
    assert row is not None
    zones, changes, in_new_york = row
    if changes != sum(loaded) or in_new_york != 2 * (LAST_YEAR - FIRST_YEAR + 1):
        raise ValueError(f"{sum(loaded)} changes were loaded, {changes} are there, {in_new_york} of them in New York")
    return {"zones": zones, "changes": changes}


def workflow(regions: Iterable[str]) -> pgsched.Workflow:
    """The whole: extract, transform and load each region, then validate."""
    changes = app.workflow("clock changes")
    loaded: list[int] = []
    for region, extracted in zip(regions, changes.map(extract, regions), strict=True):
        rows = changes.named(f"transform {region}").add(transform, extracted.result)
        loaded.append(changes.named(f"load {region}").add(load, region, rows.result).result)
    changes.add(validate, loaded)
    return changes


def regions() -> list[str]:
    """The regions of the time zone database: Africa, America, ..., and "elsewhere" for names without one."""
    return sorted({_region(zone) for zone in _zones()})


def zones_of(region: str) -> list[str]:
    """Its zones."""
    return sorted(zone for zone in _zones() if _region(zone) == region)


def _zones() -> list[str]:
    return [zone for zone in available_timezones() if zone not in ("localtime", "Factory")]


def _region(zone: str) -> str:
    name, slash, _ = zone.partition("/")
    return name if slash and name in _REGIONS else "elsewhere"


_REGIONS = ("Africa", "America", "Antarctica", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific")


def _changes(info: ZoneInfo) -> list[datetime]:
    """Every change in the decade: day after day, then to the second within the day."""
    moment, end = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC), datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC)
    found: list[datetime] = []
    hours = _hours(info, moment)
    while moment < end:
        later = moment + timedelta(days=1)
        if _hours(info, later) != hours:
            found.append(_change_between(info, moment, later))
            hours = _hours(info, later)
        moment = later
    return found


@app.task
def look_at_the_clock(zone: str) -> str:
    """What the clocks of the zone show at the tick that this job is for."""
    tick = pgsched.current_job().tick_at or datetime.now(UTC)
    return tick.astimezone(ZoneInfo(zone)).isoformat()


def _change_between(info: ZoneInfo, low: datetime, high: datetime) -> datetime:
    before = _hours(info, low)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if _hours(info, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _hours(info: ZoneInfo, moment: datetime) -> float:
    offset = moment.astimezone(info).utcoffset()
    assert offset is not None
    return offset.total_seconds() / 3600
