"""A worker's life: attach, open, run, drain, stop; and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from typing import TYPE_CHECKING, Any

import psycopg

from pgsched.context import Stop
from pgsched.errors import NoSession, PoolerError, UsageError, WorkerAlive, WorkerRescued, primary
from pgsched.exit_code import ExitCode
from pgsched.leader import Leader
from pgsched.lease import Lease, Order, now
from pgsched.loop import backoff, wait_any
from pgsched.run import arun
from pgsched.session import BROKEN, TRY_AGAIN, Identity, describe, persist
from pgsched.worker.claimed import Claimed
from pgsched.worker.declaring import declare
from pgsched.worker.exchange import Exchange
from pgsched.worker.executor import Executor
from pgsched.worker.ledger import Ledger
from pgsched.worker.listener import Listener
from pgsched.worker.means import Means
from pgsched.worker.progress import Progress
from pgsched.worker.settings import Settings
from pgsched.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from pgsched.app import App
    from pgsched.supervisor.child import Parent

log = logging.getLogger("pgsched.worker")

_CANCEL_GRACE = 10.0
_HURRIED_GRACE = 1.0
_LAST_WORDS_S = 3.0
_TICK_S = 0.25


class Worker:
    """One worker in this event loop: `await Worker(app, settings).run()` until `stop()`.

    `parent`: the supervisor that has started this process, if one has. Without one, only a thread of this process watches over
    the lease: it cannot run while C code holds the interpreter's lock, nor while the process is stopped.
    """

    def __init__(self, app: App, settings: Settings | None = None, parent: Parent | None = None) -> None:
        self.app = app
        self.settings = settings or Settings()
        self._parent = parent
        self._board = parent.board if parent else None
        if not app.tasks:
            raise UsageError(f'App "{app.name}" has no tasks: a worker has nothing to run (is its module imported?)')
        for task in app.tasks.values():
            task.arguments.prepare()
            task.returned.prepare()
        self.queues = self.settings.queues or sorted({task.queue for task in app.tasks.values()})
        self.ledger = Ledger(self.settings.concurrency, self.queues)
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped = asyncio.Event()
        self._closed = asyncio.Event()
        self.opened = asyncio.Event()
        """Set once it has attached and its lifespan has opened."""
        self.id: int | None = None
        """Its number in the view workers, once it has attached."""
        self._lease = Lease(self.settings.lease, now())
        self._rescued: WorkerRescued | None = None
        self._failed = False
        self._exchanges: list[Exchange] = []
        self._executor: Executor

    @property
    def healthy(self) -> bool:
        """Whether it takes jobs and its lease is good. May be asked from any thread."""
        return self.opened.is_set() and not self._draining.is_set() and self._lease.order(now()) is Order.WORK

    def stop(self) -> None:
        """Take no more jobs and let the running ones end; a second call cancels them at once."""
        if self._draining.is_set():
            self._hurry.set()
        self._draining.set()
        self.ledger.accepting = False
        self.ledger.ring_for_all()

    def drain(self) -> None:
        """As the first `stop`, however often it is called."""
        if not self._draining.is_set():
            self.stop()

    async def run(self) -> ExitCode:
        """Work until `stop()`; the exit code. Raises `PoolerError`, `SchemaError`, `AccessError` when it may not start."""
        from pgsched import __version__

        dsn = await asyncio.to_thread(lambda: self.app.client.dsn)
        settings, tasks = self.settings, sorted(self.app.tasks)
        info = describe(settings.name, self.app.name, self.queues, tasks, settings.concurrency, __version__)
        identity = Identity(dsn, self.app.client.calls, self.settings.lease, info)
        if self._board is not None:
            self._board.say({"dsn": dsn, "schema": self.app.client.schema})
        attached = await persist("attach", lambda: self._attach(identity), self._draining, self._bound_s)
        if attached is None:
            return ExitCode.OK
        lease, self._lease = attached
        self.id = identity.id
        log.info(
            'worker %s ("%s") serves %s with %s slots',
            identity.id,
            info["name"],
            ", ".join(self.queues),
            self.settings.concurrency,
        )
        # (A lifespan may take its time, to open what it opens and to close it: the lease is kept meanwhile.)
        keeping = asyncio.create_task(self._guard(self._keep_lease(identity, lease)))
        lifeline = self._parent.lifeline if self._parent else None
        watchdog = Watchdog(self._lease, self._lease_expired, lambda: len(self.ledger.running()), lifeline)
        watchdog.start()
        body = asyncio.create_task(self._work_in_lifespan(identity))
        try:
            await self._until_it_ends(body)
        except asyncio.CancelledError:
            body.cancel()
            await asyncio.wait([body])
            raise
        finally:
            self._stopped.set()
            self._closed.set()
            # (Where a handler still runs it watches on: nobody proves the lease any more.)
            watchdog.stop()
            await asyncio.wait([keeping], timeout=_CANCEL_GRACE)
            keeping.cancel()
        return self._exit_code()

    async def _until_it_ends(self, body: asyncio.Task[None]) -> None:
        """Wait for the work to end. A lifespan that still opens when the worker is to stop, or does not close, is cancelled."""
        await self._first(body, self._draining)
        if self.opened.is_set():
            await self._first(body, self._closed)
            await asyncio.wait([body], timeout=_CANCEL_GRACE)
        if not body.done():
            log.warning(
                "the lifespan %s: it is cancelled", "does not close" if self.opened.is_set() else "was still opening"
            )
            body.cancel()
            await asyncio.wait([body], timeout=_CANCEL_GRACE)
        if body.done() and not body.cancelled():
            body.result()

    async def _first(self, body: asyncio.Task[None], event: asyncio.Event) -> None:
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait([body, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def _work_in_lifespan(self, identity: Identity) -> None:
        async with self.app.make_state() as state:
            self.opened.set()
            ticking = asyncio.create_task(self._tick())
            try:
                await self._work(identity, state)
            finally:
                ticking.cancel()
                if self._board is not None:
                    self._board.tick(0)

    async def _work(self, identity: Identity, state: Any) -> None:
        """Take jobs and run them until `stop()`; then drain, and close what was opened."""
        progress = Progress()
        means = Means.of(
            self.app, self.settings, identity, state, self._board, self.ledger.begin_transactional, progress.report
        )
        self._executor = executor = Executor(means, self.ledger.end)
        self.ledger.start = executor.start
        share = -(-self.settings.concurrency // self.settings.sessions)
        self._exchanges = [
            Exchange(self.ledger, identity, self.app.tasks, share, self.settings.poll.total_seconds())
            for _ in range(self.settings.sessions)
        ]
        loops = [asyncio.create_task(self._guard(e.run(self._stopped))) for e in self._exchanges]
        ears = Listener(identity, self.ledger, executor, self._exchanges, self.settings.poll.total_seconds())
        others = [
            ears.listen(self._stopped),
            ears.hear_stops(),
            self._reconcile(),
            self._declare(),
            progress.send(identity, self._exchanges),
        ]
        if self.settings.lead:
            others.append(Leader(identity.dsn, self.app.client.schema, identity.info["name"]).run(self._draining))
        side = [asyncio.create_task(self._guard(other)) for other in others]
        try:
            await self._draining.wait()
            await self._drain()
        except asyncio.CancelledError:
            self.stop()
            self._hurry.set()
            await self._drain()
            raise
        finally:
            self._stopped.set()
            self.ledger.ring_for_all()
            await asyncio.wait(loops, timeout=_CANCEL_GRACE)
            for task in (*loops, *side):
                task.cancel()
            await asyncio.gather(*loops, *side, return_exceptions=True)
            await executor.close()
            for exchange in self._exchanges:
                await exchange.close()
            self._closed.set()

    async def _declare(self) -> None:
        """Bring the application's schedules to the database. What is wrong with them keeps no job from running."""
        await declare(self.app, self._draining, self._bound_s)
        await self._stopped.wait()

    def _exit_code(self) -> ExitCode:
        if self._rescued:
            return ExitCode.RESCUED
        if self._failed:
            return ExitCode.ERROR
        running = self.ledger.running()
        for job in running:
            log.error("job %s (%s) still runs; it stays in running", job.job_id, job.task.name)
        unsent = [job.job_id for job in self.ledger.claims.values() if job.has_ended]
        if unsent:
            log.error("jobs %s have ended, and nobody could be told: they will run again", unsent)
        return ExitCode.STILL_RUNNING if running else ExitCode.ERROR if unsent else ExitCode.OK

    async def _guard(self, loop: Any) -> None:
        """Run one loop; whatever ends it before its time ends the worker."""
        try:
            await loop
        except WorkerRescued as error:
            log.error("%s", error)
            self._rescued = error
        except PoolerError as error:
            log.error("%s", error)
            self._failed = True
            self._hurry.set()  # no session can be made any more: what runs on could not be reported
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
        if not self._idle() and not self._rescued:
            await self._send_the_last()

    async def _send_the_last(self) -> None:
        """Outcomes may wait for an answer on a session that hangs: they are sent again on new ones, as far as that goes."""
        for exchange in self._exchanges:
            await exchange.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                while self.ledger.ended or self.ledger.asked or len(self.ledger.claims) > self.ledger.active:
                    self.ledger.ring_for_all()
                    await wait_any(at_most=0.005)

    def _ask_to_stop(self, job: Claimed, why: str) -> None:
        """Its handler is to end, and the job goes back."""
        self._executor.stop(job, Stop.SHUTDOWN, why)

    def _idle(self) -> bool:
        return not self.ledger.active and not self.ledger.ended and not self.ledger.claims and not self.ledger.asked

    @property
    def _bound_s(self) -> float:
        """How long one try to make a session may take."""
        return self.settings.lease.client.total_seconds()

    async def _attach(self, identity: Identity) -> tuple[psycopg.AsyncConnection[Any], Lease]:
        session = await identity.attach()
        if self._board is not None:
            self._board.attached(identity.id, self.settings.lease, identity.proved_at)
        return session, Lease(self.settings.lease, identity.proved_at)

    async def _tick(self) -> None:
        """Show the parent that this event loop moves."""
        while self._board is not None:
            self._board.tick(now())
            await asyncio.sleep(_TICK_S)

    async def _reconcile(self) -> None:
        """What lost answers took goes back: also what commits late, so it is asked again and again. Not in the way of the
        lease: a work session may hang while the lease is good."""
        for exchange in itertools.cycle(self._exchanges):
            await asyncio.sleep(self.settings.lease.heartbeat.total_seconds())
            try:
                await exchange.reconcile()
            except (*BROKEN, *TRY_AGAIN) as error:
                log.warning("reconcile: %s", str(error).strip())

    async def _keep_lease(self, identity: Identity, lease: psycopg.AsyncConnection[Any]) -> None:
        """Heartbeats; after a lost session the worker attaches again. At the end it says that it has ended."""
        while not self._stopped.is_set():
            try:
                await wait_any(self._stopped, at_most=self.settings.lease.heartbeat.total_seconds())
                await identity.heartbeat(lease)
                self._lease_answered(identity.proved_at)
            except BROKEN as error:
                log.warning("the lease session was lost: %s", primary(error))
                await lease.close()
                again = await persist("re-attach", lambda: self._reattach(identity), self._stopped, self._bound_s)
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
        try:
            lease, unknown = await identity.reattach(self.ledger.claims)
        except NoSession as error:
            if now() < self._lease.good_until() + self.settings.lease.rescue.total_seconds():
                raise
            # A database that was restored to an earlier time, or the like: a fresh identity may find its way.
            raise WorkerRescued(f"this identity has come to nothing: {error}") from error
        proved_at = identity.proved_at
        # (One that has ended may have been accepted, and only the answer was lost: its outcome is sent again anyhow.)
        known = [self.ledger.claims[claim_id] for claim_id in unknown if claim_id in self.ledger.claims]
        forgotten = [job for job in known if not job.has_ended]
        for job in forgotten:
            log.error("job %s: the server no longer knows claim %s; its handler is stopped", job.job_id, job.claim_id)
            self._ask_to_stop(job, "the server no longer knows the claim")
        try:
            while any(not job.has_ended for job in forgotten):
                await wait_any(at_most=0.005)
        except BaseException:
            await lease.close()
            raise
        self._lease_answered(proved_at)
        log.info("attached again")
        return lease

    def _lease_answered(self, sent_at: float) -> None:
        self._lease.answered(sent_at)
        if self._board is not None:
            self._board.answered(sent_at)
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
