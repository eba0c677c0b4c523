"""Every operation on the database as a value: the SQL, its parameters, and how its answer is read.

Nothing here sends anything; `run.py` does, in a synchronous connection, an asynchronous one, or the caller's own
transaction. So sync and async cannot differ, and the list below is the whole of what Python asks of the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from psycopg import sql

from pgsched.answers import Ended
from pgsched.calls_of_schedules import ScheduleCalls

T = TypeVar("T")
Rows = list[tuple[Any, ...]]

_SUCH = "%(task)s, %(error)s, %(queue)s, %(since)s::timestamptz, %(until)s::timestamptz"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One statement: `text` has a `%(name)s` for each of `params`; `read` makes the answer of its rows."""

    text: str
    params: Mapping[str, Any]
    read: Callable[[Rows], T]
    schema: str


class Calls:
    """The operations, for one schema."""

    def __init__(self, schema: str = "pgsched") -> None:
        self.schema = schema
        self._prefix = sql.Identifier(schema).as_string(None).replace("%", "%%") + "."
        self._qualified = lru_cache(256)(lambda text: text.replace("@", self._prefix))
        self.schedules = ScheduleCalls(self._call)

    def _call(self, text: str, read: Callable[[Rows], T], **params: Any) -> Call[T]:
        return Call(self._qualified(text), params, read, self.schema)

    # Anyone

    def protocol(self) -> Call[int]:
        """The protocol number that the schema speaks."""
        return self._call("select @protocol()", _scalar)

    def enqueue_many(self, jobs: str, notify: bool = True) -> Call[list[int]]:
        """Enqueue the JSON array `jobs`; the ids in input order."""
        return self._call("select @enqueue_many(%(jobs)s::jsonb, %(notify)s)", _column, jobs=jobs, notify=notify)

    def enqueue(self, **values: Any) -> Call[int]:
        """Enqueue one job by the parameters of the SQL function enqueue, spans and times as texts; its id."""
        casts = {
            "args": "jsonb",
            "metadata": "jsonb",
            "run_at": "timestamptz",
            "delay": "interval",
            "expires_at": "timestamptz",
            "timeout": "interval",
        }
        given = {name: value for name, value in values.items() if value is not None}
        named = ", ".join(f'"{name}" => %({name})s' + (f"::{casts[name]}" if name in casts else "") for name in given)
        return self._call(f"select @enqueue({named})", _scalar, **given)

    def enqueue_workflow(self, workflow: str, notify: bool = True) -> Call[dict[str, Any]]:
        """Enqueue a workflow: {"workflow_id", "job_ids"}, the ids in input order."""
        return self._call(
            "select @enqueue_workflow(%(workflow)s::jsonb, %(notify)s)", _scalar, workflow=workflow, notify=notify
        )

    def ended_channel(self) -> Call[str]:
        """The channel on which the ends of jobs are told to those who wait."""
        return self._call("select @ended_channel()", _scalar)

    def results(self, job_ids: Sequence[int]) -> Call[list[Ended]]:
        """How these jobs ended: one for each that has, or that is not there."""
        return self._call(
            "select job_id, state, result::text, reason, error_type, error, traceback from @results(%(ids)s::bigint[])",
            lambda rows: [Ended(*row) for row in rows],
            ids=list(job_ids),
        )

    # People

    def job(self, job_id: int) -> Call[dict[str, Any] | None]:
        """One row of the view jobs as a dict, or None."""
        return self._call(
            "select to_jsonb(j) from @jobs j where id = %(id)s", lambda rows: rows[0][0] if rows else None, id=job_id
        )

    def attempts(self, job_id: int) -> Call[list[dict[str, Any]]]:
        """The attempts of a job that ended without a success, oldest first."""
        return self._call(
            "select to_jsonb(e) from @job_errors e where job_id = %(id)s order by claim_id", _column, id=job_id
        )

    def list_jobs(
        self, state: str | None, queue: str | None, task: str | None, before_id: int | None, limit: int
    ) -> Call[list[dict[str, Any]]]:
        """The newest jobs by state, queue and task."""
        return self._call(
            "select to_jsonb(j) from @list_jobs(%(state)s, %(queue)s, %(task)s, %(before)s, %(limit)s) j",
            _column,
            state=state,
            queue=queue,
            task=task,
            before=before_id,
            limit=limit,
        )

    def cancel(self, job_ids: Sequence[int], reason: str | None, dry_run: bool) -> Call[dict[int, str]]:
        """Cancel jobs: which it changes, and what they were."""
        return self._call(
            "select job_id, was from @cancel_many(%(ids)s::bigint[], %(reason)s, %(dry)s)",
            lambda rows: dict(rows),
            ids=list(job_ids),
            reason=reason,
            dry=dry_run,
        )

    def cancel_workflow(self, workflow_id: int, reason: str | None, dry_run: bool) -> Call[dict[int, str]]:
        """Cancel what of a workflow has not ended: which jobs it changes, and what they were."""
        return self._call(
            "select job_id, was from @cancel_workflow(%(id)s, %(reason)s, %(dry)s)",
            lambda rows: dict(rows),
            id=workflow_id,
            reason=reason,
            dry=dry_run,
        )

    def retry(self, job_id: int, dry_run: bool) -> Call[dict[int, str]]:
        """Let a job run again: which jobs it changes, and what they were."""
        return self._call(
            "select job_id, was from @retry(%(id)s, %(dry)s)", lambda rows: dict(rows), id=job_id, dry=dry_run
        )

    def failed_groups(self, such: Mapping[str, Any], limit: int) -> Call[list[dict[str, Any]]]:
        """The failed jobs that are meant (see `pgsched.failed.such`), counted by task and error."""
        text = f"select to_jsonb(f) from @failed_groups({_SUCH}, %(limit)s::integer) f"
        return self._call(text, _column, limit=limit, **such)

    def list_failed(
        self, such: Mapping[str, Any], limit: int, before_id: int | None = None
    ) -> Call[list[dict[str, Any]]]:
        """The failed jobs that are meant, newest first."""
        text = f"select to_jsonb(f) from @list_failed({_SUCH}, %(before)s::bigint, %(limit)s::integer) f"
        return self._call(text, _column, limit=limit, before=before_id, **such)

    def retry_failed(self, such: Mapping[str, Any], limit: int, dry_run: bool, above: int) -> Call[Rows]:
        """Let failed jobs with ids above `above` run again: rows of (job_id, outcome, why)."""
        text = f"select job_id, outcome, why from @retry_failed({_SUCH}, %(limit)s::integer, %(dry)s, %(above)s)"
        return self._call(text, lambda rows: rows, limit=limit, dry=dry_run, above=above, **such)

    def rerun_workflow(self, workflow_id: int, names: Sequence[str], dry_run: bool) -> Call[dict[int, str]]:
        """Let jobs of a workflow and all that comes after them run again: which jobs it changes, and what they were."""
        return self._call(
            "select job_id, was from @rerun_workflow(%(id)s, %(names)s::text[], %(dry)s)",
            lambda rows: dict(rows),
            id=workflow_id,
            names=list(names),
            dry=dry_run,
        )

    def subtasks(self, job_id: int) -> Call[list[dict[str, Any]]]:
        """The subtasks of a job's present life, oldest first: rows of the view jobs."""
        return self._call("select to_jsonb(s) from @subtasks(%(id)s) s", _column, id=job_id)

    def explain(self, job_id: int) -> Call[str]:
        """Why a job is where it is, in plain sentences."""
        return self._call("select @explain(%(id)s)", _scalar, id=job_id)

    def workflows(self, limit: int) -> Call[list[dict[str, Any]]]:
        """The newest rows of the view workflows; state and counts are null where they would take long."""
        return self._call("select to_jsonb(w) from @list_workflows(%(limit)s) w", _column, limit=limit)

    def workflow_jobs(self, workflow_id: int) -> Call[list[dict[str, Any]]]:
        """The jobs of a workflow and their edges, each after all that it waits for."""
        return self._call("select to_jsonb(w) from @workflow_jobs(%(id)s) w", _column, id=workflow_id)

    def queues(self) -> Call[list[dict[str, Any]]]:
        """The view queues."""
        return self._call("select to_jsonb(q) from @queues q order by queue", _column)

    def workers(self, all_: bool = False) -> Call[list[dict[str, Any]]]:
        """The view workers: those that live or fell silent, or all that the table knows."""
        return self._call(
            "select to_jsonb(w) from @workers w where %(all)s or state in ('alive', 'silent') order by attached_at",
            _column,
            all=all_,
        )

    def violations(self) -> Call[list[dict[str, Any]]]:
        """What check_invariants() finds: nothing, always."""
        return self._call("select to_jsonb(v) from @check_invariants() v", _column)

    # Operators

    def prune(self, older_than: str, n: int) -> Call[int]:
        """Remove up to n jobs that ended longer ago than this interval; how many went, -1 when somebody else prunes now."""
        return self._call(
            "select @prune(%(older_than)s::interval, %(n)s::integer)", _scalar, older_than=older_than, n=n
        )

    def grant_access(self, role: str, level: str) -> Call[None]:
        """Let a role use what its level may use."""
        return self._call("select @grant_access(%(role)s, %(level)s)", _nothing, role=role, level=level)

    def adopt(self) -> Call[int]:
        """Make this database the home of its queue; the new epoch."""
        return self._call("select @adopt()", _scalar)

    def rescue(self, worker_id: int, begun: Sequence[int] | None, above: int = 0) -> Call[dict[str, int | None]]:
        """Put back jobs (with ids above `above`) of a worker that the caller has reaped: {"moved", "left", "last"}."""
        return self._call(
            "select @rescue(%(id)s, %(begun)s::bigint[], certified => true, above => %(above)s)",
            _scalar,
            id=worker_id,
            begun=None if begun is None else list(begun),
            above=above,
        )

    # The leader

    def lead(self, info: str) -> Call[int | None]:
        """Try to become the leader: the term, or None where somebody else leads."""
        return self._call("select @lead(%(info)s::jsonb)", _scalar, info=info)

    def leader_beat(self) -> Call[dict[str, Any]]:
        """The leader's heartbeat: {"term", "silent"}."""
        return self._call("select @leader_beat()", _scalar)

    def rescue_silent(
        self, worker_id: int, generation: int | None, silent_s: float, above: int = 0
    ) -> Call[dict[str, int | None]]:
        """Put back jobs (with ids above `above`) of a worker that this leader has seen silent for so long, as `rescue` does."""
        return self._call(
            "select @rescue(%(id)s, above => %(above)s, generation => %(generation)s::integer, silent_s => %(silent)s)",
            _scalar,
            id=worker_id,
            above=above,
            generation=generation,
            silent=silent_s,
        )

    def resign(self, reason: str) -> Call[int]:
        """End this session's term."""
        return self._call("select @resign(%(reason)s)", _scalar, reason=reason)

    def ask_leader_to_resign(self) -> Call[int | None]:
        """Ask whoever leads to resign: the term asked, None where nobody leads."""
        return self._call("select @ask_leader_to_resign()", _scalar)

    def leader(self) -> Call[list[dict[str, Any]]]:
        """The view leader: one row, or none."""
        return self._call("select to_jsonb(l) from @leader l", _column)

    # Workers

    def channel(self) -> Call[str]:
        """The channel on which workers are woken."""
        return self._call("select @channel()", _scalar)

    def attach(self, info: str) -> Call[tuple[int, str, int]]:
        """Register a worker: its id, its token, the epoch."""
        return self._call("select worker_id, token, epoch from @attach(%(info)s::jsonb)", _row, info=info)

    def reattach(self, worker_id: int, token: str, claim_ids: Sequence[int]) -> Call[list[int]]:
        """Take the lease again; the claims that the server does not know."""
        return self._call(
            "select @reattach(%(id)s, %(token)s, %(claims)s::bigint[])",
            _column,
            id=worker_id,
            token=token,
            claims=list(claim_ids),
        )

    def open_session(self, worker_id: int, token: str, session_no: int) -> Call[int]:
        """Make a work session; the epoch."""
        return self._call(
            "select @open_session(%(id)s, %(token)s, %(no)s::integer)",
            _scalar,
            id=worker_id,
            token=token,
            no=session_no,
        )

    def heartbeat(self, worker_id: int) -> Call[Any]:
        """Prove the lease by a commit."""
        return self._call("select @heartbeat(%(id)s)", _scalar, id=worker_id)

    def detach(self, worker_id: int) -> Call[int]:
        """Say that the worker has ended; how many of its jobs are still in running."""
        return self._call("select @detach(%(id)s)", _scalar, id=worker_id)

    def reconcile(self, worker_id: int, ended: Sequence[int], known: Sequence[int]) -> Call[int]:
        """Give back what ended sessions claimed and the worker does not know; how many."""
        return self._call(
            "select @reconcile(%(id)s, %(ended)s::integer[], %(known)s::bigint[])",
            _scalar,
            id=worker_id,
            ended=list(ended),
            known=list(known),
        )

    def finish(self, worker_id: int, results: str, want: str | None) -> Call[Rows]:
        """End claims and claim anew: rows of (verdict, job_id, claim_id, attempt, task, args, timeout, extra)."""
        return self._call(
            "select verdict, job_id, claim_id, attempt, task, args, timeout, extra "
            "from @finish(%(id)s, %(results)s::jsonb, %(want)s::jsonb)",
            _rows,
            id=worker_id,
            results=results,
            want=want,
        )

    def begin(self, worker_id: int, claims: str) -> Call[Rows]:
        """These claims' handlers begin, each in its own transaction: rows of (job_id, claim_id, verdict)."""
        return self._call(
            "select job_id, claim_id, verdict from @begin(%(id)s, %(claims)s::jsonb)",
            _rows,
            id=worker_id,
            claims=claims,
        )

    def begin_transaction(self, job_id: int, claim_id: int) -> Call[Any]:
        """Mark this transaction as the claim's."""
        return self._call("select @begin_transaction(%(job)s, %(claim)s)", _scalar, job=job_id, claim=claim_id)

    def finish_transaction(self, job_id: int, claim_id: int, result: str | None, lenient: bool = False) -> Call[Any]:
        """End the claim as succeeded within its own transaction."""
        return self._call(
            "select @finish_transaction(%(job)s, %(claim)s, %(result)s::jsonb, %(lenient)s)",
            _scalar,
            job=job_id,
            claim=claim_id,
            result=result,
            lenient=lenient,
        )

    def stops(self, worker_id: int, timed_out: str) -> Call[Rows]:
        """Which claims were told to stop: rows of (claim_id, reason, note)."""
        return self._call(
            "select claim_id, reason, note from @stops(%(id)s, %(late)s::jsonb)",
            _rows,
            id=worker_id,
            late=timed_out,
        )

    def stop_channel(self) -> Call[str]:
        """The channel on which workers hear that a job of theirs was told to stop."""
        return self._call("select @stop_channel()", _scalar)

    def report_progress(self, worker_id: int, progress: str) -> Call[int]:
        """Say how far jobs of this worker are; how many it still runs of them."""
        return self._call(
            "select @report_progress(%(id)s, %(progress)s::jsonb)", _scalar, id=worker_id, progress=progress
        )

    def stage(self, n: int = 1000) -> Call[dict[str, Any]]:
        """Move what is due: {"staged", "expired", "next_at"} or {"busy"}."""
        return self._call("select @stage(%(n)s::integer)", _scalar, n=n)

    def enforce_deadlines(self, n: int = 1000) -> Call[dict[str, Any]]:
        """Cancel what has not ended of workflows whose deadlines have passed: {"cancelled", "more"}."""
        return self._call("select @enforce_deadlines(%(n)s::integer)", _scalar, n=n)

    def release(self, n: int = 1000) -> Call[dict[str, Any]]:
        """Decide over what waits for dependencies: {"ready", "ended", "more", "kept"} or {"busy"}."""
        return self._call("select @release(%(n)s::integer)", _scalar, n=n)


def _rows(rows: Rows) -> Rows:
    return rows


def _scalar(rows: Rows) -> Any:
    return rows[0][0]


def _row(rows: Rows) -> Any:
    return rows[0]


def _column(rows: Rows) -> list[Any]:
    return [row[0] for row in rows]


def _nothing(rows: Rows) -> None:
    return None
