"""One leader, by a lock that a session holds; and what only it may do."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest
from harness.protocol import Steps, enqueue, places


class Node:
    """A session that stands for leader."""

    def __init__(self, dsn: str, name: str) -> None:
        self.session = psycopg.connect(dsn, autocommit=True)
        self.info = json.dumps({"name": name, "host": "here", "pid": 1})

    def lead(self) -> int | None:
        row = self.session.execute("select pgsched.lead(%s)", (self.info,)).fetchone()
        assert row is not None
        return row[0]  # type: ignore[no-any-return]

    def refused(self, call: str, *params: Any) -> str:
        with pytest.raises(psycopg.Error) as error:
            self.session.execute(f"select {call}", params)
        return error.value.sqlstate or ""


@pytest.fixture
def nodes(dsn: str) -> Any:
    pair = Node(dsn, "prod-1"), Node(dsn, "prod-2")
    yield pair
    for node in pair:
        node.session.close()


def wait(connection: Any, condition: str) -> None:
    for _ in range(1000):
        if connection.execute(f"select {condition}").fetchone()[0]:
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {condition}")


def test_one_leads_and_the_other_is_told_so_at_once(nodes: Any, connection: Any) -> None:
    first, second = nodes
    assert (first.lead(), second.lead()) == (1, None)
    assert connection.execute("select term, name, is_known from pgsched.leader").fetchall() == [(1, "prod-1", True)]
    assert second.refused("pgsched.leader_beat()") == second.refused("pgsched.resign()") == "PGS11"
    assert first.refused("pgsched.lead(%s)", first.info) == "PGS09"


def test_a_leader_whose_session_has_ended_cannot_write_and_the_next_leads(nodes: Any, dsn: str, connection: Any) -> None:
    first, second = nodes
    first.lead()
    connection.execute("select pg_terminate_backend(backend_pid) from pgsched.leader")
    wait(connection, "not exists (select from pgsched.leader)")
    assert second.lead() == 2
    with pytest.raises(psycopg.OperationalError):
        first.session.execute("select pgsched.leader_beat()")
    again = Node(dsn, "prod-1")
    again.session.execute("select set_config('pgsched.term', '2', false)")
    assert again.refused("pgsched.leader_beat()") == "PGS11", "knowing the term is not leading"
    again.session.close()
    rows = connection.execute("select term, name, end_reason from pgsched.leader_term order by term").fetchall()
    assert rows == [(1, "prod-1", "its session ended"), (2, "prod-2", None)]


def test_resigning_gives_the_lock_back_and_says_why(nodes: Any, connection: Any) -> None:
    first, second = nodes
    first.lead()
    assert first.session.execute("select pgsched.resign('deploy')").fetchone() == (1,)
    assert second.lead() == 2
    assert first.refused("pgsched.leader_beat()") == "PGS11"
    assert connection.execute("select end_reason from pgsched.leader_term where term = 1").fetchone() == ("deploy",)


def test_a_standby_holds_no_snapshot_and_waits_for_nothing(nodes: Any, connection: Any) -> None:
    first, second = nodes
    first.lead()
    second.lead()
    row = connection.execute(
        "select backend_xmin, state from pg_stat_activity where pid = %s", (second.session.info.backend_pid,)
    )
    assert row.fetchone() == (None, "idle")


def test_the_leader_sees_silent_workers_with_jobs_and_no_others(nodes: Any, dsn: str, connection: Any) -> None:
    leader = nodes[0]
    leader.lead()
    enqueue(connection, 2)
    alive, silent = Steps(dsn), Steps(dsn)
    alive.claim(1)
    silent.claim(1)
    Steps(dsn).close()

    def beat() -> Any:
        return leader.session.execute("select pgsched.leader_beat()").fetchone()[0]["silent"]

    assert beat() == []
    silent.close()
    wait(connection, f"(select state = 'silent' from pgsched.workers where id = {silent.id})")
    assert beat() == [{"worker_id": silent.id, "generation": 0, "rescue_after_s": 60}]
    alive.close()


def rescue(node: Node, worker: Steps, generation: int, silent_s: float) -> Any:
    call = "select pgsched.rescue(%s, generation => %s, silent_s => %s)"
    return node.session.execute(call, (worker.id, generation, silent_s)).fetchone()[0]  # type: ignore[index]


def test_rescue_after_silence_is_the_leaders_alone_and_waits_as_long_as_the_worker_said(nodes: Any, dsn: str, connection: Any) -> None:
    leader, other = nodes
    leader.lead()
    job_id = enqueue(connection)[0]
    worker = Steps(dsn)
    claim = worker.claim()[0]
    with pytest.raises(psycopg.Error, match="still hold its lock"):
        rescue(leader, worker, 0, 61)
    worker.close()
    wait(connection, f"(select state = 'silent' from pgsched.workers where id = {worker.id})")
    with pytest.raises(psycopg.Error, match="does not lead"):
        rescue(other, worker, 0, 61)
    with pytest.raises(psycopg.Error, match="seen silent for 59"):
        rescue(leader, worker, 0, 59)
    assert rescue(leader, worker, 0, 61)["moved"] == 1
    assert places(connection) == {job_id: "ready"}
    row = connection.execute("select state, rescue_reason from pgsched.workers").fetchone()
    assert row == ("rescued", "its lock was free for 61.0 s")
    assert connection.execute("select lost_attempts from pgsched.ready").fetchone() == (1,)
    assert connection.execute("select state from pgsched.attempt_log where claim_id = %s", (claim["claim_id"],)).fetchone() == ("lost",)


def test_a_worker_that_attached_again_is_not_rescued_on_its_former_silence(nodes: Any, dsn: str, connection: Any) -> None:
    leader = nodes[0]
    leader.lead()
    enqueue(connection)
    worker = Steps(dsn)
    worker.claim()
    worker.close()
    wait(connection, f"(select state = 'silent' from pgsched.workers where id = {worker.id})")
    with psycopg.connect(dsn, autocommit=True) as again:
        again.execute("select pgsched.reattach(%s, %s, '{}')", (worker.id, worker.token))
    wait(connection, f"(select state = 'silent' from pgsched.workers where id = {worker.id})")
    with pytest.raises(psycopg.Error, match="has attached again") as error:
        rescue(leader, worker, 0, 61)
    assert error.value.sqlstate == "PGS07"
    assert rescue(leader, worker, 1, 61)["moved"] == 1


def test_a_stranger_who_holds_the_leaders_lock_is_seen(nodes: Any, connection: Any) -> None:
    connection.execute("select pg_advisory_lock(pgsched.lock_class(), 1)")
    assert nodes[0].lead() is None
    assert nodes[0].session.execute("select term, is_known, backend_pid from pgsched.leader").fetchall() == [
        (None, False, connection.info.backend_pid)
    ]
