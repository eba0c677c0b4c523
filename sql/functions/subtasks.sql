-- Subtasks: jobs that a running job makes, for work that is known only while it runs. No subtask outlives the claim that made
-- it: a job that has made some leaves running only for waiting, with what is to become of it in parked, and ends (or runs again)
-- once all of them have ended.

-- Counts new subtasks on the claims that make them. The number is also a lock: whoever cancels that job waits for this, or this for
-- him; a finish meanwhile answers busy; and whoever has an older snapshot of the row gets 40001. So that a session which hangs
-- holds nobody up for ever, the server ends it when it is idle in this transaction for as long as a rescuer would wait.
-- A transactional job makes its subtasks in its own transaction, where they are counted at its end (see finish_transaction):
-- until then it would keep a cancel from its row.
-- Errors: PGS13 the claim is not (or no longer) valid; PGS14 the job is to stop, and makes no new work; PGS09 the job is
-- transactional, and this is not its transaction.
create or replace function count_subtasks(given new_job[]) returns void
language plpgsql
set search_path from current
as $$
declare
    one record;
    parent running;
    longest_ms bigint;
begin
    for one in
        select g.parent_id, g.parent_claim_id, count(*)::integer as n from unnest(given) g
        where g.parent_id is not null group by 1, 2 order by 1, 2
    loop
        update running r
        set subtasks = r.subtasks + one.n
        where r.job_id = one.parent_id and r.claim_id = one.parent_claim_id and r.stop_requested_at is null and not r.transactional
        returning r.* into parent;
        if not found then
            select * into parent from running r where r.job_id = one.parent_id and r.claim_id = one.parent_claim_id;
            if parent.job_id is null then
                perform refuse('PGS13', format('job %s does not run under claim %s: it cannot make subtasks', one.parent_id, one.parent_claim_id),
                    'Only the handler of a running job makes subtasks, under the fence of its claim.');
            elsif parent.stop_requested_at is not null then
                perform refuse('PGS14', format('job %s is to stop: it cannot make subtasks', one.parent_id), 'Its handler is to end now.');
            elsif current_setting('pgsched.transaction', true) is distinct from one.parent_id || ':' || one.parent_claim_id then
                perform refuse('PGS09', format('job %s is transactional: its subtasks are made in its own transaction', one.parent_id),
                    'In Python: using(parent=job, connection=job.connection), so that they come with its success or not at all.');
            end if;
            perform set_config('pgsched.subtasks', (coalesce(nullif(current_setting('pgsched.subtasks', true), ''), '0')::integer + one.n)::text, true);
        else
            longest_ms := 1000 * extract(epoch from coalesce((select w.rescue_after from worker w where w.id = parent.worker_id), interval '60 s'));
            if current_setting('idle_in_transaction_session_timeout')::interval not between interval '1 ms' and longest_ms * interval '1 ms' then
                perform set_config('idle_in_transaction_session_timeout', longest_ms::text, true);
            end if;
        end if;
        if (select true from subtask_made limit 1) is null then
            insert into subtask_made default values;
        end if;
    end loop;
end
$$;
comment on function count_subtasks(new_job[]) is 'Counts new subtasks on the claims that make them, or refuses (internal).';

-- Looks at jobs that wait for their subtasks: where all have ended, what was pending is carried out (a success is a failure
-- where one of them has failed); where it is no success, those that are open are told to stop, `n` at a time. So are those of jobs
-- that still run and were told to. Answers how many became ready (or wait for their time), which ended, how many subtasks were
-- told and whether more have to be; and how many could not be looked at, as somebody holds them: those are looked at again.
-- Locks, all of them skipping what others hold: those rows of waiting; then rows of the subtasks.
create or replace function resume_parked(jobs bigint[], n integer, out became_ready integer, out ended integer, out told integer, out more boolean, out kept integer)
language plpgsql
set search_path from current
as $$
declare
    t timestamptz := clock_timestamp();
    held bigint[];
    again bigint[];
    stopping bigint[];
    pending bigint[];
    firsts bigint[];
    open_ones bigint[];
    done bigint[];
    woken text[];
begin
    became_ready := 0;
    ended := 0;
    told := 0;
    more := false;
    kept := 0;
    held := array(
        select w.job_id from waiting w
        where w.job_id = any (jobs) and w.reason || '' = 'subtasks'
        for update skip locked);
    again := array(
        select w.job_id from waiting w
        where w.job_id = any (jobs) and w.reason || '' = 'subtasks' and w.job_id <> all (held));
    -- (Who was told to stop makes no more: so its row need not be held.)
    stopping := array(select r.job_id from running r where r.job_id = any (jobs) and r.stop_reason = 'cancel' and r.subtasks > 0);
    if held || again || stopping = '{}' then
        return;
    end if;
    -- A new statement: whatever ended before the event that led here is seen. What has ended stays so, so each look begins where
    -- the last one found the first that was open. (By job_parent alone: no equality lets another index give this order.)
    select coalesce(array_agg(p.job_id), '{}'), array_agg(o.id) into pending, firsts
    from unnest(held) h (id)
        cross join lateral (select p.* from parked p where p.job_id = h.id offset 0) p
        cross join lateral (
            select j.id from job j
            where j.parent_id >= p.job_id and (j.parent_id, j.parent_claim_id, j.id) > (p.job_id, p.claim_id, p.above)
                and (j.parent_id, j.parent_claim_id) <= (p.job_id, p.claim_id)
                and (select true from finished f where f.job_id = j.id) is null
            order by j.parent_id, j.parent_claim_id, j.id
            limit 1
        ) o;
    update parked p
    set above = u.first_id - 1
    from unnest(pending, firsts) u (job_id, first_id)
    where p.job_id = u.job_id and p.above < u.first_id - 1;

    open_ones := array(
        select s.id
        from (
            select p.job_id, p.claim_id, p.above
            from unnest(pending) u (job_id)
                cross join lateral (select p.* from parked p where p.job_id = u.job_id and p.outcome <> 'succeeded' offset 0) p
            union all
            select r.job_id, r.claim_id, 0
            from unnest(stopping) u (job_id) cross join lateral (select r.* from running r where r.job_id = u.job_id offset 0) r
        ) p
            cross join lateral (
                select j.id from job j
                where j.parent_id >= p.job_id and (j.parent_id, j.parent_claim_id, j.id) > (p.job_id, p.claim_id, p.above)
                    and (j.parent_id, j.parent_claim_id) <= (p.job_id, p.claim_id)
                    and (select true from finished f where f.job_id = j.id) is null
                    and (select r.stop_reason from running r where r.job_id = j.id) is distinct from 'cancel'
                    and (select q.outcome from parked q where q.job_id = j.id) is distinct from 'cancelled'
                order by j.parent_id, j.parent_claim_id, j.id
                limit n
            ) s
        limit n);
    done := end_subtasks(open_ones);
    told := cardinality(done);
    more := cardinality(open_ones) = n and told > 0;
    if cardinality(open_ones) = n or told < cardinality(open_ones) then
        again := again || pending || stopping;
    end if;
    kept := cardinality(again);
    insert into release_check (look_at_id) select distinct a.id from unnest(again) a (id);
    select * into became_ready, ended, woken from carry_out_parked(array(select h.id from unnest(held) h (id) where h.id <> all (pending)), t) c;
    perform wake(woken);
end
$$;
comment on function resume_parked(bigint[], integer) is 'Looks at jobs that wait for their subtasks (internal).';

-- The subtasks of a claim with ids above this one that have not ended, in the order of ids.
create or replace function open_subtasks(the_job bigint, the_claim bigint, above bigint) returns setof bigint
language sql stable
set search_path from current
as $$
select j.id from job j
where j.parent_id = the_job and j.parent_claim_id = the_claim and j.id > above
    and (select true from finished f where f.job_id = j.id) is null
order by j.parent_id, j.parent_claim_id, j.id
$$;
comment on function open_subtasks(bigint, bigint, bigint) is 'The subtasks of a claim that have not ended (internal).';

-- Carries out what was pending for these jobs, whose rows in waiting the caller holds and whose subtasks have all ended.
create or replace function carry_out_parked(jobs bigint[], t timestamptz, out became_ready integer, out ended integer, out woken text[])
language sql
set search_path from current
as $$
with pending as (
    delete from parked p where p.job_id = any (jobs) returning p.*
), judged as materialized (
    select p.*, bad.id as bad_one,
        case when bad.id is not null then 'failed' else p.outcome end as fate
    from pending p
        left join lateral (
            select j.id from job j
            where p.outcome = 'succeeded' and not p.lenient and j.parent_id = p.job_id and j.parent_claim_id = p.claim_id
                and (select f.state from finished f where f.job_id = j.id) = 'failed'
            order by j.parent_id, j.parent_claim_id, j.id
            limit 1
        ) bad on true
), waits as (
    update waiting w
    set reason = case d.fate when 'snooze' then 'scheduled' else 'retry' end, run_at = d.run_at
    from judged d
    where w.job_id = d.job_id and d.fate in ('retry', 'snooze', 'conflict')
    returning 1
), gone as (
    delete from waiting w
    using judged d
    where w.job_id = d.job_id and d.fate not in ('retry', 'snooze', 'conflict')
    returning w.job_id, w.queue, w.attempt, w.lost_attempts
), back as (
    insert into ready (queue, priority, job_id, attempt, lost_attempts)
    select g.queue, coalesce((select j.priority from job j where j.id = g.job_id), 5), g.job_id, g.attempt, g.lost_attempts
    from gone g join judged d on d.job_id = g.job_id
    where d.fate = 'give_back'
    on conflict (queue, job_id) do nothing
    returning queue
), ends as (
    insert into finished (job_id, queue, state, reason, claim_id, attempt, worker_id, started_at, finished_at, result)
    select g.job_id, g.queue, d.fate,
        case when d.bad_one is not null then format('its subtask job %s has failed', d.bad_one) else d.reason end,
        d.claim_id, g.attempt, d.worker_id, d.started_at, t, case d.fate when 'succeeded' then d.result end
    from gone g join judged d on d.job_id = g.job_id
    where d.fate in ('succeeded', 'failed', 'cancelled')
    on conflict (job_id) do nothing
    returning job_id, state, reason, claim_id, attempt, worker_id, started_at
), freed as (
    delete from job_key k where k.job_id = any (array(select e.job_id from ends e))
), logged as (
    insert into attempt_log (job_id, claim_id, attempt, state, error, worker_id, started_at, ended_at)
    select e.job_id, e.claim_id, e.attempt, e.state, e.reason, e.worker_id, e.started_at, t
    from ends e where e.state <> 'succeeded'
    on conflict (job_id, claim_id) do nothing
)
select ((select count(*) from waits) + (select count(*) from back))::integer, (select count(*) from ends)::integer,
    (select array_agg(distinct b.queue) from back b)
$$;
comment on function carry_out_parked(bigint[], timestamptz) is 'Carries out what was pending for jobs whose subtasks have all ended (internal).';

-- Ends subtasks of jobs that did not succeed: what waits or is ready ends as cancelled, what runs is told to stop (and its own
-- subtasks are looked at). Answers those that it could; it waits for nobody.
create or replace function end_subtasks(jobs bigint[]) returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    told bigint[];
    batch bigint[];
    worker bigint;
begin
    if jobs = '{}' then
        return jobs;
    end if;
    with waited as (
        delete from waiting w
        where w.ctid = any (array(
            select x.ctid from waiting x where x.job_id = any (jobs) and x.reason || '' <> 'subtasks' for update skip locked))
        returning w.job_id, w.queue, w.attempt
    ), ready_ones as (
        delete from ready r
        where r.ctid = any (array(
            select x.ctid
            from unnest(jobs) i (id)
                cross join lateral (
                    select x.ctid from ready x where x.queue = (select j.queue from job j where j.id = i.id) and x.job_id = i.id
                    for update skip locked
                ) x))
        returning r.job_id, r.queue, r.attempt
    ), gone as (
        select * from waited union all select * from ready_ones
    ), freed as (
        delete from job_key k where k.job_id = any (array(select g.job_id from gone g))
    ), ends as (
        insert into finished (job_id, queue, state, reason, attempt, finished_at)
        select g.job_id, g.queue, 'cancelled', end_with_parent(g.job_id), g.attempt, clock_timestamp()
        from gone g
        on conflict (job_id) do nothing
        returning job_id
    )
    select coalesce(array_agg(e.job_id), '{}') into told from ends e;

    batch := array(
        select r.job_id from running r
        where r.job_id = any (jobs) and r.stop_reason is distinct from 'cancel'
        for update skip locked);
    for worker in
        update running r
        set stop_requested_at = clock_timestamp(), stop_reason = 'cancel', stop_note = end_with_parent(r.job_id)
        where r.job_id = any (batch)
        returning r.worker_id
    loop
        perform pg_notify(stop_channel(), worker::text);
    end loop;
    perform look_below(batch);
    insert into release_check (look_at_id)
    select r.job_id from running r where r.job_id = any (batch) and r.subtasks > 0;
    told := told || batch;

    batch := array(
        select w.job_id from waiting w
        where w.job_id = any (jobs) and w.reason || '' = 'subtasks'
        for update skip locked);
    return told || array(select cancel_parked(batch, null));
end
$$;
comment on function end_subtasks(bigint[]) is 'Ends subtasks of jobs that did not succeed (internal).';

-- Of jobs that wait for their subtasks, and whose rows in waiting the caller holds: they are to end as cancelled, and can be
-- nothing else from now on for those that wait for them. `reason` null: as subtasks of another one. Answers those of which that
-- is new.
create or replace function cancel_parked(jobs bigint[], reason text) returns setof bigint
language sql
set search_path from current
as $$
with changed as (
    update parked p
    set outcome = 'cancelled', reason = coalesce(cancel_parked.reason, end_with_parent(p.job_id)), result = null, run_at = null
    where p.job_id = any (jobs) and p.outcome <> 'cancelled'
    returning p.job_id
), looks as (
    insert into release_check (look_at_id) select c.job_id from changed c
), below as (
    select look_below(array(select c.job_id from changed c))
)
select c.job_id from changed c, below
$$;
comment on function cancel_parked(bigint[], text) is 'Of jobs that wait for their subtasks: they are to end as cancelled (internal).';

-- Has those looked at that need the success or the failure of these jobs, which have not ended and can only end as cancelled.
create or replace function look_below(jobs bigint[]) returns void
language plpgsql
set search_path from current
as $$
begin
    insert into release_check (look_at_id)
    select distinct d.job_id
    from unnest(jobs) u (id)
        cross join lateral (
            select d.job_id from dependency d where d.depends_on_id = u.id and d.outcome is null and d.condition <> 'done' offset 0
        ) d;
end
$$;
comment on function look_below(bigint[]) is 'Has those looked at that wait for jobs which can only end as cancelled (internal).';

-- Why a subtask was cancelled, in words.
create or replace function end_with_parent(the_job bigint) returns text
language sql stable
set search_path from current
as $$
select format('cancelled: job %s, of which it is a subtask, %s', j.parent_id,
    case (select p.outcome from parked p where p.job_id = j.parent_id)
        when 'failed' then 'has failed' when 'retry' then 'runs again' when 'snooze' then 'runs again' when 'conflict' then 'runs again'
        when 'give_back' then 'runs again' else 'was cancelled' end)
from job j where j.id = the_job
$$;
comment on function end_with_parent(bigint) is 'Why a subtask was cancelled, in words (internal).';

-- Which of these jobs are subtasks that are to end, as their parent does not succeed.
create or replace function end_with_parents(jobs bigint[]) returns bigint[]
language plpgsql stable
set search_path from current
as $$
begin
    if (select true from subtask_made limit 1) is null then
        return '{}';
    end if;
    return array(
        select u.id
        from unnest(jobs) u (id) cross join lateral (select j.parent_id as id from job j where j.id = u.id) p
        where p.id is not null and (
            (select q.outcome from parked q where q.job_id = p.id) <> 'succeeded'
            or (select r.stop_reason from running r where r.job_id = p.id) = 'cancel'));
end
$$;
comment on function end_with_parents(bigint[]) is 'Which of these jobs are subtasks that are to end with their parent (internal).';

-- Notes that jobs wait for their subtasks: those may have ended already.
create or replace function tell_parked() returns trigger
language plpgsql
set search_path from current
as $$
begin
    insert into release_check (look_at_id) select p.job_id from new_ones p;
    if found then
        perform set_config('pgsched.events', 'yes', true);
        perform look_below(array(select p.job_id from new_ones p where p.outcome = 'cancelled'));
    end if;
    return null;
end
$$;
comment on function tell_parked() is 'Notes that jobs wait for their subtasks (internal: a trigger of parked).';

create or replace trigger tell_parked after insert on parked
referencing new table as new_ones
for each statement execute function tell_parked();
comment on trigger tell_parked on parked is 'A job that waits for its subtasks is looked at.';
