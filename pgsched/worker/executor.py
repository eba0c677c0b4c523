"""Runs one job: decodes its arguments, calls the handler on the loop or in a thread, and says how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pgsched.context import JobContext, _current
from pgsched.errors import ArgumentsError, ResultError
from pgsched.supervisor.board import Board
from pgsched.task import AnyTask
from pgsched.worker import outcome
from pgsched.worker.progress import Progress

log = logging.getLogger("pgsched.worker")

Middleware = Callable[[JobContext, Callable[[], Awaitable[Any]]], Awaitable[Any]]


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
    handler: asyncio.Task[None] | None = None
    in_thread: bool = False
    busy: int = 0
    has_ended: bool = False
    stop: list[str] = field(default_factory=list)


class Executor:
    """Runs handlers. `ended` is called with the claim and its outcome's JSON when a handler has really ended."""

    def __init__(
        self,
        threads: int,
        middlewares: list[Middleware],
        ended: Callable[[Claimed, str], None],
        state: Any = None,
        board: Board | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pgsched-job")
        self._middlewares = middlewares
        self._ended = ended
        self._state = state
        self._board = board
        self._progress = progress or Progress()

    def start(self, job: Claimed) -> None:
        """Begin the handler; it ends with a call of `ended`, whatever happens."""
        job.handler = asyncio.get_running_loop().create_task(self._run(job))
        job.handler.add_done_callback(lambda _: self._never_began(job))

    def close(self) -> None:
        """Let go of the threads; one that still runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, job: Claimed) -> None:
        slot = self._board.begin(job.claim_id, job.lost_attempts > 0) if self._board else None
        try:
            text = await self._outcome(job)
        except BaseException as error:
            text = outcome.raised(job.job_id, job.claim_id, error, job.task.retry)
        if self._board and slot is not None:
            self._board.end(slot)
        job.has_ended = True
        self._ended(job, text)

    def _never_began(self, job: Claimed) -> None:
        """Its handler was cancelled before its first step: then nothing in it could say so."""
        if not job.has_ended:
            job.has_ended = True
            why = job.stop[0] if job.stop else "it was cancelled before it began"
            self._ended(job, outcome.given_back(job.job_id, job.claim_id, why, begun=False))

    async def _outcome(self, job: Claimed) -> str:
        task = job.task
        try:
            args, kwargs = task.arguments.load(job.args)
        except ArgumentsError as error:
            return outcome.raised(job.job_id, job.claim_id, error, None, final=True)
        context = JobContext(job.job_id, task.name, job.attempt, job.claim_id, job.lost_attempts, self._state, job.stop)
        context._report = functools.partial(self._progress.report, job.job_id, job.claim_id)
        _current.set(context)
        try:
            if job.timeout is not None and task.is_async:
                result = await _within(job.timeout, self._call(job, context, args, kwargs))
            else:
                result = await self._call(job, context, args, kwargs)
        except asyncio.CancelledError as error:
            if job.stop:
                return outcome.given_back(job.job_id, job.claim_id, job.stop[0])
            return outcome.raised(job.job_id, job.claim_id, error, task.retry)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # (sys.exit() in a handler ends the attempt, not the worker.)
            return outcome.raised(job.job_id, job.claim_id, error, task.retry)
        try:
            return outcome.succeeded(job.job_id, job.claim_id, task.returned, result)
        except ResultError as error:
            return outcome.failed(job.job_id, job.claim_id, str(error))

    async def _call(self, job: Claimed, context: JobContext, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if not self._middlewares:
            return await self._handler(job, args, kwargs)

        async def run(depth: int = 0) -> Any:
            if depth == len(self._middlewares):
                return await self._handler(job, args, kwargs)
            return await self._middlewares[depth](context, lambda: run(depth + 1))

        return await run()

    async def _handler(self, job: Claimed, args: list[Any], kwargs: dict[str, Any]) -> Any:
        function = job.task.function
        if job.task.is_async:
            return await function(*args, **kwargs)
        return await self._in_thread(job, function, args, kwargs)

    async def _in_thread(self, job: Claimed, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call it in a thread and wait until it has really returned, also when this is cancelled meanwhile."""
        context = contextvars.copy_context()
        job.in_thread = True
        future = asyncio.get_running_loop().run_in_executor(self._pool, lambda: context.run(function, *args, **kwargs))
        try:
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    log.warning(
                        "job %s (%s) runs in a thread, which nobody can stop: waiting", job.job_id, job.task.name
                    )
            return future.result()
        finally:
            job.in_thread = False


async def _within(limit: timedelta, call: Awaitable[Any]) -> Any:
    """Await `call`, cancelled after `limit`; then TimeoutError says so, and a handler's own TimeoutError stays its own."""
    scope = asyncio.timeout(limit.total_seconds())
    try:
        async with scope:
            return await call
    except TimeoutError as error:
        if scope.expired():
            raise TimeoutError(f"the attempt took longer than its timeout of {limit}") from error
        raise


def lost_attempts(extra: bytes | None) -> int:
    """What a claim's `extra` says of workers that died with the job."""
    return int(json.loads(extra).get("lost_attempts", 0)) if extra else 0
