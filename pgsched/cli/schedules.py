"""Commands about schedules: what there is, what comes next, and what a person may do to one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pgsched.cli.options import AsJson, Dsn, Schema, opened
from pgsched.cli.output import cell, console, print_json, print_rows
from pgsched.cli.work import Target, load
from pgsched.errors import ScheduleError, UsageError
from pgsched.schedule import preview as previewed
from pgsched.schedules import cron_of, one_of, ticks_between

Name = Annotated[str, typer.Argument(help="The schedule's name.")]
Of = Annotated[str | None, typer.Option("--app", help="Its application, where several have one of this name.")]
Count = Annotated[int, typer.Option(help="How many ticks.", min=1, max=10_000)]
After = Annotated[
    str | None, typer.Option(help="The ticks after this time, for example 2030-01-31T09:00+01:00; else from now on.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Show schedules, and what a person may do to one: pause, run now, backfill.", invoke_without_command=True
    )
    group.callback()(schedules)
    for name, command in (
        ("list", list_),
        ("show", show),
        ("next", next_),
        ("preview", preview),
        ("pause", pause),
        ("resume", resume),
        ("run-now", run_now),
        ("backfill", backfill),
        ("apply", apply),
    ):
        group.command(name)(command)
    app.add_typer(group, name="schedules")


def schedules(
    context: typer.Context,
    of: Of = None,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show schedules, and what a person may do to one: pause, run now, backfill. Alone it lists them."""
    if context.invoked_subcommand is None:
        list_(of, dsn, schema, as_json)


def list_(of: Of = None, dsn: Dsn = None, schema: Schema = "pgsched", as_json: AsJson = False) -> None:
    """List the schedules: when each ticks next, on the clock of its zone and here, and what is wrong with it."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.schedules.all(of))
    if as_json:
        print_json(rows)
        return
    columns = (
        "app",
        "name",
        "rhythm",
        "next_in_its_zone",
        "next_utc",
        "last_tick_utc",
        "lateness",
        "paused",
        "problem",
    )
    print_rows([row | _for_people(row) for row in rows], columns, False, "no schedules")


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    local = row["next_local"]
    return {
        "next_in_its_zone": f"{local.replace('T', ' ')} {row['timezone']}" if local else row["timezone"],
        "next_utc": _utc(row["next_tick_at"]),
        "last_tick_utc": _utc(row["last_tick_at"]),
        "paused": "paused" if row["is_paused"] else None,
    }


def _utc(text: str | None) -> str | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def show(
    name: Name,
    of: Of = None,
    limit: Annotated[int, typer.Option(help="How many of its newest ticks.")] = 20,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show one schedule, and what became of its newest ticks."""
    with opened(dsn, schema) as db:
        row = one_of(db(db.calls.schedules.one(name, of)), name)
        ticks = db(db.calls.schedules.ticks(row["id"], limit))
    if as_json:
        print_json(row | {"ticks": ticks})
        return
    out = console()
    for field, value in row.items():
        if value not in (None, ""):
            out.print(f"[bold]{field:>15}[/bold]  ", end="")
            out.print(cell(value), markup=False)
    columns = ("tick_utc", "lateness", "outcome", "job_id", "workflow_id", "missed", "reason")
    print_rows([tick | {"tick_utc": _utc(tick["tick_at"])} for tick in ticks], columns, False, "it has not ticked yet")


def next_(
    name: Name,
    of: Of = None,
    count: Count = 10,
    after: After = None,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show the next ticks of a schedule: in its zone, in UTC, and what a change of clocks does to them."""
    with opened(dsn, schema) as db:
        row = one_of(db(db.calls.schedules.one(name, of)), name)
    _print_ticks(previewed(cron_of(row), row["timezone"], _instant("--after", after), count), as_json)


def preview(
    cron: Annotated[str, typer.Argument(help='A cron text, for example "0 9 * * mon-fri".')],
    timezone: Annotated[str, typer.Option(help="The IANA name of the zone in which it is read.")] = "UTC",
    count: Count = 10,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """Show when a cron text ticks, without any database."""
    _print_ticks(previewed(cron, timezone, _instant("--after", after), count), as_json)


def _print_ticks(rows: list[dict[str, Any]], as_json: bool) -> None:
    if not as_json:
        for row in rows:
            row["local"] = f"{row['local'][:19].replace('T', ' ')} {row['zone']}"
            row["utc"] = row["utc"][:19].replace("T", " ")
    print_rows(rows, ("local", "utc", "remark"), as_json, "it never ticks again")


def pause(name: Name, of: Of = None, dsn: Dsn = None, schema: Schema = "pgsched", as_json: AsJson = False) -> None:
    """Pause a schedule, also across deploys: none of its ticks is made until it is resumed."""
    with opened(dsn, schema) as db:
        changed = db(db.calls.schedules.pause(name, of))
    _say(name, changed, "is paused", "was paused already", as_json)


def resume(name: Name, of: Of = None, dsn: Dsn = None, schema: Schema = "pgsched", as_json: AsJson = False) -> None:
    """Let a paused schedule tick again, from now on. (`backfill` makes the ticks of the pause.)"""
    with opened(dsn, schema) as db:
        changed = db(db.calls.schedules.resume(name, of))
    _say(name, changed, "ticks again", "was not paused", as_json)


def _say(name: str, changed: bool, done: str, already: str, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "changed": changed})
    else:
        print(f'schedule "{name}" {done if changed else already}')


def run_now(name: Name, of: Of = None, dsn: Dsn = None, schema: Schema = "pgsched", as_json: AsJson = False) -> None:
    """Enqueue now what a tick of the schedule enqueues. Its next tick is not touched."""
    with opened(dsn, schema) as db:
        made = db(db.calls.schedules.run_now(name, of))
    if as_json:
        print_json(made)
    else:
        print(_made(made))


def backfill(
    name: Name,
    since: Annotated[str, typer.Option(help="From this time, for example 2030-01-31T09:00+01:00.")],
    until: Annotated[str, typer.Option(help="Up to this time.")],
    at_most: Annotated[int, typer.Option(help="More ticks than so many are refused (up to 10,000).")] = 100,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which ticks these are, and change nothing.")] = False,
    of: Of = None,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Make the ticks of a range of the past that were not made: each at most once, however often this is run."""
    with opened(dsn, schema) as db:
        row = one_of(db(db.calls.schedules.one(name, of)), name)
        ticks = ticks_between(row, _instant("--since", since), _instant("--until", until), at_most)
        if dry_run:
            made = [{"tick_at": tick.isoformat(), "outcome": "would be made unless it was"} for tick in ticks]
        else:
            made = db(db.calls.schedules.backfill(name, row["app"], ticks, at_most))
    if as_json:
        print_json(made)
        return
    for one in made:
        print(f"{_utc(one['tick_at'])} UTC: {_made(one)}")
    print(f"{len(made)} ticks")


def _made(made: dict[str, Any]) -> str:
    what = f"job {made['job_id']}" if made.get("job_id") else None
    what = f"workflow {made['workflow_id']}" if made.get("workflow_id") else what
    return ", ".join(str(part) for part in (what, made["outcome"], made.get("reason")) if part)


def apply(target: Target, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Bring the database to the schedules of an App's code, as a step of a deploy: adds, changes, removes."""
    app = load(target)
    if dsn is not None:
        app.use(dsn)
    try:
        declared = app.schedules.declare(apply=True)
    finally:
        app.close()
    if as_json:
        print_json({what: getattr(declared, what) for what in ("added", "changed", "removed")})
        return
    for what in ("added", "changed", "removed"):
        for name in getattr(declared, what):
            print(f'schedule "{name}" {what}')
    if not (declared.added or declared.changed or declared.removed):
        print("nothing has changed")


def _instant(option: str, text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f'{option} is "{text}": it is a time such as 2030-01-31T09:00+01:00') from error
    if instant.utcoffset() is None:
        raise ScheduleError(f"{option} is {text}, without an offset: write for example {text}+00:00 or {text}Z")
    return instant
