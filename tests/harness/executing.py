"""The App of the tests of executors. Executor processes import it as `harness.executing`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pgsched
from harness.apps import record

app = pgsched.App("executing")
SECOND = timedelta(seconds=1)
quick = pgsched.Exponential(max_attempts=3, first=timedelta(milliseconds=10))

# ---- Where it runs, and what comes back.


@app.task(executor="process")
def in_process(value: Any) -> list[Any]:
    job = pgsched.current_job()
    return [value, os.getpid(), job.task, job.attempt, threading.current_thread() is threading.main_thread()]


@app.task
def by_default() -> int:
    return os.getpid()


@app.task(executor="process", retry=quick)
def fails_in_process(message: str) -> None:
    raise LookupError(message)


@app.task(executor="process")
def noop_in_process(i: int = 0) -> None:
    pass


@app.task
def noop_in_thread(i: int = 0) -> None:
    pass


@app.task
async def noop_on_loop(i: int = 0) -> None:
    pass


# ---- What is stopped: a second of patience, then the order; each leaves a trace when it begins and when it goes on regardless.


def begins() -> None:
    record(f"began {os.getpid()}", pgsched.current_job().id)


def sleep(seconds: float = 60) -> None:
    begins()
    time.sleep(seconds)


def spin(seconds: float = 60) -> None:
    begins()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def hold_the_gil(seconds: float = 60) -> None:
    begins()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(itertools.repeat(1, 1_000_000_000 if seconds > 1 else 1_000))  # (many seconds in one call: no signal gets through)


def ignore(seconds: float = 60) -> None:
    """It does all it can to live on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begins()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.05)
        except BaseException:
            continue


def swallow(seconds: float = 60) -> str:
    begins()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.05)
        except pgsched.JobStopped:
            return "cleaned up"
    return "never told"


def with_children(seconds: float = 60) -> None:
    """An ordinary child, one in a session of its own, and a daemon without our variables."""
    command = [sys.executable, "-c", f"import time; time.sleep({seconds})"]
    pids = [subprocess.Popen(command).pid, subprocess.Popen(command, start_new_session=True).pid]
    daemon = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], env={}, start_new_session=True, stdout=-3, stderr=-3).pid)"
    found = subprocess.run([sys.executable, "-c", daemon, *command], capture_output=True, text=True, check=True)
    for pid in [*pids, int(found.stdout)]:
        record(f"child {pid}", pgsched.current_job().id)
    ignore(seconds)


def asks(seconds: float = 60) -> None:
    begins()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
        pgsched.current_job().raise_if_stopping()


WAYS: dict[str, Callable[..., Any]] = {
    "sleep": sleep, "spin": spin, "hold_the_gil": hold_the_gil, "ignore": ignore, "swallow": swallow,
    "with_children": with_children, "asks": asks,
}  # fmt: skip


@app.task(executor="process")
def stubborn(way: str, seconds: float = 60) -> Any:
    return WAYS[way](seconds)


@app.task(executor="process", timeout=SECOND, retry=pgsched.Exponential(max_attempts=2, first=timedelta(0)))
def stubborn_in_time(way: str) -> Any:
    return WAYS[way]()


@app.task
def in_thread(way: str, seconds: float = 60) -> Any:
    return WAYS[way](seconds)


@app.task(timeout=SECOND)
def in_thread_in_time(way: str, seconds: float = 60) -> Any:
    return WAYS[way](seconds)


@app.task(retry=quick, timeout=SECOND)
async def on_loop_in_time(seconds: float = 60) -> None:
    await asyncio.to_thread(begins)
    await asyncio.sleep(seconds)


@app.task
async def on_loop(seconds: float = 60) -> None:
    await asyncio.to_thread(begins)
    await asyncio.sleep(seconds)


# ---- What a handler should not do.


@app.task(executor="process")
def misbehaves(how: str) -> Any:
    if how == "exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "forks" and os.fork() == 0:
        return "the copy"
    if how == "threads":
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if how == "prints":
        for _ in range(100):
            print("x" * 2**20)
    if how == "unpicklable":
        raise Unpicklable
    if how == "no JSON":
        return object()
    return how


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __reduce__(self) -> Any:
        raise TypeError("no")


@app.task(executor="process")
def large(megabytes: int) -> str:
    return "x" * (megabytes * 2**20)


@app.task(executor="process")
def takes(text: str) -> int:
    return len(text)


def _hidden() -> Any:
    @app.task(name="hidden", executor="process")
    def hidden() -> None:
        pass

    return hidden


hidden = _hidden()  # (its function's qualified name leads nowhere)


@app.task(executor="process", output="keep")
def prints_and_fails(what: str, times: int = 1) -> None:
    subprocess.run(["echo", "a child"], check=True)
    for _ in range(times):
        print(what)
    raise ValueError("after that")


@app.task(executor="process", output="discard")
def prints_into_nothing(megabytes: int) -> str:
    for _ in range(megabytes):
        print("x" * 2**20)
    return "done"


# ---- Transactions. (The table `effect` is the tests'.)


@app.task(transactional=True, retry=quick)
def writes(i: int, then: str = "") -> int:
    job = pgsched.current_job()
    job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))
    misuse(job, then)
    return i


@app.task(transactional=True, retry=quick, executor="process")
def writes_in_process(i: int, then: str = "") -> int:
    return writes(i, then)


@app.task(transactional=True, retry=quick)
async def writes_on_loop(i: int, then: str = "") -> int:
    job = pgsched.current_job()
    await job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))
    if then == "raise":
        raise ValueError("no")
    if then == "commit":
        await job.connection.commit()
    if then == "close":
        await job.connection.close()
    if then == "terminate":
        await asyncio.to_thread(terminate, job)
        await job.connection.execute("select 1")
    if then == "sleep":
        await asyncio.to_thread(begins)
        await asyncio.sleep(60)
    return i


def misuse(job: pgsched.JobContext, then: str) -> None:
    connection = job.connection
    if then == "raise":
        raise ValueError("no")
    if then in ("commit", "rollback", "close"):
        getattr(connection, then)()
    if then.startswith("sql "):
        connection.execute(then.removeprefix("sql "))
    if then == "swallow":
        with_error(connection)
    if then == "savepoint":
        with_savepoint(connection)
    if then == "terminate":
        terminate(job)
        connection.execute("select 1")
    if then == "sleep":
        begins()
        connection.execute("select pg_sleep(60)")
    if then == "exit":
        os._exit(3)


def with_error(connection: Any) -> None:
    try:
        connection.execute("select 1 / 0")
    except Exception:
        return


def with_savepoint(connection: Any) -> None:
    try:
        with connection.transaction():
            connection.execute("insert into effect (i, job_id) values (-1, -1)")
            raise KeyError
    except KeyError:
        return


def terminate(job: pgsched.JobContext) -> None:
    """End the job's own connection, the first time."""
    if job.lost_attempts == 0:
        import psycopg

        with psycopg.connect(os.environ["PGSCHED_DSN"], autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s)", (job.connection.info.backend_pid,))


@app.task(transactional=True, retry=quick, timeout=timedelta(seconds=1))
async def writes_slowly(i: int) -> int:
    job = pgsched.current_job()
    await asyncio.sleep(0.4)
    await job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))
    return job.lost_attempts


@app.task(transactional=True)
def writes_with_orm(i: int) -> int:
    from sqlalchemy import text

    job = pgsched.current_job()
    session = job.sqlalchemy_session()
    assert session is job.sqlalchemy_session()
    session.execute(text("insert into effect (i, job_id) values (:i, :j)"), {"i": i, "j": job.id})
    job.sqlalchemy_connection().execute(text("insert into effect (i, job_id) values (:i, :j)"), {"i": -i, "j": job.id})
    return i


@app.task(transactional=True)
def adds_row(i: int, then: str = "") -> int:
    session = pgsched.current_job().sqlalchemy_session()
    session.add(effect_class()(i=i, job_id=pgsched.current_job().id))  # (sent by the flush before the commit)
    if then:
        session.flush()
        getattr(session, then)()
    return i


@app.task(transactional=True)
async def writes_with_async_orm(i: int, then: str = "") -> int:
    from sqlalchemy import text

    job = pgsched.current_job()
    session = await job.asqlalchemy_session()
    session.add(effect_class()(i=i, job_id=job.id))
    if then:
        await session.flush()
        await getattr(session, then)()
    connection = await job.asqlalchemy_connection()
    await connection.execute(text("insert into effect (i, job_id) values (:i, :j)"), {"i": -i, "j": job.id})
    return i


_effect: list[Any] = []


def effect_class() -> Any:
    if not _effect:
        from sqlalchemy import BigInteger
        from sqlalchemy.orm import DeclarativeBase, mapped_column

        class Base(DeclarativeBase):
            pass

        class Effect(Base):
            __tablename__ = "effect"
            id = mapped_column(BigInteger, primary_key=True)
            i = mapped_column(BigInteger)
            job_id = mapped_column(BigInteger)

        _effect.append(Effect)
    return _effect[0]


def adds(i: int) -> None:
    """One effect, and one more on a row that others add to as well: at serializable some of them meet."""
    job = pgsched.current_job()
    job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))
    job.connection.execute("update account set amount = amount + 1 where seen = %s", (i % 10,))


@app.task(transactional=True, isolation="serializable")
def adds_in_thread(i: int) -> None:
    adds(i)


@app.task(transactional=True, isolation="serializable", executor="process")
def adds_in_process(i: int) -> None:
    adds(i)


@app.task(transactional=True, isolation="serializable")
async def adds_on_loop(i: int) -> None:
    job = pgsched.current_job()
    await job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))
    await job.connection.execute("update account set amount = amount + 1 where seen = %s", (i % 10,))


@app.task(transactional=True, isolation="serializable")
def moves(amount: int) -> int:
    """Reads all, writes one: two at once cannot both be."""
    connection = pgsched.current_job().connection
    total = connection.execute("select sum(amount) from account").fetchone()[0]
    time.sleep(0.02)
    connection.execute("insert into account (amount, seen) values (%s, %s)", (amount, total))
    return int(total)


@app.task(transactional=True, isolation="serializable")
def isolation_of() -> list[str]:
    connection = pgsched.current_job().connection
    return [connection.execute(f"show {name}").fetchone()[0] for name in ("transaction_isolation",)]


# ---- What an adversary does (behaviour/test_executors_under_attack.py).


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise Unspeakable


@app.task
def unspeakable_in_thread() -> None:
    raise Unspeakable


@app.task
async def unspeakable_on_loop() -> None:
    raise Unspeakable


@app.task(executor="process")
def unspeakable_in_process() -> None:
    raise Unspeakable


@app.task
async def exits_in_a_task() -> None:
    async def exits() -> None:
        sys.exit(3)

    await asyncio.create_task(exits())


@app.task(executor="process")
def short(i: int, crashes: bool = False) -> int:
    if crashes:
        os._exit(7)
    return i


@app.task(executor="process")
def dies_and_leaves(what: str) -> None:
    if what == "a copy":
        if (pid := os.fork()) == 0:
            os.setsid()
            time.sleep(120)
            os._exit(0)
    else:
        pid = subprocess.Popen(["sleep", "120"], start_new_session=True).pid
    record(f"child {pid}", pgsched.current_job().id)
    os._exit(9)


def forks() -> None:
    """Both come back from here: the copy at once, the handler itself when the copy has ended."""
    if (pid := os.fork()) == 0:
        return
    until = time.monotonic() + 5
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    raise ValueError("no")


@app.task(transactional=True)
def forks_in_transaction(i: int) -> None:
    job = pgsched.current_job()
    job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))
    forks()


@app.task(transactional=True, executor="process")
def forks_in_transaction_in_process(i: int) -> None:
    forks_in_transaction(i)


@app.task(executor="process", timeout=SECOND)
def forks_in_time() -> str:
    if os.fork() == 0:
        return "the copy"
    time.sleep(60)
    return "never"


@app.task
async def ignores_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@app.task
def steals_an_end() -> int:
    begins()
    with contextlib.suppress(ChildProcessError):
        return os.wait()[0]
    return 0


@app.task(executor="process")
def leaves_an_alarm() -> int:
    signal.alarm(1)
    return os.getpid()


@app.task(executor="process")
def naps(seconds: float = 0) -> int:
    if seconds:
        sleep(seconds)
    return os.getpid()


surrounded = pgsched.App("surrounded")


@surrounded.middleware
async def lingers(job: pgsched.JobContext, run: Callable[[], Awaitable[Any]]) -> Any:
    if "before" in job.task:
        await linger(job)
    result = await run()
    if "after" in job.task:
        await linger(job)
    return result


async def linger(job: pgsched.JobContext) -> None:
    await asyncio.to_thread(record, "lingers", job.id)
    await asyncio.sleep(60)


@surrounded.task(executor="process")
def lingers_before() -> None:
    record("runs", pgsched.current_job().id)


@surrounded.task(executor="process")
def lingers_after() -> None:
    record("runs", pgsched.current_job().id)


@surrounded.task(executor="process")
def keeps_it_busy() -> None:
    sleep(2)


# ---- Transactions under attack: what a handler leaves behind, on its connection and beside it.

left_behind: dict[str, Any] = {}
"""What would otherwise be tidied up when nobody refers to it any more."""
DIVIDES = "select 1 / length(pg_sleep(0.3)::text)"  # (an error, after a while)


def insert(i: int) -> Any:
    job = pgsched.current_job()
    return job.connection.execute("insert into effect (i, job_id) values (%s, %s)", (i, job.id))


@app.task(transactional=True)
async def leaves_task(i: int, then: str, after_s: float) -> int:
    """Leaves a task that uses its connection `after_s` seconds after the handler; 0: before it is over, or as it ends."""
    connection = pgsched.current_job().connection
    await insert(i)

    async def late() -> None:
        if after_s:
            await asyncio.sleep(after_s)
        await (connection.rollback() if then == "rollback" else connection.execute(then))

    left_behind["task"] = asyncio.create_task(late())
    if then == DIVIDES and not after_s:
        await asyncio.sleep(0.1)  # (it is under way)
    return i


@app.task(transactional=True)
def leaves_thread(i: int, then: str, after_s: float) -> int:
    """`leaves_task` with a thread."""
    connection = pgsched.current_job().connection
    insert(i)

    def late() -> None:
        time.sleep(after_s)
        with contextlib.suppress(Exception):
            connection.rollback() if then == "rollback" else connection.execute(then)

    left_behind["thread"] = threading.Thread(target=late)
    left_behind["thread"].start()
    if then == DIVIDES and not after_s:
        time.sleep(0.1)
    return i


@app.task(transactional=True)
def leaves_on_session(what: str) -> None:
    from psycopg.rows import dict_row

    connection = pgsched.current_job().connection
    if what == "autocommit":
        connection.execute("commit")
        connection.autocommit = True
    elif what == "row_factory":
        connection.row_factory = dict_row
    elif what == "pipeline":
        left_behind["pipeline"] = connection.pipeline()
        left_behind["pipeline"].__enter__()
    else:
        connection.execute(what)


@app.task(transactional=True)
def finds_on_session() -> Any:
    """What a job finds: its backend, and all that another could have left there."""
    connection = pgsched.current_job().connection
    settings = ["search_path", "transaction_read_only", "statement_timeout", "transaction_isolation"]
    found = [connection.execute(f"show {name}").fetchone()[0] for name in settings]
    own = "where pid = pg_backend_pid() and locktype = 'advisory'"
    for query in (
        f"select count(*) from pg_locks {own}",
        "select count(*) from pg_class where relpersistence = 't'",
        "select count(*) from pg_prepared_statements where name = 'left'",
    ):
        found.append(connection.execute(query).fetchone()[0])
    return [connection.info.backend_pid, [*found, connection.autocommit, connection.info.pipeline_status.name]]


@app.task(transactional=True, timeout=SECOND / 4)
async def leaves_coroutine(i: int) -> None:
    """Times out, and leaves a coroutine that writes when `meets_coroutine` is in its transaction."""
    left_behind["begun"] = asyncio.Event()
    connection = pgsched.current_job().connection

    async def late() -> None:
        await left_behind["begun"].wait()
        await connection.execute("insert into effect (i) values (%s)", (i,))

    left_behind["coroutine"] = asyncio.create_task(late())
    await asyncio.wait([left_behind["coroutine"]])  # (which does not cancel it)


@app.task(transactional=True)
async def meets_coroutine(i: int) -> str:
    await insert(i)
    left_behind["begun"].set()
    await asyncio.wait([left_behind["coroutine"]], timeout=10)
    return type(left_behind["coroutine"].exception()).__name__


@app.task(transactional=True)
def leaves_open(what: str, then: str) -> None:
    connection = pgsched.current_job().connection
    insert(1)
    if what == "stream":
        rows = connection.cursor().stream("select generate_series(1, 1000000)")
        next(rows)
        left_behind["open"] = rows
    else:
        copy = connection.cursor().copy("copy effect (i) from stdin")
        copy.__enter__().write_row((2,))
        left_behind["open"] = copy
    if then == "raise":
        raise ValueError("mine")


@app.task(transactional=True)
def runs(statement: str) -> None:
    pgsched.current_job().connection.execute(statement)


@app.task(transactional=True)
def runs_once_told_to_stop(statement: str) -> None:
    """Between two statements of its own it is told to stop; it does not look."""
    job = pgsched.current_job()
    insert(1)
    while not job.stopping:
        time.sleep(0.01)
    time.sleep(0.3)  # (whoever told it has cancelled what there was to cancel)
    job.connection.execute(statement)


@app.task(transactional=True, isolation="repeatable read")
def works_in_python(seconds: float) -> None:
    insert(1)
    time.sleep(seconds)


@app.task(transactional=True)
def swallows(what: str) -> None:
    session = pgsched.current_job().sqlalchemy_session()
    session.add(effect_class()(i=1, job_id=pgsched.current_job().id))
    session.flush()
    with contextlib.suppress(Exception):
        getattr(session, what)()


@app.task(transactional=True)
def fails_because_of_another_database() -> None:
    import psycopg

    insert(1)
    with psycopg.connect(os.environ["PGSCHED_DSN"], autocommit=True) as other:
        try:
            other.execute("do $$ begin raise serialization_failure; end $$")
        except psycopg.Error:
            raise ValueError("gave up") from None
