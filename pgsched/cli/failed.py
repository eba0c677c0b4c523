"""The command about jobs that have failed for good: what of, and let them run again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pgsched.cli.options import AsJson, Dsn, Schema, opened
from pgsched.cli.output import print_json, print_rows
from pgsched.errors import UsageError
from pgsched.failed import RetriedJobs, retrying

_GROUPS = "jobs", "task", "queue", "error_type", "error", "first_at", "last_at", "job_id"
_JOBS = "job_id", "task", "queue", "attempt", "finished_at", "error_type", "error"
_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(failed)


def failed(
    task: Annotated[str | None, typer.Option(help="Only jobs of this task.")] = None,
    error: Annotated[
        str | None, typer.Option(help="Only this type of error, or those with this in their text.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    since: Annotated[str | None, typer.Option(help="Ended then or later, for example 2030-01-31T09:00+01:00.")] = None,
    until: Annotated[str | None, typer.Option(help="Ended before then.")] = None,
    each: Annotated[bool, typer.Option("--each", help="List the jobs themselves, newest first.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Let them run again, oldest first.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --retry: say what would happen, and change nothing.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="How many: groups or jobs shown (else 50), jobs retried (else all).")
    ] = None,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show what has failed for good, grouped by task and error; with --retry let it run again.

    One that cannot run again is named with its reason and stops no other. The newest 10,000 failed jobs are counted.
    """
    if dry_run and not retry:
        raise UsageError("--dry-run goes with --retry: without it nothing is changed anyhow")
    if each and retry:
        raise UsageError("give --each or --retry, not both")
    such = {"task": task, "error": error, "queue": queue, "since": since, "until": until}
    with opened(dsn, schema) as db:
        if retry:
            steps = retrying(db.calls, such, limit, dry_run)
            try:
                call = next(steps)
                while True:
                    call = steps.send(db(call))
            except StopIteration as end:
                _print_report(end.value, dry_run, as_json)
            return
        most = 50 if limit is None else limit
        rows: list[dict[str, Any]] = db(
            db.calls.list_failed(such, most) if each else db.calls.failed_groups(such, most)
        )
    if not as_json:
        for row in rows:
            row["error"] = (row["error"] or "").partition("\n")[0][:120]
    print_rows(rows, _JOBS if each else _GROUPS, as_json, "no failed jobs")
    if not as_json and not each and rows and rows[0]["looked_at"] >= 10_000:
        print(f"(of the newest {rows[0]['looked_at']:,} failed jobs: older ones are not counted)")


def _print_report(report: RetriedJobs, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"retried": report.retried, "waiting": report.waiting, "refused": report.refused})
        return
    for job_id, why in list(report.refused.items())[:_SHOWN]:
        print(f"job {job_id} cannot: {why}")
    if len(report.refused) > _SHOWN:
        print(f"and {len(report.refused) - _SHOWN} more that cannot (--json names all)")
    again = "would run again" if dry_run else "run again"
    waiting = f"{len(report.waiting)} that had ended because of them wait"
    print(f"{len(report.retried)} jobs {again}, {waiting}, {len(report.refused)} cannot")
