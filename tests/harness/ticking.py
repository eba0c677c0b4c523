"""Schedules with the clock moved: a session that leads and makes the ticks of times that a test says.

As a program (`python -m harness.ticking DSN TIME...`) it is a leader in a process of its own, for instance with other zone data.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import psycopg

from pgsched.planning import step
from pgsched.zonedata import zone_data


class Reign:
    """A session that leads. Nothing happens but what the test asks for."""

    def __init__(self, dsn: str, name: str = "steps") -> None:
        self.session = psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=5s")
        info = json.dumps({"name": name, "host": "here", "pid": 1})
        if self._one("select pgsched.lead(%s)", info) is None:
            self.session.close()
            raise AssertionError("somebody else leads")

    def tick(self, *times: str) -> None:
        """Do what the leader does at each of these times: plan what has to be planned, and make what is due."""
        for at in times:
            for _ in range(50):
                answer = self._one("select pgsched.due_schedules(500, '{}', %s)", at)
                if not answer["due"]:
                    break
                now = datetime.fromisoformat(answer["now"])
                entries = _steps(answer["due"], now)
                alone = self.send(entries, at)["alone"]
                for entry in entries:
                    if entry["id"] in alone:
                        self.send([entry], at)
            else:
                raise AssertionError(f"it does not come to an end: {answer['due'][0]}")

    def entries(self, at: str) -> list[dict[str, Any]]:
        """What it would send at this time."""
        answer = self._one("select pgsched.due_schedules(500, '{}', %s)", at)
        return _steps(answer["due"], datetime.fromisoformat(answer["now"]))

    def send(self, entries: list[dict[str, Any]], at: str) -> dict[str, Any]:
        """Have these ticks made; the answer."""
        found: dict[str, Any] = self._one("select pgsched.tick_schedules(%s, %s)", json.dumps(entries), at)
        return found

    def replan(self) -> None:
        """What a new leader does first: plan again what older zone data has planned."""
        rows = self._one("select pgsched.outdated_schedules(%s, 0, 1000)", zone_data())
        now = datetime.min.replace(tzinfo=UTC)
        self.send(_steps(rows, now), "2200-01-01")

    def close(self) -> None:
        """End the session: the next one can lead."""
        self.session.execute("select pgsched.resign('over')")
        self.session.close()

    def _one(self, query: str, *params: Any) -> Any:
        row = self.session.execute(query, params).fetchone()
        assert row is not None
        return row[0]


def _steps(rows: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    return [entry for row in rows if (entry := step(row, now, zone_data())) is not None]


def schedule(connection: Any, name: str = "s", *, at: str | None = None, **options: Any) -> int:
    """A schedule of task t in queue q, made as if at this time; its number."""
    given = {"task": "t", "queue": "q"} | options
    named = ", ".join(f'"{key}" => %({key})s' for key in given)
    row = connection.execute(f"select pgsched.schedule(%(name)s, {named})", {"name": name} | given).fetchone()
    if at is not None:
        as_if_at(connection, at)
    return int(row[0])


def as_if_at(connection: Any, at: str) -> None:
    """What has just been made, changed or resumed, was so at this time."""
    connection.execute("update pgsched.schedule set plan_after = %s, base_at = least(base_at, %s) where plan_after is not null", (at, at))


def history(connection: Any, name: str = "s") -> list[tuple[str, str]]:
    """What became of its ticks: (day and time, outcome), oldest first; of a range that was missed its beginning, end and number."""
    rows = connection.execute(
        "select tick_at, outcome, missed_until, missed from pgsched.schedule_ticks where name = %s order by tick_at", (name,)
    ).fetchall()

    def text(at: datetime) -> str:
        at = at.astimezone(UTC)
        return f"{at:%d %H:%M}" if not at.second else f"{at:%d %H:%M:%S}"

    return [
        (text(at) if until is None else f"{text(at)} to {text(until)} ({n})", outcome) for at, outcome, until, n in rows
    ]


def next_tick(connection: Any, name: str = "s") -> str | None:
    """When it ticks next."""
    row = connection.execute("select next_tick_at from pgsched.schedules where name = %s", (name,)).fetchone()
    assert row is not None
    return None if row[0] is None else f"{row[0].astimezone(UTC):%d %H:%M}"


if __name__ == "__main__":
    reign = Reign(sys.argv[1], "another process")
    reign.replan()
    reign.tick(*sys.argv[2:])
    reign.close()
