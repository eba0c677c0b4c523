"""What a standby and a leader do when their session fails at once, hangs, or meets jobs that cannot be moved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from harness.protocol import Steps, enqueue, places
from harness.running import leading
from harness.server import Server
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgsched.calls import Calls
from pgsched.leader import session as leader_session

pytestmark = [pytest.mark.one_server, pytest.mark.faults]

_READY = b"Z\x00\x00\x00\x05I"


@contextlib.asynccontextmanager
async def mute_after_handshake(port: int) -> AsyncIterator[int]:
    """A port that leads to the server's until it is ready for the first query; from then on no answer comes back."""
    links: list[asyncio.Task[None]] = []

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(asyncio.current_task())  # type: ignore[arg-type]
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        sending = asyncio.ensure_future(forward(reader, to_server))
        try:
            while data := await from_server.read(65536):
                writer.write(data)
                if _READY in data:
                    await asyncio.Event().wait()
        finally:
            sending.cancel()
            writer.close()
            to_server.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async with await asyncio.start_server(link, "127.0.0.1", 0) as listening:
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            for task in links:
                task.cancel()
            await asyncio.gather(*links, return_exceptions=True)


def test_a_server_that_hangs_after_the_handshake_holds_a_standby_no_longer_than_one_try(
    server: Server, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_session, "_TRY_S", 1.0)
    direct = server.conninfo(str(conninfo_to_dict(dsn)["dbname"]), tcp=True)

    async def main() -> float:
        async with mute_after_handshake(int(server.settings["port"])) as port:
            began = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match="no answer came"):
                await leader_session.open_session(make_conninfo(direct, port=port), Calls(), "it", known=False)
            return time.monotonic() - began

    assert 0.9 < asyncio.run(main()) < 2.5


@pytest.mark.parametrize(
    ("ill", "cure"),
    [
        (
            "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$",
            "set default_transaction_read_only = off; do $$ begin execute format('alter database %I reset all', current_database()); end $$",
        ),
        (
            "alter function pgsched.lead(jsonb) rename to lead_away",
            "alter function pgsched.lead_away(jsonb) rename to lead",
        ),
    ],
    ids=["a read-only database", "a missing function"],
)
def test_a_session_whose_first_call_fails_is_tried_again_ever_more_slowly_until_it_is_cured(
    dsn: str, connection: Any, caplog: pytest.LogCaptureFixture, ill: str, cure: str
) -> None:
    caplog.set_level(logging.DEBUG, "pgsched.leader")
    connection.execute(ill)
    with leading(dsn, "it") as leader:
        time.sleep(4)
        said = [
            (record.levelno, record.getMessage()) for record in caplog.records if "trying again" in record.getMessage()
        ]
        assert 3 <= len(said) <= 9, said
        assert [level for level, _ in said] == [logging.WARNING] + [logging.DEBUG] * (len(said) - 1), (
            "the same is said once"
        )
        assert not any("\n" in text for _, text in said)
        connection.execute(cure)
        deadline = time.monotonic() + 10
        while not leader.leads:
            assert time.monotonic() < deadline, "it never leads"
            time.sleep(0.01)


def test_a_thousand_jobs_that_cannot_be_moved_hold_up_no_other(dsn: str, connection: Any) -> None:
    ids = enqueue(connection, 1100)
    lost = Steps(dsn, rescue_after_s=1)
    while lost.claim(1000):
        pass
    assert set(places(connection).values()) == {"running"}
    connection.execute(
        "create function pgsched.bad_row() returns trigger language plpgsql as $$ begin raise 'no'; end $$; create trigger bad "
        f"before insert on pgsched.ready for each row when (new.job_id <= {ids[999]}) execute function pgsched.bad_row()"
    )
    lost.close()
    with leading(dsn, "it"):
        deadline = time.monotonic() + 15
        while (count := connection.execute("select count(*) from pgsched.ready").fetchone()[0]) < 100:
            assert time.monotonic() < deadline, f"{count} of 100 jobs went back"
            time.sleep(0.05)
