"""A lease's decisions, pure: times and events in, orders out. No clock, no server, nothing that waits.

A worker trusts itself only as long as a commit of its lease session was answered lately. All is counted from the *sending* of
the last answered heartbeat: what a rescuer counts begins later, when it sees the lock free.
"""

from __future__ import annotations

import enum
import math
import time
from dataclasses import dataclass
from datetime import timedelta

from pgsched.errors import UsageError


def now() -> float:
    """Seconds by a clock that goes on while the machine sleeps (CLOCK_MONOTONIC stands still then), where there is one."""
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


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
        """How often the lease is proved, and the bound of every statement that proves it."""
        return self.client / 3


class Order(enum.Enum):
    """What the lease says now."""

    WORK = "work"
    """It is good."""
    STOP = "stop"
    """No more claims, and every handler is to end: it is older than `client`."""
    DIE = "die"
    """Nothing may run any more: it is older than `kill`."""


class Lease:
    """The lease of one worker. Every time is of one clock, in seconds."""

    def __init__(self, times: LeaseTimes, sent_at: float) -> None:
        self.times = times
        self._base = sent_at

    def answered(self, sent_at: float) -> None:
        """A heartbeat (or an attach) that was sent at this time has been answered."""
        self._base = max(self._base, sent_at)

    def order(self, at: float) -> Order:
        """What holds at this time."""
        age = at - self._base
        if age < self.times.client.total_seconds():
            return Order.WORK
        return Order.STOP if age < self.times.kill.total_seconds() else Order.DIE

    def good_until(self) -> float:
        """When handlers must begin to stop unless a heartbeat is answered."""
        return self._base + self.times.client.total_seconds()


class Silence:
    """What a rescuer has seen: since when each worker's lock has been free without a break, at one generation."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int | None], float] = {}
        self._due_at: dict[tuple[int, int | None], float] = {}

    def look(
        self, answered_at: float, silent: list[tuple[int, int | None, float]]
    ) -> list[tuple[int, int | None, float]]:
        """Take in one look: (worker, generation, rescue_after in seconds) of all that are silent now, answered at this time.

        Returns those that have been silent for their rescue_after: (worker, generation, seconds of silence). One that is
        missing, or has another generation, begins anew.
        """
        keys = {(worker, generation) for worker, generation, _ in silent}
        self._since = {key: since for key, since in self._since.items() if key in keys}
        self._due_at = {}
        due = []
        for worker, generation, rescue_after in silent:
            since = self._since.setdefault((worker, generation), answered_at)
            self._due_at[worker, generation] = since + rescue_after
            if answered_at - since >= rescue_after:
                due.append((worker, generation, answered_at - since))
        return due

    def next_due(self, after: float) -> float:
        """When the next of them will have been silent for long enough, if that is later than `after`; else infinity."""
        return min((at for at in self._due_at.values() if at > after), default=math.inf)
