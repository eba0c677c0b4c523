"""Commands about workflows, each in a process of its own, as people use them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsched.cli.workflows import as_tree

pytestmark = pytest.mark.one_server
ROOT = Path(__file__).parent.parent.parent


def run(dsn: str, command: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment = clean | {"PYTHONPATH": str(ROOT), "PGSCHED_DSN": dsn, "TERM": "dumb", "COLUMNS": "200"}
    arguments = [sys.executable, "-m", "pgsched", *shlex.split(command)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=60)


def printed(dsn: str, command: str) -> str:
    done = run(dsn, command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def workflow(connection: Any, *names: str, **options: Any) -> list[int]:
    """A chain of jobs in a queue that nobody serves."""
    jobs = [{"name": name, "task": "t", "queue": "q", "depends_on": [{"name": names[i - 1]}] if i else []} for i, name in enumerate(names)]
    row = connection.execute("select pgsched.enqueue_workflow(%s)", (json.dumps({"name": "chain", "jobs": jobs} | options),)).fetchone()
    ids: list[int] = row[0]["job_ids"]
    return ids


def test_a_workflow_is_run_again_from_a_job_or_it_is_said_why_not(dsn: str, connection: psycopg.Connection[Any]) -> None:
    workflow(connection, "a", "b")
    connection.execute("select pgsched.cancel(1)")
    assert printed(dsn, "rerun 1 --from a --dry-run") == "job 1 a (cancelled) would run again\njob 2 b (cancelled) would run again\n"
    assert json.loads(printed(dsn, "rerun 1 --from a --json")) == [{"id": 1, "was": "cancelled"}, {"id": 2, "was": "cancelled"}]
    refused = run(dsn, "rerun 1 --from a --from b")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == 'pgsched: rerun: "a" (job 1) has not ended: it is ready. Wait for its end, or cancel it.\n'
    assert "has no job named" in run(dsn, "rerun 1 --from nobody").stderr
    without = run(dsn, "rerun 1")
    assert without.returncode == 2 and "--from" in without.stderr


def test_only_one_way_to_print_a_workflow_is_taken(dsn: str, connection: psycopg.Connection[Any]) -> None:
    workflow(connection, "a", "b")
    assert printed(dsn, "workflow 1 --dot").startswith("digraph {") and printed(dsn, "workflow 1 --mermaid").startswith("flowchart")
    refused = run(dsn, "workflow 1 --dot --mermaid")
    assert refused.returncode == 1 and "choose one" in refused.stderr


@pytest.mark.parametrize("command", ["workflow", "explain", "retry", "job", "cancel", "rerun --from a", "cancel --workflow"])
def test_a_number_that_no_job_can_have_is_refused_as_what_it_is(dsn: str, command: str) -> None:
    refused = run(dsn, f"{command} {2**63}")
    assert refused.returncode == 2
    assert str(2**63 - 1) in refused.stderr and "schema" not in refused.stderr


def test_workflows_are_listed_with_what_is_shared_and_their_deadlines(dsn: str, connection: psycopg.Connection[Any]) -> None:
    workflow(connection, "a", "b", deadline="2222-02-02 00:00+00")
    head, row = printed(dsn, "workflows").splitlines()
    assert head.split()[:5] == ["id", "name", "state", "jobs", "shared"]
    assert row.split()[:5] == ["1", "chain", "waiting", "2", "0"] and "2222-02-0" in row


def test_a_deep_tree_says_what_it_leaves_out(dsn: str, connection: psycopg.Connection[Any]) -> None:
    workflow(connection, *(f"n{i}" for i in range(100)))
    lines = printed(dsn, "workflow 1").splitlines()
    shown = sum("blocked" in line or "ready" in line for line in lines)
    assert f"└── and {100 - shown} below" in lines[-1]
    assert shown > 20 and all(f"n{i} " in lines[i + 1] for i in range(shown))


def row(job_id: int, *on: int) -> dict[str, Any]:
    edges = [{"id": i, "on": "success", "outcome": None} for i in on]
    return {"id": job_id, "name": f"n{job_id}", "state": "ready", "started_at": None, "finished_at": None, "reason": None, "progress": None, "edges": edges}


def test_a_wide_or_branched_tree_counts_what_it_leaves_out() -> None:
    wide = as_tree("wide", [row(i) for i in range(1, 51)], most=20)
    assert [str(child.label) for child in wide.children][-2:] == ["n20 ready", "and 30 more (--json, --dot and --mermaid show all)"]
    branched = as_tree("branched", [row(1), row(2, 1), row(3, 1), row(4, 2), row(5, 4), row(6, 3)], deepest=2)
    (root,) = branched.children
    below = [[str(leaf.label) for leaf in child.children] for child in root.children]
    assert [[text.split(" (")[0] for text in texts] for texts in below] == [["and 2 below"], ["and 1 below"]]
