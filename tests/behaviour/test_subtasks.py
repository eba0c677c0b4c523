"""Jobs that make jobs while they run, by real workers: their parent ends after them, and takes them along where it does not succeed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from harness import flows
from harness.running import ENDED, work_until, working

import pgsched

pytestmark = pytest.mark.one_server
SOON = timedelta(seconds=30)
ALL = [flows.splits, flows.splits_on_loop, flows.splits_in_process, flows.splits_in_transaction]


@pytest.fixture
def app(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pgsched.App]:
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    flows.app.use(dsn)
    yield flows.app
    flows.app.close()


def ends(connection: Any) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = connection.execute("select task, state, result from pgsched.jobs order by id").fetchall()
    return found


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_a_job_ends_after_the_jobs_that_it_makes_whatever_runs_it(app: pgsched.App, dsn: str, connection: Any, task: Any) -> None:
    job = task.enqueue(3)
    after = flows.passes.using(depends_on=[job]).enqueue("after")
    with working(app, dsn, executors=1):
        assert (job.result(timeout=SOON), after.result(timeout=SOON)) == ("made", "after")
    assert ends(connection) == [(task.name, "succeeded", "made"), ("passes", "succeeded", "after"), *[("part", "succeeded", i) for i in range(3)]]
    order = connection.execute(
        "select max(f.finished_at) <= min(p.finished_at) and max(p.finished_at) <= min(a.started_at) "
        "from pgsched.finished f join pgsched.job j on j.id = f.job_id and j.parent_id = %s, pgsched.finished p, pgsched.finished a where p.job_id = %s and a.job_id = %s",
        (job.id, job.id, after.id),
    )  # fmt: skip
    assert order.fetchone() == (True,)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_where_a_subtask_fails_so_does_its_parent_unless_its_task_says_otherwise(app: pgsched.App, dsn: str, connection: Any, task: Any) -> None:
    job = task.enqueue(2, parts="fails")
    with working(app, dsn, executors=1):
        if task is flows.splits_in_process:
            assert job.result(timeout=SOON) == "made"
        else:
            with pytest.raises(pgsched.JobFailed, match="its subtask job 3 has failed"):
                job.result(timeout=SOON)
    assert [state for _, state, _ in ends(connection)[1:]] == ["succeeded", "failed"]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_where_the_parent_fails_its_subtasks_are_stopped_first(app: pgsched.App, dsn: str, connection: Any, task: Any) -> None:
    job = task.enqueue(2, then="raises", parts="sleeps")
    with working(app, dsn, executors=1), pytest.raises(pgsched.JobFailed, match="the parent"):
        job.result(timeout=SOON)
    if task is flows.splits_in_transaction:  # (they were made in its transaction, and went with that, twice)
        assert ends(connection) == [(task.name, "failed", None)]
        assert connection.execute("select attempt from pgsched.jobs").fetchone() == (2,)
    else:
        assert ends(connection)[-1][1] == "cancelled"


def test_a_cancelled_job_takes_its_running_subtasks_along(app: pgsched.App, dsn: str, connection: Any) -> None:
    job = flows.splits.enqueue(2, parts="sleeps")
    with working(app, dsn) as worker:
        worker.wait_until("(select count(*) from pgsched.jobs where state = 'running' and parent_id is not null) = 1 and (select state = 'parked' from pgsched.jobs where id = 1)")
        assert "waits for its subtasks" in job.explain()
        assert dict(job.cancel()) == {job.id: "parked", job.id + 2: "running"}
        worker.wait_until(ENDED)
    assert [state for _, state, _ in ends(connection)] == ["cancelled", "succeeded", "cancelled"]


def test_what_is_no_job_that_runs_here_cannot_be_a_parent(app: pgsched.App, dsn: str) -> None:
    job = flows.passes.enqueue()
    with pytest.raises(pgsched.UsageError, match=r"it is the job that runs here, pgsched.current_job\(\)"):
        flows.part.using(parent=job).enqueue(1)  # type: ignore[arg-type]
    late = pgsched.context.JobContext(job.id, "passes", 1, 5)
    with pytest.raises(pgsched.StaleClaim, match="does not run under claim 5"):
        flows.part.using(parent=late).enqueue(1)
    with pytest.raises(pgsched.UsageError, match="a job of a workflow is not a subtask"):
        app.workflow("w").add(flows.part.using(parent=late), 1)
    work_until(app, dsn, ENDED)


def test_what_depends_on_the_parent_reads_the_results_of_its_subtasks(app: pgsched.App, dsn: str, connection: Any) -> None:
    flow = app.workflow("sum")
    made = flow.add(flows.squares, [1, 2, 3])
    total = flow.add(flows.sum_of, made.result)
    run = flow.enqueue()
    work_until(app, dsn, ENDED)
    app.use(dsn)
    assert run[total].result() == 14
    parts = run[made].subtasks()
    assert [(part.task, part.state, part.result) for part in parts] == [("square", "succeeded", n * n) for n in (1, 2, 3)]
    assert connection.execute("select jobs, succeeded from pgsched.workflows").fetchone() == (2, 2)  # (subtasks are parts of their parent)
    with pytest.raises(pgsched.InvalidJob, match="there is no job 99"):
        app.job(99).subtasks()
    with pytest.raises(pgsched.UsageError, match="is no job's number"):
        app.job(-1)
