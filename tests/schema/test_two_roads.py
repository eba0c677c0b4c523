"""Two roads lead to the schema, all revisions in turn and `sql/` as it stands: what they build must be equal.

Equal means: by the server's own catalogues, over everything in the schema but Alembic's version table. Each kind of
difference is shown to be seen. What must hold of every object (a comment, no right for PUBLIC, a pinned search path) is
asked of the same catalogues.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import alembic.autogenerate
import alembic.migration
import psycopg
import pytest
import sqlalchemy
from harness.server import Server
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgsched
from pgsched import migrate

Connection = psycopg.Connection[tuple[Any, ...]]
Catalogue = dict[str, dict[str, Any]]

# Everything that hangs on the schema, by the server's own record of what depends on what.
INVENTORY = """
with recursive thing (classid, objid, objsubid) as (
    select 'pg_namespace'::regclass::oid, n.oid, 0 from pg_namespace n where n.nspname = %(schema)s
    union
    select d.classid, d.objid, d.objsubid
    from thing t
        join pg_depend d on d.refclassid = t.classid and d.refobjid = t.objid and (t.objsubid in (0, d.refobjsubid))
    where d.deptype <> 'e'
), named as (
    select t.*, i.* from thing t, pg_identify_object(t.classid, t.objid, t.objsubid) i
    where i.identity not like '%%alembic_version%%' and i.schema is distinct from 'pg_toast' and i.identity not like '%%pg_toast%%'
)
"""
HERE = "%(schema)s::text::regnamespace"


def _grants(acl: str, kind: str, owner: str) -> str:
    """Who may do what; where nothing was granted or revoked, what that means for such an object."""
    every = f"aclexplode(coalesce({acl}, acldefault({kind}, {owner})))"
    return (
        f"array(select concat_ws(' ', a.grantee::regrole, a.privilege_type, a.is_grantable) from {every} a order by 1)"
    )


OURS = f"c.relnamespace = {HERE} and c.relname not like 'alembic_version%%'"
SCHEMA_GRANTS = _grants("n.nspacl", "'n'", "n.nspowner")
RELATION_GRANTS = _grants("c.relacl", """case c.relkind when 'S' then 's' else 'r' end::"char" """, "c.relowner")
COLUMN_GRANTS = _grants("a.attacl", "'c'", "c.relowner")
FUNCTION_GRANTS = _grants("p.proacl", "'f'", "p.proowner")
TYPE_GRANTS = _grants("t.typacl", "'T'", "t.typowner")

# Each kind of difference: rows of a name and what there is to say about it.
KINDS: dict[str, str] = {
    "objects": INVENTORY + "select type || ' ' || identity, '' from named",
    "comments": INVENTORY
    + """
        select n.type || ' ' || n.identity || coalesce('.' || a.attname, ''), d.description
        from named n
            join pg_description d on d.classoid = n.classid and d.objoid = n.objid and n.objsubid in (0, d.objsubid)
            left join pg_attribute a on n.classid = 'pg_class'::regclass and a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0
    """,
    "tables": f"""
        select c.relname, array[c.relkind::text, c.relpersistence::text, c.relowner::regrole::text, c.relrowsecurity::text,
            c.relforcerowsecurity::text, c.relreplident::text, c.relispartition::text, (select amname from pg_am where oid = c.relam)]
        from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and {OURS}
    """,
    "options": f"select c.relname, c.reloptions from pg_class c where c.relkind <> 'i' and {OURS}",
    "columns": f"""
        select c.relname || '.' || a.attname, array[
            (row_number() over (partition by c.oid order by a.attnum))::text, format_type(a.atttypid, a.atttypmod),
            (select collname from pg_collation where oid = a.attcollation), a.attnotnull::text, a.attidentity::text, a.attgenerated::text,
            a.attstorage::text, (select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d where d.adrelid = c.oid and d.adnum = a.attnum)]
        from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and a.attnum > 0 and not a.attisdropped and {OURS}
    """,
    "constraints": f"""
        select coalesce(c.relname || ': ', '') || k.conname, array[k.contype::text, pg_get_constraintdef(k.oid), k.convalidated::text]
        from pg_constraint k join pg_class c on c.oid = k.conrelid where {OURS}
    """,
    "indexes": f"""
        select c.relname, array[pg_get_indexdef(c.oid), c.reloptions::text, i.indisvalid::text, i.indisclustered::text, i.indisreplident::text]
        from pg_class c join pg_index i on i.indexrelid = c.oid where {OURS}
    """,
    "functions": """
        select p.oid::regprocedure::text, array[pg_get_functiondef(p.oid), p.proowner::regrole::text, p.prosecdef::text, p.provolatile::text,
            p.proconfig::text]
        from pg_proc p where p.pronamespace = %(schema)s::text::regnamespace and p.prokind in ('f', 'p')
    """,
    "views": f"select c.relname, pg_get_viewdef(c.oid) from pg_class c where c.relkind in ('v', 'm') and {OURS}",
    "types": """
        select format_type(t.oid, null), array[t.typtype::text, t.typowner::regrole::text, t.typnotnull::text,
            format_type(t.typbasetype, t.typtypmod), t.typdefault,
            array(select e.enumlabel from pg_enum e where e.enumtypid = t.oid order by e.enumsortorder)::text]
        from pg_type t
        where t.typnamespace = %(schema)s::text::regnamespace and t.typtype <> 'b' and t.typname <> 'alembic_version'
    """,
    "sequences": """
        select sequencename, array[data_type::text, start_value::text, min_value::text, max_value::text, increment_by::text, cycle::text,
            cache_size::text, sequenceowner::text]
        from pg_sequences where schemaname = %(schema)s
    """,
    "privileges": f"""
        select 'schema', {SCHEMA_GRANTS} from pg_namespace n where n.nspname = %(schema)s
        union all
        select c.relname, {RELATION_GRANTS}
        from pg_class c where c.relkind not in ('i', 'I') and {OURS}
        union all
        select c.relname || '.' || a.attname, {COLUMN_GRANTS}
        from pg_class c join pg_attribute a on a.attrelid = c.oid where a.attacl is not null and {OURS}
        union all
        select p.oid::regprocedure::text, {FUNCTION_GRANTS}
        from pg_proc p where p.pronamespace = %(schema)s::text::regnamespace
        union all
        select format_type(t.oid, null), {TYPE_GRANTS}
        from pg_type t where t.typnamespace = %(schema)s::text::regnamespace and t.typtype <> 'b' and t.typname <> 'alembic_version'
    """,
    "settings": "select name, array[value::text, description] from pgsched.setting where %(schema)s = 'pgsched'",
}

# For each kind some statements that make such a difference.
DIFFERENCES: dict[str, list[LiteralString]] = {
    "objects": [
        "create table extra ()",
        "create function f() returns trigger language plpgsql as 'begin return null; end'; "
        "create trigger t before insert on job execute function f()",
        "create policy p on job",
        "create statistics s on task, queue from job",
        "create rule r as on delete to job do instead nothing",
        "create domain d as text",
        "drop view job_errors",
    ],
    "comments": [
        "comment on table job is 'other'",
        "comment on column job.task is null",
        "comment on view jobs is 'other'",
        "comment on function protocol() is 'other'",
        "comment on type new_job is null",
        "comment on sequence claim_number is null",
        "comment on constraint job_task_is_a_name on job is 'new'",
        "comment on index finished_list is 'new'",
        "comment on schema pgsched is 'new'",
    ],
    "tables": [
        "alter table job set unlogged",
        "alter table job enable row level security",
        "alter table job owner to pg_monitor",
    ],
    "options": ["alter table ready reset (vacuum_truncate)", "alter view jobs set (security_barrier)"],
    "columns": [
        "alter table setting alter description type varchar",
        'alter table job_key alter unique_key type text collate "POSIX"',
        "alter table job alter priority set default 4",
        "alter table finished alter attempt drop not null",
        "alter table ready alter position set generated by default",
        "alter table setting drop value, add value jsonb; update setting set value = '1'; alter table setting alter value set not null",
    ],
    "constraints": [
        "alter table job drop constraint job_priority_is_0_to_9, add constraint job_priority_is_0_to_9 check (priority < 10)",
        "alter table job_key drop constraint job_key_job_id_key",
    ],
    "indexes": ["create index extra on finished (reason)", "alter index finished_time set (autosummarize = off)"],
    "functions": [
        "create or replace function protocol() returns integer language sql immutable set search_path from current as 'select 2'",
        "alter function protocol() security definer",
        "alter function protocol() set search_path = pg_catalog",
        "alter function protocol() volatile",
        "alter function protocol() owner to pg_monitor",
    ],
    "views": [
        "do $$ begin execute 'create or replace view job_errors as ' || "
        "rtrim(pg_get_viewdef('job_errors'::regclass), ';') || ' where a.attempt > 0'; end $$"
    ],
    "types": ["create type mood as enum ('good')", "alter type new_job owner to pg_monitor"],
    "sequences": ["alter sequence claim_number cache 2", "alter sequence claim_number increment by 2"],
    "privileges": [
        "grant select on job to public",
        "grant select (task) on job to public",
        "grant execute on function protocol() to public",
        "grant usage on sequence claim_number to public",
        "grant usage on schema pgsched to public",
        "revoke usage on type new_job from public",
    ],
    "settings": ["update setting set value = '1' where name = 'max_args_bytes'"],
}


def catalogue(connection: Connection, *kinds: str) -> Catalogue:
    """What the server says about the schema, by kind and name. (The search path: every name comes with its schema.)"""
    connection.execute("set local search_path = pg_catalog")
    return {kind: dict(rows(connection, KINDS[kind])) for kind in kinds or KINDS}


def read(dsn: str) -> Catalogue:
    with psycopg.connect(dsn) as connection:
        return catalogue(connection)


def rows(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode(), {"schema": "pgsched"}).fetchall()


def differences(one: Catalogue, other: Catalogue) -> list[tuple[str, str, Any, Any]]:
    """Kind, name and both descriptions of each thing that is not the same."""
    return [
        (kind, name, one[kind].get(name, "absent"), other[kind].get(name, "absent"))
        for kind in one
        for name in sorted(one[kind].keys() | other[kind].keys())
        if one[kind].get(name, "absent") != other[kind].get(name, "absent")
    ]


@pytest.fixture(scope="module")
def built(server: Server) -> Iterator[str]:
    """A database whose schema was built from sql/."""
    dsn = server.database()
    migrate.build(dsn)
    yield dsn
    server.drop(dsn)


@pytest.fixture(scope="module")
def expected(built: str) -> Catalogue:
    """What the server says of a schema that was built from sql/."""
    return read(built)


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that may log in, and nothing else. Ask for it before a database: it goes after it."""
    name = f"role_{uuid.uuid4().hex}"
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.fixture
def empty(server: Server) -> Iterator[str]:
    """A database without pgsched."""
    dsn = server.database()
    yield dsn
    server.drop(dsn)


def test_all_revisions_build_what_sql_says(dsn: str, expected: Catalogue) -> None:
    assert differences(read(dsn), expected) == []


def test_every_kind_is_there_and_has_its_differences(expected: Catalogue) -> None:
    assert DIFFERENCES.keys() == KINDS.keys()
    assert [kind for kind in KINDS if not expected[kind]] == []


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, changes in DIFFERENCES.items() for change in changes]
)
def test_a_difference_is_seen(built: str, expected: Catalogue, kind: str, change: LiteralString) -> None:
    with psycopg.connect(built) as connection:
        connection.execute("set local search_path = pgsched")
        connection.execute(change)
        assert differences(catalogue(connection, kind), expected) != []
        connection.rollback()


def test_the_script_for_psql_builds_the_same(server: Server, empty: str, expected: Catalogue) -> None:
    psql = Path(server.postgres).with_name("psql")
    command = [psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", empty]
    run = subprocess.run(command, input=migrate.upgrade_sql(), capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert differences(read(empty), expected) == []
    assert migrate.upgrade(empty) == migrate.head()


def test_frozen_text_is_fresh() -> None:
    revisions = sorted(folder.name for folder in (migrate.REVISIONS / "frozen").iterdir())
    frozen: dict[str, str] = {}
    for revision in revisions:
        frozen |= _texts(migrate.REVISIONS / "frozen" / revision)
    now = _texts(migrate.SQL)
    stale = {name for name in frozen.keys() | now.keys() if frozen.get(name) != now.get(name)}
    if len(revisions) > 1:  # a later revision changes tables by hand, and the comparison of databases judges it
        stale = {name for name in stale if not name.startswith("schema")}
    assert not stale, f"the frozen text of {sorted(stale)} is not sql/'s; run: make generate REVISION={revisions[-1]}"


def _texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.sql")}


def test_every_object_has_a_comment(built: str) -> None:
    query = f"""{INVENTORY}
        select n.type || ' ' || n.identity from named n left join pg_type t on n.classid = 'pg_type'::regclass and t.oid = n.objid
        where n.type in ('table', 'view', 'function', 'sequence', 'type')
            -- (not a table's row type, nor an array)
            and (t.oid is null or t.typelem = 0 and (t.typtype <> 'c' or exists (select from pg_class c where c.oid = t.typrelid and c.relkind = 'c')))
            and obj_description(n.objid, n.classid::regclass::name) is null
    """
    with psycopg.connect(built) as connection:
        assert rows(connection, query) == []


@pytest.mark.parametrize("kind", ["r", "v"], ids=["table", "view"])
def test_every_column_has_a_comment(built: str, kind: str) -> None:
    query = f"""
        select c.relname || '.' || a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.relkind = '{kind}' and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null and {OURS}
    """
    with psycopg.connect(built) as connection:
        assert rows(connection, query) == []


def test_no_function_is_for_public_and_each_pins_its_search_path(dsn: str) -> None:
    query = f"""
        select p.oid::regprocedure::text, has_function_privilege('public', p.oid, 'execute'),
            p.prosqlbody is not null or coalesce('search_path=pgsched, pg_temp' = any (p.proconfig), false)  -- (such a body was bound when it was made)
        from pg_proc p where p.pronamespace = {HERE}
    """
    with psycopg.connect(dsn) as connection:
        found = rows(connection, query)
    assert len(found) > 20
    assert [row for row in found if row[1:] != (False, True)] == []


def test_every_sequence_gives_its_numbers_one_by_one(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        found = dict(
            rows(connection, "select sequencename, cache_size from pg_sequences where schemaname = %(schema)s")
        )
    assert found.keys() >= {"claim_number", "job_id_seq", "ready_position_seq"}
    assert set(found.values()) == {1}


def test_a_role_without_superuser_migrates_and_owns_what_runs_with_its_rights(role: str, empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as admin:
        database = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("alter database {} owner to {}").format(database, sql.Identifier(role)))
        assert migrate.upgrade(make_conninfo(empty, user=role)) == migrate.head()
        owners = rows(
            admin,
            f"select distinct proowner::regrole::text from pg_proc p where p.prosecdef and p.pronamespace = {HERE}",
        )
        assert owners == [(role,)]
        admin.execute("select pgsched.enqueue('task', queue => 'queue')")
        assert rows(admin, "select * from pgsched.check_invariants()") == []
        admin.execute(sql.SQL("alter database {} owner to current_user").format(database))


def test_a_role_migrates_the_schema_that_was_made_for_it(role: str, empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute(sql.SQL("create schema pgsched authorization {}").format(sql.Identifier(role)))
    assert migrate.upgrade(make_conninfo(empty, user=role)) == migrate.head()


def test_a_role_that_may_not_create_a_schema_is_told_so(role: str, empty: str) -> None:
    with pytest.raises(pgsched.AccessError, match="permission denied for database"):
        migrate.upgrade(make_conninfo(empty, user=role))


@pytest.mark.parametrize("schema", ["my queue", "Select", 'a "50%(s)s" b:c\'s @'])
def test_any_name_of_a_schema_works(role: str, empty: str, schema: str) -> None:
    for _ in range(2):
        assert migrate.upgrade(empty, schema=schema) == migrate.head()
    app = pgsched.App("shop", dsn=empty, schema=schema)

    @app.task
    def send(to: str) -> None: ...

    assert send.enqueue("a@example.org").info().state == "ready"
    assert [job.info().queue for job in app.enqueue_many([send.bind("b"), send.using(queue="mail").bind("c")])] == [
        "shop",
        "mail",
    ]
    app.client.run(app.client.calls.grant_access(role, "worker"), "grant_access", "")
    assert app.client.run(app.client.calls.violations(), "violations", "") == []
    app.close()
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(role)))


def test_upgrades_by_two_threads_at_once_both_succeed(empty: str) -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(migrate.upgrade(empty))) for _ in range(2)]
    with _gate(empty) as waiting:
        for thread in threads:
            thread.start()
        _until(lambda: waiting() >= 1)
    for thread in threads:
        thread.join(60)
    assert answers == [migrate.head()] * 2


def test_upgrades_by_two_processes_at_once_both_succeed(empty: str, expected: Catalogue) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from pgsched.migrate import upgrade; print(upgrade(sys.argv[1]))",
        empty,
    ]
    with _gate(empty) as waiting:
        processes = [
            subprocess.Popen(command, cwd=migrate.SQL.parent, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        _until(lambda: waiting() == 2)
    assert [(process.communicate(timeout=60)[0], process.returncode) for process in processes] == [
        (f"{migrate.head()}\n", 0)
    ] * 2
    assert differences(read(empty), expected) == []


@contextlib.contextmanager
def _gate(dsn: str) -> Iterator[Callable[[], int]]:
    """Hold the migrations' lock; yields how many sessions wait for it now."""
    with psycopg.connect(dsn) as gate, psycopg.connect(dsn, autocommit=True) as watch:
        gate.execute(migrate.prologue("pgsched")[0].encode())
        yield lambda: int(
            rows(watch, "select count(*) from pg_locks where locktype = 'advisory' and not granted")[0][0]
        )


def test_a_second_upgrade_does_nothing(dsn: str) -> None:
    query = """
        select (select jsonb_agg(to_jsonb(c) || jsonb_build_object('xmin', c.xmin::text) order by oid) from pg_class c where relnamespace = 'pgsched'::regnamespace),
            (select jsonb_agg(to_jsonb(p) || jsonb_build_object('xmin', p.xmin::text) order by oid) from pg_proc p where pronamespace = 'pgsched'::regnamespace),
            (select jsonb_agg(to_jsonb(i)) from pgsched.installation i)
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        before = rows(connection, query)
        assert migrate.upgrade(dsn) == migrate.head()
        assert rows(connection, query) == before


def test_an_unknown_revision_is_refused_by_name(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("update pgsched.alembic_version set version_num = '9999'")
    with pytest.raises(
        pgsched.SchemaError, match=r"a revision that this version of pgsched does not know.*9999.*install"
    ):
        migrate.upgrade(dsn)


def test_a_schema_from_before_the_release_of_its_revision_is_refused(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("comment on table pgsched.alembic_version is 'another text'")
    with pytest.raises(pgsched.SchemaError, match="from before the release of revision"):
        migrate.upgrade(dsn)


def test_there_is_no_way_back() -> None:
    with pytest.raises(pgsched.SchemaError, match="no way back"):
        migrate.forward_only()


@pytest.mark.parametrize("schema", ["pgsched", "my queue"])
def test_an_application_that_hides_the_schema_has_a_clean_autogenerate(empty: str, schema: str) -> None:
    migrate.upgrade(empty, schema=schema)
    metadata = sqlalchemy.MetaData()
    sqlalchemy.Table("shop_order", metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
    hide = migrate.include_name if schema == "pgsched" else migrate.include_name_for(schema)
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(empty), poolclass=sqlalchemy.NullPool
    )
    with engine.begin() as connection:
        metadata.create_all(connection)
        for options, clean in (({"include_name": hide}, True), ({}, False)):
            context = alembic.migration.MigrationContext.configure(
                connection, opts={"include_schemas": True, **options}
            )
            assert (alembic.autogenerate.compare_metadata(context, metadata) == []) is clean


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "this has not come true in 30 s"
        time.sleep(0.01)
