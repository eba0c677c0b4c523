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
            case w.reason when 'unknown_task' then 'no worker that met it knows its task' end as reason,
            null::bigint as worker_id, null::bigint as claim_id, w.expires_at, null::jsonb as result, null::bigint as cause_job_id
        from waiting w where w.job_id = j.id
        union all
        select 'ready', r.attempt, r.lost_attempts, null, null, null, null, null, null, r.expires_at, null, null
        from ready r where r.queue = j.queue and r.job_id = j.id
        union all
        select case when r.stop_requested_at is null then 'running' else 'cancelling' end, r.attempt, r.lost_attempts, null,
            r.started_at, null, r.stop_reason, r.worker_id, r.claim_id, r.expires_at, null, null
        from running r where r.job_id = j.id
        union all
        select f.state, f.attempt, null, null, f.started_at, f.finished_at, f.reason, f.worker_id, f.claim_id, null, f.result, f.cause_job_id
        from finished f where f.job_id = j.id
    ) s on true;
comment on view jobs is 'One row a job: what it is, where it stands and why. Fast by id; for lists use list_jobs().';
