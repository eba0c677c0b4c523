"""The cron rules: each by example, what is refused, where croniter answers otherwise, and what holds for any text and zone.

The zones' changes of clocks, all of them, are in test_cron_transitions.py.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from croniter import croniter
from croniter.croniter import CroniterError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.cron_oracle import COMPARED, Rule, compared, ticks, transitions, window

import pgsched
from pgsched.cron import Every, Rhythm, Tick, every, next_ticks, rhythm
from pgsched.errors import ScheduleError, UsageError
from pgsched.zones import zone

NEW_YORK = "America/New_York"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ours(cron: str | Every, zone_name: str, after: str, count: int = 3) -> list[str]:
    return [f"{tick:%Y-%m-%d %H:%M:%S}".removesuffix(":00") for tick in next_ticks(cron, zone_name, after=at(after), count=count)]


def seen(cron: str | Every, zone_name: str, after: str, count: int = 3) -> list[Tick]:
    return list(islice(rhythm(cron, zone_name).after(at(after)), count))


# what a text means


def test_nine_o_clock_in_new_york_is_nine_o_clock_in_new_york() -> None:
    assert pgsched.next_ticks("0 9 * * *", NEW_YORK, after=at("2024-01-17T05:00"), count=1) == [at("2024-01-17T14:00")]
    assert ours("0 9 * * *", NEW_YORK, "2024-03-09T00:00") == ["2024-03-09 14:00", "2024-03-10 13:00", "2024-03-11 13:00"]
    assert ours("0 9 * * *", "UTC", "2024-01-17T09:00", 1) == ["2024-01-18 09:00"], "after, not at"


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("5 4 * * *", ["2024-01-18 04:05", "2024-01-19 04:05", "2024-01-20 04:05"]),
        ("00 09 * * *", ["2024-01-17 09:00", "2024-01-18 09:00", "2024-01-19 09:00"]),
        ("*/25 * * * *", ["2024-01-17 05:25", "2024-01-17 05:50", "2024-01-17 06:00"]),
        ("10-40/15 5 * * *", ["2024-01-17 05:10", "2024-01-17 05:25", "2024-01-17 05:40"]),
        ("1,2,50-51 5 * * *", ["2024-01-17 05:01", "2024-01-17 05:02", "2024-01-17 05:50"]),
        ("0 0 1 jan,MAR *", ["2024-03-01 00:00", "2025-01-01 00:00", "2025-03-01 00:00"]),
        ("0 0 1 nov-dec *", ["2024-11-01 00:00", "2024-12-01 00:00", "2025-11-01 00:00"]),
        ("0 0 * * 7", ["2024-01-21 00:00", "2024-01-28 00:00", "2024-02-04 00:00"]),
        ("0 0 * * 0", ["2024-01-21 00:00", "2024-01-28 00:00", "2024-02-04 00:00"]),
        ("0 0 * * Sun", ["2024-01-21 00:00", "2024-01-28 00:00", "2024-02-04 00:00"]),
        ("0 0 * * fri-sun", ["2024-01-19 00:00", "2024-01-20 00:00", "2024-01-21 00:00"]),
        ("0 0 * * 5-7", ["2024-01-19 00:00", "2024-01-20 00:00", "2024-01-21 00:00"]),
        ("0 0 * * 0-7/3", ["2024-01-17 00:00", "2024-01-20 00:00", "2024-01-21 00:00"]),
        ("0 0 * * mon-fri", ["2024-01-18 00:00", "2024-01-19 00:00", "2024-01-22 00:00"]),
        ("0 0 L * *", ["2024-01-31 00:00", "2024-02-29 00:00", "2024-03-31 00:00"]),
        ("0 0 l,15 2 *", ["2024-02-15 00:00", "2024-02-29 00:00", "2025-02-15 00:00"]),
        ("0 0 * * mon#2", ["2024-02-12 00:00", "2024-03-11 00:00", "2024-04-08 00:00"]),
        ("0 0 * * 1#5", ["2024-01-29 00:00", "2024-04-29 00:00", "2024-07-29 00:00"]),
        ("0 0 * * tue#1,7#1", ["2024-02-04 00:00", "2024-02-06 00:00", "2024-03-03 00:00"]),
        ("0 0 * * mon#1,fri", ["2024-01-19 00:00", "2024-01-26 00:00", "2024-02-02 00:00"]),
        ("0 0 29 2 *", ["2024-02-29 00:00", "2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 0 31 * *", ["2024-01-31 00:00", "2024-03-31 00:00", "2024-05-31 00:00"]),
        ("*/20 0 5 * * *", ["2024-01-17 05:00:20", "2024-01-17 05:00:40", "2024-01-18 05:00"]),
        ("* * * * * *", ["2024-01-17 05:00:01", "2024-01-17 05:00:02", "2024-01-17 05:00:03"]),
        (" \t0  9 *\t* * \n", ["2024-01-17 09:00", "2024-01-18 09:00", "2024-01-19 09:00"]),
        ("@hourly", ["2024-01-17 06:00", "2024-01-17 07:00", "2024-01-17 08:00"]),
        ("@daily", ["2024-01-18 00:00", "2024-01-19 00:00", "2024-01-20 00:00"]),
        ("@Midnight", ["2024-01-18 00:00", "2024-01-19 00:00", "2024-01-20 00:00"]),
        ("@weekly", ["2024-01-21 00:00", "2024-01-28 00:00", "2024-02-04 00:00"]),
        ("@monthly", ["2024-02-01 00:00", "2024-03-01 00:00", "2024-04-01 00:00"]),
        ("@yearly", ["2025-01-01 00:00", "2026-01-01 00:00", "2027-01-01 00:00"]),
        ("@annually", ["2025-01-01 00:00", "2026-01-01 00:00", "2027-01-01 00:00"]),
    ],
)
def test_a_text_means(cron: str, expected: list[str]) -> None:
    after = "2024-01-17T05:00" if not cron.startswith("0 0 * * 0-7/3") else "2024-01-16T05:00"
    assert ours(cron, "UTC", after) == expected


@pytest.mark.parametrize(
    ("cron", "expected", "why"),
    [
        ("0 0 13 * fri", ["2024-01-19", "2024-01-26", "2024-02-02"], "neither starts with *: either will do"),
        ("0 0 13 9 fri", ["2024-09-06", "2024-09-13", "2024-09-20"], "the month holds for both"),
        ("0 0 */2 * mon", ["2024-01-29", "2024-02-05", "2024-02-19"], "the day of month starts with *: both"),
        ("0 0 13 * */2", ["2024-02-13", "2024-04-13", "2024-06-13"], "the day of week starts with *: both"),
        ("0 0 13 * *,mon", ["2024-02-13", "2024-03-13", "2024-04-13"], "it starts with *, whatever comes after"),
        ("0 0 13 * mon,*", ["2024-01-18", "2024-01-19", "2024-01-20"], "this does not start with *"),
        ("0 0 1-31 * mon", ["2024-01-18", "2024-01-19", "2024-01-20"], "all days, but not by *"),
    ],
)
def test_day_of_month_and_day_of_week(cron: str, expected: list[str], why: str) -> None:
    assert [tick.removesuffix(" 00:00") for tick in ours(cron, "UTC", "2024-01-17T05:00")] == expected, why


def test_an_interval_counts_from_its_anchor_whatever_the_clocks_do() -> None:
    assert ours(every(timedelta(hours=5)), NEW_YORK, "2024-03-10T00:00") == ["2024-03-10 02:00", "2024-03-10 07:00", "2024-03-10 12:00"]
    anchored = every(timedelta(days=1), anchor=datetime(2030, 1, 1, 9, 30, tzinfo=timezone(timedelta(hours=2))))
    assert ours(anchored, "UTC", "2024-01-17T07:30") == ["2024-01-18 07:30", "2024-01-19 07:30", "2024-01-20 07:30"]
    assert next_ticks(every(timedelta(seconds=1)), after=at("2024-01-17T05:00:00.999999"), count=1) == [at("2024-01-17T05:00:01")]
    assert [tick.remark for tick in seen(every(timedelta(minutes=60)), NEW_YORK, "2024-11-03T04:00", 3)] == [
        "first of two 01:00",
        "second of two 01:00",
        None,
    ]


# where the clocks change

MOVED = "moved to the end of the gap: "

CHANGES: list[tuple[str, str, str, list[str]]] = [
    # New York, 2024-03-10: 02:00 to 03:00 are left out (07:00 UTC); 2024-11-03: 01:00 to 02:00 come twice (05:00 and 06:00 UTC)
    ("30 2 * * *", NEW_YORK, "2024-03-10T05:00", ["2024-03-10 07:00", "2024-03-11 06:30"]),
    ("0,30 2 * * *", NEW_YORK, "2024-03-10T05:00", ["2024-03-10 07:00", "2024-03-11 06:00"]),
    ("0,30 2,3 * * *", NEW_YORK, "2024-03-10T05:00", ["2024-03-10 07:00", "2024-03-10 07:30"]),
    ("*/20 0 2 * * *", NEW_YORK, "2024-03-10T05:00", ["2024-03-10 07:00", "2024-03-11 06:00"]),
    ("*/15 2 * * *", NEW_YORK, "2024-03-10T05:00", ["2024-03-11 06:00", "2024-03-11 06:15"]),
    ("30 * * * *", NEW_YORK, "2024-03-10T06:00", ["2024-03-10 06:30", "2024-03-10 07:30"]),
    ("30 1 * * *", NEW_YORK, "2024-11-03T05:00", ["2024-11-03 05:30", "2024-11-04 06:30"]),
    ("30 1 * * *", NEW_YORK, "2024-11-03T06:00", ["2024-11-04 06:30", "2024-11-05 06:30"]),
    ("0 0-5 * * *", NEW_YORK, "2024-11-03T04:30", ["2024-11-03 05:00", "2024-11-03 07:00"]),
    ("*/30 1 * * *", NEW_YORK, "2024-11-03T05:00", ["2024-11-03 05:30", "2024-11-03 06:00"]),
    ("0 * * * *", NEW_YORK, "2024-11-03T04:30", ["2024-11-03 05:00", "2024-11-03 06:00"]),
    # half an hour
    ("15 2 * * *", "Australia/Lord_Howe", "2024-10-05T10:00", ["2024-10-05 15:30", "2024-10-06 15:15"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2024-04-06T10:00", ["2024-04-06 14:45", "2024-04-07 15:15"]),
    # two hours
    ("30 2 * * *", "Antarctica/Troll", "2024-03-30T12:00", ["2024-03-31 01:00", "2024-04-01 00:30"]),
    ("30 1 * * *", "Antarctica/Troll", "2024-10-26T12:00", ["2024-10-26 23:30", "2024-10-28 01:30"]),
    # three hours, the longest gap that is made up for, and seven
    ("30 1 * * *", "Antarctica/Casey", "2020-10-03T10:00", ["2020-10-03 16:01", "2020-10-04 14:30"]),
    ("0 3 * * *", "Antarctica/Vostok", "1994-10-31T02:00", ["1994-10-31 03:00", "1994-11-01 20:00"]),
    # summer time that is called winter time, and clocks that change about Ramadan
    ("30 1 * * *", "Europe/Dublin", "2024-03-30T23:00", ["2024-03-31 01:00", "2024-04-01 00:30"]),
    ("30 1 * * *", "Europe/Dublin", "2024-10-26T23:00", ["2024-10-27 00:30", "2024-10-28 01:30"]),
    ("30 2 * * *", "Africa/Casablanca", "2024-03-09T12:00", ["2024-03-10 01:30", "2024-03-11 02:30"]),
    ("30 2 * * *", "Africa/Casablanca", "2024-04-13T12:00", ["2024-04-14 02:00", "2024-04-15 01:30"]),
    # at midnight
    ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", ["2018-11-04 03:00", "2018-11-05 02:00"]),
    ("0 0 * * *", "Asia/Beirut", "2024-03-30T12:00", ["2024-03-30 22:00", "2024-03-31 21:00"]),
    ("30 23 * * *", "America/Sao_Paulo", "2018-02-17T12:00", ["2018-02-18 01:30", "2018-02-19 02:30"]),
    # a day is left out, and one comes twice
    ("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00", ["2011-12-29 22:00", "2011-12-30 22:00"]),
    ("0 12 30 12 *", "Pacific/Apia", "2011-12-29T12:00", ["2012-12-29 22:00", "2013-12-29 22:00"]),
    ("0 * * * *", "Pacific/Apia", "2011-12-30T09:00", ["2011-12-30 10:00", "2011-12-30 11:00"]),
    ("0 12 * * *", "Pacific/Kwajalein", "1993-08-20T01:00", ["1993-08-21 00:00", "1993-08-22 00:00"]),
    ("0 12 * * *", "America/Juneau", "1867-10-18T00:00", ["1867-10-18 20:57:41", "1867-10-20 20:57:41"]),
    ("0 */12 * * *", "America/Juneau", "1867-10-18T00:00", ["1867-10-18 08:57:41", "1867-10-18 20:57:41"]),
    # an offset of hours, minutes and seconds
    ("0 9 * * *", "Africa/Monrovia", "1950-01-01T00:00", ["1950-01-01 09:44:30", "1950-01-02 09:44:30"]),
]


@pytest.mark.parametrize(("cron", "zone_name", "after", "expected"), CHANGES)
def test_where_the_clocks_change(cron: str, zone_name: str, after: str, expected: list[str]) -> None:
    assert ours(cron, zone_name, after, 2) == expected


def test_a_remark_says_what_the_change_has_done() -> None:
    gap, overlap = "2024-03-10T05:00", "2024-11-03T04:30"
    assert seen("30 2 * * *", NEW_YORK, gap, 2) == [
        Tick(at("2024-03-10T07:00"), datetime(2024, 3, 10, 2, 30), f"{MOVED}02:30 does not exist on this day"),
        Tick(at("2024-03-11T06:30"), datetime(2024, 3, 11, 2, 30), None),
    ]
    assert seen("0,30 2 * * *", NEW_YORK, gap, 1)[0][1:] == (
        datetime(2024, 3, 10, 2, 30),
        f"{MOVED}02:00 and 02:30 do not exist on this day",
    )
    assert seen("*/20 0 2 * * *", NEW_YORK, gap, 1)[0].remark == f"{MOVED}02:00 to 02:00:40 do not exist on this day"
    merged, *_ = seen("0,30 2,3 * * *", NEW_YORK, gap, 1)
    assert merged.nominal == datetime(2024, 3, 10, 3)
    assert merged.remark == "also for what the gap leaves out: 02:00 and 02:30 do not exist on this day"
    assert [tick.remark for tick in seen("30 1 * * *", NEW_YORK, overlap, 2)] == ["first of two 01:30", None]
    assert [tick.remark for tick in seen("30 * * * *", NEW_YORK, overlap, 3)] == ["first of two 01:30", "second of two 01:30", None]


def test_the_kind_of_a_text_is_told_by_how_minute_and_hour_begin() -> None:
    kinds = {"0 9 * * *": True, "0-59 0-23 * * *": True, "* 0 9 * * *": True, "*/5 9 * * *": False, "0 */2 * * *": False, "@hourly": False, "@daily": True}
    assert {text: rhythm(text, "UTC").each_wall_clock_once for text in kinds} == kinds
    assert not rhythm(every(timedelta(days=1)), "UTC").each_wall_clock_once


def test_ticks_for_wall_clock_times_that_were_are_left_out() -> None:
    fixed, star = rhythm("30 1 * * *", NEW_YORK), rhythm("*/30 1 * * *", NEW_YORK)
    after, nominal = at("2024-11-03T05:00"), datetime(2024, 11, 3, 1, 30)
    assert next(fixed.after(after, nominal)).nominal == datetime(2024, 11, 4, 1, 30)
    assert next(fixed.after(after, nominal - timedelta(seconds=1))).nominal == nominal
    assert next(star.after(after, nominal)).at == at("2024-11-03T05:30"), "a star text has no such times"


def test_a_leader_with_other_zone_data_makes_the_same_wall_clock_time_only_once() -> None:
    """Two zones stand for two versions of one: the first leader's clocks have gone forward already, the second's have not."""
    newer, older = rhythm("0 9 * * *", "Africa/Casablanca"), rhythm("0 9 * * *", "UTC")
    made = next(newer.after(at("2024-06-01T00:00")))
    assert (made.at, made.nominal) == (at("2024-06-01T08:00"), datetime(2024, 6, 1, 9))
    assert next(older.after(made.at)).at == at("2024-06-01T09:00"), "by the instant alone it would be made twice"
    assert next(older.after(made.at, made.nominal)).at == at("2024-06-02T09:00")


def test_the_table_in_the_docs_is_what_happens() -> None:
    page = (Path(__file__).parents[2] / "docs/schedules.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\w+/\w+) \| (\d{4}-\d\d-\d\d) \| ([\d: ]*)\|", page, re.M)
    assert len(rows) >= 12
    for text, name, day, stated in rows:
        local = datetime.fromisoformat(day).date()
        found = rhythm(text, name).after(datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(days=2))
        near = [tick.at for tick in islice(found, 20)]
        assert [f"{tick:%H:%M}" for tick in near if tick.astimezone(ZoneInfo(name)).date() == local] == stated.split(), (text, name, day)


# the newest ticks


def test_the_newest_ticks_after_a_year_of_seconds_are_found_in_milliseconds() -> None:
    until, since = at("2024-06-01T00:00"), at("2023-06-01T00:00")
    walked: list[int] = []

    class Counting(Rhythm):
        def _ticks(self, start: int, end: int) -> Any:
            for tick in super()._ticks(start, end):
                walked.append(1)
                yield tick

    newest = Counting("* * * * * *", NEW_YORK).last(until, 3, since)
    assert [tick.at for tick in newest] == [until - timedelta(seconds=n) for n in (2, 1, 0)]
    assert len(walked) < 1000, "of 31 million"
    assert len(Counting("* * * 1 7 *", NEW_YORK).last(until, 5, since)) == 5
    assert len(walked) < 3000


def test_the_newest_ticks_lie_after_since_and_not_after_until() -> None:
    daily = rhythm("0 9 * * *", "UTC")
    nine = at("2024-01-17T09:00")
    assert [tick.at for tick in daily.last(nine, 5, nine - timedelta(days=2))] == [nine - timedelta(days=1), nine]
    assert daily.last(nine - timedelta(microseconds=1), 5, nine - timedelta(days=1)) == []
    assert daily.last(nine, 0, nine - timedelta(days=1)) == [] == daily.last(nine, 1, nine)


# the end of time


def test_there_are_no_ticks_from_the_year_9999_on() -> None:
    assert ours("0 0 1 * *", NEW_YORK, "9998-10-15T00:00", 5) == ["9998-11-01 04:00", "9998-12-01 05:00"]
    assert ours("0 0 1 1 *", "Asia/Tokyo", "9999-12-31T23:59", 5) == []
    assert ours(every(timedelta(days=1)), "UTC", "9998-12-30T00:00", 5) == ["9998-12-31 00:00"]
    early = datetime.min.replace(tzinfo=UTC)
    assert next_ticks("0 0 * * *", NEW_YORK, after=early, count=1) == [datetime(1, 1, 6, 4, 56, 2, tzinfo=UTC)]


# what is refused

MINUTES = 'allowed are * and 0-59; ranges (2-5), steps (*/2, 1-5/2), lists of these (1,3-5)'
WRONG: list[tuple[str, str]] = [
    ("0 25 * * *", 'cron "0 25 * * *": "25" cannot be the hour (field 2 of 5); allowed are * and 0-23; ranges'),
    ("60 * * * *", f'cron "60 * * * *": "60" cannot be the minute (field 1 of 5); {MINUTES}'),
    ("60 * * * * *", f'cron "60 * * * * *": "60" cannot be the second (field 1 of 6); {MINUTES}'),
    ("* 1,60 * * * *", f'cron "* 1,60 * * * *": "60" cannot be the minute (field 2 of 6); {MINUTES}'),
    ("0 9 0 * *", '"0" cannot be the day of month (field 3 of 5); allowed are * and 1-31, L (the last day);'),
    ("0 9 0-5 * *", '"0-5" cannot be the day of month (field 3 of 5)'),
    ("0 9 32 * *", '"32" cannot be the day of month (field 3 of 5)'),
    ("0 9 L-3 * *", '"l-3" cannot be the day of month'),
    ("0 9 15W * *", '"15w" cannot be the day of month'),
    ("0 9 * 13 *", '"13" cannot be the month (field 4 of 5); allowed are * and 1-12 or jan-dec;'),
    ("0 9 * mon *", '"mon" cannot be the month'),
    ("0 9 * * 8", '"8" cannot be the day of week (field 5 of 5); allowed are * and 0-7 (0 and 7 are Sunday) or sun-sat, mon#2 (the'),
    ("0 9 * * jan", '"jan" cannot be the day of week'),
    ("0 9 * * monday", '"monday" cannot be the day of week'),
    ("0 9 * * mon#6", '"mon#6" cannot be the day of week'),
    ("0 9 * * mon-fri#1", '"mon-fri#1" cannot be the day of week'),
    ("0 9 * * L5", '"l5" cannot be the day of week'),
    ("0 9 * * fri-mon", '"fri-mon" cannot be the day of week (field 5 of 5): a range does not run backwards; write "fri-7,0-mon"; allowed'),
    ("0 22-2 * * *", 'a range does not run backwards; write "22-23,0-2"'),
    ("5/15 * * * *", 'a step needs a range, such as "5-59/15"'),
    ("*/0 * * * *", "a step is from 1 to 60"),
    ("*/90 * * * *", "a step is from 1 to 60; every(timedelta(...)) is for an interval that fits no field"),
    ("? * * * *", 'for "?" write *'),
    ("1,,2 * * * *", "an item is missing beside a comma"),
    ("-5 * * * *", '"-5" cannot be the minute'),
    ("1.5 * * * *", '"1.5" cannot be the minute'),
    ("*-5 * * * *", '"*-5" cannot be the minute'),
    ("H * * * *", '"h" cannot be the minute'),
    ("R * * * *", '"r" cannot be the minute'),
    ("\u0663 * * * *", '"\u0663" cannot be the minute'),
    ("1" * 900 + " * * * *", '..." cannot be the minute'),
    ("", 'cron "" has 0 fields; it takes five (minute, hour, day of month, month, day of week), six with the second before them, or one'),
    ("0 9 * *", 'cron "0 9 * *" has 4 fields'),
    ("0 0 9 * * * 2030", "has 7 fields"),
    ("hourly", "has 1 field; it takes five"),
    ("@reboot", 'cron "@reboot" is not known: of these there are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually'),
    ("@every 5m", "a fixed interval is every(timedelta(...))"),
    ("0\u00a09 * * *", "has a character that cannot be printed; fields are divided by spaces"),
    ("0 9 * * *\0", 'cron "0 9 * * *\\x00" has a character that cannot be printed'),
    ("\ud800", "has a character that cannot be printed"),
    ("*" * 1001, "has 1001 characters; 1000 is the most"),
    ("0 0 30 2 *", 'cron "0 0 30 2 *" never fires: in month "2" there is no day of month "30"'),
    ("0 0 31 2,4,jun,9,11 *", "never fires"),
    ("0 0 */31 * mon#2", 'there is no day of month "*/31" that is also a day of week "mon#2"'),
]


@pytest.mark.parametrize(("cron", "message"), WRONG, ids=lambda text: repr(text[:40]))
def test_a_wrong_text_is_refused_with_its_field_and_what_is_allowed_there(cron: str, message: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        next_ticks(cron, after=at("2024-01-17T05:00"), count=1)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("EST", 'timezone "EST" is an abbreviation, which says nothing about summer time or stands for several places; name a place: America/New_York'),
        ("EST5EDT", "name a place: America/New_York"),
        ("pst", "name a place: America/Los_Angeles"),
        ("CET", "name a place: Europe/Paris or Europe/Berlin"),
        ("IST", "name a place: Asia/Kolkata (or Europe/Dublin, Asia/Jerusalem)"),
        ("America/New York", "did you mean America/New_York?"),
        ("america/new_york", "did you mean America/New_York?"),
        ("New_York", "did you mean America/New_York?"),
        ("Europe/Berln", "did you mean Europe/Berlin"),
        ("America", "is unknown"),
        ("UTC+2", "an offset is no zone; name a place"),
        ("+02:00", "an offset is no zone; name a place"),
        ("localtime", "is no place"),
        ("right/America/New_York", "is unknown"),
        ("../../etc/passwd", 'timezone "../../etc/passwd" is unknown: it takes a name of the IANA zone database, such as America/New_York, or UTC'),
        ("UTC\0", 'timezone "UTC\\x00" is unknown'),
        ("", 'timezone "" is unknown'),
        ("x" * 100_000, "is unknown"),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_a_zone_that_is_none_is_refused_with_what_was_probably_meant(name: str, message: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        next_ticks("0 9 * * *", name, after=at("2024-01-17T05:00"), count=1)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300


def test_links_of_the_zone_database_are_zones_like_others() -> None:
    for name in ("US/Eastern", "Asia/Calcutta", "GB", "Japan", "Etc/GMT+5", "GMT", "UTC", "Etc/UTC", "America/Argentina/Buenos_Aires"):
        assert next_ticks("0 9 * * *", name, after=at("2024-01-17T05:00"), count=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: next_ticks("0 9 * * *", after=datetime(2024, 1, 17), count=1), "after is 2024-01-17 00:00:00, without a zone"),
        (lambda: next_ticks("0 9 * * *", after="2024-01-17", count=1), "after is '2024-01-17', it must be a datetime"),  # type: ignore[arg-type]
        (lambda: next_ticks("0 9 * * *", after=at("2024-01-17T05:00"), count=0), "count is 0, it must be an integer of at least 1"),
        (lambda: next_ticks("0 9 * * *", after=at("2024-01-17T05:00"), count=True), "count is True"),
        (lambda: next_ticks("0 9 * * *", after=at("2024-01-17T05:00"), count=1.5), "count is 1.5"),  # type: ignore[arg-type]
        (lambda: rhythm(None, "UTC"), "cron is None, it must be a cron text or every(...)"),  # type: ignore[arg-type]
        (lambda: rhythm(["0 9 * * *"], "UTC"), "it must be a cron text or every(...)"),  # type: ignore[arg-type]
        (lambda: rhythm("0 9 * * *", None), 'timezone is None, it must be an IANA name, such as "America/New_York"'),  # type: ignore[arg-type]
        (lambda: rhythm("0 9 * * *", ZoneInfo("UTC")), "it must be an IANA name"),  # type: ignore[arg-type]
        (lambda: rhythm("0 9 * * *", "UTC").after(at("2024-01-17T05:00"), at("2024-01-17T05:00")), "nominal is 2024-01-17 05:00:00+00:00, it must be a wall"),
        (lambda: rhythm("0 9 * * *", "UTC").last(datetime(2024, 1, 17), 1, at("2024-01-16T05:00")), "until is 2024-01-17 00:00:00, without a zone"),
        (lambda: every(timedelta(milliseconds=1500)), "every: interval is 0:00:01.500000, it must be whole seconds, at least 1"),
        (lambda: every(timedelta(0)), "every: interval is 0:00:00, it must be"),
        (lambda: every(timedelta(seconds=-5)), "every: interval is -1 day, 23:59:55, it must be"),
        (lambda: every(timedelta.max), "at most 100 years"),
        (lambda: every(5), "every: interval is 5, it must be a timedelta"),  # type: ignore[arg-type]
        (lambda: every(timedelta(hours=1), datetime(2024, 1, 1)), "every: anchor is 2024-01-01 00:00:00, without a zone"),
        (lambda: every(timedelta(hours=1), datetime(2024, 1, 1, 0, 0, 0, 1, UTC)), "every: anchor is 2024-01-01 00:00:00.000001+00:00, it must be a whole second"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_said(wrong: Any, message: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        wrong()
    assert message in str(refused.value)
    assert isinstance(refused.value, UsageError)


@given(st.text(alphabet="0123456789*/,-#@LlWhRr? \tmonsujafebd\0é", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = next_ticks(text, after=at("2024-01-17T05:00"), count=2)
    except ScheduleError as refused:
        assert str(refused)
    else:
        assert len(found) == 2


# croniter

DIFFERENT: list[tuple[str, str, str, list[str], list[str]]] = [
    # a text without * for minute and hour happens once in an overlap; croniter lets it happen twice
    ("30 1 * * *", NEW_YORK, "2024-11-03T03:00", ["2024-11-03 05:30", "2024-11-03 06:30"], ["2024-11-03 05:30", "2024-11-04 06:30"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2024-04-06T10:00", ["2024-04-06 14:45", "2024-04-06 15:15"], ["2024-04-06 14:45", "2024-04-07 15:15"]),
    ("30 1 * * *", "Antarctica/Troll", "2024-10-26T12:00", ["2024-10-26 23:30", "2024-10-27 01:30"], ["2024-10-26 23:30", "2024-10-28 01:30"]),
    # a text with * has nothing to make up for in a gap; croniter makes a tick at its end
    ("*/15 2 * * *", NEW_YORK, "2024-03-10T05:00", ["2024-03-10 07:00", "2024-03-11 06:00"], ["2024-03-11 06:00", "2024-03-11 06:15"]),
    # nothing is moved out of a day that does not exist
    ("0 12 * * *", "Pacific/Apia", "2011-12-29T23:00", ["2011-12-30 10:00", "2011-12-30 22:00"], ["2011-12-30 22:00", "2011-12-31 22:00"]),
    # "and" where a field of days starts with *, also in */2
    ("0 0 */2 * mon", "UTC", "2024-01-17T05:00", ["2024-01-19 00:00", "2024-01-21 00:00"], ["2024-01-29 00:00", "2024-02-05 00:00"]),
    ("0 0 13 * */2", "UTC", "2024-01-17T05:00", ["2024-01-18 00:00", "2024-01-20 00:00"], ["2024-02-13 00:00", "2024-04-13 00:00"]),
    # a range of one is that one, not all
    ("5-5 * * * *", "UTC", "2024-01-17T05:00", ["2024-01-17 05:01", "2024-01-17 05:02"], ["2024-01-17 05:05", "2024-01-17 06:05"]),
    ("0 0 * * mon-mon", "UTC", "2024-01-17T05:00", ["2024-01-18 00:00", "2024-01-19 00:00"], ["2024-01-22 00:00", "2024-01-29 00:00"]),
    ("0 0 * * 7-7", "UTC", "2024-01-17T05:00", ["2024-01-18 00:00", "2024-01-19 00:00"], ["2024-01-21 00:00", "2024-01-28 00:00"]),
]


@pytest.mark.parametrize(("cron", "zone_name", "after", "theirs", "our"), DIFFERENT)
def test_where_croniter_answers_otherwise_ours_hold(cron: str, zone_name: str, after: str, theirs: list[str], our: list[str]) -> None:
    there = croniter(cron, at(after).astimezone(ZoneInfo(zone_name)), ret_type=datetime)
    assert [f"{there.get_next().astimezone(UTC):%Y-%m-%d %H:%M}" for _ in theirs] == theirs
    assert ours(cron, zone_name, after, len(our)) == our


READ_BY_CRONITER_ALONE = [
    "0 9 * * fri-mon", "0 22-2 * * *", "5/15 * * * *", "*/90 * * * *", "0 9 ? * *", "0 9 15W * *", "0 0 * * L5", "0 0 1-L * *",
    "0 0 * * mon-fri#1", "R * * * *", "0 0 30 2 *", "0 0 9 * * * 2030",
]  # fmt: skip
READ_BY_US_ALONE = ["0 0 * * mon#1,fri"]


@pytest.mark.parametrize("cron", READ_BY_CRONITER_ALONE)
def test_what_croniter_reads_and_cron_does_not_is_refused(cron: str) -> None:
    croniter.expand(cron)
    with pytest.raises(ScheduleError):
        rhythm(cron, "UTC")


@pytest.mark.parametrize("cron", READ_BY_US_ALONE)
def test_what_croniter_refuses_and_is_plain_is_read(cron: str) -> None:
    with pytest.raises(CroniterError):
        croniter.expand(cron)
    assert rhythm(cron, "UTC")


# what holds for any text, zone and time

ZONES = sorted(
    {
        NEW_YORK, "Europe/Dublin", "Africa/Casablanca", "Africa/El_Aaiun", "Australia/Lord_Howe", "Antarctica/Troll", "Antarctica/Casey",
        "America/Sao_Paulo", "Asia/Beirut", "Asia/Gaza", "Asia/Tehran", "Asia/Kathmandu", "Pacific/Apia", "Pacific/Kwajalein",
        "Pacific/Chatham", "America/Caracas", "America/Havana", "Asia/Pyongyang", "Europe/Istanbul", "America/St_Johns", "UTC",
    }
    & available_timezones()
)  # fmt: skip


@st.composite
def fields(draw: st.DrawFn, low: int, high: int) -> tuple[str, frozenset[int]]:
    """A field's text and what it allows."""
    if draw(st.booleans()):
        step = draw(st.sampled_from([None, 1, 2, 3, 5, 7]))
        return ("*" if step is None else f"*/{step}"), frozenset(range(low, high + 1, step or 1))
    items, values = [], set()
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(low, high))
        end = draw(st.integers(begin, high))
        step = draw(st.integers(1, 4))
        form = draw(st.sampled_from(["one", "range", "step"]))
        items.append({"one": f"{begin}", "range": f"{begin}-{end}", "step": f"{begin}-{end}/{step}"}[form])
        values |= {begin} if form == "one" else set(range(begin, end + 1, step if form == "step" else 1))
    return ",".join(items), frozenset(values)


@st.composite
def rules(draw: st.DrawFn) -> tuple[str, Rule]:
    """A text, and what it means, made beside it."""
    (minute, minutes), (hour, hours) = draw(fields(0, 59)), draw(fields(0, 23))
    (day, days), (weekday, weekdays) = draw(fields(1, 31)), draw(fields(0, 7))
    month, months = draw(st.sampled_from([("*", frozenset(range(1, 13))), ("1-12/2", frozenset(range(1, 13, 2))), ("*/3", frozenset({1, 4, 7, 10}))]))
    of = Rule(
        minutes=minutes, hours=hours, days=days, months=months, weekdays=frozenset(day % 7 for day in weekdays),
        star=minute.startswith("*") or hour.startswith("*"), both=day.startswith("*") or weekday.startswith("*"),
    )  # fmt: skip
    return f"{minute} {hour} {day} {month} {weekday}", of


INSTANTS = st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
CHANGED = [(name, change) for name in ZONES for change in transitions(ZoneInfo(name), 2009, 2014)]


@settings(max_examples=60, deadline=None)
@given(rules(), st.sampled_from(CHANGED))
def test_any_text_ticks_as_a_walk_through_every_minute_says(text_and_rule: tuple[str, Rule], changed: tuple[str, datetime]) -> None:
    (text, of), (name, change) = text_and_rule, changed
    expected = compared(ticks(of, window(ZoneInfo(name), change).walk()), change)
    start = change - COMPARED
    try:
        found = next_ticks(text, name, after=start, count=len(expected) + 1)
    except ScheduleError as refused:
        assert "never fires" in str(refused) and expected == []
    else:
        assert found[: len(expected)] == expected
        assert found[len(expected)] > change + COMPARED


@settings(max_examples=150, deadline=None)
@given(rules(), st.sampled_from(ZONES), INSTANTS, st.integers(1, 40))
@example(("30 1 * * *", Rule(*map(frozenset, ([30], [1], range(1, 32), range(1, 13), range(7))), star=False, both=True)), NEW_YORK, at("2024-11-03T03:00"), 9)
def test_ticks_come_in_order_after_the_given_time_and_match(text_and_rule: tuple[str, Rule], name: str, after: datetime, count: int) -> None:
    text, of = text_and_rule
    try:
        rhythm(text, name)
    except ScheduleError:
        return
    found = seen_from(text, name, after, count + 1)
    assert next_ticks(text, name, after=after, count=count) == [tick.at for tick in found[:count]], "a longer answer begins like a shorter"
    assert found[0].at > after
    assert all((earlier.at < later.at and earlier.nominal < later.nominal) or not rhythm(text, name).each_wall_clock_once for earlier, later in pairwise(found))
    assert all(earlier.at < later.at for earlier, later in pairwise(found))
    for tick in found:
        assert of.matches(tick.nominal)
        clock = tick.at.astimezone(ZoneInfo(name)).replace(tzinfo=None)
        assert clock == tick.nominal or (tick.remark is not None and tick.remark.startswith(MOVED) and tick.nominal < clock)


@settings(max_examples=100, deadline=None)
@given(rules(), st.sampled_from(ZONES), INSTANTS, st.integers(1, 60), st.integers(0, 100))
def test_the_newest_ticks_are_the_end_of_all_ticks(text_and_rule: tuple[str, Rule], name: str, since: datetime, count: int, further: int) -> None:
    text, _ = text_and_rule
    try:
        all_of_them = seen_from(text, name, since, further + 1)
    except ScheduleError:
        return
    until = all_of_them[-1].at
    assert rhythm(text, name).last(until, count, since) == all_of_them[-count:]
    assert rhythm(text, name).last(until - timedelta(microseconds=1), count, since) == all_of_them[:-1][-count:]


def seen_from(text: str, name: str, after: datetime, count: int) -> list[Tick]:
    return list(islice(rhythm(text, name).after(after), count))


# the zone database


def test_no_two_changes_of_clocks_are_so_near_that_a_look_each_day_would_miss_one() -> None:
    """`Zone` looks once a day; here each eight hours, where changes have come the nearest to each other, and will."""
    for name in ("Africa/Freetown", "America/Boa_Vista", "Asia/Gaza", "Africa/Tunis", "Africa/Casablanca"):
        info, clocks, step = ZoneInfo(name), zone(name), 8 * 3600
        start = datetime(1970, 1, 1, tzinfo=info)
        for moment in range(-2_000_000_000 // step, 2_600_000_000 // step):
            there = info.fromutc(start + timedelta(seconds=moment * step)).utcoffset()
            assert there == timedelta(seconds=clocks.stretch(moment * step).offset), (name, moment * step)
