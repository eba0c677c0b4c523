"""What a worker knows: its free slots, its claims, and the outcomes that the server has not acknowledged yet."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Callable
from functools import lru_cache

from pgsched.worker import outcome
from pgsched.worker.claimed import Claimed

PRIORITIES = range(10)
_MOST_RESULTS = 1000
_MOST_BYTES = 16 * 1024 * 1024
_MOST_TURNS = 16
"""For how many queues the texts of their lanes are kept."""


class Ledger:
    """What this worker knows: its slots, its claims, and the outcomes that the server has not acknowledged."""

    def __init__(self, concurrency: int, queues: list[str]) -> None:
        self.concurrency = concurrency
        self.queues = queues
        self.claims: dict[int, Claimed] = {}
        """Every claim from its arrival until its finish is acknowledged."""
        self.ended: deque[tuple[Claimed, str]] = deque()
        self.ended_sessions: list[int] = []
        self.active = 0
        """Handlers that have not ended."""
        self.asked = 0
        """Slots that claims on their way may fill."""
        self.accepting = True
        self.hint = True
        """There may be something to claim: not known to be empty since the last notification or poll."""
        self.not_before = 0.0
        """No claims before this time (of time.monotonic)."""
        self.release_at = float("inf")
        """When release() is worth a call: others wait for what has ended here, or a pass of it was not complete."""
        self.wakes = 0
        """How often it was said that there may be something: an empty answer to an older question proves nothing."""
        self.next_poll = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        """The exchanges that wait for something to do; the one that waits the shortest stands last."""
        self.attended = False
        """Some exchange looks at all of this before it waits again, so none needs to be rung for."""
        self.start: Callable[[Claimed], None]
        """Begins a handler."""
        self.suspect: Claimed | None = None
        """The one that runs, or whose outcome is not acknowledged."""
        self.suspect_asked = False
        self.suspect_unseen = False
        """Nothing was found by a claim that could bring no suspect, while one is on its way that may and looks for less."""
        self.beginning: list[tuple[Claimed, asyncio.Future[str]]] = []
        """Transactional jobs whose handlers wait for the server's word that they may begin."""
        self._turn = itertools.count()
        self._lanes = lru_cache(_MOST_TURNS)(self._lanes_from)

    @property
    def free(self) -> int:
        """Slots that nothing fills and no claim on its way may fill."""
        return self.concurrency - self.active - self.asked if self.accepting else 0

    def claimable(self, now: float) -> int:
        """How many jobs are worth asking for at this time (of time.monotonic)."""
        return self.free if self.hint and now >= self.not_before else 0

    def has_work(self, now: float) -> bool:
        """Whether an exchange has something to send or to ask."""
        return bool(self.ended or self.beginning) or self.claimable(now) > 0

    @property
    def takes_suspect(self) -> bool:
        """Whether a job may come with which a worker has died before: one at a time, also of claims on their way."""
        return self.suspect is None and not self.suspect_asked

    def begin(self, jobs: list[Claimed]) -> None:
        """Take in these claims, all of them at first; then their handlers begin."""
        for job in jobs:
            self.claims[job.claim_id] = job
            if job.lost_attempts:
                self.suspect = job
        self.active += len(jobs)
        for job in jobs:
            if self.accepting:
                self.start(job)
            else:
                self.end(job, outcome.given_back(job.job_id, job.claim_id, "its worker is stopping", begun=False))

    def acknowledged(self, job: Claimed) -> None:
        """The server knows its outcome. Only now the next suspect may come: what it crashes could take the outcome along."""
        self.claims.pop(job.claim_id, None)
        if self.suspect is job:
            self.suspect = None
            self.wake()

    def running(self) -> list[Claimed]:
        """The claims whose handlers run. (May be called from another thread.)"""
        return [job for job in list(self.claims.values()) if job.has_begun and not job.has_ended]

    async def begin_transactional(self, job: Claimed) -> str:
        """Have the server know that this job's handler begins in a transaction of its own; the verdict."""
        verdict: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.beginning.append((job, verdict))
        self.ring()
        return await verdict

    def end(self, job: Claimed, result: str) -> None:
        """A handler has ended with this outcome; an empty one is known to the server already."""
        self.active -= 1
        if result:
            self.ended.append((job, result))
        else:
            self.acknowledged(job)
        self.ring()

    def wake(self) -> None:
        """There may be something to claim."""
        self.hint = True
        self.wakes += 1
        self.ring()

    def ring(self) -> None:
        """There is something to do for an exchange that waits. (For one: before that one waits for the server it rings for the
        next, where there is more.)"""
        while self._waiting and not self.attended:
            if not (waiter := self._waiting.pop()).done():
                waiter.set_result(None)
                self.attended = True

    def ring_for_all(self) -> None:
        """Every exchange is to look."""
        self.attended = False
        while self._waiting:
            self.ring()
            self.attended = False

    async def rest(self, waiter: asyncio.Future[None]) -> None:
        """Wait until somebody rings, or sets the result of `waiter`."""
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self.attended = False

    def take_results(self) -> list[tuple[Claimed, str]]:
        """The outcomes for the next call: not too many, not too large."""
        batch: list[tuple[Claimed, str]] = []
        size = 0
        while self.ended and len(batch) < _MOST_RESULTS and (not batch or size + len(self.ended[0][1]) < _MOST_BYTES):
            batch.append(self.ended.popleft())
            size += len(batch[-1][1])
        return batch

    def take_back(self, results: list[tuple[Claimed, str]]) -> None:
        """These outcomes were not acknowledged: they are sent again, first of all."""
        self.ended.extendleft(reversed(results))
        self.ring()

    def lanes(self) -> str:
        """The lanes of the next claim in JSON: priority over all queues, then round robin between queues."""
        return self._lanes(next(self._turn) % len(self.queues))

    def _lanes_from(self, first: int) -> str:
        turned = self.queues[first:] + self.queues[:first]
        return json.dumps([{"queue": queue, "priority": priority} for priority in PRIORITIES for queue in turned])
