"""A time zone, by its IANA name: stretches of time with one offset each, and the instants at which its clocks show a given time.

All times are whole seconds since 1970-01-01T00:00, of UTC or, as `wall`, of the clock on the wall there.
"""

from __future__ import annotations

import difflib
import functools
import re
from bisect import bisect_right
from datetime import datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pgsched.errors import ScheduleError, shown

DAY = 86400
EPOCH = datetime(1970, 1, 1)
FIRST = int((datetime(1, 1, 6) - EPOCH).total_seconds())
"""There are no ticks before: west of Greenwich Python could not hold the wall clock's time."""
HORIZON = int((datetime(9999, 1, 1) - EPOCH).total_seconds())
"""There are no ticks from here on."""
NEAR = 2 * DAY
"""Two offsets are less than this apart, so whatever shows the same wall clock twice lies within."""

_MEANT = {
    "EST": "America/New_York",
    "EDT": "America/New_York",
    "ET": "America/New_York",
    "EST5EDT": "America/New_York",
    "CST": "America/Chicago",
    "CDT": "America/Chicago",
    "CT": "America/Chicago",
    "CST6CDT": "America/Chicago",
    "MST": "America/Denver (America/Phoenix keeps it all year)",
    "MDT": "America/Denver",
    "MT": "America/Denver",
    "MST7MDT": "America/Denver",
    "PST": "America/Los_Angeles",
    "PDT": "America/Los_Angeles",
    "PT": "America/Los_Angeles",
    "PST8PDT": "America/Los_Angeles",
    "AKST": "America/Anchorage",
    "AKDT": "America/Anchorage",
    "HST": "Pacific/Honolulu",
    "AST": "America/Halifax",
    "ADT": "America/Halifax",
    "NST": "America/St_Johns",
    "NDT": "America/St_Johns",
    "BRT": "America/Sao_Paulo",
    "ART": "America/Argentina/Buenos_Aires",
    "BST": "Europe/London",
    "WET": "Europe/Lisbon",
    "WEST": "Europe/Lisbon",
    "CET": "Europe/Paris or Europe/Berlin",
    "CEST": "Europe/Paris or Europe/Berlin",
    "MEZ": "Europe/Berlin",
    "MESZ": "Europe/Berlin",
    "MET": "Europe/Brussels",
    "EET": "Europe/Athens or Europe/Helsinki",
    "EEST": "Europe/Athens or Europe/Helsinki",
    "MSK": "Europe/Moscow",
    "TRT": "Europe/Istanbul",
    "SAST": "Africa/Johannesburg",
    "CAT": "Africa/Maputo",
    "EAT": "Africa/Nairobi",
    "WAT": "Africa/Lagos",
    "GST": "Asia/Dubai",
    "PKT": "Asia/Karachi",
    "IST": "Asia/Kolkata (or Europe/Dublin, Asia/Jerusalem)",
    "WIB": "Asia/Jakarta",
    "ICT": "Asia/Bangkok",
    "SGT": "Asia/Singapore",
    "HKT": "Asia/Hong_Kong",
    "JST": "Asia/Tokyo",
    "KST": "Asia/Seoul",
    "AWST": "Australia/Perth",
    "ACST": "Australia/Adelaide (Australia/Darwin has no summer time)",
    "ACDT": "Australia/Adelaide",
    "AEST": "Australia/Sydney (Australia/Brisbane has no summer time)",
    "AEDT": "Australia/Sydney",
    "NZST": "Pacific/Auckland",
    "NZDT": "Pacific/Auckland",
    "Z": "UTC",
}
"""Abbreviations name an offset, several places, or both; refused also where the zone database knows a zone of that name."""

_NO_PLACES = {"Factory", "localtime"}


class Stretch(NamedTuple):
    """From `start` up to, not including, `end` the clocks are `offset` seconds ahead of UTC; just before, `before` seconds."""

    start: int
    end: int
    offset: int
    before: int


class Zone:
    """The clocks of one zone. What the zone database says about a year is looked up once in the life of the process."""

    def __init__(self, name: str) -> None:
        self.info = _info(name)
        self._years: dict[int, tuple[list[int], list[Stretch]]] = {}

    def stretch(self, at: int) -> Stretch:
        """The stretch in which the instant lies, cut at the turn of the (UTC) year."""
        year = (EPOCH + timedelta(seconds=at)).year
        starts, stretches = self._years.get(year) or self._look_up(year)
        return stretches[bisect_right(starts, at) - 1]

    def instants(self, wall: int) -> list[int]:
        """When the clocks show this: mostly once, in an overlap twice, in a gap never; in order."""
        found = []
        at = wall - NEAR
        while at < wall + NEAR:
            start, end, offset, _ = self.stretch(at)
            if start <= wall - offset < end:
                found.append(wall - offset)
            at = end
        return found

    def _offset(self, at: int) -> int:
        offset = self.info.fromutc((EPOCH + timedelta(seconds=at)).replace(tzinfo=self.info)).utcoffset()
        assert offset is not None
        return offset.days * DAY + offset.seconds

    def _look_up(self, year: int) -> tuple[list[int], list[Stretch]]:
        """A look at each day finds every change: in all zones, since there are any, two were at least 95 hours apart."""
        start = max(FIRST - 3 * DAY, int((datetime(year, 1, 1) - EPOCH).total_seconds()))
        end = int((datetime(year, 12, 31) - EPOCH).total_seconds()) + (DAY if year < 9999 else 0)
        changes: list[tuple[int, int, int]] = []
        before = offset = first = self._offset(start - 1)
        for low in range(start - 1, end - 1, DAY):
            high = min(low + DAY, end - 1)
            offset = self._offset(high)
            if offset != before:
                changes.append((self._change(low, high, offset), before, offset))
                before = offset
        if not changes or changes[0][0] > start:
            changes.insert(0, (start, first, first))
        ends = [*(change[0] for change in changes[1:]), end]
        stretches = [Stretch(at, until, new, old) for (at, old, new), until in zip(changes, ends, strict=True)]
        self._years[year] = made = [stretch.start for stretch in stretches], stretches
        return made

    def _change(self, low: int, high: int, offset: int) -> int:
        """The first second with the new offset, after `low` and not after `high`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._offset(middle) == offset else (middle, high)
        return high


@functools.lru_cache(maxsize=1024)
def zone(name: str) -> Zone:
    """The zone of that name. Raises `ScheduleError` for one that is unknown, and for an abbreviation."""
    return Zone(name)


def _info(name: str) -> ZoneInfo:
    meant = _MEANT.get(name.upper())
    if meant is not None:
        raise ScheduleError(
            f'timezone "{name}" is an abbreviation, which says nothing about summer time or stands for several places; '
            f"name a place: {meant}"
        )
    if name in _NO_PLACES:
        raise ScheduleError(f'timezone "{name}" is no place; name one, such as America/New_York, or UTC')
    # (What begins with right/ counts leap seconds, which zoneinfo does not.)
    if re.fullmatch(r"(?!posix/|right/)[A-Za-z][A-Za-z0-9_+/-]*", name, re.ASCII):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # (also what is a folder, as "America" is)
            pass
    raise ScheduleError(f'timezone "{shown(name)}" is unknown: {_advice(name[:80])}')


def _advice(name: str) -> str:
    known = available_timezones() - _MEANT.keys() - _NO_PLACES
    if not known:
        return "this system has no zone database at all; install the package tzdata"
    if re.fullmatch(r"(UTC|GMT)?[+-]?\d{1,2}(:?\d\d)?", name, re.ASCII | re.IGNORECASE):
        return "an offset is no zone; name a place, such as America/New_York, whose clocks are followed, or UTC"
    asked = re.sub(r"[ _-]+", "_", name.strip()).lower()
    whole = {zone_name.lower(): zone_name for zone_name in sorted(known)}
    places = {key.rpartition("/")[2]: zone_name for key, zone_name in whole.items()}
    close = [
        whole.get(key) or places[key] for key in difflib.get_close_matches(asked, [*whole, *places], n=5, cutoff=0.75)
    ]
    if not close:
        return "it takes a name of the IANA zone database, such as America/New_York, or UTC"
    return f"did you mean {' or '.join(list(dict.fromkeys(close))[:3])}?"
