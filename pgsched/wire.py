"""The connection of a work session: what it costs to ask it is most of what a step of a chain of jobs costs its worker.

It waits for an answer in the task that asks. (When psycopg's own wait is cancelled, it asks the server to cancel the statement,
on a new connection, and waits on; so where a link may be cut it runs in a task of its own, see `run.bounded`.) And every
statement is prepared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.waiting import Ready, Wait

T = TypeVar("T")

ANSWER_S = 75.0
"""How long it waits for an answer: longer than the server lets a statement run. A COMMIT may take longer; then its outcome is
sent again on a new session, and the server knows whether it had been done."""


class Unanswered(psycopg.OperationalError):
    """No answer came in the time that was given; the connection is hung up."""


def hang_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Wake whoever waits for an answer on this connection: his call fails at once.

    Only its socket is shut down: a libpq connection must not be freed under a call.
    """
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)


class WorkConnection(psycopg.AsyncConnection[Any]):
    """It is hung up when an answer takes too long (`Unanswered`), and when whoever waits for one is cancelled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._due: float | None = None
        """When the answer must have come that is waited for."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False

    async def rows(self, text: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The answer to one statement, which has a `%(name)s` for each of `params`."""
        cursor = self.cursor()
        await cursor.execute(text, params, prepare=True)
        return await cursor.fetchall()

    async def wait(self, gen: Generator[Any, Any, T], *_: Any, **__: Any) -> T:
        """Do what psycopg does on this connection, to its end."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + ANSWER_S
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._look, loop)
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send(await self._ready(loop, wanted))
        except StopIteration as end:
            answer: T = end.value
            return answer
        except (OSError, psycopg.OperationalError) as error:
            if self._is_late:
                raise Unanswered(f"no answer came in {ANSWER_S:.0f} s") from error
            if isinstance(error, OSError):
                raise psycopg.OperationalError("the connection's socket is closed") from error
            raise
        except asyncio.CancelledError:
            hang_up(self)
            raise
        finally:
            self._due = None

    async def close(self) -> None:
        """Close it. Nobody may be waiting on it."""
        if self._timer is not None:
            self._timer.cancel()
        await super().close()

    async def _ready(self, loop: asyncio.AbstractEventLoop, wanted: int) -> int:
        """Wait until the socket can be read or written, as it is wanted; which of them."""
        fd = self.pgconn.socket
        ready: asyncio.Future[int] = loop.create_future()
        if wanted & Wait.R:
            loop.add_reader(fd, _answer, ready, Ready.R)
        if wanted & Wait.W:
            loop.add_writer(fd, _answer, ready, Ready.W)
        try:
            return await ready
        finally:
            if wanted & Wait.R:
                loop.remove_reader(fd)
            if wanted & Wait.W:
                loop.remove_writer(fd)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """The time of an answer is over, perhaps of one that came long ago: a timer for each would cost more."""
        self._timer = None
        if self._due is None:
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._look, loop)
        else:
            self._is_late = True
            hang_up(self)


def _answer(ready: asyncio.Future[int], how: int) -> None:
    if not ready.done():
        ready.set_result(how)
