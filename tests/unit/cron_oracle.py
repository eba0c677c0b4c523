"""What the cron rules say, by walking: every UTC minute about a change of clocks is looked at, one by one.

Written from the rules alone: no cron library, nothing of pgsched, and of a zone only what its clocks show at an instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
WALKED = timedelta(days=2)
COMPARED = timedelta(days=1)
LONGEST_GAP = timedelta(hours=3)


@dataclass(frozen=True)
class Rule:
    """An expression, in sets: what each field allows. `last` is L; `nth` are (weekday, number) pairs, Sunday is 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    star: bool
    both: bool
    seconds: tuple[int, ...] = (0,)
    last: bool = False
    nth: tuple[tuple[int, int], ...] = ()

    def matches(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and wall.hour in self.hours and self.day_matches(wall)

    def day_matches(self, wall: datetime) -> bool:
        if wall.month not in self.months:
            return False
        weekday = wall.isoweekday() % 7
        by_month = wall.day in self.days or (self.last and (wall + timedelta(days=1)).day == 1)
        by_week = weekday in self.weekdays or (weekday, (wall.day - 1) // 7 + 1) in self.nth
        return (by_month and by_week) if self.both else (by_month or by_week)


def rule(**fields: Any) -> Rule:
    """A rule whose unnamed fields are `*`."""
    everything = {"minutes": range(60), "hours": range(24), "days": range(1, 32), "months": range(1, 13), "weekdays": range(7)}
    sets = {name: frozenset(fields.pop(name, every)) for name, every in everything.items()}
    return Rule(**sets, **fields)


EXPRESSIONS = {
    "*/5 * * * *": rule(minutes=range(0, 60, 5), star=True, both=True),
    "*/15 * * * *": rule(minutes=range(0, 60, 15), star=True, both=True),
    "30 * * * *": rule(minutes=[30], star=True, both=True),
    "*/20 0-3 * * *": rule(minutes=[0, 20, 40], hours=range(4), star=True, both=True),
    "0 0 * * *": rule(minutes=[0], hours=[0], star=False, both=True),
    "30 2 * * *": rule(minutes=[30], hours=[2], star=False, both=True),
    "30 1 * * *": rule(minutes=[30], hours=[1], star=False, both=True),
    "0,5,59 0-3,23 * * *": rule(minutes=[0, 5, 59], hours=[0, 1, 2, 3, 23], star=False, both=True),
    "0-59/10 1-23/2 * * mon-fri": rule(minutes=range(0, 60, 10), hours=range(1, 24, 2), weekdays=range(1, 6), star=False, both=True),
    "15 0,2 L,28-31 3,10,11 sun": rule(
        minutes=[15], hours=[0, 2], days=range(28, 32), last=True, months=[3, 10, 11], weekdays=[0], star=False, both=False
    ),
    "0 2,3 * * sun#1,sun#2,7#5": rule(minutes=[0], hours=[2, 3], weekdays=[], nth=((0, 1), (0, 2), (0, 5)), star=False, both=True),
    "15,45 30 0-2 * * *": rule(seconds=(15, 45), minutes=[30], hours=[0, 1, 2], star=False, both=True),
}
"""The twelve, each with what it means."""


def offset(zone: ZoneInfo, at: datetime) -> timedelta:
    found = at.astimezone(zone).utcoffset()
    assert found is not None and not found.seconds % 60, "after 2000 all offsets are whole minutes"
    return found


def transitions(zone: ZoneInfo, first: int, last: int) -> Iterator[datetime]:
    """When the clocks change from the year `first` up to, not including, `last`: a look each twelve hours, then by halves."""
    at, end, step = datetime(first, 1, 1, tzinfo=UTC), datetime(last, 1, 1, tzinfo=UTC), timedelta(hours=12)
    before = offset(zone, at)
    while at < end:
        later = at + step
        if (now := offset(zone, later)) != before:
            low, high = at, later
            while high - low > MINUTE:
                middle = low + (high - low) // MINUTE // 2 * MINUTE
                low, high = (low, middle) if offset(zone, middle) == now else (middle, high)
            yield high
            before = now
        at = later


@dataclass(frozen=True)
class Window:
    """The clocks of a zone around a change: from `start` on, each offset that they had, and for how many minutes."""

    start: datetime
    offsets: tuple[tuple[timedelta, int], ...]

    def walk(self) -> list[tuple[datetime, datetime]]:
        """Each UTC minute with what the clock on the wall shows."""
        each = [ahead for ahead, minutes in self.offsets for _ in range(minutes)]
        naive = self.start.replace(tzinfo=None)
        return [(self.start + number * MINUTE, naive + number * MINUTE + ahead) for number, ahead in enumerate(each)]


def window(zone: ZoneInfo, change: datetime) -> Window:
    """Each minute's offset is looked up."""
    start = change - WALKED
    each = (offset(zone, start + number * MINUTE) for number in range(2 * WALKED // MINUTE))
    return Window(start, tuple((ahead, len(list(minutes))) for ahead, minutes in groupby(each)))


def ticks(of: Rule, walk: list[tuple[datetime, datetime]]) -> list[datetime]:
    """The ticks, by the rules: a star rule at each minute that matches, another at the first, and for a gap at its end."""
    found: set[datetime] = set()
    shown = {wall for _, wall in walk}
    seen: set[datetime] = set()
    previous = walk[0][1] - MINUTE
    for at, wall in walk:
        if not of.star and MINUTE < wall - previous <= LONGEST_GAP + MINUTE:
            left_out = [previous + n * MINUTE for n in range(1, (wall - previous) // MINUTE)]
            if any(of.matches(missing) for missing in left_out if missing not in shown):
                found.add(at)
        previous = wall
        if of.matches(wall) and (of.star or wall not in seen):
            found.update(at + timedelta(seconds=second) for second in of.seconds)
        seen.add(wall)
    return sorted(found)


def compared(found: list[datetime], change: datetime) -> list[datetime]:
    """What lies near enough to the change for the walk to have seen all that decides it."""
    return [at for at in found if change - COMPARED < at <= change + COMPARED]
