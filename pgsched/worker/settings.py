"""How a worker runs: the one list of its settings, with their defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from pgsched.errors import UsageError
from pgsched.lease import LeaseTimes


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker runs.

    queues       the queues it serves; None: those of the App's tasks
    concurrency  how many jobs it runs at once, 1 to 10000
    name         how it is called in the view workers; None: host and process
    poll         how often it looks without a notification
    drain        how long running jobs may take after the first SIGTERM before async handlers are cancelled
    sessions     how many work sessions, 1 or 2
    lease        the times of its lease
    lead         whether this process also stands for leader

    Raises `UsageError` for a value out of range.
    """

    queues: list[str] | None = None
    concurrency: int = 100
    name: str | None = None
    poll: timedelta = timedelta(seconds=1)
    drain: timedelta = timedelta(seconds=30)
    sessions: int = 2
    lease: LeaseTimes = field(default_factory=LeaseTimes)
    lead: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.concurrency <= 10_000:
            raise UsageError(f"concurrency is {self.concurrency}: it is a number from 1 to 10000")
        if not 1 <= self.sessions <= 2:
            raise UsageError(f"sessions is {self.sessions}: a worker has 1 or 2 work sessions")
        if not timedelta(milliseconds=10) <= self.poll <= timedelta(seconds=60):
            raise UsageError(f"poll is {self.poll}: it lies between 10 ms and 60 s")
        if self.drain < timedelta(0):
            raise UsageError(f"drain is {self.drain}: it must not be negative")
        if self.queues is not None and not self.queues:
            raise UsageError("queues is empty: name at least one, or leave it out")
