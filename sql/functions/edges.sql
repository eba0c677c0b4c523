-- Whether a new job depends on anything.
create or replace function has_edges(depends_on jsonb) returns boolean
language sql immutable
return coalesce(jsonb_array_length(depends_on), 0) > 0;
comment on function has_edges(jsonb) is 'Whether a new job depends on anything (internal).';

-- Whether this is a way to a place in the arguments: a parameter's name, then keys and positions.
create or replace function is_path(path jsonb) returns boolean
language sql immutable
return case when jsonb_typeof(path) = 'array' and jsonb_array_length(path) > 0 then
    jsonb_typeof(path -> 0) = 'string' and not jsonb_path_exists(path,
        'strict $[*] ? (@.type() != "string" && @.type() != "number" || @.type() == "number" && (@ < 0 || @.floor() != @ || @ > 2147483647))')
    else false end;
comment on function is_path(jsonb) is 'Whether this is a way to a place in the arguments (internal).';

-- Refuses new jobs that take two results in one place, or in too many.
create or replace function check_inputs(given new_job[], edges edge[]) returns void
language plpgsql stable
set search_path from current
as $$
declare
    max_bytes constant bigint := (select (value #>> '{}')::bigint from setting where name = 'max_args_bytes');
    bad record;
begin
    if not exists (select from unnest(edges) e where e.inputs is not null) then
        return;
    end if;
    select e.place, sum(pg_column_size(e.inputs)) as bytes into bad
    from unnest(edges) e where e.inputs is not null group by e.place having sum(pg_column_size(e.inputs)) > max_bytes limit 1;
    if found then
        perform refuse('PGS06', format('job %s (task %s): its inputs take %s bytes, the limit is %s', bad.place, shown((given[bad.place]).task), bad.bytes, max_bytes),
            'Let fewer jobs pass their results to one, or raise the setting max_args_bytes.');
    end if;
    -- (In this order what lies within a place follows it at once.)
    select x.place, x.path, x.before into bad
    from (
        select p.place, p.path, lag(p.path) over (partition by p.place order by p.path) as before
        from (
            select e.place, array(select t collate "C" from jsonb_array_elements_text(p.path) t) as path
            from unnest(edges) e cross join lateral jsonb_array_elements(e.inputs) p (path)
        ) p
    ) x
    where x.path[:cardinality(x.before)] = x.before
    limit 1;
    if found then
        perform refuse('PGS05', format('job %s (task %s) takes two results in one place: %s and %s', bad.place, shown((given[bad.place]).task),
            left(to_json(bad.before)::text, 100), left(to_json(bad.path)::text, 100)));
    end if;
end
$$;
comment on function check_inputs(new_job[], edge[]) is 'Refuses new jobs that take two results in one place, or in too many (internal).';

-- The edges of new jobs, null where there are none. Each is {"job": id} or {"name": "extract"} (another job of this call),
-- with "on": success (unless it is given), failure or done, by which end of it the edge is met; and "inputs": an array of
-- paths, each an array of a parameter's name, then keys and positions, to where in the arguments its result goes.
-- Errors: PGS05 an edge that cannot be; the message names the job and the rule. PGS06 too many inputs.
create or replace function read_edges(given new_job[]) returns edge[]
language plpgsql stable
set search_path from current
as $$
declare
    bad record;
    edges edge[];
    places jsonb;
begin
    select g.name, min(g.ordinality) as first, max(g.ordinality) as last into bad
    from unnest(given) with ordinality g where g.name is not null group by g.name having count(*) > 1 limit 1;
    if found then
        perform refuse('PGS05', format('jobs %s and %s are both named %s', bad.first, bad.last, shown(bad.name)), 'Names are unique within one call.');
    end if;
    if not exists (select from unnest(given) g where has_edges(g.depends_on)) then
        return null;
    end if;
    select * into bad
    from (
        select g.ordinality, g.name, g.task, case
            when jsonb_typeof(e.edge) <> 'object' or e.edge - array['job', 'name', 'on', 'inputs'] <> '{}' or e.edge ? 'job' = e.edge ? 'name'
                then format('an edge is %s: it is {"job": id} or {"name": "..."}, with "on" and "inputs" if you like', shown(e.edge::text))
            when e.edge ? 'job' and not jsonb_path_exists(e.edge, 'strict $.job ? (@.type() == "number" && @.floor() == @ && @ >= 1 && @ <= 9223372036854775807)')
                then format('an edge leads to job %s: a job''s id is a whole number', shown(e.edge ->> 'job'))
            when e.edge ? 'name' and jsonb_typeof(e.edge -> 'name') <> 'string'
                then format('an edge leads to %s: a name is a text', shown(e.edge ->> 'name'))
            when coalesce(e.edge ->> 'on', 'success') not in ('success', 'failure', 'done')
                then format('an edge is met on %s: it is success, failure or done', shown(e.edge ->> 'on'))
            when coalesce(jsonb_typeof(e.edge -> 'inputs'), 'array') <> 'array' or exists (
                    select from jsonb_array_elements(case jsonb_typeof(e.edge -> 'inputs') when 'array' then e.edge -> 'inputs' end) p (path)
                    where not is_path(p.path))
                then format('inputs is %s: it is an array of paths into the arguments, each a parameter''s name, then keys and positions, such as [["rows"], ["parts", 0]]',
                    shown((e.edge -> 'inputs')::text))
            end as problem
        from unnest(given) with ordinality g
            cross join lateral jsonb_array_elements(g.depends_on) e (edge)
    ) x
    where x.problem is not null
    limit 1;
    if found then
        perform refuse('PGS05', format('job %s (task %s): %s', bad.ordinality, shown(bad.task), bad.problem));
    end if;
    -- (Looked up in an object: a join of such arrays may be planned as the product of both.)
    places := (select coalesce(jsonb_object_agg(g.name, g.ordinality), '{}') from unnest(given) with ordinality g where g.name is not null);
    edges := array(
        select (g.ordinality, (places ->> (e.edge ->> 'name'))::integer, (e.edge -> 'job')::bigint, coalesce(e.edge ->> 'on', 'success'), e.edge -> 'inputs')::edge
        from unnest(given) with ordinality g
            cross join lateral jsonb_array_elements(g.depends_on) with ordinality e (edge, place)
        order by g.ordinality, e.place);
    select g.ordinality, g.task, e.edge ->> 'name' as name into bad
    from unnest(given) with ordinality g
        cross join lateral jsonb_array_elements(g.depends_on) e (edge)
    where e.edge ? 'name' and not places ? (e.edge ->> 'name')
    limit 1;
    if found then
        perform refuse('PGS05', format('job %s (task %s) depends on %s, and no job of this call has that name', bad.ordinality, shown(bad.task), shown(bad.name)));
    end if;
    perform check_inputs(given, edges);
    return edges;
end
$$;
comment on function read_edges(new_job[]) is 'The edges of new jobs, or names what in them cannot be (internal).';

-- An order of new jobs in which each comes after all that it depends on: for each of them its place in that order; null where
-- they stand in such an order already. Errors: PGS05 they depend on each other in a circle, which the message names.
create or replace function sorted(given new_job[], edges edge[]) returns integer[]
language plpgsql immutable
set search_path from current
as $$
declare
    n constant integer := cardinality(given);
    froms integer[];
    tos integer[];
    starts integer[];
    open integer[] := array_fill(0, array[n]);
    queue integer[] := array_fill(0, array[n]);
    places integer[] := array_fill(0, array[n]);
    head integer := 1;
    tail integer := 0;
    this integer;
    e integer;
    circle text;
    before integer[];
    been boolean[] := array_fill(null::boolean, array[n]);
    seen integer[];
begin
    if not exists (select from unnest(edges) x where x.on_place >= x.place) then
        return null;
    end if;
    select array_agg(x.on_place order by x.on_place, x.place), array_agg(x.place order by x.on_place, x.place) into froms, tos
    from unnest(edges) x where x.on_place is not null;
    -- (starts[i]: where the edges that lead to i begin; the lists are sorted by it.)
    starts := array_fill(cardinality(froms) + 1, array[n + 1]);
    for e in reverse cardinality(froms)..1 loop
        starts[froms[e]] := e;
        open[tos[e]] := open[tos[e]] + 1;
    end loop;
    for i in reverse n..1 loop
        starts[i] := least(starts[i], starts[i + 1]);
    end loop;
    for i in 1..n loop
        if open[i] = 0 then
            tail := tail + 1;
            queue[tail] := i;
        end if;
    end loop;
    while head <= tail loop
        this := queue[head];
        places[this] := head;
        head := head + 1;
        for e in starts[this]..starts[this + 1] - 1 loop
            open[tos[e]] := open[tos[e]] - 1;
            if open[tos[e]] = 0 then
                tail := tail + 1;
                queue[tail] := tos[e];
            end if;
        end loop;
    end loop;
    if tail = n then
        return places;
    end if;
    -- Each that is left depends on another that is left: going on from one to the next comes back somewhere.
    before := array_fill(0, array[n]);
    for e in 1..cardinality(froms) loop
        if places[froms[e]] = 0 then
            before[tos[e]] := froms[e];
        end if;
    end loop;
    this := array_position(places, 0);
    while been[this] is null loop
        been[this] := true;
        this := before[this];
    end loop;
    seen := array[this];
    while before[seen[cardinality(seen)]] <> this loop
        seen := seen || before[seen[cardinality(seen)]];
    end loop;
    seen := seen || this;
    select string_agg(coalesce((given[x.i]).name, format('job %s', x.i)), ' -> ' order by x.n desc) into circle
    from unnest(seen) with ordinality x (i, n);
    perform refuse('PGS05', format('these jobs wait for each other: %s', left(circle, 2000)), 'Each arrow leads to a job that waits for the one before it. Take one of the edges away.');
end
$$;
comment on function sorted(new_job[], edge[]) is 'An order of new jobs in which each comes after all that it depends on (internal).';

-- Enters the edges of new jobs (`ids`: theirs; `answers`: where another id, a job that has the same unique key stands for
-- it), and lets the jobs wait. An edge to a job that was not made in this call may lead to one that is ending at this moment and
-- does not see it: so whoever has one is looked at.
create or replace function enter_edges(given new_job[], edges edge[], ids bigint[], answers bigint[], t timestamptz) returns void
language plpgsql
set search_path from current
as $$
declare
    outside bigint[];
    parents bigint[];
    missing bigint;
    bad record;
begin
    outside := array(
        select distinct coalesce(e.on_id, answers[e.on_place])
        from unnest(edges) e
        where ids[e.place] = answers[e.place] and (e.on_id is not null or ids[e.on_place] <> answers[e.on_place])
        order by 1);
    perform from job j where j.id = any (outside) order by j.id for key share;
    missing := (select o.id from unnest(outside) o (id) where not exists (select from job j where j.id = o.id) limit 1);
    if missing is not null then
        perform refuse('PGS05', format('%s depends on job %s, which does not exist', (
                select format('job %s (task %s)', e.place, shown((given[e.place]).task)) from unnest(edges) e
                where coalesce(e.on_id, answers[e.on_place]) = missing limit 1), missing),
            'It was pruned, or never was.');
    end if;
    select e.place, coalesce(e.on_id, answers[e.on_place]) as on_id, min(e.on_place) as on_place, count(*) > 1 as is_doubled into bad
    from unnest(edges) e
    where ids[e.place] = answers[e.place]
    group by 1, 2
    having count(*) > 1 or coalesce(e.on_id, answers[e.on_place]) >= ids[e.place]
    limit 1;
    if found then
        if bad.is_doubled then
            perform refuse('PGS05', format('job %s (task %s) depends twice on %s', bad.place, shown((given[bad.place]).task),
                coalesce(shown((given[bad.on_place]).name), format('job %s', bad.on_id))), 'Give one edge, with all its inputs.');
        elsif bad.on_place is null then
            perform refuse('PGS05', format('job %s (task %s) depends on job %s, which is newer than itself', bad.place, shown((given[bad.place]).task), bad.on_id),
                'A job depends on older ones.');
        elsif bad.on_id = any (ids) then
            perform refuse('PGS05', format('job %s (task %s) depends on %s, for which a later job of this call stands, as they share a unique key',
                bad.place, shown((given[bad.place]).task), shown((given[bad.on_place]).name)), 'Give the edge to the first job of this call with that key.');
        end if;
        perform refuse('PGS10', format('job %s (task %s) depends on %s, whose unique key job %s has taken at this moment',
            bad.place, shown((given[bad.place]).task), shown((given[bad.on_place]).name), bad.on_id), 'Try again.');
    end if;
    -- (Neither column ever changes, so this has no race.)
    -- (An array without nulls is read at any place at once, one of rows from its beginning.)
    parents := array(select coalesce(g.parent_id, 0) from unnest(given) g);
    select e.place, coalesce(e.on_id, answers[e.on_place]) as on_id, nullif(parents[e.place], 0) as parent_id, nullif(p.parent_id, 0) as its_parent into bad
    from unnest(edges) e
        cross join lateral (
            select case when e.on_id is null and ids[e.on_place] = answers[e.on_place] then parents[e.on_place]
                else coalesce((select j.parent_id from job j where j.id = coalesce(e.on_id, answers[e.on_place])), 0) end as parent_id
        ) p
    where ids[e.place] = answers[e.place] and parents[e.place] <> p.parent_id
    limit 1;
    if found then
        perform refuse('PGS05', format('job %s (task %s) depends on job %s%s', bad.place, shown((given[bad.place]).task), bad.on_id,
                case when bad.its_parent is null then format(', which is no subtask of its own parent, job %s', bad.parent_id)
                    else format(', a subtask of job %s', bad.its_parent) end),
            case when bad.its_parent is null then 'A subtask depends only on older subtasks of the same parent: its parent can wait for the others.'
                else format('Only subtasks of the same parent may: depend on job %s, which ends after its subtasks.', bad.its_parent) end);
    end if;
    insert into dependency (job_id, depends_on_id, condition, inputs)
    select ids[e.place], coalesce(e.on_id, answers[e.on_place]), e.condition, nullif(e.inputs, '[]')
    from unnest(edges) e
    where ids[e.place] = answers[e.place];
    insert into waiting (job_id, queue, reason, run_at, expires_at)
    select ids[g.ordinality], g.queue, 'dependencies', coalesce(g.run_at, case when g.delay_s > 0 then t + seconds(g.delay_s) end), g.expires_at
    from unnest(given) with ordinality g
    where ids[g.ordinality] = answers[g.ordinality] and has_edges(g.depends_on);
    insert into release_check (look_at_id)
    select d.job_id from (
        select distinct ids[e.place] as job_id from unnest(edges) e
        where ids[e.place] = answers[e.place] and (e.on_id is not null or ids[e.on_place] <> answers[e.on_place])
    ) d;
end
$$;
comment on function enter_edges(new_job[], edge[], bigint[], bigint[], timestamptz) is 'Enters the edges of new jobs, and lets the jobs wait (internal).';

-- Enqueues jobs as one workflow: {"name": "daily_etl", "jobs": [...]}, jobs as enqueue_many takes them, whose edges may lead to
-- each other by name in any order; "deadline" (a time) or "deadline_s" (from now) says when what has not ended is cancelled
-- (see enforce_deadlines). Answers {"workflow_id", "job_ids"}, the ids in the order of input.
-- Errors: as enqueue_many; PGS09 no object with a name and jobs, or no deadline that can be.
create or replace function enqueue_workflow(workflow jsonb, notify boolean default true) returns jsonb
language plpgsql security definer
set search_path from current
as $$
declare
    given new_job[];
    made record;
begin
    if jsonb_typeof(workflow) is distinct from 'object' or workflow - array['name', 'jobs', 'deadline', 'deadline_s'] <> '{}'
        or jsonb_typeof(workflow -> 'jobs') is distinct from 'array' or jsonb_array_length(workflow -> 'jobs') = 0
        or jsonb_typeof(workflow -> 'name') is distinct from 'string' or length(workflow ->> 'name') not between 1 and 200 then
        perform refuse('PGS09', 'enqueue_workflow: workflow must be an object with a "name" (1 to 200 characters) and "jobs", an array of at least one',
            'For example {"name": "etl", "jobs": [{"name": "extract", "task": "extract", "queue": "etl"}]}.');
    end if;
    given := read_jobs(workflow -> 'jobs');
    if exists (select from unnest(given) g where g.parent_id is not null) then
        perform refuse('PGS05', 'enqueue_workflow: a job of a workflow is not a subtask, and one has a parent_id', 'Give subtasks to enqueue_many: they may have names and edges there, too.');
    end if;
    select * into made from make_workflow(workflow ->> 'name', given, read_deadline(workflow), notify);
    return jsonb_build_object('workflow_id', made.workflow_id, 'job_ids', to_jsonb(made.job_ids));
end
$$;
comment on function enqueue_workflow(jsonb, boolean) is 'Enqueues jobs as one workflow, all or none; answers its number and their ids.';

-- Makes a workflow of jobs; answers its number and their ids in the order given. What it refuses and locks: see enqueue_many.
create or replace function make_workflow(the_name text, given new_job[], the_deadline timestamptz, notify boolean, out workflow_id bigint, out job_ids bigint[])
language plpgsql
set search_path from current
as $$
declare
    the_id constant bigint := nextval('workflow_id_seq');
begin
    workflow_id := the_id;
    job_ids := make_jobs(given, the_id, notify);
    insert into workflow (id, name, jobs, shared, deadline) overriding system value
    values (the_id, the_name, cardinality(given), case
        when exists (select from unnest(given) g where g.unique_key is not null)
        then cardinality(given) - (select count(*) from job j where j.workflow_id = the_id) else 0 end, the_deadline);
end
$$;
comment on function make_workflow(text, new_job[], timestamptz, boolean) is 'Makes a workflow of jobs; answers its number and their ids (internal).';

-- What a job gets of the results of those that it depends on: {"inputs": [[path, result], ...]}, or null.
create or replace function inputs_of(the_job bigint) returns jsonb
language plpgsql stable
set search_path from current
as $$
begin
    return (
        select jsonb_build_object('inputs', jsonb_agg(jsonb_build_array(p.path, coalesce((select f.result from finished f where f.job_id = d.depends_on_id), 'null'))
            order by d.depends_on_id))
        from dependency d
            cross join lateral jsonb_array_elements(d.inputs) p (path)
        where d.job_id = the_job and d.inputs is not null
        having count(*) > 0);
end
$$;
comment on function inputs_of(bigint) is 'What a job gets of the results of those that it depends on (internal).';

-- What a claim says beside the job's own columns, null where there is nothing.
create or replace function beside(the_job bigint, lost_attempts integer, takes_results boolean, tick_at timestamptz) returns jsonb
language sql stable
return case when lost_attempts > 0 or takes_results or tick_at is not null then
    nullif(case when lost_attempts > 0 then jsonb_build_object('lost_attempts', lost_attempts) else '{}' end
        || coalesce(case when takes_results then inputs_of(the_job) end, '{}')
        || case when tick_at is not null then jsonb_build_object('tick_at', tick_at) else '{}' end, '{}') end;
comment on function beside(bigint, integer, boolean, timestamptz) is 'What a claim says beside the job''s own columns (internal).';
