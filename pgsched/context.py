"""What a handler can ask about the job that it runs: `pgsched.current_job()`."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pgsched.errors import UsageError


@dataclass(slots=True)
class JobContext:
    """The job that runs here."""

    id: int
    """Its number."""
    task: str
    """Its task's name."""
    attempt: int
    """The number of this attempt in its retry budget, from 1."""
    fence: int
    """This claim's number: new at every claim, only grows for a job. A token for conditional writes outside Postgres."""
    lost_attempts: int = 0
    """How many workers died before while they ran it."""
    state: Any = None
    """What the app's lifespan has yielded."""
    _stop: list[str] = field(default_factory=list, repr=False)

    @property
    def stopping(self) -> bool:
        """True when the worker wants this job to end: a thread, which cannot be cancelled, looks here and returns."""
        return bool(self._stop)


_current: ContextVar[JobContext] = ContextVar("pgsched_current_job")


def current_job() -> JobContext:
    """The job that runs here. Raises `UsageError` outside a job's handler."""
    try:
        return _current.get()
    except LookupError:
        raise UsageError("current_job() was called outside a job's handler") from None
