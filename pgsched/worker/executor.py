"""Runs claimed jobs: on the event loop, in threads, or in processes of their own; and ends what must end before its time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pgsched.context import JobContext, Stop
from pgsched.errors import JobStopped, ProcessDied, RemoteError
from pgsched.task import AnyTask
from pgsched.worker import outcome
from pgsched.worker.attempt import Attempt, Ended, Work
from pgsched.worker.claimed import Claimed
from pgsched.worker.means import Means
from pgsched.worker.processes import ProcessPool
from pgsched.worker.processes.child import STOPPED
from pgsched.worker.processes.pool import Queued
from pgsched.worker.tasks import begun

log = logging.getLogger("pgsched.worker")

_LOOK_S = 0.05
_CANCEL_EVERY_S = 1.0


class Executor:
    """Runs handlers. `ended` is called with the claim and its outcome's JSON when a handler has really ended; the text is empty
    where its own transaction has told the server already."""

    def __init__(self, means: Means, ended: Callable[[Claimed, str], None]) -> None:
        self._means = means
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._threads = ThreadPoolExecutor(means.threads, thread_name_prefix="pgsched-job")
        self._processes: ProcessPool | None = None
        self._deadlines: list[tuple[float, int, Claimed]] = []
        self._most_deadlines = 64
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._overdue: list[Claimed] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, job: Claimed) -> None:
        """Begin the handler; it ends with a call of `ended`, whatever happens."""
        means, task = self._means, job.task
        job.has_begun = True
        job.last_session = means.last_session()
        context = JobContext(
            job.job_id,
            task.name,
            job.attempt,
            job.claim_id,
            job.lost_attempts,
            means.state,
            job.tick_at,
            job.stop,
            None,
            means.report,
        )
        attempt = Attempt(task, job, context, self._pid)
        if task.transactional:
            job.cancel_statement = attempt.cancel_statement
        else:
            self._begins(job)
        try:
            if task.is_async or task.transactional or means.middlewares:
                self._on_loop(job, attempt)
            elif self._in_process(task):
                self._to_process(job, attempt, partial(self._done, job))
            else:
                self._to_thread(job, attempt, partial(self._done, job))
        except (OSError, RuntimeError) as error:  # (no thread, no process, no descriptor to be had at this moment)
            log.error("job %s goes back: %s", job.job_id, error)
            why = f"it could not begin: {error}"
            self._done(job, Ended(outcome.given_back(job.job_id, job.claim_id, why, begun=False)))

    def _done(self, job: Claimed, ended: Ended) -> None:
        if self._means.board and job.slot is not None:
            self._means.board.end(job.slot)
        job.has_ended = True
        self._ended(job, ended.text)

    def _begins(self, job: Claimed) -> None:
        """From now on its time counts, and a death of this worker is charged to it. (Of what runs in a process, that process
        says so; middlewares run here.)"""
        means, in_process = self._means, not job.task.is_async and self._in_process(job.task)
        if means.board and not in_process:
            job.slot = means.board.begin(job.claim_id, job.lost_attempts > 0)
        if job.timeout is not None and (not in_process or means.middlewares):
            self._set_deadline(job)

    def stop(self, job: Claimed, kind: Stop, words: str) -> None:
        """The handler is to end: it is cancelled on the loop, told in a thread, told and after a grace killed in a process."""
        if not job.has_begun or job.has_ended:
            return
        is_first = not job.stop
        job.stop.append((kind, words))
        if job.queued is not None:
            assert self._processes is not None
            queued = job.queued
            if self._processes.stop(queued, self._means.grace_s):
                queued.ended(STOPPED)
            else:
                self._look_again()
        elif job.handler is not None and not job.waits:
            job.handler.cancel()
        elif is_first and job.task.transactional:
            self._tasks.add(task := self._loop.create_task(self._cancel_statements(job)))
            task.add_done_callback(self._tasks.discard)

    async def _cancel_statements(self, job: Claimed) -> None:
        """Again and again, as its handler may begin another statement after the one that was cancelled."""
        while not job.has_ended and job.cancel_statement is not None:
            await self._loop.run_in_executor(None, job.cancel_statement)
            await asyncio.sleep(_CANCEL_EVERY_S)

    def overdue(self) -> list[Claimed]:
        """Whose time is up and who has not ended, since this was asked last."""
        late, self._overdue = [job for job in self._overdue if not job.has_ended], []
        return late

    async def close(self) -> None:
        """Let go of the threads and the processes; a thread that still runs is not waited for."""
        for timer in (self._timer, self._looking):
            if timer is not None:
                timer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            await self._loop.run_in_executor(None, self._processes.close, 1.0)
        self._means.sessions.close()

    @property
    def processes(self) -> ProcessPool:
        """The processes, made at the first use."""
        if self._processes is None:
            self._processes = self._means.make_processes()
        return self._processes

    def _in_process(self, task: AnyTask) -> bool:
        if task.is_async:
            return False
        return task.executor == "process" or (task.executor is None and self._means.processes_by_default)

    # ---- On the loop.

    def _on_loop(self, job: Claimed, attempt: Attempt) -> None:
        job.handler = begun(self._loop, self._run(job, attempt), job.task.name)
        if not job.has_ended:
            job.handler.add_done_callback(lambda _: self._never_began(job))

    async def _run(self, job: Claimed, attempt: Attempt) -> None:
        try:
            if job.task.transactional:
                ended = await self._transactional(job, attempt)
            elif self._means.middlewares:
                ended = await self._through_middlewares(job, attempt)
            else:
                ended = await attempt.arun(self._means.sessions)
        except BaseException as error:
            ended = attempt.told(error)
        self._done(job, ended)

    async def _transactional(self, job: Claimed, attempt: Attempt) -> Ended:
        place = contextlib.nullcontext() if self._in_process(job.task) else self._means.sessions.places
        async with place:
            verdict = await self._means.begin(job)
            if verdict != "accepted":  # cancelled before it began, or no longer ours: then nobody listens anyhow
                return Ended(outcome.cancelled(job.job_id, job.claim_id, "it was cancelled before it began"))
            self._begins(job)  # (neither its wait for a session nor the server's for its word is the handler's time)
            if self._means.middlewares:
                return await self._through_middlewares(job, attempt)
            return await self._innermost(job, attempt)

    async def _through_middlewares(self, job: Claimed, attempt: Attempt) -> Ended:
        inner: Ended | None = None

        async def run(depth: int = 0) -> Any:
            nonlocal inner
            if depth < len(self._means.middlewares):
                return await self._means.middlewares[depth](attempt.context, lambda: run(depth + 1))
            inner = await self._innermost(job, attempt)
            if inner.error is not None:
                raise inner.error
            return inner.value

        try:
            value = await run()
        except BaseException as error:
            if inner is not None and (job.task.transactional or error is inner.error):
                return inner
            return attempt.raised(error)
        if inner is not None and (job.task.transactional or (inner.error is None and value is inner.value)):
            return inner  # (what surrounds a transaction can change nothing any more)
        if job.task.transactional:
            return Ended(outcome.failed(job.job_id, job.claim_id, "a middleware did not run its transaction"))
        return attempt.returned(value)

    async def _innermost(self, job: Claimed, attempt: Attempt) -> Ended:
        """Run the handler itself, and wait until it has really ended, also when this is cancelled meanwhile."""
        if job.task.is_async:
            return await attempt.arun(self._means.sessions)
        future: asyncio.Future[Ended] = self._loop.create_future()
        job.waits = True
        if in_process := self._in_process(job.task):
            self._to_process(job, attempt, future.set_result)
        else:
            self._to_thread(job, attempt, future.set_result)
        try:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            ended = future.result()
        finally:
            job.waits = False
            if in_process:  # (the process has watched over its part; what middlewares do afterwards has as much)
                self._set_deadline(job)
        if self._means.middlewares and ended.text and ended.error is None:
            _read(ended)
        return ended

    def _never_began(self, job: Claimed) -> None:
        """Its handler was cancelled before its first step: then nothing in it could say so."""
        if job.has_ended:
            return
        if job.handler is not None and not job.handler.cancelled() and (error := job.handler.exception()) is not None:
            log.error("job %s", job.job_id, exc_info=error)
            why = f"its end could not be told: {type(error).__name__}"
            self._done(job, Ended(outcome.failed(job.job_id, job.claim_id, why)))
        else:
            why = job.stop[0][1] if job.stop else "it was cancelled before it began"
            self._done(job, Ended(outcome.given_back(job.job_id, job.claim_id, why, begun=False)))

    # ---- Elsewhere.

    def _to_thread(self, job: Claimed, attempt: Attempt, done: Callable[[Ended], None]) -> None:
        context = contextvars.copy_context()

        def body() -> None:
            try:
                ended = context.run(attempt.run, self._means.sessions)
            except BaseException as error:  # (an exception whose own code raises; the job must not be forgotten)
                ended = attempt.told(error)
            with contextlib.suppress(RuntimeError):  # (the loop has been closed: nobody is there to hear it)
                self._loop.call_soon_threadsafe(done, ended)

        self._threads.submit(body)

    def _to_process(self, job: Claimed, attempt: Attempt, done: Callable[[Ended], None]) -> None:
        def ended(said: str | ProcessDied) -> None:
            job.queued = None
            if job.stop and (said == STOPPED or isinstance(said, ProcessDied)):
                done(attempt.raised(JobStopped(job.stop[0][1])))
            elif isinstance(said, ProcessDied):
                done(attempt.raised(said))
            else:
                done(Ended(said))

        function = job.task.function
        locator = (job.task.name, function.__module__, function.__qualname__)
        limit = job.timeout.total_seconds() if job.timeout is not None else None
        work = Work(
            job.job_id,
            job.claim_id,
            job.attempt,
            job.args,
            job.lost_attempts,
            job.last_session,
            job.inputs,
            job.task.output,
            job.tick_at,
        )
        report = partial(self._means.report, job.job_id, job.claim_id)
        job.queued = Queued(work, locator, ended, limit, partial(self._late, job), report)
        self.processes.submit(job.queued)
        if limit is not None:
            self._look_again()

    def _look_again(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = None
        if self.processes.look():
            self._look_again()

    # ---- Deadlines of what does not run in a process (there the time before the beginning does not count).

    def _set_deadline(self, job: Claimed) -> None:
        if job.timeout is None:
            return
        at = self._loop.time() + job.timeout.total_seconds()
        heapq.heappush(self._deadlines, (at, next(self._order), job))
        if len(self._deadlines) > self._most_deadlines:  # (most have ended long before their time)
            self._deadlines = [entry for entry in self._deadlines if not entry[2].has_ended]
            heapq.heapify(self._deadlines)
            self._most_deadlines = 64 + 2 * len(self._deadlines)
        if self._deadlines[0][2] is job:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._deadlines and self._deadlines[0][2].has_ended:
            heapq.heappop(self._deadlines)
        if self._deadlines:
            self._timer = self._loop.call_at(self._deadlines[0][0], self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        while self._deadlines and (self._deadlines[0][0] <= self._loop.time() or self._deadlines[0][2].has_ended):
            job = heapq.heappop(self._deadlines)[2]
            if not job.has_ended and job.queued is None:
                self._late(job)
        self._set_timer()

    def _late(self, job: Claimed) -> None:
        self._overdue.append(job)
        self.stop(job, Stop.TIMEOUT, f"the attempt took longer than its timeout of {job.timeout}")


def _read(ended: Ended) -> None:
    """What a process or its handler's own code has said, as a middleware sees it."""
    said = json.loads(ended.text)
    if said["outcome"] == "succeeded":
        ended.value = said.get("result") if ended.value is None else ended.value
    elif ended.error is None:
        words = said.get("error") or said.get("reason") or said["outcome"]
        ended.error = RemoteError(said.get("error_type"), words, said.get("traceback"))
