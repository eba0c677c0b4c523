-- Every worker that the table knows, and what pg_locks says of it: a worker is alive as long as a session of it holds its lock.
create or replace view workers as
select
    w.id,
    w.name,
    case
        when w.rescued_at is not null then 'rescued'
        when w.stopped_at is not null then 'stopped'
        when l.sessions > 0 then 'alive'
        else 'silent'
    end as state,
    coalesce(l.sessions, 0) as sessions,
    (select count(*) from running r where r.worker_id = w.id) as running,
    w.concurrency,
    w.queues,
    w.host,
    w.pid,
    w.app,
    w.tasks,
    w.version,
    w.protocol,
    w.generation,
    w.attached_at,
    w.stopped_at,
    w.rescued_at,
    w.rescue_reason
from worker w
    left join (
        select k.classid::bigint << 32 | k.objid::bigint as id, count(*) as sessions
        from pg_locks k
        where k.locktype = 'advisory' and k.objsubid = 1 and k.mode = 'ShareLock' and k.granted
            and k.database = (select d.oid from pg_database d where d.datname = current_database())
        group by 1
    ) l on l.id = w.id;
comment on view workers is 'Every worker, and whether its sessions hold its lock (alive), do not (silent), or its life is over (stopped, rescued).';
