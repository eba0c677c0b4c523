-- Removes up to `n` jobs that ended longer ago than `older_than`, oldest ids first: definition, end, attempts; and workers
-- that ended as long ago; and up to `n` rows each of progress and waiter whose claim or job has ended,
-- and of the history of ticks. Answers how many jobs went; call again while it answers more than 0.
-- Locks: the pruner's lock, by a try (-1: somebody else prunes at this moment); then, in this order and skipping locked
-- ones, the rows of job and, in a later statement, those of finished.
create or replace function prune(older_than interval, n integer default 10000) returns integer
language plpgsql security definer
set search_path from current
as $$
declare
    before timestamptz;
    candidates bigint[];
    pruned bigint[];
    edges bigint[];
begin
    perform require_read_committed();
    if older_than is null or older_than not between interval '0' and interval '1000 years' or n is null or n < 1 then
        perform refuse('PGS09', format('prune: older_than is %s and n is %s', coalesce(older_than::text, 'null'), coalesce(n::text, 'null')),
            'Give an interval of 0 to 1000 years and a number of at least 1, for example prune(''30 days'').');
    end if;
    before := clock_timestamp() - older_than;
    if not pg_try_advisory_xact_lock(lock_class(), 4) then
        return -1;
    end if;
    -- (The limit counts what could be locked: a held row at the front stops nobody.)
    candidates := array(
        select j.id from job j join finished f on f.job_id = j.id
        where f.finished_at < before and not is_needed(f.job_id)
        order by j.id
        limit n
        for update of j skip locked);
    if cardinality(candidates) < n then
        candidates := candidates || array(
            select f.job_id from finished f
            where f.finished_at < before and not exists (select from job j where j.id = f.job_id)
            limit n - cardinality(candidates));
    end if;
    pruned := array(
        select f.job_id from finished f
        where f.job_id = any (candidates) and f.finished_at < before
            and not exists (select from waiting w where w.job_id = f.job_id)
            and not exists (select from ready r where r.queue = f.queue and r.job_id = f.job_id)
            and not exists (select from running r where r.job_id = f.job_id)
            and not is_needed(f.job_id)
        order by f.job_id
        for update skip locked);
    -- (Somebody who cancels or retries another job may hold an edge of one of them.)
    edges := array(select d.job_id from dependency d where d.job_id = any (pruned) for update skip locked);
    pruned := array(
        select p.id
        from unnest(pruned) p (id) left join (select e.id, count(*) as n from unnest(edges) e (id) group by e.id) e on e.id = p.id
        where coalesce(e.n, 0) = (select count(*) from dependency d where d.job_id = p.id));
    delete from job where id = any (pruned);
    delete from attempt_log where job_id = any (pruned);
    delete from dependency where job_id = any (pruned);
    delete from finished where job_id = any (pruned);
    delete from progress
    where ctid = any (array(
        select p.ctid from progress p
        where not exists (select from running r where r.job_id = p.job_id and r.claim_id = p.claim_id)
        limit prune.n
        for update of p skip locked));
    -- (What a finish did not see that ended the job at the moment when somebody began to wait.)
    delete from waiter
    where ctid = any (array(
        select w.ctid from waiter w
        where exists (select from finished f where f.job_id = w.job_id) or not exists (select from job j where j.id = w.job_id)
        limit prune.n
        for update of w skip locked));
    delete from workflow
    where id = any (array(
        select w.id from workflow w
        where w.created_at < before and not exists (select from job j where j.workflow_id = w.id)
        limit prune.n
        for update skip locked));
    delete from worker
    where id = any (array(
        select w.id from worker w
        where greatest(w.stopped_at, w.rescued_at) < before and pg_try_advisory_xact_lock(w.id)
            and not exists (select from running r where r.worker_id = w.id)
        for update skip locked));
    perform prune_ticks(before, n);
    return cardinality(pruned);
end
$$;
comment on function prune(interval, integer) is 'Removes jobs that ended longer ago than older_than, in chunks of n; answers how many went.';

-- Whether somebody has still to notice the end of this job, or to take its result. A subtask is kept as long as its parent, whose
-- dependents may take its result.
create or replace function is_needed(the_job bigint) returns boolean
language plpgsql stable
set search_path from current
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
begin
    return exists (select from release_check e where e.ended_id = the_job)
        or exists (select from release_check e where e.look_at_id = the_job)
        or (select true from job p where p.id = (select j.parent_id from job j where j.id = the_job)) is not null
        or exists (
            select from dependency d
            where d.depends_on_id = the_job and (d.outcome is null or (select true from finished x where x.job_id = d.job_id) is null));
end
$$;
comment on function is_needed(bigint) is 'Whether somebody has still to notice the end of this job, or to take its result (internal).';

-- Removes up to `n` rows of the history of ticks from before then, and run-time schedules that were removed before then. The newest
-- tick that is gone stays known. (Last of all: nobody waits long for the schedules' rows, and the leader steps over them.)
create or replace function prune_ticks(before timestamptz, n integer) returns void
language plpgsql
set search_path from current
as $$
declare
    old record;
begin
    for old in
        select x.schedule_id, array_agg(x.tick_at) as ticks, max(x.tick_at) as newest
        from (select * from schedule_tick y where y.fired_at < before order by y.schedule_id, y.tick_at limit n) x
        group by x.schedule_id
    loop
        perform from schedule s where s.id = old.schedule_id for update skip locked;
        continue when not found and exists (select from schedule s where s.id = old.schedule_id);
        update schedule s set pruned_until = greatest(s.pruned_until, old.newest) where s.id = old.schedule_id;
        delete from schedule_tick x where x.schedule_id = old.schedule_id and x.tick_at = any (old.ticks);
    end loop;
    delete from schedule
    where id = any (array(
        select s.id from schedule s
        where s.removed_at < before and s.origin = 'runtime' and not exists (select from schedule_tick x where x.schedule_id = s.id)
        limit n
        for update skip locked));
end
$$;
comment on function prune_ticks(timestamptz, integer) is 'Removes the history of ticks from before then (internal).';
