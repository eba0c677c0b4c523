"""The plan is pinned: what the hot functions read does not grow with the tables, whatever the statistics say.

Every statement inside a call is looked at as it was executed (auto_explain), on tables that were analysed while they
were empty and hold many rows now, in a session that planned its statements when there was next to nothing, and after
an ANALYZE of the full tables. The short form has 20,000 rows a table, the campaign 1,000,000.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest
from harness.server import Server
from psycopg import sql

pytestmark = pytest.mark.campaign

ROWS = 1_000_000 if os.environ.get("PGSCHED_CAMPAIGN") else 20_000
RUNNING = 5_000
HISTORIES = ["statistics of empty tables", "plans of small tables", "plans of one page", "statistics of a fan-out", "statistics of full tables"]
MODES: list[LiteralString] = ["force_custom_plan", "force_generic_plan"]  # (auto is one of them at each call)
BUDGET = 1_000  # rows that one scan may visit: no call below asks for more than 200 jobs
TABLES = {"waiting", "ready", "running", "finished", "job", "job_key", "attempt_log", "waiter", "progress", "dependency", "release_check", "workflow", "schedule", "schedule_tick"}
STATES = ["scheduled", "retrying", "blocked", "parked", "held", "ready", "running", "cancelling"]
STATES += ["succeeded", "failed", "cancelled", "skipped"]

# What may read a table whole: running is as small as the workers' concurrency, and has no index for lists.
WHOLE = {("known_queues", "running"), ("ids_in", "running")}
# What may sort: the one or two holders of a key that an old snapshot shows; what is read whole, and is that small; the runs of a
# schedule that have not ended, of which there are a hundred at most.
# And the jobs of a part that runs again, so that keys are taken in order.
SORTED = {("take_keys", "job_key"), ("known_queues", "running"), ("rerun_workflow", "job"), ("make_tick", "job")}

FILL = """
create temp table plan on commit drop as
    select i, case when i %% 1000 = 0 then 'rare' when i %% 10 = 1 then 'other' else 'mail' end as queue
    from generate_series(1, %(rows)s) i;
insert into job (id, task, queue, priority, unique_key, rule)
    select i, 'send', queue, case when i <= %(rows)s / 2 then 8 else 5 end, null, null from plan
    union all select i + %(rows)s, 'send', queue, 5, 'key ' || i, case when i > 100 and i %% 6 = 4 then 'all' end from plan
    union all select i + 2 * %(rows)s, 'send', queue, 5, null, null from plan
    union all select i + 3 * %(rows)s, 'send', queue, 5, null, null from plan where i <= %(running)s;
insert into ready (queue, priority, job_id, expires_at)
    select queue, case when i <= %(rows)s / 2 then 8 else 5 end, i,
        case when i %% 7 = 0 then now() + interval '1 year' end
    from plan order by i;
insert into waiting (job_id, queue, reason, run_at, expires_at)
    select i + %(rows)s, queue,
        case when i <= 100 then 'scheduled'
            else (array['scheduled', 'scheduled', 'scheduled', 'retry', 'dependencies', 'limit'])[1 + i %% 6] end,
        now() + case when i <= 100 then interval '-1 hour' else interval '1 year' end,
        case when i between 101 and 200 then now() - interval '1 minute'
            when i %% 7 = 0 then now() + interval '1 year' end
    from plan;
insert into job_key (task, unique_key, job_id) select 'send', 'key ' || i, i + %(rows)s from plan;
insert into finished (job_id, queue, state, claim_id, attempt, finished_at)
    select i + 2 * %(rows)s, queue, case when i %% 100 = 0 then 'failed' else 'succeeded' end, i, 1, now() from plan;
insert into attempt_log (job_id, claim_id, attempt, state, ended_at)
    select i + 2 * %(rows)s, i, 1, 'failed', now() from plan;
insert into running (job_id, claim_id, attempt, worker_id, session_no, queue, claimed_at, started_at)
    select i + 3 * %(rows)s, (2::bigint << 44) + i, 1, case when i %% 5 = 0 then %(worker)s else 1 + i %% 97 end,
        i / 5 %% 3, queue, now(), now()
    from plan where i <= %(running)s;
-- Each of those that wait depends on a ready one; some, on finished and running ones, have events. Some were skipped.
insert into dependency (job_id, depends_on_id) select i + %(rows)s, i from plan where i > 100 and i %% 6 = 4;
insert into job (id, task, queue, rule)
    select 4 * %(rows)s + 1000 + i, 'send', queue, 'all' from plan where i <= least(%(rows)s / 3, 6000);
insert into waiting (job_id, queue, reason)
    select 4 * %(rows)s + 1000 + i, queue, 'dependencies' from plan where i <= least(%(rows)s / 3, 6000) and i %% 3 > 0;
insert into dependency (job_id, depends_on_id, outcome)
    select 4 * %(rows)s + 1000 + i, i + case when i %% 3 = 2 and i <= %(running)s then 3 else 2 end * %(rows)s,
        case when i %% 3 = 0 then 'failed' end
    from plan where i <= least(%(rows)s / 3, 6000);
insert into finished (job_id, queue, state, attempt, finished_at, cause_job_id)
    select 4 * %(rows)s + 1000 + i, queue, 'skipped', 0, now(), 2 * %(rows)s + i from plan
    where i <= least(%(rows)s / 3, 6000) and i %% 3 = 0;
insert into release_check (ended_id, look_at_id)
    select case when i %% 3 = 1 then 2 * %(rows)s + i end, case when i %% 3 = 2 then 4 * %(rows)s + 1000 + i end
    from plan where i <= least(%(rows)s / 3, 6000) and i %% 3 > 0;
-- Many workflows; all jobs of one have succeeded, each after the first, and the deadline of another has passed.
insert into workflow (id, name, jobs, deadline) overriding system value
    select i, 'w', 50, case when i %% 2 = 0 then now() + (i - 3) * interval '1 minute' end from plan where i <= least(%(rows)s, 6000);
insert into job (id, task, queue, name, workflow_id, rule)
    select 5 * %(rows)s + w * 1000 + i, 'send', 'flows', case when i = 1 and w = 1 then 'again' end, w, case when i > 1 and w = 1 then 'all' end
    from plan, generate_series(1, 2) w where i <= 50;
insert into finished (job_id, queue, state, claim_id, attempt, finished_at)
    select 5 * %(rows)s + 1000 + i, 'flows', 'succeeded', (1::bigint << 43) + i, 1, now() from plan where i <= 50;
insert into dependency (job_id, depends_on_id, outcome) select 5 * %(rows)s + 1000 + i, 5 * %(rows)s + 1001, 'succeeded' from plan where i between 2 and 50;
insert into waiting (job_id, queue, reason, run_at)
    select 5 * %(rows)s + 2000 + i, 'flows', 'scheduled', now() + interval '1 year' from plan where i <= 50;
insert into waiter (job_id) select i from plan where i <= %(running)s
    union all select i + 3 * %(rows)s from plan where i <= %(running)s;
insert into progress (claim_id, job_id, fraction) select claim_id, job_id, 0.1 from running;

-- Some are due, some have to be planned, half of them keep an eye on the run before.
insert into schedule (app, name, origin, jobs, every, timezone, next_tick_at, plan_after, base_at, overlap, open_jobs)
    select 'a', 's' || i, 'runtime', '[{"task": "send", "queue": "mail"}]', '1 day', 'UTC',
        case when i %% 10 > 0 then now() + case when i <= 200 then interval '-1 hour' else interval '1 year' end end,
        case when i %% 10 = 0 then now() end, now() - interval '1 day', case when i %% 2 = 0 then 'skip' else 'allow' end,
        case when i %% 4 = 0 then array[i + 2 * %(rows)s] when i %% 4 = 2 then array[i]::bigint[] else '{}' end
    from plan;
insert into schedule_tick (schedule_id, tick_at, fired_at, outcome, reason)
    select id, now() - interval '1 day', now(), 'skipped', 'x' from schedule;

-- What a claim meets and cannot hand out: expired, an unknown task, no definition, running already.
insert into job (id, task, queue)
    select 4 * %(rows)s + i, case when i <= 20 then 'send' else 'elsewhere' end, 'odd' from generate_series(1, 40) i;
insert into ready (queue, priority, job_id, expires_at)
    select 'odd', 5, 4 * %(rows)s + i, case when i <= 20 then now() - interval '1 minute' end
    from generate_series(1, 60) i;
insert into ready (queue, priority, job_id) select 'odd', 5, job_id from running order by job_id limit 20;
select setval('job_id_seq', 5 * %(rows)s + 10000), setval('release_at', 1), setval('release_until', 1), setval('claim_number', %(running)s + 1);
"""

# (Ordered by the primary key: what these subqueries read is not the functions' doing.)
MINE = """(select jsonb_agg(jsonb_build_object('job_id', r.job_id, 'claim_id', r.claim_id, 'policy', '{{"max_age_s": 1e6}}'::jsonb, 'after_s', 5,
    'outcome', (array['succeeded', 'failed', 'retry', 'snooze', 'cancelled', 'give_back'])[1 + r.job_id / 5 % 6]))
    from (select * from pgsched.running where worker_id = {worker} order by job_id limit 200) r)"""
LANES = '{{"lanes": [{{"queue": "none", "priority": 0}}, {{"queue": "mail", "priority": 5}}],'


@dataclass(frozen=True)
class Scenario:
    """A call, and which function must be seen to scan which tables: a check that saw nothing proves nothing."""

    call: str
    scans: dict[str, set[str]]
    held: str = ""  # what another session has locked meanwhile
    alone: bool = False  # it must be the first call of its transaction


SCENARIOS = {
    "claim": Scenario(
        "select * from pgsched.claim({worker}, '" + LANES + '"max_jobs": 100, "free_slots": 50}}\')',
        {"claim_as": {"ready", "job"}},
    ),
    "claim of what cannot run": Scenario(
        "select * from pgsched.claim({worker}, '"
        + '{{"lanes": [{{"queue": "odd", "priority": 5}}], "max_jobs": 100}}\')',
        {"claim_as": {"ready", "job", "running"}, "drop_unrunnable": {"running", "job", "job_key"}},
    ),
    "finish": Scenario(
        f"select * from pgsched.finish({{worker}}, {MINE}, '{LANES} \"max_jobs\": 100}}}}')",
        {"settle": {"running", "job", "job_key"}, "next_attempt": {"job"}, "claim_as": {"ready", "job"}, "tell_waiters": {"waiter"}},
    ),
    "finish of one that another waits for": Scenario(
        """select * from pgsched.finish({worker}, (select jsonb_build_array(jsonb_build_object('job_id', r.job_id, 'claim_id', r.claim_id, 'outcome', 'succeeded'))
            from pgsched.running r where r.worker_id = {worker} and exists (select from pgsched.dependency d where d.depends_on_id = r.job_id)
            order by r.job_id limit 1), '"""
        + LANES
        + '"max_jobs": 1, "only_new": true}}\')',
        {"hand_over": {"dependency", "waiting", "job", "ready"}, "claim_as": {"ready", "job"}},
    ),
    "finish of claims that are over": Scenario(
        """select * from pgsched.finish({worker}, (select jsonb_agg(
            jsonb_build_object('job_id', f.job_id, 'claim_id', f.claim_id + f.job_id % 2, 'outcome', 'succeeded'))
            from (select * from pgsched.finished order by job_id limit 200) f))""",
        {"settle": {"running"}, "finish": {"attempt_log", "finished", "running"}},
    ),
    "finish of claims that somebody holds": Scenario(
        # (With some that are over: so it looks for what it could not lock in small tables too, where nothing is held.)
        f"""select pgsched.finish({{worker}}, {MINE} || (select jsonb_agg(
            jsonb_build_object('job_id', f.job_id, 'claim_id', f.claim_id, 'outcome', 'succeeded'))
            from (select * from pgsched.finished order by job_id limit 10) f))""",
        {"settle": {"running"}, "finish": {"attempt_log", "finished", "running"}},
        held="select from pgsched.running where worker_id = {worker} for update",
    ),
    "begin": Scenario(
        """select * from pgsched.begin({worker}, (select jsonb_agg(
            jsonb_build_object('job_id', r.job_id, 'claim_id', r.claim_id))
            from (select * from pgsched.running where worker_id = {worker} order by job_id limit 200) r))""",
        {"begin": {"running"}},
    ),
    "cancel_many": Scenario(
        """select * from pgsched.cancel_many((select array_agg(i) from (
            (select job_id as i from pgsched.running order by job_id limit 10)
            union all (select job_id from pgsched.ready where queue = 'mail' order by job_id limit 10)
            union all (select job_id from pgsched.waiting order by job_id limit 10)
            union all (select job_id from pgsched.finished order by job_id limit 10)) j))""",
        {"cancel_many": {"waiting", "ready", "job", "job_key", "finished"}, "cancel_one": {"running"}},
    ),
    "cancel_one, of what has moved on meanwhile": Scenario(
        """select count(pgsched.cancel_one(i, null)) from (
            (select job_id as i from pgsched.ready where queue = 'mail' order by job_id limit 10)
            union all (select job_id from pgsched.waiting order by job_id limit 10)
            union all (select job_id from pgsched.finished order by job_id limit 10)) j""",
        {"cancel_one": {"running", "ready", "waiting", "finished", "job"}},
    ),
    "cancel_many with dependents": Scenario(
        """select * from pgsched.cancel_many(coalesce((select array_agg(d.depends_on_id) from (
            select depends_on_id from pgsched.dependency where outcome is null
                and depends_on_id <= (select max(job_id) from pgsched.ready where queue in ('mail', 'other'))
            order by depends_on_id limit 50) d), '{{}}'))""",
        {"spread_cancel": {"dependency", "waiting", "job", "running"}, "tell_dependents": {"dependency"}},
    ),
    "release": Scenario(
        "select pgsched.release(100)",
        {
            "release": {"release_check", "dependency", "finished", "waiting"},
            "settled_looks": {"waiting", "dependency", "finished", "running"},
            "carry_out": {"waiting", "job", "dependency"},
        },
        alone=True,
    ),
    "retry": Scenario(
        """select pgsched.retry(c.id) from (
            select f.job_id as id from pgsched.finished f where f.state = 'failed' and exists (
                select from pgsched.finished c where c.cause_job_id = f.job_id) order by f.job_id limit 1) c""",
        {
            "retry_one": {"finished", "dependency"}, "reopen_below": {"finished", "waiting", "dependency"},
            "hold_dependencies": {"job", "dependency"}, "wait_again": {"job", "dependency"},
        },
    ),
    "rerun_workflow": Scenario(
        "select pgsched.rerun_workflow(j.workflow_id, array[j.name]) from pgsched.job j where j.name = 'again'",
        {
            "rerun_workflow": {"workflow", "finished", "waiting", "job", "attempt_log", "dependency"},
            "refuse_rerun": {"waiting", "finished", "job", "dependency"},
            "refuse_takers": {"dependency"},
            "reopen_below": {"finished", "waiting", "dependency"},
            "wait_again": {"job", "dependency"},
        },
    ),
    "enforce_deadlines": Scenario(
        "select pgsched.enforce_deadlines(100)", {"enforce_deadlines": {"workflow", "job", "finished", "running"}, "cancel_many": {"waiting"}}
    ),
    "list_failed": Scenario(
        """select count(*) from (select 1 from pgsched.list_failed() union all
            select 1 from pgsched.list_failed(task => 'send', error => 'none such', queue => 'mail', look => 500)) f""",
        {"list_failed": {"finished", "job", "attempt_log"}, "is_such": {"job", "attempt_log"}, "known_queues": {"finished"}},
    ),
    "failed_groups": Scenario(
        """select count(*) from (select 1 from pgsched.failed_groups(look => 500) union all
            select 1 from pgsched.failed_groups(task => 'send', error => 'none such', queue => 'mail', look => 500)) f""",
        {"failed_groups": {"finished", "job", "attempt_log"}, "is_such": {"job", "attempt_log"}},
    ),
    "retry_failed": Scenario(
        """select count(*) from (select 1 from pgsched.retry_failed(look => 300, "limit" => 50) union all
            select 1 from pgsched.retry_failed(task => 'send', error => 'none such', queue => 'mail', look => 300)) f""",
        {"retry_failed": {"finished"}, "is_such": {"job", "attempt_log"}, "retry_one": {"finished", "job"}},
    ),
    "explain": Scenario(
        "select length(pgsched.explain(j.id)) from (select id from pgsched.job where rule is not null order by id limit 20) j",
        {"explain": {"waiting", "dependency", "job"}},
    ),
    "reconcile": Scenario(
        """select pgsched.reconcile({worker}, '{{1}}', (select array_agg(claim_id) from pgsched.running
            where worker_id = {worker} and job_id % 4 > 0))""",
        {"reconcile": {"running"}, "settle": {"running", "job"}},
    ),
    "results": Scenario(
        """select count(*) from pgsched.results((select array_agg(i) from (
            (select job_id as i from pgsched.finished order by job_id limit 100)
            union all (select job_id from pgsched.waiting order by job_id limit 100)) j))""",
        {"results": {"job", "finished", "waiter", "attempt_log"}},
    ),
    "report_progress": Scenario(
        """select pgsched.report_progress({worker}, (select jsonb_agg(
            jsonb_build_object('job_id', r.job_id, 'claim_id', r.claim_id, 'fraction', 0.5))
            from (select * from pgsched.running where worker_id = {worker} order by job_id limit 200) r))""",
        {"report_progress": {"running", "progress"}},
    ),
    "due_schedules": Scenario("select pgsched.due_schedules(100)", {"due_schedules": {"schedule"}}),
    "tick_schedules": Scenario(
        """select pgsched.tick_schedules((
            select jsonb_agg(jsonb_build_object('id', s.id, 'version', s.version, 'was', s.next_tick_at, 'ticks', jsonb_build_array(s.next_tick_at),
                'base_at', s.next_tick_at, 'next_at', now() + interval '1 day'))
            from (select * from pgsched.schedule where next_tick_at <= now() order by next_tick_at, id limit 100) s))""",
        {"tick_schedules": {"schedule", "schedule_tick"}, "make_plain_ticks": {"schedule"}},
    ),
    "tick_schedules, one by one": Scenario(
        """select count(pgsched.tick_schedules(jsonb_build_array(jsonb_build_object('id', s.id, 'version', s.version, 'was', s.next_tick_at,
                'ticks', jsonb_build_array(s.next_tick_at), 'base_at', s.next_tick_at, 'next_at', now() + interval '1 day'))))
            from (select * from pgsched.schedule where next_tick_at <= now() order by next_tick_at, id limit 100) s""",
        {"tick_schedules": {"schedule", "schedule_tick"}, "make_tick": {"schedule_tick"}},
    ),
    "stage": Scenario("select pgsched.stage(200)", {"stage": {"waiting", "ready", "job_key", "job"}}),
    "enqueue_many": Scenario(
        """select * from pgsched.enqueue_many((
            select jsonb_agg(jsonb_build_object('task', 'send', 'queue', 'mail',
                'unique_key', case when i % 3 > 0 then 'key ' || i * 5000 end, 'delay_s', i % 2))
            from generate_series(1, 100) i))""",
        {"take_keys": {"job_key"}},
    ),
    "known_queues": Scenario(
        "select pgsched.known_queues()", {"known_queues": {"waiting", "ready", "finished", "running"}}
    ),
    "list_jobs": Scenario(
        "select count(*) from pgsched.list_jobs()", {"list_jobs": TABLES - {"job_key", "attempt_log", "waiter", "dependency", "release_check", "schedule", "schedule_tick", "workflow"}}
    ),
    "list_jobs by state": Scenario(
        f"select s, (select count(*) from pgsched.list_jobs(state => s)) from unnest(array{STATES}) s",
        {"ids_in": {"waiting", "ready", "running", "finished"}, "list_jobs": {"job"}},
    ),
    "list_jobs by queue": Scenario(
        "select q, (select count(*) from pgsched.list_jobs(queue => q)) from unnest(array['mail', 'rare', 'none']) q",
        {"ids_in": {"waiting", "ready", "running", "finished"}, "list_jobs": {"job"}},
    ),
    "list_jobs by state and queue": Scenario(
        f"""select s, q, (select count(*) from pgsched.list_jobs(state => s, queue => q))
            from unnest(array{STATES}) s, unnest(array['mail', 'rare', 'none']) q""",
        {"ids_in": {"waiting", "ready", "running", "finished"}, "list_jobs": {"job"}},
    ),
    "list_jobs by state, queue and task": Scenario(
        f"""select s, (select count(*) from pgsched.list_jobs(state => s, queue => 'mail', task => 'send'))
            from unnest(array{STATES}) s""",
        {"ids_in": {"waiting", "ready", "running", "finished", "job"}, "list_jobs": {"job"}},
    ),
}


@dataclass
class Watched:
    """A session of one worker, and what its last call's statements did: (function, plan)."""

    connection: psycopg.Connection[Any]
    worker: int
    history: str
    plans: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def hear(self, notice: psycopg.errors.Diagnostic) -> None:
        found = re.search(r"^PL/pgSQL function (?:\w+\.)?(\w+)\(", notice.context or "", re.MULTILINE)
        message = notice.message_primary or ""
        if found is not None and message.startswith("duration: "):
            self.plans.append((found[1], json.loads(message[message.index("{") :])["Plan"]))

    def call(self, scenario: Scenario) -> None:
        """Make the call and undo it; `plans` are those of its statements."""
        self.plans.clear()
        with contextlib.ExitStack() as stack:
            if scenario.held:
                other = stack.enter_context(psycopg.connect(self.connection.info.dsn))
                other.execute(scenario.held.format(worker=self.worker))  # type: ignore[call-overload]
            stack.enter_context(self.connection.transaction(force_rollback=True))
            self.connection.execute(scenario.call.format(worker=self.worker))


def watch(dsn: str, version: int, history: str) -> Watched:
    connection = psycopg.connect(dsn, autocommit=True)
    try:
        connection.execute("load 'auto_explain'")
    except psycopg.errors.UndefinedFile:
        connection.close()
        pytest.skip(f"Postgres {version} was installed without auto_explain: the plans inside functions cannot be seen")
    options = {"log_min_duration": "0", "log_nested_statements": "on", "log_analyze": "on", "log_timing": "off"}
    for name, value in (options | {"log_format": "json", "log_level": "notice"}).items():
        connection.execute(sql.SQL("set auto_explain.{} = {}").format(sql.Identifier(name), value))
    info = {"protocol": 1, "name": "w", "host": "h", "pid": 1, "app": "a", "queues": ["mail"], "tasks": ["send"]}
    info |= {"concurrency": 100, "version": "1", "rescue_after_s": 60}
    row = connection.execute("select worker_id from pgsched.attach(%s)", [json.dumps(info)]).fetchone()
    assert row is not None
    connection.execute("select pgsched.lead('{\"name\": \"w\", \"host\": \"h\", \"pid\": 1}')")
    watched = Watched(connection, row[0], history)
    connection.add_notice_handler(watched.hear)
    return watched


def fill(connection: psycopg.Connection[Any], rows: int, running: int, worker: int) -> None:
    with psycopg.ClientCursor(connection) as cursor:
        cursor.execute("set local search_path = pgsched, pg_temp")
        cursor.execute(FILL, {"rows": rows, "running": running, "worker": worker})


@contextlib.contextmanager
def many_rows(server: Server, template: str, history: str) -> Iterator[Watched]:
    """A watched session on tables with many rows. Autovacuum is off: nobody else analyses them."""
    dsn = server.database(template)
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("select pgsched.adopt()")
            for table in sorted(TABLES):
                command = "alter table pgsched.{} set (autovacuum_enabled = off)"
                connection.execute(sql.SQL(command).format(sql.Identifier(table)))
            connection.execute("vacuum (analyze)")
        session = watch(dsn, server.version, history)
        with session.connection:
            if history == "plans of small tables":
                with session.connection.transaction(force_rollback=True):
                    fill(session.connection, 250, 250, session.worker)
                    for scenario in SCENARIOS.values():
                        if not scenario.alone:
                            session.call(scenario)
            if history == "plans of one page":
                # (As of a young queue after its first ANALYZE: a scan of the page costs less than any index.)
                with session.connection.transaction():
                    fill(session.connection, 60, 10, session.worker)
                session.connection.execute("analyze")
                for scenario in SCENARIOS.values():
                    for _ in range(6):
                        session.call(scenario)
                for table in sorted(TABLES):  # (TRUNCATE would end the plans)
                    session.connection.execute(sql.SQL("delete from pgsched.{}").format(sql.Identifier(table)))
            if history == "statistics of a fan-out":  # (an edge is then found by either of its ends, or so it seems)
                session.connection.execute("insert into pgsched.dependency (job_id, depends_on_id) select i, 1 from generate_series(2, 10000) i")
                session.connection.execute("analyze pgsched.dependency")
                session.connection.execute("delete from pgsched.dependency")
            with session.connection.transaction():
                fill(session.connection, ROWS, RUNNING, session.worker)
            if history == "statistics of full tables":
                session.connection.execute("analyze")
            yield session
    finally:
        server.drop(dsn)


@pytest.fixture(scope="module", params=HISTORIES)
def watched(request: pytest.FixtureRequest, server: Server, template: str) -> Iterator[Watched]:
    """A watched session on tables with many rows, for each way in which it can have come to its plans."""
    with many_rows(server, template, request.param) as session:
        yield session


# ---- The check ---------------------------------------------------------------------------------------------------


def walk(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)


def is_scan(node: dict[str, Any]) -> bool:
    return node["Node Type"].endswith("Scan") and node.get("Relation Name") in TABLES


def scanned_below(node: dict[str, Any]) -> str | None:
    """The table that this node reads through nothing but nodes of one input."""
    while not is_scan(node):
        inputs = [
            child for child in node.get("Plans", []) if child["Parent Relationship"] not in ("InitPlan", "SubPlan")
        ]
        if len(inputs) != 1:
            return None
        node = inputs[0]
    return str(node["Relation Name"])


def complaints(function: str, plan: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the plan of a statement of this function; nothing, as it should be."""
    for node in walk(plan):
        kind, table = node["Node Type"], node.get("Relation Name")
        below = scanned_below(node) if "Sort" in kind else None
        if below is not None and (function, below) not in SORTED:
            yield f"{function}: {kind} over {below}"
        if not is_scan(node) or (function, table) in WHOLE:
            continue
        if kind in ("Seq Scan", "Bitmap Heap Scan", "Sample Scan", "Tid Range Scan"):
            yield f"{function}: {kind} of {table}"
        if table == "running" and kind in ("Index Scan", "Index Only Scan") and "Index Cond" not in node:
            yield f"{function}: {kind} of all of {table} by {node['Index Name']}"
        left_out = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        visited = (node["Actual Rows"] + left_out) * node["Actual Loops"]
        if visited > BUDGET:
            yield f"{function}: {kind} of {table} by {node.get('Index Name')} visits {visited:.0f} rows"


def found_in(session: Watched, scenario: Scenario) -> list[str]:
    session.call(scenario)
    return sorted({complaint for function, plan in session.plans for complaint in complaints(function, plan)})


# ---- The tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_hot_call_reads_by_index_what_it_needs_and_no_more(
    watched: Watched, name: str, mode: LiteralString
) -> None:
    watched.connection.execute(sql.SQL("set plan_cache_mode = {}").format(mode))
    found = found_in(watched, SCENARIOS[name])
    assert not found, "\n".join(found)
    for function, tables in SCENARIOS[name].scans.items():
        nodes = [node for by, plan in watched.plans if by == function for node in walk(plan) if is_scan(node)]
        unseen = tables - {node["Relation Name"] for node in nodes}
        assert not unseen, f"no statement of {function} on {unseen} was seen"


@dataclass(frozen=True)
class Damage:
    """A statement of a function that is none for a hot path, and what the check must say of a call then."""

    function: str
    old: str
    new: str
    scenario: str
    complaint: str


DAMAGES = [
    Damage("claim_as", 'order by "position"', "order by job_id", "claim", "Index Scan of ready by ready_holds_a_job_once"),
    Damage("claim_as", 'order by "position"', 'order by "position" desc, job_id', "claim", "Incremental Sort over ready"),
    Damage(
        "stage", "order by run_at, job_id", "order by run_at desc, job_id", "stage", "Incremental Sort over waiting"
    ),
    Damage("reconcile", "r.worker_id = $1 and", "r.worker_id + 0 = $1 and", "reconcile", ""),
]


@pytest.mark.parametrize("bad", DAMAGES, ids=lambda bad: f"{bad.function} {bad.new}")
def test_the_check_sees_a_bad_plan(watched: Watched, bad: Damage) -> None:
    query = "select pg_get_functiondef(%s::regproc)"
    with watched.connection.transaction(force_rollback=True):
        row = watched.connection.execute(query, [f"pgsched.{bad.function}"]).fetchone()
        assert row is not None and bad.old in row[0], (
            f"{bad.function} has no {bad.old!r} any more: think of another damage"
        )
        watched.connection.execute(row[0].replace(bad.old, bad.new))
        found = found_in(watched, SCENARIOS[bad.scenario])
    assert any(complaint.startswith(f"{bad.function}: {bad.complaint}") for complaint in found), found
