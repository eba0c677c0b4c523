"""When a schedule ticks: the one home of the cron rules.

A *star* text, whose minute or hour begins with `*`, ticks at every instant at which the clock on the wall shows a matching time:
no pause and no bunch where the clocks change. Any other names wall-clock times, and each of them comes once: the first time in
an overlap; at the end of a gap of at most `LONGEST_GAP`, where all that fall into it make one tick; in a longer gap, a day that
the calendar leaves out, not at all. So does Vixie's cron. docs/schedules.md has the rules for users.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from pgsched.crontext import CronText
from pgsched.errors import ScheduleError, shown
from pgsched.zones import EPOCH, FIRST, HORIZON, NEAR, zone

LONGEST_GAP = 3 * 3600

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_FEW = 32
"""So many ticks are walked through rather than split."""


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed interval, made by `every`: ticks at `anchor` and at each whole number of intervals before and after it."""

    interval: timedelta
    anchor: datetime = _EPOCH

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not isinstance(self.interval, timedelta):
            raise ScheduleError(f"every: interval is {self.interval!r}, it must be a timedelta")
        if not _SECOND <= self.interval <= timedelta(days=36525) or self.interval.microseconds:
            raise ScheduleError(
                f"every: interval is {self.interval}, it must be whole seconds, at least 1 and at most 100 years"
            )
        if _aware("every: anchor", self.anchor).microsecond:
            raise ScheduleError(f"every: anchor is {self.anchor}, it must be a whole second")


def every(interval: timedelta, anchor: datetime | None = None) -> Every:
    """For a schedule, in place of a cron text: each `interval`, counted from `anchor` (1970-01-01T00:00 UTC if not given).

    No change of clocks shifts it. Raises `ScheduleError` for an interval below 1 second or with a fraction of one, and for an
    anchor without a zone.
    """
    return Every(interval) if anchor is None else Every(interval, anchor)


class Tick(NamedTuple):
    """The instant, in UTC; the wall-clock time that it is for, naive; for people, what a change of clocks has done to it."""

    at: datetime
    nominal: datetime
    remark: str | None


def next_ticks(cron: str | Every, timezone: str = "UTC", *, after: datetime, count: int) -> list[datetime]:
    """The next `count` ticks after `after`, not at it, in UTC; fewer only where there are no more before the year 9999.

    `cron` is a cron text (five fields; six with the second first; `@daily` and the like) or `every(...)`; `timezone` is an IANA
    name. Raises `ScheduleError` for what cannot be meant, a naive `after` among it.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ScheduleError(f"count is {count!r}, it must be an integer of at least 1")
    return [tick.at for tick in islice(rhythm(cron, timezone).after(after), count)]


def rhythm(cron: str | Every, timezone: str) -> Rhythm:
    """All ticks of a cron text or `every(...)` in a zone; kept, so that asking again costs nothing. Raises `ScheduleError`."""
    if not isinstance(cron, str | Every):
        raise ScheduleError(f"cron is {shown(repr(cron))}, it must be a cron text or every(...)")
    if not isinstance(timezone, str):
        raise ScheduleError(f'timezone is {shown(repr(timezone))}, it must be an IANA name, such as "America/New_York"')
    return _rhythm(cron, timezone)


class Rhythm:
    """The ticks of a cron text or of `every(...)` in a zone."""

    each_wall_clock_once: bool
    """Whether each wall-clock time ticks once (no star text, no `every`)."""

    def __init__(self, cron: str | Every, timezone: str) -> None:
        self._zone = zone(timezone)
        self._cron = cron if isinstance(cron, Every) else CronText(cron)
        self.each_wall_clock_once = isinstance(self._cron, CronText) and not self._cron.star

    def after(self, instant: datetime, nominal: datetime | None = None) -> Iterator[Tick]:
        """The ticks after `instant`, in order, each computed when it is asked for; the last is in the year 9998.

        Where `each_wall_clock_once`, those for `nominal` and before are left out: so a leader whose zone data differ from the
        last one's makes no tick for a wall-clock time that has had its own.
        """
        ticks = self._ticks(_whole(_aware("after", instant)) + 1, HORIZON)
        if nominal is None or not self.each_wall_clock_once:
            return ticks
        if nominal.tzinfo is not None:
            raise ScheduleError(f"nominal is {nominal}, it must be a wall-clock time, without a zone")
        return (tick for tick in ticks if tick.nominal > nominal)

    def last(self, until: datetime, count: int, since: datetime) -> list[Tick]:
        """The newest `count` ticks after `since` up to `until`, in order; the cost goes by `count`, not by the time between."""
        low, high = _whole(_aware("since", since)) + 1, _whole(_aware("until", until))
        return self._newest(low, min(high, HORIZON - 1), count)

    def _newest(self, low: int, high: int, count: int) -> list[Tick]:
        """The newest ticks from `low` to `high`: by halves, the later one first, until few are left to walk through."""
        if low > high or count < 1:
            return []
        found = list(islice(self._ticks(low, high + 1), _FEW + 1))
        if len(found) <= _FEW:
            return found[-count:]
        middle = (low + high) // 2
        newest = self._newest(middle + 1, high, count)
        return self._newest(low, middle, count - len(newest)) + newest

    def _ticks(self, start: int, end: int) -> Iterator[Tick]:
        """The ticks from `start` up to, not including, `end`."""
        start = max(start, FIRST)
        if isinstance(self._cron, Every):
            return self._intervals(self._cron, start, end)
        return self._cron_ticks(self._cron, start, end)

    def _intervals(self, cron: Every, start: int, end: int) -> Iterator[Tick]:
        interval, anchor = cron.interval // _SECOND, _whole(cron.anchor)
        for at in range(start + (anchor - start) % interval, end, interval):
            wall = at + self._zone.stretch(at).offset
            yield _tick(at, wall, _which(wall, at, self._zone.instants(wall)))

    def _cron_ticks(self, text: CronText, start: int, end: int) -> Iterator[Tick]:
        once = self.each_wall_clock_once
        while start < end:
            begins, ends, offset, before = self._zone.stretch(start)
            limit = min(ends, end) + offset
            wall = text.next(start + offset, limit)
            missed = self._missed(text, begins + before, begins + offset) if once and start == begins else []
            if missed and not (wall == start + offset < limit and self._zone.instants(wall)[0] == start):
                yield _tick(start, missed[-1], _moved(missed))
                missed = []
            while wall < limit:
                at = wall - offset
                same = [at] if begins + NEAR <= at < ends - NEAR else self._zone.instants(wall)
                if at == same[0] or not once:
                    yield _tick(at, wall, _also(missed) if missed else _which(wall, at, same))
                    missed = []
                wall = text.next(wall + 1, limit)
            start = ends

    def _missed(self, text: CronText, low: int, high: int) -> list[int]:
        """The matching times in a gap of the wall clock, if there is one, and not too long."""
        missed: list[int] = []
        wall = text.next(low, high) if high - low <= LONGEST_GAP else high
        while wall < high:
            if not self._zone.instants(wall):
                missed.append(wall)
            wall = text.next(wall + 1, high)
        return missed


@functools.lru_cache(maxsize=16384)
def _rhythm(cron: str | Every, timezone: str) -> Rhythm:
    return Rhythm(cron, timezone)


def _aware(name: str, instant: datetime) -> datetime:
    if not isinstance(instant, datetime):
        raise ScheduleError(f"{name} is {shown(repr(instant))}, it must be a datetime")
    if instant.utcoffset() is None:
        raise ScheduleError(f"{name} is {instant}, without a zone; give it one: datetime(..., tzinfo=timezone.utc)")
    return instant


def _whole(instant: datetime) -> int:
    """The last whole second up to the instant."""
    return (instant - _EPOCH) // _SECOND


def _tick(at: int, wall: int, remark: str | None) -> Tick:
    return Tick(_EPOCH + timedelta(seconds=at), EPOCH + timedelta(seconds=wall), remark)


def _which(wall: int, at: int, same: list[int]) -> str | None:
    """Which one it is, where the clocks show a time more than once."""
    if len(same) < 2:
        return None
    number = ("first", "second", "third")[same.index(at)]
    return f"{number} of {('two', 'three')[len(same) - 2]} {_clock(wall)}"


def _moved(missed: list[int]) -> str:
    return f"moved to the end of the gap: {_not_there(missed)}"


def _also(missed: list[int]) -> str:
    return f"also for what the gap leaves out: {_not_there(missed)}"


def _not_there(missed: list[int]) -> str:
    if len(missed) == 1:
        return f"{_clock(missed[0])} does not exist on this day"
    between = "and" if len(missed) == 2 else "to"
    return f"{_clock(missed[0])} {between} {_clock(missed[-1])} do not exist on this day"


def _clock(wall: int) -> str:
    time = (EPOCH + timedelta(seconds=wall)).time()
    return time.strftime("%H:%M:%S" if time.second else "%H:%M")
