"""Bounds that the server keeps on a session, whatever becomes of its client: how they are set, also where some are withheld."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import psycopg

from pgsched.errors import primary

log = logging.getLogger("pgsched.session")

Wish = tuple[int, str, str]
"""The first version of Postgres that knows a setting; the setting; what is weaker without it."""


def network_wishes(silence_s: int, unacknowledged_s: float | None = None) -> list[Wish]:
    """That the server notices within about `silence_s` seconds that its client cannot be reached; `unacknowledged_s`: an answer
    that is not acknowledged for so long ends the session (else as `silence_s`).
    """
    unacknowledged_ms = int(1000 * (silence_s if unacknowledged_s is None else unacknowledged_s))
    weaker = "a link that was cut is noticed only when the session has been silent for its whole time"
    return [
        (
            0,
            f"tcp_user_timeout = '{unacknowledged_ms}ms'",
            "an answer that cannot be delivered holds the session for minutes",
        ),
        (0, "tcp_keepalives_idle = 1", weaker),
        (0, "tcp_keepalives_interval = 1", weaker),
        (0, f"tcp_keepalives_count = {max(2, silence_s - 1)}", weaker),
        (0, "client_connection_check_interval = '1s'", "a statement goes on after its client has hung up"),
    ]


async def set_bounds(connection: psycopg.AsyncConnection[Any], settings: str, wishes: Iterable[Wish]) -> None:
    """Set what must be set, and what a managed server may refuse or its system lack: such a one is named in the log."""
    await connection.execute(settings.encode())
    wanted = [(setting, weaker) for since, setting, weaker in wishes if connection.info.server_version >= since]
    try:
        await connection.execute("; ".join(f"set {setting}" for setting, _ in wanted).encode())
        return
    except psycopg.Error:
        if connection.closed:
            raise
    for setting, weaker in wanted:
        try:
            await connection.execute(f"set {setting}".encode())
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.info("the server refuses %s (%s): %s", setting, primary(error), weaker)
