"""What a handler returned comes back to who waits for it; and how far a running job is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from harness.protocol import Blocked, Steps, enqueue
from harness.running import Working, ended, wait_until, working
from pydantic import BaseModel

import pgsched
from pgsched import results
from pgsched.errors import ConnectError
from pgsched.worker.progress import Progress, as_json

pytestmark = pytest.mark.one_server

LONG = timedelta(seconds=30)
BRIEF = timedelta(milliseconds=50)


@dataclass
class Point:
    x: int
    y: int


class Receipt(BaseModel):
    order: int
    at: datetime


class Opaque:
    """Nothing that pydantic knows."""


app = pgsched.App("waits")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@app.task
async def receipt(order: int) -> Receipt:
    return Receipt(order=order, at=NOON)


@app.task
def points(n: int) -> list[Point]:
    return [Point(i, -i) for i in range(n)]


@app.task
async def numbers() -> set[int]:
    return {1, 2}


@app.task
async def plain(value: Any):  # type: ignore[no-untyped-def]
    return value


@app.task
async def nothing() -> None: ...


@app.task
async def fails() -> int:
    raise ValueError("no luck")


@app.task
async def returns(what: str) -> Any:
    return {"set": {1}, "tuple": (1, 2), "nan": math.nan, "nested": {"a": [math.inf]}, "object": Opaque(), "nul": "a\0b"}[what]


@app.task
async def lies() -> int:
    return "many"  # type: ignore[return-value]


@app.task
async def nearly() -> list[float]:
    return (1, 2)  # type: ignore[return-value]


@app.task
async def large(size: int) -> str:
    return "x" * size


@app.task
async def reports(until: str) -> str:
    job = pgsched.current_job()
    for i in range(1001):
        job.progress(i / 2000, f"{i} read")
    while not os.path.exists(until):  # noqa: ASYNC110, ASYNC240, PTH110
        await asyncio.sleep(0.01)
    return "done"


@app.task
def reports_in_thread(until: str) -> None:
    pgsched.current_job().progress(1, "a\0b\ud800" + "x" * 2000)
    while not os.path.exists(until):  # noqa: PTH110
        time.sleep(0.01)


@pytest.fixture
def waits(dsn: str) -> Iterator[pgsched.App]:
    app.use(dsn)
    yield app
    app.close()


@contextlib.contextmanager
def serving(dsn: str) -> Iterator[Working]:
    """A worker on the same tasks, with an App of its own, as in another process."""
    other = pgsched.App("waits")
    other.tasks = app.tasks
    with working(other, dsn) as worker:
        yield worker


def test_a_result_comes_back_as_what_the_annotation_says(waits: pgsched.App, dsn: str) -> None:
    with serving(dsn):
        assert receipt.enqueue(7).result(LONG) == Receipt(order=7, at=NOON)
        assert points.enqueue(2).result(LONG) == [Point(0, 0), Point(1, -1)]
        assert numbers.enqueue().result(LONG) == {1, 2}
        assert plain.enqueue({"a": [1, None, "ü"]}).result(LONG) == {"a": [1, None, "ü"]}
        assert nothing.enqueue().result(LONG) is None
        assert nearly.enqueue().result(LONG) == [1.0, 2.0], "taken as the annotation says"
        many: list[pgsched.Job[Any]] = waits.enqueue_many([points.bind(1), numbers.bind(), nothing.bind()])
        assert [job.result(LONG) for job in many] == [[Point(0, 0)], {1, 2}, None]
        again = pgsched.Job(many[0].id, waits.client)
        assert again.result(LONG) == [{"x": 0, "y": 0}], "a handle without its task has the JSON"


def test_a_failed_job_raises_with_its_last_attempts_error_as_data(waits: pgsched.App, dsn: str) -> None:
    with serving(dsn), pytest.raises(pgsched.JobFailed) as caught:
        fails.enqueue().result(LONG)
    error = caught.value
    assert (error.state, error.reason, error.error_type, error.error) == ("failed", "ValueError: no luck", "ValueError", "no luck")
    assert error.traceback is not None and 'raise ValueError("no luck")' in error.traceback
    assert str(error) == f"job {error.job_id} has ended as failed: ValueError: no luck"
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_each_other_end_has_its_error(waits: pgsched.App, dsn: str, connection: psycopg.Connection[Any]) -> None:
    expired = nothing.using(expires_at=datetime(2001, 1, 1, tzinfo=UTC)).enqueue()
    connection.execute("select pgsched.stage()")
    with pytest.raises(pgsched.JobSkipped, match="has ended as skipped: expired"):
        expired.result(LONG)
    worker = Steps(dsn)
    [job_id] = enqueue(connection)
    worker.finish(worker.claim()[0], outcome="cancelled", reason="enough")
    worker.close()
    with pytest.raises(pgsched.JobCancelled, match="has ended as cancelled: enough") as caught:
        pgsched.Job(job_id, waits.client).result(LONG)
    assert isinstance(caught.value, pgsched.JobUnsuccessful) and caught.value.state == "cancelled"


def test_a_timeout_leaves_the_job_and_whoever_else_waits(waits: pgsched.App, dsn: str) -> None:
    job = points.enqueue(1)
    with pytest.raises(TimeoutError, match=r"job \d+ has not ended within 0:00:00.050000; it goes on"):
        job.result(BRIEF)
    assert waits.client.results._waits == {}
    with serving(dsn):
        assert job.result(LONG) == [Point(0, 0)]


def test_a_job_that_is_not_there_is_said_to_be_not_there(waits: pgsched.App, dsn: str) -> None:
    with pytest.raises(pgsched.UsageError, match="there is no job 77: it was pruned, or the transaction"):
        pgsched.Job(77, waits.client).result(LONG)


def test_in_the_very_transaction_that_makes_the_job_nobody_waits_for_himself(waits: pgsched.App, dsn: str) -> None:
    with psycopg.connect(dsn) as own:
        job = nothing.using(connection=own).enqueue()
        with pytest.raises(pgsched.UsageError, match=r"the transaction that made it has not committed \(commit it first\)"):
            job.result()
        own.commit()
        with pytest.raises(TimeoutError):
            job.result(BRIEF)

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as theirs:
            job = await nothing.using(connection=theirs).aenqueue()
            with pytest.raises(pgsched.UsageError, match="commit it first"):
                await job.aresult()

    asyncio.run(main())


def test_a_job_that_is_pruned_while_it_is_waited_for_is_not_waited_for_any_longer(
    waits: pgsched.App, connection: psycopg.Connection[Any]
) -> None:
    job = nothing.enqueue()
    answer: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(pgsched.UsageError) as caught:
            job.result(LONG)
        answer.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(waits.client.dsn, "exists (select from pgsched.waiter)")
    with connection.transaction():  # by its owner's own hand: no function does this
        connection.execute("delete from pgsched.ready; delete from pgsched.job")
    thread.join(30)
    assert "there is no job" in str(answer[0])


def test_a_blocking_wait_in_a_running_loop_names_its_twin_and_a_number_is_no_timeout(waits: pgsched.App) -> None:
    async def main() -> None:
        with pytest.raises(pgsched.UsageError, match=r"await aresult\(\)"):
            pgsched.Job(1, waits.client).result()
        with pytest.raises(pgsched.UsageError, match="timeout is 5: it must be a timedelta"):
            await pgsched.Job(1, waits.client).aresult(5)  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize("what", ["set", "tuple", "nan", "nested", "object", "nul"])
def test_what_json_would_make_something_else_of_fails_the_job_and_says_what_to_do(waits: pgsched.App, dsn: str, what: str) -> None:
    with serving(dsn), pytest.raises(pgsched.JobFailed, match=r'task "returns" returned the .*; annotate a return type'):
        returns.enqueue(what).result(LONG)


def test_what_does_not_fit_its_annotation_fails_the_job(waits: pgsched.App, dsn: str) -> None:
    with serving(dsn), pytest.raises(pgsched.JobFailed, match='task "lies" returned the str \'many\': '):
        lies.enqueue().result(LONG)


def test_a_stored_result_that_no_longer_fits_says_so(waits: pgsched.App, dsn: str, connection: psycopg.Connection[Any]) -> None:
    job = points.enqueue(1)
    with serving(dsn):
        job.result(LONG)
    connection.execute("update pgsched.finished set result = '7'")
    with pytest.raises(pgsched.ResultError, match='task "points": its stored result \'7\' does not fit the annotation'):
        job.result(LONG)


def test_a_return_annotation_that_pydantic_does_not_know_is_refused_when_the_worker_starts(waits: pgsched.App, dsn: str) -> None:
    odd = pgsched.App("odd", dsn=dsn)

    @odd.task
    def returns_opaque() -> Opaque:
        return Opaque()

    with pytest.raises(pgsched.TaskError, match=r"pydantic has no schema for what it returns .*leave the annotation out"), working(odd, dsn):
        pass


def test_a_result_above_the_limit_fails_the_job_with_its_size_and_what_to_do(
    waits: pgsched.App, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("update pgsched.setting set value = '1000' where name = 'max_result_bytes'")
    with serving(dsn):
        assert large.enqueue(900).result(LONG) == "x" * 900
        with pytest.raises(pgsched.JobFailed, match=r"its result takes 10\d\d bytes, the limit is 1000: store it elsewhere"):
            large.using(max_attempts=5).enqueue(1000).result(LONG)
        nothing.enqueue().result(LONG)
    assert connection.execute("select count(*) from pgsched.finished where length(result::text) > 1000").fetchone() == (0,)


def test_who_waits_is_woken_by_a_notification(waits: pgsched.App, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_POLL_S", 3600.0)
    job = points.enqueue(1)
    threading.Timer(0.0, lambda: _work(dsn, job.id)).start()
    assert job.result(LONG) == [Point(7, 7)]


def test_without_notifications_the_poll_finds_the_end(waits: pgsched.App, dsn: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute("alter table pgsched.finished disable trigger tell_waiters")
    job = points.enqueue(1)
    threading.Timer(0.0, lambda: _work(dsn, job.id)).start()
    assert job.result(LONG) == [Point(7, 7)]


def _work(dsn: str, job_id: int) -> None:
    """End the job once somebody waits for it."""
    wait_until(dsn, f"exists (select from pgsched.waiter where job_id = {job_id})")
    worker = Steps(dsn)
    worker.finish(*worker.claim(queue="waits"), result=[{"x": 7, "y": 7}])
    worker.close()


CONNECTIONS = "(select count(*) from pg_stat_activity where application_name = 'pgsched results')"


def test_a_thousand_waits_in_one_loop_and_some_in_threads_share_one_connection(waits: pgsched.App, dsn: str) -> None:
    jobs: list[pgsched.Job[Any]] = waits.enqueue_many([plain.bind(i) for i in range(1000)])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda job=job: found.append(job.result(LONG))) for job in jobs[:5]]  # type: ignore[misc]
    for thread in threads:
        thread.start()

    async def run() -> list[Any]:
        waiting = [asyncio.create_task(job.aresult(LONG)) for job in jobs]
        condition = f"(select count(distinct job_id) from pgsched.waiter) = 1000 and {CONNECTIONS} = 1"
        await asyncio.to_thread(wait_until, dsn, condition)
        stop = threading.Event()

        def work() -> None:
            with serving(dsn):
                stop.wait(30)

        worker = asyncio.create_task(asyncio.to_thread(work))
        try:
            return await asyncio.gather(*waiting)
        finally:
            stop.set()
            await worker

    assert asyncio.run(run()) == list(range(1000))
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert waits.client.results._waits == {}


def test_a_cancelled_wait_is_forgotten(waits: pgsched.App, dsn: str) -> None:
    job = nothing.enqueue()

    async def main() -> None:
        waiting = asyncio.create_task(job.aresult())
        await asyncio.to_thread(wait_until, dsn, "exists (select from pgsched.waiter)")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert waits.client.results._waits == {}


def test_waiting_survives_a_connection_that_is_ended(waits: pgsched.App, dsn: str, connection: psycopg.Connection[Any]) -> None:
    job = points.enqueue(1)
    answer: list[Any] = []
    thread = threading.Thread(target=lambda: answer.append(job.result(LONG)))
    thread.start()
    wait_until(dsn, "exists (select from pgsched.waiter)")
    for _ in range(3):
        query = "select pid from pg_stat_activity where application_name = 'pgsched results'"
        wait_until(dsn, f"exists ({query})")
        [(pid,)] = connection.execute(query).fetchall()
        connection.execute("select pg_terminate_backend(%s)", [pid])
        wait_until(dsn, f"exists ({query} and pid <> {pid})")
    _work(dsn, job.id)
    thread.join(30)
    assert answer == [[Point(7, 7)]]


def test_where_the_database_does_not_answer_at_first_the_wait_says_so() -> None:
    nowhere = pgsched.App("nowhere", dsn="host=127.0.0.1 port=1 dbname=none")
    with pytest.raises(ConnectError, match="port=1 dbname=none does not answer"):
        pgsched.Job(1, nowhere.client).result()
    with pytest.raises(ConnectError):
        asyncio.run(pgsched.Job(1, nowhere.client).aresult())


def test_the_connection_is_closed_when_nobody_waits_any_more(waits: pgsched.App, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_LINGER_S", 0.1)
    job = nothing.enqueue()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            job.result(timedelta(seconds=0.3))
        wait_until(dsn, f"{CONNECTIONS} = 0")


def test_closing_the_app_ends_whoever_waits(waits: pgsched.App, dsn: str) -> None:
    job = nothing.enqueue()
    answer: list[BaseException] = []

    def wait() -> None:
        try:
            job.result()
        except pgsched.UsageError as error:
            answer.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(dsn, "exists (select from pgsched.waiter)")
    waits.close()
    thread.join(30)
    assert "the App was closed" in str(answer[0])
    wait_until(dsn, f"{CONNECTIONS} = 0")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_waits_on_a_connection_of_its_own(waits: pgsched.App, dsn: str) -> None:
    job = points.enqueue(1)
    with pytest.raises(TimeoutError):
        job.result(BRIEF)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if job.result(LONG) == [Point(7, 7)] else 1)
        finally:
            os._exit(2)
    wait_until(dsn, f"{CONNECTIONS} = 2")
    _work(dsn, job.id)
    assert os.waitpid(child, 0)[1] == 0
    assert job.result(LONG) == [Point(7, 7)]


# ---- Progress


def test_the_newest_progress_of_each_job_is_shown_while_it_runs(waits: pgsched.App, dsn: str, connection: psycopg.Connection[Any], tmp_path: Any) -> None:
    until = str(tmp_path / "go on")
    with serving(dsn) as worker:
        first, second = reports.enqueue(until), reports_in_thread.enqueue(until)
        worker.wait_until(f"(select progress from pgsched.jobs where id = {first.id}) is not null")
        worker.wait_until(f"(select progress from pgsched.jobs where id = {second.id}) is not null")
        info = first.info()
        assert (info.progress, info.progress_message) == (0.5, "1000 read")
        message = second.info().progress_message
        assert message is not None and message.startswith("a\\0b\\ud800x")
        assert second.info().progress == 1
        (tmp_path / "go on").touch()
        worker.wait_until(ended(first.id, second.id))
    assert first.info().progress is None, "it ran; now it has a result"
    connection.execute("select pgsched.prune('0 s')")
    assert connection.execute("select count(*) from pgsched.progress").fetchone() == (0,)


@pytest.mark.parametrize(("fraction", "message"), [(-0.1, None), (1.1, None), (math.nan, None), ("half", None), (None, None), (0.5, 7)])
def test_progress_that_cannot_be_meant_is_refused(fraction: Any, message: Any) -> None:
    with pytest.raises(pgsched.UsageError, match=r"progress\("):
        pgsched.JobContext(1, "t", 1, 1).progress(fraction, message)
    pgsched.JobContext(1, "t", 1, 1).progress(1, "said to nobody, outside a worker")


def test_a_million_reports_keep_one_and_what_could_not_be_sent_stays_new() -> None:
    progress = Progress()
    for i in range(1_000_000):
        progress.report(1, 10, i / 1_000_000, None)
    progress.report(2, 20, None, "b")
    taken = progress.take()
    assert taken == {10: (1, 0.999999, None), 20: (2, None, "b")} and progress.take() == {}
    progress.report(2, 20, 1, None)
    progress.give_back(taken)
    assert progress.take() == {10: (1, 0.999999, None), 20: (2, 1, None)}
    assert as_json(taken).startswith('[{"job_id": 1, "claim_id": 10, "fraction": 0.999999, "message": null}')


def test_reports_keep_one_row_a_claim_and_only_of_the_workers_own(dsn: str, connection: psycopg.Connection[Any]) -> None:
    worker, other = Steps(dsn), Steps(dsn)
    enqueue(connection, 4, max_attempts=3)
    mine, theirs = worker.claim(3), other.claim(1)
    report = "select pgsched.report_progress(%s, (select jsonb_agg(jsonb_build_object('job_id', j, 'claim_id', c, 'fraction', %s::float8)) from unnest(%s::bigint[], %s::bigint[]) u (j, c)))"
    every = mine + theirs
    ids = [c["job_id"] for c in every], [c["claim_id"] for c in every]
    for fraction in (0.1, 0.2, 5.0):
        row = worker.work.execute(report, (worker.id, fraction, *ids)).fetchone()
        assert row == {"report_progress": 3}
    assert connection.execute("select job_id, fraction from pgsched.progress order by 1").fetchall() == [(c["job_id"], 1) for c in mine]
    worker.finish(mine[0], outcome="retry", after_s=0)
    connection.execute("select pgsched.stage()")
    [again] = other.claim(1)
    assert again["job_id"] == mine[0]["job_id"]
    assert connection.execute("select progress from pgsched.jobs where id = %s", [again["job_id"]]).fetchone() == (None,), "of another claim"
    connection.execute("select pgsched.prune('1 year')")
    assert connection.execute("select count(*) from pgsched.progress").fetchone() == (2,), "those that run"
    worker.close()
    other.close()


def test_a_report_waits_for_nobody_who_reads(dsn: str, connection: psycopg.Connection[Any]) -> None:
    worker = Steps(dsn)
    enqueue(connection)
    [claim] = worker.claim()
    report = [{"job_id": claim["job_id"], "claim_id": claim["claim_id"], "fraction": 0.5}]
    with psycopg.connect(dsn) as reader:
        reader.execute("select * from pgsched.jobs")
        done = Blocked(worker.work, "select pgsched.report_progress(%s, %s)", (worker.id, json.dumps(report))).result()
        assert done == [{"report_progress": 1}]
    worker.close()
