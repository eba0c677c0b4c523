-- One row a job, whatever its state. Fast by id; for lists use list_jobs().
create or replace view jobs as
select
    j.id,
    j.task,
    j.queue,
    j.priority,
    s.state,
    s.attempt,
    j.max_attempts,
    s.lost_attempts,
    s.run_at,
    s.started_at,
    s.finished_at,
    s.reason,
    s.progress,
    s.progress_message,
    s.worker_id,
    s.claim_id,
    s.expires_at,
    j.timeout,
    masked(j.args, j.secret) as args,
    s.result,
    j.tags,
    j.metadata,
    j.unique_key,
    j.workflow_id,
    j.parent_id,
    s.cause_job_id,
    j.created_at,
    j.created_by
from job j
    left join lateral (
        select waiting_state(w.reason) as state, w.attempt, w.lost_attempts, w.run_at, null::timestamptz as started_at,
            null::timestamptz as finished_at,
            case w.reason
                when 'unknown_task' then 'no worker that met it knows its task'
                when 'subtasks' then (
                    select 'its subtasks have still to end, then ' || case p.outcome
                        when 'succeeded' then 'it has succeeded' when 'failed' then 'it has failed' when 'cancelled' then 'it is cancelled' else 'it runs again' end
                    from parked p where p.job_id = w.job_id)
            end as reason,
            null::bigint as worker_id, null::bigint as claim_id, w.expires_at, null::jsonb as result, null::bigint as cause_job_id,
            null::double precision as progress, null::text as progress_message
        from waiting w where w.job_id = j.id
        union all
        select 'ready', r.attempt, r.lost_attempts, null, null, null, null, null, null, r.expires_at, null, null, null, null
        from ready r where r.queue = j.queue and r.job_id = j.id
        union all
        select case when r.stop_requested_at is null then 'running' else 'cancelling' end, r.attempt, r.lost_attempts, null,
            r.started_at, null, r.stop_reason, r.worker_id, r.claim_id, r.expires_at, null, null, p.fraction, p.message
        from running r
            left join lateral (
                select p.fraction, p.message from progress p where p.claim_id = r.claim_id order by p.n desc limit 1
            ) p on true
        where r.job_id = j.id
        union all
        select f.state, f.attempt, null, null, f.started_at, f.finished_at, f.reason, f.worker_id, f.claim_id, null, f.result, f.cause_job_id, null, null
        from finished f where f.job_id = j.id
    ) s on true;
comment on view jobs is 'One row a job: what it is, where it stands and why. Fast by id; for lists use list_jobs().';
comment on column jobs.id is 'The job''s number.';
comment on column jobs.task is 'Its task.';
comment on column jobs.queue is 'Its queue.';
comment on column jobs.priority is '0 (first) to 9.';
comment on column jobs.state is 'scheduled, blocked, retrying, parked, held, ready, running, cancelling, succeeded, failed, cancelled or skipped.';
comment on column jobs.attempt is 'Attempts charged to its retry budget; of a running job the number of this attempt.';
comment on column jobs.max_attempts is 'Its retry budget.';
comment on column jobs.lost_attempts is 'How many workers died while they ran it.';
comment on column jobs.run_at is 'Not before this time, while it waits.';
comment on column jobs.started_at is 'When its current or last attempt began.';
comment on column jobs.finished_at is 'When it ended.';
comment on column jobs.reason is 'Why it is where it is, in words.';
comment on column jobs.progress is 'How far it is, 0 to 1, as its handler last said; of a running job.';
comment on column jobs.progress_message is 'The same in words.';
comment on column jobs.worker_id is 'The worker that runs it, or that ended it.';
comment on column jobs.claim_id is 'The claim''s number: the fence.';
comment on column jobs.expires_at is 'Not begun by then, it ends as skipped.';
comment on column jobs.timeout is 'How long one attempt may take.';
comment on column jobs.args is 'Its arguments, secret ones masked.';
comment on column jobs.result is 'What its handler returned.';
comment on column jobs.tags is 'Words to find it by.';
comment on column jobs.metadata is 'The application''s own.';
comment on column jobs.unique_key is 'Its unique key.';
comment on column jobs.workflow_id is 'Its workflow.';
comment on column jobs.parent_id is 'The running job that made it.';
comment on column jobs.cause_job_id is 'The dependency whose end made it impossible.';
comment on column jobs.created_at is 'When it was enqueued.';
comment on column jobs.created_by is 'The role that enqueued it.';
