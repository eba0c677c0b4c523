"""The exchange with the database: one call sends what has ended and takes what is ready.

`Exchange` is the loop over one work session; several of them share a ledger, so that one waits for the server while another's
jobs run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import psycopg

from pgsched.calls import Call, Calls, Rows
from pgsched.errors import WorkerRescued
from pgsched.loop import backoff
from pgsched.session import BROKEN, TRY_AGAIN, Identity, WorkSession, persist
from pgsched.worker import outcome
from pgsched.worker.claimed import Claimed, beside
from pgsched.worker.ledger import Ledger

T = TypeVar("T")
log = logging.getLogger("pgsched.worker")

_BUSY_S = 0.01
"""How soon release() is asked again where somebody else was at it: he may not have seen what has ended here."""


class Exchange:
    """The loop over one work session."""

    def __init__(
        self,
        ledger: Ledger,
        identity: Identity,
        tasks: dict[str, Any],
        share: int,
        poll: float,
    ) -> None:
        self._ledger = ledger
        self._identity = identity
        self._calls: Calls = identity.calls
        self._tasks = tasks
        self._share = share
        self._poll = poll
        self._session = WorkSession(identity, ledger.ended_sessions)
        self._ping = identity.times.heartbeat.total_seconds()
        self._spoke_at = 0.0
        self._stage_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._kept = backoff(0.02, 1.0)

    async def run(self, stop: asyncio.Event) -> None:
        """Exchange until `stop`; then send what is left. Raises `WorkerRescued` when the identity is over."""
        waits = backoff(0.01, 2.0)
        while not (stop.is_set() and not self._ledger.ended):
            try:
                if not self._session.is_open and not await self._open(stop):
                    return
                await self._stage()
                await self._wait(stop)
                if await self._exchange():
                    waits = backoff(0.01, 2.0)
                await self._release()
                continue
            except WorkerRescued:
                raise
            except TRY_AGAIN as error:
                log.warning("an exchange will be repeated: %s", str(error).strip())
            except BROKEN as error:
                log.warning("work session %s was lost: %s", self._session.number, str(error).strip())
            # (A database may take connections and refuse every call: read-only, or in the middle of a migration.)
            await asyncio.sleep(next(waits))

    async def reconcile(self) -> None:
        """Give back what sessions that have ended claimed without an answer (also late); a poll may call it at any time."""
        if self._ledger.ended_sessions and self._session.is_open:
            ended, known = list(self._ledger.ended_sessions), list(self._ledger.claims)
            if count := await self._session.call(self._calls.reconcile(self._identity.id, ended, known)):
                log.warning("%s jobs went back: the answer to their claim was lost with its session", count)

    async def ask(self, call: Call[T]) -> T:
        """Send a call of somebody else's over this session. Raises one of BROKEN when it is gone."""
        return await self._session.call(call)

    async def close(self) -> None:
        """Close the session. Where the loop goes on, it looks now, and has a timer again."""
        if self._timer is not None:
            self._timer.cancel()
        self._on_time()
        await self._session.close()

    async def _open(self, stop: asyncio.Event) -> bool:
        first = self._session.number == 0
        opened = await persist("work session", self._opened, stop, self._identity.times.client.total_seconds())
        if opened and not first:
            log.info("work session %s is open again", self._session.number)
            await self.reconcile()
        return bool(opened)

    async def _opened(self) -> bool:
        await self._session.open()
        return True

    async def _stage(self) -> None:
        """Move what is due; whoever asks first does it for all."""
        now = time.monotonic()
        if now < self._stage_at or not self._ledger.accepting:
            return
        answer = json.loads(cast(bytes, await self._call(self._calls.stage())))
        self._stage_at = now + self._poll
        if answer.get("staged", 0) >= 1000:
            self._stage_at = now
        elif answer.get("next_at"):
            due = (datetime.fromisoformat(answer["next_at"]) - datetime.now(UTC)).total_seconds()
            self._stage_at = now + min(self._poll, max(due, 0.005))
        if answer.get("staged"):
            self._ledger.wake()
        self._ledger.release_at = min(self._ledger.release_at, now)

    async def _release(self) -> None:
        """Have those decided over that wait for jobs which have ended: a chunk, so that claims and outcomes go on in between."""
        ledger = self._ledger
        if time.monotonic() < ledger.release_at:
            return
        ledger.release_at = math.inf
        try:
            answer = json.loads(cast(bytes, await self._call(self._calls.release())))
        except BaseException:
            ledger.release_at = 0.0
            raise
        if answer.get("ready"):
            ledger.wake()
        wait = math.inf
        if answer.get("busy"):
            wait = _BUSY_S
        elif answer["more"]:
            wait = 0.0
        elif answer["kept"]:
            wait = next(self._kept)
        else:
            self._kept = backoff(0.02, 1.0)
        ledger.release_at = min(ledger.release_at, time.monotonic() + wait)

    async def _wait(self, stop: asyncio.Event) -> None:
        """Until there is something to send or to ask, the next poll, or the next job that is due."""
        ledger = self._ledger
        while not stop.is_set():
            now = time.monotonic()
            if now >= ledger.next_poll:
                ledger.next_poll = now + self._poll
                ledger.wake()
            if ledger.has_work(now) or (ledger.accepting and now >= self._stage_at) or now >= ledger.release_at:
                return
            until = min(ledger.next_poll, ledger.release_at)
            if ledger.accepting:
                until = min(until, self._stage_at)
            if now < ledger.not_before:
                until = min(until, ledger.not_before)
            until = min(until, self._spoke_at + self._ping)
            if now >= until:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            self._wake_at(until, now)
            await ledger.rest(self._waiter)

    def _wake_at(self, at: float, now: float) -> None:
        """End the wait by then. A timer that was set for an earlier time stays: it makes nothing but one more look."""
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(at - now, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _call(self, call: Call[T]) -> T:
        """Send a call. What else there is to do meanwhile is for another exchange."""
        if self._ledger.has_work(time.monotonic()):
            self._ledger.ring()
        return await self._session.call(call)

    async def _exchange(self) -> bool:
        """Send what has ended, ask for what is free; else say something now and then. Whether an answer came."""
        ledger = self._ledger
        if ledger.beginning:
            await self._begin_transactional()
            return True
        results = ledger.take_results()
        now = time.monotonic()
        asking = min(ledger.claimable(now), self._share)
        # What ends may let something run: it comes along at once, also where nothing else is known to be there.
        only_new = bool(results) and asking <= 0 and now >= ledger.not_before
        if only_new:
            asking = min(ledger.free, self._share)
        if not results and asking <= 0:
            if time.monotonic() < self._spoke_at + self._ping:
                return False
            # The server ends a session that is silent for as long as a lease lasts: a cut link must not keep the lock.
            await self._call(self._calls.protocol())
            self._spoke_at = time.monotonic()
            return True
        wakes = ledger.wakes
        want, suspects = None, False
        if asking > 0:
            ledger.asked += asking
            suspects = ledger.takes_suspect
            ledger.suspect_asked |= suspects
            more = f'"suspects":{_json(suspects)},"only_new":{_json(only_new)}'
            want = f'{{"lanes":{ledger.lanes()},"max_jobs":{asking},"free_slots":{asking},{more}}}'
        try:
            rows = await self._finish([text for _, text in results], want)
        except psycopg.DataError:
            await self._isolate(results)
            return True
        except BaseException:
            # Not acknowledged: they are sent again, and what had been done answers `already`.
            ledger.take_back(results)
            raise
        finally:
            ledger.asked -= max(asking, 0)
            if suspects:
                ledger.suspect_asked = False
                ledger.hint |= ledger.suspect_unseen
                ledger.suspect_unseen = False
        self._spoke_at = time.monotonic()
        ledger.attended = True  # (this one looks next, at whatever ends at once)
        try:
            self._acknowledge({job.claim_id: (job, text) for job, text in results}, rows)
            came = self._begin(rows)
            if only_new:
                if came == asking > 0:
                    ledger.wake()
            elif came < asking and wakes == ledger.wakes and (suspects or not ledger.takes_suspect):
                ledger.hint = False
                ledger.suspect_unseen = ledger.suspect_asked
        finally:
            ledger.attended = False
        return True

    async def _begin_transactional(self) -> None:
        batch, self._ledger.beginning = self._ledger.beginning, []
        claims = json.dumps(
            [{"job_id": job.job_id, "claim_id": job.claim_id} for job, verdict in batch if not verdict.done()]
        )
        try:
            rows = await self._call(self._calls.begin(self._identity.id, claims))
        except BaseException:
            self._ledger.beginning = batch + self._ledger.beginning
            self._ledger.ring()
            raise
        self._spoke_at = time.monotonic()
        verdicts = {claim_id: verdict for _, claim_id, verdict in rows}
        for job, waiting in batch:
            if waiting.done():
                continue  # (it was cancelled meanwhile)
            if (verdict := verdicts[job.claim_id]) == "busy":
                asyncio.get_running_loop().call_later(self._next_wait(job), self._begin_later, job, waiting)
            else:
                waiting.set_result(verdict)

    def _begin_later(self, job: Claimed, waiting: asyncio.Future[str]) -> None:
        self._ledger.beginning.append((job, waiting))
        self._ledger.ring()

    async def _finish(self, results: list[str], want: str | None) -> Rows:
        return await self._call(self._calls.finish(self._identity.id, f"[{','.join(results)}]", want))

    def _acknowledge(self, sent: dict[int, tuple[Claimed, str]], rows: Rows) -> None:
        for row in rows:
            verdict = row[0]
            if verdict is None:
                continue
            job, text = sent[row[2]]
            if verdict == "busy":
                self._send_later(job, text)
                continue
            if verdict == "rolled_back":
                log.error("job %s: its success counts only through its own transaction", job.job_id)
                self._ledger.active += 1
                self._ledger.end(
                    job, outcome.failed(job.job_id, job.claim_id, "it was reported outside its transaction")
                )
                continue
            self._ledger.acknowledged(job)
            if verdict == "stale":
                log.error(
                    "job %s: claim %s was no longer this worker's; its outcome was not accepted",
                    job.job_id,
                    job.claim_id,
                )

    def _send_later(self, job: Claimed, text: str) -> None:
        """Somebody holds the row for a moment: 5 ms, doubling to 1 s; the slot stays taken meanwhile."""
        ledger = self._ledger
        ledger.active += 1
        asyncio.get_running_loop().call_later(self._next_wait(job), ledger.end, job, text)

    def _next_wait(self, job: Claimed) -> float:
        job.busy += 1
        return min(1.0, 0.0025 * 2.0 ** min(job.busy, 10))

    def _begin(self, rows: Rows) -> int:
        came: list[Claimed] = []
        for verdict, job_id, claim_id, attempt, task, args, timeout, extra in rows:
            if verdict is not None:
                continue
            if job_id is None:
                self._note(json.loads(extra))
                continue
            more = beside(extra) if extra else {}
            came.append(Claimed(job_id, claim_id, attempt, self._tasks[task], args, timeout, **more))
        self._ledger.begin(came)
        return len(came)

    def _note(self, note: dict[str, Any]) -> None:
        if note.get("again"):
            self._ledger.wake()
        if note.get("release"):
            self._ledger.release_at = 0.0
        if "not_before" in note:
            # (Asked again at each poll: this machine's clock may be wrong.)
            wait = (datetime.fromisoformat(note["not_before"]) - datetime.now(UTC)).total_seconds()
            if not self._ledger.not_before:
                log.warning("a new timeline: no claims for about %.0f s, since its past may still run", wait)
            self._ledger.not_before = time.monotonic() + min(max(wait, 0.1), self._poll)

    async def _isolate(self, results: list[tuple[Claimed, str]]) -> None:
        """One outcome cannot be stored: send each alone, and the bad one again as failed for that reason."""
        for position, (job, text) in enumerate(results):
            try:
                try:
                    rows = await self._finish([text], None)
                except psycopg.DataError as error:
                    reason = f"its outcome could not be stored: {str(error).splitlines()[0]}"
                    rows = await self._finish([outcome.failed(job.job_id, job.claim_id, reason)], None)
            except BaseException:
                self._ledger.take_back(results[position:])
                raise
            self._acknowledge({job.claim_id: (job, text)}, rows)


def _json(value: bool) -> str:
    return "true" if value else "false"
