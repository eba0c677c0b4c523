"""A worker as a child process, and what its parent owes it: to end it in time, to reap it with all its children, and to say so.

Because this parent has reaped the process, it may certify its death: the jobs go back at once, without waiting.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgsched.calls import Calls
from pgsched.dsn import connect
from pgsched.errors import WorkerAlive
from pgsched.exit_code import ExitCode
from pgsched.lease import now
from pgsched.run import run
from pgsched.supervisor.board import HURRY, Board, Seen
from pgsched.supervisor.family import TAG, die_with_parent, end_family

log = logging.getLogger("pgsched.supervisor")

_PARENT = "PGSCHED_PARENT"
_PATIENCE_S = 30.0
# A link that was cut while a certificate is presented is noticed within seconds.
_NETWORK: dict[str, Any] = {
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 8000,
}

FAMILY_S = 10.0
"""How long it may take to end what a worker has left behind."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """That a worker and all its children have ended, and which claims its death is charged to."""

    dsn: str
    schema: str
    worker_id: int
    charged: tuple[int, ...]

    def present(self, patience_s: float = _PATIENCE_S, over: threading.Event | None = None) -> int:
        """Put back the worker's jobs; how many. Waits for the server to end its sessions, at most `patience_s`, or until `over`.

        Raises `ConnectError` where the database does not answer, `WorkerAlive` where it still holds the worker's lock.
        """
        moved, above = 0, 0
        calls = Calls(self.schema)
        deadline = time.monotonic() + patience_s
        with connect(self.dsn, autocommit=True, application_name="pgsched certificate", **_NETWORK) as connection:
            connection.execute("set statement_timeout = '20s'; set lock_timeout = '800ms'")
            while not (over is not None and over.is_set()):
                try:
                    answer = run(connection, calls.rescue(self.worker_id, self.charged, above))
                except WorkerAlive:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)
                    continue
                moved += answer["moved"] or 0
                above = answer["last"] or 0
                if not answer["left"] or (not above and time.monotonic() > deadline):
                    break
                if not above:
                    time.sleep(0.005)  # somebody holds a row at this moment
        return moved


class ChildWorker:
    """One worker process of this one: `command` is its command line after `pgsched`.

    `dsn`: its database, where that is not the App's own. `own`: what `adopt_orphans` has answered, where this process does.
    """

    def __init__(
        self, command: Sequence[str], dsn: str | None = None, *, quiet: bool = False, own: set[int] | None = None
    ) -> None:
        self._command = [*command]
        self._dsn = dsn
        self._quiet = quiet
        self._own = own
        self._board: Board | None = None
        self._lifeline = -1
        self.tag = ""
        self.started_at = 0.0
        self._died_at = 0.0
        self._told = False
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        self.tag = str(uuid.uuid4())
        self._board = Board()
        try:
            theirs, self._lifeline = os.pipe()
        except OSError:
            self._board.close()
            self._board = None
            raise
        parent = json.dumps({"board": self._board.fd, "lifeline": theirs, "pid": os.getpid(), "dsn": self._dsn})
        environment = os.environ | {_PARENT: parent, TAG: self.tag} | ({"PGSCHED_DSN": self._dsn} if self._dsn else {})
        self.started_at, self._died_at, self._told = now(), 0.0, False
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgsched", *self._command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if self._quiet else None,
                start_new_session=True,
                pass_fds=(self._board.fd, theirs),
            )
        except BaseException:
            self._let_go()
            raise
        finally:
            os.close(theirs)

    def _let_go(self) -> None:
        assert self._board is not None
        self._board.close()
        os.close(self._lifeline)
        self._board = None

    @property
    def seen(self) -> Seen:
        """What it has on its board now."""
        assert self._board is not None, "the child was not started"
        return self._board.read()

    @property
    def target(self) -> tuple[str, str] | None:
        """The DSN and the schema of its database, once it has said them."""
        said = self._board.target() if self._board else None
        return (said["dsn"], said["schema"]) if said else None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended is not hit, nor anybody else."""
        if self.process is not None and not self.has_ended():
            self._told |= number in (signal.SIGTERM, HURRY)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, with its process group."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether it has ended; it is not reaped by this (where the system can tell without: not on macOS)."""
        return self.process is None or self._has_ended(0.0)

    def _has_ended(self, patience_s: float | None) -> bool:
        """Wait for its end at most so long, or (None) as long as it takes."""
        assert self.process is not None, "the child was not started"
        if self.process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
            return self.process.returncode is not None
        now_or_never = os.WNOHANG if patience_s is not None else 0
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | now_or_never) is not None

    def clear(self, workers: Mapping[str, int] | None = None) -> list[int]:
        """After its end: kill what it left behind; the processes that were found. Again, until there are none.

        `workers`: this process's other workers, by their tags. Raises `OSError` where it cannot be found out at the moment.
        """
        assert self.process is not None, "the child was not started"
        self._died_at = self._died_at or now()
        return end_family(self.tag, self.process.pid, workers, self._own)

    def bury(self, left: Sequence[int] = (), *, blind: bool = False) -> tuple[int, Certificate | None]:
        """Reap it; its exit code, and the certificate of its death.

        No certificate where it had never attached, or where `left` names processes of it that could not be ended. `blind`:
        this process itself had stood still, so it knows nothing of when or why the worker died.
        """
        assert self.process is not None and self._board is not None, "the child was not started"
        seen, target = self.seen, self.target
        code = self.process.wait()
        self._let_go()
        self.process = None
        if left:
            log.error(
                "processes %s, which worker %s left behind, cannot be ended: its jobs wait for the leader",
                left,
                seen.worker_id,
            )
        if not seen.worker_id or target is None or left:
            return code, None
        # (One that was told to stop and had to leave a thread behind is nobody's death.)
        is_stopped = self._told and code == ExitCode.STILL_RUNNING
        charged = [] if is_stopped or blind else seen.charged(self._died_at)
        return code, Certificate(*target, seen.worker_id, tuple(charged))

    def reap(self) -> int:
        """Wait until it has ended, end what it left behind, and put back its jobs. Its exit code."""
        self._has_ended(None)
        deadline = time.monotonic() + FAMILY_S
        while (left := self.clear()) and time.monotonic() < deadline:
            time.sleep(0.002)
        code, certificate = self.bury(left)
        if certificate is not None:
            certificate.present()
        return code

    def stop(self, patience_s: float = 40.0) -> int | None:
        """SIGTERM, and SIGKILL after `patience_s`; then as `reap`. None when it was not running."""
        if self.process is None:
            return None
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.send(signal.SIGKILL)
        return self.reap()

    def __enter__(self) -> ChildWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class Parent:
    """What a worker that has a supervisor knows of it."""

    board: Board
    lifeline: int
    """The reading end of a pipe that is closed when the parent ends."""
    dsn: str | None

    @staticmethod
    def found() -> Parent | None:
        """The parent that has started this process as a worker, if one has; from then on this process dies with it."""
        text = os.environ.pop(_PARENT, None)
        if text is None:
            return None
        said: dict[str, Any] = json.loads(text)
        die_with_parent(said["pid"])
        for fd in (said["board"], said["lifeline"]):
            os.set_inheritable(fd, False)
        return Parent(Board(said["board"]), said["lifeline"], said["dsn"])
