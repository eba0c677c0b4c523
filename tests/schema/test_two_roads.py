"""Two roads lead to the schema, all revisions in turn and `sql/` as it stands: what they build must be equal.

Equal means: by the server's own catalogues, over everything in the schema but Alembic's version table. Each kind of
difference is shown to be seen. What must hold of every object (a comment, no right for PUBLIC, a pinned search path) is
asked of the same catalogues.
"""

from __future__ import annotations

import subprocess
import threading
import uuid
from collections.abc import Iterator
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
RELATION = "select c.oid::regclass::text, {} from pg_class c where c.relnamespace = n.oid and c.relkind = any ({})"
OURS = "c.relnamespace = %(schema)s::text::regnamespace and c.relname not like 'alembic_version%%'"
GRANTS = "array(select a.grantee::regrole || ' ' || a.privilege_type || ' ' || a.is_grantable from aclexplode(coalesce({}, acldefault({}, {}))) a order by 1)"

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
        select 'schema', {GRANTS.format("n.nspacl", "'n'", "n.nspowner")} from pg_namespace n where n.nspname = %(schema)s
        union all
        select c.relname, {GRANTS.format("c.relacl", "case c.relkind when 'S' then 's' else 'r' end::\"char\"", "c.relowner")}
        from pg_class c where c.relkind not in ('i', 'I') and {OURS}
        union all
        select c.relname || '.' || a.attname, {GRANTS.format("a.attacl", "'c'", "c.relowner")}
        from pg_class c join pg_attribute a on a.attrelid = c.oid where a.attacl is not null and {OURS}
        union all
        select p.oid::regprocedure::text, {GRANTS.format("p.proacl", "'f'", "p.proowner")}
        from pg_proc p where p.pronamespace = %(schema)s::text::regnamespace
        union all
        select format_type(t.oid, null), {GRANTS.format("t.typacl", "'T'", "t.typowner")}
        from pg_type t where t.typnamespace = %(schema)s::text::regnamespace and t.typtype <> 'b' and t.typname <> 'alembic_version'
    """,
    "settings": "select name, array[value::text, description] from pgsched.setting where %(schema)s = 'pgsched'",
}
