"""What a handler in a process of its own prints, where its task wants that kept: in a temporary file, whose end is used."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

from pgsched.worker.outcome import storable

log = logging.getLogger("pgsched.job")

_KEPT_BYTES = 16_384


class Output:
    """The descriptors 1 and 2 of this process: whatever writes there is caught, also C code and child processes."""

    def __init__(self) -> None:
        self.kept = ""
        """The end of what the last handler printed."""

    @contextlib.contextmanager
    def caught(self, how: str) -> Iterator[None]:
        """Catch what is printed meanwhile: to `keep` or to `discard` it; `inherit`: leave it alone."""
        self.kept = ""
        if how == "inherit":
            yield
            return
        with tempfile.TemporaryFile() as file, _replaced(file.fileno() if how == "keep" else None):
            yield
            _flush()
            if how == "keep":
                size = os.fstat(file.fileno()).st_size
                tail = os.pread(file.fileno(), _KEPT_BYTES, max(0, size - _KEPT_BYTES)).decode(
                    "utf-8", "backslashreplace"
                )
                left_out = f"[{size - _KEPT_BYTES} bytes left out] ..." if size > _KEPT_BYTES else ""
                self.kept = left_out + tail

    def into(self, job_id: int, text: str) -> str:
        """The outcome with what was printed: after the traceback of an attempt that failed, and in the log for any."""
        if not self.kept:
            return text
        log.info("job %s has printed:\n%s", job_id, self.kept)
        if '"traceback"' not in text:
            return text
        said = json.loads(text)
        said["traceback"] = f"{said['traceback']}\nIt has printed:\n{storable(self.kept)}"
        return json.dumps(said)


@contextlib.contextmanager
def _replaced(fd: int | None) -> Iterator[None]:
    _flush()
    before = [os.dup(each) for each in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY) if fd is None else -1
    try:
        for each in (1, 2):
            os.dup2(nowhere if fd is None else fd, each)
        yield
    finally:
        _flush()
        for each, saved in zip((1, 2), before, strict=True):
            os.dup2(saved, each)
            os.close(saved)
        if nowhere >= 0:
            os.close(nowhere)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # (a handler may have closed it)
            stream.flush()
