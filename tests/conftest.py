"""Fixtures for tests that need a database: each runs on every Postgres found (PGSCHED_TEST_PG=18,15 restricts it)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import psycopg
import pytest
from harness.server import Server, installations

TEMPLATE = "pgsched_template"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_server: does not depend on the server's version")
    config.addinivalue_line(
        "markers", "breaks_invariants: the test leaves the database in a state that it broke itself"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a module marked `one_server` run on the newest server only: what they see does not depend on its version."""
    first = f"pg{installations()[0].major}"
    others = [i for i in items if i.get_closest_marker("one_server") and f"[{first}" not in i.name and "[pg" in i.name]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]


@pytest.fixture(scope="session", params=installations(), ids=lambda binaries: f"pg{binaries.major}")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server without any pgsched in it; shared, so leave its settings and its other databases alone."""
    with Server(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of the template database that holds a fresh pgsched."""
    from pgsched.migrate import upgrade

    server.create_template(TEMPLATE, upgrade)
    return TEMPLATE


@pytest.fixture
def dsn(server: Server, template: str) -> Iterator[str]:
    """A fresh database with pgsched, of this test alone. After the test, `pgsched.check_invariants` must find nothing."""
    fresh = server.database(template)
    with psycopg.connect(fresh, autocommit=True) as adopting:
        adopting.execute("select pgsched.adopt()")  # a copy of the template is refused by workers otherwise
    yield fresh
    server.drop(fresh)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """An open connection to `dsn`, in autocommit mode."""
    with psycopg.connect(dsn, autocommit=True) as opened:
        yield opened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test whose database ends up in a state that must not be. Here, not in the fixture: an error is no failure."""
    fresh = getattr(item, "funcargs", {}).get("dsn")
    try:
        result = yield
    except BaseException as error:
        if fresh is not None and not isinstance(error, pytest.skip.Exception):
            for row in _broken_invariants(item, fresh):
                error.add_note(f"broken invariant: {row}")
        raise
    if fresh is not None and (broken := _broken_invariants(item, fresh)):
        pytest.fail("broken invariants after the test:\n" + "\n".join(map(str, broken)), pytrace=False)
    return result


def _broken_invariants(item: pytest.Item, dsn: str) -> list[tuple[Any, ...]]:
    if item.get_closest_marker("breaks_invariants") is not None:
        return []
    with psycopg.connect(dsn, autocommit=True) as checking:
        return checking.execute("select * from pgsched.check_invariants()").fetchall()
