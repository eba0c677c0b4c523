"""The README's program and the examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.running import ENDED, wait_until

from pgsched.supervisor.child import ChildWorker

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.one_server


def block(page: str, language: str, position: int = 0) -> str:
    """A fenced block of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)[position]


def test_the_readmes_program_enqueues_and_its_jobs_run(dsn: str, connection: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "shop.py").write_text(block("README.md", "python"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    ran = subprocess.run(
        [sys.executable, "shop.py"], env=os.environ | {"PGSCHED_DSN": dsn}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "ready\n"
    with ChildWorker(["worker", "shop:app"], dsn, quiet=True) as worker:
        wait_until(dsn, ENDED)
        assert worker.stop() == 0
    rows = connection.execute("select state, count(*) from pgsched.jobs group by state").fetchall()
    assert rows == [("succeeded", 102)]


def test_the_program_of_the_page_on_workflows_runs(dsn: str, connection: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "etl.py").write_text(block("docs/workflows.md", "python"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    with ChildWorker(["worker", "etl:app"], dsn, quiet=True) as worker:
        environment = os.environ | {"PGSCHED_DSN": dsn}
        ran = subprocess.run([sys.executable, str(tmp_path / "etl.py")], env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert ran.stdout == "27\n"
        wait_until(dsn, ENDED)
        assert worker.stop() == 0
    ends = connection.execute("select j.name, f.state from pgsched.job j join pgsched.finished f on f.job_id = j.id").fetchall()
    assert dict(ends)["page_someone"] == "skipped" and dict(ends)["tidy_up"] == "succeeded"


def test_the_page_on_schedules_runs(connection: Any, dsn: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    names: dict[str, Any] = {}
    exec(block("docs/schedules.md", "python"), names)
    names["app"].schedules.declare()
    names["app"].close()
    for statement in filter(str.strip, block("docs/schedules.md", "sql").split(";")):
        connection.execute(statement)
    assert connection.execute("select name from pgsched.schedules order by 1").fetchall() == [("ping",), ("refresh",), ("report eu",)]


def test_the_readmes_sql_runs(connection: Any) -> None:
    connection.execute(block("README.md", "sql", 0))
    statements = re.sub(r"--.*", "", block("README.md", "sql", 1)).split(";")
    for statement in filter(str.strip, statements):
        connection.execute(statement)


def test_the_program_and_the_sql_of_the_page_on_retries_run(connection: Any) -> None:
    names: dict[str, Any] = {"__name__": "mailer"}
    exec(block("docs/retries.md", "python"), names)
    assert names["send"].retry.max_attempts == 8
    for statement in filter(str.strip, block("docs/retries.md", "sql").split(";")):
        connection.execute(statement)


def test_the_readmes_picture_is_what_the_demo_prints() -> None:
    picture = block("README.md", "text")
    source = (ROOT / "pgsched/demo/show.py").read_text() + (ROOT / "pgsched/demo/clock.py").read_text()
    for text in ("zones with the most clock changes", "Look for yourself", "a schedule, ", "The repair: ", "jobs succeeded", "after a repair", "once each"):
        assert text in picture and text in source


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_each_example_runs_as_it_stands(example: Path, dsn: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(example)],
        env=os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip(), "an example shows something"
