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
comment on column workers.id is 'The worker''s number, and the key of its lock.';
comment on column workers.name is 'Its name.';
comment on column workers.state is 'alive: a session of it holds its lock; silent: none does; stopped or rescued: its life is over.';
comment on column workers.sessions is 'How many of its sessions hold its lock.';
comment on column workers.running is 'How many jobs it holds.';
comment on column workers.concurrency is 'How many it runs at once.';
comment on column workers.queues is 'The queues it serves.';
comment on column workers.host is 'Its machine.';
comment on column workers.pid is 'Its process.';
comment on column workers.app is 'Its application.';
comment on column workers.tasks is 'The tasks it knows; null: any.';
comment on column workers.version is 'Its version of pgsched.';
comment on column workers.protocol is 'The protocol it speaks.';
comment on column workers.generation is 'How often it has re-attached.';
comment on column workers.attached_at is 'When it attached.';
comment on column workers.stopped_at is 'When it stopped by itself.';
comment on column workers.rescued_at is 'When its jobs were taken from it.';
comment on column workers.rescue_reason is 'On what ground.';
