"""What a handler may raise to say itself how its attempt ends: `Retry`, `Cancel`, `Snooze`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pgsched.errors import UsageError
from pgsched.retry import MOST_WAIT


class Retry(Exception):
    """The attempt has failed, and the next one begins `after` so long (None: as the task's policy says).

    It costs an attempt as every failure does: where none is left, or the policy's `max_age` is over, the job ends as failed.
    Raises `UsageError` for a wait that is negative or longer than 100 years.
    """

    def __init__(self, after: timedelta | None = None) -> None:
        self.after = None if after is None else _span("Retry", after)
        super().__init__(after)

    def __str__(self) -> str:
        return "asked for another attempt" + (f" after {self.after}" if self.after is not None else "")


class Cancel(Exception):
    """The job is not to be done any more: it ends as cancelled, with this reason, and is not tried again."""

    def __init__(self, reason: str | None = None) -> None:
        if reason is not None and not isinstance(reason, str):
            raise UsageError(f"Cancel(): its reason is a {type(reason).__name__}, not a text")
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return "cancelled by its handler" + (f": {self.reason}" if self.reason else "")


class Snooze(Exception):
    """Not now: the job runs again `after` so long, and the attempt is not charged. (However often: its handler decides.)

    Raises `UsageError` for a wait that is negative or longer than 100 years.
    """

    def __init__(self, after: timedelta, reason: str | None = None) -> None:
        if reason is not None and not isinstance(reason, str):
            raise UsageError(f"Snooze(): its reason is a {type(reason).__name__}, not a text")
        self.after = _span("Snooze", after)
        self.reason = reason
        super().__init__(after, reason)

    def __str__(self) -> str:
        return f"not now, but in {self.after}" + (f": {self.reason}" if self.reason else "")


VERDICTS = Retry, Cancel, Snooze


def span_of(verdict: Retry | Snooze) -> timedelta | None:
    """Its wait; None where there is none, or a handler has put something else there."""
    try:
        after: Any = verdict.after
    except Exception:
        return None
    return after if isinstance(after, timedelta) and timedelta(0) <= after <= MOST_WAIT else None


def _span(name: str, after: object) -> timedelta:
    if not isinstance(after, timedelta):
        raise UsageError(f"{name}(): the wait is {after!r:.80}; it must be a timedelta")
    if not timedelta(0) <= after <= MOST_WAIT:
        raise UsageError(f"{name}(): the wait is {after}; it must not be negative, nor longer than 100 years")
    return after
