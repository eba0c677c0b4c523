"""Freeze what changed in sql/ since the last revision into the next one: `python alembic/freeze.py 0002 "what it does"`.

Functions and views that differ from their last frozen text are copied to alembic/frozen/<revision>/; tables are changed
by hand, in the revision's own file, which is written once with a template. While a revision has not been released, the
same command with its number brings its frozen text up to date (and, for the first one, the tables too).
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
SQL = HERE.parent / "sql"

TEMPLATE = '''"""{message}"""

from pgsched.migrate import forward_only, install

revision = "{revision}"
down_revision = "{previous}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    install("{revision}")


downgrade = forward_only
'''


def frozen_before(revision: str) -> dict[str, str]:
    """The newest frozen text of each file, from the revisions before this one."""
    texts: dict[str, str] = {}
    for folder in sorted((HERE / "frozen").iterdir()):
        if folder.name < revision:
            texts |= {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.sql")}
    return texts


def main(revision: str, message: str = "") -> None:
    """Write the frozen folder of `revision`, and its file when there is none."""
    before = frozen_before(revision)
    parts = ["functions", "views"] if before else ["schema", "functions", "views"]
    target = HERE / "frozen" / revision
    shutil.rmtree(target, ignore_errors=True)
    now = {str(p.relative_to(SQL)): p for part in parts for p in sorted((SQL / part).glob("*.sql"))}
    for name, path in now.items():
        if before.get(name) != path.read_text():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
            print("frozen", revision, name)
    for name in sorted(n for n in before if n not in now and not n.startswith("schema")):
        print("gone from sql/, drop it by hand:", name)
    if not list((HERE / "versions").glob(f"{revision}_*.py")):
        previous = max(p.name.split("_")[0] for p in (HERE / "versions").glob("0*_*.py"))
        slug = "_".join(message.lower().split()) or "change"
        (HERE / "versions" / f"{revision}_{slug}.py").write_text(
            TEMPLATE.format(message=message, revision=revision, previous=previous)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
