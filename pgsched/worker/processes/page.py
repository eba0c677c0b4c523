"""A page of memory that a worker shares with one of its executor processes: what runs there, since when, and what is to stop."""

from __future__ import annotations

import mmap
import os

from pgsched.supervisor.board import memory_file

TAG = "PGSCHED_EXECUTOR"
"""The variable by which an executor process, and all that it starts, is known."""

_CLAIM, _SINCE, _BEGUN, _STOP, _LOGGED = range(5)
_LOG_AT = 4096
_SIZE = _LOG_AT + 256 * 1024


class Page:
    """Made by the worker (`Page()`), opened by the process by its file descriptor.

    `claim`  the claim whose handler runs, 0 for none; `since`: when it began (CLOCK_BOOTTIME, seconds)
    `begun`  how many jobs of its chunk have begun
    `log`    what has ended and may not have been sent yet, so that the end of the process does not take it along
    `stop`   the claim whose handler is to end; the worker writes it and then sends the signal
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = memory_file("pgsched-executor")
            os.ftruncate(fd, _SIZE)
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        view = memoryview(self._map)
        self._words, self._times = view[:_LOG_AT].cast("q"), view[:_LOG_AT].cast("d")

    # ---- The process writes.

    def begin(self, claim_id: int, at: float) -> None:
        """A handler begins. (First its place in the chunk: a death between the two is charged to it rather than to nobody.)"""
        self._words[_BEGUN] += 1
        self._times[_SINCE] = at
        self._words[_CLAIM] = claim_id

    def end(self) -> None:
        """It has ended."""
        self._words[_CLAIM] = 0

    def log(self, record: bytes) -> bool:
        """Keep a record until `clear`; False where there is no room for it."""
        at = _LOG_AT + self._words[_LOGGED]
        if at + 4 + len(record) > _SIZE:
            return False
        self._map[at : at + 4] = len(record).to_bytes(4, "little")
        self._map[at + 4 : at + 4 + len(record)] = record
        self._words[_LOGGED] += 4 + len(record)  # (at last: what is cut off half-way was never there)
        return True

    def clear(self) -> None:
        """All of it was sent."""
        self._words[_LOGGED] = 0

    @property
    def stop(self) -> int:
        """The claim that is to stop."""
        return self._words[_STOP]

    # ---- The worker writes and reads.

    def expect(self) -> None:
        """A new chunk comes."""
        self._words[_BEGUN] = self._words[_CLAIM] = self._words[_STOP] = self._words[_LOGGED] = 0

    def order(self, claim_id: int) -> None:
        """Order this claim's handler to end."""
        self._words[_STOP] = claim_id

    @property
    def claim(self) -> int:
        """The claim whose handler runs; 0: none."""
        return self._words[_CLAIM]

    @property
    def since(self) -> float:
        """When it began."""
        return self._times[_SINCE]

    @since.setter
    def since(self, at: float) -> None:
        self._times[_SINCE] = at

    @property
    def begun(self) -> int:
        """How many jobs of the chunk have begun."""
        return self._words[_BEGUN]

    @property
    def logged(self) -> list[bytes]:
        """The records that it has kept."""
        found, at, end = [], _LOG_AT, _LOG_AT + self._words[_LOGGED]
        while at < end:
            size = int.from_bytes(self._map[at : at + 4], "little")
            found.append(self._map[at + 4 : at + 4 + size])
            at += 4 + size
        return found

    def close(self) -> None:
        """Let go of it."""
        self._words.release()
        self._times.release()
        os.close(self.fd)
