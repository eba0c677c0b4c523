"""The commands about schedules: what they print for people and, with --json, for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.ticking import Reign, as_if_at, schedule
from typer.testing import CliRunner

import pgsched.cli
from pgsched.errors import ScheduleError

pytestmark = pytest.mark.one_server

APP = """
import pgsched

app = pgsched.App("shop")


@app.task
async def refresh() -> None: ...


app.schedule("refresh", refresh, "0 9 * * *", "America/New_York")
"""


@pytest.fixture
def command(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one command: what it printed, read where it is JSON."""
    monkeypatch.setenv("PGSCHED_DSN", dsn)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(pgsched.cli.app, ["schedules", *arguments])
        if result.exception is not None:
            raise result.exception
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    return run


def test_list_show_and_next_say_the_time_in_its_zone_and_in_utc(dsn: str, connection: Any, command: Any) -> None:
    assert command() == "no schedules\n"
    schedule(connection, "refresh", cron="0 9 * * *", timezone="America/New_York", at="2200-03-01 15:00Z")
    reign = Reign(dsn)
    reign.tick("2200-03-01 15:00:01Z", "2200-03-02 14:00:05Z")
    line = command().splitlines()[1]
    for text in ("refresh", "0 9 * * *", "2200-03-03 09:00:00 America/New_York", "2200-03-03 14:00:00", "2200-03-02 14:00:00", "00:00:05"):
        assert text in line.replace("T", " "), line
    [row] = command("--json")
    assert (row["next_local"], row["problem"]) == ("2200-03-03T09:00:00", 'no live worker knows the task "t"')
    assert "made" in command("show", "refresh")
    assert [tick["outcome"] for tick in command("show", "refresh", "--json")["ticks"]] == ["made"]
    following = command("next", "refresh", "--after", "2200-03-08T00:00Z", "--count", "2", "--json")
    assert [(tick["local"], tick["utc"]) for tick in following] == [
        ("2200-03-08T09:00:00-05:00", "2200-03-08T14:00:00+00:00"),
        ("2200-03-09T09:00:00-04:00", "2200-03-09T13:00:00+00:00"),
    ]
    reign.session.close()


def test_preview_needs_no_database_and_says_what_a_change_of_clocks_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSCHED_DSN", "host=nowhere.invalid")
    result = CliRunner().invoke(
        pgsched.cli.app,
        ["schedules", "preview", "30 2 * * *", "--timezone", "America/New_York", "--after", "2024-03-09T12:00Z", "--count", "1"],
    )
    assert result.stdout.splitlines()[1].split("  ")[0:2] == ["2024-03-10 03:00:00 EDT", "2024-03-10 07:00:00"]
    assert "02:30 does not exist on this day" in result.stdout
    for wrong in (["61 * * * *"], ["@daily", "--timezone", "EST"], ["@daily", "--after", "2024-03-09T12:00"]):
        answer = CliRunner().invoke(pgsched.cli.app, ["schedules", "preview", *wrong])
        assert isinstance(answer.exception, ScheduleError), answer


def test_pause_resume_run_now_and_backfill(connection: Any, command: Any) -> None:
    schedule(connection, "s", cron="0 * * * *", at="2200-01-01 00:30Z")
    assert command("pause", "s") == 'schedule "s" is paused\n'
    assert command("pause", "s", "--json") == {"name": "s", "changed": False}
    assert command("run-now", "s").startswith("job 1, made, by hand, by ")
    assert command("run-now", "s", "--json")["job_id"] == 2
    since, until = ("--since", "2020-01-01T00:00Z"), ("--until", "2020-01-01T02:30Z")
    assert command("backfill", "s", *since, *until, "--dry-run").splitlines()[-1] == "3 ticks"
    assert connection.execute("select count(*) from pgsched.job").fetchone() == (2,)
    assert [made["outcome"] for made in command("backfill", "s", *since, *until, "--json")] == ["made"] * 3
    assert command("backfill", "s", *since, *until).splitlines()[0].startswith("2020-01-01 00:00:00 UTC: job 3, there")
    with pytest.raises(ScheduleError, match="more than 2 ticks"):
        command("backfill", "s", *since, *until, "--at-most", "2")
    assert command("resume", "s") == 'schedule "s" ticks again\n'
    with pytest.raises(ScheduleError, match='there is no schedule "x"'):
        command("show", "x")


def test_apply_brings_the_database_to_the_code(command: Any, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shop_of_schedules.py").write_text(APP)
    assert command("apply", "shop_of_schedules:app") == 'schedule "refresh" added\n'
    assert command("apply", "shop_of_schedules:app") == "nothing has changed\n"
    connection.execute("update pgsched.schedule set cron = '@daily'")
    assert command("apply", "shop_of_schedules:app", "--json") == {"added": [], "changed": ["refresh"], "removed": []}
    as_if_at(connection, "2200-01-01 00:00Z")
