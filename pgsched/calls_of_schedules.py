"""The operations on schedules, as `calls` has the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgsched.calls import Call

_Make = Callable[..., "Call[Any]"]


class ScheduleCalls:
    """The operations on schedules, for one schema; `make` is that of `Calls`."""

    def __init__(self, make: _Make) -> None:
        self._call = make

    def put(self, schedule: str) -> Call[int]:
        """Make or change a schedule at run time; its number. Cron text and zone were read here."""
        return self._call("select @put_schedule(%(schedule)s::jsonb, true)", _scalar, schedule=schedule)

    def remove(self, name: str, app: str | None) -> Call[int]:
        """Remove a schedule that was made at run time; its number."""
        return self._call("select @unschedule(%(name)s, %(app)s)", _scalar, name=name, app=app)

    def pause(self, name: str, app: str | None) -> Call[bool]:
        """Pause it; whether that changed anything."""
        return self._call("select @pause_schedule(%(name)s, %(app)s)", _scalar, name=name, app=app)

    def resume(self, name: str, app: str | None) -> Call[bool]:
        """Let it tick again; whether that changed anything."""
        return self._call("select @resume_schedule(%(name)s, %(app)s)", _scalar, name=name, app=app)

    def run_now(self, name: str, app: str | None) -> Call[dict[str, Any]]:
        """Make its jobs now: {"outcome", "job_id", "workflow_id", "reason"}."""
        return self._call("select @run_schedule_now(%(name)s, %(app)s)", _scalar, name=name, app=app)

    def backfill(
        self, name: str, app: str | None, ticks: Sequence[datetime], at_most: int
    ) -> Call[list[dict[str, Any]]]:
        """Make these ticks, each at most once: of each {"tick_at", "outcome", "job_id", "workflow_id", "reason"}."""
        return self._call(
            "select @backfill_schedule(%(name)s, %(ticks)s::timestamptz[], %(app)s, %(most)s::integer)",
            _column,
            name=name,
            app=app,
            ticks=list(ticks),
            most=at_most,
        )

    def declare(self, app: str, schedules: str, deployment: int | None, apply: bool) -> Call[dict[str, Any]]:
        """Say which schedules an App's code has: {"added", "changed", "removed", "kept", "older_than"}."""
        return self._call(
            "select @declare_schedules(%(app)s, %(schedules)s::jsonb, %(deployment)s::integer, %(apply)s, true)",
            _scalar,
            app=app,
            schedules=schedules,
            deployment=deployment,
            apply=apply,
        )

    def all(self, app: str | None = None) -> Call[list[dict[str, Any]]]:
        """The view schedules."""
        return self._call(
            "select to_jsonb(s) from @schedules s where %(app)s::text is null or s.app = %(app)s order by s.app, s.name",
            _column,
            app=app,
        )

    def one(self, name: str, app: str | None) -> Call[list[dict[str, Any]]]:
        """The rows of the view schedules with this name: one, none, or those of several applications."""
        return self._call(
            "select to_jsonb(s) from @schedules s where s.name = %(name)s and (%(app)s::text is null or s.app = %(app)s) "
            "order by s.app",
            _column,
            name=name,
            app=app,
        )

    def ticks(self, schedule_id: int, limit: int) -> Call[list[dict[str, Any]]]:
        """What became of its newest ticks."""
        newest = "select * from @schedule_ticks where schedule_id = %(id)s order by tick_at desc limit %(limit)s"
        return self._call(f"select to_jsonb(t) from ({newest}) t", _column, id=schedule_id, limit=limit)

    # The leader

    def due(self, n: int, passed_over: Sequence[int] = ()) -> Call[dict[str, Any]]:
        """Schedules whose tick is due or that have to be planned: {"now", "next_in_s", "due"}."""
        return self._call(
            "select @due_schedules(%(n)s::integer, %(over)s::bigint[])", _scalar, n=n, over=list(passed_over)
        )

    def outdated(self, zone_data: str | None, above: int, n: int) -> Call[list[dict[str, Any]]]:
        """Schedules that were planned by older zone data, or could not be planned."""
        return self._call(
            "select @outdated_schedules(%(zones)s, %(above)s, %(n)s::integer)",
            _scalar,
            zones=zone_data,
            above=above,
            n=n,
        )

    def tick(self, batch: str) -> Call[dict[str, Any]]:
        """Make ticks, and move schedules on: {"moved", "left", "made", "refused"}."""
        return self._call("select @tick_schedules(%(batch)s::jsonb)", _scalar, batch=batch)


def _scalar(rows: list[tuple[Any, ...]]) -> Any:
    return rows[0][0]


def _column(rows: list[tuple[Any, ...]]) -> list[Any]:
    return [row[0] for row in rows]
