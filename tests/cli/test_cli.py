"""The command line as users meet it: processes, what they print, and their exit codes.

A start takes most of a second, so the commands of one test share one (each is a process of its own all the same). No
version of Postgres matters here: the newest is asked.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from harness.server import Server, installations
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgsched import migrate
from pgsched.client import PROTOCOL

pytestmark = pytest.mark.parametrize(
    "server",
    [max(installations(), key=lambda binaries: binaries.major)],
    indirect=True,
    ids=lambda binaries: f"pg{binaries.major}",
    scope="session",
)

ROOT = Path(__file__).parent.parent.parent
NOWHERE = "postgresql://user:geheim@127.0.0.1:1/db"

# Runs each command in a process of its own, forked where all that they share has been imported.
FORKS = """
import gc, json, os, sys, tempfile, traceback
import pgsched.cli
answers = []
gc.freeze()
for arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (child := os.fork()) == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["pgsched", *arguments]
            try:
                code = pgsched.cli.main() or 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.append((code, *(os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, err))))
print(json.dumps(answers))
"""


class Run(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str


def run(dsn: str, *commands: str, cwd: Path = ROOT, **environment: str) -> list[Run]:
    """Run commands, one after the other, with the variable PGSCHED_DSN; nothing else names a database."""
    lines = json.dumps([shlex.split(command) for command in commands])
    done = _python("-c", FORKS, dsn=dsn, cwd=cwd, environment=environment, text=lines)
    assert done.returncode == 0, done.stderr
    return [Run(*answer) for answer in json.loads(done.stdout)]


def _python(*arguments: str, dsn: str, environment: dict[str, str], cwd: Path = ROOT, text: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    clean |= {"PYTHONPATH": str(ROOT), "PGSCHED_DSN": dsn, "TZ": "UTC"} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=clean, input=text, capture_output=True, text=True, check=False, timeout=120)


def printed(dsn: str, *commands: str, schema: str = "pgsched") -> list[str]:
    """What commands print that succeed: into a pipe, so without colours, and nothing on standard error."""
    runs = run(dsn, *commands, PGSCHED_SCHEMA=schema)
    assert [(code, err) for code, _, err in runs] == [(0, "")] * len(commands)
    assert not any("\x1b" in out for _, out, _ in runs)
    return [out for _, out, _ in runs]


@dataclass
class Shop:
    """A database with one job of each kind, and the ids of those."""

    dsn: str
    ready: int
    secret: int
    later: int
    failed: int
    succeeded: int
    running: int


@pytest.fixture(scope="module")
def shop(server: Server, template: str) -> Iterator[Shop]:
    """Jobs and workers to look at, which nobody changes. One worker is alive, one has stopped."""
    dsn = server.database(template)
    with psycopg.connect(dsn, autocommit=True) as lease, psycopg.connect(dsn, autocommit=True) as work:
        lease.execute("select pgsched.adopt()")

        def enqueue(task: str, queue: str, **more: Any) -> int:
            named = "".join(f", {name} => %({name})s" for name in more)
            query = f"select pgsched.enqueue(%(task)s, queue => %(queue)s{named})"
            return int(lease.execute(query.encode(), {"task": task, "queue": queue, **more}).fetchone()[0])  # type: ignore[index]

        def attach(connection: psycopg.Connection[Any], name: str) -> Any:
            info = {"protocol": PROTOCOL, "name": name, "host": "h", "pid": 1, "app": "shop", "queues": ["mail"], "concurrency": 7}
            more = {"version": "9", "rescue_after_s": 1}
            return connection.execute("select worker_id, token from pgsched.attach(%s)", [Jsonb(info | more)]).fetchone()

        ids: dict[str, int] = {
            "failed": enqueue("charge", "pay", args=Jsonb({"card": "4111", "amount": 7}), secret=["card"]),
            "succeeded": enqueue("send", "mail"),
            "running": enqueue("send", "mail", max_attempts=2),
            "ready": enqueue("send", "mail", args=Jsonb({"to": "ü@example.org"}), tags=["a", "b"]),
            "secret": enqueue("charge", "pay", args=Jsonb({"card": "4111", "amount": 5}), secret=["card"]),
            "later": enqueue("send", "mail", run_at="2099-01-31 09:00+00"),
        }
        with psycopg.connect(dsn, autocommit=True) as gone:
            gone.execute("select pgsched.detach(%s)", [attach(gone, "gone")[0]])
        worker, token = attach(lease, "here")
        work.execute("select pgsched.open_session(%s, %s, 1)", [worker, token])
        outcomes: dict[str, dict[str, Any] | None] = {
            "failed": {"outcome": "retry", "error_type": "ValueError", "error": "no [bold]luck", "traceback": "  line 7\nValueError: no [bold]luck"},
            "succeeded": {"outcome": "succeeded", "result": {"sent": 3}},
            "running": None,
        }
        for name, outcome in outcomes.items():
            want = {"lanes": [{"queue": "pay" if name == "failed" else "mail", "priority": 5}], "max_jobs": 1}
            claimed, number = work.execute("select job_id, claim_id from pgsched.claim(%s, %s)", [worker, Jsonb(want)]).fetchone()  # type: ignore[misc]
            assert claimed == ids[name]
            if outcome is not None:
                work.execute("select pgsched.finish(%s, %s)", [worker, Jsonb([outcome | {"job_id": claimed, "claim_id": number}])])
        yield Shop(dsn, **ids)
    server.drop(dsn)


@pytest.fixture
def empty(server: Server) -> Iterator[str]:
    """A database without pgsched."""
    dsn = server.database()
    yield dsn
    server.drop(dsn)


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that may log in, and nothing else. Ask for it before a database: it goes after it."""
    name = f"role_{uuid.uuid4().hex}"
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(f'create role "{name}" login'.encode())
        yield name
        admin.execute(f'drop role "{name}"'.encode())


def test_the_command_is_a_module_that_ends_with_0_1_or_2(server: Server) -> None:
    helped, failed, wrong = (
        _python("-m", "pgsched", *arguments, dsn=NOWHERE, environment={}) for arguments in (["--help"], ["queues"], ["dance"])
    )
    assert (helped.returncode, helped.stderr) == (0, "")
    for command in ("adopt", "demo", "dev", "enqueue", "grant", "job", "jobs", "migrate", "prune", "queues", "worker", "workers"):
        assert f" {command} " in helped.stdout
    assert (failed.returncode, failed.stdout) == (1, "")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_migrate_makes_the_schema_once_and_prints_its_sql(empty: str) -> None:
    first, again, third = printed(empty, "migrate", "migrate", "migrate --sql --schema third")
    assert first == again == f'schema "pgsched" is at revision {migrate.head()}\n'
    assert third.strip() == migrate.upgrade_sql(schema="third").strip()
    named = printed(NOWHERE, f"migrate --dsn '{empty}'", f"enqueue t --queue q --dsn '{empty}'", schema="other")
    assert named == [f'schema "other" is at revision {migrate.head()}\n', "job 1\n"]
    with psycopg.connect(empty) as connection:
        assert connection.execute("select (select count(*) from pgsched.job), (select count(*) from other.job)").fetchone() == (0, 1)


def test_enqueue_passes_every_option_on(dsn: str, connection: psycopg.Connection[Any]) -> None:
    options = "--priority 2 --run-at 2099-01-31T09:00+01:00 --expires-at '2099-02-01 00:00+00' --max-attempts 4 --timeout '90 s' --tag a --tag b --unique-key k"
    made, later, held = printed(
        dsn,
        f"""enqueue send --queue mail --args '{{"to": "ü", "n": [1, null]}}' {options} --json""",
        "enqueue send --queue later --delay '2 h'",
        "enqueue send --queue mail --unique-key k",
    )
    job_id = json.loads(made)["id"]
    assert (later, held) == (f"job {job_id + 1}\n", f"job {job_id}\n")
    rows = connection.execute(
        "select task, queue, args, priority, max_attempts, timeout::text, tags, unique_key, state, run_at = '2099-01-31 08:00+00', "
        "expires_at = '2099-02-01 00:00+00', run_at - created_at = '2 h' from pgsched.jobs order by id"
    ).fetchall()
    args = {"to": "ü", "n": [1, None]}
    assert rows == [
        ("send", "mail", args, 2, 4, "00:01:30", ["a", "b"], "k", "scheduled", True, True, False),
        ("send", "later", {}, 5, 1, None, None, None, "scheduled", False, None, True),
    ]


def test_jobs_are_listed_by_state_queue_and_task_page_by_page(shop: Shop) -> None:
    asked = {
        "": [shop.later, shop.secret, shop.ready, shop.running, shop.succeeded, shop.failed],
        "--state ready": [shop.secret, shop.ready],
        "--queue pay": [shop.secret, shop.failed],
        "--state ready --queue mail --task send": [shop.ready],
        f"--task send --before {shop.later} --limit 2": [shop.ready, shop.running],
        "--state cancelled": [],
    }
    *answers, table, nothing = printed(shop.dsn, *(f"jobs --json {options}" for options in asked), "jobs", "jobs --queue none")
    lists = [json.loads(answer) for answer in answers]
    assert {options: [job["id"] for job in found] for options, found in zip(asked, lists, strict=True)} == asked
    by_id = {job["id"]: job for job in lists[0]}
    assert by_id[shop.secret]["args"] == {"card": "***", "amount": 5}
    assert (by_id[shop.succeeded]["state"], by_id[shop.succeeded]["result"]) == ("succeeded", {"sent": 3})
    header, *lines = table.splitlines()
    assert header.split()[:5] == ["id", "task", "queue", "priority", "state"]
    assert [int(line.split()[0]) for line in lines] == asked[""]
    assert "2099-01-31 09:00:00" in lines[0]
    assert lines[-1].rstrip().endswith("ValueError: no [bold]luck")
    assert nothing == "no jobs\n"


def test_a_job_is_shown_with_its_failed_attempts_and_without_its_secrets(shop: Shop) -> None:
    told, shown = printed(shop.dsn, f"job {shop.failed}", f"job {shop.failed} --json")
    fields = dict(line.split(maxsplit=1) for line in told.split("\n\n")[0].splitlines())
    assert (fields["id"], fields["state"], fields["reason"]) == (str(shop.failed), "failed", "ValueError: no [bold]luck")
    assert json.loads(fields["args"]) == {"card": "***", "amount": 7}
    assert "\nattempt 1 failed at " in told
    assert told.endswith("  line 7\nValueError: no [bold]luck\n")
    assert "4111" not in told + shown
    row = json.loads(shown)
    assert row["args"] == {"card": "***", "amount": 7}
    assert [(a["attempt"], a["state"], a["error"]) for a in row["attempts"]] == [(1, "failed", "no [bold]luck")]


def test_failed_jobs_are_counted_listed_and_run_again(dsn: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        """
        with made as (
            insert into pgsched.job (task, queue, unique_key)
            select case when i < 4 then 'send' else 'charge' end, 'q', case when i > 3 then 'k' end from generate_series(1, 5) i returning id, task
        ), ended as (
            insert into pgsched.finished (job_id, queue, state, reason, claim_id, attempt, finished_at)
            select id, 'q', 'failed', 'ValueError: order ' || id, id, 1, now() from made
        )
        insert into pgsched.attempt_log (job_id, claim_id, attempt, state, error_type, error, ended_at)
        select id, id, 1, 'failed', 'ValueError', e'no [bold]order ' || id || e'\nmore', now() from made
        """
    )
    groups, as_json, each, none, tried, done, again, left = printed(
        dsn, "failed", "failed --task send --json", "failed --each --limit 2 --error order", "failed --since 2099-01-01", "failed --retry --dry-run",
        "failed --retry --json --queue q", "failed --retry --until 2099-01-01", "failed --each --json",
    )  # fmt: skip
    header, *lines = groups.splitlines()
    assert header.split()[:3] == ["jobs", "task", "queue"] and [line.split()[:2] for line in lines] == [["3", "send"], ["2", "charge"]]
    assert "no [bold]order 3" in lines[0] and "more" not in groups
    assert [(row["jobs"], row["error_type"]) for row in json.loads(as_json)] == [(3, "ValueError")]
    assert [line.split()[0] for line in each.splitlines()[1:]] == ["5", "4"]
    assert none == "no failed jobs\n"
    cannot = "job 5 cannot: retry: the unique key of job 5 is held by job 4\n"
    assert tried == cannot + "4 jobs would run again, 0 that had ended because of them wait, 1 cannot\n"
    assert json.loads(done)["retried"] == [1, 2, 3, 4]
    assert again == cannot + "0 jobs run again, 0 that had ended because of them wait, 1 cannot\n"
    assert [row["job_id"] for row in json.loads(left)] == [5]


def test_queues_and_workers_say_what_is_there_now(shop: Shop) -> None:
    queues, alive, everyone, table = printed(shop.dsn, "queues --json", "workers --json", "workers --all --json", "workers")
    counts = {row["queue"]: (row["ready"], row["running"], row["scheduled"], row["workers"]) for row in json.loads(queues)}
    assert counts == {"mail": (1, 1, 1, 1), "pay": (1, 0, 0, 0)}
    assert [(w["name"], w["running"], w["concurrency"], "token" in w) for w in json.loads(alive)] == [("here", 1, 7, False)]
    assert {w["name"]: w["state"] for w in json.loads(everyone)} == {"here": "alive", "gone": "stopped"}
    assert "here" in table
    assert "gone" not in table


def test_prune_removes_what_ended_and_says_when_another_does(dsn: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "insert into pgsched.finished (job_id, queue, state, attempt, finished_at) "
        "select g, 'q', 'succeeded', 1, now() - interval '1 day' from generate_series(-5, -1) g"
    )
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(pgsched.lock_class(), 4)")
        assert run(dsn, "prune --older-than '1 hour'") == [(1, "", "pgsched: somebody else prunes at this moment\n")]
    kept, removed = printed(dsn, "prune --older-than '2 days'", "prune --older-than '1 hour' --batch 2 --json")
    assert kept == "0 jobs removed\n"
    assert json.loads(removed) == {"pruned": 5}


def test_grant_lets_a_role_do_what_its_level_may_and_no_more(role: str, dsn: str, connection: psycopg.Connection[Any]) -> None:
    theirs = f"--dsn '{make_conninfo(dsn, user=role)}'"
    make = f"enqueue send --queue q {theirs}"
    granted, looked, refused, more, made = run(
        dsn, f"grant {role} --as reader", f"jobs {theirs}", make, f"grant {role} --as client --schema pgsched", make
    )
    assert granted == (0, f'role "{role}" is a reader of schema "pgsched"\n', "")
    assert looked == (0, "no jobs\n", "")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("pgsched: permission denied for function enqueue: ask the owner")
    assert (more.code, made) == (0, (0, "job 1\n", ""))
    connection.execute(f'drop owned by "{role}"'.encode())


def test_adopt_makes_a_copy_the_home_of_its_queue(server: Server, dsn: str, connection: psycopg.Connection[Any]) -> None:
    [epoch] = connection.execute("select epoch from pgsched.installation").fetchone() or [0]
    assert printed(dsn, "adopt") == [f'schema "pgsched" belongs to this database now (epoch {epoch + 1})\n']


# Database (see `databases`), command, exit code, and what standard error must say.
FAILURES = [
    ("", "queues", 1, "no database is named. Give one of: dsn= (or --dsn)"),
    ("embedded", "queues", 1, '"embedded" is for an App'),
    ("nowhere", "queues", 1, "the database at host=127.0.0.1 port=1 dbname=db user=user does not answer"),
    ("nowhere", "migrate", 1, "does not answer"),
    ("unreadable", "queues", 1, "the DSN cannot be read"),
    ("without", "queues", 1, 'run "pgsched migrate"'),
    ("without", "enqueue send --queue q", 1, 'run "pgsched migrate"'),
    ("shop", "queues --schema nowhere", 1, 'no schema "nowhere"'),
    ("older", "queues", 1, f'speaks protocol 0, this version of pgsched speaks {PROTOCOL}: run "pgsched migrate"'),
    ("newer", "job 1", 1, f"speaks protocol 999, this version of pgsched speaks {PROTOCOL}: install"),
    ("stranger", "jobs", 1, "permission denied for schema pgsched"),
    ("stranger", "adopt", 1, "permission denied for schema pgsched"),
    ("stranger", "migrate", 1, "permission denied for"),
    ("shop", "grant nobody_at_all --as reader", 1, 'role "nobody_at_all" does not exist'),
    ("shop", "grant postgres --as king", 1, 'there is no level "king". The levels are reader, client and worker'),
    ("shop", "job 999999", 1, "there is no job 999999"),
    ("shop", "jobs --state done", 1, 'there is no state "done". The states are scheduled'),
    ("shop", "jobs --limit 0", 1, "limit is 0"),
    ("shop", "failed --limit 0", 1, "limit is 0"),
    ("shop", "failed --retry --limit 0", 1, "limit is 0"),
    ("shop", "failed --dry-run", 1, "--dry-run goes with --retry"),
    ("shop", "failed --each --retry", 1, "give --each or --retry"),
    ("shop", "failed --since yesterdayish", 1, "yesterdayish"),
    ("shop", "enqueue send --queue q --args '{to: 1}'", 1, "--args is no JSON"),
    ("shop", "enqueue send --queue q --args '{\"a\": NaN}'", 1, "--args is no JSON"),
    ("shop", "enqueue send --queue q --args '[1]'", 1, "args"),
    ("shop", "enqueue send --queue q --priority 11", 1, "priority is 11"),
    ("shop", "enqueue send --queue q --run-at soon", 1, "soon"),
    ("shop", "enqueue send --queue q --delay 'a bit'", 1, "a bit"),
    ("shop", "prune --older-than '-1 day'", 1, "prune: older_than is"),
    ("shop", "worker nothing_like_this:app", 1, "No module named 'nothing_like_this'"),
    ("shop", "worker sample:nothing", 1, "has no attribute 'nothing'"),
    ("shop", "worker sample", 1, "write module:attribute"),
    ("shop", "worker sample:number", 1, '"sample:number" is a int, no pgsched.App'),
    ("shop", "worker sample:app", 1, 'App "shop" has no tasks'),
    ("shop", "worker sample:full --log-level loud", 1, "--log-level"),
    ("shop", "worker sample:full --concurrency 0", 1, "concurrency is 0"),
    ("without", "worker sample:full", 1, 'run "pgsched migrate"'),
    ("older", "worker sample:full", 1, "speaks protocol 0"),
    ("shop", "jobs --colour", 2, "No such option"),
    ("shop", "job one", 2, "Invalid value"),
    ("shop", "enqueue send", 2, "--queue"),
]
SAMPLE = """
import pgsched
number = 1
app = pgsched.App("shop")
full = pgsched.App("full")
@full.task
def send() -> None: ...
"""


@pytest.fixture(scope="module")
def databases(server: Server, template: str, shop: Shop) -> Iterator[dict[str, str]]:
    """DSNs of databases, most of them not as they should be."""
    found = {name: server.database("template1" if name == "without" else template) for name in ("without", "older", "newer")}
    for name, number in (("older", 0), ("newer", 999)):
        with psycopg.connect(found[name], autocommit=True) as connection:
            function = f"create or replace function pgsched.protocol() returns integer language sql as 'select {number}'"
            connection.execute(function.encode())
    others = {"": "", "embedded": "embedded", "nowhere": NOWHERE, "unreadable": "postgresql://user:geheim%@127.0.0.1:1/db"}
    role = f"role_{uuid.uuid4().hex}"
    with psycopg.connect(shop.dsn, autocommit=True) as admin:
        admin.execute(f'create role "{role}" login'.encode())
        yield found | others | {"shop": shop.dsn, "stranger": make_conninfo(shop.dsn, user=role)}
        admin.execute(f'drop role "{role}"'.encode())
    for dsn in found.values():
        server.drop(dsn)


@pytest.fixture(scope="module")
def failures(databases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """What came of each of FAILURES."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "sample.py").write_text(SAMPLE)
    return run("", *(f"{command} --dsn '{databases[name]}'" for name, command, _, _ in FAILURES), cwd=folder)


@pytest.mark.parametrize("number", range(len(FAILURES)), ids=[f"{failure[0]} {failure[1]}"[:60] for failure in FAILURES])
def test_a_failure_is_one_sentence_and_an_exit_code(failures: list[Run], number: int) -> None:
    _, _, code, sentence = FAILURES[number]
    ended = failures[number]
    assert "Traceback" not in ended.err, ended.err
    assert (ended.code, ended.out) == (code, "")
    assert sentence in " ".join(ended.err.replace("│", " ").split())
    # (A worker's supervisor may have logged something before.)
    assert code == 2 or any(line.startswith("pgsched: ") for line in ended.err.splitlines())
    assert "geheim" not in ended.err
    assert "\x1b" not in ended.err
