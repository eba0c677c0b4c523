"""A supervisor's leader: in a thread with an event loop of its own, so that nothing of it holds up the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import psycopg

from pgsched.errors import PgschedError, primary
from pgsched.leader import Leader
from pgsched.loop import backoff

log = logging.getLogger("pgsched.supervisor")


class Leading:
    """A leader in a thread with an event loop of its own."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._leader = Leader(dsn, schema)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="pgsched-leader", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Resign."""
        with contextlib.suppress(RuntimeError):  # (the loop has ended)
            self._loop.call_soon_threadsafe(self._stopped.set)

    def join(self, patience_s: float) -> None:
        """Wait for its end."""
        self._thread.join(patience_s)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._stand())

    async def _stand(self) -> None:
        for wait in backoff(1.0, 30.0):
            try:
                await self._leader.run(self._stopped)
                return
            except (psycopg.Error, PgschedError) as error:
                log.error("this process cannot stand for leader: %s", primary(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
            if self._stopped.is_set():
                return
