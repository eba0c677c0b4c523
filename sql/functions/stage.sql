-- Moves up to `n` jobs whose time has come into ready, and ends up to `n` that expired in waiting and as many in ready.
-- Answers {"staged", "expired", "next_at"}: next_at is the time of the next one to come, null where none waits;
-- {"busy": true} where somebody else is staging at this moment. Anybody may call it, as often as he likes.
-- Locks: the stager's lock, by a try; then the moved rows, skipping locked ones.
create or replace function stage(n integer default 1000) returns jsonb
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
declare
    t timestamptz := clock_timestamp();
    staged text[];
    expired_waiting integer;
    expired_ready integer;
begin
    if n is null or n < 1 then
        perform refuse('PGS09', format('stage: n is %s, it must be at least 1', coalesce(n::text, 'null')), 'It is how many jobs one call may move.');
    end if;
    perform require_read_committed();
    if not pg_try_advisory_xact_lock(lock_class(), 3) then
        return '{"busy": true}';
    end if;
    with gone as (
        delete from waiting
        where ctid = any (array(
            select ctid from waiting where expires_at <= t order by expires_at limit n for update skip locked))
        returning job_id, queue, attempt
    ), ended as (
        insert into finished (job_id, queue, state, reason, attempt, finished_at)
        select job_id, queue, 'skipped', 'expired', attempt, t from gone
        on conflict (job_id) do nothing
    ), freed as (
        delete from job_key where job_id = any (array(select job_id from gone))
    )
    select count(*) into expired_waiting from gone;
    with gone as (
        delete from ready
        where ctid = any (array(
            select ctid from ready where expires_at <= t order by expires_at limit n for update skip locked))
        returning job_id, queue, attempt
    ), ended as (
        insert into finished (job_id, queue, state, reason, attempt, finished_at)
        select job_id, queue, 'skipped', 'expired', attempt, t from gone
        on conflict (job_id) do nothing
    ), freed as (
        delete from job_key where job_id = any (array(select job_id from gone))
    )
    select count(*) into expired_ready from gone;
    with due as (
        delete from waiting
        where ctid = any (array(
            select ctid from waiting
            where reason in ('scheduled', 'retry', 'unknown_task', 'signal') and run_at is not null and run_at <= t
            order by run_at, job_id
            limit n
            for update skip locked))
        returning job_id, queue, run_at, expires_at, attempt, lost_attempts
    ), moved as (
        insert into ready (queue, priority, job_id, expires_at, attempt, lost_attempts)
        select d.queue, coalesce((select j.priority from job j where j.id = d.job_id), 5), d.job_id, d.expires_at, d.attempt, d.lost_attempts
        from (select * from due order by run_at, job_id) d
        on conflict (queue, job_id) do nothing
    )
    select array_agg(queue) into staged from due;
    perform wake(staged);
    return jsonb_build_object('staged', coalesce(cardinality(staged), 0), 'expired', expired_waiting + expired_ready, 'next_at', (
        select run_at from waiting
        where reason in ('scheduled', 'retry', 'unknown_task', 'signal') and run_at is not null
        order by run_at, job_id
        limit 1));
end
$$;
comment on function stage(integer) is 'Moves jobs whose time has come into ready and ends the expired.';

-- The channel on which workers of this schema are woken; the payload is a queue's name.
create or replace function channel() returns text
language sql stable
set search_path from current
as $$ select 'pgsched_' || oid from pg_namespace where nspname = current_schema() $$;
comment on function channel() is 'The channel on which workers are woken (LISTEN); the payload is a queue''s name.';

-- Wakes the workers of these queues when this transaction commits. Only a hint: workers also poll. Within a finish that also
-- claims, the queues are only noted: what it takes itself wakes nobody (see finish).
create or replace function wake(queues text[]) returns void
language plpgsql
set search_path from current
as $$
begin
    if current_setting('pgsched.woken', true) <> '' then
        perform set_config('pgsched.woken', (current_setting('pgsched.woken')::text[] || queues)::text, true);
        return;
    end if;
    perform pg_notify(channel(), q) from (select distinct q from unnest(queues) q) d;
end
$$;
comment on function wake(text[]) is 'Wakes the workers of these queues at commit (internal).';
