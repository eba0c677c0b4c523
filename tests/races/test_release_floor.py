"""Where the passes of release() begin: the floor below which no event is, and none will ever be.

The numbers in brackets are the findings of the design's reviews (tests/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.graphs import release, release_all, release_some
from harness.protocol import Steps, child, enqueue, places

pytestmark = pytest.mark.one_server


@pytest.fixture
def steps(dsn: str) -> Iterator[Steps]:
    worker = Steps(dsn)
    yield worker
    worker.close()


@pytest.fixture
def other(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


def make_gone_events(connection: Any) -> int:
    """So many events that are gone that it takes time to walk over them; the last one's id."""
    connection.execute("insert into pgsched.release_check (look_at_id) select 1 from generate_series(1, 200000)")
    [last] = connection.execute("select max(id) from pgsched.release_check").fetchone()
    connection.execute("delete from pgsched.release_check where look_at_id = 1")
    return int(last)


def floor(connection: Any) -> int:
    row = connection.execute("select first_id from pgsched.release_floor").fetchone()
    return 0 if row is None else int(row[0])


def test_a_pass_begins_behind_events_that_are_gone_however_old_a_snapshot_is(connection: Any, other: Any, steps: Steps) -> None:
    """(R35)"""
    other.execute("begin isolation level repeatable read")
    other.execute("select from pgsched.job limit 1")  # (now none of them can be removed)
    [p] = enqueue(connection)
    last = make_gone_events(connection)
    release(connection)
    assert floor(connection) == last + 1
    c = child(connection, p)
    steps.finish(*steps.claim())
    release_all(connection)
    assert places(connection)[c] == "ready"
    other.execute("commit")


def test_an_event_that_commits_late_with_a_low_number_is_not_below_the_floor(connection: Any, other: Any, steps: Steps) -> None:
    """(R35)"""
    [p] = enqueue(connection)
    steps.finish(*steps.claim())
    other.execute("begin")
    c = child(other, p)
    last = make_gone_events(connection)
    release_some(connection)
    assert floor(connection) <= 1
    other.execute("commit")
    release_all(connection)
    assert places(connection)[c] == "ready"
    release(connection)
    make_gone_events(connection)
    release_some(connection)
    assert floor(connection) > last


def test_an_event_whose_transaction_is_prepared_meanwhile_is_not_below_the_floor(connection: Any, other: Any, steps: Steps) -> None:
    """
    1  a child of a job that has ended is enqueued and not committed: its event has a low number
    2  the releaser notes who may have drawn one
    3  that transaction is prepared for a commit in two phases: its locks are there under another name
    4  the releaser must not take it for ended
    """
    [p] = enqueue(connection)
    steps.finish(*steps.claim())
    other.execute("begin")
    c = child(other, p)
    make_gone_events(connection)
    release(connection)
    other.execute("prepare transaction 'late'")
    release_some(connection)
    assert floor(connection) <= 1
    other.execute("commit prepared 'late'")
    release_all(connection)
    assert places(connection)[c] == "ready"


@pytest.mark.parametrize("by", ["a writer", "an event"])
def test_a_floor_that_cannot_rise_is_not_written_again(connection: Any, other: Any, by: str) -> None:
    """(As an old snapshot keeps each of its versions: who reads it would walk over them, as over the events.)"""
    [p] = enqueue(connection)
    other.execute("begin")
    child(other, p)
    if by == "an event":
        other.execute("commit")
        connection.execute("insert into pgsched.release_check (look_at_id) values (%s)", (p,))
    connection.execute("select pgsched.raise_floor()")
    first = connection.execute("select ctid::text, * from pgsched.release_floor").fetchone()
    connection.execute("select pgsched.raise_floor()")
    assert connection.execute("select ctid::text, * from pgsched.release_floor").fetchone() == first
    other.execute("rollback")


@pytest.mark.parametrize("until", [None, 100], ids=["it stands", "it is on its way up"])
def test_where_numbers_begin_anew_no_event_is_lost_below_an_old_floor(connection: Any, steps: Steps, until: int | None) -> None:
    """
    1  the floor was raised by what this server has taken over, and the sequence was not taken over
    2  releases look at events that have low numbers
    3  an event is left just below the old floor, when the numbers come to that
    """
    [p] = enqueue(connection)
    steps.finish(*steps.claim())
    connection.execute("select setval('pgsched.release_check_id_seq', 20)")
    connection.execute("insert into pgsched.release_floor values (true, %s, %s, '{}')", (1 if until else 101, until))
    release(connection)
    connection.execute("select setval('pgsched.release_check_id_seq', 98)")
    c = child(connection, p)
    if until:
        connection.execute("update pgsched.release_floor set first_id = until_id + 1, until_id = null")  # (as the next slow pass does)
    connection.execute("select setval('pgsched.release_check_id_seq', 120)")
    release_all(connection)
    assert places(connection)[c] == "ready"
