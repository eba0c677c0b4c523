-- (Here and elsewhere: "reason || ''" serves no index, so that jobs are looked up by their numbers whatever the statistics say.)
-- Decides over these jobs, whose rows in waiting the caller holds, and carries it out; `only_met`: only over those that may run.
-- Answers how many became ready (or scheduled), and which ended.
create or replace function carry_out(jobs bigint[], only_met boolean default false, out became_ready integer, out ended integer, out ended_jobs bigint[])
language plpgsql
set search_path from current
as $$
declare
    t timestamptz := clock_timestamp();
    met bigint[];
    ids bigint[];
    verdicts text[];
    causes bigint[];
    spared bigint[];
    woken text[];
begin
    became_ready := 0;
    ended_jobs := '{}';
    select array_agg(d.job_id) filter (where d.verdict = 'met'), array_agg(d.job_id) filter (where d.verdict <> 'met'),
        array_agg(d.verdict) filter (where d.verdict <> 'met'), array_agg(d.cause) filter (where d.verdict <> 'met')
    into met, ids, verdicts, causes
    from decide(jobs) d where d.verdict <> 'open';
    -- (A subtask that is to end with its parent is not let run by the end of another one. It is looked at until it has ended.)
    spared := end_with_parents(met);
    if spared <> '{}' then
        met := array(select m from unnest(met) m where m <> all (spared));
        insert into release_check (look_at_id) select s from unnest(spared) s;
    end if;
    if met <> '{}' then
        with gone as (
            delete from waiting w
            where w.reason || '' = 'dependencies' and w.job_id = any (met) and (w.run_at > t) is not true
            returning w.job_id, w.queue, w.expires_at, w.attempt, w.lost_attempts
        ), moved as (
            insert into ready (queue, priority, job_id, expires_at, attempt, lost_attempts)
            select g.queue, coalesce((select j.priority from job j where j.id = g.job_id), 5), g.job_id, g.expires_at, g.attempt, g.lost_attempts
            from gone g
            on conflict (queue, job_id) do nothing
            returning queue
        )
        select count(*), array_agg(distinct queue), (select count(*) from gone) into became_ready, woken, ended from moved;
        if ended < cardinality(met) then
            update waiting w
            set reason = 'scheduled'
            where w.run_at > t and w.reason || '' = 'dependencies' and w.job_id = any (met);
            get diagnostics ended = row_count;
            became_ready := became_ready + ended;
        end if;
        perform wake(woken);
    end if;
    if ids is not null and not only_met then
        with gone as (
            delete from waiting w
            where w.reason || '' = 'dependencies' and w.job_id = any (ids)
            returning w.job_id, w.queue, w.attempt
        ), freed as (
            delete from job_key where job_id = any (array(select g.job_id from gone g))
        ), ends as (
            insert into finished (job_id, queue, state, reason, attempt, finished_at, cause_job_id)
            select g.job_id, g.queue, u.verdict,
                end_by_cause(u.cause, (select d.outcome from dependency d where d.job_id = g.job_id and d.depends_on_id = u.cause)),
                g.attempt, t, u.cause
            from gone g join unnest(ids, verdicts, causes) u (id, verdict, cause) on u.id = g.job_id
            on conflict (job_id) do nothing
            returning job_id
        )
        select coalesce(array_agg(job_id), '{}') into ended_jobs from ends;
    end if;
    ended := cardinality(ended_jobs);
end
$$;
comment on function carry_out(bigint[], boolean) is 'Decides over jobs whose rows in waiting the caller holds, and carries it out (internal).';

-- Why a job has ended without running, in words.
create or replace function end_by_cause(cause bigint, outcome text) returns text
language sql stable
return format('job %s, which it depends on, %s', cause,
    case outcome when 'succeeded' then 'has succeeded' when 'failed' then 'has failed' when 'skipped' then 'was skipped' else 'was cancelled' end);
comment on function end_by_cause(bigint, text) is 'Why a job has ended without running, in words (internal).';
