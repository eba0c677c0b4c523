"""What a worker knows: its free slots, its claims, and the outcomes that the server has not acknowledged yet."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from pgsched.worker import outcome
from pgsched.worker.claimed import Claimed

PRIORITIES = range(10)
_MOST_RESULTS = 1000
_MOST_BYTES = 16 * 1024 * 1024


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
        self.release_at = float("inf")
        """When release() is worth a call: others wait for what has ended here, or a pass of it was not complete."""
        self.wakes = 0
        """How often it was said that there may be something: an empty answer to an older question proves nothing."""
        self.next_poll = 0.0
        self.work = asyncio.Event()
        """Set when an exchange may have something to do."""
        self.start: Callable[[Claimed], None]
        """Begins a handler."""
        self.suspect: Claimed | None = None
        """The one that runs, or whose outcome is not acknowledged."""
        self.suspect_asked = False
        self.beginning: list[tuple[Claimed, asyncio.Future[str]]] = []
        """Transactional jobs whose handlers wait for the server's word that they may begin."""
        self._turn = itertools.count()

    @property
    def free(self) -> int:
        """Slots that nothing fills and no claim on its way may fill."""
        return self.concurrency - self.active - self.asked if self.accepting else 0

    @property
    def takes_suspect(self) -> bool:
        """Whether a job may come with which a worker has died before: one at a time, also of claims on their way."""
        return self.suspect is None and not self.suspect_asked

    def begin(self, job: Claimed) -> None:
        """Take in a claim; its handler begins."""
        self.claims[job.claim_id] = job
        self.active += 1
        if not self.accepting:
            self.end(job, outcome.given_back(job.job_id, job.claim_id, "its worker is stopping", begun=False))
            return
        if job.lost_attempts:
            self.suspect = job
        self.start(job)

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
        self.work.set()
        return await verdict

    def end(self, job: Claimed, result: str) -> None:
        """A handler has ended with this outcome; an empty one is known to the server already."""
        self.active -= 1
        if result:
            self.ended.append((job, result))
        else:
            self.acknowledged(job)
        self.work.set()

    def wake(self) -> None:
        """There may be something to claim."""
        self.hint = True
        self.wakes += 1
        self.work.set()

    def take_results(self) -> list[tuple[Claimed, str]]:
        """The outcomes for the next call: not too many, not too large."""
        batch: list[tuple[Claimed, str]] = []
        size = 0
        while self.ended and len(batch) < _MOST_RESULTS and (not batch or size + len(self.ended[0][1]) < _MOST_BYTES):
            batch.append(self.ended.popleft())
            size += len(batch[-1][1])
        return batch

    def lanes(self) -> list[dict[str, Any]]:
        """Priority over all queues, then round robin between queues."""
        first = next(self._turn) % len(self.queues)
        turned = self.queues[first:] + self.queues[:first]
        return [{"queue": queue, "priority": priority} for priority in PRIORITIES for queue in turned]
