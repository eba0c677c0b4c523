"""A primary and its standby, real servers that stream: `pair`.

Both begin as a cold copy of one server that was shut down in good order, which is as good a base backup as `pg_basebackup`
makes, and takes a tenth of a second. Nobody decides here who is the primary: the test promotes, stops and crashes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from harness.running import wait_until
from harness.server import Server

_ROOM = {"wal_keep_size": "256MB", "autovacuum": "off"}  # a standby that was away finds all that it missed


class Replica(Server):
    """A server on a copy of `seed`'s data, which must be shut down; where `primary` is given, its standby.

    As a standby it streams as soon as it runs, and answers reads. `promote` makes it a primary.
    """

    def __init__(self, seed: Server, primary: Server | None = None, settings: dict[str, str] | None = None) -> None:
        assert seed.child_process is None, "a server that runs cannot be copied"
        self._seed = seed
        self._is_standby = primary is not None
        upstream = {"primary_conninfo": primary.conninfo()} if primary is not None else {}
        super().__init__(seed.binaries, settings={**_ROOM, **upstream, **(settings or {})})

    def initialize_database(self) -> None:
        for folder in (self.base_dir, f"{self.base_dir}/tmp"):
            os.chown(folder, self._account.uid, self._account.gid)
        data = Path(self.get_data_directory())
        data.rmdir()
        subprocess.run(["cp", "-a", self._seed.get_data_directory(), data], check=True)
        if self._is_standby:
            signal_file = data / "standby.signal"
            signal_file.touch()
            os.chown(signal_file, self._account.uid, self._account.gid)

    def ask(self, query: str, dbname: str = "postgres") -> Any:
        """The first value of a query's answer."""
        with psycopg.connect(self.conninfo(dbname), autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
            return row[0] if row else None

    def set(self, name: str, value: str) -> None:
        """Change a setting while it runs."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f"alter system set {name} = '{value}'".encode())
            connection.execute("select pg_reload_conf()")
        wait_until(self.conninfo(), f"current_setting('{name}') = '{value}'")

    def promote(self) -> None:
        """From a standby to a primary, on a new timeline; when this returns it takes writes."""
        assert self.ask("select pg_promote(true, 60)"), "it was not promoted"


@dataclass
class Pair:
    """Two servers with the database `dbname`; `primary` and `standby` say what they were at the beginning."""

    primary: Replica
    standby: Replica
    dbname: str

    def dsn(self, server: Replica) -> str:
        """The database on this one."""
        return server.conninfo(self.dbname)

    def both(self, *, read_write: bool = True) -> str:
        """The database on whichever of both is the primary, the first that answers (`read_write=False`: any that answers)."""
        servers = (self.primary, self.standby)
        return make_conninfo(
            host=",".join(f"{server.base_dir}/tmp" for server in servers),
            port=",".join(str(server.settings["port"]) for server in servers),
            user="postgres",
            dbname=self.dbname,
            **({"target_session_attrs": "read-write"} if read_write else {}),
        )

    def be_synchronous(self) -> None:
        """From now on a commit on the primary is acknowledged only when the standby has it."""
        self.primary.set("synchronous_standby_names", "*")
        wait_until(self.primary.conninfo(), "exists (select from pg_stat_replication where sync_state = 'sync')")

    def catch_up(self) -> None:
        """Wait until the standby shows all that is committed on the primary now."""
        at = self.primary.ask("select pg_current_wal_insert_lsn()::text")
        wait_until(self.standby.conninfo(), f"pg_last_wal_replay_lsn() >= '{at}'")


@contextlib.contextmanager
def pair(seed: Server, dbname: str, *, synchronous: bool) -> Iterator[Pair]:
    """A primary and its standby, copies of `seed`."""
    with Replica(seed) as primary, Replica(seed, primary) as standby:
        made = Pair(primary, standby, dbname)
        wait_until(primary.conninfo(), "exists (select from pg_stat_replication where state = 'streaming')")
        if synchronous:
            made.be_synchronous()
        yield made
