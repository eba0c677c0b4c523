"""Commands about jobs that wait for each other: show a workflow, explain a job, let one run again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from pgsched.cli.options import AsJson, Dsn, Schema, opened
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


def workflows(
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """List the newest workflows, and how far each is."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.workflows(limit))
    counts = ("jobs", "succeeded", "failed", "cancelled", "skipped", "running", "open")
    columns = ("id", "name", "state", *counts, "created_at", "finished_at")
    print_rows(rows, columns, as_json, "no workflows")


def workflow(
    workflow_id: Annotated[int, typer.Argument(help="The workflow's number.")],
    dot: Annotated[bool, typer.Option("--dot", help="As a graph for Graphviz.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a graph for Mermaid.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show a workflow as a tree: each job below what it waits for longest, with its state and time; * marks the critical path."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.workflow_jobs(workflow_id))
    if not rows:
        raise UsageError(f"there is no workflow {workflow_id} (never made, or pruned)")
    if as_json:
        print_json(rows)
    elif dot or mermaid:
        print("\n".join(as_dot(rows) if dot else as_mermaid(rows)))
    else:
        console().print(as_tree(f"workflow {workflow_id}", rows))


def explain(
    job_id: Annotated[int, typer.Argument(help="The job's number.")],
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
    job_id: Annotated[int, typer.Argument(help="The job's number.")],
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


def as_tree(title: str, rows: Sequence[Row]) -> Tree:
    """Each job below the one that it waited for longest, or that is the newest of those it waits for."""
    tree, critical = Tree(title), set(critical_path(rows))
    by_id = {row["id"]: row for row in rows}
    branches: dict[int, Tree] = {}
    for row in rows:
        above = [edge["id"] for edge in row["edges"] if edge["id"] in by_id]
        below = max(above, key=lambda i: (by_id[i]["finished_at"] or "9999", i), default=None)
        label = Text(f"{row['name']} ").append(row["state"] or "?", style=_COLOURS.get(row["state"], ""))
        label.append(f" {took}" if (took := _took(row)) else "")
        if len(above) > 1:
            label.append(
                f" (also after {', '.join(by_id[i]['name'] for i in above if i != below)})", style="bright_black"
            )
        if row["id"] in critical:
            label.append(" *")
        if row["state"] in ("failed", "cancelled", "skipped") and row["reason"]:
            label.append(f" {row['reason'].splitlines()[0][:100]}", style="bright_black")
        branches[row["id"]] = (tree if below is None else branches[below]).add(label)
    return tree


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
