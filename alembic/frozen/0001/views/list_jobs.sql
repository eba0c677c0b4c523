-- The newest jobs first, by any of state, queue and task, below `before_id` (for the next page). It goes to the table
-- where the state is, by its index, so that a list by state and queue takes milliseconds beside millions of others.
-- By task alone it reads on until it has found enough.
-- Errors: PGS09 an unknown state, a limit out of 1 to 10000.
create or replace function list_jobs(state text default null, queue text default null, task text default null, before_id bigint default null, "limit" integer default 50)
returns setof jobs
language plpgsql stable security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    states constant text[] := array['scheduled', 'blocked', 'retrying', 'parked', 'held', 'ready', 'running', 'cancelling',
        'succeeded', 'failed', 'cancelled', 'skipped'];
    below constant bigint := coalesce(before_id, 9223372036854775807);
    a_state text;
    a_queue text;
    ids bigint[] := '{}';
begin
    if list_jobs.state <> all (states) then
        perform refuse('PGS09', format('list_jobs: there is no state %s', shown(list_jobs.state)), 'The states are ' || array_to_string(states, ', ') || '.');
    end if;
    if list_jobs."limit" is null or list_jobs."limit" not between 1 and 10000 then
        perform refuse('PGS09', format('list_jobs: limit is %s', coalesce(list_jobs."limit"::text, 'null')), 'It is a number from 1 to 10000; page on with before_id.');
    end if;
    if list_jobs.state is null and list_jobs.queue is null then
        ids := array(
            select j.id from job j
            where j.id < below and (list_jobs.task is null or j.task = list_jobs.task)
            order by j.id desc
            limit list_jobs."limit");
    else
        foreach a_queue in array case when list_jobs.queue is null then known_queues() else array[list_jobs.queue] end loop
            foreach a_state in array case when list_jobs.state is null then states else array[list_jobs.state] end loop
                ids := ids || array(select i from ids_in(a_state, a_queue, list_jobs.task, below, list_jobs."limit") i);
            end loop;
        end loop;
        ids := array(select distinct i from unnest(ids) i order by i desc limit list_jobs."limit");
    end if;
    return query
    select j.*
    from unnest(ids) with ordinality i (id, n)
        join jobs j on j.id = i.id
    order by i.n;
end
$$;
comment on function list_jobs(text, text, text, bigint, integer) is 'The newest jobs by state, queue and task, fast beside millions of others.';

-- The ids of the newest jobs of one state in one queue.
create or replace function ids_in(a_state text, a_queue text, a_task text, below bigint, n integer) returns setof bigint
language plpgsql stable
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    a_reason text;
begin
    if a_state = 'ready' then
        return query
        select r.job_id from ready r
        where r.queue = a_queue and r.job_id < below
            and (a_task is null or a_task = (select j.task from job j where j.id = r.job_id))
        order by r.job_id desc limit n;
    elsif a_state in ('running', 'cancelling') then
        return query
        select r.job_id from running r
        where r.queue = a_queue and r.job_id < below and (r.stop_requested_at is not null) = (a_state = 'cancelling')
            and (a_task is null or a_task = (select j.task from job j where j.id = r.job_id))
        order by r.job_id desc limit n;
    elsif a_state in ('succeeded', 'failed', 'cancelled', 'skipped') then
        return query
        select f.job_id from finished f
        where f.queue = a_queue and f.state = a_state and f.job_id < below
            and (a_task is null or a_task = (select j.task from job j where j.id = f.job_id))
        order by f.job_id desc limit n;
    else
        for a_reason in
            select r from unnest(array['scheduled', 'retry', 'unknown_task', 'signal', 'dependencies', 'subtasks', 'limit']) r
            where waiting_state(r) = a_state
        loop
            return query
            select w.job_id from waiting w
            where w.queue = a_queue and w.reason = a_reason and w.job_id < below
                and (a_task is null or a_task = (select j.task from job j where j.id = w.job_id))
            order by w.job_id desc limit n;
        end loop;
    end if;
end
$$;
comment on function ids_in(text, text, text, bigint, integer) is 'The newest jobs of one state in one queue (internal).';

-- Every queue that has a job anywhere, found by stepping from one to the next along the indexes.
create or replace function known_queues() returns text[]
language plpgsql stable
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
    return array(
        with recursive w (queue) as (
            (select queue from waiting order by queue limit 1)
            union all
            select (select n.queue from waiting n where n.queue > w.queue order by n.queue limit 1) from w where w.queue is not null
        ), r (queue) as (
            (select queue from ready order by queue limit 1)
            union all
            select (select n.queue from ready n where n.queue > r.queue order by n.queue limit 1) from r where r.queue is not null
        ), f (queue) as (
            (select queue from finished order by queue limit 1)
            union all
            select (select n.queue from finished n where n.queue > f.queue order by n.queue limit 1) from f where f.queue is not null
        )
        select queue from (
            select queue from w union select queue from r union select queue from f union select queue from running
        ) q
        where queue is not null
        order by queue);
end
$$;
comment on function known_queues() is 'Every queue that has a job anywhere.';
