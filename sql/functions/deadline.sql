-- Deadlines of workflows.

-- The deadline of a workflow that is being enqueued, null where it has none. Errors: PGS09 it cannot be.
create or replace function read_deadline(workflow jsonb) returns timestamptz
language plpgsql stable
set search_path from current
as $$
declare
    the_deadline timestamptz;
begin
    if jsonb_typeof(workflow -> 'deadline_s') not in ('number', 'null') or jsonb_typeof(workflow -> 'deadline') not in ('string', 'null')
        or nullif(workflow -> 'deadline_s', 'null') is not null and nullif(workflow -> 'deadline', 'null') is not null then
        perform refuse('PGS09', format('enqueue_workflow: deadline is %s, deadline_s is %s', shown(workflow ->> 'deadline'), shown(workflow ->> 'deadline_s')),
            'Give a time as a text, or a number of seconds from now; not both.');
    end if;
    begin
        the_deadline := coalesce((workflow ->> 'deadline')::timestamptz, clock_timestamp() + make_interval(secs => (workflow ->> 'deadline_s')::double precision));
    exception when data_exception then
        perform refuse('PGS09', format('enqueue_workflow: deadline is %s: %s', shown(coalesce(workflow ->> 'deadline', workflow ->> 'deadline_s')), sqlerrm));
    end;
    if the_deadline < '0001-01-01 00:00+00' or the_deadline >= '9999-01-01 00:00+00' then
        perform refuse('PGS09', format('enqueue_workflow: deadline is %s: it must lie in the years 1 to 9998', the_deadline));
    end if;
    return the_deadline;
end
$$;
comment on function read_deadline(jsonb) is 'The deadline of a workflow that is being enqueued (internal).';

-- Cancels what has not ended of a workflow whose deadline has passed, a chunk of `n` of its jobs at a time: what runs is told to stop, as
-- by cancel. Newest jobs first: what waits ends before that for which it waits, each with the deadline as its reason. Whoever holds a
-- row makes nobody wait long: his job is passed by, and there is another pass while one is left. A call takes about 1 s at most.
-- A deadline counts once: what is retried or run again after it has no deadline.
-- Answers {"cancelled", "more"}: more says that it is worth while to call again at once. Anybody may call it, as often as he likes.
-- Locks: the workflow's row, by a try; then as cancel_many, waiting at most 0.2 s for each.
-- Errors: PGS09 n below 1, not READ COMMITTED.
create or replace function enforce_deadlines(n integer default 1000) returns jsonb
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
declare
    w workflow;
    said text;
    jobs bigint[];
    one bigint;
    looked integer := 0;
    changed integer := 0;
    is_open boolean;
    t constant timestamptz := clock_timestamp();  -- (a constant, so that the index can be asked)
    until constant timestamptz := t + interval '1 s';
begin
    if n is null or n < 1 then
        perform refuse('PGS09', format('enforce_deadlines: n is %s, it must be at least 1', coalesce(n::text, 'null')), 'It is how many jobs one call may look at.');
    end if;
    perform require_read_committed();
    for w in
        select * from workflow x
        where x.deadline <= t and x.deadline_over_at is null
        order by x.deadline, x.id
        for update skip locked
    loop
        said := deadline_note(w.id, w.deadline);
        jobs := array(
            select j.id from job j
            -- ("between": no other index has this order.)
            where j.workflow_id between w.id and w.id and j.id < coalesce(w.deadline_below, 9223372036854775807)
                and j.parent_id is null  -- (a cancel takes the subtasks along; without it their parent could succeed over them)
            order by j.workflow_id desc, j.id desc
            limit n - looked);
        begin
            changed := changed + (select count(*) from cancel_many(still_open(jobs), said, false));
        exception when others then
            -- (One by one: whom somebody holds, or who cannot be cancelled, stops no other.)
            foreach one in array still_open(jobs) loop
                begin
                    changed := changed + (select count(*) from cancel(one, said, false));
                exception
                    when lock_not_available or deadlock_detected then null;
                    when others then raise warning 'pgsched: job %, whose deadline has passed, cannot be cancelled: %', one, sqlerrm;
                end;
                if clock_timestamp() > until then
                    update workflow x set deadline_below = one where x.id = w.id;
                    return jsonb_build_object('cancelled', changed, 'more', true);
                end if;
            end loop;
        end;
        looked := looked + cardinality(jobs);
        if looked >= n then
            update workflow x set deadline_below = jobs[cardinality(jobs)] where x.id = w.id;
            return jsonb_build_object('cancelled', changed, 'more', true);
        end if;
        is_open := still_open(array(select j.id from job j where j.workflow_id = w.id and j.parent_id is null)) <> '{}';
        update workflow x
        set deadline_below = null, deadline_over_at = case when not is_open then clock_timestamp() end
        where x.id = w.id;
    end loop;
    return jsonb_build_object('cancelled', changed, 'more', false);
end
$$;
comment on function enforce_deadlines(integer) is 'Cancels what has not ended of a workflow whose deadline has passed, in chunks.';

-- Which of these jobs have neither ended nor been told to stop by a cancel, in their order.
create or replace function still_open(jobs bigint[]) returns bigint[]
language sql stable
set search_path from current
as $$
select array(
    select u.id from unnest(jobs) with ordinality u (id, n)
    where (select f.job_id from finished f where f.job_id = u.id) is null
        and (select true from running r where r.job_id = u.id and r.stop_reason = 'cancel') is null
        and (select p.outcome from parked p where p.job_id = u.id) is distinct from 'cancelled'
    order by u.n)
$$;
comment on function still_open(bigint[]) is 'Which of these jobs have neither ended nor been told to stop by a cancel (internal).';

-- What is said of a job that a deadline has cancelled.
create or replace function deadline_note(the_workflow bigint, the_deadline timestamptz) returns text
language sql stable
set search_path from current
as $$ select format('the deadline of workflow %s, %s, has passed', the_workflow, date_trunc('second', the_deadline)) $$;
comment on function deadline_note(bigint, timestamptz) is 'What is said of a job that a deadline has cancelled (internal).';
