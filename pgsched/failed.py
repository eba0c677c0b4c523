"""Jobs that have failed for good: which are meant, how they are counted, and what became of those that run again."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgsched.errors import UsageError

if TYPE_CHECKING:
    from pgsched.calls import Call, Calls, Rows
    from pgsched.client import Client
    from pgsched.task import AnyTask

_PIECE = 500


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """Failed jobs of one task that failed of the same (numbers in the text aside)."""

    task: str | None
    queue: str
    error_type: str | None
    error: str | None
    """The first line of the newest one's error."""
    jobs: int
    """How many."""
    first_at: datetime
    last_at: datetime
    job_id: int
    """The newest one."""


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A job that has failed, and the error of its last attempt."""

    job_id: int
    task: str | None
    queue: str
    error_type: str | None
    error: str | None
    attempt: int
    finished_at: datetime


@dataclass(slots=True)
class RetriedJobs:
    """What became of failed jobs that were to run again."""

    retried: list[int] = field(default_factory=list)
    """These run again."""
    waiting: list[int] = field(default_factory=list)
    """These had ended because of one of them, and wait for it again."""
    refused: dict[int, str] = field(default_factory=dict)
    """These cannot, and why."""


class FailedJobs:
    """Failed jobs of one kind, as `App.failed` names them: to be counted, listed, and run again."""

    def __init__(self, client: Client, such: Mapping[str, Any]) -> None:
        self._client = client
        self._such = such

    def groups(self, *, limit: int = 50) -> list[FailedGroup]:
        """The newest 10,000 of them counted by task and error, the groups with most first."""
        return _groups(self._client.run(self._client.calls.failed_groups(self._such, limit), "groups", "agroups"))

    async def agroups(self, *, limit: int = 50) -> list[FailedGroup]:
        """`groups` in an event loop."""
        return _groups(await self._client.arun(self._client.calls.failed_groups(self._such, limit)))

    def jobs(self, *, limit: int = 50, before_id: int | None = None) -> list[FailedJob]:
        """The newest of them, each with its error; `before_id`: only those below this id, for the next page."""
        call = self._client.calls.list_failed(self._such, limit, before_id)
        return _jobs(self._client.run(call, "jobs", "ajobs"))

    async def ajobs(self, *, limit: int = 50, before_id: int | None = None) -> list[FailedJob]:
        """`jobs` in an event loop."""
        return _jobs(await self._client.arun(self._client.calls.list_failed(self._such, limit, before_id)))

    def retry(self, *, limit: int | None = None, dry_run: bool = False) -> RetriedJobs:
        """Let them run again, in the order of their ids, at most `limit`; what became of each.

        In pieces, each committed by itself; one that cannot run again (as `Job.retry` says) stops no other. `dry_run` answers the
        same and changes nothing. Raises `UsageError` for a limit below 1.
        """
        steps = retrying(self._client.calls, self._such, limit, dry_run)
        try:
            call = next(steps)
            while True:
                call = steps.send(self._client.run(call, "retry", "aretry"))
        except StopIteration as end:
            report: RetriedJobs = end.value
            return report

    async def aretry(self, *, limit: int | None = None, dry_run: bool = False) -> RetriedJobs:
        """`retry` in an event loop."""
        steps = retrying(self._client.calls, self._such, limit, dry_run)
        try:
            call = next(steps)
            while True:
                call = steps.send(await self._client.arun(call))
        except StopIteration as end:
            report: RetriedJobs = end.value
            return report


def such(
    task: str | AnyTask | None, error: str | None, queue: str | None, since: datetime | None, until: datetime | None
) -> dict[str, Any]:
    """Which failed jobs are meant, as the calls take it. Raises `UsageError` for a naive time, and for a text with a NUL."""
    for name, at in (("since", since), ("until", until)):
        if at is not None and (not isinstance(at, datetime) or at.utcoffset() is None):
            raise UsageError(f"{name} is {at!r}: it must be an aware datetime, or nobody knows which moment it means")
    named = task if task is None or isinstance(task, str) else task.name
    texts = {"task": named, "error": error, "queue": queue}
    for name, text in texts.items():
        if text is not None and "\0" in text:
            raise UsageError(f"{name} is {text!r:.80}: no text in Postgres has a NUL character")
    return texts | {"since": since and since.isoformat(), "until": until and until.isoformat()}


def retrying(
    calls: Calls, which: Mapping[str, Any], limit: int | None, dry_run: bool
) -> Generator[Call[Rows], Rows, RetriedJobs]:
    """The calls that let them run again, each a transaction of its own, whose answers are sent in; what became of them.

    Raises `UsageError` for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}: it is how many jobs shall run again at most")
    report, above = RetriedJobs(), 0
    while limit is None or len(report.retried) < limit:
        most = _PIECE if limit is None else min(_PIECE, limit - len(report.retried))
        rows = yield calls.retry_failed(which, most, dry_run, above)
        more = None
        for job_id, outcome, why in rows:
            if outcome == "more":
                more = job_id
            elif outcome == "refused":
                report.refused[job_id] = why
            else:
                (report.retried if outcome == "retried" else report.waiting).append(job_id)
        if more is None:
            break
        above = more
    return report


def _groups(rows: list[dict[str, Any]]) -> list[FailedGroup]:
    return [FailedGroup(**{name: _read(name, row[name]) for name in FailedGroup.__slots__}) for row in rows]


def _jobs(rows: list[dict[str, Any]]) -> list[FailedJob]:
    return [FailedJob(**{name: _read(name, row[name]) for name in FailedJob.__slots__}) for row in rows]


def _read(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if name.endswith("_at") else value
