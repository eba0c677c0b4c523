"""A transactional job's connection as one of SQLAlchemy, in the same transaction. SQLAlchemy is asked for only here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgsched.worker.transaction import AsyncJobConnection, JobConnection

_OPTIONS: dict[str, Any] = {"poolclass": NullPool, "pool_reset_on_return": None}
_URL = "postgresql+psycopg://"


class Alchemy:
    """SQLAlchemy on one connection: made at the first use in an attempt, let go at its end without touching the transaction."""

    def __init__(self, connection: JobConnection) -> None:
        self._gate = connection.gate
        engine = create_engine(_URL, creator=lambda: connection, **_OPTIONS)
        with self._gate.quiet():  # (it looks at the server, and rolls back what it takes for its own transaction)
            self.connection = engine.connect()
        self.session = Session(self.connection)

    def flush(self) -> None:
        """Send what the session has not sent yet."""
        self.session.flush()

    def close(self) -> None:
        """Let go of it."""
        with self._gate.quiet():
            self.session.close()
            self.connection.close()


class AsyncAlchemy:
    """`Alchemy` in an event loop. The connection opens itself at the first `await`."""

    def __init__(self, connection: AsyncJobConnection) -> None:
        self._gate = connection.gate
        self._raw = connection

        async def the_one(*_: Any, **__: Any) -> AsyncJobConnection:
            return connection

        self._engine = create_async_engine(_URL, async_creator=the_one, **_OPTIONS)
        self.connection: AsyncConnection
        self.session: AsyncSession

    async def open(self) -> None:
        """Connect: SQLAlchemy looks at the server."""
        with self._gate.quiet():
            self.connection = await self._engine.connect()
        self.session = AsyncSession(self.connection)

    async def flush(self) -> None:
        """Send what the session has not sent yet."""
        await self.session.flush()

    async def close(self) -> None:
        """Let go of it."""
        with self._gate.quiet():
            await self.session.close()
            await self.connection.close()
