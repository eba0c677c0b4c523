"""The house rules that a machine can check, so that nobody has to argue."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

import pgsched
import pgsched.calls
import pgsched.calls_of_schedules
import pgsched.cli
from pgsched.errors import BY_SQLSTATE
from pgsched.migrate import REVISIONS, SQL

PACKAGE = Path(pgsched.__file__).parent
TESTS = Path(__file__).parent.parent
PUBLIC_MODULES = ("pgsched", "pgsched.migrate", "pgsched.embedded", "pgsched.worker")
MODULES = sorted(PACKAGE.rglob("*.py"))
RULES = sorted(SQL.rglob("*.sql"))

NO_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "lib", "misc"}
MOST_LINES = 400
KEYWORDS = (
    "SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|CREATE|ALTER|DROP|TABLE|INDEX|VIEW|FUNCTION|INTO|VALUES|SET|JOIN|LEFT|ON|AND|OR|NOT|NULL"
    "|IS|IN|AS|WITH|ORDER|GROUP|BY|LIMIT|RETURNING|RETURN|RETURNS|BEGIN|END|IF|THEN|ELSE|LOOP|CASE|WHEN|GRANT|REVOKE|COMMENT"
)
OWNERS_ONLY = {"adopt", "grant_access"}
"""What calls.py calls and no level may: it is the schema's owner's."""


def test_every_module_says_what_it_is_for() -> None:
    assert MODULES
    assert [str(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_everything_public_has_a_docstring() -> None:
    found = {name: doc for module in PUBLIC_MODULES for name, doc in _docstrings(importlib.import_module(module))}
    assert len(found) > 60
    assert [name for name, doc in found.items() if not doc] == []


def _docstrings(module: Any) -> Iterator[tuple[str, str | None]]:
    """Each public class, function and method that the module offers, and its docstring."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        value = getattr(module, name)
        if not callable(value) or not getattr(value, "__module__", "").startswith("pgsched"):
            continue
        yield f"{module.__name__}.{name}", _own_doc(value)
        for member, of_class in vars(value).items() if inspect.isclass(value) else ():
            function = of_class.fget if isinstance(of_class, property) else getattr(of_class, "__func__", of_class)
            if inspect.isfunction(function) and not member.startswith("_"):
                yield f"{module.__name__}.{name}.{member}", function.__doc__


def _own_doc(value: Any) -> str | None:
    doc: str | None = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    written_by_dataclass = doc is not None and doc.startswith(f"{value.__name__}(")
    return None if written_by_dataclass else doc


def test_no_module_is_named_after_nothing() -> None:
    files = [*MODULES, *RULES, *TESTS.rglob("*.py"), *REVISIONS.glob("*.py")]
    assert [str(path) for path in files if NO_NAMES & {path.stem.lower(), path.parent.name.lower()}] == []


@pytest.mark.parametrize("path", [*MODULES, *RULES, *REVISIONS.glob("*.py")], ids=lambda path: "/".join(path.parts[-2:]))
def test_a_source_file_stays_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_sql_keywords_are_lower_case(path: Path) -> None:
    code = re.sub(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", "", path.read_text(), flags=re.DOTALL)
    assert re.findall(rf"\b(?:{KEYWORDS})\b.*", code) == []


def test_sqlstates_have_one_table(connection: psycopg.Connection[Any]) -> None:
    table = dict(connection.execute("select sqlstate, name from pgsched.errors()").fetchall())
    assert table == {code: error.__name__ for code, error in BY_SQLSTATE.items()}
    assert all(error.sqlstate == code and error.__name__ in pgsched.__all__ for code, error in BY_SQLSTATE.items())
    raised = {code for path in RULES if path.name != "errors.sql" for code in re.findall(r"'(PGS\w\w)'", path.read_text())}
    assert raised == table.keys()


def test_every_sqlstate_in_a_head_comment_is_in_the_table() -> None:
    named = {code for path in [*RULES, *MODULES] for code in re.findall(r"\bPGS\d\d\b", path.read_text())}
    assert named == BY_SQLSTATE.keys()


def test_each_level_is_granted_what_exists_and_all_that_python_calls(connection: psycopg.Connection[Any]) -> None:
    granted = connection.execute("select level, kind, name from pgsched.access_list()").fetchall()
    there = connection.execute(
        """
        select 'function', proname::text from pg_proc where pronamespace = 'pgsched'::regnamespace
        union select 'view', relname::text from pg_class where relnamespace = 'pgsched'::regnamespace and relkind = 'v'
        """
    ).fetchall()
    assert {level for level, _, _ in granted} == {"reader", "client", "worker"}
    assert [row for row in granted if row[1:] not in there] == []
    assert len({row[1:] for row in granted}) == len(granted)
    source = inspect.getsource(pgsched.calls) + inspect.getsource(pgsched.calls_of_schedules)
    called = {("function", name) for name in re.findall(r"[ (]@([a-z_]+)\(", source)}
    called |= {("view", name) for name in re.findall(r"(?:from|join) @([a-z_]+)\b(?!\()", source)}
    assert len(called) > 20
    assert called - {row[1:] for row in granted} == {("function", name) for name in OWNERS_ONLY}


def test_every_command_and_each_of_its_options_has_help() -> None:
    commands: dict[str, Any] = typer.main.get_command(pgsched.cli.app).commands  # type: ignore[attr-defined]
    assert commands.keys() >= {"migrate", "grant", "adopt", "worker", "enqueue", "jobs", "job", "prune", "queues", "workers"}
    assert [name for name, command in commands.items() if not command.help] == []
    without = [f"{name} {param.name}" for name, command in commands.items() for param in command.params if not param.help]
    assert without == []
