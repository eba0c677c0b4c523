"""A name server that does not answer: finding the database takes seconds, and nothing else does."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.network import Link, NoLinksError
from harness.running import ENDED, make_trace, wait_until
from harness.server import Server
from psycopg.conninfo import make_conninfo

from pgsched.migrate import upgrade

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


def test_a_slow_name_server_costs_neither_the_lease_nor_a_handler(server: Server, tmp_path: Path) -> None:
    # The namespace asks a name server that never answers (2 s a look-up) before its file of hosts, which knows the database.
    # Every thread of asyncio's own is taken by handlers, and the server ends the lease session.
    try:
        link = Link()
    except NoLinksError as error:
        print(f"skipped: {error}")
        pytest.skip(str(error))
    etc = Path("/etc/netns", link.name)
    try:
        with link, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf, Server(server.binaries, links=(link.here,)) as db:
            deaf.bind((link.here, 53))
            etc.mkdir(parents=True)
            (etc / "resolv.conf").write_text(f"nameserver {link.here}\noptions timeout:2 attempts:1\n")
            (etc / "nsswitch.conf").write_text("hosts: dns files\n")
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{link.here} db.pgsched.test\n")
            dsn = db.conninfo()
            upgrade(dsn)
            make_trace(dsn)
            apps.app.use(dsn)
            apps.app.enqueue_many(apps.waits_in_a_thread.bind(9.0) for _ in range(60))
            steady = apps.runs_for.enqueue(8.0)
            apps.app.close()
            _work(link, make_conninfo(dsn, host="db.pgsched.test"), dsn, tmp_path)
            with psycopg.connect(dsn, autocommit=True) as connection:
                rows = connection.execute("select distinct state, attempt from pgsched.jobs").fetchall()
                assert rows == [("succeeded", 1)]
                assert connection.execute("select count(*) from pgsched.attempt_log").fetchone() == (0,)
                assert connection.execute("select generation > 0 from pgsched.worker").fetchall() == [(True,)]
    finally:
        shutil.rmtree(etc, ignore_errors=True)
    noted = [float(line.split()[2]) for line in (tmp_path / "notes").read_text().splitlines() if line.startswith(f"{steady.id} ")]
    assert max(later - earlier for earlier, later in itertools.pairwise(noted)) < 1.5, "its event loop stood still"


def _work(link: Link, dsn: str, direct: str, folder: Path) -> None:
    here = Path(__file__).parents[1]
    environment: dict[str, Any] = os.environ | {
        "PGSCHED_DSN": dsn,
        "PGSCHED_TEST_LOG": str(folder / "notes"),
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    command = [sys.executable, "-m", "pgsched", "worker", "harness.apps:app", "--lease", "9", "--kill", "12", "--no-leader"]
    with (folder / "log").open("wb") as log:
        process = link.run(command, env=environment, stderr=log)
    try:
        wait_until(direct, "(select count(*) from pgsched.running where started_at is not null) = 61")
        with psycopg.connect(direct, autocommit=True) as connection:
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched lease %'")
        wait_until(direct, ENDED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()
