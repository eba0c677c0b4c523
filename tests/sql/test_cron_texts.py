"""What SQL sees of a cron text and of a zone's name is what Python sees: both accept the same. (When a text ticks, only Python says.)"""

from __future__ import annotations

import os
import random
import zoneinfo
from typing import Any

import pytest

from pgsched.crontext import ALIASES, CronText
from pgsched.errors import ScheduleError
from pgsched.zones import _MEANT, zone

TEXTS = 100_000 if os.environ.get("PGSCHED_CAMPAIGN") else 5_000

VALUES = [
    "*", "0", "1", "5", "7", "12", "23", "24", "28", "29", "30", "31", "59", "60", "00", "05", "007", "100", "99999999999", "-1", "1.5",
    "jan", "feb", "FEB", "dec", "sun", "MON", "sat", "sunday", "L", "l", "L-1", "1L", "15W", "?", "x", "", "mon#2", "7#1", "0#5", "fri#6", "5#0",
]  # fmt: skip
STEPS = ["1", "2", "5", "7", "0", "05", "12", "31", "60", "61", "x", "", "99999999999"]
WHOLE = ["", "  ", "@", "@every 5m", "@reboot", "@DAILY ", " @weekly", "\t0 9 * * *\n", "0\u00a09 * * *", "é * * * *", "0 9 * *", "* " * 7, "x" * 1001]


def item(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.5:
        return chance.choice(VALUES)
    if kind < 0.7:
        return f"{chance.choice(VALUES)}-{chance.choice(VALUES)}"
    if kind < 0.85:
        return f"{chance.choice(VALUES)}/{chance.choice(STEPS)}"
    return f"{chance.choice(VALUES)}-{chance.choice(VALUES)}/{chance.choice(STEPS)}"


def text(chance: random.Random) -> str:
    """A cron text in which at most three fields are odd."""
    if chance.random() < 0.03:
        return chance.choice([*WHOLE, *ALIASES])
    fields = [chance.choice(["*", "1", "0"]) for _ in range(chance.choice([5, 5, 5, 6]))]
    for _ in range(chance.choice([1, 1, 2, 3])):
        items = [item(chance) if chance.random() < 0.6 else chance.choice(["*", "1", "*/2"]) for _ in range(chance.choice([1, 1, 1, 2]))]
        fields[chance.randrange(len(fields))] = ",".join(items)
    return chance.choice([" ", "  ", "\t"]).join(fields)


def refusal(read: Any, given: str) -> str | None:
    try:
        read(given)
    except ScheduleError as error:
        return str(error)
    return None


@pytest.mark.campaign
def test_sql_and_python_accept_the_same_cron_texts(connection: Any) -> None:
    seed = random.SystemRandom().randrange(2**31)
    chance = random.Random(seed)
    texts = [text(chance) for _ in range(TEXTS)]
    rows = connection.execute(
        "select t, pgsched.cron_problem(t) from unnest(%s::text[]) with ordinality x (t, n) order by n", (texts,)
    ).fetchall()
    differ = [(given, refusal(CronText, given), ours) for given, ours in rows if (refusal(CronText, given) is None) != (ours is None)]
    accepted = sum(ours is None for _, ours in rows)
    assert accepted > TEXTS / 20 and TEXTS - accepted > TEXTS / 20
    assert differ == [], f"seed {seed}"


@pytest.mark.one_server
def test_sql_and_python_accept_the_same_zones(connection: Any) -> None:
    """Of those that both the server and this machine have; and what both refuse is refused with the same name that was meant."""
    there = {row[0] for row in connection.execute("select name from pg_timezone_names").fetchall()}
    odd = ["Nowhere", "America", "est", "+05", "UTC+3", "posix/UTC", "a b"]
    names = [*sorted(zoneinfo.available_timezones() & there | _MEANT.keys()), *odd]
    rows = connection.execute("select z, pgsched.zone_problem(z) from unnest(%s::text[]) z", (names,)).fetchall()
    assert [(given, ours) for given, ours in rows if (refusal(zone, given) is None) != (ours is None)] == []
    told = {given: ours for given, ours in rows if given in _MEANT}
    assert all(meant in told[given] for given, meant in _MEANT.items())
