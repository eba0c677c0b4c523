-- Schedules, for people. What a worker knows is told by those that live at this moment.
create or replace view schedules as
with live as materialized (
    select w.tasks from worker w
    where w.stopped_at is null and w.rescued_at is null and w.id in (
        select k.classid::bigint << 32 | k.objid::bigint from pg_locks k
        where k.locktype = 'advisory' and k.objsubid = 1 and k.granted
            and k.database = (select d.oid from pg_database d where d.datname = current_database()))
), known as materialized (
    select distinct k.task from live l cross join lateral unnest(l.tasks) k (task)
)
select
    s.id,
    s.app,
    s.name,
    coalesce(s.cron, 'every ' || s.every::text) as rhythm,
    s.cron,
    extract(epoch from s.every)::double precision as every_s,
    s.anchor,
    s.timezone,
    s.next_tick_at,
    s.next_local,
    s.last_tick_at,
    l.outcome as last_outcome,
    l.fired_at - l.tick_at as lateness,
    case when s.next_tick_at < clock_timestamp() and s.paused_at is null then clock_timestamp() - s.next_tick_at end as overdue_for,
    s.paused_at is not null as is_paused,
    concat_ws('; ', s.problem, (
        select format('no live worker knows the task %s', string_agg(distinct format('"%s"', left(t.task, 60)), ', '))
        from (select j.one ->> 'task' as task from jsonb_array_elements(s.jobs) j (one)) t
        where t.task not in (select k.task from known k) and not exists (select from live l where l.tasks is null)
        having count(*) > 0
    )) as problem,
    coalesce('workflow ' || s.workflow, s.jobs -> 0 ->> 'task') as makes,
    s.origin,
    s.version,
    s.overlap,
    s.catch_up,
    case when s.catch_up = 'all' then s.catch_up_limit end as catch_up_limit,
    s.catch_up_window,
    s.jitter,
    s.starts_at,
    s.ends_at,
    s.zone_data,
    (
        select jsonb_agg(j.one || case when j.one ? 'args' then jsonb_build_object('args', masked(j.one -> 'args', array(select jsonb_array_elements_text(case jsonb_typeof(j.one -> 'secret') when 'array' then j.one -> 'secret' end)))) else '{}' end order by j.n)
        from jsonb_array_elements(s.jobs) with ordinality j (one, n)
    ) as jobs,
    s.paused_at,
    s.paused_by,
    s.created_at,
    s.created_by,
    s.changed_at,
    s.changed_by
from schedule s
    left join lateral (
        select x.* from schedule_tick x where x.schedule_id = s.id and x.tick_at <= s.last_tick_at order by x.tick_at desc limit 1
    ) l on true
where s.removed_at is null;
comment on view schedules is 'Every schedule: when it ticks next and ticked last, and what is wrong with it.';
comment on column schedules.id is 'Its number.';
comment on column schedules.app is 'The application that it belongs to.';
comment on column schedules.name is 'Its name.';
comment on column schedules.rhythm is 'Its cron text, or the span between its ticks.';
comment on column schedules.cron is 'Its cron text, or null.';
comment on column schedules.every_s is 'Or the span between its ticks in seconds.';
comment on column schedules.anchor is 'One of the ticks that the span counts from.';
comment on column schedules.timezone is 'The zone in which it is read.';
comment on column schedules.next_tick_at is 'When it ticks next; null: never, not planned yet, or there is a problem.';
comment on column schedules.next_local is 'The same on the wall clock of its zone.';
comment on column schedules.last_tick_at is 'The newest tick that was dealt with.';
comment on column schedules.last_outcome is 'What became of it: made, queued, skipped, missed or refused.';
comment on column schedules.lateness is 'How much later than its time it was dealt with.';
comment on column schedules.overdue_for is 'How long its next tick has been due without being dealt with: nobody leads, or the leader is behind.';
comment on column schedules.is_paused is 'Whether it is paused.';
comment on column schedules.problem is 'What is wrong with it: it cannot be planned, its last tick could not be made, no live worker knows its task. Empty: nothing.';
comment on column schedules.makes is 'The task, or the workflow, that a tick enqueues.';
comment on column schedules.origin is 'code: an App declares it; runtime: it was made by a call.';
comment on column schedules.version is 'How often its definition has changed, from 1.';
comment on column schedules.overlap is 'What a tick does while an earlier run has not ended.';
comment on column schedules.catch_up is 'Which ticks are made late.';
comment on column schedules.catch_up_limit is 'How many at most, with catch_up all.';
comment on column schedules.catch_up_window is 'And how late at most.';
comment on column schedules.jitter is 'A job begins up to so long after its tick.';
comment on column schedules.starts_at is 'No tick before.';
comment on column schedules.ends_at is 'No tick after.';
comment on column schedules.zone_data is 'The version of the time zone database that planned its next tick.';
comment on column schedules.jobs is 'What a tick enqueues, secret arguments masked.';
comment on column schedules.paused_at is 'Since when it is paused.';
comment on column schedules.paused_by is 'By which role.';
comment on column schedules.created_at is 'When it was first made.';
comment on column schedules.created_by is 'By which role.';
comment on column schedules.changed_at is 'When its definition last changed.';
comment on column schedules.changed_by is 'By which role.';

-- What became of ticks, for people.
create or replace view schedule_ticks as
select s.app, s.name, x.schedule_id, x.tick_at, x.fired_at, x.fired_at - x.tick_at as lateness, x.outcome, x.job_id, x.workflow_id, x.reason, x.missed, x.missed_until
from schedule_tick x left join schedule s on s.id = x.schedule_id;
comment on view schedule_ticks is 'What became of each tick.';
comment on column schedule_ticks.app is 'The schedule''s application.';
comment on column schedule_ticks.name is 'The schedule''s name.';
comment on column schedule_ticks.schedule_id is 'The schedule''s number.';
comment on column schedule_ticks.tick_at is 'The tick''s time.';
comment on column schedule_ticks.fired_at is 'When it was dealt with.';
comment on column schedule_ticks.lateness is 'The difference.';
comment on column schedule_ticks.outcome is 'made; queued (made, and it waits for an earlier run); skipped; missed; refused.';
comment on column schedule_ticks.job_id is 'The job that it made.';
comment on column schedule_ticks.workflow_id is 'Or the workflow.';
comment on column schedule_ticks.reason is 'Why, in words.';
comment on column schedule_ticks.missed is 'How many ticks, this one and later ones, are missed; null where they were not counted.';
comment on column schedule_ticks.missed_until is 'The last of them.';
