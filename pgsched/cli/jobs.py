"""Commands about jobs: make one, list them, look at one, remove old ones; and the queues they are in."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pgsched.cli.options import MOST_ID, AsJson, Dsn, JobId, Schema, opened
from pgsched.cli.output import cell, console, print_json, print_rows
from pgsched.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(enqueue)
    app.command()(jobs)
    app.command()(job)
    app.command()(cancel)
    app.command()(queues)
    app.command()(prune)


def enqueue(
    task: Annotated[str, typer.Argument(help="The task's name, as its App registers it.")],
    queue: Annotated[str, typer.Option(help="The queue (an App's default queue is its name).")],
    args: Annotated[str, typer.Option(help="The arguments: a JSON object keyed by parameter name.")] = "{}",
    priority: Annotated[int, typer.Option(help="0 (first) to 9.")] = 5,
    run_at: Annotated[
        str | None, typer.Option(help="Not before this time, for example 2030-01-31T09:00+01:00.")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="Not before so long from now, for example '90 s'.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Not begun by then, the job ends as skipped.")] = None,
    max_attempts: Annotated[int, typer.Option(help="How many attempts may fail.")] = 1,
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may take.")] = None,
    metadata: Annotated[str | None, typer.Option(help="An object of the application's own, as JSON.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    unique_key: Annotated[
        str | None, typer.Option(help="While a job of the task with this key has not ended, answer that one.")
    ] = None,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Enqueue one job. The arguments are not checked against the task here: its worker does that."""
    try:
        arguments = json.loads(args, parse_constant=_no_constant)
    except ValueError as error:
        raise UsageError(f"--args is no JSON: {error}") from error
    try:
        own = None if metadata is None else json.dumps(json.loads(metadata, parse_constant=_no_constant))
    except ValueError as error:
        raise UsageError(f"--metadata is no JSON: {error}") from error
    with opened(dsn, schema) as db:
        job_id = db(
            db.calls.enqueue(
                task=task,
                args=json.dumps(arguments),
                queue=queue,
                priority=priority,
                run_at=run_at,
                delay=delay,
                expires_at=expires_at,
                max_attempts=max_attempts,
                timeout=timeout,
                tags=tag,
                metadata=own,
                unique_key=unique_key,
            )
        )
    if as_json:
        print_json({"id": job_id})
    else:
        print(f"job {job_id}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def jobs(
    state: Annotated[
        str | None, typer.Option(help="scheduled, retrying, held, ready, running, succeeded, failed, ...")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    before: Annotated[int | None, typer.Option(help="Only jobs below this id: the next page.", max=MOST_ID)] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """List the newest jobs."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.list_jobs(state, queue, task, before, limit))
    print_rows(
        rows,
        ("id", "task", "queue", "priority", "state", "attempt", "max_attempts", "run_at", "finished_at", "reason"),
        as_json,
        "no jobs",
    )


def job(
    job_id: JobId,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show one job: where it stands and why, its arguments (secret ones masked), its result, its failed attempts."""
    with opened(dsn, schema) as db:
        row = db(db.calls.job(job_id))
        attempts = db(db.calls.attempts(job_id)) if row else []
    if row is None:
        raise UsageError(f"there is no job {job_id} (never made, or pruned)")
    if as_json:
        print_json(row | {"attempts": attempts})
        return
    out = console()
    for name, value in row.items():
        if value is not None:
            out.print(f"[bold]{name:>14}[/bold]  ", end="")
            out.print(
                cell(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False),
                markup=False,
            )
    for attempt in attempts:
        out.print(f"\nattempt {attempt['attempt']} {attempt['state']} at {cell(attempt['ended_at'])}", markup=False)
        out.print(attempt["traceback"] or attempt["error"] or "", markup=False)


def cancel(
    job_ids: Annotated[list[int] | None, typer.Argument(help="The jobs' numbers.", max=MOST_ID)] = None,
    workflow: Annotated[
        int | None, typer.Option(help="All jobs of this workflow that have not ended.", max=MOST_ID)
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for whoever asks later.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Cancel jobs, all or none, and what waits for them and can no longer run.

    What waits ends at once; what runs is told to stop, and shown as cancelling until it ends.
    """
    if (workflow is None) == (not job_ids):
        raise UsageError("name the jobs to cancel, or a workflow with --workflow")
    with opened(dsn, schema) as db:
        if workflow is not None:
            changed = db(db.calls.cancel_workflow(workflow, reason, dry_run))
        else:
            changed = db(db.calls.cancel(job_ids or [], reason, dry_run))
    if as_json:
        print_json([{"id": job_id, "was": was} for job_id, was in changed.items()])
        return
    would = "would be told" if dry_run else "was told"
    ends = "would end" if dry_run else "has ended"
    for job_id in dict.fromkeys([*(job_ids or []), *changed]):
        was = changed.get(job_id)
        if was is None:
            print(f"job {job_id} has ended already, or is being cancelled")
        elif was in ("running", "cancelling"):
            print(f"job {job_id} ({was}) {would} to stop")
        else:
            print(f"job {job_id} ({was}) {ends} as cancelled")


def queues(dsn: Dsn = None, schema: Schema = "pgsched", as_json: AsJson = False) -> None:
    """Show what is in each queue and has not ended."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.queues())
    columns = (
        "queue",
        "ready",
        "running",
        "cancelling",
        "scheduled",
        "retrying",
        "blocked",
        "held",
        "next_run_at",
        "workers",
    )
    print_rows(rows, columns, as_json, "no jobs that have not ended")


def prune(
    older_than: Annotated[str, typer.Option(help="How long ago they must have ended, for example '30 days'.")],
    batch: Annotated[int, typer.Option(help="How many in one transaction.")] = 10_000,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Remove jobs that ended long ago, in batches, until none is left."""
    total = 0
    with opened(dsn, schema) as db:
        while (count := db(db.calls.prune(older_than, batch))) > 0:
            total += count
    if count < 0:
        raise UsageError("somebody else prunes at this moment")
    if as_json:
        print_json({"pruned": total})
    else:
        print(f"{total} jobs removed")
