"""Who runs the server: the account of this process or, as Postgres refuses to run as root, another one for root.

The other modules say only "as this account": that root has to hand over its rights, the folders and the environment that
a program then starts with, and what the account can reach are decided here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pgsched.errors import EmbeddedPostgresError
from pgsched.supervisor.family import TAG


class Spawn(TypedDict, total=False):
    """Keyword arguments of `subprocess.Popen`."""

    cwd: str
    env: dict[str, str]
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """The operating-system account that runs the server."""

    name: str
    uid: int
    gid: int

    def spawn(self) -> Spawn:
        """How to run a program as this account, in a folder that it can enter."""
        # LC_ALL: no error text in the user's language. PG*: a PGDATA or PGOPTIONS is meant for another server.
        env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        # (With the empty tag: a server that a worker has started for everybody does not end with that worker.)
        common: Spawn = {"cwd": "/", "env": env | {"LC_ALL": "C", "LANGUAGE": "", TAG: ""}}
        return common if os.geteuid() != 0 else common | {"user": self.uid, "group": self.gid, "extra_groups": []}


def service_account(cluster: Path | None = None) -> Account:
    """The account that runs the server: this process's own, or, for root, an unprivileged one.

    For root it is the owner of the data directory `cluster` when that exists, else ``postgres``, else ``nobody``.
    Raises `EmbeddedPostgresError` when the machine has none of them.
    """
    import pwd

    if (uid := os.geteuid()) != 0:
        with contextlib.suppress(KeyError):
            return Account(pwd.getpwuid(uid).pw_name, uid, os.getegid())
        return Account(f"uid {uid}", uid, os.getegid())
    if cluster is not None and cluster.exists() and (owner := cluster.lstat()).st_uid != 0:
        return Account(f"uid {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres refuses to run as root, and there is no account postgres or nobody to run it under: "
        "add one (useradd --system postgres), or run pgsched as an ordinary user"
    )


def can_enter(folder: Path, account: Account) -> bool:
    """Whether `account` gets into `folder`; asked of the system, which also knows ACLs and mounts."""
    command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]
    return subprocess.run(command, capture_output=True, check=False, **account.spawn()).returncode == 0
