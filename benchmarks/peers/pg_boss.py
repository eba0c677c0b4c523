"""pg-boss (https://github.com/timgit/pg-boss), the other side of `workflows.py`: installed by npm, run by `pg_boss.mjs`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

HERE = Path(__file__).parent
OLDEST_NODE = (22, 12)


class NotThereError(Exception):
    """Why pg-boss cannot be run here."""


class PgBoss:
    """An installation of pg-boss, and the Node that runs it."""

    def __init__(self, folder: Path) -> None:
        """Raises `NotThereError`."""
        self._folder = folder.resolve()
        if not (self._folder / "node_modules" / "pg-boss").is_dir():
            raise NotThereError(f"{folder} has no node_modules/pg-boss")
        self._node = _node(self._folder)
        package = json.loads((self._folder / "node_modules" / "pg-boss" / "package.json").read_text())
        self.version = f"pg-boss {package['version']}, Node {'.'.join(map(str, _version(self._node) or ()))}"

    def measure(self, dsn: str, order: dict[str, Any]) -> dict[str, float]:
        """Carry out an order (see pg_boss.mjs): the seconds."""
        server = conninfo_to_dict(dsn)
        connection = {"host": server["host"], "port": int(server["port"]), "user": server["user"], "database": server["dbname"]}
        command = [self._node, str(HERE / "pg_boss.mjs"), str(self._folder)]
        answer = subprocess.run(command, input=json.dumps(order | {"connection": connection}), stdout=subprocess.PIPE, text=True, check=True)
        return dict(json.loads(answer.stdout))


def install(folder: Path) -> PgBoss:
    """Install the pinned version into `folder`, and a Node where the machine's is too old. Raises `NotThereError`."""
    if shutil.which("npm") is None:
        raise NotThereError("this machine has no npm")
    shutil.copy(HERE / "package.json", folder)
    _npm(folder)
    try:
        _node(folder)
    except NotThereError:
        _npm(folder, f"node@{OLDEST_NODE[0]}")
    return PgBoss(folder)


def _npm(folder: Path, *packages: str) -> None:
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotThereError(f"npm says: {done.stderr.strip()[-500:]}")


def _node(folder: Path) -> str:
    """A Node that is new enough: the folder's own, or the machine's."""
    for node in (str(folder / "node_modules" / ".bin" / "node"), shutil.which("node")):
        if node and (_version(node) or (0,)) >= OLDEST_NODE:
            return node
    raise NotThereError(f"pg-boss needs Node {OLDEST_NODE[0]}.{OLDEST_NODE[1]} or newer")


def _version(node: str) -> tuple[int, ...] | None:
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in answer.strip().removeprefix("v").split("."))
