"""How an executor process says what has ended, and how far it is: answers in batches, of progress the newest now and then."""

from __future__ import annotations

import pickle
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from pgsched.worker.processes.page import Page

Answer = tuple[int, str, float]
"""How one job has ended: its claim, its outcome's text, how many seconds it took."""

_BATCH_S = 0.002
_LATEST_S = 0.02
_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class Said:
    """What a handler says of its progress."""

    claim_id: int
    fraction: float | None
    message: str | None


class Outlet:
    """The way out of the process. An answer is on the page before its job counts as ended, and is sent soon.

    A thread sends what the main thread, busy with the next job, has left; and all that is said of progress, as the word to stop
    may interrupt a handler at any point, also in the middle of a message.
    """

    def __init__(self, link: Connection, page: Page) -> None:
        self._link = link
        self._page = page
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self._sent_at = 0.0
        self._newest: Said | None = None
        self._told_at = 0.0
        self._wake = threading.Event()
        threading.Thread(target=self._send_the_rest, name="pgsched-outlet", daemon=True).start()

    def answer(self, answer: Answer) -> None:
        """A job has ended. Called in the main thread, where nothing can interrupt it."""
        kept = self._page.log(pickle.dumps(answer))
        with self._lock:
            self._answers.append(answer)
            if not kept or time.perf_counter() - self._sent_at > _BATCH_S:
                self._send()
                return
        self._wake.set()

    def flush(self) -> None:
        """Send what is left."""
        with self._lock:
            self._send()

    def report(self, claim_id: int, fraction: float | None, message: str | None) -> None:
        """A handler, in any thread of its own, says how far it is."""
        self._newest = Said(claim_id, fraction, message)
        self._wake.set()

    def _send(self) -> None:
        if self._answers:
            self._link.send_bytes(pickle.dumps(self._answers))
            self._answers = []
            self._page.clear()
        self._sent_at = time.perf_counter()

    def _send_the_rest(self) -> None:
        while self._wake.wait():
            self._wake.clear()
            time.sleep(_LATEST_S)
            with self._lock:
                self._send()
                if self._newest is not None and time.perf_counter() - self._told_at > _PROGRESS_S:
                    said, self._newest = self._newest, None
                    self._link.send_bytes(pickle.dumps(said))
                    self._told_at = time.perf_counter()
            if self._newest is not None:
                self._wake.set()
