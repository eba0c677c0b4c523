"""One claimed job, as its worker knows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pgsched.context import Stop
from pgsched.task import AnyTask
from pgsched.worker.processes.pool import Queued


@dataclass(slots=True, eq=False)
class Claimed:
    """One claimed job, from the claim to the acknowledged finish."""

    job_id: int
    claim_id: int
    attempt: int
    task: AnyTask
    args: bytes
    timeout: timedelta | None
    lost_attempts: int = 0
    inputs: Sequence[tuple[Sequence[str | int], Any]] = ()
    """Results of other jobs, and where in the arguments each goes."""
    tick_at: datetime | None = None
    """The time of the schedule's tick that made it."""
    last_session: int = 0
    """The number of the worker's newest work session when the attempt began."""
    handler: asyncio.Task[None] | None = None
    """What runs it on the loop, where something does."""
    queued: Queued | None = None
    """Its place in front of the processes, where it runs in one."""
    slot: int | None = None
    """Where the supervisor sees that its handler runs."""
    waits: bool = False
    """The loop waits for a thread or a process, which cancelling `handler` would not end."""
    has_begun: bool = False
    has_ended: bool = False
    busy: int = 0
    cancel_statement: Callable[[], None] | None = None
    """Ends what a transactional handler in a thread waits for in the database."""
    stop: list[tuple[Stop, str]] = field(default_factory=list)
    """Why it is to end before its time; the handler sees it as `current_job().stopping`."""


def beside(extra: bytes) -> dict[str, Any]:
    """What a claim's `extra` says, by the names of the fields here."""
    said = json.loads(extra)
    if "tick_at" in said:
        said["tick_at"] = datetime.fromisoformat(said["tick_at"])
    return {name: said[name] for name in ("lost_attempts", "inputs", "tick_at") if name in said}
