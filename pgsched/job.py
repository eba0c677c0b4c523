"""A handle on one job that was enqueued."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pgsched.answers import Ended, JobInfo, job_info
from pgsched.edges import Edge
from pgsched.errors import JobCancelled, JobFailed, JobSkipped, UsageError
from pgsched.returned import Returned
from pgsched.run import refuse_in_loop

if TYPE_CHECKING:
    from pgsched.client import Client

R_co = TypeVar("R_co", covariant=True)

_UNSUCCESSFUL = {"failed": JobFailed, "cancelled": JobCancelled, "skipped": JobSkipped}


@dataclass(frozen=True)
class Job(Generic[R_co]):
    """One job; `id` is its number, the same in every view and command."""

    id: int
    _client: Client
    _returned: Returned | None = field(default=None, compare=False, repr=False)

    @property
    def edge(self) -> Edge:
        """For `depends_on=` and `after`: when it has succeeded, as the job itself."""
        return Edge(self.id)

    @property
    def failure(self) -> Edge:
        """For `depends_on=` and `after`: when it has failed for good."""
        return Edge(self.id, "failure")

    @property
    def done(self) -> Edge:
        """For `depends_on=` and `after`: when it has ended, however."""
        return Edge(self.id, "done")

    def info(self) -> JobInfo:
        """Where the job stands now. Raises `UsageError` when it was pruned (or its transaction has not committed)."""
        return self._info(self._client.run(self._client.calls.job(self.id), "info", "ainfo"))

    async def ainfo(self) -> JobInfo:
        """`info` in an event loop."""
        return self._info(await self._client.arun(self._client.calls.job(self.id)))

    def cancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[int, str]:
        """Cancel the job: which jobs this changes, and what each was ("ready", "running", ...); empty where it had ended.

        What waits ends at once. What runs is told to stop (see the guide for how far each executor can be stopped) and ends as
        cancelled, whatever it reports. `dry_run` answers the same and changes nothing. Raises `InvalidJob` where there is no such
        job.
        """
        return self._client.run(self._client.calls.cancel([self.id], reason, dry_run), "cancel", "acancel")

    async def acancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[int, str]:
        """`cancel` in an event loop."""
        return await self._client.arun(self._client.calls.cancel([self.id], reason, dry_run))

    def retry(self, *, dry_run: bool = False) -> dict[int, str]:
        """Let the job run again, which has failed, was cancelled, or expired: which jobs this changes, and what each was.

        Its attempts start anew, and what had ended because of it waits again. Raises `InvalidCall` where it has not ended, has
        succeeded, or ended because of another (which is to be retried); `InvalidJob` where there is no such job; `KeyContended`
        where its unique key belongs to another job.
        """
        return self._client.run(self._client.calls.retry(self.id, dry_run), "retry", "aretry")

    async def aretry(self, *, dry_run: bool = False) -> dict[int, str]:
        """`retry` in an event loop."""
        return await self._client.arun(self._client.calls.retry(self.id, dry_run))

    def explain(self) -> str:
        """Why the job is where it is, whom it waits for and who waits for it, in plain sentences."""
        return self._client.run(self._client.calls.explain(self.id), "explain", "aexplain")

    async def aexplain(self) -> str:
        """`explain` in an event loop."""
        return await self._client.arun(self._client.calls.explain(self.id))

    def subtasks(self) -> list[JobInfo]:
        """The subtasks that its last attempt made, oldest first: where each stands, and its result as JSON holds it.

        A job that depends on this one begins after all of them, so that it finds how each has ended. Raises `InvalidJob` where
        there is no such job.
        """
        rows = self._client.run(self._client.calls.subtasks(self.id), "subtasks", "asubtasks")
        return [job_info(row) for row in rows]

    async def asubtasks(self) -> list[JobInfo]:
        """`subtasks` in an event loop."""
        return [job_info(row) for row in await self._client.arun(self._client.calls.subtasks(self.id))]

    def result(self, timeout: timedelta | None = None) -> R_co:
        """Wait until the job has ended; what its handler returned, of the type that its annotation says.

        timeout   how long to wait at most, then `TimeoutError`: the job goes on. None: as long as it takes

        Raises `JobFailed`, `JobCancelled` or `JobSkipped` (all of them `JobUnsuccessful`) when it ended so; `UsageError` when it
        is not there: pruned, or made in a transaction that has not committed, which is never waited for, since it might be the
        caller's own; `ResultError` when what was stored does not fit the annotation. A connection that is lost while it waits is
        made again; `ConnectError` where the database does not answer at first.
        """
        refuse_in_loop("result", "aresult")
        return self.value_of(self._client.results.ended(self.id, timeout))

    async def aresult(self, timeout: timedelta | None = None) -> R_co:  # noqa: ASYNC109 (as its twin)
        """`result` in an event loop."""
        return self.value_of(await self._client.results.aended(self.id, timeout))

    def _info(self, row: dict[str, object] | None) -> JobInfo:
        if row is None:
            raise self._missing()
        return job_info(row)

    def value_of(self, ended: Ended) -> R_co:
        """What `result` answers, where it is known how the job ended."""
        if ended.state is None:
            raise self._missing()
        if ended.state in _UNSUCCESSFUL:
            last = ended.error_type, ended.error, ended.traceback
            raise _UNSUCCESSFUL[ended.state](self.id, ended.state, ended.reason, *last)
        if self._returned is not None:
            return cast("R_co", self._returned.load(ended.result))
        return cast("R_co", _plain(ended.result))

    def _missing(self) -> UsageError:
        return UsageError(
            f"there is no job {self.id}: it was pruned, or the transaction that made it has not committed (commit it first)"
        )

    def __repr__(self) -> str:
        return f"Job({self.id})"


def _plain(text: str | None) -> Any:
    return None if text is None else json.loads(text)
