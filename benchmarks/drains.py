"""Enqueue a workflow of no-op jobs and run it: by bare calls of several sessions, or by a worker with a handler.

Each is one measurement on a database of its own, after a small run of the same kind in the same sessions, because a session
compiles its functions once. Answers the seconds, {enqueue_s, drain_s}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from releasing import INFO
from shapes import Edges

import pgsched
from pgsched.worker import Settings, Worker

QUEUE = "bench"
SHORT_S = 0.001
"""How long one waits who has found nothing."""

Session = psycopg.AsyncConnection[Any]


async def by_calls(dsn: str, small: Edges, edges: Edges, sessions: int, batch: int) -> dict[str, float]:
    """By sessions that finish a batch and claim the next in one call, and release where a note says that others wait."""
    async with contextlib.AsyncExitStack() as open_, await _connect(dsn) as lease:
        info = json.dumps(INFO | {"queues": [QUEUE]})
        worker, token = await _row(lease, "select worker_id, token from pgsched.attach(%s)", info)
        those = [await open_.enter_async_context(await _connect(dsn)) for _ in range(sessions)]
        for i, session in enumerate(those):
            await session.execute("select pgsched.open_session(%s, %s, %s)", (worker, token, i + 1))
        for run in (small, edges):
            enqueued = await _enqueue(lease, run)
            await lease.execute("analyze")
            began = time.perf_counter()
            await _Calls(worker, batch, len(run)).drain(those)
            drained = time.perf_counter() - began
    return {"enqueue_s": enqueued, "drain_s": drained}


class _Calls:
    """What the sessions of one run share: how much is left, and whether release() is due."""

    def __init__(self, worker: int, batch: int, left: int) -> None:
        self._worker = worker
        self._want = json.dumps({"lanes": [{"queue": QUEUE, "priority": 5}], "max_jobs": batch})
        self._left = left
        self._due = False

    async def drain(self, sessions: list[Session]) -> None:
        await asyncio.gather(*(self._loop(session) for session in sessions))

    async def _loop(self, session: Session) -> None:
        ended = "[]"
        while self._left > 0:
            held = await self._exchange(session, ended)
            ended = f"[{','.join(held)}]"
            found = bool(held)
            if self._left > 0 and (self._due or not held):
                found = await self._release(session) or found
            if not found:
                await asyncio.sleep(SHORT_S)

    async def _exchange(self, session: Session, ended: str) -> list[str]:
        """Finish and claim: the results of the claimed jobs."""
        asked = "select verdict, job_id, claim_id, task, args, extra from pgsched.finish(%s, %s, %s)"
        held: list[str] = []
        for verdict, job, claim, _, _, extra in await (await session.execute(asked, (self._worker, ended, self._want))).fetchall():
            if verdict is not None:
                assert verdict == "accepted", verdict
                self._left -= 1
            elif job is not None:
                held.append(f'{{"job_id":{job},"claim_id":{claim},"outcome":"succeeded"}}')
            elif extra.get("release"):
                self._due = True
        return held

    async def _release(self, session: Session) -> bool:
        """Whether it has made anything ready."""
        self._due = False
        (answer,) = await _row(session, "select pgsched.release(1000)")
        self._due = self._due or bool(answer.get("more") or answer.get("kept"))
        return bool(answer.get("ready"))


async def by_worker(dsn: str, small: Edges, edges: Edges, concurrency: int) -> dict[str, float]:
    """By one worker, with a handler for each job."""
    app = pgsched.App("bench", dsn=dsn)
    left = 0
    over = asyncio.Event()

    @app.task(name="nothing", queue=QUEUE)
    async def nothing() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            over.set()

    async with _running(Worker(app, Settings(concurrency=concurrency))), await _connect(dsn) as session:
        for run in (small, edges):
            left = len(run)
            over.clear()
            enqueued = await _enqueue(session, run)
            began = time.perf_counter()
            await over.wait()
            while (await _row(session, "select exists (select from pgsched.ready) or exists (select from pgsched.running)"))[0]:
                await asyncio.sleep(SHORT_S)
            drained = time.perf_counter() - began
            await session.execute("analyze")
    await app.aclose()
    return {"enqueue_s": enqueued, "drain_s": drained}


@contextlib.asynccontextmanager
async def _running(worker: Worker) -> AsyncIterator[None]:
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running


async def _enqueue(session: Session, edges: Edges) -> float:
    """The seconds to enqueue it in one call."""
    jobs = [
        {"task": "nothing", "queue": QUEUE, "name": str(i)} | ({"depends_on": [{"name": str(on)} for on in ons]} if ons else {})
        for i, ons in enumerate(edges)
    ]
    began = time.perf_counter()
    await session.execute("select pgsched.enqueue_workflow(%s)", (json.dumps({"name": "bench", "jobs": jobs}),))
    return time.perf_counter() - began


async def _connect(dsn: str) -> Session:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0)


async def _row(session: Session, text: str, *values: Any) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = await (await session.execute(text, values)).fetchone()
    assert row is not None
    return row
