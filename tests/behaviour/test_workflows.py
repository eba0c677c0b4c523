"""Workflows as an application builds and runs them: order, results that are passed on, failures, cancels, repairs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from harness import flows
from harness.running import ENDED, wait_until, work_until, working

import pgsched

pytestmark = pytest.mark.one_server


@pytest.fixture
def app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    flows.app.use(dsn)
    yield flows.app
    flows.app.close()


def states(connection: Any) -> dict[str, str]:
    rows = connection.execute("select coalesce(d.name, d.task), j.state from pgsched.jobs j join pgsched.job d on d.id = j.id order by j.id")
    return dict(rows.fetchall())


def test_results_are_passed_on_also_within_lists_and_to_a_process(app: pgsched.App, dsn: str) -> None:
    etl = app.workflow("etl")
    parts = [etl.add(flows.transform, etl.named(f"extract {region}").add(flows.extract, region).result) for region in ("eu", "usa")]
    merged = etl.add(flows.merge, [part.result for part in parts], title="sum")
    nothing = etl.after(merged).add(flows.passes)
    last = etl.add(flows.in_process.using(priority=1), merged.result, nothing.result, plus=1)
    run = etl.enqueue()
    with working(app, dsn, executors=1):
        assert run.result(timedelta(seconds=30))["in_process"] == 31
        assert run[merged].result() == {"sum": 30}
    assert list(run.jobs) == ["extract eu", "transform", "extract usa", "transform 2", "merge", "passes", "in_process"]
    with psycopg.connect(dsn) as session:
        row = session.execute("select args, priority from pgsched.jobs where id = %s", (run[last].id,)).fetchone()
        assert row == ({"total": None, "nothing": None, "plus": 1}, 1)
        assert session.execute("select state, jobs, succeeded from pgsched.workflows").fetchone() == ("succeeded", 7, 7)


def test_nothing_begins_before_what_it_waits_for_has_ended(app: pgsched.App, dsn: str, connection: Any) -> None:
    chain = app.workflow("chain")
    node = chain.add(flows.passes, 0)
    for _ in range(30):
        node = chain.add(flows.passes, node.result)
    run = chain.enqueue()
    work_until(app, dsn, ENDED)
    assert run[node].result() == 0
    order = connection.execute("select bool_and(a.finished_at <= b.started_at) from pgsched.finished a join pgsched.dependency d on d.depends_on_id = a.job_id join pgsched.finished b on b.job_id = d.job_id")
    assert order.fetchone() == (True,)


def test_a_failure_skips_what_needs_it_and_runs_what_waits_for_it(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    bad = etl.add(flows.fails)
    load = etl.after(bad).named("load").add(flows.passes)
    etl.after(load).named("publish").add(flows.passes)
    etl.after(bad.failure).named("page someone").add(flows.passes)
    etl.after(load.done).named("tidy up").add(flows.passes)
    etl.after(bad, load.done, rule="any").named("any").add(flows.passes)
    run = etl.enqueue()
    work_until(app, dsn, ENDED)
    assert states(connection) == {
        "fails": "failed", "load": "skipped", "publish": "skipped", "page someone": "succeeded", "tidy up": "succeeded", "any": "succeeded",
    }  # fmt: skip
    with pytest.raises(pgsched.WorkflowFailed, match='workflow 1 "etl": 1 of its jobs did not succeed: "fails": job 1 has ended as failed: ValueError: no') as failed:
        run.result()
    assert list(failed.value.failed) == ["fails"]
    assert "Retry that one" in run.jobs["publish"].explain()


def test_a_failed_job_is_repaired_and_what_was_skipped_runs(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    bad = etl.add(flows.takes_text, etl.add(flows.passes, 5).result)
    load = etl.add(flows.passes, bad.result)
    run = etl.enqueue()
    work_until(app, dsn, ENDED)
    assert states(connection) == {"passes": "succeeded", "takes_text": "failed", "passes 2": "skipped"}
    assert "text is 5: input should be a valid string" in str(run[bad].info().reason)
    connection.execute("update pgsched.finished set result = '\"five\"' where job_id = %s", (run.jobs["passes"].id,))
    assert run[bad].retry(dry_run=True) == {run[bad].id: "failed", run[load].id: "skipped"}
    assert states(connection)["takes_text"] == "failed", "a dry run changes nothing"
    assert run[bad].retry() == {run[bad].id: "failed", run[load].id: "skipped"}
    work_until(app, dsn, ENDED)
    assert run.result() == {"passes": 5, "takes_text": "five", "passes 2": "five"} | {"passes": "five"}


def test_a_cancel_goes_through_a_running_job_to_what_waits_for_it(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    slow = etl.add(flows.sleeps, 30.0)
    etl.after(slow).named("load").add(flows.passes)
    etl.after(slow.done).named("tidy up").add(flows.passes)
    run = etl.enqueue()
    with working(app, dsn):
        wait_until(dsn, "exists (select from pgsched.running where started_at is not null)")
        assert run[slow].cancel("enough", dry_run=True) == {1: "running", 2: "blocked"}
        assert run[slow].cancel("enough") == {1: "running", 2: "blocked"}
        assert states(connection)["load"] == "cancelled", "at once, though it still runs"
        wait_until(dsn, ENDED)
    assert states(connection) == {"sleeps": "cancelled", "load": "cancelled", "tidy up": "succeeded"}
    with pytest.raises(pgsched.WorkflowFailed):
        run.result()


def test_a_workflow_is_cancelled_as_a_whole(app: pgsched.App, connection: Any) -> None:
    etl = app.workflow("etl")
    first = etl.add(flows.passes)
    etl.after(first.done).named("tidy up").add(flows.passes)
    run = etl.enqueue()
    assert run.cancel("no") == {1: "ready", 2: "blocked"}
    assert run.cancel("no") == {}
    assert states(connection) == {"passes": "cancelled", "tidy up": "cancelled"}


def test_a_job_waits_for_jobs_that_are_there(app: pgsched.App, dsn: str, connection: Any) -> None:
    first = flows.passes.enqueue(1)
    second = flows.fails.enqueue()
    third = flows.passes.using(depends_on=[first, second.failure]).enqueue(3)
    fourth = flows.passes.using(depends_on=[first, second], rule="any").enqueue(4)
    fifth = flows.passes.using(depends_on=[first, second.done, third], at_least=2).enqueue(5)
    assert third.info().state == "blocked"
    assert third.explain().splitlines() == [
        'Job 3 (task "passes") is blocked.', "It waits for:", '  "passes" (job 1), ready', '  "fails" (job 2), ready (counts on failure)', '"passes" (job 5) waits for it.',
    ]  # fmt: skip
    work_until(app, dsn, ENDED)
    assert [job.result() for job in (third, fourth, fifth)] == [3, 4, 5]
    late = flows.passes.using(depends_on=[first]).enqueue(6)
    with working(app, dsn):
        assert late.result(timedelta(seconds=10)) == 6


def test_a_workflow_is_enqueued_in_the_callers_transaction_and_in_a_loop(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    etl.add(flows.passes, etl.add(flows.passes, 1).result)
    with psycopg.connect(dsn) as session:
        etl.enqueue(connection=session)
        session.rollback()
    assert states(connection) == {}

    async def main() -> Any:
        run = await etl.aenqueue()
        waiting = asyncio.create_task(run.aresult(timedelta(seconds=20)))
        async with app.worker(concurrency=2):
            return await waiting

    assert asyncio.run(main()) == {"passes": 1, "passes 2": 1}


def test_what_cannot_be_is_refused_by_name(app: pgsched.App, connection: Any) -> None:
    etl, other = app.workflow("etl"), app.workflow("other")
    first = etl.add(flows.passes, 1)
    with pytest.raises(pgsched.UsageError, match='the result of "passes" is not there yet'):
        first.result.upper()
    with pytest.raises(pgsched.UsageError, match='"passes" already'):
        etl.named("passes").add(flows.passes)
    other.named("passes").add(flows.passes, 2)
    with pytest.raises(pgsched.UsageError, match='"passes", whose result is taken, is a job of another workflow'):
        other.add(flows.passes, first.result)
    with pytest.raises(pgsched.UsageError, match='"passes" is a job of another workflow'):
        other.after(first).add(flows.passes)
    with pytest.raises(pgsched.UsageError, match="is a job of a workflow that is not enqueued yet"):
        flows.passes.using(depends_on=[first]).enqueue()
    for use in (str, bool, len, list, lambda r: r[0], lambda r: r == [1], lambda r: f"{r}", lambda r: r + 1):
        with pytest.raises(pgsched.UsageError, match="it can be passed on as an argument, and no more"):
            use(first.result)
    with pytest.raises(pgsched.UsageError, match="is none: decorate its function"):
        etl.add(lambda: 1)  # type: ignore[arg-type]
    with pytest.raises(pgsched.ArgumentsError, match="bogus is no parameter"):
        etl.add(flows.transform, [1], bogus=first.result)  # type: ignore[call-arg]
    for beside in ("a\0b", "\ud800", {1: 2}, {1, 2}, float("nan")):
        with pytest.raises(pgsched.ArgumentsError, match="beside a result only what JSON can hold"):
            etl.add(flows.passes, [first.result, beside])
    with pytest.raises(pgsched.UsageError, match="connection and notify are for the whole workflow"):
        etl.add(flows.passes.using(notify=False))
    with pytest.raises(pgsched.UsageError, match="a rule was given twice"):
        etl.after(first, rule="any").after(first.done, rule="all")
    with pytest.raises(pgsched.UsageError, match="a rule or at_least, not both"):
        etl.after(first, rule="any", at_least=1).add(flows.passes)
    with pytest.raises(pgsched.UsageError, match="nothing that the job waits for"):
        flows.passes.using(rule="any").enqueue()
    with pytest.raises(pgsched.UsageError, match="a job cannot wait for"):
        etl.after("passes")  # type: ignore[arg-type]
    with pytest.raises(pgsched.UsageError, match="a job that failed has none"):
        etl.after(first.failure).add(flows.passes, first.result)
    with pytest.raises(pgsched.UsageError, match="twice, once on"):
        etl.after(first.failure, first.done).add(flows.passes)
    with pytest.raises(pgsched.ArgumentsError, match="factor is 'two'"):
        etl.add(flows.transform, first.result, factor="two")  # type: ignore[arg-type]
    with pytest.raises(pgsched.UsageError, match="has no jobs"):
        app.workflow("empty").enqueue()
    with pytest.raises(pgsched.UsageError, match="1 to 200 characters"):
        app.workflow("")
    with pytest.raises(pgsched.InvalidJob, match="rule_n is 3: it must lie between 1 and the number of its edges, 1"):
        bad = app.workflow("bad")
        bad.after(bad.add(flows.passes), at_least=3).named("x").add(flows.passes)
        bad.enqueue()
    with pytest.raises(pgsched.InvalidJob, match="depends on job 999, which does not exist"):
        flows.passes.using(depends_on=[pgsched.Job(999, app.client)]).enqueue()
    assert states(connection) == {}
    job = flows.passes.enqueue()
    with pytest.raises(pgsched.InvalidCall, match="has not ended: it is ready"):
        job.retry()


def test_options_of_using_hold_in_a_workflow_and_rules_for_all_that_was_said(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    bad, good = etl.add(flows.fails), etl.add(flows.passes, 1)
    etl.named("by using").add(flows.passes.using(depends_on=[bad, good], rule="any", priority=3), 2)
    etl.after(bad, rule="any").after(good).named("by after").add(flows.passes, 3)
    etl.named("taking").add(flows.passes.using(depends_on=[bad.done], at_least=2), good.result)
    run = etl.enqueue()
    work_until(app, dsn, ENDED)
    assert {name for name, state in states(connection).items() if state == "succeeded"} == {"passes", "by using", "by after", "taking"}
    assert run.jobs["taking"].result() == 1
    late = etl.named("late").add(flows.passes)
    with pytest.raises(pgsched.UsageError, match='was not enqueued with this job "late"'):
        run[late]


def test_a_result_that_does_not_fit_is_not_blamed_on_the_code(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    etl.add(flows.takes_text, etl.add(flows.passes, 5).result)
    etl.enqueue()
    work_until(app, dsn, ENDED)
    reason = "select reason from pgsched.jobs where state = 'failed'"
    assert connection.execute(reason).fetchone()[0].endswith("(as another job returned it)")
