-- What each waiting job waits for: one row for each of its edges.
create or replace view blocked as
select
    w.job_id,
    j.task,
    w.queue,
    j.workflow_id,
    j.name,
    j.rule,
    j.rule_n,
    d.depends_on_id,
    p.task as depends_on_task,
    p.name as depends_on_name,
    d.condition,
    case when d.outcome is null then coalesce(s.state, 'gone') else d.outcome end as depends_on_state,
    d.outcome is null as holds
from waiting w
    join job j on j.id = w.job_id
    join dependency d on d.job_id = w.job_id
    left join job p on p.id = d.depends_on_id
    left join jobs s on s.id = d.depends_on_id
where w.reason = 'dependencies';
comment on view blocked is 'What each job that waits for dependencies waits for: one row for each edge. Fast by job_id.';
comment on column blocked.job_id is 'The job that waits.';
comment on column blocked.task is 'Its task.';
comment on column blocked.queue is 'Its queue.';
comment on column blocked.workflow_id is 'Its workflow.';
comment on column blocked.name is 'Its name within the workflow.';
comment on column blocked.rule is 'How its edges decide together: all, any, at_least, none_failed.';
comment on column blocked.rule_n is 'The number of at_least.';
comment on column blocked.depends_on_id is 'A job that it depends on.';
comment on column blocked.depends_on_task is 'The task of that.';
comment on column blocked.depends_on_name is 'The name of that within its workflow.';
comment on column blocked.condition is 'By which end of that the edge is met: success, failure, done.';
comment on column blocked.depends_on_state is 'Where that stands, or how it ended.';
comment on column blocked.holds is 'Whether that has still to end.';

-- One row a workflow: how far it is. It counts (100,000 jobs take 50 to 90 ms); list_workflows() bounds that.
create or replace view workflows as
select
    w.id,
    w.name,
    case
        when w.jobs = w.shared then 'shared'
        when s.failed + s.cancelled > 0 and s.open = 0 then 'failed'
        when s.open = 0 then 'succeeded'
        when s.running + s.succeeded + s.failed > 0 or s.has_begun then 'running'
        else 'waiting'
    end as state,
    w.jobs,
    w.shared,
    s.succeeded,
    s.failed,
    s.cancelled,
    s.skipped,
    s.running,
    s.open,
    w.created_at,
    w.deadline,
    case when s.open = 0 then s.finished_at end as finished_at,
    w.created_by
from workflow w
    cross join lateral (
        select
            count(*) filter (where f.state = 'succeeded') as succeeded,
            count(*) filter (where f.state = 'failed') as failed,
            count(*) filter (where f.state = 'cancelled') as cancelled,
            count(*) filter (where f.state = 'skipped') as skipped,
            count(r.job_id) as running,
            count(*) filter (where f.job_id is null) as open,
            coalesce(bool_or(x.attempt > 0), false) as has_begun,
            max(f.finished_at) as finished_at
        from job j
            left join finished f on f.job_id = j.id
            left join running r on r.job_id = j.id
            left join waiting x on x.job_id = j.id
        where j.workflow_id = w.id and j.parent_id is null  -- (subtasks are parts of their parent)
    ) s;
comment on view workflows is 'One row a workflow: how far it is. Fast by id; of many, list_workflows() is faster.';
comment on column workflows.id is 'Its number.';
comment on column workflows.name is 'Its name.';
comment on column workflows.state is 'waiting (nothing has begun), running, succeeded (all have ended, none failed or was cancelled) or failed; shared: it has no job of its own.';
comment on column workflows.jobs is 'How many jobs it was made of.';
comment on column workflows.shared is 'For how many of them another job stands, with the same unique key: those are not counted below.';
comment on column workflows.succeeded is 'How many have succeeded.';
comment on column workflows.failed is 'How many have failed.';
comment on column workflows.cancelled is 'How many were cancelled.';
comment on column workflows.skipped is 'How many were skipped.';
comment on column workflows.running is 'How many run.';
comment on column workflows.open is 'How many have not ended.';
comment on column workflows.created_at is 'When it was enqueued.';
comment on column workflows.deadline is 'What of it has not ended by then is cancelled.';
comment on column workflows.finished_at is 'When the last of its jobs ended.';
comment on column workflows.created_by is 'The role that enqueued it.';

-- The newest workflows. It counts the newest, and others until `most` jobs have been counted in all: in the rows after that state and counts
-- are null, and the view workflows has them by id.
create or replace function list_workflows("limit" integer default 50, most bigint default 200000) returns setof workflows
language sql stable security definer
set search_path from current
set jit = off
as $$
select w.id, w.name, s.state, w.jobs, w.shared, s.succeeded, s.failed, s.cancelled, s.skipped, s.running, s.open, w.created_at, w.deadline,
    s.finished_at, w.created_by
from (
    select x.*, sum(x.jobs) over (order by x.id desc) as until, row_number() over (order by x.id desc) as n
    from (select * from workflow order by id desc limit least(greatest(list_workflows."limit", 0), 10000)) x
) w
    left join lateral (select v.* from workflows v where v.id = w.id and (w.n = 1 or w.until <= most) offset 0) s on true
order by w.id desc
$$;
comment on function list_workflows(integer, bigint) is 'The newest workflows, newest first; counted until so many jobs have been.';

-- The jobs of a workflow in an order in which each comes after all that it waits for; edges: [{"id", "on", "outcome"}, ...].
-- Nothing where there is no such workflow.
create or replace function workflow_jobs(workflow_id bigint)
returns table (id bigint, name text, task text, state text, attempt integer, started_at timestamptz, finished_at timestamptz, reason text, progress double precision, edges jsonb)
language sql stable security definer
set search_path from current
as $$
select j.id, coalesce(j.name, j.task), j.task, s.state, s.attempt, s.started_at, s.finished_at, s.reason, s.progress, coalesce((
    select jsonb_agg(jsonb_build_object('id', d.depends_on_id, 'on', d.condition, 'outcome', d.outcome) order by d.depends_on_id)
    from dependency d where d.job_id = j.id), '[]')
from job j join jobs s on s.id = j.id
where j.workflow_id = workflow_jobs.workflow_id and j.parent_id is null
order by j.id
$$;
comment on function workflow_jobs(bigint) is 'The jobs of a workflow and their edges, each after all that it waits for.';
