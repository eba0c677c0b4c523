-- Claims up to `max_jobs` ready jobs for the calling worker, lane by lane in the order given, each lane in the order
-- of entry. `want`: {"lanes": [{"queue": "mail", "priority": 5}, ...], "max_jobs": 100, "free_slots": 100}.
-- The first `free_slots` jobs begin with the claim (started_at is set, and their expiry is over); the rest are only held.
--
-- Answers one row a job: lane (its index in `lanes`, from 0), its position there (null: handed over, see finish), and what is needed to run it. Each
-- job returned has exactly one row in running, under a claim_id that is new and never repeats. A row without job_id is
-- a note: extra {"again": true} says that jobs were met that are not among the answer, so "nothing came" does not mean
-- "nothing is there"; {"not_before": time} says that no claims are given out before then.
--
-- At most one job of an answer is a suspect, with which a worker has died before (extra {"lost_attempts"}), and none where
-- want says {"suspects": false}: a worker runs one at a time, so that another death has one that it can be charged to.
--
-- What cannot run does not stay in the way: an expired job ends as skipped, one whose definition is gone as failed, one
-- whose task this worker does not know waits a little (as long as it is old, 1 to 60 s; nothing charged), and a ready
-- row whose job is running already is dropped.
--
-- Locks: the picked ready rows, skipping those that another claim is taking. Durable whatever the role's default.
-- The plan is pinned: one lane a query, by its index, whatever the statistics say.
-- Errors: PGS02 this session is not the worker's, PGS03 the worker was rescued, PGS09 `want` is malformed.
create or replace function claim(worker_id bigint, want jsonb)
returns table (lane integer, "position" bigint, job_id bigint, claim_id bigint, attempt integer, task text, args jsonb, "timeout" interval, extra jsonb)
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
    me record;
begin
    select * into me from session_of(worker_id);
    perform force_durable();
    perform check_want(want);
    return query
    select * from claim_as($1, me.session_no, me.epoch, me.not_before, me.tasks, want);
end
$$;
comment on function claim(bigint, jsonb) is 'Claims ready jobs for the calling worker, best first.';

-- Refuses what is no proper `want` (see claim).
create or replace function check_want(want jsonb) returns void
language plpgsql immutable
set search_path from current
as $$
begin
    if jsonb_typeof(want -> 'lanes') is distinct from 'array'
        or (want @? '$.lanes[*] ? (!(@.queue.type() == "string" && @.priority.type() == "number"
            && @.priority.floor() == @.priority && @.priority >= 0 && @.priority <= 9))') is not false
        or whole_number(want -> 'max_jobs', 0) is false or whole_number(want -> 'free_slots', 0) is false then
        perform refuse('PGS09', 'claim: want must have an array "lanes" of queues and priorities, and whole numbers "max_jobs" and "free_slots" of at least 0',
            'For example {"lanes": [{"queue": "mail", "priority": 5}], "max_jobs": 10}.');
    end if;
end
$$;
comment on function check_want(jsonb) is 'Refuses what claim() cannot understand (internal).';

-- A claim's number: new each time, and larger than all before, also those of an earlier epoch.
create or replace function new_claim_id(epoch bigint) returns bigint
language sql volatile
return (epoch << 44) | nextval('claim_number');
comment on function new_claim_id(bigint) is 'A claim''s number, new each time (internal).';

-- The claim itself, for a session that is proven. (Its plans are pinned by the settings of the functions that call it.)
create or replace function claim_as(the_worker bigint, session_no integer, epoch bigint, not_before timestamptz, tasks text[], want jsonb)
returns table (lane integer, "position" bigint, job_id bigint, claim_id bigint, attempt integer, task text, args jsonb, "timeout" interval, extra jsonb)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
declare
    a_lane record;
    room integer;
    slots integer;
    t timestamptz := clock_timestamp();
    jobs bigint[];
    claims bigint[];
    positions bigint[];
    attempts integer[];
    losses integer[];
    expiries timestamptz[];
    entered bigint;
    suspect boolean;
    doubtful tid;
    given bigint;
    swept boolean;
    again boolean := false;
begin
    room := coalesce(nullif(want -> 'max_jobs', 'null')::integer, 1);
    slots := coalesce(nullif(want -> 'free_slots', 'null')::integer, room);
    suspect := coalesce(want -> 'suspects' = 'false', false);
    if t < not_before then
        return query select null::integer, null::bigint, null::bigint, null::bigint, null::integer, null::text, null::jsonb,
            null::interval, jsonb_build_object('not_before', not_before);
        return;
    end if;
    for a_lane in
        select (l.n - 1)::integer as n, l.lane ->> 'queue' as queue, (l.lane -> 'priority')::smallint as priority, f.first,
            -- (By its own index: no other has this order.)
            (
                select true from ready r
                where r.queue = l.lane ->> 'queue' and r.priority = (l.lane -> 'priority')::smallint and r.lost_attempts > 0
                order by r.lost_attempts, r."position"
                limit 1
            ) as has_suspects
        from jsonb_array_elements(want -> 'lanes') with ordinality l (lane, n)
        -- Where the lane begins: an empty one is spared the larger statement below, which in turn need not walk again
        -- over what was deleted before it. (What is committed below that in between is the next claim's.)
        cross join lateral (
            select r."position" as first from ready r
            where r.queue = l.lane ->> 'queue' and r.priority = (l.lane -> 'priority')::smallint
            order by r."position"
            limit 1) f
    loop
        exit when room <= 0;
        doubtful := null;
        if a_lane.has_suspects and not suspect then
            select ctid into doubtful from ready
            where queue = a_lane.queue and priority = a_lane.priority and lost_attempts > 0
            order by lost_attempts, "position"
            limit 1
            for update skip locked;
        end if;
        with picked as (
            delete from ready
            where ctid = any (array(
                select ctid from ready
                where queue = a_lane.queue and priority = a_lane.priority and "position" >= a_lane.first and lost_attempts = 0
                order by "position"
                limit room - (doubtful is not null)::integer
                for update skip locked) || doubtful)
            returning "position", job_id, queue, expires_at, attempt + 1 as attempt, lost_attempts,
                new_claim_id(epoch) as claim_id
        ),
        entered as (
            insert into running (job_id, claim_id, attempt, lost_attempts, worker_id, session_no, queue, expires_at, claimed_at, started_at)
            select job_id, claim_id, attempt, lost_attempts, the_worker, session_no, queue,
                expires_at, clock_timestamp(), case when slots >= room then clock_timestamp() end  -- (after all that this statement sees)
            from picked
            on conflict (job_id) do nothing
            returning 1
        )
        select array_agg(job_id), array_agg(claim_id), array_agg("position"), array_agg(attempt), array_agg(lost_attempts),
            array_agg(expires_at), (select count(*) from entered)
        into jobs, claims, positions, attempts, losses, expiries, entered
        from (select * from picked order by "position") p;
        continue when jobs is null;
        suspect := suspect or doubtful is not null;
        swept := entered < cardinality(jobs) or coalesce(t >= any (expiries), false);
        if swept then
            perform drop_unrunnable(tasks, t, jobs, claims, expiries);
        end if;
        -- Whether the definition is there and the task known is asked by the same look-up that fetches the arguments;
        -- what drop_unrunnable() has moved is out of running and left out here.
        return query
        select a_lane.n, u."position", u.job_id, u.claim_id, u.attempt, j.task, j.args, j.timeout,
            beside(j.id, u.lost_attempts, j.takes_results, j.tick_at)
        from unnest(positions, jobs, claims, attempts, losses) u ("position", job_id, claim_id, attempt, lost_attempts)
            join job j on j.id = u.job_id
        where (tasks is null or j.task = any (tasks))
            and (not swept or u.claim_id = (select r.claim_id from running r where r.job_id = u.job_id));
        get diagnostics given = row_count;
        if not swept and given < cardinality(jobs) then
            perform drop_unrunnable(tasks, t, jobs, claims, expiries);
        end if;
        again := again or given < cardinality(jobs);
        if slots < room then
            -- The first that are given out get the free slots.
            update running
            set started_at = t
            where started_at is null and job_id = any (array(
                select u.job_id
                from unnest(positions, jobs, claims) u ("position", job_id, claim_id)
                where u.claim_id = (select r.claim_id from running r where r.job_id = u.job_id)
                order by u."position"
                limit slots));
        end if;
        room := room - given;
        slots := greatest(0, slots - given)::integer;
    end loop;
    if again then
        return query select null::integer, null::bigint, null::bigint, null::bigint, null::integer, null::text, null::jsonb,
            null::interval, jsonb_build_object('again', true);
    end if;
end
$$;
comment on function claim_as(bigint, integer, bigint, timestamptz, text[], jsonb) is 'The claim itself, for a session that is proven (internal).';

-- Moves out of running what a claim has just met and cannot hand out (see claim). `t` is the claim's time.
create or replace function drop_unrunnable(known_tasks text[], t timestamptz, jobs bigint[], claims bigint[], expiries timestamptz[]) returns void
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
#variable_conflict use_column
declare
    doubled bigint[];
begin
    select array_agg(u.job_id) into doubled
    from unnest(jobs, claims) u (job_id, claim_id)
    where u.claim_id is distinct from (select r.claim_id from running r where r.job_id = u.job_id);
    if doubled is not null then
        raise log 'pgsched: % were in ready although they are running; the ready rows are dropped', doubled;
    end if;

    with expired as (
        delete from running r
        where r.job_id = any (array(select u.job_id from unnest(jobs, expiries) u (job_id, expires_at) where u.expires_at <= t))
            and r.claim_id = any (claims)
        returning r.job_id, r.queue, r.attempt
    ), ended as (
        insert into finished (job_id, queue, state, reason, attempt, finished_at)
        select job_id, queue, 'skipped', 'expired', attempt - 1, t from expired
        on conflict (job_id) do nothing
    )
    delete from job_key where job_id = any (array(select job_id from expired));

    with gone as (
        delete from running r
        where r.job_id = any (array(select u.id from unnest(jobs) u (id) where (select j.id from job j where j.id = u.id) is null))
            and r.claim_id = any (claims)
        returning r.job_id, r.claim_id, r.queue, r.attempt, r.worker_id
    ), logged as (
        insert into attempt_log (job_id, claim_id, attempt, state, error, worker_id, ended_at)
        select job_id, claim_id, attempt, 'failed', 'its definition is gone from the table job', worker_id, t from gone
    ), ended as (
        insert into finished (job_id, queue, state, reason, claim_id, attempt, worker_id, finished_at)
        select job_id, queue, 'failed', 'its definition is gone from the table job', claim_id, attempt, worker_id, t from gone
        on conflict (job_id) do nothing
    )
    delete from job_key where job_id = any (array(select job_id from gone));

    with unknown as (
        delete from running r
        where r.job_id = any (array(
                select u.id from unnest(jobs) u (id)
                where known_tasks is not null and (select j.task = any (known_tasks) from job j where j.id = u.id) is not true))
            and r.claim_id = any (claims)
        returning r.job_id, r.queue, r.expires_at, r.attempt, r.lost_attempts
    )
    insert into waiting (job_id, queue, reason, run_at, expires_at, attempt, lost_attempts)
    select u.job_id, u.queue, 'unknown_task',
        t + least(interval '60 s', greatest(interval '1 s', t - (select j.created_at from job j where j.id = u.job_id))),
        u.expires_at, u.attempt - 1, u.lost_attempts
    from unknown u
    on conflict (job_id) do nothing;
end
$$;
comment on function drop_unrunnable(text[], timestamptz, bigint[], bigint[], timestamptz[]) is 'Moves out of running what a claim met and cannot hand out (internal).';
