"""What a worker runs its jobs with."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgsched.supervisor.board import Board
from pgsched.worker.claimed import Claimed
from pgsched.worker.processes import ProcessPool
from pgsched.worker.processes.member import Kind
from pgsched.worker.transaction import JobSessions

if TYPE_CHECKING:
    from pgsched.app import App, Middleware
    from pgsched.session import Identity
    from pgsched.worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Means:
    """What an executor runs with."""

    threads: int
    middlewares: list[Middleware]
    state: Any
    board: Board | None
    sessions: JobSessions
    make_processes: Callable[[], ProcessPool]
    processes_by_default: bool
    """Whether a `def` task that says nothing runs in a process of its own."""
    grace_s: float
    """How long a process may go on after it was told to stop."""
    begin: Callable[[Claimed], Awaitable[str]]
    """Tell the server that a transactional handler begins; the verdict."""
    report: Callable[[int, int, float | None, str | None], None]
    """Take what a job says of its progress; called from any thread."""
    last_session: Callable[[], int]
    """The number of the newest work session."""

    @staticmethod
    def of(
        app: App,
        settings: Settings,
        identity: Identity,
        state: Any,
        board: Board | None,
        begin: Callable[[Claimed], Awaitable[str]],
        report: Callable[[int, int, float | None, str | None], None],
    ) -> Means:
        """What a worker with these settings runs its jobs with."""
        name = identity.info["name"]
        sessions = JobSessions(identity.dsn, identity.calls, settings.job_sessions, name)
        recycle = settings.executor_recycle_jobs, settings.executor_recycle_mb
        kind = Kind(identity.dsn, identity.calls.schema, name, *recycle)
        size = settings.executors or os.cpu_count() or 1
        # (A process whose worker has lost its lease must have ended before others may run its jobs.)
        grace = min(settings.grace, (settings.lease.kill - settings.lease.client) / 2)
        return Means(
            threads=settings.concurrency,
            middlewares=list(app.middlewares),
            state=state,
            board=board,
            sessions=sessions,
            make_processes=lambda: ProcessPool(size, kind, board),
            processes_by_default=settings.executor == "process",
            grace_s=grace.total_seconds(),
            begin=begin,
            report=report,
            last_session=lambda: identity.last_session,
        )
