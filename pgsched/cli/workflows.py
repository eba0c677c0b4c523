"""Commands about jobs that wait for each other: show a workflow, explain a job, let one or many run again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from pgsched.cli.options import AsJson, Dsn, JobId, Schema, WorkflowId, opened
from pgsched.cli.output import console, print_json, print_rows
from pgsched.errors import UsageError

_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "skipped": "bright_black", "running": "cyan"}
Row = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(workflows)
    app.command()(workflow)
    app.command()(explain)
    app.command()(retry)
    app.command()(rerun)


def workflows(
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """List the newest workflows, and how far each is."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.workflows(limit))
    counts = ("jobs", "shared", "succeeded", "failed", "cancelled", "skipped", "running", "open")
    columns = ("id", "name", "state", *counts, "created_at", "deadline", "finished_at")
    print_rows(rows, columns, as_json, "no workflows")


def workflow(
    workflow_id: WorkflowId,
    dot: Annotated[bool, typer.Option("--dot", help="As a graph for Graphviz.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a graph for Mermaid.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show a workflow as a tree: each job below what it waits for longest, with its state and time; * marks the critical path."""
    if dot + mermaid + as_json > 1:
        raise UsageError("--dot, --mermaid and --json are three ways to print it: choose one")
    with opened(dsn, schema) as db:
        rows = db(db.calls.workflow_jobs(workflow_id))
    if not rows:
        raise UsageError(f"there is no workflow {workflow_id} (never made, or pruned)")
    if as_json:
        print_json(rows)
    elif dot or mermaid:
        print("\n".join(as_dot(rows) if dot else as_mermaid(rows)))
    else:
        out = console()
        out.print(as_tree(f"workflow {workflow_id}", rows, deepest=max(4, (out.width - 60) // 4)), soft_wrap=True)


def explain(
    job_id: JobId,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Say why a job is where it is, whom it waits for, and who waits for it."""
    with opened(dsn, schema) as db:
        text = db(db.calls.explain(job_id))
    if as_json:
        print_json({"id": job_id, "explanation": text.splitlines()})
    else:
        print(text)


def retry(
    job_id: JobId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Let a job run again that has failed, was cancelled or expired; what had ended because of it waits again."""
    with opened(dsn, schema) as db:
        changed = db(db.calls.retry(job_id, dry_run))
    if as_json:
        print_json([{"id": one, "was": was} for one, was in changed.items()])
        return
    for one, was in changed.items():
        verb = "run" if one == job_id else "wait"
        print(f"job {one} ({was}) {f'would {verb}' if dry_run else f'{verb}s'} again")


def rerun(
    workflow_id: WorkflowId,
    names: Annotated[list[str], typer.Option("--from", help="A job's name within the workflow; may be repeated.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Let jobs of a workflow, and all that comes after them in it, run again, also those that have succeeded."""
    with opened(dsn, schema) as db:
        changed = db(db.calls.rerun_workflow(workflow_id, names, dry_run))
        rows = [] if as_json else db(db.calls.workflow_jobs(workflow_id))
    if as_json:
        print_json([{"id": one, "was": was} for one, was in changed.items()])
        return
    called = {row["id"]: row["name"] for row in rows}
    for one, was in sorted(changed.items()):
        print(f"job {one} {called.get(one, 'of another workflow')} ({was}) {'would run' if dry_run else 'runs'} again")


def as_tree(title: str, rows: Sequence[Row], *, deepest: int = 20, most: int = 2000) -> Tree:
    """Each job below the one that it waited for longest, or that is the newest of those it waits for.

    What lies deeper than `deepest`, or comes after so many, is counted.
    """
    tree, critical = Tree(title), set(critical_path(rows))
    by_id = {row["id"]: row for row in rows}
    branches: dict[int, Tree] = {}
    depth: dict[int, int] = {}
    anchors: dict[int, int] = {}  # of what is not shown: the job below which it is counted
    deeper: Counter[int] = Counter()
    for row in rows:
        above = [edge["id"] for edge in row["edges"] if edge["id"] in by_id]
        below = max(above, key=lambda i: (by_id[i]["finished_at"] or "9999", i), default=None)
        depth[row["id"]] = 1 if below is None else depth[below] + 1
        if below is not None and depth[row["id"]] > deepest:
            anchors[row["id"]] = anchors.get(below, below)
            deeper[anchors[row["id"]]] += 1
        elif len(branches) < most and (below is None or below in branches):
            label = _label(row, by_id, below, above, is_critical=row["id"] in critical)
            branches[row["id"]] = (tree if below is None else branches[below]).add(label)
    for one, n in deeper.items():
        if one in branches:
            branches[one].add(Text(f"and {n} below (--json, --dot and --mermaid show all)", style="bright_black"))
    left = len(rows) - len(branches) - sum(n for one, n in deeper.items() if one in branches)
    if left:
        tree.add(Text(f"and {left} more (--json, --dot and --mermaid show all)", style="bright_black"))
    return tree


def _label(row: Row, by_id: dict[int, Row], below: int | None, above: Sequence[int], *, is_critical: bool) -> Text:
    label = Text(f"{row['name']} ").append(row["state"] or "?", style=_COLOURS.get(row["state"], ""))
    label.append(f" {took}" if (took := _took(row)) else "")
    if row["state"] == "running" and row.get("progress") is not None:
        label.append(f" {row['progress']:.0%}")
    if others := [by_id[i]["name"] for i in above if i != below]:
        some = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        label.append(f" (also after {some})", style="bright_black")
    if is_critical:
        label.append(" *")
    if row["state"] in ("failed", "cancelled", "skipped") and row["reason"]:
        label.append(f" {row['reason'].splitlines()[0][:100]}", style="bright_black")
    return label


def critical_path(rows: Sequence[Row]) -> list[int]:
    """From the job that ended last back, each time to the one that it had to wait for longest."""
    ended = {row["id"]: row for row in rows if row["finished_at"]}
    path: list[int] = []
    at = max(ended, key=lambda i: ended[i]["finished_at"], default=None)
    while at is not None:
        path.append(at)
        above = [edge["id"] for edge in ended[at]["edges"] if edge["id"] in ended]
        at = max(above, key=lambda i: ended[i]["finished_at"], default=None)
    return path[::-1]


def as_dot(rows: Sequence[Row]) -> Iterator[str]:
    """Lines for Graphviz."""
    yield "digraph {"
    for row in rows:
        yield f"  {row['id']} [label={_quoted(row['name'] + chr(10) + (row['state'] or ''))}];"
    for row in rows:
        for edge in row["edges"]:
            on = "" if edge["on"] == "success" else f' [label="{edge["on"]}"]'
            yield f"  {edge['id']} -> {row['id']}{on};"
    yield "}"


def as_mermaid(rows: Sequence[Row]) -> Iterator[str]:
    """Lines for Mermaid."""
    yield "flowchart TD"
    for row in rows:
        name = row["name"].replace('"', "#quot;")
        yield f'  j{row["id"]}["{name}: {row["state"] or ""}"]'
    for row in rows:
        for edge in row["edges"]:
            on = "" if edge["on"] == "success" else f"|{edge['on']}|"
            yield f"  j{edge['id']} -->{on} j{row['id']}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _took(row: Row) -> str:
    if not row["started_at"]:
        return ""
    began = datetime.fromisoformat(row["started_at"])
    ended = datetime.fromisoformat(row["finished_at"]) if row["finished_at"] else datetime.now(began.tzinfo)
    return f"{(ended - began).total_seconds():.1f} s"
