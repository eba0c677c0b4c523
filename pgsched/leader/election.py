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
from pgsched.dsn import unreachable
from pgsched.errors import ConnectError, NotLeader, PgschedError, WorkerAlive
from pgsched.lease import Silence, now
from pgsched.loop import wait_any
from pgsched.run import arun
from pgsched.session import BROKEN, TRY_AGAIN, persist

T = TypeVar("T")
log = logging.getLogger("pgsched.leader")

ROUND_S = 1.0
"""How often a standby tries, and how often a leader does its round."""

_ANSWER_S = 3.0

OVERDUE_S = 10.0
"""A duty that has not succeeded for so long makes the leader give way."""

# The server ends a leader that is silent for 2 s, whatever its process believes; its statements may take as long.
_BOUNDS = (
    "set default_transaction_isolation = 'read committed'; set statement_timeout = '2s'; set lock_timeout = '800ms'; "
    "set idle_session_timeout = '2s'; set idle_in_transaction_session_timeout = '2s'"
)
# And a cut link is noticed on both sides within seconds.
_NETWORK: dict[str, Any] = {
    "connect_timeout": 3,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 2000,
}


class Leader:
    """Stands for election until `stop`; leads when it is elected.

    `term` is the term while this process leads, else None. It may be set a moment longer than the session lives: what it
    writes then is refused by the server.
    """

    def __init__(self, dsn: str, schema: str = "pgsched", name: str | None = None) -> None:
        self._dsn = dsn
        self._calls = Calls(schema)
        host = socket.gethostname()
        self._info = {"name": name or f"{host}-{os.getpid()}", "host": host, "pid": os.getpid()}
        self.term: int | None = None
        self._done: dict[str, float] = {}

    async def _ask(self, connection: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
        """Send a call; a link on which no answer comes is lost (the server has ended the session, or will)."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await arun(connection, call)
        except TimeoutError:
            raise psycopg.OperationalError(f"no answer came in {_ANSWER_S:.0f} s") from None

    async def run(self, stop: asyncio.Event) -> None:
        """Stand for election until `stop`; then resign first, so that the next one leads at once."""
        while not stop.is_set():
            connection = await persist("leader's session", self._connect, stop, (*BROKEN, *TRY_AGAIN, ConnectError))
            if connection is None:
                return
            try:
                await self._stand(connection, stop)
            except (*BROKEN, *TRY_AGAIN, NotLeader) as error:
                what = "leadership was lost" if self.term is not None else "the leader's session was lost"
                log.warning("%s: %s", what, str(error).strip())
            finally:
                self.term = None
                await connection.close()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        try:
            connection = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, application_name=f"pgsched leader {self._info['name']}"[:63], **_NETWORK
            )
        except psycopg.OperationalError as error:
            raise unreachable(self._dsn, error) from error
        try:
            await connection.execute(_BOUNDS)
            channel = await self._ask(connection, self._calls.channel())
            await connection.execute(f"listen {channel}_leader")
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _stand(self, connection: psycopg.AsyncConnection[Any], stop: asyncio.Event) -> None:
        while not stop.is_set():
            # A try that returns at once: between tries a standby holds no snapshot, which would stop vacuum.
            self.term = await self._ask(connection, self._calls.lead(json.dumps(self._info)))
            if self.term is not None:
                log.info("leading: term %s", self.term)
                reason = await self._reign(connection, stop)
                await self._ask(connection, self._calls.resign(reason))
                log.info("term %s has ended: %s", self.term, reason)
                self.term = None
                if stop.is_set():
                    return
                await wait_any(stop, at_most=ROUND_S)
            await self._heard(connection, stop)

    async def _reign(self, connection: psycopg.AsyncConnection[Any], stop: asyncio.Event) -> str:
        """Do the duties round after round; why the term is to end."""
        silence = Silence()
        self._done = dict.fromkeys(("beat", "rescue", "stage"), now())
        while True:
            beat = await self._ask(connection, self._calls.leader_beat())
            self._done["beat"] = now()
            await self._duty("rescue", self._rescue(connection, silence, beat["silent"]))
            await self._duty("stage", self._stage(connection))
            if overdue := [name for name, at in self._done.items() if now() - at > OVERDUE_S]:
                return f"its duty {overdue[0]} has not succeeded for {OVERDUE_S:.0f} s"
            if stop.is_set():
                return "it was stopped"
            if "resign" in await self._heard(connection, stop):
                return "it was asked to resign"
            if stop.is_set():
                return "it was stopped"

    async def _duty(self, name: str, work: Any) -> None:
        """One duty of a round. One that fails on a good session is tried again in the next round, and is noticed when overdue."""
        try:
            await work
            self._done[name] = now()
        except (*BROKEN, NotLeader) as error:
            if not isinstance(error, TRY_AGAIN):
                raise
            log.warning("%s: %s", name, str(error).strip())
        except (psycopg.Error, PgschedError) as error:
            log.warning("%s: %s", name, str(error).strip())

    async def _rescue(
        self, connection: psycopg.AsyncConnection[Any], silence: Silence, silent: list[dict[str, Any]]
    ) -> None:
        seen = [(row["worker_id"], row["generation"], float(row["rescue_after_s"])) for row in silent]
        for worker_id, generation, seconds in silence.look(now(), seen):
            with contextlib.suppress(WorkerAlive):  # it has attached again: its silence begins anew
                answer = await self._ask(connection, self._calls.rescue_silent(worker_id, generation, seconds))
                log.warning(
                    "worker %s was silent for %.1f s: %s of its jobs went back", worker_id, seconds, answer["moved"]
                )

    async def _stage(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await self._ask(connection, self._calls.stage(1000))

    async def _heard(self, connection: psycopg.AsyncConnection[Any], stop: asyncio.Event) -> set[str]:
        """Wait for the next round, or for word about the leadership, or `stop`; what was heard."""
        heard: set[str] = set()
        end = now() + ROUND_S
        while not heard and not stop.is_set() and (left := end - now()) > 0:
            async for notify in connection.notifies(timeout=min(left, 0.05), stop_after=1):
                heard.add(notify.payload)
        return heard
