"""What others tell a worker: that there is something to claim, and that a job of its own is to stop.

Both come as notifications, and a poll finds what a lost one has left.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from typing import Any

import psycopg

from pgsched.context import Stop
from pgsched.loop import wait_any
from pgsched.run import arun
from pgsched.session import BROKEN, TRY_AGAIN, Identity, persist
from pgsched.worker.claimed import Claimed
from pgsched.worker.exchange import Exchange
from pgsched.worker.executor import Executor
from pgsched.worker.ledger import Ledger

log = logging.getLogger("pgsched.worker")


class Listener:
    """A session of its own that hears notifications; the answers to them go over the work sessions."""

    def __init__(
        self, identity: Identity, ledger: Ledger, executor: Executor, exchanges: list[Exchange], poll_s: float
    ) -> None:
        self._identity = identity
        self._ledger = ledger
        self._executor = executor
        self._exchanges = exchanges
        self._poll_s = poll_s
        self._stops = asyncio.Event()
        """Set when somebody may have told a job of this worker to stop."""

    async def listen(self, stopped: asyncio.Event) -> None:
        """Hear notifications until `stopped`, on a new session whenever one is lost."""
        bound_s = self._identity.times.client.total_seconds()
        while True:
            connection = await persist("listen", self._open, stopped, bound_s)
            if connection is None:
                return
            try:
                self._ledger.wake()
                self._stops.set()
                async for notify in connection.notifies():
                    if notify.channel.endswith("_stop"):
                        if notify.payload == str(self._identity.id):
                            self._stops.set()
                    elif notify.payload in self._ledger.queues:
                        self._ledger.wake()
            except (*BROKEN, *TRY_AGAIN) as error:
                log.warning("the listener was lost: %s", str(error).strip())
            finally:
                await connection.close()

    async def hear_stops(self) -> None:
        """Stop what was cancelled while it runs, within a poll also where no notification comes; say what is out of time."""
        exchanges = itertools.cycle(self._exchanges)
        late: list[Claimed] = []
        while True:
            await wait_any(self._stops, at_most=self._poll_s)
            self._stops.clear()
            late = [job for job in (*late, *self._executor.overdue()) if not job.has_ended]
            if not late and not self._ledger.running():
                continue
            timed_out = json.dumps([{"job_id": job.job_id, "claim_id": job.claim_id} for job in late])
            try:
                stops = await next(exchanges).ask(self._identity.calls.stops(self._identity.id, timed_out))
            except (*BROKEN, *TRY_AGAIN) as error:
                log.warning("stops: %s", str(error).strip())
                continue
            late = []
            for claim_id, reason, words in stops:
                job = self._ledger.claims.get(claim_id)
                if job is not None and reason == "cancel" and Stop.CANCEL not in dict(job.stop):
                    self._executor.stop(job, Stop.CANCEL, words or "cancelled")

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        connection = await self._identity.connect("listener", "")
        try:
            calls = self._identity.calls
            for call in (calls.channel, calls.stop_channel):
                channel = await arun(connection, call())
                await connection.execute(f"listen {channel}")
        except BaseException:
            await connection.close()
            raise
        return connection
