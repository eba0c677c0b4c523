"""The connections of a worker: what kind each is, and how one that broke is made again.

*Lease*: attached, holds the worker's lock, heartbeats and nothing else. *Work*: claims and finishes; it holds the lock too
and has a number that is used once. *Listener*: hears NOTIFY and holds no lock. Losing a session is not losing the lease:
the worker attaches again under the same identity, unless its jobs were taken from it meanwhile (`WorkerRescued`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format

from pgsched.bounds import network_wishes, set_bounds
from pgsched.calls import Call, Calls
from pgsched.client import PROTOCOL, check_protocol
from pgsched.dsn import unreachable
from pgsched.errors import ConnectError, NoSession, ReadOnlyServer, WorkerRescued, primary
from pgsched.lease import LeaseTimes, now
from pgsched.loop import backoff
from pgsched.pooler import moved, own_backend
from pgsched.run import arun, bounded, ours
from pgsched.wire import ANSWER_S, WorkConnection, hang_up

T = TypeVar("T")
log = logging.getLogger("pgsched.worker")

BROKEN = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.NotSupportedError,
    psycopg.InternalError,
    OSError,
    NoSession,
)
"""What a session raises when it has ended, or must be made anew (NotSupportedError: a migration has changed what a prepared
statement answers, and a new connection has none; InternalError: psycopg's own, when a connection ends amid an answer)."""

TRY_AGAIN = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
)
"""What a session raises when it lives on and the same call may succeed in a moment (some are BROKEN's by class)."""

_READ_COMMITTED = "set default_transaction_isolation = 'read committed'"
_SETTINGS = _READ_COMMITTED + "; set lock_timeout = '800ms'; set intervalstyle = 'postgres'; {more}"
_TRANSACTION = 170000, "transaction_timeout = '{bound}ms'", "a transaction is bounded by its statements alone"
# (A work session holds the worker's lock as well: one that a frozen process left idle must not keep it for ever.)
_WORK = "set statement_timeout = '60s'; set idle_in_transaction_session_timeout = '60s'; set idle_session_timeout = '{silence}ms'"
_WHO = "a worker"
_LEASE = "set statement_timeout = '{bound}ms'; set idle_session_timeout = '{silence}ms'"


class RawJson(Loader):
    """Leaves jsonb as the bytes that came: arguments are parsed once, by the task's own validator."""

    format = Format.TEXT

    def load(self, data: Any) -> bytes:
        """The text as it came."""
        return bytes(data)


class Identity:
    """Who this worker is: its row in the table worker, and what proves it."""

    def __init__(self, dsn: str, calls: Calls, times: LeaseTimes, info: dict[str, Any]) -> None:
        self.dsn = dsn
        self.calls = calls
        self.times = times
        self.info = info
        self.id = 0
        self.token = ""
        self.epoch = 0
        self._next_no = 0
        self.proved_at = 0.0
        """When what was answered last of the lease was sent. (Not when the connection for it was begun: that may take long.)"""
        self.doubted: set[int] = set()
        """Backends whose last answer came with a warning."""
        self._backends: WeakKeyDictionary[psycopg.AsyncConnection[Any], int] = WeakKeyDictionary()

    async def connect(
        self,
        kind: str,
        settings: str,
        longest_s: float | None = None,
        cls: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
    ) -> psycopg.AsyncConnection[Any]:
        """A new connection with the settings of its kind; no transaction of it lasts longer than `longest_s`.

        Raises `ConnectError` when the database does not answer, `PoolerError` where the connection is no session.
        """
        # A cut link is noticed within a third of the lease, on an idle session and on one that waits for an answer.
        patience_s = max(2, int(self.times.heartbeat.total_seconds()))
        network: dict[str, Any] = {
            "connect_timeout": patience_s,
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": max(2, patience_s - 2),
            "tcp_user_timeout": patience_s * 1000,
        }

        async def connected(kind: str) -> psycopg.AsyncConnection[Any]:
            application = f"pgsched {kind} {self.info['name']}"[:63]
            try:
                return await cls.connect(self.dsn, autocommit=True, application_name=application, **network)
            except psycopg.OperationalError as error:
                raise unreachable(self.dsn, error) from error

        connection = await connected(kind)
        pid = connection.info.backend_pid

        def noticed(notice: psycopg.errors.Diagnostic) -> None:
            if notice.severity_nonlocalized == "WARNING":
                self.doubted.add(pid)

        self.doubted.discard(pid)
        # The last heartbeat that comes through a link which takes no answers back may be a third of the lease late.
        wishes = network_wishes(patience_s, min(patience_s, (self.times.client - self.times.heartbeat).total_seconds()))
        if longest_s is not None:
            since, setting, weaker = _TRANSACTION
            wishes.append((since, setting.format(bound=int(longest_s * 1000)), weaker))
        try:
            connection.add_notice_handler(noticed)
            self._backends[connection] = await own_backend(
                connection, lambda: connected("probe"), _WHO, self._bound_s, known=self.id != 0
            )
            await bounded(connection, set_bounds(connection, _SETTINGS.format(more=settings), wishes), self._bound_s)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def last_session(self) -> int:
        """The number of the newest work session."""
        return self._next_no

    @property
    def _bound_s(self) -> float:
        """How long a lease session may wait for an answer, and any session for its first ones."""
        return self.times.heartbeat.total_seconds()

    async def _ask(self, connection: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
        """The answer of a call that the server has committed with its quorum; else it is none, and the session is over."""
        self.doubted.discard(connection.info.backend_pid)
        answer = await bounded(connection, arun(connection, call), self._bound_s)
        self.believe(connection)
        return answer

    def believe(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Raise `NoSession` where the last answer came with a warning: its wait for the synchronous standby was cancelled."""
        if self.doubted and connection.info.backend_pid in self.doubted:
            self.doubted.discard(connection.info.backend_pid)
            raise NoSession("it was answered by a server that could not commit it with its quorum")

    async def attach(self) -> psycopg.AsyncConnection[Any]:
        """The first lease session: registers the worker. Raises `PoolerError`, `ProtocolMismatch`, `NotAdopted`..."""
        connection = await self._connect_lease()
        try:
            check_protocol(self.calls.schema, await self._ask(connection, self.calls.protocol()))
            info = self.info | {"protocol": PROTOCOL, "rescue_after_s": self.times.rescue.total_seconds()}
            self.proved_at = now()
            self.id, self.token, self.epoch = await self._ask(connection, self.calls.attach(json.dumps(info)))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def reattach(self, claims: Collection[int]) -> tuple[psycopg.AsyncConnection[Any], list[int]]:
        """A new lease session for the same worker, and which of the claims the server does not know."""
        connection = await self._connect_lease()
        try:
            try:
                unknown = await self._ask(connection, self.calls.reattach(self.id, self.token, list(claims)))
            except NoSession as error:
                if error.__cause__ is None:  # our own doubt about the answer, not the server's word
                    raise
                # An asynchronous fail-over forgot this worker, or it was taken for ended: no later try can succeed.
                raise WorkerRescued(f"this identity is over: {error}") from error
            await self.heartbeat(connection)
            return connection, unknown
        except BaseException:
            await connection.close()
            raise

    async def open_session(self) -> tuple[WorkConnection, int]:
        """A new work session and its number."""
        settings = _WORK.format(silence=int(self.times.client.total_seconds() * 1000))
        connection = cast(WorkConnection, await self.connect("work", settings, ANSWER_S, WorkConnection))
        try:
            connection.adapters.register_loader("jsonb", RawJson)
            self._next_no += 1
            number = self._next_no
            epoch = await self._ask(connection, self.calls.open_session(self.id, self.token, number))
            self._is_on(epoch)
            return connection, number
        except BaseException:
            await connection.close()
            raise

    async def heartbeat(self, lease: psycopg.AsyncConnection[Any]) -> None:
        """Send a heartbeat. Returns when a server that could commit it with its quorum has answered.

        Raises one of BROKEN when the session is gone, also when no answer came within a third of the lease; `PoolerError`
        where a pooler has begun to hand its backend around.
        """
        sent_at = now()
        answer = await self._ask(lease, self.calls.heartbeat(self.id))
        if answer["backend"] != self._backends[lease]:
            await lease.close()
            raise moved(_WHO)
        self._is_on(answer["epoch"])
        self.proved_at = sent_at

    def _is_on(self, epoch: int) -> None:
        """Every session of a worker is on one server. Raises `NoSession` on one that was left behind by a promotion."""
        if epoch < self.epoch:
            raise NoSession(
                f"this server's epoch is {epoch}, this worker has seen {self.epoch}: it is not the primary any more"
            )
        self.epoch = epoch

    async def _connect_lease(self) -> psycopg.AsyncConnection[Any]:
        bound_s = self.times.heartbeat.total_seconds()
        settings = _LEASE.format(bound=int(bound_s * 1000), silence=int(self.times.client.total_seconds() * 1000))
        return await self.connect("lease", settings, 2 * bound_s)


def describe(
    name: str | None, app: str, queues: list[str], tasks: list[str], concurrency: int, version: str
) -> dict[str, Any]:
    """What a worker says of itself when it attaches."""
    host = socket.gethostname()
    return {
        "name": name or f"{host}-{os.getpid()}",
        "host": host,
        "pid": os.getpid(),
        "app": app,
        "queues": queues,
        "tasks": tasks,
        "concurrency": concurrency,
        "version": version,
    }


async def persist(what: str, make: Callable[[], Awaitable[T]], stop: asyncio.Event, bound_s: float) -> T | None:
    """`make()` until it succeeds, each try at most `bound_s` seconds, with backoff and jitter, saying so; None when `stop` is
    set first. What is no failure of the connection is raised."""
    for wait in backoff(cap=min(10.0, bound_s / 2)):
        try:
            async with asyncio.timeout(bound_s):
                return await make()
        except TimeoutError:
            log.warning("%s: it took longer than %.0f s; trying again", what, bound_s)
        except (*BROKEN, *TRY_AGAIN, ConnectError, ReadOnlyServer) as error:  # (a standby may be promoted in a moment)
            log.warning("%s: %s; trying again", what, primary(error))
        try:
            await asyncio.wait_for(stop.wait(), wait)
        except TimeoutError:
            continue
        return None
    return None


class WorkSession:
    """One work session that is made anew whenever it breaks; `ended` collects the numbers of those that did."""

    def __init__(self, identity: Identity, ended: list[int]) -> None:
        self._identity = identity
        self._ended = ended
        self._connection: WorkConnection | None = None
        self.number = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    async def open(self) -> None:
        """Connect and join the worker. Raises one of BROKEN, `ConnectError`, `WorkerRescued`."""
        self._connection, self.number = await self._identity.open_session()

    async def call(self, call: Call[T]) -> T:
        """Send a call. Raises one of BROKEN when the session is gone (it is closed then; its answer may be lost)."""
        connection = self._connection
        if connection is None:
            raise psycopg.OperationalError("the work session is closed")
        try:
            with ours(call):
                answer = call.read(await connection.rows(call.text, call.params))
            self._identity.believe(connection)
        except BROKEN as error:
            if isinstance(error, TRY_AGAIN) and not connection.broken:
                raise
            await self._end(connection)
            raise
        except asyncio.CancelledError:
            await self._end(connection)
            raise
        if self._connection is not connection:
            # Closed while this waited: reconcile may have given back what the answer names, so the answer is void.
            await self._end(connection)
            raise psycopg.OperationalError("the work session was closed before its answer was read")
        return answer

    async def close(self) -> None:
        """Close it for good: its number is among the ended ones from now on.

        While somebody waits for an answer on it, only its socket is shut down, which wakes him, and he closes it: a libpq
        connection must not be freed under a call.
        """
        if self._connection is not None:
            await self._end(self._connection)

    async def _end(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """This connection is over, if it was not before."""
        if self._connection is connection:
            self._ended.append(self.number)
            self._connection = None
        if connection.lock.locked():
            hang_up(connection)
        else:
            await connection.close()
