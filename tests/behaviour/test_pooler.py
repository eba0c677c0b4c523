"""What works through a pooler, and what is refused there: a real PgBouncer in each of its modes, before a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from harness import apps
from harness.pooler import NoPoolerError, Pooler
from harness.running import ENDED, ended, make_trace, supervised, wait_until, work_until, working
from harness.server import Server
from psycopg.conninfo import make_conninfo
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import pgsched
from pgsched import migrate
from pgsched.leader import Leader
from pgsched.lease import LeaseTimes
from pgsched.pooler import own_backend
from pgsched.worker import ExitCode, Settings, Worker

HERE = Path(__file__).parents[1]
SHORT = LeaseTimes(timedelta(seconds=3), timedelta(seconds=5))
REFUSED = "changes its backend between transactions"

pytestmark = pytest.mark.one_server

Through = Callable[..., Pooler]


@pytest.fixture
def through(server: Server) -> Iterator[Through]:
    """A pooler in front of the server: `through("transaction", size=1).dsn(dsn)`."""
    with contextlib.ExitStack() as poolers:

        def make(mode: str, **settings: Any) -> Pooler:
            try:
                return poolers.enter_context(Pooler(server, mode, **settings))
            except NoPoolerError as error:
                print(f"skipped: {error}")
                pytest.skip(str(error))

        yield make


def run_command(dsn: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of pgsched, to its end."""
    environment = os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    words = [sys.executable, "-m", "pgsched", *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def work(dsn: str) -> None:
    """Run a worker; returns only when it is refused."""
    apps.app.use(dsn)
    try:
        asyncio.run(asyncio.wait_for(Worker(apps.app, Settings(lease=SHORT, lead=False)).run(), 30))
    finally:
        apps.app.close()


def stand(dsn: str) -> None:
    """Stand for leader; returns only when it is refused."""
    asyncio.run(asyncio.wait_for(Leader(dsn, name="poor").run(asyncio.Event()), 30))


INHERITED = """
select name, setting from pg_settings where source = 'session' and name not in ('application_name', 'client_encoding')
union all select name, current_setting(name, true) from unnest(array['pgsched.session', 'pgsched.term']) name where current_setting(name, true) <> ''
union all select 'prepared', name from pg_prepared_statements
"""
IDLE = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database() and backend_type = 'client backend'"


def left_behind(connection: psycopg.Connection[Any], pooler: Pooler, dsn: str) -> tuple[Any, ...]:
    """Locks that somebody holds, and what newcomers through the pooler inherit from whoever had their backends before."""
    locks = connection.execute("select pid, classid, objid, mode from pg_locks where locktype = 'advisory'").fetchall()
    pooler.switch("session")  # (so that each newcomer keeps the backend that it gets, until every idle one was looked at)
    with contextlib.ExitStack() as held:
        found = set()
        for _ in range(connection.execute(IDLE).fetchone()[0]):  # type: ignore[index]
            newcomer = held.enter_context(contextlib.closing(psycopg.connect(pooler.dsn(dsn), autocommit=True, prepare_threshold=None)))
            found.update(newcomer.execute(INHERITED).fetchall())
    return locks, found


# ---- What the review saw


def test_on_an_idle_pool_a_clients_own_pid_never_changes_and_a_session_lock_is_everybodys(dsn: str, through: Through) -> None:
    """R9: why the pid of one connection proves nothing, and why it matters."""
    pooled = through("transaction").dsn(dsn)
    with psycopg.connect(pooled, autocommit=True) as a, psycopg.connect(pooled, autocommit=True) as b:
        assert len({a.execute("select pg_backend_pid()").fetchone() for _ in range(20)}) == 1
        assert [c.execute("select pg_try_advisory_lock(1)").fetchone() for c in (a, b)] == [(True,), (True,)]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_parameter_that_the_pooler_refuses_is_named_and_not_tried_for_ever(mode: str, dsn: str, through: Through) -> None:
    """R41: "unsupported startup parameter: options"; ours send none."""
    pooled = make_conninfo(through(mode).dsn(dsn), options="-c work_mem=8MB")
    with pytest.raises(pgsched.PoolerError, match=r"(?s)unsupported startup parameter.*remove it from the DSN"):
        work(pooled)
    with pytest.raises(pgsched.PoolerError, match="unsupported startup parameter"):
        stand(pooled)


# ---- A worker and a leader are refused


@pytest.mark.parametrize("size", [20, 1])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_worker_and_a_leader_are_refused_and_leave_nothing_on_the_pooled_backends(
    mode: str, size: int, dsn: str, connection: Any, through: Through
) -> None:
    pooler = through(mode, size=size)
    pooled = pooler.dsn(dsn)
    with pytest.raises(pgsched.PoolerError, match=f"{REFUSED}.*a worker needs a session of its own: use the direct port"):
        work(pooled)
    with pytest.raises(pgsched.PoolerError, match=f"{REFUSED}.*a leader needs"):
        stand(pooled)
    assert left_behind(connection, pooler, dsn) == ([], set())
    assert connection.execute("select (select count(*) from pgsched.worker), (select count(*) from pgsched.leader_term)").fetchone() == (0, 0)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_the_commands_end_with_the_message_and_no_traceback(mode: str, dsn: str, connection: Any, through: Through) -> None:
    pooler = through(mode)
    pooled = pooler.dsn(dsn)
    for command in (["worker", "harness.apps:app", "--processes", "2"], ["scheduler"]):
        ran = run_command(pooled, *command)
        assert ran.returncode == ExitCode.ERROR
        assert f"pgsched: this connection {REFUSED}" in ran.stderr
        assert "Traceback" not in ran.stderr
    assert left_behind(connection, pooler, dsn) == ([], set())


@pytest.mark.parametrize("settings", [{}, {"server_round_robin": 1}], ids=["last in, first out", "round robin"])
def test_a_busy_pool_in_transaction_mode_is_found_out_although_backends_are_met_again_by_chance(
    settings: dict[str, int], dsn: str, through: Through
) -> None:
    pooled = through("transaction", size=3, **settings).dsn(dsn)
    over = threading.Event()

    def others() -> None:
        with psycopg.connect(pooled, autocommit=True) as busy:
            while not over.wait(0.002):
                busy.execute("select pg_sleep(0.001)", prepare=False)

    async def look() -> None:
        connect = partial(psycopg.AsyncConnection.connect, pooled, autocommit=True)
        for _ in range(20):
            async with await connect() as one:
                with pytest.raises(pgsched.PoolerError):
                    await own_backend(one, connect, "a worker", 5.0)

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(others) for _ in range(4)]
        try:
            asyncio.run(look())
        finally:
            over.set()
    assert [other.result() for other in running] == [None] * 4


def test_a_quiet_pool_in_transaction_mode_on_which_each_meets_its_own_backend_is_found_out(dsn: str, through: Through) -> None:
    """PgBouncer gives what was last given back. Others that came and went have left the backends in such an order."""
    pooled = through("transaction").dsn(dsn)
    connect = partial(psycopg.AsyncConnection.connect, pooled, autocommit=True)

    async def after_others() -> Any:
        async with await connect() as first, await connect() as second:
            for other in (first, second):
                await other.execute("begin")
            for other in (first, second):
                await other.execute("rollback")
        return await connect()

    async def look() -> None:
        async with await connect() as one:
            with pytest.raises(pgsched.PoolerError):
                await own_backend(one, after_others, "a worker", 5.0)

    asyncio.run(look())


def test_without_a_pooler_two_connections_are_made_at_the_start_and_one_where_it_is_known(dsn: str) -> None:
    made: list[Any] = []

    async def connect() -> Any:
        made.append(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
        return made[-1]

    async def look() -> None:
        one = await connect()
        pid = (await (await one.execute("select pg_backend_pid()")).fetchone())[0]
        assert await own_backend(one, connect, "a worker", 5.0) == pid
        assert len(made) == 2
        assert made[1].closed
        assert await own_backend(one, connect, "a worker", 5.0, known=True) == pid
        assert len(made) == 2
        await one.close()

    asyncio.run(look())


def test_a_connection_that_breaks_while_it_is_looked_at_is_a_broken_connection(dsn: str, connection: Any, through: Through) -> None:
    for address in (dsn, through("session").dsn(dsn)):

        async def look(address: str = address) -> None:
            connect = partial(psycopg.AsyncConnection.connect, address, autocommit=True)
            one = await connect()

            async def breaks() -> Any:
                other = await connect()
                connection.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()")
                return other

            with pytest.raises((psycopg.OperationalError, pgsched.ConnectError)):
                await own_backend(one, breaks, "a worker", 5.0)
            await one.close()

        asyncio.run(look())


# ---- Session mode


def test_in_session_mode_a_worker_works_and_a_leader_leads_and_what_they_had_set_goes_with_them(
    dsn: str, connection: Any, through: Through
) -> None:
    pooler = through("session")
    pooled = pooler.dsn(dsn)
    make_trace(dsn)
    apps.app.use(pooled)
    first = apps.app.enqueue_many(apps.noop.bind(i) for i in range(200))
    later = apps.echo.using(delay=timedelta(seconds=0.2)).enqueue("later")
    wait = f"{ended(later.id)} and {ENDED} and exists (select from pgsched.leader)"
    assert work_until(apps.app, pooled, wait, lead=True) is ExitCode.OK
    assert connection.execute("select distinct state, attempt from pgsched.jobs").fetchall() == [("succeeded", 1)]
    assert len(first) == 200
    assert connection.execute("select state from pgsched.workers").fetchall() == [("stopped",)]
    wait_until(dsn, "not exists (select from pg_locks where locktype = 'advisory')")
    assert left_behind(connection, pooler, dsn) == ([], set())


def test_in_session_mode_the_jobs_of_a_killed_worker_run_elsewhere(dsn: str, connection: Any, through: Through) -> None:
    pooled = through("session", size=30).dsn(dsn)
    make_trace(dsn)
    apps.app.use(pooled)
    job = apps.sleeps.enqueue(1.0)
    apps.app.close()
    with supervised(pooled, "--lease", "3", "--kill", "5") as parent:
        # Killed with its supervisor: nobody certifies it, and only the lock that the pooler gives back tells that it is dead.
        wait_until(dsn, "exists (select from trace where what = 'began')")
        os.kill(parent.process.pid, signal.SIGKILL)
        parent.process.wait()
    with supervised(pooled, "--lease", "3", "--kill", "5") as next_parent:
        wait_until(dsn, ended(job.id))
        wait_until(dsn, "(select count(*) from trace where what = 'began') = 2")
        os.kill(next_parent.worker(), signal.SIGKILL)
        wait_until(dsn, "(select count(*) from pgsched.workers where state = 'alive') = 1")
        again = apps.noop
        apps.app.use(pooled)
        last = again.enqueue(1)
        apps.app.close()
        wait_until(dsn, ended(last.id))
        assert next_parent.stop() == 0
    assert connection.execute("select distinct state from pgsched.jobs").fetchall() == [("succeeded",)]


def test_in_session_mode_a_pool_of_one_says_that_there_are_too_few_sessions(dsn: str, through: Through, caplog: Any) -> None:
    pooled = through("session", size=1).dsn(dsn)
    over = threading.Event()
    with working(apps.app, pooled, lease=SHORT) as state:
        for _ in range(300):
            if over.wait(0.05) or "no second session" in caplog.text:
                break
        assert "a worker needs four of its own" in caplog.text
        assert not state.over.is_set(), "it goes on trying: somebody may make room"


# ---- A pooler that changes its mode under a worker


def test_a_worker_whose_pooler_begins_to_hand_backends_around_ends_and_says_why(
    dsn: str, connection: Any, through: Through, caplog: Any
) -> None:
    pooler = through("session")
    make_trace(dsn)
    with working(apps.app, pooler.dsn(dsn), lease=SHORT, lead=False) as state:
        apps.noop.enqueue(1)
        wait_until(dsn, ENDED)
        pooler.switch("transaction")
        assert state.over.wait(30)
    assert state.code is ExitCode.ERROR
    assert re.search(f"this connection {REFUSED}", caplog.text)
    # What it had locked on the backends goes with the silence that it had allowed itself.
    wait_until(dsn, "not exists (select from pg_locks where locktype = 'advisory')")
    wait_until(dsn, "not exists (select from pgsched.workers where state = 'alive')")


def test_a_new_session_of_a_worker_is_refused_where_the_pooler_has_changed_its_mode(
    dsn: str, connection: Any, through: Through, caplog: Any
) -> None:
    pooler = through("session")
    with working(apps.app, pooler.dsn(dsn), lead=False) as state:
        # (All that it opens is open: one that is switched amid its opening has its lock until it was silent long enough.)
        wait_until(dsn, "(select count(*) from pg_locks where locktype = 'advisory') = 3")
        pooler.switch("transaction")
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched %'")
        assert state.over.wait(30)
    assert state.code is ExitCode.ERROR
    assert REFUSED in caplog.text
    assert connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)


def test_a_leader_whose_pooler_begins_to_hand_backends_around_is_refused(dsn: str, connection: Any, through: Through) -> None:
    pooler = through("session")
    with ThreadPoolExecutor(1) as threads:
        standing = threads.submit(stand, pooler.dsn(dsn))
        wait_until(dsn, "exists (select from pgsched.leader)")
        pooler.switch("transaction")
        connection.execute("select pg_terminate_backend(backend_pid) from pgsched.leader")
        with pytest.raises(pgsched.PoolerError, match="a leader needs"):
            standing.result(30)
    assert connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)


# ---- Enqueueing and looking


def enqueue_sync(dsn: str, start: int, n: int) -> list[int]:
    app, send = shop(dsn)
    try:
        with ThreadPoolExecutor(6) as threads:
            return [job.id for job in threads.map(send.enqueue, range(start, start + n))]
    finally:
        app.close()


def enqueue_async(dsn: str, start: int, n: int) -> list[int]:
    async def main() -> list[int]:
        app, send = shop(dsn)
        jobs = await asyncio.gather(*(send.aenqueue(i) for i in range(start, start + n)))
        seen = [await job.ainfo() for job in jobs[:20]]
        assert {info.state for info in seen} == {"ready"}
        await app.aclose()
        return [job.id for job in jobs]

    return asyncio.run(main())


def enqueue_sqlalchemy(dsn: str, start: int, n: int) -> list[int]:
    _, send = shop("embedded")  # (never opened: all goes through the engine)
    connect = partial(psycopg.connect, dsn, prepare_threshold=None)
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, pool_size=4)

    def one(i: int) -> int:
        with Session(engine) as session, session.begin():
            return send.using(connection=session).enqueue(i).id

    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(one, range(start, start + n)))
    engine.dispose()
    return ids


def enqueue_sqlalchemy_async(dsn: str, start: int, n: int) -> list[int]:
    async def main() -> list[int]:
        _, send = shop("embedded")
        connect = partial(psycopg.AsyncConnection.connect, dsn, prepare_threshold=None)
        engine = create_async_engine("postgresql+psycopg://", async_creator=connect, pool_size=4)
        ids = []
        for i in range(start, start + n):
            async with AsyncSession(engine) as session, session.begin():
                ids.append((await send.using(connection=session).aenqueue(i)).id)
        await engine.dispose()
        return ids

    return asyncio.run(main())


def shop(dsn: str) -> tuple[pgsched.App, Any]:
    app = pgsched.App("shop", dsn=dsn)

    @app.task
    def send(i: int) -> None: ...

    return app, send


@pytest.mark.parametrize(("mode", "size"), [("session", 30), ("transaction", 3), ("transaction", 1)])
def test_jobs_are_enqueued_once_each_from_every_way_at_once(
    mode: str, size: int, dsn: str, connection: Any, through: Through
) -> None:
    pooler = through(mode, size=size)
    pooled = pooler.dsn(dsn)
    ways = [enqueue_sync, enqueue_async, enqueue_sqlalchemy, enqueue_sqlalchemy_async]
    each = 600
    with ThreadPoolExecutor(len(ways)) as threads:
        made = list(threads.map(lambda way: way[1](pooled, way[0] * each, each), enumerate(ways)))
    ids = [job_id for part in made for job_id in part]
    rows = connection.execute("select id, (args ->> 'i')::int from pgsched.jobs").fetchall()
    assert sorted(i for _, i in rows) == list(range(len(ways) * each))
    assert dict(rows) == dict(zip(ids, range(len(ids)), strict=True))
    assert left_behind(connection, pooler, dsn) == ([], set())


def test_in_statement_mode_single_calls_work(dsn: str, connection: Any, through: Through) -> None:
    app, send = shop(through("statement", size=3).dsn(dsn))
    with ThreadPoolExecutor(4) as threads:
        jobs = list(threads.map(send.enqueue, range(200)))
    assert len(app.enqueue_many(send.bind(i) for i in range(200))) == 200
    assert {job.info().state for job in jobs[:20]} == {"ready"}
    app.close()
    assert connection.execute("select count(*) from pgsched.ready").fetchone() == (400,)


def test_without_the_pools_care_prepared_statements_break_in_transaction_mode(dsn: str, through: Through) -> None:
    """Why the client prepares nothing there (before PgBouncer 1.21)."""
    pooled = through("transaction", size=2).dsn(dsn)
    prepares = partial(psycopg.connect, pooled, autocommit=True, prepare_threshold=0)
    with prepares() as a, prepares() as b, pytest.raises(psycopg.errors.DuplicatePreparedStatement):
        a.execute("select 1")
        b.execute("select 1")


def test_commands_that_look_and_migrations_work_in_transaction_mode(server: Server, dsn: str, through: Through) -> None:
    pooler = through("transaction", size=2)
    empty = server.database()
    try:
        assert migrate.upgrade(pooler.dsn(empty)) == migrate.head()
        app, send = shop(pooler.dsn(empty))
        job = send.enqueue(1)
        app.close()
        commands = (["job", str(job.id)], ["jobs"], ["queues"], ["workers"], ["leader"], ["prune", "--older-than", "1 day"])
        for command in commands:
            ran = run_command(pooler.dsn(empty), *command)
            assert ran.returncode == 0, ran.stderr
    finally:
        pooler.stop()
        server.drop(empty)
