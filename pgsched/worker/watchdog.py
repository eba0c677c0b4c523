"""A thread that watches the lease while the event loop may be stuck: a blocked loop, or a handler that swallows cancellation.

It cannot run while C code holds the interpreter's lock, nor while the process is stopped (SIGSTOP): then only another process
can end this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from pgsched.exit_code import ExitCode
from pgsched.lease import Lease, Order, now

log = logging.getLogger("pgsched.worker")

_LOOK_S = 0.1


class Watchdog:
    """At `client` it calls `expired` in the event loop; at `kill`, if a handler still runs, it ends the process at once.

    `lifeline`: the reading end of a pipe that is closed when the parent ends.
    """

    def __init__(
        self, lease: Lease, expired: Callable[[], None], running: Callable[[], int], lifeline: int | None = None
    ) -> None:
        self._lease = lease
        self._expired = expired
        self._running = running
        self._lifeline = lifeline
        self._poll = select.poll()
        if lifeline is not None:
            self._poll.register(lifeline, select.POLLIN)
        self._over = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="pgsched-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more than what still runs; with nothing left it has ended when this returns."""
        self._over.set()
        if not self._running():
            self._thread.join()

    def _watch(self) -> None:
        told = False
        while not self._over.is_set() or self._running():
            self._look()
            order = self._lease.order(now())
            if order is Order.WORK:
                told = False
            elif order is Order.DIE and self._running():
                # (Said by a thread of its own: a log that nobody reads may block, and nothing may keep this process alive.)
                word = ("the lease is dead and %s handlers still run: this process ends now", self._running())
                saying = threading.Thread(target=log.critical, args=word, daemon=True)
                saying.start()
                saying.join(0.2)
                os._exit(ExitCode.LEASE_LOST)
            elif not told and not self._over.is_set():
                told = True
                with contextlib.suppress(RuntimeError):  # (the loop has been closed)
                    self._loop.call_soon_threadsafe(self._expired)

    def _look(self) -> None:
        """Wait for the next look; a closed lifeline means that the parent has ended, and this process ends with it."""
        if self._lifeline is None:
            time.sleep(_LOOK_S)
        elif self._poll.poll(_LOOK_S * 1000):
            os._exit(ExitCode.ERROR)
