"""What becomes of a job after a failed attempt: policies, and what handlers say themselves, in each place where they run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from harness import retrying
from harness.running import make_trace, wait_until, work_until, working

import pgsched

pytestmark = pytest.mark.one_server

PLACES = [
    retrying.on_loop, retrying.in_thread, retrying.in_process,
    retrying.in_transaction_on_loop, retrying.in_transaction_in_thread, retrying.in_transaction_in_process,
]  # fmt: skip
FUNCTIONS = [retrying.function_on_loop, retrying.function_in_thread, retrying.function_in_process]
STILL = (
    "not exists (select from pgsched.ready) and not exists (select from pgsched.running) "
    "and not exists (select from pgsched.waiting where run_at < now() + interval '10 minutes')"
)


@pytest.fixture
def app(dsn: str, connection: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    make_trace(dsn)
    connection.execute("create table wrote (job_id bigint)")
    retrying.app.use(dsn)
    yield retrying.app
    retrying.app.close()


def found(connection: Any, what: str = "state, attempt") -> dict[str, tuple[Any, ...]]:
    """Of each job, by its argument: the columns asked for."""
    return {row[0]: row[1:] for row in connection.execute(f"select args ->> 'what', {what} from pgsched.jobs order by id")}


def waits(connection: Any) -> dict[str, float]:
    """How long each job that waits does, in hours, by its argument."""
    rows = connection.execute(
        "select args ->> 'what', round(extract(epoch from run_at - now()) / 3600, 1)::float8 from pgsched.jobs where run_at is not null"
    )
    return dict(rows.fetchall())


@pytest.mark.parametrize("place", PLACES, ids=lambda task: task.name)
def test_what_a_handler_raises_decides_in_each_place(place: Any, app: pgsched.App, dsn: str, connection: Any) -> None:
    """Retry, Cancel and Snooze, and errors by their type; nothing that a transaction wrote stays unless the job succeeds."""
    for what in ("retry", "retry later", "retry at no such time", "cancel", "snooze", "lookup", "connection", "permission"):
        place.enqueue(what)
    work_until(app, dsn, STILL, executors=1)
    assert found(connection) == {
        "retry": ("succeeded", 3),
        "retry later": ("retrying", 1),
        "retry at no such time": ("failed", 3),
        "cancel": ("cancelled", 1),
        "snooze": ("scheduled", 0),
        "lookup": ("failed", 1),
        "connection": ("retrying", 1),
        "permission": ("failed", 2),
    }
    assert waits(connection) == {"retry later": 1, "snooze": 1, "connection": 1}
    reasons = {what: reason for what, (reason,) in found(connection, "reason").items()}
    assert reasons["cancel"] == "cancelled by its handler: sold out"
    assert reasons["lookup"] == "KeyError: 'of no use'"
    assert reasons["permission"] == "PermissionError: not you (attempt 2 of 2 for this error)"
    assert reasons["retry at no such time"].startswith("UsageError: Retry(): the wait is -1 day, 23:00:00; it must not be negative")
    logged = connection.execute(
        "select args ->> 'what', a.state, a.error_type, a.traceback is not null from pgsched.job_errors a join pgsched.jobs j on j.id = a.job_id "
        "where args ->> 'what' in ('retry', 'permission', 'snooze', 'cancel') order by a.job_id, a.claim_id"
    ).fetchall()
    assert logged == [
        *[("retry", "retried", "Retry", True)] * 2,
        ("cancel", "cancelled", None, False),
        ("snooze", "snoozed", None, False),
        ("permission", "retried", "PermissionError", True),
        ("permission", "failed", "PermissionError", True),
    ]
    wrote = connection.execute("select count(*) from wrote").fetchone()
    assert wrote == (int("transaction" in place.name),), "only the one that succeeded"
    assert connection.execute("select * from pgsched.check_invariants()").fetchall() == []


@pytest.mark.parametrize("place", FUNCTIONS, ids=lambda task: task.name)
def test_a_function_decides_and_one_that_fails_loses_nothing(place: Any, app: pgsched.App, dsn: str, connection: Any) -> None:
    for what in ("ask hour", "ask never", "ask policy", "ask nothing", "ask raise", "ask nonsense"):
        place.enqueue(what)
    work_until(app, dsn, STILL, executors=1)
    assert waits(connection) == {"ask hour": 1, "ask policy": 2, "ask nothing": 3, "ask raise": 3, "ask nonsense": 3}
    assert found(connection)["ask never"] == ("failed", 1)
    told = dict(connection.execute(
        "select args ->> 'what', a.traceback from pgsched.job_errors a join pgsched.jobs j on j.id = a.job_id"
    ).fetchall())  # fmt: skip
    assert "Asks: raise" in told["ask raise"]
    assert told["ask raise"].endswith("(its function for retries raised ZeroDivisionError: the policy's own wait stands in)")
    assert told["ask nonsense"].endswith("(its function for retries answered what is no wait and no policy (str): the policy's own wait stands in)")
    assert "stands in" not in told["ask nothing"]


@pytest.mark.parametrize("place", PLACES, ids=lambda task: task.name)
def test_any_error_of_a_handler_is_kept_and_stops_no_neighbour(place: Any, app: pgsched.App, dsn: str, connection: Any) -> None:
    for what in ("unwieldy", "slippery", "group", "rude", "nul", "exit"):
        place.enqueue(what)
    place.enqueue("retry")
    work_until(app, dsn, STILL, executors=1)
    assert {state for what, (state, attempt) in found(connection).items() if what != "retry"} == {"failed"}
    assert found(connection)["retry"] == ("succeeded", 3)
    reasons = {what: reason for what, (reason,) in found(connection, "reason").items()}
    assert reasons["unwieldy"] == "Unwieldy: unwieldy" and reasons["group"] == "ExceptionGroup: several (2 sub-exceptions)"
    assert reasons["rude"] == "Rude: rude" and reasons["nul"] == "Nu\\0l: a\\0b" and reasons["exit"] == "SystemExit: 3"


@pytest.mark.parametrize("task", [retrying.late_on_loop, retrying.late_in_thread, retrying.late_in_process], ids=lambda task: task.name)
def test_a_timeout_follows_the_policy_as_a_timeout_error(task: Any, app: pgsched.App, dsn: str, connection: Any) -> None:
    task.enqueue()
    work_until(app, dsn, STILL, executors=1, grace=timedelta(milliseconds=200))
    assert connection.execute("select state, attempt, round(extract(epoch from run_at - now()) / 3600) from pgsched.jobs").fetchone() == ("retrying", 1, 2)


def test_a_process_that_dies_follows_the_policy_as_that_error(app: pgsched.App, dsn: str, connection: Any) -> None:
    retrying.in_process.enqueue("die")
    work_until(app, dsn, STILL, executors=1)
    assert waits(connection) == {"die": 3}


def test_no_attempt_is_due_after_the_policys_age(app: pgsched.App, dsn: str, connection: Any) -> None:
    retrying.aged.enqueue("rude")
    retrying.aged.using(run_at=datetime.now(UTC) - timedelta(minutes=5)).enqueue("retry later")
    work_until(app, dsn, STILL)
    why = "(the next attempt would be due more than max_age, 00:30:00, after it was enqueued or due first)"
    reasons = found(connection, "state, reason")
    assert reasons["rude"] == ("failed", f"Rude: rude {why}")
    assert reasons["retry later"] == ("failed", f"Retry: asked for another attempt after 1:00:00 {why}")


def test_a_retry_without_a_budget_fails_and_a_snooze_needs_none(app: pgsched.App, dsn: str, connection: Any) -> None:
    for what in ("retry", "snooze", "cancel", "retry as usual"):
        retrying.without.enqueue(what)
    work_until(app, dsn, STILL)
    assert found(connection) == {"retry": ("failed", 1), "snooze": ("scheduled", 0), "cancel": ("cancelled", 1), "retry as usual": ("failed", 1)}


def test_a_job_that_is_cancelled_ends_so_even_where_its_handler_snoozes(app: pgsched.App, dsn: str, connection: Any) -> None:
    job = retrying.snoozes_when_told.enqueue()
    with working(app, dsn) as state:
        wait_until(dsn, "exists (select from trace)")
        job.cancel("enough")
        state.wait_until(STILL)
    assert connection.execute("select state, reason from pgsched.jobs").fetchone() == ("cancelled", "cancelled: enough")


def test_a_cancel_by_the_handler_ends_what_waits_for_the_job(app: pgsched.App, dsn: str, connection: Any) -> None:
    first = retrying.without.enqueue("cancel")
    second = retrying.without.using(depends_on=[first]).enqueue("snooze")
    work_until(app, dsn, STILL + " and not exists (select from pgsched.waiting)")
    with pytest.raises(pgsched.JobCancelled, match="sold out"):
        first.result()
    assert second.info().state == "cancelled"


@pytest.mark.parametrize("place", PLACES[:3], ids=lambda task: task.name)
def test_a_middleware_lets_the_handlers_word_pass_and_may_have_one_of_its_own(
    place: Any, app: pgsched.App, dsn: str, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def around(job: pgsched.JobContext, run: Any) -> Any:
        try:
            return await run()
        except Exception as error:
            seen.append(str(error))
            if "of no use" in str(error):
                raise pgsched.Snooze(timedelta(hours=5)) from error
            raise

    monkeypatch.setattr(app, "middlewares", [around])
    for what in ("snooze", "cancel", "retry later", "lookup"):
        place.enqueue(what)
    work_until(app, dsn, STILL, executors=1)
    assert found(connection) == {"snooze": ("scheduled", 0), "cancel": ("cancelled", 1), "retry later": ("retrying", 1), "lookup": ("scheduled", 0)}
    assert waits(connection) == {"snooze": 1, "retry later": 1, "lookup": 5}
    assert len(seen) == 4
