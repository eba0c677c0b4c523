-- What is in each queue and has not ended. It counts, so it takes as long as there are jobs that have not ended.
create or replace view queues as
select
    q.queue,
    coalesce(sum(q.n) filter (where q.state = 'ready'), 0)::bigint as ready,
    coalesce(sum(q.n) filter (where q.state = 'running'), 0)::bigint as running,
    coalesce(sum(q.n) filter (where q.state = 'cancelling'), 0)::bigint as cancelling,
    coalesce(sum(q.n) filter (where q.state = 'scheduled'), 0)::bigint as scheduled,
    coalesce(sum(q.n) filter (where q.state = 'retrying'), 0)::bigint as retrying,
    coalesce(sum(q.n) filter (where q.state = 'blocked'), 0)::bigint as blocked,
    coalesce(sum(q.n) filter (where q.state in ('held', 'parked')), 0)::bigint as held,
    min(q.next_run_at) as next_run_at,
    (
        select j.created_at from ready r join job j on j.id = r.job_id
        where r.queue = q.queue order by r.job_id limit 1
    ) as oldest_ready_created_at,
    (
        select count(*) from worker w
        where w.queues @> array[q.queue::text] and w.stopped_at is null and w.rescued_at is null and w.id in (
            select l.classid::bigint << 32 | l.objid::bigint from pg_locks l
            where l.locktype = 'advisory' and l.objsubid = 1
                and l.database = (select d.oid from pg_database d where d.datname = current_database()))
    ) as workers
from (
    select queue, 'ready' as state, count(*) as n, null::timestamptz as next_run_at from ready group by queue
    union all
    select queue, case when stop_requested_at is null then 'running' else 'cancelling' end, count(*), null from running group by 1, 2
    union all
    select queue, waiting_state(reason), count(*), min(run_at) from waiting group by 1, 2
) q
group by q.queue;
comment on view queues is 'What is in each queue and has not ended, and how many live workers serve it.';
comment on column queues.queue is 'The queue.';
comment on column queues.ready is 'Jobs that may run now.';
comment on column queues.running is 'Jobs that run.';
comment on column queues.cancelling is 'Jobs that were told to stop and have not ended.';
comment on column queues.scheduled is 'Jobs that wait for a time.';
comment on column queues.retrying is 'Jobs that wait after a failed attempt.';
comment on column queues.blocked is 'Jobs that wait for dependencies.';
comment on column queues.held is 'Jobs that wait for something else: an unknown task, a limit, subtasks.';
comment on column queues.next_run_at is 'The time of the next one that waits for a time.';
comment on column queues.oldest_ready_created_at is 'When the oldest ready job was enqueued.';
comment on column queues.workers is 'Live workers that serve it.';
