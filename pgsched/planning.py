"""What a schedule's next step is: which of its ticks are made now, which are missed, and when it ticks next.

Pure: a schedule as the SQL function due_schedules tells it and the server's time go in, an entry for tick_schedules comes out.
Only a tick that is stored is ever made, and the entry says which one was read: so what is decided here can be in vain, not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

from pgsched.cron import Every, Rhythm, Tick, every, rhythm
from pgsched.errors import ScheduleError

LATE = timedelta(seconds=60)
"""A tick that is at most so late is made with any `catch_up`: time for a leader to change, or for a restart of the database."""

LOOK_AHEAD = 100
"""A jitter must not be longer than the shortest span between so many ticks."""

CHUNK = 250
"""So many ticks of one schedule are made in one transaction; the others are made in the next ones, oldest first."""

_SEEN = timedelta(
    days=5 * 366
)  # how far ahead a jitter is compared with the spans between ticks: rare ticks take long to find
_COUNTED = 1000  # missed ticks are counted up to this number
_TINY = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Planned:
    """A schedule, as far as its ticks are concerned; the columns of the table say what each field is."""

    id: int
    app: str
    name: str
    version: int
    cron: str | Every
    timezone: str
    starts_at: datetime | None
    ends_at: datetime | None
    jitter: timedelta
    catch_up: str
    limit: int
    window: timedelta | None
    was: str | None
    next_tick_at: datetime | None
    next_nominal: datetime | None
    plan_after: datetime | None
    base_at: datetime
    base_nominal: datetime | None

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Planned:
        """From an answer of due_schedules. Raises `ScheduleError` for an `every` that cannot be."""
        return cls(
            id=row["id"],
            app=row["app"],
            name=row["name"],
            version=row["version"],
            cron=row["cron"] or every(_span(row["every_s"]), _time(row["anchor"])),
            timezone=row["timezone"],
            starts_at=_time(row["starts_at"]),
            ends_at=_time(row["ends_at"]),
            jitter=_span(row["jitter_s"]),
            catch_up=row["catch_up"],
            limit=row["limit"],
            window=None if row["window_s"] is None else _span(row["window_s"]),
            was=row["next_tick_at"],
            next_tick_at=_time(row["next_tick_at"]),
            next_nominal=_local(row["next_nominal"]),
            plan_after=_time(row["plan_after"]),
            base_at=datetime.fromisoformat(row["base_at"]).astimezone(UTC),
            base_nominal=_local(row["base_nominal"]),
        )


def check_jitter(beats: Rhythm, jitter: timedelta, since: datetime) -> None:
    """Raise `ScheduleError` where a jitter is longer than the shortest span between the next ticks."""
    if not jitter:
        return
    until = since + _SEEN
    ticks = [tick.at for tick in islice(takewhile(lambda tick: tick.at < until, beats.after(since)), LOOK_AHEAD)]
    gap = min((b - a for a, b in pairwise(ticks)), default=None)
    if gap is not None and jitter > gap:
        raise ScheduleError(f"jitter is {jitter}, longer than the {gap} between two of its ticks")


def step(row: Mapping[str, Any], now: datetime, zone_data: str | None, chunk: int = CHUNK) -> dict[str, Any] | None:
    """The entry for tick_schedules of a schedule that is due, or that has to be planned; None where it stays as it is planned.

    It has at most `chunk` ticks. One that cannot be planned, whatever the reason, has that as its problem: it stops no other.
    """
    try:
        return _step(Planned.read(row), now, zone_data, chunk)
    except Exception as error:
        return _broken(row, now, f"it cannot be planned: {type(error).__name__}: {error}")


def _broken(row: Mapping[str, Any], now: datetime, problem: str) -> dict[str, Any]:
    stored = row["next_tick_at"]
    try:
        due = stored is not None and datetime.fromisoformat(stored) <= now
    except ValueError:
        due = False
    return {
        "id": row["id"],
        "version": row["version"],
        "was": stored,
        "ticks": [stored] if due else [],
        "missed": None,
        "base_at": stored if due else row["base_at"],
        "base_nominal": None,
        "zone_data": None,
        "problem": problem,
    }


def _step(schedule: Planned, now: datetime, zone_data: str | None, chunk: int) -> dict[str, Any] | None:
    stored = schedule.next_tick_at
    try:
        beats = rhythm(schedule.cron, schedule.timezone)
        if stored is None or stored > now:
            return _planned(schedule, beats, zone_data)
    except ScheduleError as error:
        # (Another leader may know the zone. A tick that is stored is made; what comes next is left to that one.)
        if stored is not None and stored > now:
            return None
        if stored is None:
            return _entry(schedule, schedule.plan_after or schedule.base_at, None, zone_data, problem=str(error))
        return _entry(schedule, stored, schedule.next_nominal, zone_data, ticks=[stored], problem=str(error))
    if schedule.plan_after is not None:  # (the stored tick is one of the rhythm before, of which no other is known)
        base = max(stored, schedule.plan_after)
        following = _next(schedule, beats, base, None)
        late = now - stored
        if late > (LATE if schedule.catch_up == "none" else schedule.window or late):
            missed = {"at": stored.isoformat(), "until": base.isoformat(), "n": None, "reason": _why(schedule)}
            return _entry(schedule, base, None, zone_data, missed=missed, following=following)
        unknown = None
        if stored + LATE < base <= now:
            reason = f"the rhythm was changed then, or a pause ended: its ticks between {stored} and then are not known"
            unknown = {"at": base.isoformat(), "until": base.isoformat(), "n": None, "reason": reason}
        return _entry(schedule, base, None, zone_data, ticks=[stored], missed=unknown, following=following)
    return _fired(schedule, beats, Tick(stored, schedule.next_nominal or datetime.min, None), now, zone_data, chunk)


def _planned(schedule: Planned, beats: Rhythm, zone_data: str | None) -> dict[str, Any]:
    """Its next tick: planned anew, or again with newer zone data, from where it was planned the last time."""
    base, nominal = schedule.base_at, schedule.base_nominal
    if schedule.plan_after is not None and schedule.plan_after > base:
        base, nominal = schedule.plan_after, None
    check_jitter(beats, schedule.jitter, base)
    return _entry(schedule, base, nominal, zone_data, following=_next(schedule, beats, base, nominal))


def _fired(
    schedule: Planned, beats: Rhythm, stored: Tick, now: datetime, zone_data: str | None, chunk: int
) -> dict[str, Any]:
    """The stored tick is due, and perhaps later ones: those that are made, oldest first, and the first of those that are not."""
    until = now if schedule.ends_at is None else min(now, schedule.ends_at)
    oldest = stored.at if schedule.window is None else max(stored.at, now - schedule.window)
    newest = (_last(beats, stored, 1, stored.at, until) or [stored])[-1]
    if schedule.catch_up == "none":
        made = [newest] if now - newest.at <= LATE else []
    else:
        limit = schedule.limit if schedule.catch_up == "all" else 1
        made = _last(beats, stored, limit, max(stored.at, oldest - _TINY), until)
        if len(made) < limit and oldest == stored.at:
            made = [stored, *made]
    missed = None
    if not made or made[0].at > stored.at:
        before = made[0].at - _TINY if made else until
        newest_missed = (_last(beats, stored, 1, stored.at, before) or [stored])[-1]
        missed_ticks = takewhile(lambda tick: tick.at <= newest_missed.at, beats.after(stored.at, stored.nominal))
        count = 1 + sum(1 for _ in islice(missed_ticks, _COUNTED))
        missed = {
            "at": stored.at.isoformat(),
            "until": newest_missed.at.isoformat(),
            "n": count if count <= _COUNTED else None,
            "reason": _why(schedule),
        }
    if len(made) > chunk:
        made, newest = made[:chunk], made[chunk - 1]
    following = _next(schedule, beats, newest.at, newest.nominal)
    made_at = [tick.at for tick in made]
    return _entry(schedule, newest.at, newest.nominal, zone_data, ticks=made_at, missed=missed, following=following)


def _last(beats: Rhythm, stored: Tick, count: int, since: datetime, until: datetime) -> list[Tick]:
    """The newest ticks up to `until`, without those for a wall-clock time that the stored one is for, or an earlier one."""
    ticks = beats.last(until, count, since)
    return [tick for tick in ticks if not beats.each_wall_clock_once or tick.nominal > stored.nominal]


def _why(schedule: Planned) -> str:
    if schedule.catch_up == "none":
        return f"catch_up is none: the newest tick is made if it is at most {LATE.seconds} s late"
    which = "the newest tick is made" if schedule.catch_up == "last" else f"the newest {schedule.limit} ticks are made"
    late = "" if schedule.window is None else f", if they are at most {schedule.window} late"
    return f"catch_up is {schedule.catch_up}: {which}{late}"


def _next(schedule: Planned, beats: Rhythm, base: datetime, nominal: datetime | None) -> Tick | None:
    if schedule.starts_at is not None and schedule.starts_at > base:
        base = schedule.starts_at - _TINY
    ticks: Iterator[Tick] = beats.after(base, nominal)
    found = next(ticks, None)
    return None if found is None or (schedule.ends_at is not None and found.at > schedule.ends_at) else found


def _entry(
    schedule: Planned,
    base: datetime,
    nominal: datetime | None,
    zone_data: str | None,
    *,
    ticks: list[datetime] | None = None,
    missed: dict[str, Any] | None = None,
    following: Tick | None = None,
    problem: str | None = None,
) -> dict[str, Any]:
    """An entry for tick_schedules."""
    entry: dict[str, Any] = {
        "id": schedule.id,
        "version": schedule.version,
        "was": schedule.was,
        "ticks": [tick.isoformat() for tick in ticks or []],
        "missed": missed,
        "base_at": base.isoformat(),
        "base_nominal": None if nominal is None else nominal.isoformat(),
        "zone_data": zone_data,
        "problem": problem,
    }
    if following is not None:
        local = following.at.astimezone(ZoneInfo(schedule.timezone)).replace(tzinfo=None)
        entry["next_at"] = following.at.isoformat()
        entry["next_local"] = local.isoformat()
        entry["next_nominal"] = following.nominal.isoformat()
    return entry


def _span(seconds: Any) -> timedelta:
    return timedelta(seconds=float(seconds))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def _local(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
