"""A worker in the event loop of a process that is there for something else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.running import make_trace, wait_until

import pgsched
from pgsched.errors import WorkerAlive
from pgsched.lease import LeaseTimes
from pgsched.worker import EmbeddedWorker, ExitCode

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0

pytestmark = pytest.mark.one_server


class Shop:
    """An application whose tasks the test holds in its hand."""

    def __init__(self, dsn: str) -> None:
        self.app = pgsched.App("shop", dsn=dsn)
        self.began: list[int] = []
        self.go = threading.Event()
        self.deaf_until = 0.0

        @self.app.task
        async def waits() -> str:
            self.began.append(pgsched.current_job().id)
            await until(self.go.is_set)
            return "went"

        @self.app.task
        async def deaf() -> str:
            """It does not hear that it is cancelled."""
            self.began.append(pgsched.current_job().id)
            while time.monotonic() < self.deaf_until:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue
            return "deaf"

        @self.app.task
        def stuck() -> None:
            self.began.append(pgsched.current_job().id)
            self.go.wait(PATIENCE_S)

        self.waits, self.deaf, self.stuck = waits, deaf, stuck


@pytest.fixture
def shop(dsn: str) -> Any:
    made = Shop(dsn)
    yield made
    made.go.set()
    made.app.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """In an event loop that must be as empty afterwards as it was before."""

    async def alone() -> None:
        await main()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks were left behind")

    asyncio.run(alone())


async def until(condition: Callable[[], Any], what: str = "it never happened") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


def ask(connection: psycopg.Connection[Any], question: str) -> Any:
    row = connection.execute(question).fetchone()  # type: ignore[call-overload]
    return row[0] if row else None


def states(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute("select state, attempt, result from pgsched.jobs order by id").fetchall()


SESSIONS = "select count(*) from pg_stat_activity where datname = current_database() and application_name ~ '^pgsched (lease|work|listener|leader)'"


def test_it_takes_jobs_while_the_body_runs_and_has_detached_afterwards(shop: Shop, connection: Any) -> None:
    shop.go.set()

    async def main() -> None:
        signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        async with shop.app.worker(concurrency=2, name="beside") as worker:
            assert isinstance(worker, EmbeddedWorker)
            assert worker.healthy
            assert ask(connection, f"select name || state from pgsched.workers where id = {worker.id}") == "besidealive"
            job = await shop.waits.aenqueue()
            await until(lambda: states(connection) == [("succeeded", 1, "went")])
            assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == signals
            assert shop.began == [job.id]
        assert not worker.healthy
        assert ask(connection, f"select state from pgsched.workers where id = {worker.id}") == "stopped"
        await shop.app.aclose()
        await until(lambda: ask(connection, SESSIONS) == 0)

    run(main)


@pytest.mark.parametrize("how", ["the body ends", "the body raises", "the body is cancelled"])
def test_however_the_body_ends_running_jobs_may_end(shop: Shop, connection: Any, how: str) -> None:
    shop.waits.enqueue()
    entered = asyncio.Event()

    async def body() -> None:
        async with shop.app.worker() as worker:
            await until(lambda: worker.running == 1)
            entered.set()
            if how == "the body raises":
                raise KeyError(how)
            if how == "the body is cancelled":
                await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.ensure_future(body())
        await entered.wait()
        asyncio.get_running_loop().call_later(0.2, shop.go.set)
        if how == "the body is cancelled":
            task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() == (how == "the body is cancelled")
        assert how != "the body raises" or isinstance(task.exception(), KeyError)

    run(main)
    assert states(connection) == [("succeeded", 1, "went")]
    assert ask(connection, "select count(*) from pgsched.workers where state <> 'stopped'") == 0


def test_after_the_drain_what_runs_is_cancelled_and_goes_back(shop: Shop, connection: Any) -> None:
    shop.waits.enqueue()

    async def main() -> None:
        async with shop.app.worker(drain=timedelta(seconds=0.1)):
            await until(lambda: shop.began)

    run(main)
    assert states(connection) == [("ready", 0, None)]


def test_a_cancellation_while_it_drains_cancels_what_runs_and_is_passed_on(shop: Shop, connection: Any) -> None:
    shop.waits.enqueue()

    async def body() -> None:
        async with shop.app.worker():
            await until(lambda: shop.began)

    async def main() -> None:
        task = asyncio.ensure_future(body())
        await until(lambda: shop.began)
        await asyncio.sleep(0.2)
        assert not task.done(), "it drains"
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    run(main)
    assert states(connection) == [("ready", 0, None)]
    assert ask(connection, "select count(*) from pgsched.workers where state <> 'stopped'") == 0


def test_stop_ends_the_worker_and_not_the_body(shop: Shop, connection: Any) -> None:
    shop.waits.enqueue()

    async def main() -> None:
        async with shop.app.worker() as worker:
            await until(lambda: shop.began)
            worker.stop()
            assert not worker.healthy
            assert worker.running == 1
            await shop.waits.aenqueue()
            shop.go.set()
            await until(lambda: ask(connection, "select bool_and(state = 'stopped') from pgsched.workers"))
            await asyncio.sleep(0.3)
            assert states(connection) == [("succeeded", 1, "went"), ("ready", 0, None)]
        await shop.app.aclose()

    run(main)


def test_a_handler_that_swallows_its_cancellation_is_waited_for(shop: Shop, connection: Any) -> None:
    shop.deaf.enqueue()
    shop.deaf_until = time.monotonic() + 1.0

    async def main() -> None:
        async with shop.app.worker(drain=timedelta(0)):
            await until(lambda: shop.began)
        assert time.monotonic() >= shop.deaf_until

    run(main)
    assert states(connection) == [("succeeded", 1, "deaf")]


def test_a_thread_that_does_not_return_is_left_behind_with_its_job_in_running(shop: Shop, connection: Any) -> None:
    shop.stuck.enqueue()

    async def main() -> None:
        async with shop.app.worker() as worker:
            await until(lambda: shop.began)
            worker.stop()
            worker.stop()
        assert worker.running == 1
        assert states(connection) == [("running", 1, None)]
        shop.go.set()
        await until(lambda: worker.running == 0)

    run(main)


PROGRAM = """
import asyncio, datetime, time
import pgsched
from pgsched.lease import LeaseTimes

app = pgsched.App("shop")

@app.task
def stuck() -> None:
    print("began", flush=True)
    time.sleep(60)

async def main() -> None:
    await stuck.aenqueue()
    times = LeaseTimes(datetime.timedelta(seconds=1), datetime.timedelta(seconds=2))
    async with app.worker(lease=times) as worker:
        while not worker.running:
            await asyncio.sleep(0.01)
        worker.stop()
        worker.stop()
    print("the body has ended", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_handler_that_outlives_the_lease_ends_the_whole_process(dsn: str, connection: Any) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == ExitCode.LEASE_LOST, ran.stderr
    assert ran.stdout.splitlines() == ["began", "the body has ended"]


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("drop schema pgsched cascade", pgsched.SchemaError),
        ("create or replace function pgsched.protocol() returns int language sql as 'select 99'", pgsched.ProtocolMismatch),
        ("update pgsched.installation set system_identifier = 1", pgsched.NotAdopted),
    ],
)
@pytest.mark.breaks_invariants
def test_what_makes_a_worker_impossible_is_raised_on_entering(shop: Shop, connection: Any, broken: str, error: Any) -> None:
    connection.execute(broken)

    async def main() -> None:
        with pytest.raises(error):
            async with shop.app.worker():
                pytest.fail("the body must not begin")

    run(main)


def test_wrong_options_and_an_app_without_tasks_are_refused(shop: Shop, dsn: str) -> None:
    with pytest.raises(pgsched.UsageError, match="concurrency is 0"):
        shop.app.worker(concurrency=0)

    async def main() -> None:
        with pytest.raises(pgsched.UsageError, match="has no tasks"):
            async with pgsched.App("empty", dsn=dsn).worker():
                pytest.fail("the body must not begin")

    run(main)


def test_a_lifespan_that_fails_is_raised_on_entering_and_an_entering_that_is_cancelled_leaves_nothing(shop: Shop, connection: Any) -> None:
    opening = threading.Event()

    @shop.app.lifespan
    async def fails() -> AsyncIterator[None]:
        opening.set()
        if shop.go.is_set():
            raise LookupError("no model")
        await asyncio.Event().wait()
        yield

    async def enter() -> None:
        async with shop.app.worker():
            pytest.fail("the body must not begin")

    async def main() -> None:
        entering = asyncio.ensure_future(enter())
        await until(opening.is_set)
        entering.cancel()
        await asyncio.wait({entering})
        assert entering.cancelled()
        shop.go.set()
        with pytest.raises(LookupError, match="no model"):
            await enter()
        await until(lambda: ask(connection, SESSIONS) == 0)

    run(main)
    assert ask(connection, "select count(*) from pgsched.workers where state <> 'stopped'") == 0


def test_the_body_begins_without_the_database_and_the_worker_works_when_it_is_back(shop: Shop, dsn: str, connection: Any, server: Any) -> None:
    shop.go.set()
    shop.waits.enqueue()
    shop.app.close()
    connection.close()
    server.crash()

    async def main() -> None:
        try:
            async with shop.app.worker() as worker:
                assert not worker.healthy
                assert worker.id is None
                await asyncio.to_thread(server.restart)
                await until(lambda: worker.healthy)
                await until(lambda: shop.began)
        finally:
            server.restart()

    run(main)
    wait_until(dsn, "exists (select from pgsched.jobs where state = 'succeeded')")


def test_it_leaves_while_the_database_is_away(shop: Shop, connection: Any, server: Any) -> None:
    connection.close()

    async def main() -> None:
        async with shop.app.worker() as worker:
            assert worker.healthy
            await asyncio.to_thread(server.crash)

    try:
        run(main)
    finally:
        server.restart()


def test_a_session_that_the_server_ends_costs_neither_the_job_nor_the_identity(shop: Shop, connection: Any) -> None:
    shop.waits.enqueue()

    async def main() -> None:
        async with shop.app.worker() as worker:
            await until(lambda: shop.began)
            before = worker.id
            killed = ask(connection, SESSIONS.replace("count(*)", "count(pg_terminate_backend(pid))"))
            assert killed >= 4
            await until(lambda: ask(connection, f"select state from pgsched.workers where id = {before}") == "alive")
            shop.go.set()
            await until(lambda: states(connection) == [("succeeded", 1, "went")])
            assert worker.id == before and worker.healthy

    run(main)


def rescue(connection: Any, worker_id: int) -> None:
    """What a person may do who believes that the worker's process is gone."""
    ends = f"select count(pg_terminate_backend(pid)) from pgsched.lock_holders({worker_id}) pid"
    deadline = time.monotonic() + PATIENCE_S
    while True:
        ask(connection, ends)
        try:
            ask(connection, f"select pgsched.rescue({worker_id}, '{{}}', certified => true)")
            return
        except psycopg.Error as error:
            assert error.sqlstate == WorkerAlive.sqlstate and time.monotonic() < deadline
            time.sleep(0.001)


def test_after_a_rescue_a_new_identity_begins_once_no_handler_of_the_old_one_runs(shop: Shop, connection: Any, caplog: Any) -> None:
    shop.deaf.enqueue()
    shop.deaf_until = time.monotonic() + 3.0
    caplog.set_level(logging.ERROR)

    async def main() -> None:
        async with shop.app.worker() as worker:
            await until(lambda: shop.began)
            before = worker.id
            assert before is not None
            await asyncio.to_thread(rescue, connection, before)
            await until(lambda: not worker.healthy)
            while worker.running:
                assert ask(connection, "select count(*) from pgsched.workers") == 1, "the old handler still runs"
                await asyncio.sleep(0.02)
            assert time.monotonic() >= shop.deaf_until
            await until(lambda: worker.healthy)
            assert worker.id != before
            await until(lambda: states(connection) == [("succeeded", 1, "deaf")])

    run(main)
    assert len(shop.began) == 2
    assert ask(connection, "select count(*) from pgsched.workers where state = 'stopped'") >= 1


def test_where_the_workers_own_code_fails_another_takes_its_place(shop: Shop, connection: Any) -> None:
    shop.go.set()
    name = ask(connection, "select oid::regprocedure from pg_proc where proname = 'finish' and pronamespace = 'pgsched'::regnamespace")
    away = name.replace("finish(", "finish_away(")

    async def main() -> None:
        async with shop.app.worker() as worker:
            before = worker.id
            connection.execute(f"alter function {name} rename to finish_away")
            await shop.waits.aenqueue()
            await until(lambda: not worker.healthy)
            connection.execute(f"alter function {away} rename to finish")
            await until(lambda: states(connection) == [("succeeded", 1, "went")])
            assert worker.healthy and worker.id != before
        await shop.app.aclose()

    run(main)


def test_two_workers_in_one_process_share_the_work(shop: Shop, connection: Any) -> None:
    app = shop.app
    app.enqueue_many(shop.waits.bind() for _ in range(4))

    async def main() -> None:
        async with app.worker(concurrency=2, name="one") as one, app.worker(concurrency=2, name="two") as two:
            await until(lambda: len(shop.began) == 4)
            assert (one.running, two.running) == (2, 2)
            assert one.id != two.id
            shop.go.set()
            await until(lambda: not one.running and not two.running)
            assert one.healthy and two.healthy

    run(main)
    assert states(connection) == [("succeeded", 1, "went")] * 4


@pytest.mark.campaign
def test_entering_and_leaving_again_and_again_leaks_nothing(shop: Shop, connection: Any) -> None:
    shop.go.set()
    rounds = 200 if FULL else 25

    def held() -> tuple[int, int, int, int]:
        names = [t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")]
        return len(os.listdir("/proc/self/fd")), len(names), len(asyncio.all_tasks()), ask(connection, SESSIONS)  # noqa: PTH208

    async def once() -> None:
        async with shop.app.worker(concurrency=3, lease=LeaseTimes()) as worker:
            await shop.waits.aenqueue()
            await until(lambda: len(shop.began) == ran + 1)
        assert worker.running == 0

    async def main() -> None:
        nonlocal ran
        await once()
        ran = 1
        await asyncio.sleep(0.2)
        before = held()
        for _ in range(rounds):
            await once()
            ran += 1
        await until(lambda: held() <= before, f"before: {before}, now: {held()}")
        await shop.app.aclose()

    ran = 0
    run(main)
    assert ask(connection, "select count(*) from pgsched.workers where state <> 'stopped'") == 0


MAIN = """
import asyncio
import pgsched

app = pgsched.App("shop")

@app.task
async def slow() -> str:
    print("began", flush=True)
    await asyncio.sleep(0.5)
    return "slept"

if __name__ == "__main__":
    slow.enqueue()
    code = app.run_worker(concurrency=2)
    print("after it", flush=True)
    raise SystemExit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_run_worker_as_a_main_program_stops_cleanly_at(number: signal.Signals, dsn: str, connection: Any) -> None:
    make_trace(dsn)
    with subprocess.Popen(
        [sys.executable, "-c", MAIN],
        env=os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "began\n"
            process.send_signal(number)
            assert process.stdout.read() == "after it\n"
            assert process.wait(PATIENCE_S) == ExitCode.OK
        finally:
            process.kill()
    assert states(connection) == [("succeeded", 1, "slept")]
    assert ask(connection, "select state from pgsched.workers") == "stopped"
