"""What a supervisor needs of its own process and asks of others: a log that cannot block it, descriptors, a worker's memory."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import resource
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def logging_that_cannot_block() -> Iterator[None]:
    """Messages go through a queue to a thread: a log that nobody reads must not keep a worker from being killed in time."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    messages: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()

    def write() -> None:
        while (record := messages.get()) is not None:
            for handler in handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)

    writer = threading.Thread(target=write, name="pgsched-log", daemon=True)
    writer.start()
    root.handlers[:] = [logging.handlers.QueueHandler(messages)]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        messages.put(None)
        writer.join(1.0)


def more_descriptors(processes: int) -> None:
    """A worker takes four of this process's descriptors: as many as it needs, where it may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + 4 * processes
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def resident_mb(pid: int) -> int:
    """Its resident memory in MB; 0 where the kernel does not tell."""
    try:
        pages = int(Path("/proc", str(pid), "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000
