"""Every zone, every change of its clocks from 2000 to 2037, twelve expressions: `next_ticks` beside a walk through every minute.

Short form every day: some changes of some zones, and the odd ones always; PGSCHED_CAMPAIGN=1 takes all of them, and prints how
many that were.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from unit.cron_oracle import COMPARED, EXPRESSIONS, Window, compared, ticks, transitions, window

from pgsched import ScheduleError, next_ticks
from pgsched.cron import rhythm

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
ODD = {
    "Pacific/Apia": datetime(2011, 12, 30, 10, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2024, 4, 6, 15, tzinfo=UTC),
    "Antarctica/Casey": datetime(2020, 10, 3, 16, 1, tzinfo=UTC),
    "Antarctica/Troll": datetime(2024, 3, 31, 1, tzinfo=UTC),
    "Africa/Casablanca": datetime(2024, 4, 14, 2, tzinfo=UTC),
    "America/Sao_Paulo": datetime(2018, 11, 4, 3, tzinfo=UTC),
    "Europe/Dublin": datetime(2024, 10, 27, 1, tzinfo=UTC),
}
"""A day left out, half an hour, three hours, two hours, Ramadan, midnight, summer time under another name."""


def all_zones() -> list[str]:
    """All that a schedule can have."""
    found = []
    for name in sorted(available_timezones()):
        try:
            rhythm("0 0 * * *", name)
        except ScheduleError as refused:
            assert "is an abbreviation" in str(refused) or "is no place" in str(refused)
        else:
            found.append(name)
    return found


class Comparison:
    """What the walk says of each stretch of clocks, kept for zones whose clocks go alike, beside `next_ticks` of each zone."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self._walked: dict[Window, dict[str, list[datetime]]] = {}

    def compare(self, name: str, change: datetime) -> None:
        seen = window(ZoneInfo(name), change)
        if seen not in self._walked:
            walk = seen.walk()
            self._walked[seen] = {text: compared(ticks(of, walk), change) for text, of in EXPRESSIONS.items()}
        self.counted["changes"] += 1
        for text, expected in self._walked[seen].items():
            found = next_ticks(text, name, after=change - COMPARED, count=len(expected) + 1)
            assert found[:-1] == expected, (text, name, change)
            assert found[-1] > change + COMPARED, (text, name, change)
            self.counted["comparisons"] += 1
            self.counted["ticks"] += len(expected)


def test_ticks_about_changes_of_clocks_are_those_of_a_walk_through_every_minute() -> None:
    zones, comparison = all_zones(), Comparison()
    assert len(zones) > 400
    for name in random.sample(zones, 60):
        if changes := list(transitions(ZoneInfo(name), year := random.randrange(2000, 2037), year + 2)):
            comparison.compare(name, random.choice(changes))
    for name, change in ODD.items():
        assert change in list(transitions(ZoneInfo(name), change.year, change.year + 1))
        comparison.compare(name, change)
    assert comparison.counted["comparisons"] >= 12 * len(ODD)


@pytest.mark.campaign
@pytest.mark.skipif(not FULL, reason="minutes: PGSCHED_CAMPAIGN=1 runs it")
def test_ticks_about_all_changes_of_all_zones(capsys: pytest.CaptureFixture[str]) -> None:
    began, zones, comparison = time.monotonic(), all_zones(), Comparison()
    for name in zones:
        for change in transitions(ZoneInfo(name), 2000, 2038):
            comparison.compare(name, change)
    counted = comparison.counted
    with capsys.disabled():
        print(
            f"\n{len(zones)} zones x {len(EXPRESSIONS)} expressions, {counted['changes']} changes of clocks: {counted['comparisons']} "
            f"comparisons, {counted['ticks']} ticks, all equal, in {time.monotonic() - began:.0f} s"
        )
    assert len(zones) > 550 and counted["changes"] > 10_000
