"""Commands for who runs the installation: the schema, rights, a copy's identity, who works."""

from __future__ import annotations

from typing import Annotated

import typer

from pgsched import migrate as migrations
from pgsched.cli.options import AsJson, Dsn, Schema, database, opened
from pgsched.cli.output import print_rows


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(migrate)
    app.command()(grant)
    app.command()(adopt)
    app.command()(workers)


def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an empty database and do nothing.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
) -> None:
    """Bring the schema to this version, or make it. Safe to run from several places at once."""
    if sql:
        print(migrations.upgrade_sql(schema=schema))
        return
    revision = migrations.upgrade(database(dsn), schema=schema)
    print(f'schema "{schema}" is at revision {revision}')


def grant(
    role: Annotated[str, typer.Argument(help="An existing role.")],
    level: Annotated[
        str, typer.Option("--as", help="reader (looks), client (also enqueues) or worker (also runs jobs).")
    ],
    dsn: Dsn = None,
    schema: Schema = "pgsched",
) -> None:
    """Let a role use the queue. Only the schema's owner can."""
    with opened(dsn, schema) as db:
        db(db.calls.grant_access(role, level))
    print(f'role "{role}" is a {level} of schema "{schema}"')


def adopt(dsn: Dsn = None, schema: Schema = "pgsched") -> None:
    """Say that this database, a restored or upgraded copy, shall work. The original must no longer."""
    with opened(dsn, schema) as db:
        epoch = db(db.calls.adopt())
    print(f'schema "{schema}" belongs to this database now (epoch {epoch})')


def workers(
    everyone: Annotated[bool, typer.Option("--all", help="Those that stopped or were rescued, too.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show who works here: alive while a session of it holds its lock, silent where none does."""
    with opened(dsn, schema) as db:
        rows = db(db.calls.workers(everyone))
    columns = ("id", "name", "state", "running", "concurrency", "queues", "host", "pid", "version", "attached_at")
    print_rows(rows, columns, as_json, "no workers")
