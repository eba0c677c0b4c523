"""Take each guard away and see its test fail: `make guards` (or `python tests/guards.py NAME ...`).

A guard is a piece of text in sql/ or pgsched/ that a finding of the design's reviews put there. Each is replaced in a copy of
the tree, and the test named beside it must fail there. tests/README.md has the same table in words, and is held equal by a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from guard_list import GUARDS, Guard

ROOT = Path(__file__).parent.parent


def result(test_names: list[str], guard: Guard | None = None) -> int:
    """pytest's exit code for these tests in a copy of the tree, with `guard` taken away there if one is given."""
    with tempfile.TemporaryDirectory(prefix="pgsched-guards-") as folder:
        copy = Path(folder) / "tree"
        copy.mkdir()
        for part in ("pgsched", "sql", "alembic", "tests", "README.md", "examples", "docs", "pyproject.toml"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        if guard is not None:
            take_away(guard, copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", *test_names]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if guard is None and ran.returncode != 0:
            print(ran.stdout[-4000:])
        return ran.returncode


def take_away(guard: Guard, tree: Path) -> None:
    """Replace the guard's text, also in what the revisions have frozen."""
    changed = 0
    for path in {tree / guard.file, *tree.glob(f"alembic/frozen/*/{guard.file.removeprefix('sql/')}")}:
        text = path.read_text()
        changed += guard.old in text
        path.write_text(text.replace(guard.old, guard.new))
    if not changed:
        raise SystemExit(f'guard "{guard.name}": its text is not in {guard.file}')


def main(names: list[str]) -> int:
    """Try each guard whose name contains one of `names` (all without any); how many tests did not notice."""
    blind = 0
    chosen = [g for g in GUARDS if not names or any(n in g.name for n in names)]
    if result(sorted({guard.test for guard in chosen})) != 0:
        raise SystemExit("the tests fail in a copy with every guard in place: what follows would prove nothing")
    for guard in chosen:
        noticed = result([guard.test], guard) == 1
        blind += not noticed
        print(f"{'seen  ' if noticed else 'UNSEEN'}  {guard.name}", flush=True)
    print(f"{len(chosen) - blind} passed, {blind} failed")
    return blind


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
