"""Random graphs of jobs, what may become of them by the written rules alone, and workers that run them by bare SQL."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from harness.protocol import Steps

RULES = ["all", "all", "any", "at_least", "none_failed"]
CONDITIONS = ["success", "success", "success", "failure", "done"]
AGAIN = (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)


@dataclass(frozen=True)
class Node:
    """A job of a graph: whom it depends on (position and condition), its rule, and what its handler will say."""

    edges: tuple[tuple[int, str], ...]
    rule: str
    rule_n: int | None
    outcome: str


@dataclass
class Ended:
    """How a job ended in the database."""

    state: str
    ran: bool
    by_cause: bool
    started_at: Any
    finished_at: Any


def random_graph(rng: random.Random, most: int) -> list[Node]:
    """A graph in an order in which each job depends only on ones before it."""
    nodes: list[Node] = []
    width = rng.choice([2, 4, 16, most])
    for i in range(rng.randint(1, most)):
        near = range(max(0, i - width), i)
        on = rng.sample(near, min(len(near), rng.choice([0, 1, 1, 2, 2, 3, 8])))
        rule = rng.choice(RULES)
        rule_n = rng.randint(1, len(on)) if rule == "at_least" and on else None
        if rule == "at_least" and not on:
            rule = "all"
        edges = tuple((p, rng.choice(CONDITIONS)) for p in on)
        outcome = rng.choices(["succeeded", "failed", "retry"], [8, 1, 1])[0]
        nodes.append(Node(edges, rule, rule_n, outcome))
    return nodes


def verdict(node: Node, ends: list[str | None]) -> str:
    """met, skipped, cancelled or open, by the ends of its dependencies (None: not ended), in the order of its edges."""
    wanted = {"success": {"succeeded"}, "failure": {"failed"}, "done": {"succeeded", "failed", "cancelled", "skipped"}}
    if not node.edges:
        return "met"
    if node.rule == "none_failed":
        spoilt = [end for end in ends if end in ("failed", "cancelled")]
        if spoilt:
            return "cancelled" if "cancelled" in spoilt else "skipped"
        return "open" if None in ends else "met"
    met = sum(end in wanted[condition] for (_, condition), end in zip(node.edges, ends, strict=True))
    against = [end for (_, condition), end in zip(node.edges, ends, strict=True) if end and end not in wanted[condition]]
    needed = {"all": len(node.edges), "any": 1, "at_least": node.rule_n or 0}[node.rule]
    if len(node.edges) - len(against) < needed:
        return "cancelled" if "cancelled" in against else "skipped"
    return "met" if met >= needed else "open"


def judge(nodes: list[Node], ends: list[Ended], may_be_cancelled: Callable[[int], bool]) -> list[str]:
    """What of these ends may not be, by the rules alone: one line each."""
    wrong: list[str] = []
    for i, (node, end) in enumerate(zip(nodes, ends, strict=True)):
        above = [ends[p] for p, _ in node.edges]
        says = verdict(node, [p.state for p in above])
        what = f"job {i} ({node.rule} {node.rule_n or ''} {node.edges}): {end}, its dependencies: {[p.state for p in above]}"
        if end.ran:
            if says != "met":
                wrong.append(f"it ran, though its rule says {says}: {what}")
            before = [p.state if p.finished_at <= end.started_at else None for p in above]
            if verdict(node, before) != "met":
                wrong.append(f"it began before its rule was met: {what}")
            if end.state != {"retry": "failed"}.get(node.outcome, node.outcome) and not (end.state == "cancelled" and may_be_cancelled(i)):
                wrong.append(f"its handler said {node.outcome}: {what}")
        elif end.by_cause:
            # (Who was cancelled may have been known only after those that had failed had decided it.)
            without = verdict(node, [None if p.state == "cancelled" else p.state for p in above])
            if end.state not in {says, without} & {"cancelled", "skipped"}:
                wrong.append(f"it ended by a cause, its rule says {says}: {what}")
        elif end.state not in ("cancelled", "skipped") or not may_be_cancelled(i):  # (one that had ended by a cause keeps its state)
            wrong.append(f"it ended without running and without a cause: {what}")
    return wrong


def as_jobs(nodes: list[Node]) -> list[dict[str, Any]]:
    """The graph as enqueue_workflow() takes it."""
    return [
        {
            "task": "t", "queue": "q", "name": str(i), "args": {"outcome": node.outcome}, "max_attempts": 2,
            "depends_on": [{"name": str(p), "on": condition} for p, condition in node.edges],
        }
        | ({"rule": node.rule} if node.edges else {})
        | ({"rule_n": node.rule_n} if node.rule_n else {})
        for i, node in enumerate(nodes)
    ]  # fmt: skip


def ends(connection: Any, ids: list[int]) -> list[Ended | None]:
    """How these jobs have ended, in their order; None: one has not."""
    rows = {
        row[0]: Ended(row[1], row[2] is not None, row[3] is not None, row[4], row[5])
        for row in connection.execute(
            "select job_id, state, claim_id, cause_job_id, started_at, finished_at from pgsched.finished where job_id = any (%s)",
            (ids,),
        )
    }
    return [rows.get(i) for i in ids]


@dataclass
class Crowd:
    """Workers, releasers and whoever else, each in a thread with sessions of its own, until `stop`; their errors."""

    dsn: str
    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def add(self, one: Callable[[Crowd, random.Random], None], seed: int) -> None:
        """Start one more."""

        def body() -> None:
            try:
                one(self, random.Random(seed))
            except BaseException as error:
                self.errors.append(error)
                self.stop.set()

        self._threads.append(threading.Thread(target=body))
        self._threads[-1].start()

    def end(self) -> None:
        """Stop all; raise what one of them raised."""
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]


def work(crowd: Crowd, rng: random.Random) -> None:
    """A worker: claims a few, ends them as their arguments say (or gives them back), now and then late, or after a rollback."""
    steps = Steps(crowd.dsn)
    held: list[dict[str, Any]] = []
    try:
        while not crowd.stop.is_set():
            try:
                held += steps.claim(rng.choice([1, 3, 10]))
                if not held:
                    steps.work.execute("select pgsched.stage()")
                    release(steps.work)
                    time.sleep(0.002)
                    continue
                rng.shuffle(held)
                now, held = held[: rng.randint(1, len(held))], held[:]
                results = [_result(claim, rng) for claim in now]
                verdicts = _finish(steps, results, rng)
                done = {claim_id for claim_id, said in verdicts.items() if said not in ("busy", None)}
                held = [claim for claim in held if claim["claim_id"] not in done]
                if rng.random() < 0.7:
                    release(steps.work)
            except AGAIN:
                continue
        while held:
            verdicts = _finish(steps, [_result(claim, rng) for claim in held], rng)
            held = [claim for claim in held if verdicts.get(claim["claim_id"]) in ("busy", None)]
    finally:
        steps.close()


def _result(claim: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    result: dict[str, Any] = {"job_id": claim["job_id"], "claim_id": claim["claim_id"], "outcome": claim["args"]["outcome"], "after_s": 0}
    if rng.random() < 0.05:
        result["outcome"] = "give_back"
    return result


def _finish(steps: Steps, results: list[dict[str, Any]], rng: random.Random) -> dict[int, str | None]:
    """The verdicts; sometimes the transaction stays open for a moment, sometimes it is rolled back and nothing has happened."""
    with steps.work.transaction() as transaction:
        rows = steps.work.execute("select * from pgsched.finish(%s, %s)", (steps.id, json.dumps(results))).fetchall()
        if rng.random() < 0.2:
            time.sleep(rng.random() * 0.02)
        if rng.random() < 0.1:
            raise psycopg.Rollback(transaction)
        return {row["claim_id"]: row["verdict"] for row in rows if row["claim_id"]}
    return {}


def release(session: Any, n: int = 1000) -> dict[str, Any]:
    """One round of the releaser."""
    row = session.execute("select pgsched.release(%s) as answer", (n,)).fetchone()
    answer: dict[str, Any] = row["answer"] if isinstance(row, dict) else row[0]
    return answer


def release_some(connection: Any) -> None:
    """Some rounds, where something is to be kept."""
    for _ in range(10):
        release(connection)


def release_all(session: Any, n: int = 1000) -> None:
    """Rounds until nothing is left to be decided."""
    for _ in range(100_000):
        session.execute("select pgsched.stage()")
        answer = release(session, n)
        if answer.get("busy"):
            time.sleep(0.001)
        elif not answer["more"] and session.execute("select exists (select from pgsched.release_check) as x").fetchone() in ((False,), {"x": False}):
            return
    raise AssertionError(f"the releaser does not come to an end: {answer}")
