"""A schedule as an application declares it: `App.schedule`, `App.schedules.put`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from pgsched.cron import Every, rhythm
from pgsched.errors import ScheduleError
from pgsched.planning import check_jitter
from pgsched.task import BoundTask, Enqueuer, Task

if TYPE_CHECKING:
    from pgsched.workflow import Workflow

CatchUp: TypeAlias = Literal["none", "last", "all"]
Overlap: TypeAlias = Literal["allow", "skip", "queue", "cancel"]
Makes: TypeAlias = "Task[[], Any, Any] | Enqueuer[[], Any] | BoundTask[Any] | Workflow"
"""What a tick enqueues: a task without arguments, one with them (`send.bind("eu")`), or a workflow."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule, checked as far as that is possible without the database."""

    name: str
    text: str = field(repr=False)
    """As the SQL function put_schedule takes it. (It may have secrets in the clear.)"""


def define(
    app: str,
    name: str,
    makes: Makes,
    cron: str | Every,
    timezone: str,
    *,
    starts_at: datetime | None,
    ends_at: datetime | None,
    jitter: timedelta | None,
    catch_up: CatchUp,
    catch_up_limit: int,
    catch_up_window: timedelta | None,
    overlap: Overlap,
) -> Schedule:
    """A schedule from what `App.schedule` was given. Raises `ScheduleError`; `ArgumentsError` where a task needs arguments."""
    where = f'schedule "{name!s:.80}"'
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or "\0" in name:
        raise ScheduleError(f"schedule: its name is {name!r:.80}: a text of 1 to 200 characters without NUL")
    beats = rhythm(cron, timezone)
    for title, instant in (("starts_at", starts_at), ("ends_at", ends_at)):
        if instant is not None and (not isinstance(instant, datetime) or instant.utcoffset() is None):
            raise ScheduleError(f"{where}: {title} is {instant!r}: it must be an aware datetime")
    for title, span in (("jitter", jitter), ("catch_up_window", catch_up_window)):
        if span is not None and not isinstance(span, timedelta):
            raise ScheduleError(f"{where}: {title} is {span!r}: it must be a timedelta")
    if jitter is not None and jitter < timedelta(0):
        raise ScheduleError(f"{where}: jitter is {jitter}: it must not be negative")
    check_jitter(beats, jitter or timedelta(0), starts_at or datetime.now(UTC))
    fields: dict[str, Any] = {
        "name": name,
        "app": app,
        "timezone": timezone,
        "starts_at": starts_at and starts_at.isoformat(),
        "ends_at": ends_at and ends_at.isoformat(),
        "jitter_s": jitter and jitter.total_seconds(),
        "catch_up": catch_up,
        "catch_up_limit": catch_up_limit,
        "catch_up_window_s": None if catch_up_window is None else catch_up_window.total_seconds(),
        "overlap": overlap,
    }
    if isinstance(cron, Every):
        fields |= {"every_s": cron.interval.total_seconds(), "anchor": cron.anchor.isoformat()}
    else:
        fields["cron"] = cron
    workflow, jobs = _made(where, makes)
    if workflow is not None:
        fields["workflow"] = workflow
    try:
        head = json.dumps({key: value for key, value in fields.items() if value is not None}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"{where}: {error}") from error
    return Schedule(name, f'{head[:-1]},"jobs":{jobs}}}')


def _made(where: str, makes: Any) -> tuple[str | None, str]:
    """What a tick enqueues: a workflow's name or None, and the JSON array of its jobs."""
    if isinstance(makes, (Task, Enqueuer)):
        makes = makes.bind()
    if isinstance(makes, BoundTask):
        return None, f"[{makes.text}]"
    text = getattr(makes, "as_text", None)
    if text is None:
        raise ScheduleError(
            f'{where}: a tick enqueues a task, one with its arguments (task.bind("eu")) or a workflow, and {makes!r:.80} is none'
        )
    return makes.name, text()


def preview(cron: str | Every, timezone: str, after: datetime, count: int) -> list[dict[str, Any]]:
    """The next ticks, for people: "utc", "local" (with its offset), "zone" (the name of that) and "remark"."""
    ticks = islice(rhythm(cron, timezone).after(after), count)
    zone = ZoneInfo(timezone)
    return [
        {
            "utc": tick.at.isoformat(),
            "local": tick.at.astimezone(zone).isoformat(),
            "zone": tick.at.astimezone(zone).tzname(),
            "remark": tick.remark,
        }
        for tick in ticks
    ]
