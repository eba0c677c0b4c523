"""Answers of the database that have more than one part, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended; `state` is None where there is no such job. `result` is JSON."""

    job_id: int
    state: str | None
    result: str | None
    reason: str | None
    error_type: str | None
    error: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """Where a job stands, as the view `jobs` shows it: what was asked for in `Job.info()`."""

    id: int
    task: str
    queue: str
    state: str
    attempt: int
    max_attempts: int
    reason: str | None
    progress: float | None
    progress_message: str | None
    result: Any
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    created_at: datetime


def job_info(row: Mapping[str, Any]) -> JobInfo:
    """The row of the view as a value with real times."""
    times = {
        name: datetime.fromisoformat(row[name]) if row[name] else None
        for name in ("run_at", "started_at", "finished_at", "created_at")
    }
    names = (
        "id",
        "task",
        "queue",
        "state",
        "attempt",
        "max_attempts",
        "reason",
        "progress",
        "progress_message",
        "result",
    )
    return JobInfo(**{name: row[name] for name in names}, **times)  # type: ignore[arg-type]
