"""The times of a worker's lease: how long it trusts itself, and how long others wait before they take its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pgsched.errors import UsageError


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """`client` < `kill` < `rescue`, all counted from the sending of the last answered heartbeat.

    At `client` a worker begins to stop; at `kill` nothing of it runs any more; `rescue`, 1.02 times `kill` and a second
    (clocks differ a little), is what somebody else waits, who has seen its lock free. Raises `UsageError` for others.
    """

    client: timedelta = timedelta(seconds=20)
    kill: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        """Refuse times in the wrong order."""
        if not timedelta(seconds=1) <= self.client < self.kill:
            raise UsageError(
                f"lease: client is {self.client} and kill is {self.kill}; client must be at least 1 s, and less than kill"
            )

    @property
    def rescue(self) -> timedelta:
        """How long a worker's lock must have been free before somebody takes its jobs without its supervisor's word."""
        return self.kill * 1.02 + timedelta(seconds=1)

    @property
    def heartbeat(self) -> timedelta:
        """How often the lease is proved."""
        return self.client / 3
