"""What a worker process ends with: the one list of its exit codes."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a worker process ends with."""

    OK = 0
    """It stopped with nothing left running."""
    ERROR = 1
    """It could not start, or its code failed."""
    STILL_RUNNING = 3
    """It stopped while a handler (a thread, or one that swallows its cancellation) still ran; the job stays in running."""
    LEASE_LOST = 5
    """Its lease had been dead for longer than `kill` and a handler still ran: the process ended itself at once."""
    RESCUED = 4
    """Its jobs had been taken from it; it stopped its handlers and ended."""
