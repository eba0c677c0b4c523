"""Workflows that are made of parts: groups, workflows within workflows, hooks on failure; and workflows that run again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

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


def edges(connection: Any, name: str) -> set[tuple[str, str]]:
    """What a job waits for: names and conditions."""
    rows = connection.execute(
        "select p.name, d.condition from pgsched.dependency d join pgsched.job j on j.id = d.job_id join pgsched.job p on p.id = d.depends_on_id where j.name = %s",
        (name,),
    )
    return set(rows.fetchall())


def test_a_group_fans_out_over_a_list_and_its_results_are_one_argument(app: pgsched.App, dsn: str) -> None:
    etl = app.workflow("etl")
    extracted = etl.map(flows.extract, ["eu", "usa", "eu"], 2)
    transformed = etl.after(etl.add(flows.passes)).map(flows.transform, extracted.results, factor=10)
    merged = etl.add(flows.merge, transformed.results, title="sum")
    etl.after(extracted, transformed.done).named("after all").add(flows.passes)
    run = etl.enqueue()
    assert [node.name for node in extracted] == ["extract eu", "extract usa", "extract eu 2"]
    assert [node.name for node in transformed] == ["transform 1", "transform 2", "transform 3"]
    with working(app, dsn):
        assert run.result(timedelta(seconds=30))["merge"] == {"sum": (2 + 2 + 3 + 3 + 2 + 2) * 10}
    assert run[merged].result() == {"sum": 140}
    assert [run[node].result() for node in extracted] == [[2, 2], [3, 3], [2, 2]]


def test_the_failure_of_a_group_is_met_by_the_first(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    given = etl.named("given").map(flows.passes, ["a", 5, "c"])
    some = etl.named("part").map(flows.takes_text, given.results)
    etl.after(some.failure).named("page").add(flows.passes)
    etl.after(some).named("load").add(flows.passes)
    etl.after(some.done).named("tidy up").add(flows.passes)
    etl.after(some.failure, etl.add(flows.passes), rule="none_failed").named("by rule").add(flows.passes)
    etl.enqueue()
    work_until(app, dsn, ENDED)
    assert states(connection) == {
        "given a": "succeeded", "given 5": "succeeded", "given c": "succeeded", "part 1": "succeeded", "part 2": "failed", "part 3": "succeeded", "page": "succeeded", "load": "skipped", "tidy up": "succeeded", "passes": "succeeded", "by rule": "skipped",
    }  # fmt: skip


def regional(app: pgsched.App) -> tuple[pgsched.Workflow, Any]:
    """Extract, load, and what follows on the ends of load."""
    sub = app.workflow("regional")
    loaded = sub.named("load").add(flows.passes, sub.add(flows.extract, "eu").result)
    sub.after(loaded.failure).named("page").add(flows.passes)
    sub.after(loaded.done).named("tidy up").add(flows.passes)
    sub.named("hook").on_failure(flows.passes)
    return sub, loaded


def test_a_workflow_within_another_is_one_node(app: pgsched.App, dsn: str, connection: Any) -> None:
    sub, loaded = regional(app)
    etl = app.workflow("etl")
    first = etl.named("first").add(flows.passes)
    eu = etl.after(first).named("eu").add_workflow(sub)
    usa = etl.after(eu).add_workflow(sub)
    merged = etl.add(flows.merge, [eu[loaded].result, usa["load"].result], title="sum")
    etl.after(eu.failure).named("alarm").add(flows.passes)
    run = etl.enqueue()
    assert list(run.jobs)[:7] == ["first", "eu.extract", "eu.load", "eu.page", "eu.tidy up", "eu.hook", "regional.extract"]
    assert edges(connection, "eu.extract") == {("first", "success")}
    assert edges(connection, "eu.load") == {("eu.extract", "success")}
    assert edges(connection, "regional.extract") == {("eu.load", "success"), ("eu.tidy up", "success")}
    assert edges(connection, "eu.hook") == {(f"eu.{name}", "failure") for name in ("extract", "load", "page", "tidy up")}
    with working(app, dsn):
        results = run.result(timedelta(seconds=30))
    assert run[merged].result() == {"sum": 12} and results["eu.extract"] == [2, 2, 2]
    assert {name for name, state in states(connection).items() if state == "skipped"} == {"eu.page", "eu.hook", "regional.page", "regional.hook", "alarm"}


def test_a_failure_inside_is_the_failure_of_the_whole(app: pgsched.App, dsn: str, connection: Any) -> None:
    """Also where the last job inside succeeds in spite of it."""
    sub = app.workflow("sub")
    sub.after(sub.named("bad").add(flows.fails).done).named("last").add(flows.passes)
    etl = app.workflow("etl")
    part = etl.add_workflow(sub)
    etl.after(part).named("next").add(flows.passes)
    etl.after(part.failure).named("page").add(flows.passes)
    etl.after(part.done).named("always").add(flows.passes)
    etl.enqueue()
    work_until(app, dsn, ENDED)
    assert states(connection) == {
        "sub.bad": "failed", "sub.last": "succeeded", "next": "skipped", "page": "succeeded", "always": "succeeded",
    }  # fmt: skip


def test_workflows_are_nested_as_deep_as_you_like_and_wait_for_jobs_that_are_there(app: pgsched.App, dsn: str, connection: Any) -> None:
    there = flows.passes.using(delay=timedelta(hours=1)).enqueue()
    inner = app.workflow("inner")
    inner.named("x").add(flows.passes.using(depends_on=[there.done]))
    middle = app.workflow("middle")
    middle.add_workflow(inner)
    outer = app.workflow("outer")
    assert [outer.add_workflow(middle).name for _ in range(3)] == ["middle", "middle 2", "middle 3"]
    first = outer.add(flows.passes)
    outer.after(first).named("a").add_workflow(middle)
    run = outer.enqueue()
    assert list(run.jobs) == ["middle.inner.x", "middle 2.inner.x", "middle 3.inner.x", "passes", "a.inner.x"]
    assert {name for name, _ in edges(connection, "a.inner.x")} == {"passes", None}
    there.cancel()
    work_until(app, dsn, ENDED)


def test_what_fails_first_calls_the_hook_and_nothing_else_does(app: pgsched.App, dsn: str, connection: Any) -> None:
    for name, bad in (("fails", True), ("goes well", False)):
        etl = app.workflow(name)
        etl.named(f"{name}: page").on_failure(flows.passes, name)
        etl.named(f"{name}: note").on_failure(flows.passes)
        etl.named(f"{name}: a").add(flows.passes)
        if bad:
            etl.named(f"{name}: b").add(flows.fails)
        etl.enqueue()
    work_until(app, dsn, ENDED)
    assert states(connection) == {
        "fails: page": "succeeded", "fails: note": "succeeded", "fails: a": "succeeded", "fails: b": "failed",
        "goes well: page": "skipped", "goes well: note": "skipped", "goes well: a": "succeeded",
    }  # fmt: skip


def test_parts_that_cannot_be_are_refused(app: pgsched.App) -> None:
    etl, other = app.workflow("etl"), app.workflow("other")
    node = etl.add(flows.passes)
    group = etl.map(flows.passes, [1, 2])
    foreign = other.add(flows.passes)
    for how in (lambda: etl.after(group.failure, node), lambda: etl.after(node).after(group.failure), lambda: etl.after(group.failure).after(node)):
        with pytest.raises(pgsched.UsageError, match="met by the first that fails: beside something else, give a rule"):
            how()
    with pytest.raises(pgsched.UsageError, match="wait for it by after"):
        etl.add(flows.passes.using(depends_on=[group.failure]))  # type: ignore[list-item]
    with pytest.raises(pgsched.UsageError, match="cannot be a part of itself"):
        etl.add_workflow(etl)
    with pytest.raises(pgsched.UsageError, match="is no workflow"):
        etl.add_workflow(flows.passes)  # type: ignore[arg-type]
    with pytest.raises(pgsched.UsageError, match="has no jobs"):
        etl.add_workflow(app.workflow("empty"))
    with pytest.raises(pgsched.UsageError, match='"passes" is a job of another workflow'):
        etl.after(foreign).add_workflow(other)
    part = etl.named("part").add_workflow(other)
    with pytest.raises(pgsched.UsageError, match=r'has a job "part\.passes" already'):
        etl.named("part").add_workflow(other)
    for wrong in ("nobody", node):
        with pytest.raises(pgsched.UsageError, match='"part" was added without a job'):
            part[wrong]
    with pytest.raises(pgsched.UsageError, match="is none: decorate"):
        etl.map(len, [1])  # type: ignore[arg-type]
    with pytest.raises(pgsched.UsageError, match="takes no results"):
        etl.on_failure(flows.passes, node.result)
    with pytest.raises(pgsched.UsageError, match="and for nothing else"):
        etl.after(node).on_failure(flows.passes)
    hooks = app.workflow("hooks")
    hooks.on_failure(flows.passes)
    with pytest.raises(pgsched.UsageError, match="has no jobs"):
        hooks.enqueue()
    twice = app.workflow("twice")
    twice.add(flows.passes.using(depends_on=[pgsched.Job(7, app.client)], rule="any"))
    with pytest.raises(pgsched.UsageError, match="waits for other jobs already, by another rule"):
        etl.after(node).add_workflow(twice)
    with pytest.raises(pgsched.UsageError, match="naive"):
        etl.enqueue(deadline=datetime(2222, 1, 1))


def test_a_run_is_repeated_from_a_node_or_a_name(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    first = etl.named("first").add(flows.passes, 1)
    second = etl.named("second").add(flows.passes, first.result)
    parts = etl.map(flows.passes, [second.result])
    run = etl.enqueue()
    work_until(app, dsn, ENDED)
    ids = {name: job.id for name, job in run.jobs.items()}
    assert run.rerun(from_=second, dry_run=True) == run.rerun(from_="second") == {ids["second"]: "succeeded", ids["passes 1"]: "succeeded"}
    waiting = []

    async def again() -> None:
        with pytest.raises(pgsched.InvalidCall, match='has not ended: it is'):
            await run.arerun(from_=[first, "second"])
        async with app.worker(concurrency=2):
            waiting.append(await run.aresult(timedelta(seconds=20)))
        assert await run.arerun(from_=parts) == {ids["passes 1"]: "succeeded"}

    asyncio.run(again())
    assert waiting == [{"first": 1, "second": 1, "passes 1": 1}]
    work_until(app, dsn, ENDED)
    for wrong in ("nobody", []):
        with pytest.raises((pgsched.InvalidJob, pgsched.InvalidCall)):
            run.rerun(from_=wrong)
    with pytest.raises(pgsched.UsageError, match="was not enqueued with this job"):
        run.rerun(from_=app.workflow("x").add(flows.passes))
    with pytest.raises(pgsched.UsageError, match="was not enqueued with this job"):
        run.rerun(from_=[5])  # type: ignore[list-item]


def test_a_deadline_ends_what_runs_and_what_waits(app: pgsched.App, dsn: str, connection: Any) -> None:
    etl = app.workflow("etl")
    slow = etl.add(flows.sleeps, 60.0)
    etl.after(slow).named("load").add(flows.passes)
    run = etl.enqueue(deadline=timedelta(seconds=1.5))
    with working(app, dsn):
        wait_until(dsn, ENDED)
    assert states(connection) == {"sleeps": "cancelled", "load": "cancelled"}
    assert "the deadline of workflow 1" in str(run[slow].info().reason)
    assert etl.enqueue(deadline=datetime(2222, 1, 1, tzinfo=UTC)).id == 2
    assert connection.execute("select deadline from pgsched.workflows where id = 2").fetchone()[0].year == 2222
