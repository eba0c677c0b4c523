"""Waiting for the ends of jobs: one thread and one connection for all who wait on a client, in threads and event loops.

It listens to `ended_channel()`, asks about a job when somebody begins to wait for it and when its end was notified, and about
all of them once a second. So a lost notification costs a second, and a pooler that loses all of them no more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg import sql

from pgsched import dsn as dsns
from pgsched.answers import Ended
from pgsched.errors import ConnectError, UsageError, primary
from pgsched.loop import backoff
from pgsched.run import run

if TYPE_CHECKING:
    from pgsched.client import Client

log = logging.getLogger("pgsched")

Wait: TypeAlias = "Future[Ended]"

_POLL_S = 1.0
_LINGER_S = 5.0
"""How long the connection stays when nobody waits any more."""
_CLOSING_S = 2.0
_MOST_IDS = 1000
_CONNECTION: dict[str, Any] = {
    "autocommit": True,
    "application_name": "pgsched results",
    "prepare_threshold": None,  # (a pooler may not know prepared statements)
    # A cut link is noticed within some seconds, while it is idle and while an answer is waited for.
    "keepalives_idle": 2,
    "keepalives_interval": 2,
    "keepalives_count": 4,
    "tcp_user_timeout": 10_000,
}


class Results:
    """All who wait for jobs of one client. Nothing runs and nothing is open where nobody does."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._wake: socket.socket | None = None
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        """As if nobody had ever waited: at first, and in a forked child, which has neither the thread nor its locks."""
        if self._wake is not None:
            self._wake.close()
        self._wake = None
        self._lock = threading.Lock()
        self._waits: dict[int, list[Wait]] = {}
        self._unasked: set[int] = set()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def ended(self, job_id: int, timeout: timedelta | None) -> Ended:
        """Block until the job has ended, or is found missing. Raises `TimeoutError`, and whatever keeps it from being known."""
        seconds = _seconds(timeout)
        wait = self._add(job_id)
        try:
            return wait.result(seconds)
        except TimeoutError:
            raise _timed_out(job_id, timeout) from None
        finally:
            self._forget(job_id, wait)

    async def aended(self, job_id: int, timeout: timedelta | None) -> Ended:  # noqa: ASYNC109 (as its twin)
        """`ended` in an event loop."""
        seconds = _seconds(timeout)
        wait = self._add(job_id)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(wait)
        except TimeoutError:
            raise _timed_out(job_id, timeout) from None
        finally:
            self._forget(job_id, wait)

    def all_ended(self, job_ids: Sequence[int], timeout: timedelta | None) -> list[Ended]:
        """`ended` for all of these."""
        seconds = _seconds(timeout)
        end = None if seconds is None else time.monotonic() + seconds
        waits = [(job_id, self._add(job_id)) for job_id in job_ids]
        try:
            return [wait.result(None if end is None else max(0.0, end - time.monotonic())) for _, wait in waits]
        except TimeoutError:
            late = [job_id for job_id, wait in waits if not wait.done() or wait.cancelled()]
            raise _timed_out((late or job_ids)[0], timeout) from None
        finally:
            for job_id, wait in waits:
                self._forget(job_id, wait)

    async def aall_ended(self, job_ids: Sequence[int], timeout: timedelta | None) -> list[Ended]:  # noqa: ASYNC109
        """`all_ended` in an event loop."""
        seconds = _seconds(timeout)
        waits = [(job_id, self._add(job_id)) for job_id in job_ids]
        try:
            async with asyncio.timeout(seconds):
                return list(await asyncio.gather(*(asyncio.wrap_future(wait) for _, wait in waits)))
        except TimeoutError:
            late = [job_id for job_id, wait in waits if not wait.done() or wait.cancelled()]
            raise _timed_out((late or job_ids)[0], timeout) from None
        finally:
            for job_id, wait in waits:
                self._forget(job_id, wait)

    def close(self) -> None:
        """Close the connection; whoever still waits gets a `UsageError`."""
        with self._lock:
            thread = self._thread
            self._closing.set()
            self._signal()
        if thread is not None:
            thread.join(_CLOSING_S)  # (one that is just connecting ends by itself, since nobody waits)
        self._fail(UsageError("the App was closed while a result was waited for"))
        self._closing.clear()

    def _add(self, job_id: int) -> Wait:
        wait: Wait = Future()
        with self._lock:
            if self._closing.is_set():
                raise UsageError("the App is being closed: nobody can wait for a result any more")
            self._waits.setdefault(job_id, []).append(wait)
            self._unasked.add(job_id)
            if self._thread is None:
                self._wake, woken = socket.socketpair()
                self._wake.setblocking(False)
                self._thread = threading.Thread(target=self._run, args=(woken,), name="pgsched-results", daemon=True)
                self._thread.start()
            self._signal()
        return wait

    def _forget(self, job_id: int, wait: Wait) -> None:
        with self._lock:
            waits = self._waits.get(job_id, [])
            if wait in waits:
                waits.remove(wait)
                if not waits:
                    del self._waits[job_id]

    def _signal(self) -> None:
        """Wake the thread; the lock is held. (A socket that is full has woken it already.)"""
        if self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                self._wake.send(b"!")

    def _fail(self, error: BaseException) -> None:
        """Everybody who waits gets this error."""
        with self._lock:
            waits = [wait for of_job in self._waits.values() for wait in of_job]
            self._waits.clear()
        for wait in waits:
            if wait.set_running_or_notify_cancel():
                wait.set_exception(error)

    # In the thread

    def _run(self, woken: socket.socket) -> None:
        try:
            self._connect_and_serve(woken)
        except BaseException as error:
            with self._lock:
                self._end()
            self._fail(error)
            raise
        finally:
            woken.close()

    def _connect_and_serve(self, woken: socket.socket) -> None:
        """Until nobody waits any more. A connection that was there once is made again; one that never was is an error."""
        waits, since, connected = backoff(0.05, 5.0), 0.0, False
        while not self._is_over(_LINGER_S):
            try:
                with dsns.connect(self._client.dsn, **_CONNECTION) as connection:
                    since, connected = time.monotonic(), True
                    self._serve(connection, woken)
            except (psycopg.Error, ConnectError) as error:
                if not connected:
                    self._fail(error)
                    continue
                log.warning("waiting for results: %s; trying again", primary(error))
                if time.monotonic() - since > _LINGER_S:
                    waits = backoff(0.05, 5.0)
                self._closing.wait(next(waits))
            except Exception as error:  # the schema, the rights: no later try would be better
                self._fail(error)

    def _serve(self, connection: psycopg.Connection[Any], woken: socket.socket) -> None:
        """Ask until it is over; at first about all."""
        channel = run(connection, self._client.calls.ended_channel())
        connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        poll_at, busy_at = 0.0, time.monotonic()
        told: set[int] = set()
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                with self._lock:
                    busy_at = now if self._waits else busy_at
                    ids = self._waits.keys() if now >= poll_at else self._waits.keys() & (self._unasked | told)
                    asked = {job_id: list(self._waits[job_id]) for job_id in ids}
                    self._unasked.clear()
                if now >= poll_at:
                    poll_at = now + _POLL_S
                self._ask(connection, asked)
                if self._is_over(now - busy_at):
                    return
                # (What came along with an answer shows no more on the socket.)
                if not (told := _heard(connection)):
                    events = selector.select(max(0.0, poll_at - time.monotonic()))
                    if any(key.fileobj is woken for key, _ in events):
                        woken.recv(4096)
                    told = _heard(connection)

    def _ask(self, connection: psycopg.Connection[Any], asked: dict[int, list[Wait]]) -> None:
        """Ask about these jobs and tell who waited when it was asked: who came later may have reason to know better."""
        ids = list(asked)
        for first in range(0, len(ids), _MOST_IDS):
            for ended in run(connection, self._client.calls.results(ids[first : first + _MOST_IDS])):
                for wait in asked[ended.job_id]:
                    self._forget(ended.job_id, wait)
                    if not wait.done() and wait.set_running_or_notify_cancel():
                        wait.set_result(ended)

    def _is_over(self, quiet_s: float) -> bool:
        """Whether this thread has to end."""
        with self._lock:
            over = self._closing.is_set() or (not self._waits and quiet_s >= _LINGER_S)
            if over:
                self._end()
            return over

    def _end(self) -> None:
        """From now on nobody counts on this thread; the lock is held."""
        self._thread = None
        if self._wake is not None:
            self._wake.close()
            self._wake = None


_ALL: weakref.WeakSet[Results] = weakref.WeakSet()


def _begin_in_child() -> None:
    for results in list(_ALL):
        results._begin()


os.register_at_fork(after_in_child=_begin_in_child)


def _heard(connection: psycopg.Connection[Any]) -> set[int]:
    """The jobs whose end was notified."""
    return {int(notify.payload) for notify in connection.notifies(timeout=0)}


def _seconds(timeout: timedelta | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, timedelta):
        raise UsageError(f"timeout is {timeout!r}: it must be a timedelta, or None to wait as long as it takes")
    return max(0.0, timeout.total_seconds())


def _timed_out(job_id: int, timeout: timedelta | None) -> TimeoutError:
    return TimeoutError(f"job {job_id} has not ended within {timeout}; it goes on")
