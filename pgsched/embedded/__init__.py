"""A Postgres server of pgsched's own, for development: only when asked for, never for production.

`start` finds Postgres binaries, makes a data directory on first use, and runs the server on a Unix-domain socket that
only this account (and root) can reach. The rules that hold:

* One server per data directory. Whoever holds the lock file's ``flock`` owns the server; every other `start` on the
  same data uses the owner's server (`EmbeddedPostgres.reused`) and never stops it.
* The server goes down with its owner: by `EmbeddedPostgres.stop`, at interpreter exit, and also when the owner is
  killed with SIGKILL. For the last, a tiny ``sh`` waits on a pipe that the owner holds open, and asks for a fast
  shutdown when the kernel closes it. (Not ``PR_SET_PDEATHSIG``: that fires when the *thread* that called `start` ends.)
  Should even that watcher be killed, the next `start` shuts the left-over server down first and starts it anew.
* Postgres refuses to run as root. Root's server runs under an unprivileged account, on binaries and data which that
  account can reach.
"""

from pgsched.embedded.account import Account, Spawn, service_account
from pgsched.embedded.binaries import Binaries, all_binaries, find_binaries, reachable
from pgsched.embedded.server import EmbeddedPostgres, start
from pgsched.errors import EmbeddedPostgresError

__all__ = [
    "Account",
    "Binaries",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "Spawn",
    "all_binaries",
    "find_binaries",
    "reachable",
    "service_account",
    "start",
]
