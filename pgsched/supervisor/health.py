"""Whether the workers of a supervisor are healthy, told to whoever asks over HTTP, and by a file.

Healthy: as many workers as should run have attached and are open for work, and of none that has attached the lease is older than
`client` or the event loop stands still. So a supervisor that starts is not healthy yet. One that drains stays healthy as long as
the leases of those that still run are good: a probe must not kill what is only ending its jobs.

The supervisor's loop only says what it sees; a thread keeps the file and others answer, since both may block. Each of them says
that nothing is healthy when the loop itself has said nothing for 5 s.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from pgsched.errors import UsageError
from pgsched.lease import now
from pgsched.supervisor.board import Seen

log = logging.getLogger("pgsched.supervisor")

_LOOK_S = 0.25
_WRITE_S = 1.0
_SILENCE_S = 5.0
_PATIENCE_S = 5.0
"""How long whoever asks may take to say what."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen at one moment (CLOCK_BOOTTIME, seconds); `why` it is not healthy, or None."""

    at: float
    why: str | None
    about: dict[str, Any]

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({"healthy": self.why is None, "why": self.why} | self.about) + "\n"


def judge(workers: Sequence[tuple[Seen, bool]], wanted: int, at: float) -> Report:
    """What is to be said of these running workers (each: what its board says, whether it is to end) at this time."""
    good, why = 0, ""
    for seen, leaves in workers:
        if not seen.sent_at or not (seen.tick or leaves):
            continue  # it is not open yet
        if not seen.is_good(at):
            why = f"worker {seen.worker_id}: its lease was proved {at - seen.sent_at:.1f} s ago"
        elif seen.tick and not seen.moves(at):
            why = f"worker {seen.worker_id}: its event loop has not moved for {at - seen.tick:.1f} s"
        else:
            good += 1
    if not why and good < wanted:
        why = f"{good} of {wanted} workers are open for work"
    leases = [
        {"worker": seen.worker_id, "proved_s_ago": round(at - seen.sent_at, 1), "client_s": seen.client}
        for seen, _ in workers
        if seen.sent_at
    ]
    about = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "workers": good,
        "wanted": wanted,
        "leases": leases,
    }
    return Report(at, why or None, about)


class Health:
    """Tells it by `file` and at `address` (a port of 127.0.0.1, or HOST:PORT; port 0: any that is free), while it is entered.

    Entering raises `UsageError` where one of the two cannot be.
    """

    def __init__(self, file: Path | None = None, address: str | None = None) -> None:
        self._file = file
        self._address = _read(address) if address is not None else None
        self._report = Report(now(), "it is starting", {})
        self._due_at = 0.0
        self._over = False
        self._turned = threading.Event()
        self._server: _Server | None = None
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Health:
        if self._file is not None:
            try:
                self._prepare(self._file)
            except (OSError, ValueError) as error:
                raise UsageError(
                    f'the health file "{self._file}" cannot be written ({error}): name one in a folder that exists '
                    "and that this user may write to"
                ) from error
        if self._address is not None:
            self._server = _listen(self._address, self)
            threading.Thread(target=self._server.serve_forever, name="pgsched-health", daemon=True).start()
            log.info("health is told at http://%s:%s/", *self._server.server_address[:2])
        if self._file is not None:
            self._keeper = threading.Thread(target=self._keep, name="pgsched-health-file", daemon=True)
            self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._turned.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._keeper is not None:
            self._keeper.join(_PATIENCE_S)

    def due(self) -> bool:
        """Whether it is time to `tell` again; never, where nobody is told."""
        return now() >= self._due_at and (self._file is not None or self._server is not None)

    def tell(self, workers: Sequence[tuple[Seen, bool]], wanted: int) -> None:
        """Take in what the supervisor sees now; as for `judge`."""
        report = judge(workers, wanted, now())
        self._due_at = report.at + _LOOK_S
        before, self._report = self._report, report
        if (before.why is None) != (report.why is None):
            self._turned.set()

    def report(self) -> Report:
        """What holds now."""
        report, at = self._report, now()
        if at - report.at < _SILENCE_S:
            return report
        return Report(at, f"the supervisor itself has not looked for {at - report.at:.1f} s", report.about)

    def _prepare(self, file: Path) -> None:
        """What a killed supervisor has left goes, and a new file can be written beside it."""
        file.unlink(missing_ok=True)
        new = self._new(file)
        new.touch()
        new.unlink()

    @staticmethod
    def _new(file: Path) -> Path:
        return file.with_name(f".{file.name}.{os.getpid()}")

    def _keep(self) -> None:
        """Keep the file: new every second while all is well, gone at once when it is not, and at the end."""
        assert self._file is not None
        said = ""
        while not self._over:
            report = self.report()
            try:
                if report.why is None:
                    self._write(report.line())
                else:
                    self._file.unlink(missing_ok=True)
                said = ""
            except OSError as error:
                if said != str(error):
                    said = str(error)
                    log.error("the health file cannot be kept: %s", error)
                with contextlib.suppress(OSError):  # (better none than an old one)
                    self._file.unlink(missing_ok=True)
            self._turned.wait(_WRITE_S)
            self._turned.clear()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        """Whoever reads finds the former line or this one, never a part."""
        assert self._file is not None
        new = self._new(self._file)
        try:
            new.write_text(text)
            new.replace(self._file)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise


class _Server(socketserver.ThreadingTCPServer):
    """(http.server's own looks up the name of its address, which a slow name server would hold up.)"""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, where: tuple[str, int], health: Health) -> None:
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        self.health = health
        super().__init__(where, _Answer)

    def handle_error(self, *_: Any) -> None:
        """Whoever hangs up has no interest in the answer."""


class _Answer(BaseHTTPRequestHandler):
    """Answers GET and HEAD, of whatever path: 200 or 503."""

    timeout = _PATIENCE_S
    server: _Server

    def do_GET(self) -> None:
        """Answer with the report."""
        report = self.server.health.report()
        body = report.line().encode()
        self.send_response(HTTPStatus.OK if report.why is None else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """A probe every few seconds is no news."""


def _read(address: str) -> tuple[str, int]:
    """Host and port. Raises `UsageError`."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (not host and ":" in address):
        raise UsageError(
            f'the health port is "{address}": write a number from 0 to 65535, or HOST:PORT, such as 0.0.0.0:8080'
        )
    return host or "127.0.0.1", int(port)


def _listen(where: tuple[str, int], health: Health) -> _Server:
    try:
        return _Server(where, health)
    except OSError as error:
        raise UsageError(
            f"the health port {where[0]}:{where[1]} cannot be opened: {error.strerror}: choose another address of this "
            "machine, or end what holds it"
        ) from error
