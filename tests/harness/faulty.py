"""The App that workers run while they are killed, frozen and cut off: its handlers note what they do in files of their own process.

`PGSCHED_TEST_NOTES` is the folder. A line is "job fence what at": what is begin, runs, done or stopped, and the time is by the
clock that all processes of a machine share. Beside the notes a file is touched by a thread every 10 ms as long as the process
lives, so that the end of what was killed is known too. `harness.checker` reads both; nothing here asks pgsched's tables.
"""

from __future__ import annotations

import asyncio
import functools
import os
import struct
import threading
import time
from pathlib import Path

import pgsched

app = pgsched.App("faulty")

EVERY_S = 0.01


class Notes:
    """The notes of this process. A line is one write, so a kill leaves it whole or not there."""

    def __init__(self, folder: str) -> None:
        name = f"{os.getpid()}-{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}"
        # (Whoever finds notes finds the other file too.)
        self._lives = os.open(Path(folder, f"{name}.lives"), os.O_WRONLY | os.O_CREAT)
        self._lines = os.open(Path(folder, f"{name}.notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        threading.Thread(target=self._live, name="notes", daemon=True).start()

    def say(self, what: str) -> None:
        """Note it of the job that this handler runs."""
        job = pgsched.current_job()
        at = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.write(self._lines, f"{job.id} {job.fence} {what} {at:.6f}\n".encode())

    def _live(self) -> None:
        while True:
            os.pwrite(self._lives, struct.pack("d", time.clock_gettime(time.CLOCK_BOOTTIME)), 0)
            time.sleep(EVERY_S)


@functools.cache
def notes() -> Notes:
    """The notes of this process."""
    return Notes(os.environ["PGSCHED_TEST_NOTES"])


@app.task
async def noop() -> None:
    pass


@app.task
async def noted(seconds: float) -> None:
    """Notes that it begins and how it ends."""
    notes().say("begin")
    try:
        await asyncio.sleep(seconds)
    except BaseException:
        notes().say("stopped")
        raise
    notes().say("done")


@app.task
async def until_told(gate: str) -> None:
    """Notes every 10 ms that it runs, until the file `gate` is there."""
    notes().say("begin")
    try:
        while not Path(gate).exists():  # noqa: ASYNC240
            await asyncio.sleep(EVERY_S)
            notes().say("runs")
    except BaseException:
        notes().say("stopped")
        raise
    notes().say("done")
