-- The channel on which who waits for a job's end is woken; the payload is the job's number.
create or replace function ended_channel() returns text
language sql stable security definer
set search_path from current
as $$ select channel() || '_ended' $$;
comment on function ended_channel() is 'The channel on which the end of a job is told to those who wait (LISTEN); the payload is its number.';

-- Tells those who wait that jobs have ended: the one home of that, whoever inserts into finished. Its plan is that of the
-- functions that do. (A transition table costs less than a row's trigger, and nobody who ends a job can forget it.)
create or replace function tell_waiters() returns trigger
language plpgsql
set search_path from current
as $$
declare
    n integer;
begin
    with told as (
        delete from waiter where job_id = any (array(select e.job_id from ended e)) returning job_id
    )
    select count(pg_notify(ended_channel(), job_id::text)) into n from told;
    return null;
end
$$;
comment on function tell_waiters() is 'Tells those who wait that jobs have ended (internal: a trigger of finished).';

create or replace trigger tell_waiters after insert on finished
referencing new table as ended
for each statement execute function tell_waiters();
comment on trigger tell_waiters on finished is 'Whoever waits for these jobs is told, when this transaction commits.';

-- How jobs ended, one row for each that has: state, result, reason, and the error of its last attempt. A job that was never
-- made (or has been pruned, or whose transaction has not committed) has a row with state null. For one that has not ended
-- there is no row: whoever ends it notifies ended_channel(). Listen first, then ask, and ask again now and then: a job that
-- was about to end when this was called may end without a word.
-- Locks: none that anybody could wait for.
create or replace function results(job_ids bigint[])
returns table (job_id bigint, state text, result jsonb, reason text, error_type text, error text, traceback text)
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
    -- (Scalar subqueries, each by its index: an EXISTS here may be planned as a hash of the whole table.)
    insert into waiter (job_id)
    select distinct u.id
    from unnest(job_ids) u (id)
    where (select true from job j where j.id = u.id) and (select f.job_id from finished f where f.job_id = u.id) is null
        and (select true from waiter w where w.job_id = u.id limit 1) is null;
    -- A later statement: it sees what has ended while the rows were inserted.
    return query
    select u.id, f.state, f.result, f.reason, a.error_type, a.error, a.traceback
    from (select distinct u.id from unnest(job_ids) u (id)) u
        left join finished f on f.job_id = u.id
        left join attempt_log a on a.job_id = f.job_id and a.claim_id = f.claim_id
    where u.id is not null and (f.job_id is not null or (select true from job j where j.id = u.id) is null);
end
$$;
comment on function results(bigint[]) is 'How these jobs ended, a row for each that has; who ends one of the others notifies ended_channel().';
