-- What the cancels of these jobs mean for those that wait for them, and so on down: outcomes are written on the edges, at once
-- also those of a job that still runs (it can only end as cancelled; an edge with done waits for its end); what can no longer run
-- ends. Answers the jobs that this has ended.
-- The plain case first, at once for the whole graph below: jobs that need all of their dependencies. Then level by level. What is
-- looked at is locked first and then decided over in a new statement, which sees what those who held the rows have committed.
-- An event is left for each job: whoever brings a dependent back meanwhile has it looked at again.
-- Locks: rows of waiting, in the order of ids; edges; waits for who holds one.
create or replace function spread_cancel(jobs bigint[]) returns bigint[]
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    all_ended bigint[];
    found_doomed bigint[];
    held_doomed bigint[];
    level bigint[];
    dependents bigint[];
begin
    -- (Those that have ended here have left their event; those that run leave one now.)
    insert into release_check (ended_id)
    select r.job_id from running r
    where r.job_id = any (jobs) and (select true from dependency d where d.depends_on_id = r.job_id limit 1)
    union all
    select p.job_id from parked p
    where p.job_id = any (jobs) and (select true from dependency d where d.depends_on_id = p.job_id limit 1);

    -- What was found is still so where each of its rows could be taken: edges and rules never change. Where one was not, what lies
    -- below it may have another end. (Who has come since is found below. What was taken stays taken, so that this ends; the index is
    -- read in the order of ids, whatever the order of the array.)
    loop
        found_doomed := array(select id from doomed(jobs) id);
        held_doomed := array(
            select w.job_id from waiting w where w.job_id = any (found_doomed) and w.reason || '' = 'dependencies' for update);
        exit when cardinality(held_doomed) = cardinality(found_doomed);
    end loop;

    all_ended := held_doomed;
    level := jobs || held_doomed;
    loop
        dependents := array(
            select w.job_id from waiting w
            where w.reason || '' = 'dependencies'
                and w.job_id = any (array(
                    select d.job_id from dependency d where d.depends_on_id = any (level) except select unnest(held_doomed)))
            for update);
        perform write_cancelled(level);
        if held_doomed <> '{}' then
            perform end_doomed(held_doomed);
            held_doomed := '{}';
        end if;
        exit when dependents = '{}';
        level := (
            select c.ended_jobs
            from carry_out(array(
                select x.job_id from decide(array(
                    select w.job_id from waiting w where w.job_id = any (dependents) and w.reason || '' = 'dependencies')) x
                where x.verdict in ('skipped', 'cancelled'))) c);
        exit when level = '{}';
        all_ended := all_ended || level;
    end loop;
    return all_ended;
end
$$;
comment on function spread_cancel(bigint[]) is 'What cancels mean for those that wait for the jobs; answers what this has ended (internal).';

-- What waits for these jobs, which were cancelled, and needs each of its dependencies; and so on down.
create or replace function doomed(jobs bigint[]) returns setof bigint
language sql stable
set search_path from current
as $$
with recursive below (id) as (
    select w.job_id from waiting w
    where w.job_id = any (array(select d.job_id from dependency d where d.depends_on_id = any (jobs) and d.condition <> 'done'))
        and w.reason || '' = 'dependencies' and (select j.rule from job j where j.id = w.job_id) = 'all'
    union
    select x.job_id
    from below b
        cross join lateral (
            select d.job_id from dependency d
            where d.depends_on_id = b.id and d.condition <> 'done'
                and (select w.reason from waiting w where w.job_id = d.job_id) = 'dependencies'
                and (select j.rule from job j where j.id = d.job_id) = 'all'
            offset 0
        ) x
)
select b.id from below b
$$;
comment on function doomed(bigint[]) is 'What waits for cancelled jobs and needs each of its dependencies, and so on down (internal).';

-- Ends these jobs, which wait for dependencies, and whose rows the caller holds: edges say that what they need was cancelled.
create or replace function end_doomed(jobs bigint[]) returns void
language sql
set search_path from current
as $$
with gone as (
    delete from waiting w where w.job_id = any (jobs) and w.reason || '' = 'dependencies' returning w.job_id, w.queue, w.attempt
), freed as (
    delete from job_key k where k.job_id = any (jobs)
)
insert into finished (job_id, queue, state, reason, attempt, finished_at, cause_job_id)
select g.job_id, g.queue, 'cancelled', end_by_cause(c.cause, 'cancelled'), g.attempt, clock_timestamp(), c.cause
from gone g
    -- ("offset 0": it is read once for each, and not from the beginning of another index, where the least of all may be.)
    cross join lateral (
        select min(x.id) as cause
        from (
            select d.depends_on_id as id from dependency d
            where d.job_id = g.job_id and d.outcome = 'cancelled' and d.condition <> 'done'
            offset 0
        ) x
        offset 0
    ) c
-- (One that has ended already, against the rules, is dropped. By ON CONFLICT a row would cost a third more.)
where (g.job_id in (select f.job_id from finished f where f.job_id = any (jobs))) is not true
$$;
comment on function end_doomed(bigint[]) is 'Ends jobs that wait for what was cancelled, whose rows the caller holds (internal).';

-- Writes on the edges that lead to these jobs that they were cancelled; of one that still runs, on those that its end cannot meet.
-- The caller holds the jobs. (Most are plain: they are spared a look for each edge.)
create or replace function write_cancelled(jobs bigint[]) returns void
language plpgsql
set search_path from current
as $$
declare
    apart constant bigint[] := array(
        select f.job_id from finished f where f.job_id = any (jobs) and f.state <> 'cancelled'
        union all select r.job_id from running r where r.job_id = any (jobs)
        union all select p.job_id from parked p where p.job_id = any (jobs));
begin
    update dependency d
    set outcome = 'cancelled'
    where d.depends_on_id = any (case when apart = '{}' then jobs else array(select unnest(jobs) except select unnest(apart)) end) and d.outcome is null;
    if apart <> '{}' then
        update dependency d
        set outcome = coalesce((select f.state from finished f where f.job_id = d.depends_on_id), 'cancelled')
        where d.depends_on_id = any (apart) and d.outcome is null
            and (d.condition <> 'done' or (select true from finished f where f.job_id = d.depends_on_id));
    end if;
end
$$;
comment on function write_cancelled(bigint[]) is 'Writes on the edges that lead to these jobs that they were cancelled (internal).';
