"""The table of guards in tests/README.md is the list in tests/guards.py, and each guard's text is still there."""

from __future__ import annotations

from pathlib import Path

from guard_list import GUARDS
from guards import ROOT


def test_the_table_of_guards_is_the_list() -> None:
    page = Path(ROOT / "tests/README.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.split("|---|---|\n")[-1].splitlines()]
    assert rows == [guard.name for guard in GUARDS]


def test_each_guards_text_is_in_its_file_and_its_test_exists() -> None:
    for guard in GUARDS:
        assert guard.old in (ROOT / guard.file).read_text(), guard.name
        path, _, name = guard.test.partition("::")
        assert not name or f"def {name}" in (ROOT / path).read_text(), guard.name
