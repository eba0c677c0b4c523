-- The leader's part in schedules. What is due, and what has to be planned, is told by due_schedules(); Python, which knows cron texts
-- and time zones, says what comes next; tick_schedules() checks that nothing has changed meanwhile, moves next_tick_at on and makes the
-- jobs, in one transaction. So a tick is made at most once; and as nothing moves on without it, at least once within catch_up.

-- Up to `n` schedules whose tick is due, oldest ticks first, and before them some that have to be planned. Answers {"now", "next_in_s",
-- "due": [...]}: the server's time, in how many seconds the next tick is due of those that are not (null: none), and of each schedule
-- that is what is needed to plan it. `at` instead of the server's time is for tests.
-- Errors: PGS09, PGS11 the session does not lead.
create or replace function due_schedules(n integer, passed_over bigint[] default '{}', at timestamptz default null) returns jsonb
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
    t constant timestamptz := coalesce(at, clock_timestamp());
    found jsonb;
    later timestamptz;
begin
    perform require_leader();
    if n is null or n < 1 or passed_over is null or not isfinite(t) then
        perform refuse('PGS09', format('due_schedules: n is %s and at is %s', coalesce(n::text, 'null'), coalesce(at::text, 'null')), 'Give a number of at least 1, and a finite time or none.');
    end if;
    found := (
        select coalesce(jsonb_agg(schedule_to_plan(s)), '[]')
        from (
            -- (Few of these, and first: neither kind keeps the other waiting.)
            (select s.* from schedule s
            where s.next_tick_at is null and s.plan_after is not null and s.problem is null and s.paused_at is null and s.removed_at is null
                and s.id <> all (passed_over)
            order by s.id
            limit n / 4 + 1)
            union all
            (select s.* from schedule s
            where s.next_tick_at <= t and s.next_tick_at is not null and s.paused_at is null and s.removed_at is null and s.id <> all (passed_over)
            order by s.next_tick_at, s.id
            limit n)
        ) s);
    later := (
        select s.next_tick_at from schedule s
        where s.next_tick_at > t and s.next_tick_at is not null and s.paused_at is null and s.removed_at is null
        order by s.next_tick_at, s.id
        limit 1);
    return jsonb_build_object('now', t, 'due', found,
        'next_in_s', extract(epoch from later - coalesce(at, clock_timestamp())));
end
$$;
comment on function due_schedules(integer, bigint[], timestamptz) is 'Schedules whose tick is due, and those that have to be planned.';

-- Up to `n` schedules with ids above `above` whose next tick was planned by older zone data than `zone_data`, or which could not be
-- planned: what a new leader looks at once. Errors: PGS09, PGS11.
create or replace function outdated_schedules(zone_data text, above bigint, n integer) returns jsonb
language plpgsql security definer
set search_path from current
as $$
begin
    perform require_leader();
    if n is null or n < 1 then
        perform refuse('PGS09', format('outdated_schedules: n is %s, it must be at least 1', coalesce(n::text, 'null')));
    end if;
    return (
        select coalesce(jsonb_agg(schedule_to_plan(s) order by s.id), '[]')
        from (
            select s.* from schedule s
            where s.id > above and s.removed_at is null and s.paused_at is null
                and (s.next_tick_at > clock_timestamp() and s.cron is not null and s.zone_data < outdated_schedules.zone_data collate "C"
                    or s.next_tick_at is null and s.plan_after is not null and s.problem is not null)
            order by s.id
            limit n
        ) s);
end
$$;
comment on function outdated_schedules(text, bigint, integer) is 'Schedules that were planned by older zone data, or could not be planned.';

-- What is needed to plan a schedule.
create or replace function schedule_to_plan(s schedule) returns jsonb
language sql immutable
set search_path from current
as $$
select jsonb_build_object('id', s.id, 'app', s.app, 'name', s.name, 'version', s.version, 'cron', s.cron, 'every_s', extract(epoch from s.every),
    'anchor', s.anchor, 'timezone', s.timezone, 'starts_at', s.starts_at, 'ends_at', s.ends_at, 'jitter_s', extract(epoch from s.jitter),
    'catch_up', s.catch_up, 'limit', s.catch_up_limit, 'window_s', extract(epoch from s.catch_up_window),
    'next_tick_at', s.next_tick_at, 'next_nominal', s.next_nominal, 'plan_after', s.plan_after, 'base_at', s.base_at, 'base_nominal', s.base_nominal, 'zone_data', s.zone_data)
$$;
comment on function schedule_to_plan(schedule) is 'What is needed to plan a schedule (internal).';

-- Makes ticks, and moves schedules on. `batch` is an array of {"id", "version", "was": the next_tick_at that was read, "ticks":
-- the times to be made, oldest first, "missed": {"at", "until", "n", "reason"} or null, "next_at", "next_local", "next_nominal", "base_at",
-- "base_nominal", "zone_data", "problem", "refuse": why its ticks are refused, or null}. What was changed, paused, removed or moved by
-- somebody else since it was read is left alone, and so is what somebody holds at this moment. A tick that is refused by what it would
-- make is noted as such, and stops no other; one that meets a lock or a deadlock is left for the next call.
-- Of several only those are made that are plain; "alone" are the others, which are to be sent one by one.
-- Answers {"moved", "made", "left", "alone", "refused": [{"app", "name", "problem"}]}. `at`: for tests.
-- Locks: the schedules' rows, skipping locked ones; then as enqueue_many, and as cancel_many where overlap is cancel.
-- Errors: PGS09, PGS11 the session does not lead.
create or replace function tick_schedules(batch jsonb, at timestamptz default null) returns jsonb
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set lock_timeout = '50ms'
as $$
declare
    t constant timestamptz := coalesce(at, clock_timestamp());
    entries tick_entry[];
    alone bigint[];
    locked bigint[];
    plain bigint[];
    made jsonb := '{}';
    problems jsonb := '{}';
    one record;
begin
    perform require_leader();
    perform require_read_committed();
    perform force_durable();
    if jsonb_typeof(batch) is distinct from 'array' or batch @? '$[*] ? (@.id.type() != "number" || @.version.type() != "number" || @.ticks.type() != "array")'
        or not isfinite(t) then
        perform refuse('PGS09', 'tick_schedules: batch must be an array of objects with whole numbers "id" and "version" and an array "ticks"');
    end if;
    entries := read_ticks(batch);
    perform check_ticks(entries, t);
    locked := array(
        select s.id
        from unnest(entries) g
            join schedule s on s.id = g.id and s.version = g.version and s.next_tick_at is not distinct from g.was
        where s.paused_at is null and s.removed_at is null and (cardinality(g.ticks) = 0 and g.missed_at is null or s.next_tick_at <= t)
        order by s.id
        for update of s skip locked);
    -- The plain case, all of it at once: each tick makes one job, and no earlier run is in the way.
    plain := array(
        select s.id
        from unnest(entries) g join schedule s on s.id = g.id
        where g.id = any (locked) and g.refuse is null and cardinality(g.ticks) > 0 and s.workflow is null
            and s.jobs -> 0 ->> 'unique_key' is null and (s.pruned_until is null or g.ticks[1] > s.pruned_until)
            and (s.overlap = 'allow' or cardinality(g.ticks) = 1 and (s.open_jobs = '{}' or not exists (select from unended(s.open_jobs))))
            and not exists (select from schedule_tick x where x.schedule_id = s.id and x.tick_at = any (g.ticks)));
    begin
        made := make_plain_ticks(array(
            select (g.id, x.tick)::tick_to_make
            from unnest(entries) g cross join lateral unnest(g.ticks) with ordinality x (tick, n)
            where g.id = any (plain)
            order by g.id, x.n), t);
    exception when others then
        plain := '{}';
    end;
    -- The others take as long as they take, and are sent alone: what is slow, or waits for a lock, then stops no neighbour.
    if jsonb_array_length(batch) > 1 then
        alone := array(
            select g.id from unnest(entries) g where g.id = any (locked) and g.id <> all (plain) and cardinality(g.ticks) > 0 and g.refuse is null);
        locked := array(select l from unnest(locked) l where l <> all (alone));
    end if;
    for one in
        select s.id, g.ticks, g.refuse from unnest(entries) g join schedule s on s.id = g.id
        where g.id = any (locked) and g.id <> all (plain) and cardinality(g.ticks) > 0
        order by s.id
    loop
        begin
            made := made || jsonb_build_object(one.id::text, make_ticks(one.id, one.ticks, one.refuse, t));
        exception
            when lock_not_available or deadlock_detected or serialization_failure or insufficient_resources or system_error or sqlstate 'PGS10' then
            locked := array_remove(locked, one.id);
        end;
    end loop;
    insert into schedule_tick (schedule_id, tick_at, fired_at, outcome, reason, missed, missed_until)
    select g.id, g.missed_at, t, 'missed', g.missed_reason, g.missed_n, g.missed_until
    from unnest(entries) g
    where g.id = any (locked) and g.missed_at is not null
    on conflict do nothing;
    update schedule s
    set next_tick_at = g.next_at, next_local = g.next_local, next_nominal = g.next_nominal, base_at = g.base_at, base_nominal = g.base_nominal, zone_data = g.zone_data,
        plan_after = case when g.next_at is null and g.problem is not null then g.base_at end,
        last_tick_at = greatest(s.last_tick_at, g.ticks[cardinality(g.ticks)], g.missed_until),
        open_jobs = case when s.overlap = 'allow' then '{}' when made ? s.id::text then array(select jsonb_array_elements(made -> s.id::text -> 'open')::bigint) else s.open_jobs end,
        problem = coalesce(g.problem, made -> s.id::text ->> 'problem'),
        problem_at = case when coalesce(g.problem, made -> s.id::text ->> 'problem') is null then null when s.problem is null then t else s.problem_at end
    from unnest(entries) g
    where s.id = g.id and g.id = any (locked);
    return jsonb_build_object('moved', cardinality(locked), 'alone', to_jsonb(coalesce(alone, '{}')),
        'left', (select coalesce(jsonb_agg(g.id), '[]') from unnest(entries) g where g.id <> all (locked || alone)),
        'made', (select coalesce(sum((m.value ->> 'made')::integer), 0) from jsonb_each(made) m),
        'refused', (
            select coalesce(jsonb_agg(jsonb_build_object('app', s.app, 'name', s.name, 'problem', m.value ->> 'problem')), '[]')
            from jsonb_each(made) m join schedule s on s.id = m.key::bigint
            where m.value ->> 'problem' is not null));
end
$$;
comment on function tick_schedules(jsonb, timestamptz) is 'Makes ticks, and moves schedules on.';

-- The entries of a batch of tick_schedules. Errors: PGS09.
create or replace function read_ticks(batch jsonb) returns tick_entry[]
language plpgsql stable
set search_path from current
as $$
begin
    return array(
        select (g.id, g.version, g.was, g.ticks, (g.missed ->> 'at')::timestamptz, (g.missed ->> 'until')::timestamptz, (g.missed ->> 'n')::integer,
            g.missed ->> 'reason', g.next_at, g.next_local, g.next_nominal, g.base_at, g.base_nominal, g.zone_data, left(g.problem, 2000), g.refuse)::tick_entry
        from jsonb_to_recordset(batch) g (id bigint, version bigint, was timestamptz, ticks timestamptz[], missed jsonb, next_at timestamptz,
            next_local timestamp, next_nominal timestamp, base_at timestamptz, base_nominal timestamp, zone_data text, problem text, refuse text));
exception when data_exception then
    perform refuse('PGS09', format('tick_schedules: batch cannot be read: %s', sqlerrm));
end
$$;
comment on function read_ticks(jsonb) is 'The entries of a batch of ticks (internal).';

-- Refuses a batch in which an entry cannot be. Errors: PGS09.
create or replace function check_ticks(entries tick_entry[], t timestamptz) returns void
language plpgsql stable
set search_path from current
as $$
declare
    bad bigint;
begin
    select g.id into bad
    from (select g.*, count(*) over (partition by g.id) as n from unnest(entries) g) g
    where g.n > 1 or g.id is null or g.version is null or g.ticks is null or array_ndims(g.ticks) > 1 or array_position(g.ticks, null) is not null
        or g.base_at is null or not isfinite(g.base_at) or not isfinite(g.was) or not isfinite(g.next_at) or g.next_at <= g.base_at
        or exists (select from unnest(g.ticks) x where x > t or not isfinite(x)) or not isfinite(g.missed_at) or g.missed_at > t
        or (g.missed_at is null) <> (g.missed_until is null) or (g.missed_at is null) <> (g.missed_reason is null) or not isfinite(g.missed_until)
        or g.was is null and (g.missed_at is not null or g.ticks <> '{}')
    limit 1;
    if found then
        perform refuse('PGS09', format('tick_schedules: the entry of schedule %s cannot be', coalesce(bad::text, 'null')),
            'Its ticks lie in the past, once each; base_at lies before next_at; what is missed has at, until and reason.');
    end if;
end
$$;
comment on function check_ticks(tick_entry[], timestamptz) is 'Refuses a batch of ticks in which an entry cannot be (internal).';

-- Makes these ticks, of which each makes one job and meets no earlier run. Answers by schedule {"made", "open"}.
create or replace function make_plain_ticks(due tick_to_make[], t timestamptz) returns jsonb
language plpgsql
set search_path from current
as $$
declare
    given new_job[];
    ids bigint[];
begin
    if due = '{}' then
        return '{}';
    end if;
    given := array(
        select jsonb_populate_record(null::new_job, (s.jobs -> 0) || jsonb_build_object('schedule_id', s.id, 'tick_at', d.tick_at, 'run_at', jittered(d.tick_at, s.jitter)))
        from unnest(due) with ordinality d
            cross join lateral (select * from schedule s where s.id = d.schedule_id offset 0) s
        order by d.ordinality);
    ids := make_jobs(given, null, true);
    -- (Where a unique key is taken the answer is its holder, which another tick or call has made.)
    insert into schedule_tick (schedule_id, tick_at, fired_at, outcome, job_id, reason)
    select d.schedule_id, d.tick_at, t, case when is_own then 'made' else 'skipped' end, case when is_own then i.id end,
        case when not is_own then format('job %s holds its unique key', i.id) end
    from unnest(due) with ordinality d
        join unnest(ids) with ordinality i (id, n) on i.n = d.ordinality
        cross join lateral (select (given[d.ordinality]).unique_key is null or coalesce((
            select j.schedule_id = d.schedule_id and j.tick_at = d.tick_at from job j where j.id = i.id), false)) o (is_own);
    return (
        select jsonb_object_agg(x.schedule_id, jsonb_build_object('made', x.n, 'open', x.ids))
        from (
            select d.schedule_id, count(*) as n, jsonb_agg(i.id) as ids
            from unnest(due) with ordinality d join unnest(ids) with ordinality i (id, n) on i.n = d.ordinality
            group by d.schedule_id
        ) x);
end
$$;
comment on function make_plain_ticks(tick_to_make[], timestamptz) is 'Makes ticks of which each makes one job and meets no earlier run (internal).';

-- When the job of a tick may begin; null: at once.
create or replace function jittered(tick timestamptz, jitter interval) returns timestamptz
language sql volatile
set search_path from current
as $$ select case when jitter > '0' then tick + random() * jitter end $$;
comment on function jittered(timestamptz, interval) is 'When the job of a tick may begin (internal).';
