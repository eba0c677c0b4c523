"""Whatever is passed to a public function is taken, or refused by an error that is meant; a refusal leaves no trace."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from harness.server import Server
from hypothesis import given, settings
from hypothesis import strategies as st

CAMPAIGN = bool(os.environ.get("PGSCHED_CAMPAIGN"))
EXAMPLES = settings(
    max_examples=1_000 if CAMPAIGN else 20, derandomize=not CAMPAIGN, deadline=None, database=None, print_blob=False
)

Arguments = dict[str, Any]

# Every parameter of every function that a role can be granted, and of what grants it.
SIGNATURES = {
    "enqueue": {
        "task": "text", "args": "jsonb", "queue": "text", "priority": "integer", "run_at": "timestamptz",
        "delay": "interval", "expires_at": "timestamptz", "max_attempts": "integer", "timeout": "interval",
        "tags": "text[]", "metadata": "jsonb", "unique_key": "text", "secret": "text[]", "notify": "boolean", "depends_on": "bigint[]",
    },
    "enqueue_many": {"jobs": "jsonb", "notify": "boolean"},
    "enqueue_workflow": {"workflow": "jsonb", "notify": "boolean"},
    "cancel_workflow": {"workflow_id": "bigint", "reason": "text", "dry_run": "boolean"},
    "retry": {"job_id": "bigint", "dry_run": "boolean"},
    "backoff": {"policy": "jsonb", "attempt": "bigint", "random": "double precision"},
    "list_failed": {
        "task": "text", "error": "text", "queue": "text", "since": "timestamptz", "until": "timestamptz", "before_id": "bigint",
        "limit": "integer", "look": "integer",
    },
    "failed_groups": {
        "task": "text", "error": "text", "queue": "text", "since": "timestamptz", "until": "timestamptz", "limit": "integer", "look": "integer",
    },
    "retry_failed": {
        "task": "text", "error": "text", "queue": "text", "since": "timestamptz", "until": "timestamptz", "limit": "integer",
        "dry_run": "boolean", "above": "bigint", "look": "integer",
    },
    "rerun_workflow": {"workflow_id": "bigint", "from_names": "text[]", "dry_run": "boolean"},
    "enforce_deadlines": {"n": "integer"},
    "list_workflows": {"limit": "integer", "most": "bigint"},
    "explain": {"job_id": "bigint"},
    "workflow_jobs": {"workflow_id": "bigint"},
    "subtasks": {"job_id": "bigint"},
    "release": {"n": "integer"},
    "results": {"job_ids": "bigint[]"},
    "report_progress": {"worker_id": "bigint", "progress": "jsonb"},
    "list_jobs": {"state": "text", "queue": "text", "task": "text", "before_id": "bigint", "limit": "integer"},
    "prune": {"older_than": "interval", "n": "integer"},
    "stage": {"n": "integer"},
    "attach": {"info": "jsonb"},
    "open_session": {"worker_id": "bigint", "token": "text", "session_no": "integer"},
    "reattach": {"worker_id": "bigint", "token": "text", "claim_ids": "bigint[]"},
    "heartbeat": {"worker_id": "bigint"},
    "detach": {"worker_id": "bigint"},
    "claim": {"worker_id": "bigint", "want": "jsonb"},
    "finish": {"worker_id": "bigint", "results": "jsonb", "want": "jsonb"},
    "reconcile": {"worker_id": "bigint", "ended_session_nos": "integer[]", "claim_ids": "bigint[]"},
    "cancel": {"job_id": "bigint", "reason": "text", "dry_run": "boolean"},
    "cancel_many": {"job_ids": "bigint[]", "reason": "text", "dry_run": "boolean"},
    "stops": {"worker_id": "bigint", "timed_out": "jsonb"},
    "begin": {"worker_id": "bigint", "claims": "jsonb"},
    "begin_transaction": {"job_id": "bigint", "claim_id": "bigint"},
    "finish_transaction": {"job_id": "bigint", "claim_id": "bigint", "result": "jsonb", "lenient": "boolean"},
    "rescue": {
        "worker_id": "bigint", "begun": "bigint[]", "certified": "boolean", "n": "integer", "above": "bigint",
        "generation": "integer", "silent_s": "double precision",
    },
    "lead": {"info": "jsonb"},
    "schedule": {
        "name": "text", "task": "text", "queue": "text", "cron": "text", "every": "interval", "anchor": "timestamptz", "timezone": "text",
        "args": "jsonb", "priority": "integer", "max_attempts": "integer", "timeout": "interval", "tags": "text[]", "metadata": "jsonb",
        "starts_at": "timestamptz", "ends_at": "timestamptz", "jitter": "interval", "catch_up": "text", "catch_up_limit": "integer",
        "catch_up_window": "interval", "overlap": "text", "app": "text",
    },
    "put_schedule": {"schedule": "jsonb", "checked": "boolean"},
    "unschedule": {"name": "text", "app": "text"},
    "pause_schedule": {"name": "text", "app": "text"},
    "resume_schedule": {"name": "text", "app": "text"},
    "run_schedule_now": {"name": "text", "app": "text"},
    "backfill_schedule": {"name": "text", "ticks": "timestamptz[]", "app": "text", "at_most": "integer"},
    "declare_schedules": {"app": "text", "schedules": "jsonb", "deployment": "integer", "apply": "boolean", "checked": "boolean"},
    "due_schedules": {"n": "integer", "passed_over": "bigint[]", "at": "timestamptz"},
    "outdated_schedules": {"zone_data": "text", "above": "bigint", "n": "integer"},
    "tick_schedules": {"batch": "jsonb", "at": "timestamptz"},
    "resign": {"reason": "text"},
    "waiting_state": {"reason": "text"},
    "masked": {"args": "jsonb", "secret": "text[]"},
    "grant_access": {"role_name": "name", "level": "text"},
}  # fmt: skip

# Those that only the leader may call, or may call otherwise.
LEADING = {"resign", "rescue", "due_schedules", "outdated_schedules", "tick_schedules"}

# What a function's own text may raise beside pgsched's errors, as its comment says.
DOCUMENTED = {"finish": "22...", "report_progress": "22...", "grant_access": "42704", "open_session": "55P03", "reattach": "55P03"}


# ---- A database with jobs in every state, and one session ----------------------------------------------------------


@dataclass
class Bed:
    """A session that is the lease of a worker with claims; a dead worker with claims is there too."""

    connection: psycopg.Connection[Any]
    worker: int
    token: str
    dead: int
    claims: list[tuple[int, int]]  # (job, claim): ended ones of the worker, its others, those of the dead one
    state_query: str

    def call(self, function: str, arguments: Arguments) -> list[Any]:
        types = SIGNATURES[function]
        given = ", ".join(f'"{name}" => %({name})s::{types[name]}' for name in arguments)
        return self.connection.execute(f"select * from pgsched.{function}({given})", arguments).fetchall()

    def state(self) -> list[Any]:
        """What the database holds, and what this session does: a refusal may change none of it."""
        return self.connection.execute(self.state_query).fetchall()

    def throw(self, function: str, arguments: Arguments) -> str:
        """Make the call and undo it; `taken` or the error's SQLSTATE. Fails where the error is none that is meant."""
        # (First: a lock of the session's outlives the transaction of the throw before.)
        self.connection.execute("select pg_advisory_unlock_all(), pg_advisory_lock_shared(%s)", [self.worker])
        with self.connection.transaction(force_rollback=True):
            if function in LEADING:
                self.call("lead", {"info": json.dumps(INFO)})
            if function == "finish_transaction":
                job, claim = self.claims[2]
                self.call("begin", {"worker_id": self.worker, "claims": json.dumps([{"job_id": job, "claim_id": claim}])})
                self.call("begin_transaction", {"job_id": job, "claim_id": claim})
            before = self.state()
            refusal = None
            try:
                with self.connection.transaction():
                    self.call(function, arguments)
                assert self.connection.execute("select * from pgsched.check_invariants()").fetchall() == []
            except psycopg.Error as error:
                refusal = error
            if refusal is not None:
                assert is_meant(function, refusal), f"{refusal.sqlstate} {refusal.diag.message_primary}"
                assert self.state() == before
        return "taken" if refusal is None else str(refusal.sqlstate)


def is_meant(function: str, error: psycopg.Error) -> bool:
    """Whether it is pgsched's, or says that the call's own values are none of the parameters' types."""
    state = error.sqlstate or ""
    if not re.search(r"function|SQL statement", error.diag.context or ""):
        return state.startswith("22")
    return state.startswith("PGS") or re.fullmatch(DOCUMENTED.get(function, "-"), state) is not None


STATE = """
    union all select 'locks', count(*), 0 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
    union all select s, 0, hashtextextended(current_setting(s, true), 0)
    from unnest('{pgsched.session,lock_timeout,synchronous_commit,search_path,role}'::text[]) s
"""
INFO: dict[str, Any] = {
    "protocol": 1, "name": "w", "host": "h", "pid": 1, "app": "a", "queues": ["mail"], "tasks": ["send"],
    "concurrency": 10, "version": "1", "rescue_after_s": 60,
}  # fmt: skip
STEP = {"task": "send", "queue": "mail", "name": "a", "depends_on": [{"job": 1, "on": "done"}]}
LANES = [{"queue": "mail", "priority": 5}, {"queue": "late", "priority": 5}]


@pytest.fixture(scope="module")
def shared(server: Server, template: str) -> Iterator[psycopg.Connection[Any]]:
    """A session on a database for all tests that leave nothing behind."""
    dsn = server.database(template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pgsched.adopt()")
        yield connection
    server.drop(dsn)


@pytest.fixture(scope="module")
def bed(server: Server, template: str) -> Iterator[Bed]:
    """A bed for all tests that throw values, as each throw is undone."""
    dsn = server.database(template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pgsched.adopt()")
        yield make_bed(connection)
    server.drop(dsn)


def make_bed(connection: psycopg.Connection[Any]) -> Bed:
    def run(query: str, *values: Any) -> Any:
        return connection.execute(
            query, [json.dumps(v) if isinstance(v, list | dict) else v for v in values]
        ).fetchall()

    def worker_with_claims(n: int) -> tuple[int, str, list[tuple[int, int]]]:
        worker, token, _ = run("select * from pgsched.attach(%s)", INFO)[0]
        want = {"lanes": LANES[:1], "max_jobs": n, "free_slots": n - 1}
        return worker, token, run("select job_id, claim_id from pgsched.claim(%s, %s)", worker, want)

    job = {"task": "send", "queue": "mail", "max_attempts": 2}
    odd = [job | {"unique_key": "held", "delay_s": 1e6}, job | {"queue": "late", "expires_at": "2001-01-01"}]
    odd += [job | {"delay_s": 1e6, "expires_at": "9998-01-01"}, job | {"task": "elsewhere"}, job | {"tags": ["a"]}]
    run("select pgsched.enqueue_many(%s)", [job] * 9 + odd)
    run("select pgsched.enqueue_many(%s)", [job | {"depends_on": [{"job": 12}, {"job": 1, "on": "done"}], "rule": "any"}])
    steps = [job | {"name": "a", "queue": "late"}, job | {"name": "b", "depends_on": [{"name": "a", "inputs": [["x"]]}]}]
    run("select pgsched.enqueue_workflow(%s)", {"name": "w", "jobs": steps})
    for options in ({}, {"deadline_s": 0}):
        run("select pgsched.enqueue_workflow(%s)", {"name": "w", "jobs": steps[:1]} | options)
    run("select pgsched.cancel(18)")
    run("select pgsched.schedule('nightly', 'send', 'mail', every => '60 s', catch_up => 'all')")
    run("select pgsched.schedule('paused', 'send', 'mail', cron => '@daily', overlap => 'queue')")
    run("select pgsched.pause_schedule('paused')")
    run("update pgsched.schedule set next_tick_at = '2020-01-01Z', base_at = '2019-01-01Z', plan_after = null where name = 'nightly' returning 1")
    dead, _, dead_claims = worker_with_claims(3)
    run("select pg_advisory_unlock_shared(%s)", dead)
    worker, token, claims = worker_with_claims(5)
    ended = [
        {"job_id": j, "claim_id": c, "outcome": o} for (j, c), o in zip(claims, ("succeeded", "failed"), strict=False)
    ]
    run("select * from pgsched.finish(%s, %s)", worker, ended)
    tables = run(
        "select oid::regclass::text from pg_class where relnamespace = 'pgsched'::regnamespace and relkind = 'r'"
    )
    rows = "select '{0}' as what, count(*) as n, coalesce(sum(hashtextextended(t::text, 0)), 0) as hash from {0} t"
    query = " union all ".join(rows.format(table) for (table,) in tables) + STATE
    return Bed(connection, worker, token, dead, [*claims, *dead_claims], query)


# ---- Values --------------------------------------------------------------------------------------------------------

# (Surrogates and NULs come in the JSON texts alone: psycopg itself keeps them out of the others.)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ODD_TEXTS = [
    "", " ", "mail", "x" * 101, "é" * 500, "😀" * 501, "x" * 10_000, "\u202e", "a'b\"c\\", "%s %I", "{a,b}",
    "{{a},{b}}", "[0:1]={a,b}", "NaN", "Infinity", "-Infinity", "infinity", "-infinity", "now", "epoch",
    "null", "1e400", "0x10",
    "9999-01-01", "9998-12-31 23:59:59.999999+00", "0001-01-01 00:00+00", "0001-01-01 BC", "4713-01-01 BC",
    "294276-12-31",
    "178000000 years", "-178000000 years", "1 microsecond", "-1 s", "12:00",
]  # fmt: skip
ODD_NUMBERS: list[Any] = [
    0, 1, -1, 5, 9, 10, 100, 101, 32767, 32768, 2**31 - 1, 2**31, -(2**31), 2**44, 2**53, 2**63 - 1, 2**63, -(2**63),
    10**400,
    0.5, 1.5, -0.0, 1e-9, 5e-324, 0.0005, 3155760000, 3155760000.1, 1e15, 1e308, -1e308,
]  # fmt: skip
numbers = st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.sampled_from([*ODD_TEXTS, "\0", "a\ud800"]) | texts
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
) | st.sampled_from([[["a"], ["b"]], [[1, 2], [3]], [None], [[]], [{}], {"": None}])

any_of_type: dict[str, st.SearchStrategy[Any]] = {
    "text": st.none() | st.sampled_from(ODD_TEXTS) | texts,
    "name": st.none() | st.sampled_from(ODD_TEXTS) | texts,
    "boolean": st.none() | st.booleans(),
    "integer": st.none() | numbers.map(str) | st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.none() | numbers.map(str) | st.integers(-(2**63), 2**63 - 1).map(str),
    "interval": st.none() | st.sampled_from(ODD_TEXTS) | numbers.map(lambda n: f"{n} s") | st.timedeltas(),
    "timestamptz": st.none() | st.sampled_from(ODD_TEXTS) | st.datetimes().map(str),
    "text[]": st.none()
    | st.lists(st.none() | texts, max_size=3)
    | st.sampled_from([[["a"], ["b"]], [["a", None]], *ODD_TEXTS]),
    "jsonb": anything.map(json.dumps),
    "double precision": st.none() | numbers.map(str) | st.sampled_from(["NaN", "Infinity", "-Infinity"]),
}
any_of_type["timestamptz[]"] = st.none() | st.sampled_from(["{}", "{NULL}", "{infinity}", "{2020-01-01,2020-01-01}", "{{2020-01-01}}", "{4713-01-01 BC}"])
any_of_type["integer[]"] = any_of_type["bigint[]"] = st.none() | st.sampled_from(
    [
        "{}",
        "{NULL}",
        "{1,NULL}",
        "{{1,2},{3,4}}",
        "[5:6]={1,2}",
        "{0,-1,2147483647}",
        "{9223372036854775807}",
        "{x}",
        "{1.5}",
    ]
)


@st.composite
def mostly(draw: st.DrawFn, good: dict[str, Any], extra: st.SearchStrategy[Any] = anything) -> dict[str, Any]:
    """An object like `good`, with at most two fields changed, missing or unknown."""
    made = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in good.items()}
    for name in draw(st.lists(st.sampled_from([*good, "unknown"]), max_size=2)):
        made[name] = draw(extra)
        if draw(st.integers(0, 3)) == 0:
            del made[name]
    return made


def jobs() -> st.SearchStrategy[Any]:
    times = st.sampled_from(["2001-01-01", "2222-01-01", None])
    job = {"task": "send", "queue": st.sampled_from(["mail", "é"]), "args": {"to": 1}, "priority": st.integers(0, 9)}
    job |= {"run_at": times, "delay_s": None, "expires_at": None, "max_attempts": 3, "timeout_s": 1.5, "tags": ["a"]}
    job |= {"metadata": {"b": 1}, "unique_key": st.sampled_from([None, None, "held", "new"]), "secret": ["to"]}
    on = st.sampled_from(["success", "failure", "done"])
    paths = st.lists(st.sampled_from([["to"], ["to", 0], []]) | anything, max_size=2)
    edge = mostly({"job": st.integers(1, 20), "on": on, "inputs": paths}) | mostly({"name": st.sampled_from("abc"), "on": on})
    job |= {"name": st.sampled_from([None, None, "a", "b", "c"]), "depends_on": st.none() | st.lists(edge, max_size=3)}
    job |= {"rule": st.sampled_from([None, None, "all", "any", "at_least", "none_failed"]), "rule_n": st.sampled_from([None, None, 1, 2])}
    return st.lists(mostly(job), max_size=4) | anything


def wants() -> st.SearchStrategy[Any]:
    lane = mostly({"queue": st.sampled_from(["mail", "late"]), "priority": 5})
    return mostly({"lanes": st.lists(lane, max_size=3), "max_jobs": st.integers(0, 20), "free_slots": 2}) | anything


def results(bed: Bed) -> st.SearchStrategy[Any]:
    outcome = st.sampled_from(["succeeded", "failed", "retry", "snooze", "cancelled", "give_back", "conflict", "broken", "lost", ""])
    texts_of = {"result": {"r": 1}, "reason": None, "error_type": "E", "error": "e", "traceback": None}
    policy = mostly({"kind": st.sampled_from(["fixed", "linear", "exponential"]), "first_s": 1, "cap_s": 60, "max_age_s": 9, "max_attempts": 2})
    numbers_of = {"after_s": st.sampled_from([None, 5]), "policy": policy | anything, "charged": True, "last_session": 1}

    def result(claim: tuple[int, int]) -> st.SearchStrategy[Any]:
        return mostly({"job_id": claim[0], "claim_id": claim[1], "outcome": outcome} | texts_of | numbers_of)

    return st.lists(st.sampled_from(bed.claims).flatmap(result), max_size=4) | anything


def pairs(bed: Bed) -> st.SearchStrategy[str]:
    """Jobs with their claims, as JSON."""
    pair = st.sampled_from(bed.claims).flatmap(lambda claim: mostly({"job_id": claim[0], "claim_id": claim[1]}))
    return (st.lists(pair, max_size=4) | anything).map(json.dumps)


def reports(bed: Bed) -> st.SearchStrategy[Any]:
    def report(claim: tuple[int, int]) -> st.SearchStrategy[Any]:
        said = {"fraction": st.sampled_from([None, 0, 0.5, 1, 7, -1]), "message": st.sampled_from([None, "reading", "x" * 2000])}
        return mostly({"job_id": claim[0], "claim_id": claim[1]} | said)

    return st.lists(st.sampled_from(bed.claims).flatmap(report), max_size=4) | anything


def schedules() -> st.SearchStrategy[Any]:
    made: dict[str, Any] = {"name": st.sampled_from(["nightly", "new"]), "jobs": [{"task": "send", "queue": "mail"}], "cron": None, "every_s": 60}
    made |= {"timezone": st.sampled_from(["UTC", "Europe/Paris", None]), "starts_at": st.sampled_from([None, "2222-01-01"]), "jitter_s": 1}
    made |= {"catch_up": "all", "catch_up_limit": 5, "catch_up_window_s": 60, "overlap": st.sampled_from(["allow", "skip", "queue"])}
    return mostly(made) | mostly(made | {"cron": st.sampled_from(["@daily", "0 9 * * *", "61 * * * *"]), "every_s": None}) | anything


def entries() -> st.SearchStrategy[Any]:
    times = ["2020-01-01T00:00:00+00:00", "2020-01-01T00:01:00+00:00"]
    entry = {"id": st.integers(1, 3), "version": 1, "was": times[0], "ticks": st.sampled_from([[], times[:1], times]), "base_at": times[1]}
    missed = mostly({"at": times[0], "until": times[1], "n": 2, "reason": "late"})
    entry |= {"next_at": st.sampled_from(["2020-01-01T00:02:00+00:00", None]), "missed": st.none() | missed, "problem": st.sampled_from([None, "x"])}
    return st.lists(mostly(entry), max_size=3) | anything


def good(bed: Bed, function: str) -> dict[str, st.SearchStrategy[Any]]:
    """Values that can be taken, for each parameter."""
    one_of: Callable[..., st.SearchStrategy[Any]] = lambda *values: st.sampled_from(values)  # noqa: E731
    claims = one_of("{}", str([claim for _, claim in bed.claims[:4]]).replace("[", "{").replace("]", "}"))
    such = {
        "task": one_of(None, "send"), "error": one_of(None, "failed"), "queue": one_of(None, "mail"), "since": one_of(None, "2001-01-01"),
        "until": one_of(None, "2222-01-01"),
    }  # fmt: skip
    values: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "enqueue": {
            "task": one_of("send"), "queue": one_of("mail", "new"), "args": one_of('{"a": 1}'),
            "priority": one_of("0", "9"),
            "run_at": one_of(None, "2222-01-01"), "delay": one_of(None), "expires_at": one_of(None, "9998-12-31"),
            "max_attempts": one_of("1", "2147483647"), "timeout": one_of(None, "1 h"), "tags": one_of(None, ["a"]),
            "metadata": one_of(None, "{}"), "unique_key": one_of(None, "held", "new"), "secret": one_of(None, ["a"]),
            "notify": st.booleans(), "depends_on": one_of(None, "{1,12}", "{99}", "{}"),
        },
        "enqueue_many": {"jobs": jobs().map(json.dumps), "notify": st.booleans()},
        "enqueue_workflow": {"workflow": mostly({"name": "w", "jobs": jobs() | one_of([STEP]), "deadline_s": one_of(None, 60)}).map(json.dumps), "notify": st.booleans()},
        "cancel_workflow": {"workflow_id": one_of("1", "2"), "reason": one_of(None, "no more"), "dry_run": st.booleans()},
        "retry": {"job_id": one_of("1", "4", "5", "15", "16"), "dry_run": st.booleans()},
        "backoff": {
            "policy": mostly({"kind": one_of("fixed", "linear", "exponential"), "first_s": 1, "factor": 3, "jitter": "full"}).map(json.dumps),
            "attempt": one_of("1", "51", "1000000000"), "random": one_of(None, "0", "0.5"),
        },
        "list_failed": such | {"before_id": one_of(None, "99"), "limit": one_of("1", "10000"), "look": one_of("1", "1000")},
        "failed_groups": such | {"limit": one_of("1", "10000"), "look": one_of("1", "1000")},
        "retry_failed": such | {"limit": one_of("1", "10000"), "dry_run": st.booleans(), "above": one_of("0", "2"), "look": one_of("1", "1000")},
        "rerun_workflow": {"workflow_id": one_of("2", "2", "1"), "from_names": one_of(["a"], ["a"], ["a", "b"]), "dry_run": st.booleans()},
        "enforce_deadlines": {"n": one_of("1", "1000")},
        "list_workflows": {"limit": one_of("1", "50"), "most": one_of("0", "200000")},
        "explain": {"job_id": st.integers(1, 18).map(str)},
        "workflow_jobs": {"workflow_id": one_of("1", "2")},
        "subtasks": {"job_id": one_of("1", "3", "12")},
        "release": {"n": one_of("1", "1000")},
        "results": {"job_ids": one_of("{}", "{1,2,3,3,99}", "{NULL,1}")},
        "report_progress": {"progress": reports(bed).map(json.dumps)},
        "list_jobs": {
            "state": one_of(None, "ready", "scheduled", "running", "failed"), "queue": one_of(None, "mail"),
            "task": one_of(None, "send"), "before_id": one_of(None, "5"), "limit": one_of("1", "10000"),
        },
        "prune": {"older_than": one_of("0 s", "-0 s", "1 us", "100 years"), "n": one_of("1", "1000")},
        "stage": {"n": one_of("1", "1000")},
        "attach": {"info": mostly(INFO).map(json.dumps)},
        "open_session": {"token": one_of(bed.token), "session_no": one_of("1", "2147483647")},
        "reattach": {"token": one_of(bed.token), "claim_ids": claims},
        "claim": {"want": wants().map(json.dumps)},
        "finish": {"results": results(bed).map(json.dumps), "want": st.none() | wants().map(json.dumps)},
        "reconcile": {"ended_session_nos": one_of("{0}", "{1,2}"), "claim_ids": claims},
        "cancel": {"job_id": one_of("3", "12"), "reason": one_of(None, "no more"), "dry_run": st.booleans()},
        "cancel_many": {"job_ids": one_of("{}", "{3,12,1}"), "reason": one_of(None, "no"), "dry_run": st.booleans()},
        "stops": {"timed_out": pairs(bed)},
        "begin": {"claims": pairs(bed)},
        "begin_transaction": {"job_id": one_of(str(bed.claims[2][0])), "claim_id": one_of(str(bed.claims[2][1]))},
        "finish_transaction": {
            "job_id": one_of(str(bed.claims[2][0])), "claim_id": one_of(str(bed.claims[2][1])),
            "result": one_of(None, "1", '{"a": []}'), "lenient": st.booleans(),
        },
        "rescue": {
            "worker_id": one_of(str(bed.dead)), "begun": st.none() | claims, "certified": one_of(True, True, False),
            "n": one_of("1", "9"), "above": one_of("0", "2"), "generation": one_of("0"), "silent_s": one_of(None, "60"),
        },
        "lead": {"info": mostly({"name": "w", "host": "h", "pid": st.integers(1, 9)}).map(json.dumps)},
        "resign": {"reason": one_of("enough")},
        "schedule": {
            "name": one_of("nightly", "new"), "task": one_of("send"), "queue": one_of("mail"), "cron": one_of(None), "every": one_of("60 s"),
            "anchor": one_of(None, "2020-01-01"), "timezone": one_of("UTC", "Europe/Paris"), "args": one_of("{}"), "priority": one_of("1"),
            "max_attempts": one_of("1"), "timeout": one_of(None, "1 h"), "tags": one_of(None, ["a"]), "metadata": one_of(None, "{}"),
            "starts_at": one_of(None, "2222-01-01"), "ends_at": one_of(None, "2223-01-01"), "jitter": one_of(None, "1 s"),
            "catch_up": one_of("none", "all"), "catch_up_limit": one_of("5"), "catch_up_window": one_of(None, "1 h"),
            "overlap": one_of("allow", "cancel"), "app": one_of(None, "shop"),
        },
        "put_schedule": {"schedule": schedules().map(json.dumps), "checked": st.booleans()},
        **{
            name: {"name": one_of("nightly", "paused"), "app": one_of(None, "mail")}
            for name in ("unschedule", "pause_schedule", "resume_schedule", "run_schedule_now")
        },
        "backfill_schedule": {
            "name": one_of("paused"), "ticks": one_of("{}", "{2019-06-01,2019-06-02}"), "app": one_of(None), "at_most": one_of("100"),
        },
        "declare_schedules": {
            "app": one_of("shop"), "schedules": st.lists(schedules(), max_size=2).map(json.dumps), "deployment": one_of(None, "1", "2"),
            "apply": st.booleans(), "checked": st.booleans(),
        },
        "due_schedules": {"n": one_of("1", "100"), "passed_over": one_of("{}", "{1}"), "at": one_of(None, "2222-01-01")},
        "outdated_schedules": {"zone_data": one_of(None, "2020a"), "above": one_of("0", "1"), "n": one_of("100")},
        "tick_schedules": {"batch": entries().map(json.dumps), "at": one_of(None, "2222-01-01")},
        "waiting_state": {"reason": one_of("retry")},
        "masked": {"args": one_of('{"a": 1}', "[]", "1"), "secret": one_of(None, ["a", "b"])},
        "grant_access": {"role_name": one_of("pg_monitor"), "level": one_of("reader", "client", "worker")},
    }  # fmt: skip
    worker = {"worker_id": one_of(str(bed.worker))} if "worker_id" in SIGNATURES[function] else {}
    return worker | values.get(function, {})


@st.composite
def arguments_of(draw: st.DrawFn, bed: Bed, function: str) -> Arguments:
    """Arguments for a call: at most two are not what they should be."""
    types = SIGNATURES[function]
    odd = draw(st.just(set()) | st.sets(st.sampled_from(sorted(types)), max_size=2))
    return {
        name: draw(any_of_type[types[name]] if name in odd else value) for name, value in good(bed, function).items()
    }


# ---- Generated input -----------------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("function", SIGNATURES)
def test_a_function_takes_any_value_or_refuses_it_without_a_trace(bed: Bed, function: str) -> None:
    answers: Counter[str] = Counter()

    @EXAMPLES
    @given(arguments_of(bed, function))
    def throw(arguments: Arguments) -> None:
        answers[bed.throw(function, arguments)] += 1

    throw()
    assert answers["taken"] > 0, answers


@pytest.mark.campaign
def test_enqueue_many_takes_any_batch_whole_or_refuses_it_whole(bed: Bed) -> None:
    answers: Counter[str] = Counter()

    @settings(EXAMPLES, max_examples=5_000 if CAMPAIGN else 80)
    @given(jobs())
    def throw(batch: Any) -> None:
        answers[bed.throw("enqueue_many", {"jobs": json.dumps(batch)})] += 1

    throw()
    assert answers["taken"] > 0 and answers["PGS05"] > 0, answers


def test_values_are_thrown_at_every_parameter_of_every_public_function(shared: psycopg.Connection[Any]) -> None:
    found = shared.execute(
        """select p.proname, p.proargnames[:p.pronargs], p.proargtypes::regtype[]::text[]
        from pg_proc p where p.pronamespace = 'pgsched'::regnamespace and p.pronargs > 0
            and (p.proname = 'grant_access' or p.proname in (select name from pgsched.access_list()))"""
    ).fetchall()
    long_names = {"timestamptz": "timestamp with time zone", "timestamptz[]": "timestamp with time zone[]"}
    assert {name: dict(zip(names, types, strict=True)) for name, names, types in found} == {
        name: {parameter: long_names.get(kind, kind) for parameter, kind in signature.items()}
        for name, signature in SIGNATURES.items()
    }


def test_the_check_sees_an_error_that_is_not_meant(connection: psycopg.Connection[Any]) -> None:
    bed = make_bed(connection)
    bed.connection.execute("alter table pgsched.job add constraint nothing_more check (id < 0) not valid")
    with pytest.raises(AssertionError, match="23514"):
        bed.throw("enqueue", {"task": "send", "queue": "mail"})


# Found by such values before.
FOUND: list[tuple[str, Arguments]] = [
    ("enqueue", {"task": "t", "queue": "q", "tags": [["a"], ["b"]]}),
    ("enqueue_many", {"jobs": '[{"task": "t", "queue": "q", "timeout_s": 1e-9}]'}),
    ("enqueue_many", {"jobs": json.dumps([{"task": "t", "queue": "q", "unique_key": "😀" * 500}])}),
    ("prune", {"older_than": "178000000 years"}),
    ("prune", {"older_than": "-178000000 years"}),
    ("claim", {"want": '{"lanes": [], "max_jobs": 1.0}'}),
    ("claim", {"want": '{"lanes": [{"queue": "mail", "priority": 5.0}]}'}),
    ("claim", {"want": '{"lanes": [{"queue": "mail", "priority": 5}], "free_slots": 1.0}'}),
    ("finish", {"results": "[]", "want": '{"lanes": [], "max_jobs": 1.0}'}),
    ("attach", {"info": json.dumps(INFO | {"concurrency": 1.0, "pid": 2.0, "protocol": 1.0})}),
    ("attach", {"info": json.dumps(INFO | {"rescue_after_s": "NaN"})}),
    ("lead", {"info": '{"name": "a", "host": "b", "pid": 1.0}'}),
    ("resign", {"reason": None}),
    ("stage", {"n": "-1"}),
    ("report_progress", {"progress": '[{"job_id": 4, "claim_id": 17592186044420, "fraction": "NaN"}]'}),
    ("rescue", {"certified": True, "n": "-1"}),
]


@pytest.mark.parametrize(("function", "arguments"), FOUND, ids=str)
def test_what_was_found_before_is_taken_or_refused(bed: Bed, function: str, arguments: Arguments) -> None:
    worker = {"worker_id": bed.worker} if "worker_id" in SIGNATURES[function] else {}
    bed.throw(function, worker | arguments)


def test_a_claim_asks_for_as_many_as_it_says_and_for_one_when_it_says_nothing(bed: Bed) -> None:
    with bed.connection.transaction(force_rollback=True):
        lanes = {"lanes": LANES[:1]}
        assert len(bed.call("claim", {"worker_id": bed.worker, "want": json.dumps(lanes)})) == 1
        assert len(bed.call("claim", {"worker_id": bed.worker, "want": json.dumps(lanes | {"max_jobs": 2})})) == 2


@pytest.mark.parametrize("silent_s", ["NaN", "0", "-1", "59.9", None])
def test_only_a_silence_long_enough_is_a_ground_to_rescue(bed: Bed, silent_s: str | None) -> None:
    arguments = {"worker_id": bed.dead, "generation": "0"}
    assert bed.throw("rescue", arguments | {"silent_s": silent_s}) == "PGS09"
    assert bed.throw("rescue", arguments | {"silent_s": "60"}) == "taken"


# ---- What a refusal says -------------------------------------------------------------------------------------------

JOB = {"task": "t", "queue": "q"}
FINITE = "it must lie in the years 1 to 9998"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": ""}, 'task is "": a task\'s name has 1 to 200 characters'),
    ({"task": None}, "task is null: a task's name has 1 to 200 characters"),
    ({"task": "t" * 201}, f'task is "{"t" * 60}..." (201 characters): a task\'s name has 1 to 200 characters'),
    ({"queue": ""}, 'queue is "": a queue\'s name has 1 to 100 characters'),
    ({"queue": None}, "queue is missing: name the queue"),
    ({"queue": "q" * 1000}, f'queue is "{"q" * 60}..." (1000 characters): a queue\'s name has 1 to 100 characters'),
    ({"priority": 99999}, "priority is 99999: it is a number from 0 (first) to 9"),
    ({"priority": -1}, "priority is -1: it is a number from 0 (first) to 9"),
    ({"priority": 10**20}, f"priority is {10**20}: "),
    ({"priority": "high"}, 'priority is "high": '),
    ({"max_attempts": 0}, "max_attempts is 0: it must be at least 1"),
    ({"run_at": "9999-01-01 00:00+00"}, f"run_at is 9999-01-01 00:00:00+00: {FINITE}"),
    ({"run_at": "infinity"}, f"run_at is infinity: {FINITE}"),
    ({"run_at": "-infinity"}, f"run_at is -infinity: {FINITE}"),
    ({"run_at": "0044-03-15 00:00+00 BC"}, f"run_at is 0044-03-15 00:00:00+00 BC: {FINITE}"),
    ({"run_at": "soon"}, 'run_at is "soon": '),
    ({"delay_s": -5}, "delay is -5 s: it must lie between 0 and 100 years"),
    ({"delay_s": "NaN"}, "delay is NaN s: it must lie between 0 and 100 years"),
    ({"delay_s": "Infinity"}, "delay is Infinity s: it must lie between 0 and 100 years"),
    ({"run_at": "2222-01-01 00:00+00", "delay_s": 5}, "run_at and delay are both given: give one"),
    ({"expires_at": "infinity"}, f"expires_at is infinity: {FINITE}"),
    (
        {"run_at": "2222-01-02 00:00+00", "expires_at": "2222-01-01 00:00+00"},
        "expires_at is 2222-01-01 00:00:00+00, not after run_at 2222-01-02 00:00:00+00: it could never run",
    ),
    ({"timeout_s": 0}, "timeout is 0 s: it must lie between 1 ms and 100 years"),
    ({"timeout_s": 1e-9}, "timeout is 1e-09 s: it must lie between 1 ms and 100 years"),
    ({"timeout_s": "NaN"}, "timeout is NaN s: it must lie between 1 ms and 100 years"),
    ({"args": [1]}, "args is a JSON array: it must be an object keyed by parameter name"),
    ({"args": "text"}, "args is a JSON string: it must be an object keyed by parameter name"),
    ({"metadata": [1]}, "metadata is a JSON array: it must be an object"),
    ({"tags": ["a", None]}, "tags has a null in it: each tag is a text"),
    ({"tags": {"a": 1}}, 'tags is {"a": 1}: '),
    ({"tags": [["a"], ["b"]]}, "tags "),
    ({"secret": ["a", None]}, "secret has a null in it: each is the name of an argument"),
    ({"secret": [["a"], ["b"]]}, "secret "),
    ({"unique_key": ""}, 'unique_key is "": it has 1 to 500 characters'),
    ({"unique_key": "k" * 501}, f'unique_key is "{"k" * 60}..." (501 characters): it has 1 to 500 characters'),
    ({"unique_key": "😀" * 400}, "and at most 1500 bytes"),
    ({"prioritx": 5}, "job 2 has unknown fields: prioritx"),
]


def refusal(connection: psycopg.Connection[Any], batch: Any) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.ProgrammingError) as caught:
        connection.execute("select pgsched.enqueue_many(%s)", [json.dumps(batch)])
    assert connection.execute("select count(*) from pgsched.job").fetchone() == (0,)
    return caught.value.diag


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_refusal_names_the_job_the_field_the_value_and_the_rule(
    shared: psycopg.Connection[Any], fields: dict[str, Any], message: str
) -> None:
    diagnostic = refusal(shared, [JOB, JOB | fields, JOB])
    assert diagnostic.sqlstate == "PGS05"
    assert (diagnostic.message_primary or "").startswith("job 2")
    assert message in (diagnostic.message_primary or "")


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize(
    "bad",
    [{"priority": 99999}, {"run_at": "soon"}, {"unknown": 1}, {"args": {"a": "x" * 2**20}}],
    ids=["priority", "run_at", "unknown", "args"],
)
def test_a_refusal_counts_jobs_from_1(shared: psycopg.Connection[Any], n: int, bad: dict[str, Any]) -> None:
    batch: list[Any] = [JOB] * 100
    batch[n - 1] = JOB | bad
    assert re.match(rf"job {n}\b", refusal(shared, batch).message_primary or "")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"task": "t"}, "enqueue_many: jobs must be an array of objects"),
        (None, "enqueue_many: jobs must be an array of objects"),
        ("x", "enqueue_many: jobs must be an array of objects"),
    ],
)
def test_a_batch_is_an_array(shared: psycopg.Connection[Any], batch: Any, message: str) -> None:
    diagnostic = refusal(shared, batch)
    assert (diagnostic.sqlstate, diagnostic.message_primary) == ("PGS09", message)


@pytest.mark.parametrize("element", [None, 1, "x", [], True])
def test_a_job_is_an_object(shared: psycopg.Connection[Any], element: Any) -> None:
    diagnostic = refusal(shared, [JOB, element])
    assert diagnostic.sqlstate == "PGS05"
    assert re.fullmatch(r"job 2 is a JSON \w+, it must be an object", diagnostic.message_primary or "")


def test_an_unknown_field_is_answered_with_those_that_there_are(shared: psycopg.Connection[Any]) -> None:
    hint = refusal(shared, [JOB | {"prioritx": 5}]).message_hint or ""
    assert hint.startswith("The fields are task, args, queue, priority,")


@pytest.mark.parametrize("field", ["args", "metadata"])
def test_large_data_is_refused_with_its_size_and_the_limit(shared: psycopg.Connection[Any], field: str) -> None:
    diagnostic = refusal(shared, [JOB, JOB | {field: {"a": "x" * 2**20}}])
    assert diagnostic.sqlstate == "PGS06"
    assert re.fullmatch(
        rf'job 2 \(task "t"\): its {field} takes 10485\d\d bytes, the limit is 1048576',
        diagnostic.message_primary or "",
    )
    assert "max_args_bytes" in (diagnostic.message_hint or "")


def test_a_raised_limit_lets_larger_arguments_in(connection: psycopg.Connection[Any]) -> None:
    large = json.dumps([JOB | {"args": {"a": "x" * 2**20}}])
    connection.execute("update pgsched.setting set value = '2097152' where name = 'max_args_bytes'")
    connection.execute("select pgsched.enqueue_many(%s)", [large])
    assert connection.execute("select length(args ->> 'a') from pgsched.job").fetchone() == (2**20,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("task => 't', queue => 'q', priority => 99999", "priority is 99999: it is a number from 0 (first) to 9"),
        ("task => 't'", "queue is missing: name the queue"),
        ("task => 't', queue => 'q', delay => '-5 s'", "delay is -5 s: it must lie between 0 and 100 years"),
        ("task => 't', queue => 'q', timeout => '0'", "timeout is 0 s: it must lie between 1 ms and 100 years"),
        ("task => 't', queue => 'q', run_at => 'infinity'", f"run_at is infinity: {FINITE}"),
        ("task => 't', queue => 'q', max_attempts => 0", "max_attempts is 0: it must be at least 1"),
        ("task => 't', queue => 'q', tags => '{a,null}'", "tags has a null in it: each tag is a text"),
    ],
)
def test_enqueue_refuses_as_enqueue_many_does(shared: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.ProgrammingError, match=f'^job 1 .task "t".: {re.escape(message)}') as caught:
        shared.execute(f"select pgsched.enqueue({arguments})")
    assert caught.value.sqlstate == "PGS05"


@pytest.mark.parametrize("token", [None, "", "x"])
@pytest.mark.parametrize("worker", [None, 4711])
@pytest.mark.parametrize("call", ["open_session(%s, %s, 1)", "reattach(%s, %s, '{}')"])
def test_a_worker_that_is_not_there_has_no_sessions(
    shared: psycopg.Connection[Any], call: str, worker: int | None, token: str | None
) -> None:
    shared.execute("select pg_advisory_unlock_all()")
    with pytest.raises(psycopg.ProgrammingError) as caught:
        shared.execute(f"select pgsched.{call}", [worker, token])
    assert caught.value.sqlstate == "PGS02"
    locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
    assert shared.execute(locks).fetchone() == (0,)


# ---- What cannot come in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["args", "task", "queue", "unique_key", "tags", "metadata"])
def test_nul_cannot_come_in(shared: psycopg.Connection[Any], field: str) -> None:
    value = {"args": {"a": "\0"}, "metadata": {"\0": 1}, "tags": ["\0"]}.get(field, "a\0b")
    with pytest.raises(psycopg.errors.UntranslatableCharacter):  # 22P05
        shared.execute("select pgsched.enqueue_many(%s)", [json.dumps([JOB | {field: value}])])


def test_tables_of_the_callers_session_have_no_effect(connection: psycopg.Connection[Any]) -> None:
    bed = make_bed(connection)
    tables = [
        "job",
        "ready",
        "waiting",
        "running",
        "finished",
        "setting",
        "job_key",
        "worker",
        "installation",
        "new_job",
    ]
    for table in tables:
        bed.connection.execute(f"create temp table {table} (name text, value jsonb)")
    bed.connection.execute("insert into setting values ('max_args_bytes', '1'), ('max_lost_attempts', '0')")
    bed.connection.execute("set search_path = pg_temp, pgsched, public")
    bed.call("enqueue", {"task": "send", "queue": "mail", "unique_key": "new"})
    assert bed.call("claim", {"worker_id": bed.worker, "want": json.dumps({"lanes": LANES, "max_jobs": 1})})
    bed.call("stage", {"n": 10})
    assert bed.call("list_jobs", {"queue": "mail", "state": "ready"})
    assert bed.connection.execute("select count(*) from job").fetchone() == (0,)
    assert bed.connection.execute("select count(*) from pgsched.job where unique_key = 'new'").fetchone() == (1,)
