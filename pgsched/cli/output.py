"""How commands print data: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """A console on standard output; wide enough for whole rows where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], as_json: bool, empty: str) -> None:
    """Rows as a table of these columns, or all of them as JSON."""
    rows = list(rows)
    if as_json:
        print_json(rows)
    elif not rows:
        print(empty)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(
                column.replace("_", " "), overflow="fold", justify="right" if _numeric(rows, column) else "left"
            )
        for row in rows:
            table.add_row(*(Text(cell(row.get(column))) for column in columns))
        console().print(table)


def cell(value: Any) -> str:
    """A value as people read it: times in the local zone to the second, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, str) and len(value) > 18 and value[4:5] == "-" and value[10:11] == "T":
        return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (dict, list)):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."
    return str(value)


def _numeric(rows: list[Mapping[str, Any]], column: str) -> bool:
    return all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
