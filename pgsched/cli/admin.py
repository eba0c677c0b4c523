"""Commands for who runs the installation: the schema, rights, a copy's identity, who works."""

from __future__ import annotations

from typing import Annotated

import typer

from pgsched.cli.options import AsJson, Dsn, Schema, database, opened
from pgsched.cli.output import print_rows
from pgsched.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(migrate)
    app.command()(grant)
    app.command()(adopt)
    app.command()(workers)
    app.command()(leader)


def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an empty database and do nothing.")] = False,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
) -> None:
    """Bring the schema to this version, or make it. Safe to run from several places at once."""
    from pgsched import migrate as migrations  # (Alembic and SQLAlchemy are for this command alone)

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


def leader(
    action: Annotated[str | None, typer.Argument(help='"resign" asks the leader to give way.')] = None,
    dsn: Dsn = None,
    schema: Schema = "pgsched",
    as_json: AsJson = False,
) -> None:
    """Show who leads, by the lock that is held; or ask the leader to resign, so that the next one leads at once."""
    if action not in (None, "resign"):
        raise UsageError(f'leader: "{action}" is no action; the one there is is "resign"')
    with opened(dsn, schema) as db:
        if action == "resign":
            term = db(db.calls.ask_leader_to_resign())
            if term is None:
                raise UsageError("nobody leads")
            print(f"the leader of term {term} was asked to resign")
            return
        rows = db(db.calls.leader())
    columns = ("term", "name", "host", "pid", "began_at", "backend_pid", "role_name", "application_name")
    print_rows(rows, columns, as_json, "nobody leads")


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
