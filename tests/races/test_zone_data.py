"""Leaders in processes of their own whose zone data differ, around a change of a zone's rules: no tick twice, none lost (R23)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
from harness.ticking import Reign, as_if_at, history, next_tick, schedule

pytestmark = pytest.mark.one_server

TESTS = Path(__file__).parents[1]
PARIS, LONDON = "Europe/Paris", "Europe/London"


def zone_folder(where: Path, version: str, zones: dict[str, str]) -> Path:
    """A zone database of this version in which each zone has the rules of another."""
    for name, rules in zones.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        for folder in map(Path, [*zoneinfo.TZPATH]):
            if (folder / rules).exists():
                shutil.copyfile(folder / rules, where / name)
                break
        else:
            import importlib.resources

            data = importlib.resources.files("tzdata.zoneinfo").joinpath(rules).read_bytes()
            (where / name).write_bytes(data)
    (where / "tzdata.zi").write_text(f"# version {version}\n")
    return where


class Host:
    """A host whose leaders have this zone data."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._environment = os.environ | {"PYTHONTZPATH": str(folder), "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}

    def lead(self, *times: str) -> None:
        """Lead at these times, in a process of its own."""
        command = [sys.executable, "-m", "harness.ticking", self._dsn, *times]
        ran = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr


@pytest.fixture
def hosts(dsn: str, tmp_path: Path) -> tuple[Host, Host]:
    """One with old zone data, and one with new ones, in which Paris has gone over to the time of London."""
    same = {"UTC": "UTC", "Etc/UTC": "UTC", LONDON: LONDON}
    old = zone_folder(tmp_path / "old", "2199a", same | {PARIS: PARIS})
    new = zone_folder(tmp_path / "new", "2199b", same | {PARIS: LONDON})
    return Host(dsn, old), Host(dsn, new)


def day(number: int, time: str) -> str:
    return f"2200-01-{number:02} {time}Z"


def test_a_tick_that_new_zone_data_put_later_comes_once(hosts: tuple[Host, Host], connection: Any) -> None:
    old, new = hosts
    schedule(connection, cron="0 9 * * *", timezone=PARIS, at=day(1, "00:00"))
    old.lead(day(1, "00:01"), day(1, "08:00"))
    assert (history(connection), next_tick(connection)) == ([("01 08:00", "made")], "02 08:00")
    new.lead(day(1, "08:30"), day(1, "09:30"))  # (nine o'clock of the first day comes again, by the new rules)
    assert (history(connection), next_tick(connection)) == ([("01 08:00", "made")], "02 09:00")
    old.lead(day(2, "08:30"))  # a standby with the old data leads for a while: it fires what is stored
    assert next_tick(connection) == "02 09:00"
    old.lead(day(2, "09:00"), day(2, "09:30"))
    assert (history(connection)[1:], next_tick(connection)) == ([("02 09:00", "made")], "03 08:00")
    new.lead(day(2, "12:00"), day(3, "08:30"), day(3, "09:00:30"))
    assert history(connection)[2:] == [("03 09:00", "made")]


def test_a_tick_that_new_zone_data_put_earlier_comes_late_and_once(hosts: tuple[Host, Host], dsn: str, tmp_path: Path, connection: Any) -> None:
    same = {"UTC": "UTC", "Etc/UTC": "UTC", PARIS: PARIS}
    old = Host(dsn, zone_folder(tmp_path / "before", "2199a", same | {LONDON: LONDON}))
    new = Host(dsn, zone_folder(tmp_path / "after", "2199b", same | {LONDON: PARIS}))
    schedule(connection, cron="0 9 * * *", timezone=LONDON, catch_up="last", at=day(1, "00:00"))
    old.lead(day(1, "00:01"), day(1, "09:00"))
    new.lead(day(2, "08:30"))  # nine o'clock was half an hour ago
    old.lead(day(2, "09:00"), day(2, "09:30"))
    assert history(connection) == [("01 09:00", "made"), ("02 08:00", "made")]
    assert next_tick(connection) == "03 08:00", "what newer zone data have planned stays"
    new.lead(day(2, "10:00"), day(3, "08:00"))
    old.lead(day(3, "09:00"))
    assert history(connection)[2:] == [("03 08:00", "made")]


@pytest.mark.parametrize("seed", range(3))
def test_whoever_leads_each_day_has_its_tick_once(hosts: tuple[Host, Host], connection: Any, seed: int) -> None:
    import random

    chance = random.Random(seed)
    schedule(connection, cron="0 9 * * *", timezone=PARIS, catch_up="last", at=day(1, "00:00"))
    number = 1
    while number < 25:
        times = []
        for _ in range(chance.randint(1, 3)):
            times += [day(number, time) for time in ("07:30", "08:00", "08:30", "09:00", "10:00") if chance.random() < 0.8]
            times.append(day(number, "12:00"))
            number += 1
        chance.choice(hosts).lead(*times)
    days = [at[:2] for at, outcome in history(connection) if outcome == "made"]
    assert days == [f"{n:02}" for n in range(1, number)]


def test_zone_data_of_an_older_or_unknown_version_plans_nothing_again(dsn: str, connection: Any) -> None:
    schedule(connection, cron="0 9 * * *", timezone=PARIS, at=day(1, "00:00"))
    reign = Reign(dsn)
    reign.tick(day(1, "00:01"))
    connection.execute("update pgsched.schedule set zone_data = '9999z'")
    reign.replan()
    assert connection.execute("select zone_data from pgsched.schedule").fetchone() == ("9999z",)
    connection.execute("update pgsched.schedule set zone_data = null")
    reign.replan()
    assert connection.execute("select zone_data from pgsched.schedule").fetchone() == (None,)
    reign.close()


def test_a_zone_that_one_leader_does_not_know_is_planned_by_the_next_that_does(dsn: str, tmp_path: Path, connection: Any) -> None:
    without = Host(dsn, zone_folder(tmp_path / "without", "2199a", {"UTC": "UTC", "Etc/UTC": "UTC"}))
    schedule(connection, cron="0 9 * * *", timezone=PARIS, at=day(1, "00:00"))
    knowing = Reign(dsn)
    knowing.tick(day(1, "00:01"))
    knowing.close()
    without._environment["PYTHONPATH"] += f":{_no_tzdata(tmp_path)}"
    without.lead(day(1, "08:00"))
    assert history(connection) == [("01 08:00", "made")], "what is stored is made"
    problem = connection.execute("select problem from pgsched.schedule").fetchone()
    assert problem[0].startswith(f'timezone "{PARIS}" is unknown')
    knowing = Reign(dsn)
    knowing.replan()
    knowing.tick(day(1, "08:30"), day(2, "08:00"))
    assert history(connection)[1:] == [("02 08:00", "made")]
    assert connection.execute("select problem from pgsched.schedule").fetchone() == (None,)
    knowing.close()
    as_if_at(connection, day(3, "00:00"))


def _no_tzdata(where: Path) -> Path:
    """A folder that hides the package tzdata, from which zones are read where no folder has them."""
    (where / "hidden").mkdir()
    (where / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['tzdata'] = None\n")
    return where / "hidden"
