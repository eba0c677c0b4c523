"""The demo's App: one task that reads the real changes of a time zone over a decade.

`pgsched demo` runs it; so does `pgsched worker pgsched.demo:app` on any database with the schema.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from typing_extensions import TypedDict

import pgsched

FIRST_YEAR, LAST_YEAR = 2016, 2025

app = pgsched.App("demo")


class Changes(TypedDict):
    """What the task answers: each moment at which the zone's offset from UTC changed, and the offsets it had."""

    zone: str
    changes: list[str]
    offsets_h: list[float]


@app.task(retry=pgsched.Exponential(max_attempts=3, first=timedelta(milliseconds=300)))
def read_zone(zone: str) -> Changes:
    """Find every change of the zone's offset in the decade, to the second.

    Antarctic stations do not answer at the first attempt, so that there is something to retry.
    """
    if zone.startswith("Antarctica/") and pgsched.current_job().attempt == 1:
        raise ConnectionError(f"{zone} did not answer: snowed in")
    info = ZoneInfo(zone)
    end = datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC)
    moment = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)
    changes: list[str] = []
    offsets = [_offset(info, moment)]
    while moment < end:
        later = moment + timedelta(days=1)
        if _offset(info, later) != offsets[-1]:
            changes.append(_change_between(info, moment, later).isoformat())
            offsets.append(_offset(info, later))
        moment = later
    return {"zone": zone, "changes": changes, "offsets_h": sorted({o / 3600 for o in offsets})}


def _change_between(info: ZoneInfo, low: datetime, high: datetime) -> datetime:
    before = _offset(info, low)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if _offset(info, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _offset(info: ZoneInfo, moment: datetime) -> float:
    offset = moment.astimezone(info).utcoffset()
    assert offset is not None
    return offset.total_seconds()
