"""Standing for election, leading, and giving way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from typing import Any, TypeVar

import psycopg

from pgsched.calls import Call, Calls
from pgsched.errors import NotLeader, PgschedError, PoolerError, WorkerAlive, primary
from pgsched.leader.session import SILENCE_S, open_session
from pgsched.leader.ticker import Ticker
from pgsched.lease import Silence, now
from pgsched.loop import backoff, wait_any
from pgsched.run import arun, bounded
from pgsched.session import BROKEN, TRY_AGAIN

T = TypeVar("T")
log = logging.getLogger("pgsched.leader")

ROUND_S = 1.0
"""How often a standby tries, and how long a duty of a round may take."""

LOOK_S = 0.5
"""How often a leader does its round: what it is late by to see that a worker's lock is free."""

OVERDUE_S = 10.0
"""A duty that has not succeeded for so long makes the leader give way."""

BELIEF_S = SILENCE_S - 0.25
"""How long an answer lets a leader believe, from when its call was sent. The rest is for clocks that differ a little."""

_ANSWER_S = 3.0
_MOST_WAIT_S = 2.0  # between two tries: what a take-over may be late by


class Leader:
    """Stands for election until `stop`; leads when it is elected.

    `term` is the term while this process leads, else None. It may be set a moment longer than the session lives: what it
    writes then is refused by the server. What is done outside of that session asks `leads`.
    """

    def __init__(self, dsn: str, schema: str = "pgsched", name: str | None = None) -> None:
        self._dsn = dsn
        self._calls = Calls(schema)
        self._ticker = Ticker(self._calls)
        host = socket.gethostname()
        self._info: dict[str, Any] = {"name": name or f"{host}-{os.getpid()}", "host": host, "pid": os.getpid()}
        self.term: int | None = None
        self._answered = -BELIEF_S  # when the last call that was answered had been sent
        self._doubted = False
        self._known = False  # whether the connection was proven to be a session once
        self._done: dict[str, float] = {}
        self._served: dict[int, tuple[float, int]] = {}
        self._ticks_at = 0.0  # when a tick is due

    @property
    def leads(self) -> bool:
        """Whether this process leads, as far as it may believe so by itself. May be asked from any thread.

        False from 1.75 s after the sending of the last call that was answered: until 2 s after it the server cannot have
        ended the session for its silence, so on a cut link this ends before a standby can lead. (A session that the
        server ends for another reason, a crash or `pg_terminate_backend`, may be outlived by as much.)
        """
        return self.term is not None and now() - self._answered < BELIEF_S

    async def _ask(self, connection: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
        """Send a call; a link on which no answer comes is lost (the server has ended the session, or will)."""
        sent, self._doubted = now(), False
        answer = await bounded(connection, arun(connection, call), _ANSWER_S)
        if not self._doubted:
            self._answered = sent
        return answer

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        """An answer with a warning (the wait for the synchronous standby was cancelled) is no proof of leading."""
        if notice.severity_nonlocalized == "WARNING":
            self._doubted = True

    async def run(self, stop: asyncio.Event) -> None:
        """Stand for election until `stop`; then resign first, so that the next one leads at once.

        Whatever the database answers, it goes on trying, ever more slowly (at most 2 s apart) while no session lasts.
        Raises only `PoolerError`, where the connection is no session.
        """
        waits, said = backoff(cap=_MOST_WAIT_S), ""
        while not stop.is_set():
            stood_at: float | None = None
            try:
                connection = await self._open(stop)
                if connection is None:
                    return
                stood_at = now()
                try:
                    await self._stand(connection, stop)
                finally:
                    await connection.close()
            except PoolerError:
                raise
            except (psycopg.Error, PgschedError, OSError) as error:
                what = "the leader's session was lost" if self.term is None else "leadership was lost"
                if stood_at is not None and now() - stood_at > _MOST_WAIT_S:
                    waits, said = backoff(cap=_MOST_WAIT_S), ""
                text = f"{what if stood_at is not None else 'no session for the leader'}: {primary(error)}"
                log.log(logging.DEBUG if text == said else logging.WARNING, "%s; trying again", text)
                said = text
                self.term = None
                await wait_any(stop, at_most=next(waits))
            finally:
                self.term = None

    async def _open(self, stop: asyncio.Event) -> psycopg.AsyncConnection[Any] | None:
        """A new session, or None when `stop` is set before there is one."""
        opening = asyncio.ensure_future(open_session(self._dsn, self._calls, self._info["name"], known=self._known))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return None
            opening.result().add_notice_handler(self._noticed)
            self._known = True
            return opening.result()
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await opening.result().close()  # (it came in the moment in which nobody wanted it any more)
            raise
        finally:
            stopping.cancel()
            if opening.cancel():
                await asyncio.wait({opening})

    async def _stand(self, connection: psycopg.AsyncConnection[Any], stop: asyncio.Event) -> None:
        while not stop.is_set():
            # A try that returns at once: between tries a standby holds no snapshot, which would stop vacuum.
            self.term = await self._ask(connection, self._calls.lead(json.dumps(self._info)))
            if self.term is not None:
                log.info("leading: term %s", self.term)
                reason = await self._reign(connection, stop)
                term, self.term = self.term, None  # before it is said: the next one may lead before the answer is here
                await self._ask(connection, self._calls.resign(reason))
                log.info("term %s has ended: %s", term, reason)
                if stop.is_set():
                    return
                await wait_any(stop, at_most=ROUND_S)
            end = now() + ROUND_S
            while "schedules" in await self._heard(connection, stop, end):
                pass  # (that is the leader's)

    async def _reign(self, connection: psycopg.AsyncConnection[Any], stop: asyncio.Event) -> str:
        """Do the duties round after round; why the term is to end."""
        silence, ticker = Silence(), self._ticker
        ticker.begin()
        self._done = dict.fromkeys(("beat", "ticks", "rescue", "stage", "release", "deadlines"), now())
        while True:
            beat = await self._ask(connection, self._calls.leader_beat())
            self._done["beat"] = now()
            await self._duty("ticks", self._tick(connection, ticker))
            await self._duty("rescue", self._rescue(connection, silence, beat["silent"]))
            await self._duty("stage", self._stage(connection))
            await self._duty("release", self._release(connection))
            await self._duty("deadlines", self._enforce_deadlines(connection))
            if overdue := [name for name, at in self._done.items() if now() - at > OVERDUE_S]:
                return f"its duty {overdue[0]} has not succeeded for {OVERDUE_S:.0f} s"
            if stop.is_set():
                return "it was stopped"
            # (A worker whose silence is long enough before the next round is not left waiting for that.)
            end = min(now() + LOOK_S, silence.next_due(now()))
            while now() < end:
                heard = await self._heard(connection, stop, min(end, self._ticks_at))
                if "resign" in heard:
                    return "it was asked to resign"
                if stop.is_set():
                    return "it was stopped"
                if "schedules" in heard or now() >= self._ticks_at:
                    await self._duty("ticks", self._tick(connection, ticker))

    async def _duty(self, name: str, work: Any) -> None:
        """One duty of a round. One that fails on a good session is tried again in the next round, and is noticed when overdue."""
        try:
            await work
            self._done[name] = now()
        except (*BROKEN, NotLeader) as error:
            if not isinstance(error, TRY_AGAIN):
                raise
            log.warning("%s: %s", name, primary(error))
        except (psycopg.Error, PgschedError) as error:
            log.warning("%s: %s", name, primary(error))
        except Exception:  # (an error of ours: the other duties are done)
            log.exception("%s", name)

    async def _rescue(
        self, connection: psycopg.AsyncConnection[Any], silence: Silence, silent: list[dict[str, Any]]
    ) -> None:
        """Take the jobs of workers that were silent long enough, for a second a round, those first whose turn is longest ago."""
        seen = [(row["worker_id"], row["generation"], float(row["rescue_after_s"])) for row in silent]
        self._served = {row[0]: self._served.get(row[0], (0.0, 0)) for row in seen}
        due = sorted(silence.look(now(), seen), key=lambda row: self._served[row[0]][0])
        end = now() + ROUND_S
        for worker_id, generation, seconds in due:
            if now() >= end:
                break
            with contextlib.suppress(WorkerAlive):  # it has attached again: its silence begins anew
                moved = await self._rescue_one(connection, worker_id, generation, seconds, end)
                if moved:
                    log.warning("worker %s was silent for %.1f s: %s of its jobs went back", worker_id, seconds, moved)

    async def _rescue_one(
        self,
        connection: psycopg.AsyncConnection[Any],
        worker_id: int,
        generation: int | None,
        seconds: float,
        end: float,
    ) -> int:
        """One pass over the jobs of a worker, or as far as it gets until `end`; how many went back.

        A job that cannot be moved is passed by, and the next round goes on behind it: it holds up no other.
        """
        moved = 0
        while True:
            above = self._served[worker_id][1]
            self._served[worker_id] = now(), above  # before the call: one that fails waits for its turn like the others
            answer = await self._ask(connection, self._calls.rescue_silent(worker_id, generation, seconds, above))
            moved += answer["moved"] or 0
            self._served[worker_id] = now(), answer["last"] or 0
            if answer["last"] is None or now() >= end:
                return moved

    async def _tick(self, connection: psycopg.AsyncConnection[Any], ticker: Ticker) -> None:
        """Make the ticks of schedules that are due, and note when the next one is."""
        self._ticks_at = now() + ROUND_S  # (where it fails)
        wait = await ticker.tick(lambda call: self._ask(connection, call))
        if wait is not None:
            self._ticks_at = now() + max(wait, 0.001)

    async def _stage(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await self._ask(connection, self._calls.stage(1000))

    async def _release(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Have those decided over that wait for jobs which have ended, for a second a round."""
        end = now() + ROUND_S
        while (await self._ask(connection, self._calls.release(1000))).get("more") and now() < end:
            pass

    async def _enforce_deadlines(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Cancel what has not ended of workflows whose deadlines have passed, for a second a round."""
        end = now() + ROUND_S
        while (await self._ask(connection, self._calls.enforce_deadlines(1000))).get("more") and now() < end:
            pass

    async def _heard(self, connection: psycopg.AsyncConnection[Any], stop: asyncio.Event, end: float) -> set[str]:
        """Wait until `end`, or for word about the leadership, or `stop`; what was heard."""
        heard: set[str] = set()
        while not heard and not stop.is_set() and (left := end - now()) > 0:
            async for notify in connection.notifies(timeout=min(left, 0.05), stop_after=1):
                heard.add(notify.payload)
        return heard
