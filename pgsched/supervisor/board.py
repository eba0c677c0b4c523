"""A page of memory that a worker shares with its parent: until when its lease is good, and what it runs.

The worker alone writes it, a word at a time; the parent alone reads it, also when the worker is stopped or dead. So the parent
knows to the last moment what had begun, which no message over a pipe can promise.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import tempfile
from dataclasses import dataclass
from typing import Any

from pgsched.lease import LeaseTimes

HURRY = signal.SIGUSR1
"""What a parent sends its worker so that it cancels what runs. (Not a second SIGTERM: an init system sends one to every process
of a service, and the supervisor sends one as well.)"""

MOST_SLOTS = 10_000
"""As many handlers as one worker may run."""

# Words of 8 bytes. A suspect's claim is written as its negative.
_WORKER, _SENT_AT, _TICK, _CLIENT, _KILL, _ENDED, _TEXT_BYTES, _HIGHEST, _SLOTS = range(9)
_TEXT_AT = (_SLOTS + MOST_SLOTS) * 8
_SIZE = _TEXT_AT + 16_384


@dataclass(frozen=True, slots=True)
class Seen:
    """What a parent sees on the board.

    worker_id  0 until it has attached
    sent_at    when the last answered heartbeat was sent (CLOCK_BOOTTIME, seconds); 0 until it has attached
    tick       when its event loop last moved; 0 while it is not open for work
    client     seconds from `sent_at` until it stops; kill: until nothing of it may run any more
    begun      the claims whose handlers have begun and not ended
    suspects   those of them with which a worker had died before
    ended      how many handlers have ended in all
    """

    worker_id: int
    sent_at: float
    tick: float
    client: float
    kill: float
    begun: tuple[int, ...]
    suspects: tuple[int, ...]
    ended: int

    def doom(self, at: float) -> str | None:
        """Why this process must be killed at this time; None: it may live."""
        if not self.sent_at or at - self.sent_at < self.kill:
            return None
        if self.begun:
            return f"its lease was proved {at - self.sent_at:.1f} s ago and {len(self.begun)} handlers still run"
        if self.tick and at - self.tick >= self.kill:
            return f"it has not moved for {at - self.tick:.1f} s"
        return None  # nothing runs in it, so it may outlive an outage

    def charged(self, died_at: float) -> list[int]:
        """The claims that its death, seen at this time, is charged to.

        A death with a good lease, or of a worker that no longer moved, may be a handler's doing. One that went on asking and
        was not answered died of an outage, which is nobody's fault.
        """
        return list(self.begun) if self.sent_at and (self.is_good(died_at) or not self.moves(died_at)) else []

    def is_good(self, at: float) -> bool:
        """Whether its lease is good: proved less than `client` ago."""
        return at - self.sent_at < self.client

    def moves(self, at: float) -> bool:
        """Whether its event loop moves."""
        return at - self.tick <= self.client / 3


class Board:
    """Made by the parent (`Board()`), opened by the worker by its file descriptor."""

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            self.fd = memory_file("pgsched-board")
            os.ftruncate(self.fd, _SIZE)
        else:
            self.fd = fd
        self._map = mmap.mmap(self.fd, _SIZE)
        view = memoryview(self._map)
        self._words, self._times = view[:_TEXT_AT].cast("q"), view[:_TEXT_AT].cast("d")
        self._free = list(range(_SLOTS + MOST_SLOTS - 1, _SLOTS - 1, -1))

    # ---- The worker writes.

    def say(self, target: dict[str, Any]) -> None:
        """Where its database is, so that the parent can reach it."""
        text = json.dumps(target).encode()
        self._map[_TEXT_AT : _TEXT_AT + len(text)] = text
        self._words[_TEXT_BYTES] = len(text)

    def attached(self, worker_id: int, times: LeaseTimes, sent_at: float) -> None:
        """It has attached as this worker."""
        self._times[_CLIENT], self._times[_KILL] = times.client.total_seconds(), times.kill.total_seconds()
        self._times[_SENT_AT] = sent_at
        self._words[_WORKER] = worker_id

    def answered(self, sent_at: float) -> None:
        """A heartbeat that was sent then has been answered."""
        self._times[_SENT_AT] = max(sent_at, self._times[_SENT_AT])

    def tick(self, at: float) -> None:
        """The event loop moves; 0: it may stand still from now on, as nothing runs in it."""
        self._times[_TICK] = at

    def begin(self, claim_id: int, is_suspect: bool) -> int:
        """A handler begins; the slot, for `end`."""
        slot = self._free.pop()
        if slot > self._words[_HIGHEST]:
            self._words[_HIGHEST] = slot
        self._words[slot] = -claim_id if is_suspect else claim_id
        return slot

    def end(self, slot: int) -> None:
        """The handler has ended."""
        self._words[slot] = 0
        self._words[_ENDED] += 1
        self._free.append(slot)

    def reserve(self) -> int:
        """A slot for a process of the worker's, which writes what it runs there itself (`put`)."""
        slot = self._free.pop()
        if slot > self._words[_HIGHEST]:
            self._words[_HIGHEST] = slot
        return slot

    def put(self, slot: int, claim_id: int, is_suspect: bool) -> None:
        """What runs in that process now; 0: nothing."""
        self._words[slot] = -claim_id if is_suspect else claim_id

    def count(self, ended: int) -> None:
        """So many handlers have ended in it."""
        self._words[_ENDED] += ended

    def release(self, slot: int) -> None:
        """The process is no more."""
        self._words[slot] = 0
        self._free.append(slot)

    # ---- The parent reads.

    def target(self) -> dict[str, Any] | None:
        """What the worker has said of its database; None: nothing yet."""
        size = self._words[_TEXT_BYTES]
        try:
            found: dict[str, Any] | None = json.loads(self._map[_TEXT_AT : _TEXT_AT + size]) if size else None
        except ValueError:  # (C code of a handler may have written anywhere)
            return None
        return found if isinstance(found, dict) else None

    def read(self) -> Seen:
        """What stands there now."""
        slots = [claim for claim in self._words[_SLOTS : self._words[_HIGHEST] + 1].tolist() if claim]
        return Seen(
            worker_id=self._words[_WORKER],
            sent_at=self._times[_SENT_AT],
            tick=self._times[_TICK],
            client=self._times[_CLIENT],
            kill=self._times[_KILL],
            begun=tuple(abs(claim) for claim in slots),
            suspects=tuple(-claim for claim in slots if claim < 0),
            ended=self._words[_ENDED],
        )

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._times.release()
        os.close(self.fd)


def memory_file(name: str) -> int:
    """The descriptor of a file that lives in memory only, or of an unlinked temporary one where there is no such thing."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
