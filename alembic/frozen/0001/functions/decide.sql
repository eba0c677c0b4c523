-- What becomes of jobs that wait for dependencies, from their edges alone: the one home of that rule.
--   met         its rule is met: it may run
--   skipped     its rule can no longer be met: it ends without running
--   cancelled   the same, and one of those that made it so was cancelled
--   open        neither yet
-- An edge is met by its condition, and dead when its job has ended otherwise. The rules: all edges are met; any one is; at
-- least rule_n are; none_failed: all have ended, each as succeeded or skipped, whatever the conditions say. `cause` is the job
-- that made it impossible, a cancelled one first. Nothing is answered for a job without a rule.
-- (Its plan is pinned by the settings of the functions that call it.)
create or replace function decide(jobs bigint[]) returns table (job_id bigint, verdict text, cause bigint)
language sql stable
set search_path from current
as $$
select j.id,
    case
        when case j.rule
            when 'any' then e.met + e.undecided = 0
            when 'at_least' then e.met + e.undecided < j.rule_n
            else e.bad_one is not null end
        then case when e.bad_cancelled is not null then 'cancelled' else 'skipped' end
        when case j.rule
            when 'any' then e.met > 0
            when 'at_least' then e.met >= j.rule_n
            else e.undecided = 0 end
        then 'met'
        else 'open'
    end,
    coalesce(e.bad_cancelled, e.bad_one)
from unnest(jobs) u (id)
    -- ("offset 0": the planner cannot turn the join round and walk all of job.)
    cross join lateral (select x.id, x.rule, x.rule_n from job x where x.id = u.id offset 0) j
    cross join lateral (
        select
            count(*) filter (where d.outcome is null) as undecided,
            count(*) filter (where d.met) as met,
            min(d.depends_on_id) filter (where d.bad) as bad_one,
            min(d.depends_on_id) filter (where d.bad and d.outcome = 'cancelled') as bad_cancelled
        from (
            select m.*, case j.rule when 'none_failed' then m.outcome in ('failed', 'cancelled') else not m.met end as bad
            from (
                select x.depends_on_id, x.outcome,
                    case x.condition
                        when 'success' then x.outcome = 'succeeded'
                        when 'failure' then x.outcome = 'failed'
                        else nullif(x.outcome is not null, false) end as met
                from dependency x
                where x.job_id = j.id
            ) m
        ) d
    ) e
where j.rule is not null
$$;
comment on function decide(bigint[]) is 'What becomes of jobs that wait for dependencies, from their edges alone (internal).';

-- Which of these jobs need all of their dependencies, and do not know yet how one of them has ended. (Newest edges first: what has not
-- ended is there as a rule. "between": no other index has this order.)
create or replace function lack_an_end(jobs bigint[]) returns bigint[]
language sql stable
set search_path from current
as $$
select array(
    select u.id from unnest(jobs) u (id)
    where (select j.rule from job j where j.id = u.id) = 'all' and (
        select true from dependency d
        where d.job_id between u.id and u.id and d.outcome is null
        order by d.job_id desc
        limit 1))
$$;
comment on function lack_an_end(bigint[]) is 'Which of these jobs need all of their dependencies, and do not know yet how one of them has ended (internal).';
