"""The SQL protocol as a test speaks it: a worker made of bare sessions, and statements that block."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import psycopg
from psycopg.rows import dict_row

INFO = {
    "protocol": 1, "name": "steps", "host": "here", "pid": 1, "app": "steps", "queues": ["q"], "concurrency": 10,
    "version": "0", "rescue_after_s": 60,
}  # fmt: skip


class Steps:
    """One worker: a lease session and a work session, without anything of Python's in between."""

    def __init__(self, dsn: str, **info: Any) -> None:
        self.dsn = dsn
        self.lease = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        try:
            row = self.lease.execute("select * from pgsched.attach(%s)", (json.dumps(INFO | info),)).fetchone()
        except BaseException:
            self.lease.close()
            raise
        assert row is not None
        self.id, self.token, self.epoch = row["worker_id"], row["token"], row["epoch"]
        self.sessions: list[psycopg.Connection[dict[str, Any]]] = []
        self.work = self.open_session()

    def open_session(self) -> psycopg.Connection[dict[str, Any]]:
        """One more work session."""
        session = psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row)
        self.sessions.append(session)
        session.execute("select pgsched.open_session(%s, %s, %s)", (self.id, self.token, len(self.sessions)))
        return session

    def claim(self, n: int = 10, queue: str = "q", session: Any = None, **want: Any) -> list[dict[str, Any]]:
        """Claim up to n jobs of all priorities; the rows that are jobs."""
        text = json.dumps({"lanes": [{"queue": queue, "priority": p} for p in range(10)], "max_jobs": n} | want)
        rows = (session or self.work).execute("select * from pgsched.claim(%s, %s)", (self.id, text)).fetchall()
        return [row for row in rows if row["job_id"] is not None]

    def finish(self, *claims: dict[str, Any], session: Any = None, **outcome: Any) -> list[str]:
        """End claims with one outcome for all; the verdicts in the order given."""
        results = [{"job_id": c["job_id"], "claim_id": c["claim_id"], "outcome": "succeeded"} | outcome for c in claims]
        rows = (session or self.work).execute("select * from pgsched.finish(%s, %s)", (self.id, json.dumps(results))).fetchall()
        verdicts = {row["claim_id"]: row["verdict"] for row in rows}
        return [verdicts[c["claim_id"]] for c in claims]

    def close(self) -> None:
        """End all sessions: the lock is free afterwards."""
        for session in [*self.sessions, self.lease]:
            session.close()


class Blocked:
    """A statement that runs in a thread on a session of its own; `until_blocked` proves that it waits for a lock."""

    def __init__(self, connection: psycopg.Connection[Any], statement: str, params: Any = None) -> None:
        self._connection = connection
        self.rows: list[Any] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(statement, params))
        self._thread.start()

    def _run(self, statement: str, params: Any) -> None:
        try:
            cursor = self._connection.execute(statement, params)
            self.rows = cursor.fetchall() if cursor.description else []
        except BaseException as error:
            self.error = error

    def until_blocked(self, by: psycopg.Connection[Any]) -> None:
        """Wait until the server says that it waits for the session `by`."""
        pids = by.info.backend_pid, self._connection.info.backend_pid
        with psycopg.connect(self._connection.info.dsn, autocommit=True) as watcher:
            self._wait(watcher, pids)

    def _wait(self, watcher: psycopg.Connection[Any], pids: tuple[int, int]) -> None:
        for _ in range(3000):
            if watcher.execute("select %s = any (pg_blocking_pids(%s))", pids).fetchone()[0]:  # type: ignore[index]
                return
            assert self._thread.is_alive(), f"it did not block: {self.rows or self.error}"
            time.sleep(0.01)
        raise AssertionError("it never blocked")

    def result(self) -> list[Any]:
        """Its rows, once it has ended; its error is raised."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "it still runs"
        if self.error is not None:
            raise self.error
        return self.rows


def enqueue(connection: Any, n: int = 1, **options: Any) -> list[int]:
    """Enqueue n jobs of task t in queue q; their ids."""
    job = {"task": "t", "queue": "q"} | options
    rows = connection.execute("select pgsched.enqueue_many(%s)", (json.dumps([job] * n),)).fetchall()
    return [next(iter(row.values())) if isinstance(row, dict) else row[0] for row in rows]


def child(connection: Any, *on: int | tuple[int, str], **options: Any) -> int:
    """A job that waits for others: by id, or (id, condition)."""
    edges = [{"job": one} if isinstance(one, int) else {"job": one[0], "on": one[1]} for one in on]
    return enqueue(connection, depends_on=edges, **options)[0]


def rescue(connection: Any, worker: Steps | int, begun: list[int] | None = None, n: int = 1000) -> dict[str, int]:
    """The certified rescue, as soon as the server has ended the worker's sessions."""
    for _ in range(1000):
        try:
            call = "select pgsched.rescue(%s, %s, true, %s)"
            row = connection.execute(call, (worker if isinstance(worker, int) else worker.id, begun, n)).fetchone()
            answer: dict[str, int] = next(iter(row.values())) if isinstance(row, dict) else row[0]
            return {name: answer[name] for name in ("moved", "left")}
        except psycopg.Error as error:
            if error.sqlstate != "PGS07":
                raise
        time.sleep(0.01)
    raise AssertionError("the sessions never ended")


def places(connection: Any) -> dict[int, str]:
    """In which state table each job is."""
    rows = connection.execute(
        "select job_id, 'waiting' as place from pgsched.waiting union all select job_id, 'ready' from pgsched.ready "
        "union all select job_id, 'running' from pgsched.running union all select job_id, state from pgsched.finished"
    ).fetchall()
    return {(r["job_id"] if isinstance(r, dict) else r[0]): (r["place"] if isinstance(r, dict) else r[1]) for r in rows}
