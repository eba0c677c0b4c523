-- Makes or changes a schedule at run time; answers its number. `schedule` is one object with the fields of the type new_schedule:
-- name; jobs, an array of what each tick enqueues, as enqueue_many takes it, of one job unless `workflow` names a workflow (then as
-- enqueue_workflow takes it); cron and timezone (UTC unless it is given), or every_s and perhaps anchor; and starts_at, ends_at,
-- jitter_s, catch_up, catch_up_limit, catch_up_window_s, overlap. app is whose it is: unless it is given, the queue of its first job.
-- `checked`: the caller has read cron and timezone by pgsched's own rules; else what can be seen here is refused here, and
-- what only the leader can see becomes the schedule's `problem` in the view schedules.
-- Locks: the schedule's row; waits for who holds it. A leader steps over it meanwhile.
-- Errors: PGS16 a value is refused, or an App's code declares a schedule of this name; PGS05, PGS06 as enqueue_many.
create or replace function put_schedule(schedule jsonb, checked boolean default false) returns bigint
language plpgsql security definer
set search_path from current
as $$
declare
    given new_schedule;
begin
    if jsonb_typeof(schedule) is distinct from 'object' then
        perform refuse('PGS16', 'put_schedule: schedule must be an object', 'For example {"name": "nightly", "cron": "0 3 * * *", "jobs": [{"task": "tidy", "queue": "shop"}]}.');
    end if;
    given := (read_schedules(jsonb_build_array(schedule), null, coalesce(checked, false)))[1];
    perform enter_schedule(given, 'runtime');
    return (select s.id from schedule s where s.app = given.app and s.name = given.name);
end
$$;
comment on function put_schedule(jsonb, boolean) is 'Makes or changes a schedule at run time; answers its number.';

-- Makes or changes a schedule of one job at run time; see put_schedule.
create or replace function schedule(
    name text,
    task text,
    queue text,
    cron text default null,
    every interval default null,
    anchor timestamptz default null,
    timezone text default 'UTC',
    args jsonb default '{}',
    priority integer default 5,
    max_attempts integer default 1,
    "timeout" interval default null,
    tags text[] default null,
    metadata jsonb default null,
    starts_at timestamptz default null,
    ends_at timestamptz default null,
    jitter interval default null,
    catch_up text default 'none',
    catch_up_limit integer default null,
    catch_up_window interval default null,
    overlap text default 'allow',
    app text default null
) returns bigint
language plpgsql security definer
set search_path from current
as $$
begin
    return put_schedule(jsonb_build_object(
        'name', name, 'app', app, 'cron', cron, 'every_s', extract(epoch from every), 'anchor', anchor, 'timezone', timezone,
        'starts_at', starts_at, 'ends_at', ends_at, 'jitter_s', extract(epoch from jitter), 'catch_up', catch_up,
        'catch_up_limit', catch_up_limit, 'catch_up_window_s', extract(epoch from catch_up_window), 'overlap', overlap,
        'jobs', jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
            'task', task, 'queue', queue, 'priority', priority, 'max_attempts', max_attempts, 'timeout_s', extract(epoch from "timeout"),
            'tags', tags)) || jsonb_build_object('args', coalesce(args, '{}'))
            || case when metadata is null then '{}' else jsonb_build_object('metadata', metadata) end)));
end
$$;
comment on function schedule(text, text, text, text, interval, timestamptz, text, jsonb, integer, integer, interval, text[], jsonb, timestamptz, timestamptz, interval, text, integer, interval, text, text)
    is 'Makes or changes a schedule of one job at run time; answers its number.';

-- Removes a schedule that was made at run time; answers its number. Jobs that it has made stay.
-- Errors: PGS16 there is none, several applications have one of this name, or an App's code declares it.
create or replace function unschedule(name text, app text default null) returns bigint
language plpgsql security definer
set search_path from current
as $$
declare
    found constant schedule := schedule_named(name, app);
begin
    if found.origin = 'code' then
        perform refuse('PGS16', format('schedule %s of application %s is declared by its code', shown(found.name), shown(found.app)),
            'Take it out of the code, and deploy; or pause it.');
    end if;
    update schedule s
    set removed_at = clock_timestamp(), removed_by = session_user, version = s.version + 1, next_tick_at = null, next_local = null, next_nominal = null, plan_after = null
    where s.id = found.id;
    return found.id;
end
$$;
comment on function unschedule(text, text) is 'Removes a schedule that was made at run time; answers its number.';

-- Pauses a schedule: none of its ticks is made until it is resumed, also across deploys. Answers whether that changed anything.
-- A tick whose time had come before, and that no leader has dealt with yet, is made when it is resumed, as catch_up says.
create or replace function pause_schedule(name text, app text default null) returns boolean
language plpgsql security definer
set search_path from current
as $$
declare
    found constant schedule := schedule_named(name, app);
begin
    update schedule s set paused_at = clock_timestamp(), paused_by = session_user where s.id = found.id and s.paused_at is null;
    return found.paused_at is null;
end
$$;
comment on function pause_schedule(text, text) is 'Pauses a schedule; answers whether that changed anything.';

-- Lets a paused schedule tick again, from now on: the ticks of the pause are not made (backfill_schedule makes them).
create or replace function resume_schedule(name text, app text default null) returns boolean
language plpgsql security definer
set search_path from current
as $$
declare
    found constant schedule := schedule_named(name, app);
begin
    update schedule s
    set paused_at = null, paused_by = null, version = s.version + 1, problem = null, problem_at = null,
        plan_after = clock_timestamp(), next_tick_at = overdue(s.next_tick_at, s.paused_at),
        next_local = case when s.next_tick_at <= s.paused_at then s.next_local end,
        next_nominal = case when s.next_tick_at <= s.paused_at then s.next_nominal end
    where s.id = found.id and s.paused_at is not null;
    if found.paused_at is not null then
        perform tell_leader();
    end if;
    return found.paused_at is not null;
end
$$;
comment on function resume_schedule(text, text) is 'Lets a paused schedule tick again, from now on; answers whether that changed anything.';

-- The schedule of this name that has not been removed, its row locked. `app` is needed where several applications have one.
create or replace function schedule_named(the_name text, the_app text) returns schedule
language plpgsql
set search_path from current
as $$
declare
    found schedule;
    apps text[];
begin
    perform require_read_committed();
    apps := array(select s.app from schedule s where s.name = the_name and (the_app is null or s.app = the_app) and s.removed_at is null order by 1 limit 20);
    if cardinality(apps) > 1 then
        perform refuse('PGS16', format('schedules of %s are named %s', (select string_agg(shown(a), ', ') from unnest(apps) a), shown(the_name)), 'Say which application is meant.');
    end if;
    select * into found from schedule s where s.name = the_name and s.app = apps[1] and s.removed_at is null for update;
    if found.id is null then
        perform refuse('PGS16', format('there is no schedule %s', shown(the_name)) || coalesce(' of application ' || shown(the_app), ''),
            'The view schedules lists what there is.');
    end if;
    return found;
end
$$;
comment on function schedule_named(text, text) is 'The schedule of this name, locked (internal).';

-- A tick that was due at `by` and has not been dealt with: it is made, whatever has changed since.
create or replace function overdue(tick timestamptz, by timestamptz) returns timestamptz
language sql immutable
set search_path from current
as $$ select case when tick <= by then tick end $$;
comment on function overdue(timestamptz, timestamptz) is 'A tick that was due by then, else null (internal).';

-- Has the leader look at the schedules when this transaction commits. Only a hint: it also looks each round.
create or replace function tell_leader() returns void
language sql
set search_path from current
as $$ select pg_notify(channel() || '_leader', 'schedules') $$;
comment on function tell_leader() is 'Has the leader look at the schedules (internal).';

-- Enters a schedule, or what is different in it; answers added, changed or same. Where only what its ticks make has changed, the
-- next tick stays; else it is planned anew, from now on, and a tick that was due already is still made.
create or replace function enter_schedule(given new_schedule, the_origin text) returns text
language plpgsql
set search_path from current
as $$
declare
    t constant timestamptz := clock_timestamp();
    old schedule;
    new schedule;
    is_new_rhythm boolean;
begin
    insert into schedule (app, name, origin, workflow, jobs, cron, every, anchor, timezone, starts_at, ends_at, jitter, catch_up, catch_up_limit,
        catch_up_window, overlap, plan_after, base_at)
    values (given.app, given.name, the_origin, given.workflow, given.jobs, given.cron, make_interval(secs => given.every_s), given.anchor,
        given.timezone, given.starts_at, given.ends_at, coalesce(make_interval(secs => given.jitter_s), '0'), given.catch_up,
        given.catch_up_limit, make_interval(secs => given.catch_up_window_s), given.overlap, t, t)
    on conflict (app, name) do nothing;
    if found then
        perform tell_leader();
        return 'added';
    end if;
    select * into old from schedule s where s.app = given.app and s.name = given.name for update;
    if old.origin = 'runtime' and the_origin = 'code' and old.removed_at is null then
        perform refuse('PGS16', format('schedule %s of application %s was made at run time', shown(given.name), shown(given.app)),
            'Remove it (unschedule), or give the one in the code another name.');
    elsif old.origin = 'code' and the_origin = 'runtime' and old.removed_at is null then
        perform refuse('PGS16', format('schedule %s of application %s is declared by its code', shown(given.name), shown(given.app)),
            'Change the code, or choose another name. (Pausing it is possible.)');
    end if;
    new := amended(old, given, the_origin);
    if new is not distinct from old and old.removed_at is null then
        return 'same';
    end if;
    is_new_rhythm := old.removed_at is not null or old.problem is not null
        or (old.cron, old.every, old.anchor, old.timezone, old.starts_at, old.ends_at, old.jitter > '0', new.jitter)
            is distinct from (new.cron, new.every, new.anchor, new.timezone, new.starts_at, new.ends_at, new.jitter > '0', old.jitter);
    if new.overlap <> 'allow' and old.overlap = 'allow' then
        new.open_jobs := array(select u.id from unended(array(select j.id from job j where j.schedule_id = old.id order by j.id desc limit 1000)) u (id));
    end if;
    update schedule s
    set origin = new.origin, workflow = new.workflow, jobs = new.jobs, cron = new.cron, every = new.every, anchor = new.anchor,
        timezone = new.timezone, starts_at = new.starts_at, ends_at = new.ends_at, jitter = new.jitter, catch_up = new.catch_up,
        catch_up_limit = new.catch_up_limit, catch_up_window = new.catch_up_window, overlap = new.overlap, open_jobs = new.open_jobs,
        version = s.version + 1, changed_at = t, changed_by = session_user, removed_at = null, removed_by = null, problem = null, problem_at = null,
        -- (What was removed by hand and is made again by hand is another one. A deploy leaves a pause as it is.)
        paused_at = case when old.removed_at is null or the_origin = 'code' then s.paused_at end,
        paused_by = case when old.removed_at is null or the_origin = 'code' then s.paused_by end,
        next_tick_at = case when is_new_rhythm then overdue(s.next_tick_at, t) else s.next_tick_at end,
        next_local = case when not is_new_rhythm or s.next_tick_at <= t then s.next_local end,
        next_nominal = case when not is_new_rhythm or s.next_tick_at <= t then s.next_nominal end,
        plan_after = case when is_new_rhythm then t else s.plan_after end
    where s.id = old.id;
    perform tell_leader();
    return 'changed';
end
$$;
comment on function enter_schedule(new_schedule, text) is 'Enters a schedule, or what is different in it; answers added, changed or same (internal).';

-- A schedule as it would be with this definition.
create or replace function amended(old schedule, given new_schedule, the_origin text) returns schedule
language plpgsql immutable
set search_path from current
as $$
begin
    old.origin := the_origin;
    old.workflow := given.workflow;
    old.jobs := given.jobs;
    old.cron := given.cron;
    old.every := make_interval(secs => given.every_s);
    old.anchor := given.anchor;
    old.timezone := given.timezone;
    old.starts_at := given.starts_at;
    old.ends_at := given.ends_at;
    old.jitter := coalesce(make_interval(secs => given.jitter_s), '0');
    old.catch_up := given.catch_up;
    old.catch_up_limit := given.catch_up_limit;
    old.catch_up_window := make_interval(secs => given.catch_up_window_s);
    old.overlap := given.overlap;
    return old;
end
$$;
comment on function amended(schedule, new_schedule, text) is 'A schedule as it would be with this definition (internal).';

-- Which of these jobs have not ended, in the order given.
create or replace function unended(jobs bigint[]) returns setof bigint
language sql stable
set search_path from current
as $$
select u.id from unnest(jobs) with ordinality u (id, n)
where (select true from job j where j.id = u.id) and (select true from finished f where f.job_id = u.id) is null
order by u.n
$$;
comment on function unended(bigint[]) is 'Which of these jobs have not ended (internal).';
