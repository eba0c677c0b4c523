"""The options that commands share, and the connection they mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import psycopg
import typer

from pgsched import dsn as dsns
from pgsched.calls import Call, Calls
from pgsched.client import check_protocol
from pgsched.errors import UsageError
from pgsched.run import run

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn", help="libpq string or URL; else PGSCHED_DSN, else libpq's own variables.", show_default=False
    ),
]
Schema = Annotated[str, typer.Option("--schema", envvar="PGSCHED_SCHEMA", help="The schema that holds the queue.")]
MOST_ID = 2**63 - 1
JobId = Annotated[int, typer.Argument(help="The job's number.", max=MOST_ID)]
WorkflowId = Annotated[int, typer.Argument(help="The workflow's number.", max=MOST_ID)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def database(dsn: str | None) -> str:
    """The DSN that is meant. Raises `UsageError` where none is, or "embedded" (which only dev and demo start)."""
    found = dsns.resolve(dsn)
    if found == "embedded":
        raise UsageError(
            '"embedded" is for an App, for dev and for demo: name the database that a running one has printed'
        )
    return found


@contextmanager
def connection(dsn: str | None) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection for one command."""
    with dsns.connect(database(dsn), autocommit=True, application_name="pgsched command") as opened:
        yield opened


class Database:
    """The database of one command: `with opened(dsn, schema) as db: db(db.calls.queues())`."""

    def __init__(self, connected: psycopg.Connection[Any], schema: str) -> None:
        self._connection = connected
        self.calls = Calls(schema)

    def __call__(self, call: Call[Any]) -> Any:
        """Send a call."""
        return run(self._connection, call)


@contextmanager
def opened(dsn: str | None, schema: str) -> Iterator[Database]:
    """The database, once its schema is known to speak this version's protocol."""
    with connection(dsn) as connected:
        db = Database(connected, schema)
        check_protocol(schema, db(db.calls.protocol()))
        yield db
