"""The schedules of an application, at run time: `App.schedules`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from pgsched.calls import Call
from pgsched.calls_of_schedules import ScheduleCalls
from pgsched.cron import Every, every, rhythm
from pgsched.errors import ScheduleError
from pgsched.schedule import CatchUp, Makes, Overlap, Schedule, define

if TYPE_CHECKING:
    from pgsched.app import App

T = TypeVar("T")

_TINY = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a tick that was made by hand."""

    outcome: str
    """made; queued: made, and it waits for an earlier run; skipped: `reason` says why; there: it was made already."""
    job_id: int | None
    workflow_id: int | None
    reason: str | None
    tick_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Declared:
    """What a declaration has changed, by names."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    kept: list[str]
    """What was left as it was although the code says otherwise: without a number of a deployment only `apply` changes it."""
    older_than: int | None
    """The highest deployment, where this one is older and so has changed nothing."""


class Schedules:
    """The schedules of one application. Each method has a twin for event loops, with an `a` before its name.

    They raise `InvalidSchedule` where there is no such schedule, `ConnectError` and `SchemaError` as the others.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self.declared: dict[str, Schedule] = {}
        """Those of the code, by name."""

    def put(
        self,
        name: str,
        makes: Makes,
        cron: str | Every,
        timezone: str = "UTC",
        *,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        jitter: timedelta | None = None,
        catch_up: CatchUp = "none",
        catch_up_limit: int = 100,
        catch_up_window: timedelta | None = None,
        overlap: Overlap = "allow",
    ) -> int:
        """Make a schedule at run time, or change one that was so made; its number. The options are those of `App.schedule`.

        Raises `InvalidSchedule` where the code of an application declares one of this name.
        """
        made = define(
            self._app.name,
            name,
            makes,
            cron,
            timezone,
            starts_at=starts_at,
            ends_at=ends_at,
            jitter=jitter,
            catch_up=catch_up,
            catch_up_limit=catch_up_limit,
            catch_up_window=catch_up_window,
            overlap=overlap,
        )
        return self._run(self._calls.put(made.text), "put")

    async def aput(self, name: str, makes: Makes, cron: str | Every, timezone: str = "UTC", **options: Any) -> int:
        """`put` in an event loop."""
        defaults: dict[str, Any] = {
            "starts_at": None,
            "ends_at": None,
            "jitter": None,
            "catch_up": "none",
            "catch_up_limit": 100,
            "catch_up_window": None,
            "overlap": "allow",
        }
        made = define(self._app.name, name, makes, cron, timezone, **(defaults | options))
        return await self._arun(self._calls.put(made.text))

    def remove(self, name: str) -> None:
        """Remove one that was made at run time. What it has enqueued stays."""
        self._run(self._calls.remove(name, self._app.name), "remove")

    async def aremove(self, name: str) -> None:
        """`remove` in an event loop."""
        await self._arun(self._calls.remove(name, self._app.name))

    def pause(self, name: str) -> bool:
        """Pause one, also across deploys; whether that changed anything."""
        return self._run(self._calls.pause(name, self._app.name), "pause")

    async def apause(self, name: str) -> bool:
        """`pause` in an event loop."""
        return await self._arun(self._calls.pause(name, self._app.name))

    def resume(self, name: str) -> bool:
        """Let one tick again, from now on; whether that changed anything."""
        return self._run(self._calls.resume(name, self._app.name), "resume")

    async def aresume(self, name: str) -> bool:
        """`resume` in an event loop."""
        return await self._arun(self._calls.resume(name, self._app.name))

    def run_now(self, name: str) -> Made:
        """Enqueue now what its ticks enqueue; `overlap` holds, and its next tick is not touched."""
        return Made(**self._run(self._calls.run_now(name, self._app.name), "run_now"))

    async def arun_now(self, name: str) -> Made:
        """`run_now` in an event loop."""
        return Made(**await self._arun(self._calls.run_now(name, self._app.name)))

    def backfill(self, name: str, since: datetime, until: datetime, *, at_most: int = 100) -> list[Made]:
        """Make the ticks from `since` to `until` that were not made, each at most once however often this is called.

        Raises `ScheduleError` where they are more than `at_most` (up to 10,000), not in the past, or so old that their history is
        pruned.
        """
        rows = self._run(self._calls.one(name, self._app.name), "backfill")
        ticks = ticks_between(one_of(rows, name), since, until, at_most)
        return _backfilled(self._run(self._calls.backfill(name, self._app.name, ticks, at_most), "backfill"))

    async def abackfill(self, name: str, since: datetime, until: datetime, *, at_most: int = 100) -> list[Made]:
        """`backfill` in an event loop."""
        rows = await self._arun(self._calls.one(name, self._app.name))
        ticks = ticks_between(one_of(rows, name), since, until, at_most)
        return _backfilled(await self._arun(self._calls.backfill(name, self._app.name, ticks, at_most)))

    def all(self) -> list[dict[str, Any]]:
        """Those of this application, as rows of the view `schedules`."""
        return self._run(self._calls.all(self._app.name), "all")

    async def aall(self) -> list[dict[str, Any]]:
        """`all` in an event loop."""
        return await self._arun(self._calls.all(self._app.name))

    def declare(self, *, apply: bool = False) -> Declared:
        """Bring the database to what the code says, as each worker does when it starts.

        With `App(deployment=N)` it adds, changes and removes, unless a higher one has declared; without one it only adds what
        is missing and never was removed. `apply` (`pgsched schedules apply`, a step of a deploy) changes and removes without one.
        """
        return Declared(**self._run(self.declaration(apply), "declare"))

    async def adeclare(self, *, apply: bool = False) -> Declared:
        """`declare` in an event loop."""
        return Declared(**await self._arun(self.declaration(apply)))

    def declaration(self, apply: bool = False) -> Call[dict[str, Any]]:
        """The call that `declare` makes."""
        texts = ",".join(schedule.text for schedule in self.declared.values())
        return self._calls.declare(self._app.name, f"[{texts}]", self._app.deployment, apply)

    @property
    def _calls(self) -> ScheduleCalls:
        return self._app.client.calls.schedules

    def _run(self, call: Call[T], name: str) -> T:
        return self._app.client.run(call, name, f"a{name}")

    async def _arun(self, call: Call[T]) -> T:
        return await self._app.client.arun(call)


def one_of(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one schedule that is meant. Raises `ScheduleError` where there is none, or one of several applications."""
    if not rows:
        raise ScheduleError(f'there is no schedule "{name}": `pgsched schedules` lists what there is')
    if len(rows) > 1:
        apps = ", ".join(f'"{row["app"]}"' for row in rows)
        raise ScheduleError(f'schedules of {apps} are named "{name}": say which application is meant')
    return rows[0]


def cron_of(row: Mapping[str, Any]) -> str | Every:
    """The rhythm of a row of the view."""
    if row["cron"] is not None:
        return str(row["cron"])
    anchor = None if row["anchor"] is None else datetime.fromisoformat(row["anchor"])
    return every(timedelta(seconds=row["every_s"]), anchor)


def ticks_between(row: Mapping[str, Any], since: datetime, until: datetime, at_most: int) -> list[datetime]:
    """The ticks of a row of the view from `since` to `until`. Raises `ScheduleError` where they are more than `at_most`."""
    beats = rhythm(cron_of(row), row["timezone"])
    for name, instant in (("since", since), ("until", until)):
        if not isinstance(instant, datetime) or instant.utcoffset() is None:
            raise ScheduleError(f"backfill: {name} is {instant!r}: it must be an aware datetime")
    ticks = takewhile(lambda tick: tick.at <= until, beats.after(since - _TINY))
    found = [tick.at for tick in islice(ticks, at_most + 1)]
    if len(found) > at_most:
        raise ScheduleError(
            f'backfill of schedule "{row["name"]}" would make more than {at_most} ticks: take a shorter range, or raise at_most '
            "(up to 10000)"
        )
    return found


def _backfilled(rows: list[dict[str, Any]]) -> list[Made]:
    return [Made(**(row | {"tick_at": datetime.fromisoformat(row["tick_at"])})) for row in rows]
