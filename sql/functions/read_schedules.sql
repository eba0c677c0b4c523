-- Reads an array of schedules (see put_schedule) and fills in what was not said; a value that may not be is refused by the
-- schedule's name, the field and the rule. `the_app`: whose they are; null: they say it themselves.
-- Errors: PGS16; PGS05, PGS06 what a tick enqueues is refused.
create or replace function read_schedules(schedules jsonb, the_app text, checked boolean) returns new_schedule[]
language plpgsql stable
set search_path from current
as $$
declare
    fields constant text[] := array['name', 'app', 'workflow', 'jobs', 'cron', 'every_s', 'anchor', 'timezone', 'starts_at', 'ends_at',
        'jitter_s', 'catch_up', 'catch_up_limit', 'catch_up_window_s', 'overlap'];
    given new_schedule[] := '{}';
    one jsonb;
    read new_schedule;
    field text;
begin
    for one in select s.one from jsonb_array_elements(schedules) s (one) loop
        if jsonb_typeof(one) <> 'object' or one - fields <> '{}' then
            perform refuse('PGS16', case when jsonb_typeof(one) <> 'object' then format('a schedule is a JSON %s, it must be an object', jsonb_typeof(one))
                else format('schedule %s has unknown fields: %s', shown(one ->> 'name'), (select string_agg(k, ', ') from jsonb_object_keys(one - fields) k)) end,
                'The fields are ' || array_to_string(fields, ', ') || '.');
        end if;
        begin
            read := jsonb_populate_record(null::new_schedule, one);
        exception when data_exception or program_limit_exceeded or feature_not_supported then
            foreach field in array fields loop
                begin
                    perform jsonb_populate_record(null::new_schedule, jsonb_build_object(field, one -> field));
                exception when data_exception or program_limit_exceeded or feature_not_supported then
                    perform refuse('PGS16', format('schedule %s: %s is %s: %s', shown(one ->> 'name'), field, left((one -> field)::text, 200), sqlerrm));
                end;
            end loop;
            raise;
        end;
        read.app := coalesce(the_app, read.app, case when jsonb_typeof(read.jobs) = 'array' then read.jobs -> 0 ->> 'queue' end);
        read.timezone := coalesce(read.timezone, 'UTC');
        read.jitter_s := nullif(read.jitter_s, 0);
        read.catch_up := coalesce(read.catch_up, 'none');
        read.catch_up_limit := coalesce(read.catch_up_limit, 100);
        read.overlap := coalesce(read.overlap, 'allow');
        perform check_schedule(read, checked);
        given := given || read;
    end loop;
    return given;
end
$$;
comment on function read_schedules(jsonb, text, boolean) is 'Reads an array of schedules, or names what in it cannot be (internal).';

-- Refuses a schedule with a value that may not be.
create or replace function check_schedule(given new_schedule, checked boolean) returns void
language plpgsql stable
set search_path from current
as $$
declare
    earliest constant timestamptz := '0001-01-01 00:00+00';
    latest constant timestamptz := '9999-01-01 00:00+00';
    most_s constant double precision := 3155760000;
    jobs new_job[];
    problem text;
    edges edge[];
begin
    problem := case
        when given.name is null or length(given.name) not between 1 and 200
            then format('name is %s: a schedule''s name has 1 to 200 characters', shown(given.name))
        when given.app is null or length(given.app) not between 1 and 100
            then format('app is %s: an application''s name has 1 to 100 characters', shown(given.app))
        when length(given.workflow) not between 1 and 200
            then format('workflow is %s: a workflow''s name has 1 to 200 characters', shown(given.workflow))
        when jsonb_typeof(given.jobs) is distinct from 'array' or jsonb_array_length(given.jobs) = 0 or (given.workflow is null and jsonb_array_length(given.jobs) > 1)
            then 'jobs is what each tick enqueues: an array of one job, or, with the name of a workflow, of several'
        when num_nonnulls(given.cron, given.every_s) <> 1
            then 'give either cron or every'
        when given.anchor is not null and given.every_s is null
            then 'anchor is one of the ticks that every counts from: a cron text has none'
        when length(given.cron) not between 1 and 1000
            then format('cron is %s: it has 1 to 1000 characters', shown(given.cron))
        when not coalesce(given.every_s between 1 and most_s and given.every_s = trunc(given.every_s), true)
            then format('every is %s s: it must be whole seconds, at least 1 and at most 100 years', given.every_s)
        when given.anchor <> date_trunc('second', given.anchor)
            then format('anchor is %s: it must be a whole second', given.anchor)
        when length(given.timezone) not between 1 and 100
            then format('timezone is %s: it is an IANA name such as "America/New_York"', shown(given.timezone))
        when not coalesce(given.jitter_s between 0 and most_s, true)
            then format('jitter is %s s: it must lie between 0 and 100 years', given.jitter_s)
        when given.jitter_s > given.every_s
            then format('jitter is %s s, longer than the %s s between its ticks', given.jitter_s, given.every_s)
        when given.catch_up not in ('none', 'last', 'all')
            then format('catch_up is %s: it is none, last or all', shown(given.catch_up))
        when given.catch_up_limit not between 1 and 10000
            then format('catch_up_limit is %s: it must lie between 1 and 10000', given.catch_up_limit)
        when not coalesce(given.catch_up_window_s between 0.001 and most_s, true)
            then format('catch_up_window is %s s: it must lie between 1 ms and 100 years', given.catch_up_window_s)
        when given.overlap not in ('allow', 'skip', 'queue', 'cancel')
            then format('overlap is %s: it is allow, skip, queue or cancel', shown(given.overlap))
        when given.overlap <> 'allow' and jsonb_array_length(given.jobs) > 1000
            then format('overlap is %s, and its workflow has %s jobs: that is kept for workflows of at most 1000', given.overlap, jsonb_array_length(given.jobs))
        when not coalesce(given.anchor >= earliest and given.anchor < latest, true) or not coalesce(given.starts_at >= earliest and given.starts_at < latest, true)
            or not coalesce(given.ends_at >= earliest and given.ends_at < latest, true)
            then format('its times are anchor %s, starts_at %s, ends_at %s: they must lie in the years 1 to 9998', given.anchor, given.starts_at, given.ends_at)
        when given.ends_at <= given.starts_at
            then format('ends_at is %s, not after starts_at %s', given.ends_at, given.starts_at)
    end;
    if problem is null and not checked then
        problem := coalesce(zone_problem(given.timezone), cron_problem(given.cron));
    end if;
    if problem is null then
        jobs := read_jobs(given.jobs);
        perform check_jobs(jobs, clock_timestamp());
        problem := (
            select case
                when g.run_at is not null or g.delay_s is not null or g.expires_at is not null
                    then format('job %s: run_at, delay and expires_at are of one job, not of a schedule', g.ordinality)
                when g.parent_id is not null or g.parent_claim_id is not null
                    then format('job %s: parent_id is of a running job, not of a schedule', g.ordinality)
                when given.workflow is null and jsonb_array_length(g.depends_on) > 0 or jsonb_path_exists(g.depends_on, '$[*].job')
                    then format('job %s depends on a job that is there already: a schedule''s jobs can depend on those of the same tick only', g.ordinality)
                end
            from unnest(jobs) with ordinality g
            order by 1 nulls last
            limit 1);
        edges := read_edges(jobs);
        if edges is not null then
            perform sorted(jobs, edges);
        end if;
    end if;
    if problem is not null then
        perform refuse('PGS16', format('schedule %s: %s', shown(given.name), problem));
    end if;
end
$$;
comment on function check_schedule(new_schedule, boolean) is 'Refuses a schedule with a value that may not be (internal).';
