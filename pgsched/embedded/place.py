"""Where things are: the data directory that a user knows, what lies in it, and the folder of the server's socket.

The other modules ask for a place and get one that exists, that the server's account can enter, and that no other user
of the machine has laid out for us. Which folders come into question, and in which order, is decided here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pgsched.embedded.account import Account, can_enter, service_account
from pgsched.errors import EmbeddedPostgresError

PORT = 5432  # only a part of the socket's file name: the server does not listen on TCP

_logger = logging.getLogger(__name__)

_SOCKET_BYTES = 103  # the smallest sun_path among supported systems (macOS: 104), less its closing NUL


def _make_folder(path: Path) -> None:
    """Make `path` and its missing parents, whatever the umask: for root enterable by all, else private."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():  # else another process has just made it
            raise
    else:
        path.chmod(0o755 if os.geteuid() == 0 else 0o700)


def check_owned(folder: Path, *owners: int) -> None:
    """Raise `EmbeddedPostgresError` unless `folder` is a real one that only this account (or `owners`) can write."""
    state = folder.lstat()
    ours = state.st_uid in (os.geteuid(), *owners)
    if not stat.S_ISDIR(state.st_mode) or not ours or state.st_mode & 0o002:
        raise EmbeddedPostgresError(
            f"{folder} is not a folder that only this account can write (owner uid {state.st_uid}, mode "
            f"{stat.S_IMODE(state.st_mode):o}): another user may have put it there. Remove it"
        )


def base_folder(account: Account) -> Path:
    """The folder for pgsched's own data, made if missing: the user's data directory; for root, one below /var."""
    if os.geteuid() == 0:
        folders = [Path("/var/lib/pgsched")]
    else:
        try:
            import platformdirs
        except ImportError:
            raise EmbeddedPostgresError(
                "the default data directory needs the package platformdirs: "
                '`pip install "pgsched[embedded]"`, or choose a data directory'
            ) from None
        home = platformdirs.user_data_path("pgsched", appauthor=False)
        folders = [home.resolve()] if home.is_absolute() else []
    # Accounts without a home that they can write (services, containers) still get a place that survives a reboot.
    folders.append(Path(f"/var/tmp/pgsched-{os.geteuid()}"))
    reasons: list[str] = []
    for folder in folders:
        try:
            _make_folder(folder)
            check_owned(folder)
        except (OSError, EmbeddedPostgresError) as error:
            reasons.append(str(error))
            continue
        if can_enter(folder, account):
            if reasons:
                _logger.warning("embedded Postgres keeps its data in %s: %s", folder, "; ".join(reasons))
            return folder
        reasons.append(f"the account {account.name} cannot enter {folder}")
    raise EmbeddedPostgresError(f"no place for the data: {'; '.join(reasons)}. Choose a data directory")


@dataclass(frozen=True)
class Data:
    """The data directory that the user knows, with what is in it."""

    root: Path
    account: Account

    @property
    def cluster(self) -> Path:
        """What Postgres calls the data directory. Not `root`: `root` may be a mount point, which cannot be renamed."""
        return self.root / "cluster"

    @property
    def lock(self) -> Path:
        """The file whose lock makes a process the owner; it also marks the folder as pgsched's."""
        return self.root / "pgsched.lock"

    @property
    def log(self) -> Path:
        """What the server writes to standard error."""
        return self.root / "server.log"

    @classmethod
    def open(cls, chosen: Path | None) -> Self:
        """The data directory `chosen`, or the default one; made if missing, and usable by the server's account."""
        root = chosen.resolve() if chosen is not None else base_folder(service_account()) / "postgres"
        account = service_account(root / "cluster")
        self = cls(root, account)
        try:
            _make_folder(root)
            content = {entry.name for entry in root.iterdir()} - {"lost+found"}
            if not content and os.geteuid() == 0:
                root.chmod(root.stat().st_mode | 0o111)
            if not os.access(root, os.W_OK):
                raise PermissionError(None, f"{account.name} cannot write it")
        except OSError as error:
            raise EmbeddedPostgresError(f"data directory {root}: {error.strerror}. Choose another") from None
        if content and self.lock.name not in content:
            raise EmbeddedPostgresError(f"data directory {root} is not empty, nor pgsched's. Choose an empty one")
        if not can_enter(root, account):
            closed = next(p for p in (*reversed(root.parents), root) if not can_enter(p, account))
            raise EmbeddedPostgresError(
                f"data directory {root}: the account {account.name}, which runs the server because Postgres refuses "
                f"to run as root, cannot enter {closed}. Choose a data directory elsewhere (below /var/lib, say)"
            )
        return self

    def tail(self) -> str:
        """The last lines of the server's log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return "(no log)"


def socket_folder(place: Data) -> Path:
    """A private folder for the server's socket, made if missing, of the same name for the same data each time."""
    name = f"pgsched-{hashlib.sha256(os.fsencode(place.root)).hexdigest()[:12]}"
    # Root's runtime folder is closed to the server's account.
    runtime = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else None
    reasons: list[str] = []
    for folder in (Path(base).absolute() / name for base in (runtime, tempfile.gettempdir(), "/tmp") if base):
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > _SOCKET_BYTES:
            reasons.append(f"{folder} is too long")
            continue
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o700)
            check_owned(folder, place.account.uid)
            os.chown(folder, place.account.uid, place.account.gid, follow_symlinks=False)
            folder.chmod(0o700)
            for stale in folder.glob(".s.PGSQL.*"):  # we hold the lock: whatever made them is dead
                stale.unlink()
        except (OSError, EmbeddedPostgresError) as error:
            reasons.append(str(error))
            continue
        if can_enter(folder, place.account):
            return folder
        reasons.append(f"{folder}: the account {place.account.name} cannot enter it")
    raise EmbeddedPostgresError(
        f"no place for the server's socket: {'; '.join(reasons)}. Set TMPDIR to a usable folder"
    )
