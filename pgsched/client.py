"""The application's own connections: a pool for synchronous callers, and one for each event loop.

A pool is opened at its first use and checked then: the schema must be there and speak this version's protocol.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgsched import dsn as dsns
from pgsched.calls import Call, Calls
from pgsched.errors import ProtocolMismatch
from pgsched.pooler import aspare, spare
from pgsched.results import Results
from pgsched.run import arun, refuse_in_loop, run

if TYPE_CHECKING:
    from pgsched.embedded import EmbeddedPostgres

T = TypeVar("T")

PROTOCOL = 1
"""The protocol number that this version speaks; the schema's function protocol() says its own."""


class Client:
    """Sends calls on connections of its own. `dsn` as in `pgsched.App`; nothing is opened before the first call."""

    def __init__(self, dsn: str | None, schema: str, max_connections: int = 4) -> None:
        self.calls = Calls(schema)
        self.schema = schema
        self._given = dsn
        self._max = max_connections
        self._lock = threading.Lock()
        self._embedded: EmbeddedPostgres | None = None
        self._pool: ConnectionPool | None = None
        self.results = Results(self)
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnectionPool] = WeakKeyDictionary()
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncConnectionPool]] = {}

    @property
    def dsn(self) -> str:
        """The DSN in force; "embedded" starts the server and migrates it at the first use. Raises `UsageError`."""
        found = dsns.resolve(self._given)
        if found != "embedded":
            return found
        with self._lock:
            if self._embedded is None:
                from pgsched import embedded, migrate

                self._embedded = embedded.start()
                migrate.upgrade(self._embedded.dsn, schema=self.schema)
            return self._embedded.dsn

    def run(self, call: Call[T], name: str, twin: str) -> T:
        """Send a call, from a thread without an event loop. Raises `UsageError` inside one, naming the async twin."""
        refuse_in_loop(name, twin)
        try:
            with self._open_pool().connection() as connection:
                return run(connection, call)
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise dsns.unreachable(self.dsn, error) from error

    async def arun(self, call: Call[T]) -> T:
        """Send a call in the running event loop."""
        try:
            async with (await self._open_async_pool()).connection() as connection:
                return await arun(connection, call)
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise dsns.unreachable(self.dsn, error) from error

    @contextmanager
    def transaction(self, name: str, twin: str) -> Iterator[psycopg.Connection]:
        """A connection in a transaction of its own, for several calls that hold together."""
        refuse_in_loop(name, twin)
        try:
            with self._open_pool().connection() as connection, connection.transaction():
                yield connection
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise dsns.unreachable(self.dsn, error) from error

    @asynccontextmanager
    async def atransaction(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """`transaction` in an event loop."""
        try:
            async with (await self._open_async_pool()).connection() as connection, connection.transaction():
                yield connection
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise dsns.unreachable(self.dsn, error) from error

    def close(self) -> None:
        """Close the synchronous pool, what waits for results, and the embedded server if this client started it."""
        self.results.close()
        with self._lock:
            if self._pool is not None:
                self._pool.close()
                self._pool = None
            if self._embedded is not None:
                self._embedded.stop()
                self._embedded = None

    async def aclose(self) -> None:
        """Close the running loop's pool, then all that `close` closes."""
        if (pool := self._pools.pop(asyncio.get_running_loop(), None)) is not None:
            await pool.close()
        self.close()

    def _open_pool(self) -> ConnectionPool:
        if self._pool is None:
            dsn = self.dsn
            with dsns.connect(dsn, autocommit=True) as first:
                check_protocol(self.schema, run(first, self.calls.protocol()))
            with self._lock:
                if self._pool is None:
                    self._pool = ConnectionPool(dsn, open=True, configure=spare, **self._pool_options())
        return self._pool

    async def _open_async_pool(self) -> AsyncConnectionPool:
        loop = asyncio.get_running_loop()
        if (pool := self._pools.get(loop)) is not None:
            return pool
        if (opening := self._opening.get(loop)) is None:
            # (A thousand tasks that enqueue at once must not make a thousand first connections.)
            opening = self._opening[loop] = loop.create_task(self._make_async_pool(loop))
            opening.add_done_callback(lambda _: self._opening.pop(loop, None))
        return await asyncio.shield(opening)

    async def _make_async_pool(self, loop: asyncio.AbstractEventLoop) -> AsyncConnectionPool:
        dsn = await asyncio.to_thread(lambda: self.dsn)
        try:
            first = await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=10)
        except psycopg.OperationalError as error:
            raise dsns.unreachable(dsn, error) from error
        async with first:
            check_protocol(self.schema, await arun(first, self.calls.protocol()))
        pool = AsyncConnectionPool(dsn, open=False, configure=aspare, **self._pool_options())
        await pool.open()
        self._pools[loop] = pool
        return pool

    def _pool_options(self) -> dict[str, Any]:
        return {
            "min_size": 1,
            "max_size": self._max,
            "timeout": 30.0,
            "name": f"pgsched-{self.schema}",
            "kwargs": {"autocommit": True, "connect_timeout": 10},
        }


def check_protocol(schema: str, theirs: int) -> None:
    """Raise `ProtocolMismatch` with both numbers and the command to run, where schema and package do not fit."""
    if theirs != PROTOCOL:
        do = 'run "pgsched migrate"' if theirs < PROTOCOL else "install the pgsched version that it was migrated with"
        raise ProtocolMismatch(
            f'schema "{schema}" speaks protocol {theirs}, this version of pgsched speaks {PROTOCOL}: {do}'
        )
