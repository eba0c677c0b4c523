"""Which database is meant, and how a connection to it is made."""

from __future__ import annotations

import os
import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgsched.errors import ConnectError, PgschedError, PoolerError, UsageError

_WAYS = (
    "no database is named. Give one of: dsn= (or --dsn) with a libpq string or URL; the variable PGSCHED_DSN; libpq's own "
    'variables (PGHOST, PGDATABASE, PGSERVICE); or dsn="embedded" for a Postgres of your own on this machine'
)


def resolve(dsn: str | None) -> str:
    """The DSN in force: the one given, else PGSCHED_DSN, else libpq's own variables (then it is empty).

    SQLAlchemy's spelling (`postgresql+psycopg://`) is understood too. Raises `UsageError` when no way names a database
    or the text is no DSN.
    """
    dsn = dsn or os.environ.get("PGSCHED_DSN", "")
    if not dsn and not any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE")):
        raise UsageError(_WAYS)
    if dsn == "embedded":
        return dsn
    for driver in ("postgresql+psycopg://", "postgresql+psycopg2://", "postgresql+asyncpg://"):
        if dsn.startswith(driver):
            dsn = "postgresql://" + dsn.removeprefix(driver)
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # (What libpq quotes may be a part of the password.)
        reason = re.sub(r'"[^"]*"?', '"..."', str(error).strip())
        raise UsageError(f"the DSN cannot be read: {reason}") from None
    if not all(port.isdigit() for port in str(parts.get("port") or "5432").split(",") if port):
        raise UsageError("the DSN cannot be read: its port is no number; percent-encode / @ : and % in a password")
    return dsn


def connect(dsn: str, **options: Any) -> psycopg.Connection:
    """A connection, or `ConnectError` that says where nobody answered (never with the password).

    It prepares no statements by itself: it is for a few of them, and through a pooler they could not be found again.
    """
    options = {"connect_timeout": 10, "prepare_threshold": None} | options
    try:
        return psycopg.connect(dsn, **options)
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from error


def unreachable(dsn: str, error: Exception) -> PgschedError:
    """The error for a database that does not answer: `ConnectError`; `PoolerError` where a pooler refuses the DSN itself."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        parts = {}
    where = (
        " ".join(f"{k}={parts[k]}" for k in ("host", "port", "dbname", "user") if parts.get(k)) or "libpq's defaults"
    )
    if "unsupported startup parameter" in str(error):
        return PoolerError(
            f"the pooler at {where} takes no such parameter when a connection begins: {str(error).strip()}; remove it from "
            "the DSN (PGOPTIONS, the service file), and set it with ALTER ROLE ... SET"
        )
    return ConnectError(f"the database at {where} does not answer: {str(error).strip()}")
