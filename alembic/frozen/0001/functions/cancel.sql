-- Cancels jobs. What waits or is ready ends now; what runs is told to stop: it stays in running, shown as `cancelling`, until
-- its handler has really ended, and then ends as cancelled whatever the handler reports; so does what waits for its subtasks, and
-- the subtasks are cancelled with it. No result of it is accepted from the
-- commit of this call on. What waits for them and can no longer run ends now, too, and so on down (see spread_cancel).
-- Answers for every job that this changes what it was; nothing for one that has ended or is being cancelled already.
-- `dry_run` gives the same answer and changes nothing (it locks the rows while it looks).
-- Locks: rows of waiting and ready, then of running, each in the order of ids; waits for who holds one. Cancels that cross may
-- deadlock (40P01): repeating is safe. A job in flight between tables is looked for again until it is found.
-- Errors: PGS05 no such job (nothing is changed then), PGS09 not READ COMMITTED.
create or replace function cancel_many(job_ids bigint[], reason text default null, dry_run boolean default false)
returns table (job_id bigint, was text)
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    jobs bigint[] := '{}';
    states text[] := '{}';
    state text;
    id bigint;
    further bigint[];
    parents bigint[];
    subtasks bigint[];
    batch bigint[];
    batch_states text[];
begin
    perform require_read_committed();
    if job_ids is null or array_ndims(job_ids) > 1 or array_position(job_ids, null) is not null then
        perform refuse('PGS09', 'cancel: it takes an array of jobs'' ids, none of them null', 'Name the jobs to cancel.');
    end if;
    begin
        -- What waits or is ready, at once; then what runs, has ended, or is on its way.
        select coalesce(array_agg(c.job_id), '{}'), coalesce(array_agg(c.was), '{}') into jobs, states from cancel_waiting(job_ids, left(reason, 500)) c;
        for id in
            select i from unnest(job_ids) i
            except select unnest(jobs)
            except select f.job_id from finished f where f.job_id = any (job_ids) and f.cause_job_id is null
            order by 1
        loop
            state := cancel_one(id, left(reason, 500));
            if state is not null then
                jobs := jobs || id;
                states := states || state;
            end if;
        end loop;
        -- What runs takes its subtasks along. (Its row is held: those that come are refused, those that came are seen.)
        parents := with_subtasks(job_ids);
        while parents <> '{}' loop
            subtasks := array(
                select j.id from job j
                where j.parent_id = any (parents) and (select true from finished f where f.job_id = j.id) is null);
            exit when subtasks = '{}';
            select coalesce(array_agg(c.job_id), '{}'), coalesce(array_agg(c.was), '{}') into batch, batch_states
            from cancel_waiting(array(select s from unnest(subtasks) s where s <> all (jobs)), left(reason, 500)) c;
            for id in select i from unnest(subtasks) i except select unnest(jobs || batch) order by 1 loop
                state := cancel_one(id, left(reason, 500));
                if state is not null then
                    batch := batch || id;
                    batch_states := batch_states || state;
                end if;
            end loop;
            parents := with_subtasks(subtasks);
            jobs := jobs || batch;
            states := states || batch_states;
        end loop;
        -- (One that had ended by a cause has told those who wait for it already.)
        further := spread_cancel(array(select u.id from unnest(jobs, states) u (id, state) where u.state not in ('cancelled', 'skipped')));
        jobs := jobs || further;
        states := states || array_fill('blocked'::text, array[cardinality(further)]);
        if dry_run is distinct from false then
            raise exception using errcode = 'PGDRY', message = 'dry run';
        end if;
    exception when sqlstate 'PGDRY' then
        null;  -- (what this block has done is undone; what it found stays in its variables)
    end;
    return query select * from unnest(jobs, states);
end
$$;
comment on function cancel_many(bigint[], text, boolean) is 'Cancels jobs; answers which it changed and what they were.';

-- Those of these jobs that may have subtasks which have not ended (internal).
create or replace function with_subtasks(jobs bigint[]) returns bigint[]
language sql stable
set search_path from current
as $$
select array(
    select r.job_id from running r where r.job_id = any (jobs) and r.subtasks > 0
    union all
    select p.job_id from parked p where p.job_id = any (jobs))
$$;
comment on function with_subtasks(bigint[]) is 'Those of these jobs that may have subtasks which have not ended (internal).';

-- Cancels one job; see cancel_many.
create or replace function cancel(job_id bigint, reason text default null, dry_run boolean default false)
returns table (job_id bigint, was text)
language sql security definer
set search_path from current
as $$ select * from cancel_many(array[job_id], reason, dry_run) $$;
comment on function cancel(bigint, text, boolean) is 'Cancels a job; answers what it was, nothing where it had ended.';

-- Cancels all jobs of a workflow that have not ended; see cancel_many. Errors: PGS05 no such workflow.
create or replace function cancel_workflow(workflow_id bigint, reason text default null, dry_run boolean default false)
returns table (job_id bigint, was text)
language plpgsql security definer
set search_path from current
as $$
begin
    if not exists (select from workflow w where w.id = workflow_id) then
        perform refuse('PGS05', format('there is no workflow %s', coalesce(workflow_id::text, 'null')), 'It was pruned, or never was: nothing is changed.');
    end if;
    return query
    select c.*
    from cancel_many(array(select j.id from job j where j.workflow_id = cancel_workflow.workflow_id), reason, dry_run) c;
end
$$;
comment on function cancel_workflow(bigint, text, boolean) is 'Cancels all jobs of a workflow that have not ended; answers which it changed and what they were.';

-- Cancels those of these jobs that wait or are ready; what they were (internal). (All in one statement: so none of them is let
-- run by the end of another.)
create or replace function cancel_waiting(job_ids bigint[], reason text) returns table (job_id bigint, was text)
language sql
set search_path from current
as $$
with waited as (
    delete from waiting w
    where w.ctid = any (array(select x.ctid from waiting x where x.job_id = any (job_ids) and x.reason || '' <> 'subtasks' for update))
    returning w.job_id, w.queue, waiting_state(w.reason) as was, w.attempt
), ready_ones as (
    delete from ready r
    where r.ctid = any (array(
        select x.ctid
        from unnest(job_ids) i (id)
            cross join lateral (
                select x.ctid from ready x where x.queue = (select j.queue from job j where j.id = i.id) and x.job_id = i.id for update
            ) x))
    returning r.job_id, r.queue, 'ready' as was, r.attempt
), gone as (
    select * from waited union all select * from ready_ones
), freed as (
    delete from job_key k where k.job_id = any (array(select g.job_id from gone g))
), ended as (
    insert into finished (job_id, queue, state, reason, attempt, finished_at)
    select g.job_id, g.queue, 'cancelled', coalesce('cancelled: ' || cancel_waiting.reason, 'cancelled'), g.attempt, clock_timestamp()
    from gone g
    on conflict (job_id) do nothing
)
select g.job_id, g.was from gone g
$$;
comment on function cancel_waiting(bigint[], text) is 'Cancels those of these jobs that wait or are ready; what they were (internal).';

-- Cancels one job; what it was, null where nothing was to be done (internal).
create or replace function cancel_one(the_job bigint, reason text) returns text
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
    t timestamptz;
    r running;
    its_queue text := (select j.queue from job j where j.id = the_job);
    its_attempt integer;
    was text;
begin
    for look in 1..1000 loop
        t := clock_timestamp();
        select * into r from running x where x.job_id = the_job for update;
        if r.job_id is not null then
            if r.stop_reason = 'cancel' then
                return null;
            end if;
            update running x
            set stop_requested_at = t, stop_reason = 'cancel', stop_note = 'cancelled: ' || reason
            where x.job_id = the_job;
            perform pg_notify(stop_channel(), r.worker_id::text);
            return case when r.stop_reason is null then 'running' else 'cancelling' end;
        end if;
        perform from waiting x where x.job_id = the_job and x.reason || '' = 'subtasks' for update;
        if found then
            return (select 'parked' from cancel_parked(array[the_job], coalesce('cancelled: ' || reason, 'cancelled')));
        end if;
        delete from ready x where x.queue = its_queue and x.job_id = the_job returning attempt into its_attempt;
        if found then
            was := 'ready';
        else
            delete from waiting x where x.job_id = the_job and x.reason || '' <> 'subtasks' returning waiting_state(x.reason), x.attempt into was, its_attempt;
        end if;
        if was is not null then
            insert into finished (job_id, queue, state, reason, attempt, finished_at)
            values (the_job, its_queue, 'cancelled', coalesce('cancelled: ' || reason, 'cancelled'), its_attempt, t);
            delete from job_key x where x.job_id = the_job;
            return was;
        end if;
        -- One that ended because of another stays ended, also when that is retried.
        update finished x
        set cause_job_id = null, reason = concat(x.reason, '; then cancelled', ': ' || cancel_one.reason)
        where x.job_id = the_job and x.cause_job_id is not null
        returning x.state into was;
        if was is not null or exists (select from finished x where x.job_id = the_job) then
            return was;
        end if;
        if not exists (select from job x where x.id = the_job) then
            perform refuse('PGS05', format('there is no job %s', the_job), 'It was pruned, or never was: nothing is changed.');
        end if;
        -- On its way from one table to another: each statement saw it where it was not.
        perform pg_sleep(0.001);
    end loop;
    perform refuse('PGS05', format('job %s is in no state table', the_job), 'check_invariants() says more: its row was removed by hand.');
end
$$;
comment on function cancel_one(bigint, text) is 'Cancels one job; what it was (internal).';

-- Which of the worker's claims were told to stop, and why. `timed_out`: [{"job_id", "claim_id"}, ...], claims whose handlers have
-- used up their time and have not ended yet: they are shown as `cancelling` from now on.
-- Locks: those running rows, skipping those that somebody else holds at this moment.
-- Errors: PGS02, PGS03, PGS09.
create or replace function stops(worker_id bigint, timed_out jsonb default '[]') returns table (claim_id bigint, reason text, note text)
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    perform session_of(worker_id);
    perform check_claims('stops', timed_out);
    if timed_out <> '[]' then
        update running r
        set stop_requested_at = clock_timestamp(), stop_reason = 'timeout'
        where r.stop_requested_at is null and r.job_id = any (array(
            select r.job_id
            from jsonb_to_recordset(timed_out) g (job_id bigint, claim_id bigint)
                cross join lateral (
                    select r.job_id from running r
                    where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = $1
                    for update skip locked
                ) r));
    end if;
    return query
    select r.claim_id, r.stop_reason, r.stop_note from running r where r.worker_id = $1 and r.stop_requested_at is not null;
end
$$;
comment on function stops(bigint, jsonb) is 'Which of the worker''s claims were told to stop; names those that have timed out.';

-- The channel on which workers hear that a job of theirs was told to stop; the payload is the worker's id.
create or replace function stop_channel() returns text
language sql stable
set search_path from current
as $$ select channel() || '_stop' $$;
comment on function stop_channel() is 'The channel on which workers hear that a job was told to stop (LISTEN); the payload is the worker''s id.';
