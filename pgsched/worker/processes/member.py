"""One executor process, seen from its worker: a thread that starts it, feeds it, hears it, and buries it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.spawn
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from pgsched.supervisor.board import Board
from pgsched.supervisor.family import end_descendants, end_tagged, state_of
from pgsched.supervisor.surroundings import resident_mb
from pgsched.worker.processes.outlet import Answer, Said
from pgsched.worker.processes.page import TAG, Page

if TYPE_CHECKING:
    from pgsched.worker.processes.pool import ProcessPool, Queued

log = logging.getLogger("pgsched.worker")

_LEAVE_S = 5.0
_START_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Kind:
    """What every executor process of a worker is told at its start, and when it is used up."""

    dsn: str
    schema: str
    name: str
    recycle_jobs: int | None
    recycle_mb: int | None


class Member:
    """A place for one process, and the thread that owns it. (The thread that starts a process must outlive it: the kernel ends
    the process with that thread.)"""

    def __init__(self, pool: ProcessPool, kind: Kind, board: Board | None) -> None:
        self._pool = pool
        self._kind = kind
        self._board = board
        self._slot = board.reserve() if board else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._jobs = 0
        self._asked = 0
        self._killed = 0
        self._tag = ""
        self._pidfd = -1
        self._poll = select.poll()
        self._lock = threading.Lock()
        self.page = Page()
        self.chunk: list[Queued] = []
        """What it was sent and has not answered, in order."""
        self._thread = threading.Thread(target=self._serve, name="pgsched-executor", daemon=True)
        self._thread.start()

    # ---- In the event loop.

    def tell(self, claim_id: int) -> None:
        """The handler of this claim, which runs now, is to end."""
        self.page.order(claim_id)
        self._signal(signal.SIGTERM)

    def kill_soon(self, claim_id: int) -> None:
        """End the process because of this claim's handler, by a thread: it may take a moment to find all that it has started."""
        if self._killed != claim_id:
            self._killed = claim_id
            threading.Thread(target=self.kill, args=(claim_id,), name="pgsched-kill", daemon=True).start()

    def kill(self, claim_id: int | None = None) -> None:
        """End the process and all that it has started; with a claim, only if its handler still runs there."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is None:
                return
            os.kill(self._process.pid, signal.SIGSTOP)
            if claim_id is not None and self._claim_when_stopped() != claim_id:
                os.kill(self._process.pid, signal.SIGCONT)
                return
            end_descendants(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)

    def _claim_when_stopped(self) -> int:
        """What runs in it, once the kernel has really stopped it."""
        assert self._process is not None
        deadline = time.monotonic() + 0.1
        while state_of(self._process.pid) not in (None, "T", "t", "Z", "X") and time.monotonic() < deadline:
            time.sleep(0.0005)
        return self.page.claim

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """The process, if there is one now."""
        return self._process.pid if self._process is not None else None

    def _signal(self, number: signal.Signals) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None:  # (and so not reaped: its number is still its own)
                os.kill(self._process.pid, number)

    # ---- In its thread.

    def _serve(self) -> None:
        try:
            while self._pool.take(self):
                try:
                    self._send_and_hear()
                except Exception as error:  # (whatever it is, nobody else would answer for these jobs)
                    self._bury(error)
                if self._is_used_up():
                    self._leave()
        except Exception as error:
            log.exception("an executor's place is given up")
            self._pool.gone(self)
            self._pool.died(self.chunk, 0, f"its worker failed: {error}")
            self.chunk = []
        finally:
            with contextlib.suppress(Exception):
                self._leave()
            self.page.close()
            if self._board is not None:
                self._board.release(self._slot)

    def _send_and_hear(self) -> None:
        self._asked = len(self.chunk)
        self.page.expect()
        link = self._link or self._start()
        link.send_bytes(pickle.dumps([(queued.locator, queued.work) for queued in self.chunk]))
        while self.chunk:
            self._hear(self._receive(link))

    def _receive(self, link: Connection) -> list[Answer] | Said:
        """The next message. Raises `EOFError` when the process has ended: a copy that it has forked may keep the link open."""
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            if link.fileno() in ready:
                message: list[Answer] | Said = pickle.loads(link.recv_bytes())
                return message
            if self._pidfd in ready:
                raise EOFError("it has ended")

    def _hear(self, message: list[Answer] | Said) -> None:
        if isinstance(message, Said):
            for queued in self.chunk:
                if queued.work.claim_id == message.claim_id:
                    queued.report(message.fraction, message.message)
            return
        done, self.chunk = self.chunk[: len(message)], self.chunk[len(message) :]
        self._jobs += len(message)
        if self._board is not None:
            self._board.count(len(message))
        self._pool.answered(list(zip(done, message, strict=True)))

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        board = self._board.fd if self._board else -1
        arguments = map(str, (theirs.fileno(), self.page.fd, board, self._slot, os.getpid()))
        self._tag = str(uuid.uuid4())
        with theirs, self._lock:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from pgsched.worker.processes.child import main; main()", *arguments],
                stdin=subprocess.DEVNULL,
                env=os.environ | {TAG: self._tag},
                start_new_session=True,
                pass_fds=[fd for fd in (theirs.fileno(), self.page.fd, board) if fd >= 0],
            )
        self._jobs, self._link, self._killed = 0, ours, 0
        self._poll = select.poll()
        self._poll.register(ours.fileno(), select.POLLIN)
        with contextlib.suppress(AttributeError, OSError):  # (elsewhere a closed link tells)
            self._pidfd = os.pidfd_open(self._process.pid)
            self._poll.register(self._pidfd, select.POLLIN)
        main = multiprocessing.spawn.get_preparation_data("pgsched-executor")
        main.pop("authkey")  # (a secret that it has no use for)
        first: dict[str, Any] = {
            "main": main,
            "dsn": self._kind.dsn,
            "schema": self._kind.schema,
            "name": self._kind.name,
            "log_level": logging.getLogger().getEffectiveLevel(),
        }
        ours.send_bytes(pickle.dumps(first))
        return ours

    def _bury(self, error: BaseException) -> None:
        """The process has ended, or nothing sensible came from it: what had ended, what had begun, and what had not?"""
        if not isinstance(error, (OSError, EOFError)):
            log.error("an executor process is given up", exc_info=error)
        self.kill()
        current = self.page.claim
        code = self._reap()
        if code is None:
            log.error("an executor process could not be started: %s", error)
            time.sleep(_START_AGAIN_S)
        # What it had still kept on the page has ended as it says.
        kept: dict[int, Answer] = {answer[0]: answer for answer in map(pickle.loads, self.page.logged)}
        while self.chunk and (answer := kept.get(self.chunk[0].work.claim_id)):
            self._hear([answer])
        chunk, self.chunk = self.chunk, []
        begun = max(0, self.page.begun - (self._asked - len(chunk)))
        self._pool.died(chunk[:begun], current, how(code))
        self._pool.again(chunk[begun:], how(code), in_vain=self.page.begun == 0)

    def _is_used_up(self) -> bool:
        jobs, most_mb = self._kind.recycle_jobs, self._kind.recycle_mb
        if self._process is None:
            return False
        return (jobs is not None and self._jobs >= jobs) or (
            most_mb is not None and resident_mb(self._process.pid) >= most_mb
        )

    def _leave(self) -> None:
        """Let the process end; one that does not is killed."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._has_ended(_LEAVE_S)
            self.kill()
            self._reap()

    def _has_ended(self, within_s: float) -> bool:
        """Wait for the process to end, and leave it unreaped."""
        assert self._process is not None
        deadline = time.monotonic() + within_s
        with contextlib.suppress(ChildProcessError):  # (somebody else has reaped it)
            while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.005)
        return True

    def _reap(self) -> int | None:
        """Wait for its end, and end its process group as long as its number means nobody else. Its exit code."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if (process := self._process) is None:
            return None  # (it could not even be started)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self._process = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        # What it had started in sessions of its own has left it when it died by itself.
        end_tagged(TAG, self._tag)
        if self._board is not None:
            self._board.put(self._slot, 0, False)
        return code


def how(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it could not be started"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
