"""A worker's life: attach, open, run, drain, stop; and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from pgsched.errors import ConnectError, UsageError, WorkerAlive, WorkerRescued
from pgsched.leader import Leader
from pgsched.lease import Lease, LeaseTimes, Order, now
from pgsched.loop import backoff, wait_any
from pgsched.run import arun
from pgsched.session import BROKEN, TRY_AGAIN, Identity, describe, persist
from pgsched.worker.exchange import Exchange, Ledger
from pgsched.worker.executor import Claimed, Executor
from pgsched.worker.exit_code import ExitCode
from pgsched.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from pgsched.app import App

log = logging.getLogger("pgsched.worker")

_CANCEL_GRACE = 10.0
_HURRIED_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker runs.

    queues       the queues it serves; None: those of the App's tasks
    concurrency  how many jobs it runs at once, 1 to 10000
    name         how it is called in the view workers; None: host and process
    poll         how often it looks without a notification
    drain        how long running jobs may take after the first SIGTERM before async handlers are cancelled
    sessions     how many work sessions, 1 or 2
    lease        the times of its lease
    lead         whether this process also stands for leader

    Raises `UsageError` for a value out of range.
    """

    queues: list[str] | None = None
    concurrency: int = 100
    name: str | None = None
    poll: timedelta = timedelta(seconds=1)
    drain: timedelta = timedelta(seconds=30)
    sessions: int = 2
    lease: LeaseTimes = field(default_factory=LeaseTimes)
    lead: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.concurrency <= 10_000:
            raise UsageError(f"concurrency is {self.concurrency}: it is a number from 1 to 10000")
        if not 1 <= self.sessions <= 2:
            raise UsageError(f"sessions is {self.sessions}: a worker has 1 or 2 work sessions")
        if not timedelta(milliseconds=10) <= self.poll <= timedelta(seconds=60):
            raise UsageError(f"poll is {self.poll}: it lies between 10 ms and 60 s")
        if self.drain < timedelta(0):
            raise UsageError(f"drain is {self.drain}: it must not be negative")
        if self.queues is not None and not self.queues:
            raise UsageError("queues is empty: name at least one, or leave it out")


class Worker:
    """One worker in this event loop: `await Worker(app, settings).run()` until `stop()`."""

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        self.app = app
        self.settings = settings or Settings()
        if not app.tasks:
            raise UsageError(f'App "{app.name}" has no tasks: a worker has nothing to run (is its module imported?)')
        for task in app.tasks.values():
            task.arguments.prepare()
        self.queues = self.settings.queues or sorted({task.queue for task in app.tasks.values()})
        self.ledger = Ledger(self.settings.concurrency, self.queues)
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped = asyncio.Event()
        self._closed = asyncio.Event()
        self._lease = Lease(self.settings.lease, now())
        self._rescued: WorkerRescued | None = None
        self._failed = False
        self._exchanges: list[Exchange] = []

    def stop(self) -> None:
        """Take no more jobs and let the running ones end; a second call cancels them at once."""
        if self._draining.is_set():
            self._hurry.set()
        self._draining.set()
        self.ledger.accepting = False
        self.ledger.work.set()

    async def run(self) -> ExitCode:
        """Work until `stop()`; the exit code. Raises `SchemaError`, `NotAdopted`, `AccessError` when it may not start."""
        from pgsched import __version__

        dsn = await asyncio.to_thread(lambda: self.app.client.dsn)
        info = describe(
            self.settings.name,
            self.app.name,
            self.queues,
            sorted(self.app.tasks),
            self.settings.concurrency,
            __version__,
        )
        identity = Identity(dsn, self.app.client.calls, self.settings.lease, info)
        attached = await persist(
            "attach", lambda: self._attach(identity), self._draining, (ConnectError, psycopg.OperationalError)
        )
        if attached is None:
            return ExitCode.OK
        lease, self._lease = attached
        log.info(
            'worker %s ("%s") serves %s with %s slots',
            identity.id,
            info["name"],
            ", ".join(self.queues),
            self.settings.concurrency,
        )
        async with self._state() as state:
            executor = Executor(self.settings.concurrency, list(self.app.middlewares), self.ledger.end, state)
            self._exchanges = [
                Exchange(
                    self.ledger,
                    identity,
                    executor.start,
                    self.app.tasks,
                    -(-self.settings.concurrency // self.settings.sessions),
                    self.settings.poll.total_seconds(),
                )
                for _ in range(self.settings.sessions)
            ]
            loops = [asyncio.create_task(self._guard(e.run(self._stopped))) for e in self._exchanges]
            side = [
                asyncio.create_task(self._guard(self._keep_lease(identity, lease))),
                asyncio.create_task(self._guard(self._listen(identity))),
            ]
            if self.settings.lead:
                leader = Leader(dsn, self.app.client.schema, info["name"])
                side.append(asyncio.create_task(self._guard(leader.run(self._draining))))
            watchdog = Watchdog(self._lease, self._lease_expired, lambda: self.ledger.active)
            watchdog.start()
            try:
                await self._draining.wait()
                await self._drain()
            finally:
                self._stopped.set()
                self.ledger.work.set()
                await asyncio.wait(loops, timeout=_CANCEL_GRACE)
                for loop in (*loops, *side[1:]):
                    loop.cancel()
                await asyncio.gather(*loops, *side[1:], return_exceptions=True)
                executor.close()
                for exchange in self._exchanges:
                    await exchange.close()
                self._closed.set()
            await asyncio.wait(side[:1], timeout=_CANCEL_GRACE)
            watchdog.stop()
        return self._exit_code()

    def _exit_code(self) -> ExitCode:
        if self._rescued:
            return ExitCode.RESCUED
        if self._failed:
            return ExitCode.ERROR
        if left := list(self.ledger.claims.values()):
            for job in left:
                log.error("job %s (%s) still runs; it stays in running", job.job_id, job.task.name)
            return ExitCode.STILL_RUNNING
        return ExitCode.OK

    async def _guard(self, loop: Any) -> None:
        """Run one loop; whatever ends it before its time ends the worker."""
        try:
            await loop
        except WorkerRescued as error:
            log.error("%s", error)
            self._rescued = error
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.exception("the worker's own code failed")
            self._failed = True
        finally:
            if not self._draining.is_set():
                self.stop()
            if self._rescued:
                self._hurry.set()

    async def _drain(self) -> None:
        """Let handlers end; then cancel the asynchronous ones and wait for them, and for their outcomes to be sent."""
        if self.ledger.active:
            log.info("stopping: %s jobs are running", self.ledger.active)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain.total_seconds()):
                while not self._idle() and not self._hurry.is_set():
                    await wait_any(self._hurry, at_most=0.02)
        for job in list(self.ledger.claims.values()):
            self._ask_to_stop(job, "its worker was told to stop")
        began = time.monotonic()
        while not self._idle() and time.monotonic() - began < (
            _HURRIED_GRACE if self._hurry.is_set() else _CANCEL_GRACE
        ):
            await wait_any(at_most=0.005)

    def _ask_to_stop(self, job: Claimed, why: str) -> None:
        """An asynchronous handler is cancelled and its job goes back; a thread is told, and is waited for."""
        if job.handler is not None and not job.handler.done():
            job.stop.append(why)
            if not job.in_thread:
                job.handler.cancel()

    def _idle(self) -> bool:
        return not self.ledger.active and not self.ledger.ended and not self.ledger.claims and not self.ledger.asked

    async def _attach(self, identity: Identity) -> tuple[psycopg.AsyncConnection[Any], Lease]:
        sent_at = now()
        return await identity.attach(), Lease(self.settings.lease, sent_at)

    async def _keep_lease(self, identity: Identity, lease: psycopg.AsyncConnection[Any]) -> None:
        """Heartbeats; after a lost session the worker attaches again. At the end it says that it has ended."""
        while not self._stopped.is_set():
            try:
                await wait_any(self._stopped, at_most=self.settings.lease.heartbeat.total_seconds())
                sent_at = now()
                if await identity.heartbeat(lease):
                    self._lease_answered(sent_at)
                else:
                    log.warning("a heartbeat was answered by a server that could not commit it with its quorum")
                for exchange in self._exchanges:
                    await exchange.reconcile()
            except (*BROKEN, TimeoutError) as error:
                log.warning("the lease session was lost: %s", str(error).strip() or type(error).__name__)
                await lease.close()
                again = await persist(
                    "re-attach", lambda: self._reattach(identity), self._stopped, (*BROKEN, TimeoutError, ConnectError)
                )
                if again is None:
                    return
                lease = again
        await self._closed.wait()
        with contextlib.suppress(*BROKEN):
            for wait in itertools.islice(backoff(0.005), 10):
                try:
                    await arun(lease, identity.calls.detach(identity.id))
                    break
                except WorkerAlive:
                    await asyncio.sleep(wait)  # the server has not noticed yet that the work sessions are closed
        await lease.close()

    async def _reattach(self, identity: Identity) -> psycopg.AsyncConnection[Any]:
        """A new lease session. The lease counts again only when handlers whose claims the server has forgotten have ended."""
        for exchange in self._exchanges:
            await exchange.close()
        sent_at = now()
        async with asyncio.timeout(self.settings.lease.heartbeat.total_seconds()):
            lease, unknown = await identity.reattach(self.ledger.claims)
        forgotten = [job for claim_id in unknown if (job := self.ledger.claims.get(claim_id)) is not None]
        for job in forgotten:
            log.error("job %s: the server no longer knows claim %s; its handler is stopped", job.job_id, job.claim_id)
            self._ask_to_stop(job, "the server no longer knows the claim")
        if handlers := [job.handler for job in forgotten if job.handler is not None]:
            await asyncio.wait(handlers)
        self._lease_answered(sent_at)
        log.info("attached again")
        return lease

    def _lease_answered(self, sent_at: float) -> None:
        self._lease.answered(sent_at)
        if self._lease.order(now()) is Order.WORK and not self._draining.is_set() and not self.ledger.accepting:
            log.info("the lease is good again")
            self.ledger.accepting = True
            self.ledger.wake()

    def _lease_expired(self) -> None:
        """No more claims, and every handler is to end, until a heartbeat is answered again."""
        if self._lease.order(now()) is Order.WORK:
            return
        log.error(
            "the lease has expired: no heartbeat was answered for %s; stopping what runs", self.settings.lease.client
        )
        self.ledger.accepting = False
        for job in list(self.ledger.claims.values()):
            self._ask_to_stop(job, "its worker's lease expired")

    async def _listen(self, identity: Identity) -> None:
        """Wake at a notification for one of the queues; a poll finds what a lost one left."""
        while True:
            connection = await persist(
                "listen", lambda: identity.connect("listener", ""), self._stopped, (*BROKEN, ConnectError)
            )
            if connection is None:
                return
            try:
                channel = await arun(connection, identity.calls.channel())
                await connection.execute(f"listen {channel}")
                self.ledger.wake()
                async for notify in connection.notifies():
                    if notify.payload in self.queues:
                        self.ledger.wake()
            except (*BROKEN, *TRY_AGAIN) as error:
                log.warning("the listener was lost: %s", str(error).strip())
            finally:
                await connection.close()

    @contextlib.asynccontextmanager
    async def _state(self) -> AsyncIterator[Any]:
        if self.app.make_state is None:
            yield None
            return
        async with self.app.make_state() as state:
            yield state


def run_worker(app: App, settings: Settings | None = None, *, restore_signals: bool = True, **options: Any) -> int:
    """Run a worker until SIGTERM or SIGINT (a second one cancels what runs); its exit code.

    `options` are those of `Settings`. When a handler still runs at the end (a thread that does not return), the process
    is ended without waiting for it, with `ExitCode.STILL_RUNNING`. `restore_signals` False leaves both signals ignored
    afterwards, for a process that ends with this code.
    """
    worker_settings = settings or Settings(**options)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    async def main() -> ExitCode:
        worker = Worker(app, worker_settings)
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, worker.stop)
        try:
            code = await worker.run()
        finally:
            # It has stopped: one more signal shall not change its exit code.
            for number in signals:
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
        if worker.ledger.active:
            # Whatever the reason for the end: a thread that still runs must not outlive the watchdog, since its job may be
            # given to another worker.
            os._exit(code)
        return code

    try:
        return int(asyncio.run(main()))
    finally:
        for number, handler in before.items() if restore_signals else ():
            signal.signal(number, handler)
