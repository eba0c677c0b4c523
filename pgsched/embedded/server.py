"""How a server comes to be running: our own when we get the lock, else the owner's; with its cluster and database.

The callers get an `EmbeddedPostgres` that takes connections. The steps to it, their order, how long they may take, and
what is undone when one of them fails, are decided here.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import make_conninfo

from pgsched.embedded.binaries import Binaries, all_binaries, find_binaries, reachable
from pgsched.embedded.ownership import launch, let_go, stop_leftover, try_lock
from pgsched.embedded.place import PORT, Data, socket_folder
from pgsched.errors import EmbeddedPostgresError

_logger = logging.getLogger(__name__)

_START_SECONDS = 60.0  # crash recovery of a development database is over well before


class EmbeddedPostgres:
    """A running embedded server, made by `start`; a context manager that stops it at the end.

    `dsn` is a libpq conninfo string for the superuser on the database ``pgsched``; `data` the data directory and `log`
    the server's log file in it; `reused` is true when another `start` owns the server, which `stop` then leaves alone.
    """

    def __init__(self, place: Data, dsn: str, owned: contextlib.ExitStack | None) -> None:
        self.dsn = dsn
        self.data = place.root
        self.log = place.log
        self.reused = owned is None
        self._owned = owned
        self._owner = os.getpid()
        if owned is not None:
            atexit.register(self.stop)

    def stop(self) -> None:
        """Shut the server down (fast: sessions are cut, nothing committed is lost) and wait for its end.

        After it anyone can start the data again. Waits for 20 seconds before it gets rougher, 35 in all. Does nothing
        when the server is another's (`reused`), is stopped already, or in a process forked off the one that called
        `start`.
        """
        owned, self._owned = self._owned, None
        if owned is not None and os.getpid() == self._owner:
            atexit.unregister(self.stop)
            owned.close()

    def __enter__(self) -> Self:
        """The server itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """`stop`, whatever the block raised."""
        self.stop()


def start(data: Path | None = None, *, binaries: Binaries | None = None) -> EmbeddedPostgres:
    """Start the server on the data directory `data`, or use the one that runs there already.

    `data` is made if missing; by default it lies in the user's data directory (for root, in /var/lib/pgsched). The
    server is run by `binaries`, by default `find_binaries`. Afterwards the database ``pgsched`` exists and takes
    connections. Raises `EmbeddedPostgresError`, with the end of the server's log where that helps, when this cannot
    be had.
    """
    if sys.platform == "win32":
        raise EmbeddedPostgresError("the embedded Postgres does not run on Windows: give the dsn of a Postgres instead")
    place = Data.open(data)
    try:
        return _own_or_reuse(place, binaries)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"data directory {place.root}: {error}. Put that right, or choose another"
        ) from error


def _own_or_reuse(place: Data, binaries: Binaries | None) -> EmbeddedPostgres:
    deadline = time.monotonic() + _START_SECONDS
    while (lock := try_lock(place)) is None:
        if (dsn := _answering(place)) is not None:
            _logger.info("using the embedded Postgres that runs on %s already", place.root)
            return EmbeddedPostgres(place, dsn, None)
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"process {place.lock.read_text()} holds {place.lock}, but no server answers on {place.root} within "
                f"{_START_SECONDS:.0f} s. Stop that process. The end of {place.log}:\n{place.tail()}"
            )
        time.sleep(0.05)
    with contextlib.ExitStack() as undo:
        undo.callback(let_go, lock)
        stop_leftover(place)
        dsn = _start_owned(place, reachable(binaries or find_binaries(), place.account), undo)
        return EmbeddedPostgres(place, dsn, undo.pop_all())


def _start_owned(place: Data, binaries: Binaries, undo: contextlib.ExitStack) -> str:
    """Start a server on data that we hold the lock of; `undo` learns how to stop it. Returns the dsn."""
    if not place.cluster.exists():
        _make_cluster(place, binaries)
    _check_version(place, binaries)
    sockets = socket_folder(place)
    undo.callback(shutil.rmtree, sockets, ignore_errors=True)
    process = launch(place, binaries, sockets, undo)
    dsn = make_conninfo(host=str(sockets), port=PORT, user="postgres", dbname="pgsched")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            _create_database(dsn)
            return dsn
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"PostgreSQL {binaries.version} ({binaries.bindir}) does not start on {place.cluster}: "
                    f"{str(error).strip()}. The end of {place.log}:\n{place.tail()}"
                ) from error
        time.sleep(0.02)


def _answering(place: Data) -> str | None:
    """The dsn of the server that runs on the data and takes connections, else None."""
    try:
        lines = (place.cluster / "postmaster.pid").read_text().splitlines()
    except OSError:
        return None
    if len(lines) < 8 or lines[7].strip() != "ready":
        return None
    dsn = make_conninfo(host=lines[4], port=lines[3], user="postgres", dbname="pgsched")
    try:
        _create_database(dsn)
    except psycopg.OperationalError:
        return None
    return dsn


def _create_database(dsn: str) -> None:
    """Make the database ``pgsched`` unless it exists. Raises `psycopg.OperationalError` while the server is not up."""
    exists = "select from pg_database where datname = 'pgsched'"
    with psycopg.connect(dsn, dbname="postgres", autocommit=True, connect_timeout=10) as connection:
        if connection.execute(exists).rowcount == 0:
            # Another `start` may be making it at this moment.
            with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute("create database pgsched")


def _remove_half_made(place: Data) -> None:
    """Remove what others have begun and left behind, for 3 s at most where an initdb still writes there."""
    for _ in range(30):
        half_made = list(place.root.glob("cluster.new-*"))
        for folder in half_made:
            shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.exists() for folder in half_made):
            return
        time.sleep(0.1)


def _make_cluster(place: Data, binaries: Binaries) -> None:
    """Run initdb beside its final place, and move the result there: half a cluster is never taken for a whole one."""
    _remove_half_made(place)
    fresh = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=place.root))
    try:
        os.chown(fresh, place.account.uid, place.account.gid, follow_symlinks=False)
        options = ["--no-locale", "--encoding=UTF8", "-U", "postgres", "--auth=trust"]
        command = [str(binaries.bindir / "initdb"), "-D", str(fresh), *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False, **place.account.spawn())
        if run.returncode != 0:
            raise EmbeddedPostgresError(f"initdb of {binaries.bindir} fails in {place.root}:\n{run.stderr.strip()}")
        fresh.rename(place.cluster)
        _remove_half_made(place)  # (whose maker was killed while its initdb went on)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    folder = os.open(place.root, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may undo the rename, and the next start clear the data away as half-made
    finally:
        os.close(folder)


def _check_version(place: Data, binaries: Binaries) -> None:
    try:
        made_by = int((place.cluster / "PG_VERSION").read_text())
    except (OSError, ValueError) as error:
        raise EmbeddedPostgresError(
            f"{place.cluster} is not a data directory of Postgres that {place.account.name} can read ({error}): "
            "move it away, or choose another data directory"
        ) from None
    if made_by == binaries.major:
        return
    fitting = next((found.bindir for found in all_binaries() if found.major == made_by), None)
    remedy = f"set PGSCHED_PG_BIN={fitting}" if fitting else f"point PGSCHED_PG_BIN at a PostgreSQL {made_by}"
    raise EmbeddedPostgresError(
        f"data directory {place.root} was made by PostgreSQL {made_by}, but {binaries.bindir} is PostgreSQL "
        f"{binaries.version}, which cannot read it: {remedy}, choose another data directory, or remove this one"
    )
