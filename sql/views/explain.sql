-- Why a job is where it is, in plain sentences. Errors: PGS05 no such job.
create or replace function explain(job_id bigint) returns text
language plpgsql stable security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    the_job constant bigint := job_id;
    j jobs;
    d job;
    said text[];
    most constant integer := 10;
begin
    select * into j from jobs s where s.id = the_job;
    select * into d from job x where x.id = the_job;
    if d.id is null then
        perform refuse('PGS05', format('there is no job %s', coalesce(the_job::text, 'null')), 'It was pruned, or never was.');
    end if;
    said := array[format('Job %s (task %s%s) is %s', the_job, shown(d.task),
        case when d.workflow_id is not null then format(', %s in workflow %s', shown(coalesce(d.name, d.task)), d.workflow_id) else '' end, coalesce(j.state, 'on its way between two states'))
        || case
            when j.state in ('running', 'cancelling') then format(', for %s, on worker %s', span(clock_timestamp() - coalesce(j.started_at, clock_timestamp())), coalesce((select w.name from worker w where w.id = j.worker_id), j.worker_id::text))
            when j.state in ('scheduled', 'retrying') then format(' until %s', j.run_at)
            when j.state = 'ready' then format(' in queue %s with priority %s', shown(d.queue), d.priority)
            when j.finished_at is not null then format(' since %s%s', j.finished_at, coalesce(': ' || j.reason, ''))
            else coalesce(': ' || j.reason, '') end || '.'];
    if j.state = 'blocked' then
        said := said || case d.rule
                when 'any' then 'It waits for any one of these:'
                when 'at_least' then format('It waits for %s of these:', d.rule_n)
                when 'none_failed' then 'It waits until all of these have ended, none of them as failed or cancelled:'
                else 'It waits for:' end
            || array(
                select format('  %s, %s%s', label(b.depends_on_id), b.depends_on_state,
                    case when d.rule = 'none_failed' or b.condition = 'success' then '' else format(' (counts on %s)', b.condition) end)
                from blocked b where b.job_id = the_job
                order by not b.holds, b.depends_on_id
                limit most)
            || array(
                select format('  and %s more', count(*) - most) from dependency e where e.job_id = the_job having count(*) > most);
    elsif j.state = 'parked' then
        said := said || 'It waits for its subtasks:'::text
            || array(
                select format('  %s, %s', label(o.id), coalesce((select s.state from jobs s where s.id = o.id), 'on its way'))
                from parked p cross join lateral (select s.id from open_subtasks(p.job_id, p.claim_id, p.above) s (id) limit most) o
                where p.job_id = the_job)
            || array(
                select format('  and %s more', n - most)
                from (select count(*) as n from parked p cross join lateral open_subtasks(p.job_id, p.claim_id, p.above) where p.job_id = the_job) c
                where n > most);
    elsif j.cause_job_id is not null then
        said := said || format('It ended because of %s. Retry %s to let this one wait again.', label(j.cause_job_id),
            case when d.parent_id is null then 'that one' else 'its parent, which makes its subtasks anew,' end);
    end if;
    if d.parent_id is not null then
        said := said || format('It is a subtask of %s.', label(d.parent_id));
    end if;
    if j.finished_at is null then
        said := said || array(
            select format('It is cancelled if it has not ended by %s, the deadline of its workflow.', w.deadline)
            from workflow w where w.id = d.workflow_id and w.deadline is not null and w.deadline_over_at is null);
        said := said || array(
            select format('%s.', label(w.id) || ' waits for it')
            from (
                select e.job_id as id from dependency e
                where e.depends_on_id = the_job and (select true from waiting x where x.job_id = e.job_id and x.reason = 'dependencies')
                order by e.depends_on_id, e.job_id
                limit most
            ) w);
    end if;
    return array_to_string(said, e'\n');
end
$$;
comment on function explain(bigint) is 'Why a job is where it is, in plain sentences.';

-- A job as a sentence names it.
create or replace function label(the_job bigint) returns text
language sql stable
set search_path from current
as $$ select coalesce((select format('%s (job %s)', shown(coalesce(j.name, j.task)), j.id) from job j where j.id = the_job), format('job %s', the_job)) $$;
comment on function label(bigint) is 'A job as a sentence names it (internal).';

-- A span of time as a sentence names it.
create or replace function span(i interval) returns text
language sql immutable
set search_path from current
as $$
select case
    when i < interval '1 min' then format('%s s', round(extract(epoch from i)))
    when i < interval '2 hours' then format('%s min', round(extract(epoch from i) / 60))
    when i < interval '2 days' then format('%s h', round(extract(epoch from i) / 3600))
    else format('%s days', round(extract(epoch from i) / 86400)) end
$$;
comment on function span(interval) is 'A span of time as a sentence names it (internal).';
