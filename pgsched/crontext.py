"""What a cron text says about a clock on the wall: which of its times match. No zones here; times as in `zones`."""

from __future__ import annotations

import calendar
import functools
import re
from datetime import date
from typing import NamedTuple

from croniter import CroniterError, croniter

from pgsched.errors import ScheduleError, shown
from pgsched.zones import DAY

LONGEST = 1000
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_EPOCH = date(1970, 1, 1).toordinal()
_LENGTHS = {month: (28, 29) if month == 2 else (calendar.monthrange(2001, month)[1],) for month in range(1, 13)}


class Field(NamedTuple):
    """One of the fields: its name, its bounds, and what else may stand there."""

    name: str
    low: int
    high: int
    more: str = ""


SECOND, MINUTE, HOUR, DAY_OF_MONTH, MONTH, DAY_OF_WEEK = FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31, ", L (the last day)"),
    Field("month", 1, 12, " or jan-dec"),
    Field("day of week", 0, 7, " (0 and 7 are Sunday) or sun-sat, mon#2 (the second Monday)"),
)

_VALUE = r"[0-9]+|[a-z]{3}"
_ITEM = re.compile(rf"(?:\*|(?P<low>{_VALUE})(?:-(?P<high>{_VALUE}))?)(?:/(?P<step>[0-9]+))?")
_NTH = re.compile(rf"(?:{_VALUE})#[1-5]")


class CronText:
    """A cron text, read. `star` says whether its minute or hour begins with `*`.

    Raises `ScheduleError` for a text that is wrong or never matches.
    """

    def __init__(self, text: str) -> None:
        fields = _split(text)
        second, minute, hour, days, month, weekdays = (
            _values(text, position, len(fields), field, item)
            for position, (field, item) in enumerate(
                zip(FIELDS, fields if len(fields) == 6 else ["0", *fields], strict=True), len(fields) - 5
            )
        )
        self.star = any(item.startswith("*") for item in fields[-5:-3])
        self._both = any(item.startswith("*") for item in (fields[-3], fields[-1]))
        self._second, self._minute, self._hour = _following(second, 60), _following(minute, 60), _following(hour, 24)
        self._first = self._hour[0] * 3600 + self._minute[0] * 60 + self._second[0]
        self._days, self._months, self._weekdays = days, month, weekdays
        shapes = ((weekday, length) for m in month for length in _LENGTHS[m] for weekday in range(7))
        if all(self._month(*shape)[1] < 0 for shape in shapes):
            also = f' that is also a day of week "{fields[-1]}"' if fields[-1] != "*" else ""
            raise ScheduleError(
                f'cron "{shown(text)}" never fires: in month "{fields[-2]}" there is no day of month "{fields[-3]}"{also}'
            )

    def next(self, wall: int, limit: int) -> int:
        """The first time from `wall` on that matches; where none is below `limit`, any number from `limit` on."""
        day, time = divmod(wall, DAY)
        time = self._next_time(time)
        if time < 0:
            day, time = day + 1, self._first
        found = self._next_day(day + _EPOCH, limit // DAY + _EPOCH) - _EPOCH
        return found * DAY + (time if found == day else self._first)

    def _next_time(self, time: int) -> int:
        """The first time of day from `time` on, -1 for none."""
        hour, rest = divmod(time, 3600)
        if self._hour[hour] == hour:
            minute, second = divmod(rest, 60)
            if self._minute[minute] == minute and (found := self._second[second]) >= 0:
                return hour * 3600 + minute * 60 + found
            if (found := self._minute[minute + 1]) >= 0:
                return hour * 3600 + found * 60 + self._second[0]
        if (found := self._hour[hour + 1]) >= 0:
            return found * 3600 + self._minute[0] * 60 + self._second[0]
        return -1

    def _next_day(self, day: int, last: int) -> int:
        """The first day from `day` on, as an ordinal; where none is up to `last`, one after it."""
        while day <= last:
            there = date.fromordinal(day)
            year, month, of_month = there.year, there.month, there.day
            length = _LENGTHS[month][-1] if month != 2 or calendar.isleap(year) else 28
            if month in self._months:
                found = self._month((day - of_month + 1) % 7, length)[of_month]
                if found > 0:
                    return day - of_month + found
            day += length - of_month + 1
        return day

    def _month(self, weekday: int, length: int) -> list[int]:
        return _day_table(self._days, self._weekdays, self._both, weekday, length)


LAST = -1
"""Among the days of a month: `L`."""


def nth(weekday: int, number: int) -> int:
    """Among the days of the week: the number-th of them in its month, as one value that is no weekday."""
    return 10 * number + weekday


@functools.lru_cache(maxsize=4096)
def _day_table(days: frozenset[int], weekdays: frozenset[int], both: bool, weekday: int, length: int) -> list[int]:
    """For each day of a month that begins on that weekday (0 is Sunday) the first from there on that matches, or -1."""
    month = range(1, length + 1)
    by_month = {day for day in month if day in days or (day == length and LAST in days)}
    by_week = set()
    for day in month:
        of_week = (weekday + day - 1) % 7
        if of_week in weekdays or nth(of_week, (day + 6) // 7) in weekdays:
            by_week.add(day)
    return _following(by_month & by_week if both else by_month | by_week, length + 1)


def _following(values: set[int] | frozenset[int], size: int) -> list[int]:
    """For each number up to `size` the first of the values from there on, or -1."""
    table = [-1] * (size + 1)
    for number in range(size - 1, -1, -1):
        table[number] = number if number in values else table[number + 1]
    return table


def _split(text: str) -> list[str]:
    if len(text) > LONGEST:
        raise ScheduleError(f'cron "{shown(text)}" has {len(text)} characters; {LONGEST} is the most')
    if not text.isprintable() and re.search(r"[^\t\n\r -~]", text):
        raise ScheduleError(
            f'cron "{shown(text)}" has a character that cannot be printed; fields are divided by spaces'
        )
    lowered = text.strip(" \t\r\n").lower()
    if lowered.startswith("@"):
        if lowered not in ALIASES:
            more = "; a fixed interval is every(timedelta(...))" if lowered.startswith("@every") else ""
            raise ScheduleError(f'cron "{shown(text)}" is not known: of these there are {", ".join(ALIASES)}{more}')
        lowered = ALIASES[lowered]
    fields = re.findall(r"[^ \t\r\n]+", lowered)
    if len(fields) not in (5, 6):
        number = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
        raise ScheduleError(
            f'cron "{shown(text)}" has {number}; it takes five (minute, hour, day of month, month, day of week), '
            f"six with the second before them, or one of {', '.join(ALIASES)}"
        )
    return fields


def _values(text: str, position: int, fields: int, field: Field, written: str) -> frozenset[int]:
    """What a field allows. Raises `ScheduleError`, which names the field, its position and what is allowed there."""
    found: set[int] = set()
    for item in written.split(","):
        try:
            found |= _item(field, item)
        except _WrongItem as wrong:
            allowed = (
                f"* and {field.low}-{field.high}{field.more}; ranges (2-5), steps (*/2, 1-5/2), lists of these (1,3-5)"
            )
            raise ScheduleError(
                f'cron "{shown(text)}": "{shown(item)}" cannot be the {field.name} (field {position} of {fields})'
                f"{': ' if str(wrong) else ''}{wrong}; allowed are {allowed}"
            ) from None
    return frozenset(found)


class _WrongItem(Exception):
    """Why an item is refused, where that is not plain from what is allowed."""


@functools.lru_cache(maxsize=4096)
def _item(field: Field, item: str) -> frozenset[int]:
    """What one item of a list allows.

    croniter reads it. What croniter would read and cron would not, or not so, is kept from it: see docs/schedules.md.
    """
    if field is DAY_OF_MONTH and item == "l":
        return frozenset({LAST})
    if field is DAY_OF_WEEK and _NTH.fullmatch(item):
        weekday, _, number = item.partition("#")
        return frozenset(nth(each, int(number)) for each in _item(field, weekday))
    form = _ITEM.fullmatch(item)
    if not form:
        raise _WrongItem('for "?" write *' if item == "?" else "an item is missing beside a comma" if not item else "")
    low, high, step = form["low"], form["high"], form["step"]
    size = field.high - field.low + (field is not DAY_OF_WEEK)
    if step is not None and not 1 <= int(step) <= size:
        raise _WrongItem(f"a step is from 1 to {size}; every(timedelta(...)) is for an interval that fits no field")
    if high is None and low is not None and step is not None:
        raise _WrongItem(f'a step needs a range, such as "{low}-{field.high}/{step}"')
    if high is not None:
        begin, end = (min(_item(field, value)) for value in (low, high))
        if end == 0 and field is DAY_OF_WEEK and (begin > 0 or (high == "7" and low != "7")):
            end = 7
        if begin > end:
            raise _WrongItem(f'a range does not run backwards; write "{low}-{field.high},{field.low}-{high}"')
        if begin == end:
            return frozenset({begin})
    return _read(field, item)


def _read(field: Field, item: str) -> frozenset[int]:
    expression = [item if each is field else "*" for each in FIELDS]
    try:
        read, _ = croniter.expand(" ".join(expression), second_at_beginning=True)
    except CroniterError:
        raise _WrongItem("") from None
    values = [*read[-1:], *read[:-1]][FIELDS.index(field)]  # (croniter moves the second behind the others)
    every = range(field.low, field.high + (field is not DAY_OF_WEEK))
    return frozenset(every) if values == ["*"] else frozenset(int(value) for value in values)
