"""Bringing the schema into a database, and keeping it up to date, by Alembic.

`sql/` is the one home of every rule: the present, as a fresh reading of it. What a database really gets is the text
that a revision froze (`alembic/frozen/<revision>/`), so that a later edit of `sql/` never changes what an old revision
did. A test holds the two equal.

The version table lives in pgsched's own schema and the revisions on a branch of their own, so nothing here meets an
application's migrations.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.pool
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from psycopg import sql

from pgsched.dsn import connect
from pgsched.errors import AccessError, SchemaError

_PACKAGE = Path(__file__).parent
_LOCK_TIMEOUT = "5s"
_TRIES = 24
_ONE_AT_A_TIME = threading.Lock()  # Alembic's `op` and `context` are the process's, not the thread's


def _home(packed: str, plain: str) -> Path:
    """A folder that the wheel carries inside the package and a checkout has at its top."""
    inside = _PACKAGE / packed
    return inside if inside.is_dir() else _PACKAGE.parent / plain


SQL = _home("_sql", "sql")
REVISIONS = _home("_alembic", "alembic")


def upgrade(dsn: str, *, schema: str = "pgsched") -> str:
    """Bring `schema` in the database at `dsn` to this version's newest revision; create it when it is missing.

    Several may call it at once: one works, the others wait and find nothing to do. All of it is one transaction. DDL that
    cannot get its lock within 5 s (a dump or a report holds it) gives way, so that nobody queues behind it, and tries
    again for about two minutes.

    Returns the revision that holds afterwards. Raises `SchemaError` when the database is at a revision that this
    version does not know, or one whose text was another one then (before its release), or when the locks could not be had;
    `ConnectError` when the database does not answer.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            with _ONE_AT_A_TIME, _engine(dsn).connect() as connection, connection.begin():
                command.upgrade(_config(schema, connection=connection), "pgsched@head")
                _check_text(connection, schema)
            return head()
        except sqlalchemy.exc.ProgrammingError as error:
            if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise AccessError(
                    f'migrating schema "{schema}": {error.orig.diag.message_primary}; whoever migrates owns the schema, and '
                    "needs the right CREATE on the database to make it"
                ) from error
            raise
        except sqlalchemy.exc.OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            if not tries_left:
                raise SchemaError(
                    f'migrating schema "{schema}": a table stayed locked by somebody else; find them with '
                    "pg_blocking_pids() and try again"
                ) from error
            time.sleep(0.2)
        except CommandError as error:
            raise SchemaError(
                f'schema "{schema}" is at a revision that this version of pgsched does not know ({error}); '
                "install the version it was migrated with, or a newer one"
            ) from error
    raise AssertionError("unreachable")


def upgrade_sql(*, schema: str = "pgsched") -> str:
    """The SQL that `upgrade` would run on an empty database, as one script for psql (`psql -1 -f`)."""
    out = io.StringIO()
    command.upgrade(_config(schema, output=out), "pgsched@head", sql=True)
    return out.getvalue()


def head() -> str:
    """The newest revision that this version carries."""
    return ScriptDirectory.from_config(_config("pgsched")).get_revision("pgsched@head").revision


def include_name_for(schema: str) -> Callable[[str | None, str, Mapping[str, str | None]], bool]:
    """A filter for Alembic's `context.configure(include_name=...)` that hides pgsched's schema from autogenerate.

    An application whose `env.py` sets `include_schemas=True` passes it, so that its own `alembic check` stays clean.
    """

    def include(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
        return (name if type_ == "schema" else parent_names.get("schema_name")) != schema

    return include


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """The filter of `include_name_for` for the default schema."""
    return include_name_for("pgsched")(name, type_, parent_names)


def install(revision: str) -> None:
    """Within a revision: run the text frozen for it, in the order schema, functions, views.

    Afterwards nothing of pgsched is executable by PUBLIC, and roles that were granted a level have what it adds.
    """
    frozen = REVISIONS / "frozen" / revision
    run("set local check_function_bodies = off")
    for text in read_sql(frozen):
        run(text)
    run(f"comment on table alembic_version is '{_text_of(revision)}'")
    run(
        "do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$"
    )
    run("select adopt() where not exists (select from installation)")
    run(
        "select grant_access(role_name, level) from access where exists (select from pg_roles where rolname = role_name)"
    )


def _text_of(revision: str) -> str:
    """Which text a revision has, as the comment of the version table says it."""
    digest = hashlib.sha256("".join(read_sql(REVISIONS / "frozen" / revision)).encode()).hexdigest()
    return f"The revision of this schema, as Alembic keeps it. Text of {revision}: {digest[:16]}"


def _check_text(connection: sqlalchemy.Connection, schema: str) -> None:
    """Refuse a schema whose newest revision was installed from another text: before its release a revision may change."""
    where = sql.Literal(f"{sql.Identifier(schema).as_string(None)}.alembic_version").as_string(None)
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    row = raw.execute(f"select obj_description({where}::regclass)").fetchone()
    if row is None or row[0] != _text_of(head()):
        raise SchemaError(
            f'schema "{schema}" was made by a version of pgsched from before the release of revision {head()}, which has another '
            f"text now; make it anew: drop schema {schema} cascade, then migrate (the demo and dev: choose another --data)"
        )


def forward_only() -> None:
    """The `downgrade` of every revision: the schema moves forward only, beside workers of the version before.

    Raises `SchemaError` that says so.
    """
    raise SchemaError(
        "pgsched's schema has no way back: the version before keeps working on the newer schema for one release, so "
        "go back with the package alone; to remove pgsched altogether, drop its schema (DROP SCHEMA pgsched CASCADE)"
    )


def run(text: str) -> None:
    """Within a revision: run SQL as it stands (a `%` or a `:name` in it means nothing), online or into a script."""
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(text.strip().rstrip(";") + ";\n")
    else:
        raw = op.get_bind().connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        raw.execute(text)


def read_sql(root: Path) -> Iterator[str]:
    """Every SQL text below `root`, in the order in which they can be run."""
    for part in ("schema", "functions", "views"):
        for path in sorted((root / part).glob("*.sql")):
            yield path.read_text(encoding="utf-8")


def prologue(schema: str) -> list[str]:
    """What a migration does first: wait for another one, make the schema, and pin the names to it."""
    name = sql.Identifier(schema).as_string(None)
    key, plain = (sql.Literal(text).as_string(None) for text in (f"pgsched.migrate.{schema}", schema))
    make = (
        f"begin if not exists (select from pg_namespace where nspname = {plain}) then create schema {name}; end if; end"
    )
    return [
        f"select pg_advisory_xact_lock(hashtextextended({key}, 0))",
        f"set local lock_timeout = '{_LOCK_TIMEOUT}'",
        "set local client_min_messages = warning",
        f"do {_dollar(make)}",
        f"set local search_path = {name}, pg_temp",
    ]


def _dollar(text: str) -> str:
    """A quoted text that no text in it can end (`create schema if not exists` asks for rights that it may not need)."""
    tag = "$do$"
    while tag in text:
        tag = f"${tag[1:-1]}o$"
    return f"{tag} {text} {tag}"


def build(dsn: str, *, schema: str = "pgsched") -> None:
    """Build the schema straight from `sql/`, without revisions: the other road, which tests hold equal to `upgrade`."""
    with connect(dsn) as connection, connection.transaction():
        for text in [*prologue(schema), "set local check_function_bodies = off", *read_sql(SQL)]:
            connection.execute(text)
        connection.execute(
            sql.SQL("revoke execute on all functions in schema {} from public").format(sql.Identifier(schema))
        )
        connection.execute("select adopt()")


def _engine(dsn: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: connect(dsn), poolclass=sqlalchemy.pool.NullPool
    )


def _config(schema: str, **attributes: Any) -> Config:
    config = Config(output_buffer=attributes.pop("output", None))
    config.set_main_option("script_location", str(REVISIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(attributes, schema=schema)
    return config
