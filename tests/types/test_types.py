"""What users see of the types: mypy and pyright accept every line of right.py and refuse each marked line of wrong.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SAMPLES = [HERE / "right.py", HERE / "wrong.py"]

Errors = dict[Path, dict[int, str]]


def mypy() -> Errors:
    """What mypy says, with the project's own settings: the messages by file and line."""
    run = _run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--output", "json", *map(str, SAMPLES))
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found: Errors = {}
    for item in map(json.loads, run.stdout.splitlines()):
        if item["severity"] == "error":
            found.setdefault((ROOT / item["file"]).resolve(), {})[item["line"]] = item["message"]
    return found


def pyright() -> Errors:
    """What pyright says."""
    if _run("pyright", "--version").returncode != 0:
        pytest.skip("pyright does not run: it needs Node.js, which `pip install pyright[nodejs]` brings")
    run = _run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, SAMPLES))
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found: Errors = {}
    for item in json.loads(run.stdout)["generalDiagnostics"]:
        if item["severity"] == "error":
            found.setdefault(Path(item["file"]), {})[item["range"]["start"]["line"] + 1] = item["message"]
    return found


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda checker: checker.__name__)
def errors(request: pytest.FixtureRequest) -> Errors:
    return request.param()  # type: ignore[no-any-return]


def test_right_calls_have_no_error_and_the_types_that_they_say(errors: Errors) -> None:
    assert errors.get(HERE / "right.py", {}) == {}


def test_each_wrong_call_is_refused_and_nothing_else(errors: Errors) -> None:
    lines = (HERE / "wrong.py").read_text().splitlines()
    marked = {number: line for number, line in enumerate(lines, 1) if line.endswith("# error")}
    refused = errors.get(HERE / "wrong.py", {})
    assert len(marked) > 60
    assert [line for number, line in marked.items() if number not in refused] == []
    assert {number: message for number, message in refused.items() if number not in marked} == {}
