"""What a handler can ask about the job that it runs: `pgsched.current_job()`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from pgsched.errors import UsageError

_MOST_CHARS = 1000


def _to_nobody(fraction: float | None, message: str | None) -> None:
    """A handler that runs without a worker reports into the void."""


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
    _report: Callable[[float | None, str | None], None] = field(default=_to_nobody, repr=False)

    @property
    def stopping(self) -> bool:
        """True when the worker wants this job to end: a thread, which cannot be cancelled, looks here and returns."""
        return bool(self._stop)

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Say how far this job is: `fraction` 0 to 1, a `message` of which the first 1,000 characters are kept, or both.

        It replaces what was said before. Cheap, and never waits: the worker sends what is new about once a second, so what was
        said in between, or just before the end, may never be seen. Raises `UsageError` for a fraction out of range, or nothing.
        """
        if fraction is None and message is None:
            raise UsageError("progress() says nothing: give it a fraction from 0 to 1, a message, or both")
        if fraction is not None and not (isinstance(fraction, Real) and 0 <= fraction <= 1):
            raise UsageError(f"progress({fraction!r}): the fraction of the work that is done is a number from 0 to 1")
        if message is not None and not isinstance(message, str):
            raise UsageError(f"progress(): its message is a {type(message).__name__}, not a text")
        self._report(fraction, message[:_MOST_CHARS] if message else message)


_current: ContextVar[JobContext] = ContextVar("pgsched_current_job")


def current_job() -> JobContext:
    """The job that runs here. Raises `UsageError` outside a job's handler."""
    try:
        return _current.get()
    except LookupError:
        raise UsageError("current_job() was called outside a job's handler") from None
