"""What happens after a failed attempt: a policy is data; the wait itself is computed in Postgres (function `backoff`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pgsched.errors import TaskError


@dataclass(frozen=True, slots=True)
class Exponential:
    """Wait `first` after the first failed attempt, twice as long after each further one, never longer than `cap`.

    `max_attempts` counts all attempts, the first one too. Raises `TaskError` for a value that cannot be meant.
    """

    max_attempts: int
    first: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(hours=1)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.max_attempts < 1:
            raise TaskError(f"retry: max_attempts is {self.max_attempts}, it must be at least 1")
        if self.first < timedelta(0) or self.cap < self.first:
            raise TaskError(
                f"retry: first is {self.first} and cap is {self.cap}; they must not be negative, nor cap below first"
            )
