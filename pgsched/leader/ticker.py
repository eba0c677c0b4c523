"""The leader's part in schedules: it asks what is due, says what comes next, and has the database make the ticks."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import psycopg

from pgsched.calls import Call, Calls
from pgsched.lease import now
from pgsched.planning import CHUNK, step
from pgsched.zonedata import zone_data

log = logging.getLogger("pgsched.leader")

Ask = Callable[[Call[Any]], Awaitable[Any]]

MOST = 500
"""How many ticks one transaction makes, or how many schedules it only plans."""

_TIME_S = 1.0  # for one look; what is left over has the next one
_REFUSED_S = 60.0  # after a try that took too long
_HELD_S = 1.0  # after a try that met somebody's lock
_PLANNING_S = 0.2  # for planning without a word to the server, which ends a silent leader


class Ticker:
    """The ticks of one process, in all its terms of leadership: what has taken too long is known in the next one."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._zone_data = zone_data()
        self._most = MOST
        self._above: int | None = 0  # up to where what a new leader looks at was looked at
        self._too_slow: dict[int, float] = {}  # until when each of these is refused
        self._fewer: dict[int, int] = {}  # how many ticks of one at a time, where more have taken too long
        self._held: dict[int, float] = {}  # until when each of these is passed by, which somebody has held

    def begin(self) -> None:
        """A new term: what a new leader looks at is looked at."""
        self._above = 0

    async def tick(self, ask: Ask) -> float | None:
        """Make what is due; in how many seconds the next tick is, None where none is planned."""
        end = now() + _TIME_S
        self._held = {one: until for one, until in self._held.items() if now() < until}
        passed_over = list(self._held)
        while self._above is not None and now() < end:
            rows = await ask(self._calls.schedules.outdated(self._zone_data, self._above, MOST))
            # (None of them is due: they are only planned.)
            some, looked_at = await self._steps(rows, datetime.min.replace(tzinfo=UTC))
            if some:
                await ask(self._calls.schedules.tick(json.dumps(some)))
            self._above = rows[looked_at - 1]["id"] if looked_at else None
        while True:
            answer = await ask(self._calls.schedules.due(self._most, passed_over))
            some, _ = await self._steps(answer["due"], datetime.fromisoformat(answer["now"]))
            if some:
                left, alone = await self._make(ask, some)
                for one in (entry for entry in some if entry["id"] in alone):
                    if now() > end:
                        break
                    left += (await self._make(ask, [one]))[0]
                self._held |= dict.fromkeys(left, now() + _HELD_S)
                passed_over += left
            if not some:
                return None if answer["next_in_s"] is None else float(answer["next_in_s"])
            if now() > end:
                return 0.0

    async def _make(self, ask: Ask, some: list[dict[str, Any]]) -> tuple[list[int], set[int]]:
        """Send one batch; which of it somebody else holds, and which have to be sent alone."""
        try:
            answer = await ask(self._calls.schedules.tick(json.dumps(some)))
        except psycopg.errors.QueryCanceled:
            # Too much for one statement: less the next time. A tick that is too much by itself is refused for a while.
            if len(some) > 1:
                self._most = max(1, len(some) // 8)
                raise
            one = some[0]
            if len(one["ticks"]) > 1:
                self._fewer[one["id"]] = max(1, len(one["ticks"]) // 8)
            else:
                self._too_slow[one["id"]] = now() + _REFUSED_S
            log.warning("schedule %s: its tick takes longer to make than a statement of the leader may", one["id"])
            return [], set()
        self._most = min(MOST, self._most * 2)
        for one in answer["refused"]:
            log.warning('schedule "%s" of application "%s": %s', one["name"], one["app"], one["problem"])
        return list(answer["left"]), set(answer["alone"])

    async def _steps(self, rows: list[dict[str, Any]], at: datetime) -> tuple[list[dict[str, Any]], int]:
        """The next steps of the first rows, as many as can be found in a moment, at the server's time `at`; and how many rows."""
        entries: list[dict[str, Any]] = []
        end, looked_at, ticks = now() + _PLANNING_S, 0, 0
        for row in rows:
            looked_at += 1
            if (entry := step(row, at, self._zone_data, self._fewer.get(row["id"], CHUNK))) is not None:
                entries.append(self._noted(row, entry))
                ticks += len(entry["ticks"])
            if now() > end or ticks >= self._most:
                break
        await asyncio.sleep(0)
        return entries, looked_at

    def _noted(self, row: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
        if entry["ticks"] and now() < self._too_slow.get(row["id"], 0.0):
            entry["refuse"] = "it takes longer to make than a statement of the leader may"
        if entry["problem"] is not None:
            log.error('schedule "%s" of application "%s": %s', row["name"], row["app"], entry["problem"])
        return entry
