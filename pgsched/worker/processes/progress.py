"""What a handler in a process of its own says of its progress, on its way to the worker: the newest, twice a second at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Said:
    """One report."""

    claim_id: int
    fraction: float | None
    message: str | None


class Teller:
    """A thread that passes on what is new. (Not the handler's own: the word to stop may interrupt that at any point.)"""

    def __init__(self, send: Callable[[Said], None]) -> None:
        self._send = send
        self._newest: Said | None = None
        self._wake = threading.Event()
        threading.Thread(target=self._tell, name="pgsched-progress", daemon=True).start()

    def report(self, claim_id: int, fraction: float | None, message: str | None) -> None:
        """Take a report. Called from any thread of the handler's."""
        self._newest = Said(claim_id, fraction, message)
        self._wake.set()

    def _tell(self) -> None:
        while self._wake.wait():
            self._wake.clear()
            if (said := self._newest) is not None:
                self._send(said)
            time.sleep(_EVERY_S)
