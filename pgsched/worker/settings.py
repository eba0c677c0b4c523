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
    executor     where `def` tasks run that do not say it themselves: "thread" or "process"
    executors    how many processes of their own for such tasks, at most; None: as many as this machine has processors
    executor_recycle_jobs  such a process that has run so many jobs is followed by a fresh one; None: never
    executor_recycle_mb    the same for one that holds so many megabytes of memory (Linux)
    grace        how long a handler in a process of its own may go on after it was told to stop, before the process is killed
    job_sessions how many connections for transactional jobs, at most

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
    executor: str = "thread"
    executors: int | None = None
    executor_recycle_jobs: int | None = None
    executor_recycle_mb: int | None = None
    grace: timedelta = timedelta(seconds=5)
    job_sessions: int = 10

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
        if self.executor not in ("thread", "process"):
            raise UsageError(f'executor is "{self.executor}": it is "thread" or "process"')
        for name in ("executors", "executor_recycle_jobs", "executor_recycle_mb", "job_sessions"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= 1_000_000:
                raise UsageError(f"{name} is {value}: it must be at least 1")
        if not timedelta(0) <= self.grace <= timedelta(hours=1):
            raise UsageError(f"grace is {self.grace}: it lies between 0 and an hour")
