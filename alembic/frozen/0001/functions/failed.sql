-- Jobs that have failed for good: found, counted by what they failed of, and let run again in bulk.
-- They are found along the index of finished by queue and state, newest or oldest id first; the filters are looked at row by row.
-- So a look costs as much as there are failed jobs, whatever else has ended; and it is bounded by `look`, which says how many.

-- The failed jobs below `before_id`, newest first: by task, queue, error and the time of their end (since <= it < until).
-- `error`: the error's type, or a part of its text or of the reason, in any case of letters.
-- At most `limit`, among the newest `look` failed jobs of each queue: where more have failed, page on with before_id.
-- Errors: PGS09 a limit or look out of range.
create or replace function list_failed(task text default null, error text default null, queue text default null, since timestamptz default null,
    until timestamptz default null, before_id bigint default null, "limit" integer default 50, look integer default 100000)
returns setof failed_job
language plpgsql stable security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    a_queue text;
    ids bigint[] := '{}';
begin
    perform check_bounds('list_failed', list_failed."limit", list_failed.look);
    foreach a_queue in array case when list_failed.queue is null then known_queues() else array[list_failed.queue] end loop
        ids := ids || array(
            select f.job_id
            from (
                select f.job_id, f.claim_id, f.reason, f.finished_at from finished f
                where f.queue = a_queue and f.state = 'failed' and f.job_id < coalesce(before_id, 9223372036854775807)
                order by f.job_id desc
                limit list_failed.look
            ) f
            where is_such(f.job_id, f.claim_id, f.reason, f.finished_at, list_failed.task, list_failed.error, since, until)
            limit list_failed."limit");
    end loop;
    return query
    select f.job_id, j.task::text, f.queue::text, a.error_type, coalesce(a.error, f.reason), f.attempt, f.finished_at
    from unnest(array(select i from unnest(ids) i order by i desc limit list_failed."limit")) with ordinality i (id, n)
        join finished f on f.job_id = i.id
        left join job j on j.id = f.job_id
        left join attempt_log a on a.job_id = f.job_id and a.claim_id = f.claim_id
    order by i.n;
end
$$;
comment on function list_failed(text, text, text, timestamptz, timestamptz, bigint, integer, integer)
    is 'Failed jobs, newest first, by task, error, queue and time.';

-- The same jobs counted by task, type of error, and text of error: its first line, with all numbers as #. The groups with most
-- first; `error` is the text of the newest of the group, `jobs` how many, `job_id` the newest. `looked_at`: how many failed jobs
-- were looked at, the same in each row: where it is not less than `look`, older ones were left out.
-- Errors: PGS09 a limit or look out of range.
create or replace function failed_groups(task text default null, error text default null, queue text default null, since timestamptz default null,
    until timestamptz default null, "limit" integer default 50, look integer default 10000)
returns setof failed_group
language plpgsql stable security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    perform check_bounds('failed_groups', failed_groups."limit", failed_groups.look);
    return query
    with newest as materialized (
        select f.*
        from unnest(case when failed_groups.queue is null then known_queues() else array[failed_groups.queue] end) q (name)
            cross join lateral (
                select f.job_id, f.queue, f.claim_id, f.reason, f.finished_at from finished f
                where f.queue = q.name and f.state = 'failed'
                order by f.job_id desc
                limit failed_groups.look
            ) f
        order by f.job_id desc
        limit failed_groups.look
    ), such as (
        select j.task, n.queue, n.job_id, n.finished_at, a.error_type, coalesce(a.error, n.reason) as error
        from newest n
            left join job j on j.id = n.job_id
            left join attempt_log a on a.job_id = n.job_id and a.claim_id = n.claim_id
        where is_such(n.job_id, n.claim_id, n.reason, n.finished_at, failed_groups.task, failed_groups.error, since, until)
    )
    select s.task::text, s.queue::text, s.error_type, (array_agg(left(split_part(s.error, e'\n', 1), 500) order by s.job_id desc))[1], count(*),
        min(s.finished_at), max(s.finished_at), max(s.job_id), (select count(*) from newest)
    from such s
    group by s.task, s.queue, s.error_type, kind_of_error(s.error)
    order by 5 desc, 8 desc
    limit failed_groups."limit";
end
$$;
comment on function failed_groups(text, text, text, timestamptz, timestamptz, integer, integer)
    is 'The newest failed jobs counted by task and error.';

-- Lets failed jobs run again, each by retry(), in the order of their ids: those that list_failed() finds with the same filters and
-- whose ids are above `above`, at most `limit`, in this one transaction. Answers a row for each job that this changes or cannot:
--   retried    it runs again
--   waits      it had ended because of one that was retried, and waits again
--   refused    why says what is in its way; the others go on
-- and at last, where there may be more, a row "more": call again, above => its job_id. `dry_run` answers the same and changes nothing.
-- Subtasks are passed by: it is their parent that is retried.
-- Locks: as retry, until the transaction's end: so large numbers in pieces. Where it meets another's (40P01, 55P03), repeating is safe.
-- Errors: PGS09 a limit or look out of range, not READ COMMITTED.
create or replace function retry_failed(task text default null, error text default null, queue text default null, since timestamptz default null,
    until timestamptz default null, "limit" integer default 1000, dry_run boolean default false, above bigint default 0, look integer default 10000)
returns table (job_id bigint, outcome text, why text)
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    last bigint;
    ids bigint[];
    id bigint;
    changed record;
    jobs bigint[] := '{}';
    outcomes text[] := '{}';
    reasons text[] := '{}';
begin
    perform check_bounds('retry_failed', retry_failed."limit", retry_failed.look);
    perform require_read_committed();
    with oldest as materialized (
        select f.*
        from unnest(case when retry_failed.queue is null then known_queues() else array[retry_failed.queue] end) q (name)
            cross join lateral (
                select f.job_id, f.claim_id, f.reason, f.finished_at from finished f
                where f.queue = q.name and f.state = 'failed' and f.job_id > coalesce(above, 0)
                order by f.job_id
                limit retry_failed.look
            ) f
        order by f.job_id
        limit retry_failed.look
    ), such as materialized (
        select o.job_id from oldest o
        where is_such(o.job_id, o.claim_id, o.reason, o.finished_at, retry_failed.task, retry_failed.error, since, until)
            and (select j.parent_id from job j where j.id = o.job_id) is null  -- (a subtask's parent is retried, and makes it anew)
        order by o.job_id
        limit retry_failed."limit"
    )
    select array(select s.job_id from such s order by s.job_id),
        case
            when (select count(*) from such) = retry_failed."limit" then (select max(s.job_id) from such s)
            when (select count(*) from oldest) = retry_failed.look then (select max(o.job_id) from oldest o) end
        into ids, last;
    begin
        foreach id in array ids loop
            begin
                for changed in select r.job_id from retry_one(id, false) r loop
                    jobs := jobs || changed.job_id;
                    outcomes := outcomes || case when changed.job_id = id then 'retried' else 'waits' end;
                    reasons := array_append(reasons, case when changed.job_id <> id then format('for job %s', id) end);
                end loop;
            exception
                when deadlock_detected or lock_not_available or serialization_failure then
                    raise;  -- (all of it is undone, and can be repeated)
                when others then
                    -- (One that has come back by the retry of another is no failure.)
                    if id <> all (jobs) then
                        jobs := jobs || id;
                        outcomes := outcomes || 'refused'::text;
                        reasons := array_append(reasons, sqlerrm);
                    end if;
            end;
        end loop;
        if dry_run is distinct from false then
            raise exception using errcode = 'PGDRY', message = 'dry run';
        end if;
    exception when sqlstate 'PGDRY' then
        null;  -- (what this block has done is undone; what it found stays in its variables)
    end;
    return query
    select * from unnest(jobs, outcomes, reasons)
    union all
    select last, 'more', format('call again with above => %s', last) where last is not null;
end
$$;
comment on function retry_failed(text, text, text, timestamptz, timestamptz, integer, boolean, bigint, integer)
    is 'Lets failed jobs run again in bulk, by task, error, queue and time; one that cannot stops no other.';

-- Whether a failed job is one of those that are meant.
create or replace function is_such(the_job bigint, its_claim bigint, its_reason text, ended_at timestamptz, a_task text, an_error text,
    since timestamptz, until timestamptz)
returns boolean
language plpgsql stable
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
    if (ended_at >= coalesce(since, '-infinity') and ended_at < coalesce(until, 'infinity')) is not true then
        return false;
    end if;
    if a_task is not null and (select j.task from job j where j.id = the_job) is distinct from a_task then
        return false;
    end if;
    return an_error is null or strpos(lower(coalesce(its_reason, '')), lower(an_error)) > 0 or coalesce((
        select a.error_type = an_error or strpos(lower(coalesce(a.error, '')), lower(an_error)) > 0
        from attempt_log a where a.job_id = the_job and a.claim_id = its_claim), false);
end
$$;
comment on function is_such(bigint, bigint, text, timestamptz, text, text, timestamptz, timestamptz) is 'Whether a failed job is one of those that are meant (internal).';

-- What errors that differ only in their numbers have in common: the first line, with # for each number.
create or replace function kind_of_error(error text) returns text
language sql immutable
set search_path from current
as $$ select regexp_replace(left(split_part(error, e'\n', 1), 200), '[0-9]+', '#', 'g') $$;
comment on function kind_of_error(text) is 'What errors that differ only in their numbers have in common (internal).';

-- Refuses bounds that cannot be meant (internal).
create or replace function check_bounds(what text, "limit" integer, look integer) returns void
language plpgsql
set search_path from current
as $$
begin
    if "limit" is null or "limit" not between 1 and 10000 then
        perform refuse('PGS09', format('%s: limit is %s', what, coalesce("limit"::text, 'null')), 'It is a number from 1 to 10000.');
    elsif look is null or look not between 1 and 10000000 then
        perform refuse('PGS09', format('%s: look is %s', what, coalesce(look::text, 'null')), 'It is how many failed jobs are looked at: 1 to 10000000.');
    end if;
end
$$;
comment on function check_bounds(text, integer, integer) is 'Refuses bounds that cannot be meant (internal).';
