"""A place where workers run: a supervisor as a user starts it (`pgsched worker`), on this machine or behind a link that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from psycopg.conninfo import make_conninfo

from harness.network import Link

PATIENCE_S = 60.0


class Site:
    """`pgsched worker` on `harness.faulty:app`, with its notes and its log in `folder`. A context manager: killed at the end."""

    def __init__(self, name: str, dsn: str, folder: Path, *options: str, link: Link | None = None) -> None:
        self.name = name
        self.link = link
        self._dsn = make_conninfo(dsn, host=link.here) if link else dsn
        self._folder = folder
        self._options = ["--name", name, *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the supervisor."""
        tests = Path(__file__).parents[1]
        environment = os.environ | {
            "PGSCHED_DSN": self._dsn,
            "PGSCHED_TEST_NOTES": str(self._folder),
            "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        }
        command = [sys.executable, "-m", "pgsched", "worker", "harness.faulty:app", *self._options]
        run = self.link.run if self.link else subprocess.Popen
        with self._file.open("ab") as log:
            self.process = run(command, env=environment, stdin=subprocess.DEVNULL, stderr=log)

    @property
    def _file(self) -> Path:
        return self._folder / f"{self.name}.log"

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._file.read_text()

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs."""
        return self.process is not None and self.process.poll() is None

    def workers(self) -> list[int]:
        """The worker processes that it has now."""
        if not self.alive:
            return []
        assert self.process is not None
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
        return found

    def send(self, number: signal.Signals, *, workers: bool = False) -> None:
        """A signal to the supervisor, and to all its workers too."""
        assert self.process is not None
        others = self.workers() if workers else []
        for pid in (self.process.pid, *others):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to the supervisor; the kernel kills its workers."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Site:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def until(condition: Callable[[], bool], what: str, sites: list[Site], patience_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds; fails after `patience_s` with the last words of the sites."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            said = "\n".join(f"--- {site.name}\n" + "\n".join(site.log.splitlines()[-15:]) for site in sites)
            raise AssertionError(f"never: {what}\n{said}")
        time.sleep(0.01)
