"""A page of memory that a worker shares with one of its executor processes: what runs there, since when, and what is to stop."""

from __future__ import annotations

import mmap
import os
import tempfile

_CLAIM, _SINCE, _BEGUN, _STOP, _ENDED = range(5)
_SIZE = 4096


class Page:
    """Made by the worker (`Page()`), opened by the process by its file descriptor.

    `claim`  the claim whose handler runs, 0 for none; `since`: when it began (CLOCK_BOOTTIME, seconds)
    `begun`  how many jobs of its chunk have begun; `ended`: how many jobs have ended in all
    `stop`   the claim whose handler is to end; the worker writes it and then sends the signal
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = _memory()
            os.ftruncate(fd, _SIZE)
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        view = memoryview(self._map)
        self._words, self._times = view.cast("q"), view.cast("d")

    # ---- The process writes.

    def begin(self, claim_id: int, at: float) -> None:
        """A handler begins. (First its place in the chunk: a death between the two is charged to it rather than to nobody.)"""
        self._words[_BEGUN] += 1
        self._times[_SINCE] = at
        self._words[_CLAIM] = claim_id

    def end(self) -> None:
        """It has ended."""
        self._words[_CLAIM] = 0
        self._words[_ENDED] += 1

    @property
    def stop(self) -> int:
        """The claim that is to stop."""
        return self._words[_STOP]

    # ---- The worker writes and reads.

    def expect(self) -> None:
        """A new chunk comes."""
        self._words[_BEGUN] = 0
        self._words[_CLAIM] = 0

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

    @property
    def begun(self) -> int:
        """How many jobs of the chunk have begun."""
        return self._words[_BEGUN]

    def close(self) -> None:
        """Let go of it."""
        self._words.release()
        self._times.release()
        os.close(self.fd)


def _memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pgsched-executor")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
