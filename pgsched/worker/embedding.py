"""A worker inside somebody else's process: in the event loop of a web application, beside what that process is for.

The process is not the worker's, so nothing that befalls the worker is passed on to it: whatever ends one is logged, and another
takes its place under a new identity. It begins only when no handler of the former runs any more, since the former's jobs may be
given to somebody else by then.

One thing cannot be kept from the process. No handler may outlive its lease, and where there is no supervisor only this process
can end one that does not end itself: at `kill` the watchdog ends it, whatever else it does (`ExitCode.LEASE_LOST`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from pgsched.errors import PgschedError
from pgsched.lease import now
from pgsched.loop import backoff, wait_any
from pgsched.worker.lifecycle import Worker
from pgsched.worker.settings import Settings

if TYPE_CHECKING:
    from pgsched.app import App

log = logging.getLogger("pgsched.worker")

_ENTERING_S = 5.0
"""How long entering waits for the database: a web application starts without it."""
_LIVED_S = 3.0
"""After a worker that lived so long the backoff begins anew."""
_LOOK_S = 0.05


class EmbeddedWorker:
    """The worker of `async with app.worker() as worker`. Everything but `stop` may be asked from any thread."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._worker = Worker(app, settings)
        self._stopping = asyncio.Event()
        self._entered = False

    @property
    def healthy(self) -> bool:
        """Whether it takes jobs: attached, its lifespan open, its lease good, not told to stop."""
        return self._worker.healthy

    @property
    def id(self) -> int | None:
        """Its number in the view workers; another one after it has begun anew; None before it has attached."""
        return self._worker.id

    @property
    def running(self) -> int:
        """How many handlers run."""
        return len(self._worker.ledger.running())

    def stop(self) -> None:
        """Take no more jobs and let the running ones end; a second call cancels them. The body goes on. (In its event loop.)"""
        self._stopping.set()
        self._worker.stop()

    async def _enter(self, life: asyncio.Task[None]) -> None:
        """Until it takes jobs, for a while; raises what has ended it meanwhile."""
        opened = asyncio.ensure_future(self._worker.opened.wait())
        try:
            await asyncio.wait({life, opened}, timeout=_ENTERING_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
        if life.done():
            life.result()
        self._entered = True
        if not self.healthy:
            log.warning("the process goes on without its worker, which is not open yet and goes on trying")

    async def _live(self) -> None:
        """One worker after the other, until `stop`. Raises what ends one before it was entered."""
        waits = backoff()
        while True:
            began = now()
            await self._live_once()
            while self.running and not self._stopping.is_set():
                await wait_any(self._stopping, at_most=_LOOK_S)
            if self._stopping.is_set():
                return
            if now() - began > _LIVED_S:
                waits = backoff()
            wait = next(waits)
            log.warning("another worker starts in %.1f s", wait)
            await wait_any(self._stopping, at_most=wait)
            if self._stopping.is_set():
                return
            self._worker = Worker(self._app, self._settings)

    async def _live_once(self) -> None:
        try:
            code = await self._worker.run()
        except Exception as error:
            if not self._entered:
                raise
            log.error("the worker has ended: %s", error, exc_info=not isinstance(error, PgschedError))
        else:
            level = logging.WARNING if code or not self._stopping.is_set() else logging.INFO
            log.log(level, "worker %s has ended: %s", self.id, code.name)


@contextlib.asynccontextmanager
async def embedded(app: App, settings: Settings) -> AsyncIterator[EmbeddedWorker]:
    """A worker while the body runs; see `App.worker`."""
    worker = EmbeddedWorker(app, settings)
    life = asyncio.create_task(worker._live(), name="pgsched worker")
    try:
        await worker._enter(life)
        yield worker
    finally:
        if not worker._stopping.is_set():
            worker.stop()
        await _ended(life, worker)


async def _ended(life: asyncio.Task[None], worker: EmbeddedWorker) -> None:
    """Wait for its end. Where this wait is cancelled, what runs is cancelled, and the end is waited for all the same."""
    cancelled: asyncio.CancelledError | None = None
    while not life.done():
        try:
            await asyncio.wait({life})
        except asyncio.CancelledError as error:
            cancelled = error
            worker.stop()
    if not life.cancelled() and (failed := life.exception()) is not None and worker._entered:
        log.error("the worker's end failed", exc_info=failed)
    if cancelled is not None:
        raise cancelled
