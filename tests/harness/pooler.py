"""A real PgBouncer in front of a test's server, thrown away at the end: `Pooler`."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from harness.server import Server, fastest_folder
from pgsched.embedded import service_account

_PREFIX = "pgsched-test-"  # (`harness.server` sweeps such folders away when their test run was killed)
_PORT = 6432  # names the socket's file; nothing listens on the network


class NoPoolerError(Exception):
    """There is no PgBouncer here; the text says why."""


class Pooler:
    """A PgBouncer before `server` in this mode: session, transaction or statement. A context manager.

    `size` servers for each database and user; `settings` are further ones of its own. Raises `NoPoolerError` where it is not
    installed and cannot be.
    """

    def __init__(self, server: Server, mode: str, *, size: int = 20, **settings: Any) -> None:
        self._program = _program()
        self._account = service_account()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-pooler-", dir=fastest_folder()))
        self._backend = f"* = host={server.base_dir}/tmp port={server.settings['port']}"
        self._settings = {"default_pool_size": size, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._configure(mode)
        self._start()

    def dsn(self, direct: str) -> str:
        """The DSN of the database of `direct`, through this pooler."""
        return make_conninfo(direct, host=str(self._folder), port=_PORT)

    def switch(self, mode: str) -> None:
        """Pool in this mode from now on; the clients that are connected stay."""
        self._configure(mode)
        self._admin("reload")

    def stop(self) -> None:
        """End it, with every connection through it."""
        if self._process is not None:
            self._process.kill()  # (what a signal of politeness does has changed with its versions)
            self._process.wait(30)
            self._process = None

    def __enter__(self) -> Pooler:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _configure(self, mode: str) -> None:
        settings = {
            "listen_port": _PORT,
            "unix_socket_dir": self._folder,
            "auth_type": "trust",
            "auth_file": self._folder / "users",
            "admin_users": "postgres",
            "pool_mode": mode,
            "max_client_conn": 500,
            "log_connections": 0,
            "log_disconnections": 0,
            **self._settings,
        }
        Path(self._folder, "users").write_text('"postgres" ""\n')
        lines = ["[databases]", self._backend, "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        Path(self._folder, "ini").write_text("\n".join(lines) + "\n")
        for path in (self._folder, *self._folder.iterdir()):
            os.chown(path, self._account.uid, self._account.gid)

    def _start(self) -> None:
        with Path(self._folder, "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._folder / "ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account.spawn(),
            )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self._admin("show version")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = Path(self._folder, "log").read_text()
                self.__exit__()
                raise RuntimeError(f"PgBouncer does not start:\n{text}")
            time.sleep(0.01)

    def _admin(self, command: str) -> None:
        console = make_conninfo(host=str(self._folder), port=_PORT, user="postgres", dbname="pgbouncer")
        with contextlib.closing(psycopg.connect(console, autocommit=True)) as connection:
            connection.execute(command)


@functools.cache
def _program() -> str:
    """Where PgBouncer is; root on Debian installs it, and starts no service."""
    if (found := _found()) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (["install"], ["update"], ["install"]):
            what = ["--no-install-recommends", "pgbouncer"] if command == ["install"] else []
            subprocess.run(["apt-get", "-qq", "-y", *command, *what], env=environment, capture_output=True, check=False)
            if (found := _found()) is not None:
                break
    if found is None:
        raise NoPoolerError("no PgBouncer is installed here, and this is not root on Debian, who could install it")
    return found


def _found() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
