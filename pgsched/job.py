"""A handle on one job that was enqueued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pgsched.calls import JobInfo, job_info
from pgsched.errors import UsageError

if TYPE_CHECKING:
    from pgsched.client import Client

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Job(Generic[R_co]):
    """One job; `id` is its number, the same in every view and command."""

    id: int
    _client: Client

    def info(self) -> JobInfo:
        """Where the job stands now. Raises `UsageError` when it was pruned (or its transaction has not committed)."""
        return self._found(self._client.run(self._client.calls.job(self.id), "info", "ainfo"))

    async def ainfo(self) -> JobInfo:
        """`info` in an event loop."""
        return self._found(await self._client.arun(self._client.calls.job(self.id)))

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

    def _found(self, row: dict[str, object] | None) -> JobInfo:
        if row is None:
            raise UsageError(
                f"there is no job {self.id}: it was pruned, or the transaction that made it has not committed"
            )
        return job_info(row)

    def __repr__(self) -> str:
        return f"Job({self.id})"
