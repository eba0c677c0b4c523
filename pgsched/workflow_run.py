"""A workflow that was enqueued: its jobs, its end, and how it is cancelled or run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pgsched.answers import Ended
from pgsched.calls import Call
from pgsched.errors import JobUnsuccessful, UsageError, WorkflowFailed
from pgsched.job import Job
from pgsched.run import refuse_in_loop

if TYPE_CHECKING:
    from pgsched.workflow import Node, Workflow

R = TypeVar("R")


@dataclass(frozen=True)
class WorkflowRun:
    """A workflow that was enqueued."""

    id: int
    """Its number, the same in every view and command."""
    name: str
    jobs: Mapping[str, Job[Any]] = field(repr=False)
    """Its jobs by their names."""
    _workflow: Workflow = field(repr=False, compare=False)

    def __getitem__(self, node: Node[R]) -> Job[R]:
        """The job of a node. Raises `UsageError` for one that this run does not have."""
        if getattr(node, "_workflow", None) is not self._workflow or node.name not in self.jobs:
            raise UsageError(
                f'workflow {self.id} "{self.name}" was not enqueued with this job "{getattr(node, "name", node)}"'
            )
        return self.jobs[node.name]

    def result(self, timeout: timedelta | None = None) -> dict[str, Any]:
        """Wait until all its jobs have ended; what each that has succeeded returned, by its name.

        Raises `WorkflowFailed` where one has failed or was cancelled (a skipped one is no failure); `TimeoutError`.
        """
        refuse_in_loop("result", "aresult")
        ended = self._workflow.app.client.results.all_ended([job.id for job in self.jobs.values()], timeout)
        return self._outcome(ended)

    async def aresult(self, timeout: timedelta | None = None) -> dict[str, Any]:  # noqa: ASYNC109 (as its twin)
        """`result` in an event loop."""
        ended = await self._workflow.app.client.results.aall_ended([job.id for job in self.jobs.values()], timeout)
        return self._outcome(ended)

    def cancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[int, str]:
        """Cancel all its jobs that have not ended; as `Job.cancel`."""
        return self._workflow.app.client.run(
            self._workflow.app.client.calls.cancel_workflow(self.id, reason, dry_run), "cancel", "acancel"
        )

    async def acancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[int, str]:
        """`cancel` in an event loop."""
        return await self._workflow.app.client.arun(
            self._workflow.app.client.calls.cancel_workflow(self.id, reason, dry_run)
        )

    def rerun(self, *, from_: Node[Any] | str | Iterable[Node[Any] | str], dry_run: bool = False) -> dict[int, str]:
        """Let jobs of it, by node or name, and all that comes after them run again: which jobs this changes, and what each was.

        Also what has succeeded runs again; what somebody cancelled on purpose does not, unless it is named. Until a job has ended
        again it has no result: `result` waits for the new one. `dry_run` answers the same and changes nothing. Raises
        `InvalidCall` where one of them has not ended, or takes a result that was pruned; `InvalidJob` where there is no such job;
        `KeyContended` where its unique key belongs to another job. Nothing is changed then.
        """
        return self._workflow.app.client.run(self._rerun(from_, dry_run), "rerun", "arerun")

    async def arerun(
        self, *, from_: Node[Any] | str | Iterable[Node[Any] | str], dry_run: bool = False
    ) -> dict[int, str]:
        """`rerun` in an event loop."""
        return await self._workflow.app.client.arun(self._rerun(from_, dry_run))

    def _rerun(self, from_: Node[Any] | str | Iterable[Node[Any] | str], dry_run: bool) -> Call[dict[int, str]]:
        given = [from_] if isinstance(from_, str) or not isinstance(from_, Iterable) else list(from_)
        for one in given:
            if not isinstance(one, str):
                self[one]
        names = [one if isinstance(one, str) else one.name for one in given]
        return self._workflow.app.client.calls.rerun_workflow(self.id, names, dry_run)

    def _outcome(self, ended: list[Ended]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        failed: dict[str, JobUnsuccessful] = {}
        for (name, job), one in zip(self.jobs.items(), ended, strict=True):
            try:
                found[name] = job.value_of(one)
            except JobUnsuccessful as error:
                if error.state != "skipped":
                    failed[name] = error
        if failed:
            raise WorkflowFailed(self.id, self.name, failed)
        return found
