"""A worker as a child process, and what its parent owes it: to reap it with all its children, and to say so.

Because this parent has reaped the process, it may certify its death: the jobs go back at once, without waiting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence

from pgsched.calls import Calls
from pgsched.dsn import connect
from pgsched.errors import WorkerAlive
from pgsched.loop import backoff
from pgsched.run import run

log = logging.getLogger("pgsched.dev")

_PATIENCE_S = 30.0
_HEALTHY_S = 60.0


class ChildWorker:
    """One worker process of this one: `command` is its command line after `pgsched`; it must not name the worker."""

    def __init__(self, command: Sequence[str], dsn: str, *, schema: str = "pgsched", quiet: bool = False) -> None:
        self._command = [*command]
        self._dsn = dsn
        self._calls = Calls(schema)
        self._quiet = quiet
        self.name = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, under a name that nobody else has."""
        self.name = f"child-{uuid.uuid4()}"
        output = subprocess.DEVNULL if self._quiet else None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pgsched", *self._command, "--name", self.name],
            env=os.environ | {"PGSCHED_DSN": self._dsn},
            stdin=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )

    def keep(self) -> None:
        """Keep a worker running: when it dies, put back its jobs and start another, with backoff. Never returns."""
        waits = backoff(0.1, 10.0)
        while True:
            if self.process is None:
                self.start()
            began = time.monotonic()
            code = self.reap()
            if time.monotonic() - began > _HEALTHY_S:
                waits = backoff(0.1, 10.0)
            wait = next(waits)
            log.warning("the worker has ended with %s; starting another in %.1f s", code, wait)
            time.sleep(wait)

    def reap(self) -> int:
        """Wait until the process has ended, end what it left behind, and put back its jobs. Its exit code."""
        assert self.process is not None, "the child was not started"
        code = self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None
        self.rescue()
        return code

    def rescue(self) -> int:
        """Put back the jobs of the reaped worker; how many. Waits for the server to end its sessions, at most 30 s."""
        moved = 0
        deadline = time.monotonic() + _PATIENCE_S
        with connect(self._dsn, autocommit=True) as connection:
            for worker_id in run(connection, self._calls.worker_named(self.name)):
                above: int | None = 0
                while True:
                    try:
                        answer = run(connection, self._calls.rescue(worker_id, None, above or 0))
                    except WorkerAlive:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.01)
                        continue
                    moved += answer["moved"] or 0
                    above = answer["last"]
                    if not answer["left"] or (above is None and time.monotonic() > deadline):
                        break
                    if above is None:
                        time.sleep(0.01)
        return moved

    def stop(self, patience_s: float = 40.0) -> int | None:
        """SIGTERM, and SIGKILL after `patience_s`; then as `reap`. None when it was not running."""
        if self.process is None:
            return None
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self.reap()

    def __enter__(self) -> ChildWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
