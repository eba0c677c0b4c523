"""A thread that watches the lease while the event loop may be stuck: a blocked loop, or a handler that swallows cancellation.

It cannot run while C code holds the interpreter's lock, nor while the process is stopped (SIGSTOP): then only another process
can end this one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable

from pgsched.lease import Lease, Order, now
from pgsched.worker.exit_code import ExitCode

log = logging.getLogger("pgsched.worker")

_LOOK_S = 0.1


class Watchdog:
    """At `client` it calls `expired` in the event loop; at `kill`, if a handler still runs, it ends the process at once."""

    def __init__(self, lease: Lease, expired: Callable[[], None], running: Callable[[], int]) -> None:
        self._lease = lease
        self._expired = expired
        self._running = running
        self._over = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="pgsched-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        told = False
        while not self._over.wait(_LOOK_S):
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
            elif not told:
                told = True
                self._loop.call_soon_threadsafe(self._expired)
