-- Who leads, read from pg_locks: the one truth. No row: nobody does.
create or replace view leader as
select
    t.term,
    t.name,
    t.host,
    t.pid,
    t.began_at,
    l.pid as backend_pid,
    a.usename as role_name,
    a.application_name,
    (t.term is not null) as is_known
from installation i
    join pg_locks l on l.locktype = 'advisory' and l.objsubid = 2 and l.granted
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.classid::bigint = (i.lock_class::bigint & 4294967295) and l.objid = 1
    left join leader_term t on t.backend_pid = l.pid and t.ended_at is null
    left join pg_stat_activity a on a.pid = l.pid;
comment on view leader is 'Who leads, by the lock that is held; no row: nobody.';
comment on column leader.term is 'The term; null where the holder of the lock has none (is_known).';
comment on column leader.name is 'The leader''s name.';
comment on column leader.host is 'Its machine.';
comment on column leader.pid is 'Its process there.';
comment on column leader.began_at is 'Since when.';
comment on column leader.backend_pid is 'Its session''s backend.';
comment on column leader.role_name is 'The role of that session.';
comment on column leader.application_name is 'What that session calls itself.';
comment on column leader.is_known is 'False: somebody holds the lock who is no leader of ours.';
