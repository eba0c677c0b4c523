-- Schedules: when which jobs are to be made. `next_tick_at` is stored, and moves on in the transaction that makes the jobs:
-- so a tick is made at most once, whoever leads, and whatever its zone data or its version of the application.

create table schedule (
    id bigint generated always as identity (cache 1) primary key,
    app text collate "C" not null,
    name text collate "C" not null,
    origin text collate "C" not null,
    version bigint not null default 1,
    workflow text,
    jobs jsonb not null,
    cron text collate "C",
    every interval,
    anchor timestamptz,
    timezone text collate "C" not null,
    starts_at timestamptz,
    ends_at timestamptz,
    jitter interval not null default '0',
    catch_up text collate "C" not null default 'none',
    catch_up_limit integer not null default 100,
    catch_up_window interval,
    overlap text collate "C" not null default 'allow',
    next_tick_at timestamptz,
    next_local timestamp,
    next_nominal timestamp,
    plan_after timestamptz,
    base_at timestamptz not null default clock_timestamp(),
    base_nominal timestamp,
    zone_data text collate "C",
    last_tick_at timestamptz,
    open_jobs bigint[] not null default '{}',
    problem text,
    problem_at timestamptz,
    paused_at timestamptz,
    paused_by text,
    removed_at timestamptz,
    removed_by text,
    pruned_until timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    created_by text not null default session_user,
    changed_at timestamptz not null default clock_timestamp(),
    changed_by text not null default session_user,
    constraint schedule_is_one_of_its_app unique (app, name),
    constraint schedule_app_is_a_name check (length(app) between 1 and 100),
    constraint schedule_name_is_a_name check (length(name) between 1 and 200),
    constraint schedule_origin_is_known check (origin in ('code', 'runtime')),
    constraint schedule_workflow_is_a_name check (length(workflow) between 1 and 200),
    constraint schedule_makes_jobs check (jsonb_typeof(jobs) = 'array' and (workflow is not null or jsonb_array_length(jobs) = 1)),
    constraint schedule_has_one_rhythm check (num_nonnulls(cron, every) = 1 and (anchor is null or every is not null)),
    constraint schedule_cron_is_short check (length(cron) between 1 and 1000),
    constraint schedule_every_is_whole_seconds check (every between interval '1 s' and interval '36525 days' and extract(epoch from every) = trunc(extract(epoch from every))),
    constraint schedule_timezone_is_a_name check (length(timezone) between 1 and 100),
    constraint schedule_starts_before_it_ends check (starts_at < ends_at),
    constraint schedule_times_are_finite check (
        isfinite(anchor) and isfinite(starts_at) and isfinite(ends_at) and isfinite(next_tick_at) and isfinite(plan_after) and isfinite(base_at)),
    constraint schedule_jitter_is_a_span check (jitter between interval '0' and interval '36525 days'),
    constraint schedule_catch_up_is_known check (catch_up in ('none', 'last', 'all')),
    constraint schedule_catch_up_limit_is_a_count check (catch_up_limit between 1 and 10000),
    constraint schedule_catch_up_window_is_a_span check (catch_up_window between interval '1 ms' and interval '36525 days'),
    constraint schedule_overlap_is_known check (overlap in ('allow', 'skip', 'queue', 'cancel')),
    constraint schedule_goes_on check (next_tick_at > base_at),
    constraint schedule_problem_has_a_time check ((problem is null) = (problem_at is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
create index schedule_due on schedule (next_tick_at, id) where next_tick_at is not null and paused_at is null and removed_at is null;
create index schedule_to_plan on schedule (id) where next_tick_at is null and plan_after is not null and problem is null and paused_at is null and removed_at is null;
comment on table schedule is 'Schedules: when which jobs are to be made. The leader fires what is stored in next_tick_at, and moves it on in the same transaction.';
comment on sequence schedule_id_seq is 'The numbers of schedules.';
comment on column schedule.id is 'Its number.';
comment on column schedule.app is 'The application that it belongs to: declarations of other applications never touch it.';
comment on column schedule.name is 'Its name, unique within the application.';
comment on column schedule.origin is 'code: an App declares it; runtime: it was made by a call, and no declaration touches it.';
comment on column schedule.version is 'Raised by each change of the definition: a leader that has read an older one moves nothing.';
comment on column schedule.workflow is 'The name of the workflow that each tick enqueues; null: each tick enqueues one job.';
comment on column schedule.jobs is 'What each tick enqueues: an array of jobs as enqueue_many takes them.';
comment on column schedule.cron is 'Its rhythm as a cron text, read in its time zone; or null, and every says it.';
comment on column schedule.every is 'Its rhythm as a span between ticks.';
comment on column schedule.anchor is 'One of the ticks, from which every counts; null: 1970-01-01.';
comment on column schedule.timezone is 'The IANA name of the zone in which the cron text is read and times are shown.';
comment on column schedule.starts_at is 'No tick before this time.';
comment on column schedule.ends_at is 'No tick after this time.';
comment on column schedule.jitter is 'A job begins up to so long after its tick, by chance.';
comment on column schedule.catch_up is 'Which of the ticks that were not made in time are made late: none (but one that is at most a minute late), last, all.';
comment on column schedule.catch_up_limit is 'How many at most with catch_up all.';
comment on column schedule.catch_up_window is 'And how late at most; null: however late.';
comment on column schedule.overlap is 'What a tick does while an earlier run has not ended: allow, skip, queue, cancel.';
comment on column schedule.next_tick_at is 'The tick that is made next: nothing else is ever made. Null: to be planned, or there is none.';
comment on column schedule.next_local is 'The same on the wall clock of its zone, by the zone data that planned it.';
comment on column schedule.next_nominal is 'The wall-clock time that it is for: another one than next_local where a gap of the clock has moved it.';
comment on column schedule.plan_after is 'Set where it has to be planned anew: the first tick after this time, and after the last one.';
comment on column schedule.base_at is 'next_tick_at is the first tick after this time: the last tick, or when it was planned.';
comment on column schedule.base_nominal is 'The wall-clock time that the cron text meant with the tick at base_at: it is not made twice, whatever becomes of the zone.';
comment on column schedule.zone_data is 'The version of the time zone database that planned it; null where it is not known.';
comment on column schedule.last_tick_at is 'The newest tick that the leader has dealt with.';
comment on column schedule.open_jobs is 'Jobs of earlier runs that had not ended at the last tick; kept where overlap is not allow.';
comment on column schedule.problem is 'Why it cannot be planned, or why its last tick could not be made; null: all is well.';
comment on column schedule.problem_at is 'Since when.';
comment on column schedule.paused_at is 'Since when it is paused; null: it is not. Deploys leave it so.';
comment on column schedule.paused_by is 'By which role.';
comment on column schedule.removed_at is 'When it was removed: it stays as a sign that it once was.';
comment on column schedule.removed_by is 'By which role.';
comment on column schedule.pruned_until is 'The newest tick whose history is gone: a backfill begins after it.';
comment on column schedule.created_at is 'When it was first made.';
comment on column schedule.created_by is 'By which role.';
comment on column schedule.changed_at is 'When its definition last changed.';
comment on column schedule.changed_by is 'By which role.';

create table schedule_tick (
    schedule_id bigint not null,
    tick_at timestamptz not null,
    fired_at timestamptz not null,
    outcome text collate "C" not null,
    job_id bigint,
    workflow_id bigint,
    reason text,
    missed integer,
    missed_until timestamptz,
    primary key (schedule_id, tick_at),
    constraint schedule_tick_outcome_is_known check (outcome in ('made', 'queued', 'skipped', 'missed', 'refused')),
    constraint schedule_tick_made_names_what check ((outcome in ('made', 'queued')) = (num_nonnulls(job_id, workflow_id) = 1)),
    constraint schedule_tick_says_why check (outcome = 'made' or reason is not null)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
create index schedule_tick_time on schedule_tick using brin (fired_at) with (autosummarize = on);
comment on table schedule_tick is 'What became of each tick. Its key lets a tick be made once, also by a backfill.';
comment on column schedule_tick.schedule_id is 'The schedule.';
comment on column schedule_tick.tick_at is 'The tick''s time.';
comment on column schedule_tick.fired_at is 'When it was dealt with: the difference is its lateness.';
comment on column schedule_tick.outcome is 'made; queued (made, and it waits for an earlier run); skipped (an earlier run had not ended); missed (too late); refused (its jobs could not be made).';
comment on column schedule_tick.job_id is 'The job that it made.';
comment on column schedule_tick.workflow_id is 'Or the workflow.';
comment on column schedule_tick.reason is 'Why, in words.';
comment on column schedule_tick.missed is 'How many ticks, this one and later ones, are missed; null where they were not counted.';
comment on column schedule_tick.missed_until is 'The last of them.';

create table schedule_deployment (
    app text collate "C" primary key,
    deployment integer,
    declared_at timestamptz not null default clock_timestamp(),
    declared_by text not null default session_user,
    constraint schedule_deployment_is_a_count check (deployment between 0 and 2147483646)
);
comment on table schedule_deployment is 'The highest deployment of each application that has declared its schedules: a lower one changes none.';
comment on column schedule_deployment.app is 'The application.';
comment on column schedule_deployment.deployment is 'The highest number of a deployment that has declared; null: none has said one.';
comment on column schedule_deployment.declared_at is 'When it first did.';
comment on column schedule_deployment.declared_by is 'The role that did.';

create type new_schedule as (
    name text,
    app text,
    workflow text,
    jobs jsonb,
    cron text,
    every_s double precision,
    anchor timestamptz,
    timezone text,
    starts_at timestamptz,
    ends_at timestamptz,
    jitter_s double precision,
    catch_up text,
    catch_up_limit integer,
    catch_up_window_s double precision,
    overlap text
);
comment on type new_schedule is 'A schedule as put_schedule() and declare_schedules() take it: the fields of their JSON objects.';

create type tick_to_make as (
    schedule_id bigint,
    tick_at timestamptz
);
comment on type tick_to_make is 'A tick that is to be made.';

create type tick_entry as (
    id bigint,
    version bigint,
    was timestamptz,
    ticks timestamptz[],
    missed_at timestamptz,
    missed_until timestamptz,
    missed_n integer,
    missed_reason text,
    next_at timestamptz,
    next_local timestamp,
    next_nominal timestamp,
    base_at timestamptz,
    base_nominal timestamp,
    zone_data text,
    problem text,
    refuse text
);
comment on type tick_entry is 'What tick_schedules() is to do with one schedule: the fields of its JSON objects.';
