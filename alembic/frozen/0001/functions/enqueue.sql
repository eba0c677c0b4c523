-- Enqueues jobs: all of them or, with an error, none. `jobs` is an array of objects with the fields of the type new_job:
-- task and queue must be given; args ({}), priority (5) and max_attempts (1) have defaults; run_at or delay_s says when
-- (else at once), expires_at when it is too late, timeout_s how long an attempt may take.
-- Answers their ids in the order of input. A job whose unique_key is taken is not made: the answer is its holder's id.
-- `notify` false makes no NOTIFY (it cannot be part of PREPARE TRANSACTION); workers then find the jobs when they poll.
--
-- depends_on makes a job wait for others: an array of edges (see read_edges); rule says how they decide (all unless it is
-- given; see decide), rule_n is the number of at_least.
--
-- parent_id and parent_claim_id make a job a subtask of a running one (see count_subtasks).
--
-- It inserts only rows of its own, in the caller's transaction, and waits for nobody's open transaction, unique keys
-- aside: those are taken in sorted order, and waited for as long as lock_timeout says, at most 5 s.
-- Locks: the definitions of the jobs that new ones depend on, for key share, so that they are not pruned meanwhile.
-- Errors: PGS05 a value is refused (the message names the job, the field and the rule), PGS06 arguments too large,
-- PGS09 `jobs` is no array, PGS10 a key changes hands again and again, 55P03 a key is held by an open transaction.
create or replace function enqueue_many(jobs jsonb, notify boolean default true) returns setof bigint
language plpgsql security definer
set search_path from current
as $$
begin
    if jsonb_typeof(jobs) is distinct from 'array' then
        perform refuse('PGS09', 'enqueue_many: jobs must be an array of objects', 'For example [{"task": "send", "queue": "mail"}].');
    end if;
    return query select unnest(make_jobs(read_jobs(jobs), null, notify));
end
$$;
comment on function enqueue_many(jsonb, boolean) is 'Enqueues an array of jobs, all or none; answers their ids in the order of input.';

-- Makes jobs, perhaps of a workflow; answers their ids in the order given. What it refuses and locks: see enqueue_many.
create or replace function make_jobs(given new_job[], the_workflow bigint, notify boolean) returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    t timestamptz := clock_timestamp();
    edges edge[];
    places integer[];
    ids bigint[];
    answers bigint[];
    woken text[];
begin
    if given is null then
        return '{}';
    end if;
    perform check_jobs(given, t);
    perform count_subtasks(given);
    edges := read_edges(given);
    ids := array(select nextval('job_id_seq') from generate_series(1, cardinality(given)));
    if edges is not null then
        places := sorted(given, edges);
        if places is not null then
            ids := array(select ids[p] from unnest(places) with ordinality p (p, n) order by n);
        end if;
    end if;
    answers := ids;
    if exists (select from unnest(given) g where g.unique_key is not null) then
        answers := take_keys(given, ids);
    end if;

    insert into job (id, task, queue, priority, args, secret, max_attempts, timeout, run_at, expires_at, tags, metadata, unique_key,
        workflow_id, name, rule, rule_n, takes_results, parent_id, parent_claim_id, schedule_id, tick_at, created_at)
    select ids[g.ordinality], g.task, g.queue, coalesce(g.priority, 5), coalesce(g.args, '{}'), g.secret, coalesce(g.max_attempts, 1),
        make_interval(secs => g.timeout_s), coalesce(g.run_at, case when g.delay_s > 0 then t + seconds(g.delay_s) end), g.expires_at, g.tags, g.metadata, g.unique_key,
        coalesce(the_workflow, case when g.parent_id is not null then (select p.workflow_id from job p where p.id = g.parent_id) end), g.name,
        case when has_edges(g.depends_on) then coalesce(g.rule, 'all') end, case when has_edges(g.depends_on) then g.rule_n end,
        case when has_edges(g.depends_on) then nullif(jsonb_path_exists(g.depends_on, '$[*].inputs[*]'), false) end,
        g.parent_id, g.parent_claim_id, g.schedule_id, g.tick_at, t
    from unnest(given) with ordinality g
    where ids[g.ordinality] = answers[g.ordinality];

    if edges is not null then
        perform enter_edges(given, edges, ids, answers, t);
    end if;

    insert into waiting (job_id, queue, reason, run_at, expires_at)
    select ids[g.ordinality], g.queue, 'scheduled', coalesce(g.run_at, t + seconds(g.delay_s)), g.expires_at
    from unnest(given) with ordinality g
    where ids[g.ordinality] = answers[g.ordinality] and (g.run_at > t or g.delay_s > 0) and not has_edges(g.depends_on);

    with entered as (
        insert into ready (queue, priority, job_id, expires_at)
        select g.queue, coalesce(g.priority, 5), ids[g.ordinality], g.expires_at
        from unnest(given) with ordinality g
        where ids[g.ordinality] = answers[g.ordinality] and not coalesce(g.run_at > t or g.delay_s > 0, false) and not has_edges(g.depends_on)
        returning queue
    )
    select array_agg(distinct queue) into woken from entered;
    if notify then
        perform wake(woken);
    end if;
    return answers;
end
$$;
comment on function make_jobs(new_job[], bigint, boolean) is 'Makes jobs, perhaps of a workflow; answers their ids in the order given (internal).';

-- Enqueues one job; answers its id, or the id of the job that holds its unique key. See enqueue_many.
create or replace function enqueue(
    task text,
    args jsonb default '{}',
    queue text default null,
    priority integer default 5,
    run_at timestamptz default null,
    delay interval default null,
    expires_at timestamptz default null,
    max_attempts integer default 1,
    "timeout" interval default null,
    tags text[] default null,
    metadata jsonb default null,
    unique_key text default null,
    secret text[] default null,
    notify boolean default true,
    depends_on bigint[] default null
) returns bigint
language plpgsql security definer
set search_path from current
as $$
begin
    return (
        select id from enqueue_many(jsonb_build_array(jsonb_build_object(
            'task', task, 'args', args, 'queue', queue, 'priority', priority, 'run_at', run_at,
            'delay_s', extract(epoch from delay), 'expires_at', expires_at, 'max_attempts', max_attempts,
            'timeout_s', extract(epoch from "timeout"), 'tags', tags, 'metadata', metadata, 'unique_key', unique_key,
            'secret', secret, 'depends_on', (select jsonb_agg(jsonb_build_object('job', d)) from unnest(depends_on) d))), notify) id);
end
$$;
comment on function enqueue(text, jsonb, text, integer, timestamptz, interval, timestamptz, integer, interval, text[], jsonb, text, text[], boolean, bigint[])
    is 'Enqueues one job; answers its id, or the id of the job that holds its unique key.';

-- Reads the array of enqueue_many; null where it is empty. A value of the wrong type is refused by job, field and value.
create or replace function read_jobs(jobs jsonb) returns new_job[]
language plpgsql stable
set search_path from current
as $$
declare
    fields constant text[] := array['task', 'args', 'queue', 'priority', 'run_at', 'delay_s', 'expires_at', 'max_attempts',
        'timeout_s', 'tags', 'metadata', 'unique_key', 'secret', 'name', 'depends_on', 'rule', 'rule_n', 'parent_id', 'parent_claim_id'];
    odd record;
    field text;
begin
    select j.n, j.job into odd
    from jsonb_array_elements(jobs) with ordinality j (job, n)
    where jsonb_typeof(j.job) <> 'object' or j.job - fields <> '{}'
    limit 1;
    if found then
        perform refuse('PGS05', case
            when jsonb_typeof(odd.job) <> 'object' then format('job %s is a JSON %s, it must be an object', odd.n, jsonb_typeof(odd.job))
            else format('job %s has unknown fields: %s', odd.n, (select string_agg(k, ', ') from jsonb_object_keys(odd.job - fields) k))
            end, 'The fields are ' || array_to_string(fields, ', ') || '.');
    end if;
    begin
        return (select array_agg(j) from jsonb_populate_recordset(null::new_job, jobs) j);
    exception when data_exception or program_limit_exceeded or feature_not_supported then
        for odd in select j.n, j.job from jsonb_array_elements(jobs) with ordinality j (job, n) loop
            foreach field in array fields loop
                begin
                    perform jsonb_populate_record(null::new_job, jsonb_build_object(field, odd.job -> field));
                exception when data_exception or program_limit_exceeded or feature_not_supported then
                    perform refuse('PGS05', format('job %s: %s is %s: %s', odd.n, field, left((odd.job -> field)::text, 200), sqlerrm));
                end;
            end loop;
        end loop;
        raise;
    end;
end
$$;
comment on function read_jobs(jsonb) is 'Reads the array of enqueue_many, or names what in it cannot be read (internal).';

-- Refuses the first job with a value that may not be, by name.
create or replace function check_jobs(given new_job[], t timestamptz) returns void
language plpgsql stable
set search_path from current
as $$
declare
    max_bytes constant bigint := (select (value #>> '{}')::bigint from setting where name = 'max_args_bytes');
    earliest constant timestamptz := '0001-01-01 00:00+00';
    latest constant timestamptz := '9999-01-01 00:00+00';
    bad record;
begin
    select * into bad
    from (
        select g.*, case
            when g.task is null or length(g.task) not between 1 and 200
                then format('task is %s: a task''s name has 1 to 200 characters', shown(g.task))
            when g.queue is null
                then 'queue is missing: name the queue (in Python it is the App''s name unless one is given)'
            when length(g.queue) not between 1 and 100
                then format('queue is %s: a queue''s name has 1 to 100 characters', shown(g.queue))
            when g.priority not between 0 and 9
                then format('priority is %s: it is a number from 0 (first) to 9', g.priority)
            when jsonb_typeof(g.args) <> 'object'
                then format('args is a JSON %s: it must be an object keyed by parameter name', jsonb_typeof(g.args))
            when g.max_attempts < 1
                then format('max_attempts is %s: it must be at least 1', g.max_attempts)
            when g.run_at is not null and g.delay_s is not null
                then 'run_at and delay are both given: give one'
            when g.run_at < earliest or g.run_at >= latest
                then format('run_at is %s: it must lie in the years 1 to 9998', g.run_at)
            when g.delay_s < 0 or g.delay_s > 3155760000 or g.delay_s = 'NaN'
                then format('delay is %s s: it must lie between 0 and 100 years', g.delay_s)
            when g.expires_at < earliest or g.expires_at >= latest
                then format('expires_at is %s: it must lie in the years 1 to 9998', g.expires_at)
            when g.expires_at <= coalesce(g.run_at, t + seconds(g.delay_s)) and (g.run_at is not null or g.delay_s > 0)
                then format('expires_at is %s, not after run_at %s: it could never run', g.expires_at, coalesce(g.run_at, t + seconds(g.delay_s)))
            when g.timeout_s < 0.001 or g.timeout_s > 3155760000 or g.timeout_s = 'NaN'
                then format('timeout is %s s: it must lie between 1 ms and 100 years', g.timeout_s)
            when array_ndims(g.tags) > 1 or array_ndims(g.secret) > 1
                then 'tags and secret are plain lists: a list in a list is not understood'
            when array_position(g.tags, null) is not null
                then 'tags has a null in it: each tag is a text'
            when array_position(g.secret, null) is not null
                then 'secret has a null in it: each is the name of an argument'
            when jsonb_typeof(g.metadata) <> 'object'
                then format('metadata is a JSON %s: it must be an object', jsonb_typeof(g.metadata))
            when length(g.unique_key) not between 1 and 500 or octet_length(g.unique_key) > 1500
                then format('unique_key is %s: it has 1 to 500 characters, and at most 1500 bytes', shown(g.unique_key))
            when length(g.name) not between 1 and 200
                then format('name is %s: it has 1 to 200 characters', shown(g.name))
            when g.rule not in ('all', 'any', 'at_least', 'none_failed')
                then format('rule is %s: it is all, any, at_least or none_failed', shown(g.rule))
            when (coalesce(g.rule, 'all') = 'at_least') <> (g.rule_n is not null)
                then 'rule_n is the number of rule at_least: give both or neither'
            when jsonb_typeof(g.depends_on) <> 'array'
                then format('depends_on is a JSON %s: it must be an array of edges, such as [{"job": 17}]', jsonb_typeof(g.depends_on))
            when (g.parent_id is null) <> (g.parent_claim_id is null)
                then 'parent_id and parent_claim_id name the running job that makes it: give both or neither'
            when g.parent_id is not null and g.unique_key is not null
                then 'it is a subtask and has a unique_key: another job may stand for that, and its parent would not wait for it'
            when g.rule_n < 1 or g.rule_n > coalesce(jsonb_array_length(g.depends_on), 0)
                then format('rule_n is %s: it must lie between 1 and the number of its edges, %s', g.rule_n, coalesce(jsonb_array_length(g.depends_on), 0))
            when pg_column_size(g.args) > max_bytes or pg_column_size(g.metadata) > max_bytes
                then ''
            end as problem
        from unnest(given) with ordinality g
    ) g
    where g.problem is not null
    limit 1;
    if bad.problem = '' then
        perform refuse('PGS06', format('job %s (task "%s"): its %s takes %s bytes, the limit is %s', bad.ordinality, left(bad.task, 200),
            case when pg_column_size(bad.args) > max_bytes then 'args' else 'metadata' end,
            greatest(pg_column_size(bad.args), pg_column_size(bad.metadata)), max_bytes),
            'Store large data elsewhere and pass its name, or raise the setting max_args_bytes.');
    elsif bad.problem is not null then
        perform refuse('PGS05', format('job %s (task %s): %s', bad.ordinality, shown(bad.task), bad.problem));
    end if;
end
$$;
comment on function check_jobs(new_job[], timestamptz) is 'Refuses the first job with a value that may not be (internal).';

-- Takes the unique keys of new jobs. Answers, for each job in order, its own id where it may be made, else its key's holder.
-- Keys are taken in sorted order, all of them in one round, so that two callers cannot deadlock: where a holder has gone between
-- the try and the look, the round is undone and begins anew.
create or replace function take_keys(given new_job[], ids bigint[]) returns bigint[]
language plpgsql
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    answers bigint[];
    patience constant text := current_setting('lock_timeout');
begin
    if patience::interval = '0' or patience::interval > '5s' then
        perform set_config('lock_timeout', '5s', true);
    end if;
    for round in 1..20 loop
        begin
            insert into job_key (task, unique_key, job_id)
            select g.task, g.unique_key, ids[g.ordinality]
            from unnest(given) with ordinality g
            where g.unique_key is not null
            order by g.task, g.unique_key, g.ordinality
            on conflict (task, unique_key) do nothing;
            -- A new statement: it sees the holder that the insert met. (A caller's old snapshot may show one that has gone
            -- beside the key just taken: one's own comes first.)
            answers := array(
                select case when g.unique_key is null then ids[g.ordinality] else (
                    select k.job_id from job_key k
                    where k.task = g.task and k.unique_key = g.unique_key
                    order by k.job_id = any (ids) desc
                    limit 1) end
                from unnest(given) with ordinality g
                order by g.ordinality);
            if array_position(answers, null) is not null then
                perform refuse('PGS10', format('the unique key %s of task %s changed hands again and again',
                    shown((given[array_position(answers, null)]).unique_key), shown((given[array_position(answers, null)]).task)),
                    'Try again.');
            end if;
            exit;
        exception when sqlstate 'PGS10' then
            if round = 20 then
                raise;
            end if;
        end;
    end loop;
    perform set_config('lock_timeout', patience, true);
    return answers;
end
$$;
comment on function take_keys(new_job[], bigint[]) is 'Takes unique keys, or answers who holds them (internal).';
