"""The inside of an executor process, which its worker starts with the arguments LINK PAGE BOARD SLOT PARENT.

It takes chunks of jobs from its worker, runs them one after the other in its main thread, and says how each ended.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing.spawn
import os
import pickle
import signal
import sys
import time
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from pgsched.calls import Calls
from pgsched.context import JobContext, Stop
from pgsched.errors import JobStopped, TaskError
from pgsched.lease import now
from pgsched.supervisor.board import Board
from pgsched.supervisor.family import adopt_orphans, die_with_parent
from pgsched.task import AnyTask, Task
from pgsched.worker import outcome
from pgsched.worker.attempt import Attempt, Ended, Work
from pgsched.worker.processes.outlet import Outlet
from pgsched.worker.processes.output import Output
from pgsched.worker.processes.page import Page
from pgsched.worker.transaction import JobSessions

STOPPED = "stopped"
"""In place of an outcome: the handler has ended because it was told to. The worker knows why."""

Locator = tuple[str, str, str]
"""Where a task is: its name, its function's module and qualified name."""

inside = 0
"""The number of this process, where it is an executor."""

IMPORT_S = 60.0
"""How long the import of a task's module may take, which does not count for the attempt's timeout."""


class Executor:
    """The loop of the process."""

    def __init__(self, link: Connection, page: Page, board: Board | None, slot: int) -> None:
        self._link = link
        self._page = page
        self._board = board
        self._slot = slot
        self._outlet = Outlet(link, page)
        self._output = Output()
        self._tasks: dict[str, AnyTask] = {}
        self._running: tuple[int, JobContext] | None = None
        self._sessions: JobSessions

    def run(self) -> None:
        """Until the worker closes the link."""
        first = pickle.loads(self._link.recv_bytes())
        logging.basicConfig(level=first["log_level"], format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        multiprocessing.spawn.prepare(first["main"])
        self._sessions = JobSessions(first["dsn"], Calls(first["schema"]), 1, first["name"])
        while True:
            try:
                chunk = pickle.loads(self._link.recv_bytes())
            except EOFError:
                return
            for locator, work in chunk:
                self._one(locator, work)
            self._outlet.flush()

    def _one(self, locator: Locator, work: Work) -> None:
        context = JobContext(work.job_id, locator[0], work.attempt, work.claim_id, work.lost_attempts)
        context.tick_at = work.tick_at
        context._report = lambda job_id, claim_id, *said: self._outlet.report(claim_id, *said)
        self._reset_signals()
        known = locator[0] in self._tasks
        began = time.perf_counter()
        self._page.begin(work.claim_id, now() if known else now() + IMPORT_S)
        if self._board is not None:
            self._board.put(self._slot, work.claim_id, work.lost_attempts > 0)
        with self._output.caught(work.output):
            ended = self._attempt(locator, work, context, known=known)
        text = self._output.into(work.job_id, ended.text)
        if context._stop and isinstance(ended.error, JobStopped):
            text = STOPPED
        self._outlet.answer((work.claim_id, text, time.perf_counter() - began))
        self._page.end()
        if self._board is not None:
            self._board.put(self._slot, 0, False)

    def _attempt(self, locator: Locator, work: Work, context: JobContext, *, known: bool) -> Ended:
        try:
            self._running = work.claim_id, context
            attempt = Attempt(self._task(locator), work, context, os.getpid())
            if not known:
                self._page.since = now()
            ended = attempt.run(self._sessions)
            self._running = None
        except BaseException as error:  # (the word to stop may come at the very beginning, or the very end)
            self._running = None
            is_final = isinstance(error, TaskError)
            ended = Ended(
                outcome.raised(work.job_id, work.claim_id, error, None, work.attempt, final=is_final), error=error
            )
        return ended

    def _reset_signals(self) -> None:
        """What the handler before has left: a way of its own with SIGTERM, an alarm."""
        if signal.getsignal(signal.SIGTERM) != self._told:
            signal.signal(signal.SIGTERM, self._told)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _task(self, locator: Locator) -> AnyTask:
        if (task := self._tasks.get(locator[0])) is None:
            task = self._tasks[locator[0]] = find(*locator)
        return task

    def _told(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: the handler that the page names is to end. For any other it comes too late."""
        if self._running is not None and self._page.stop == self._running[0]:
            context = self._running[1]
            if not context._stop:
                context._stop.append((Stop.CANCEL, "this handler is to end"))
                raise JobStopped("this handler is to end")


def find(name: str, module: str, qualname: str) -> AnyTask:
    """The task of this name. Raises `TaskError` where another process cannot find it by the name of its function."""
    what = f'task "{name}" cannot run in a process of its own'
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TaskError(
            f"{what}: its function {module}.{qualname} cannot be imported there ({error}); define it at the top level of a module"
        ) from error
    task = found if isinstance(found, Task) else getattr(found, "__pgsched_task__", None)
    if task is None or task.name != name:
        raise TaskError(f"{what}: {module}.{qualname} is not that task (its name has been given to something else)")
    return task


def main() -> None:
    """Run as an executor process."""
    link, page, board, slot, parent = map(int, sys.argv[1:])
    global inside
    inside = os.getpid()
    die_with_parent(parent)
    adopt_orphans()  # (what a handler starts stays below this process, whatever becomes of its parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in (link, page, board):
        if fd >= 0:
            os.set_inheritable(fd, False)
    Executor(Connection(link), Page(page), Board(board) if board >= 0 else None, slot).run()
