-- Makes ticks of one schedule one after the other, oldest first. Answers {"made", "open": jobs that have not ended, "problem"}.
-- `reason_to_refuse`: they are only noted, with this. A tick that raises is noted as refused; locks and deadlocks are let through.
create or replace function make_ticks(the_schedule bigint, ticks timestamptz[], reason_to_refuse text, t timestamptz) returns jsonb
language plpgsql
set search_path from current
as $$
declare
    s schedule;
    tick timestamptz;
    made jsonb;
    n integer := 0;
    problem text;
begin
    select * into s from schedule x where x.id = the_schedule;
    foreach tick in array ticks loop
        if reason_to_refuse is not null then
            problem := reason_to_refuse;
        else
            begin
                made := make_tick(s, tick, t, null, s.overlap);
                s.open_jobs := array(select jsonb_array_elements(made -> 'open')::bigint);
                n := n + (made ->> 'outcome' in ('made', 'queued'))::integer;
                problem := null;
                continue;
            exception
                when lock_not_available or deadlock_detected or serialization_failure or insufficient_resources or system_error or sqlstate 'PGS10' then
                    raise;
                when others then
                    problem := left(sqlerrm, 2000);
            end;
        end if;
        insert into schedule_tick (schedule_id, tick_at, fired_at, outcome, reason) values (s.id, tick, t, 'refused', problem) on conflict do nothing;
    end loop;
    return jsonb_build_object('made', n, 'open', to_jsonb(s.open_jobs), 'problem', 'a tick could not be made: ' || problem);
end
$$;
comment on function make_ticks(bigint, timestamptz[], text, timestamptz) is 'Makes ticks of one schedule one after the other (internal).';

-- Makes one tick, unless it was made already (outcome "there"). Answers {"outcome", "job_id", "workflow_id", "reason", "open"}. The
-- caller has locked the schedule.
create or replace function make_tick(s schedule, tick timestamptz, t timestamptz, why text, how text) returns jsonb
language plpgsql
set search_path from current
as $$
declare
    most_queued constant integer := 100;
    open_jobs bigint[] := array(select u.id from unended(s.open_jobs) u (id));
    there jsonb;
    runs integer;
    given new_job[];
    edges jsonb;
    the_workflow bigint;
    ids bigint[];
    the_outcome text := 'made';
    the_reason text := why;
begin
    select jsonb_build_object('outcome', 'there', 'job_id', x.job_id, 'workflow_id', x.workflow_id, 'reason', x.reason, 'open', to_jsonb(s.open_jobs)) into there
    from schedule_tick x where x.schedule_id = s.id and x.tick_at = tick and x.outcome in ('made', 'queued');
    if there is not null then
        return there;
    end if;
    if tick <= s.pruned_until then  -- (its history is gone: it may have been made)
        return jsonb_build_object('outcome', 'there', 'open', to_jsonb(s.open_jobs));
    end if;
    if how <> 'allow' and open_jobs <> '{}' then
        runs := (select count(distinct coalesce(-j.workflow_id, j.id)) from job j where j.id = any (open_jobs));
        if how = 'skip' or runs >= most_queued then
            the_outcome := 'skipped';
            the_reason := concat_ws(': ', why, case when how = 'skip' then format('job %s of an earlier tick has not ended', open_jobs[1])
                else format('%s earlier runs have not ended, as many as may wait for each other', runs) end);
        else
            if how = 'cancel' then
                perform from cancel_many(open_jobs, format('the next tick of schedule %s came', shown(s.name)));
                -- (One that waited has ended with this; one that runs ends soon.)
                open_jobs := array(select u.id from unended(open_jobs) u (id));
            end if;
            if open_jobs <> '{}' then
                the_outcome := 'queued';
                the_reason := concat_ws(': ', why, format('it waits for job %s of an earlier tick', open_jobs[1])
                    || case when how = 'cancel' then ', which was told to stop' else '' end);
                edges := (select jsonb_agg(jsonb_build_object('job', o, 'on', 'done') order by o) from unnest(open_jobs) o);
            end if;
        end if;
    end if;
    if the_outcome <> 'skipped' then
        given := array(
            select jsonb_populate_record(null::new_job, j.one || jsonb_build_object('schedule_id', s.id, 'tick_at', tick)
                || case when jsonb_array_length(coalesce(j.one -> 'depends_on', '[]')) > 0 then '{}'
                    else jsonb_build_object('run_at', jittered(tick, s.jitter), 'depends_on', edges) end)
            from jsonb_array_elements(s.jobs) with ordinality j (one, n)
            order by j.n);
        if s.workflow is null then
            ids := make_jobs(given, null, true);
        else
            select m.workflow_id, m.job_ids into the_workflow, ids from make_workflow(s.workflow, given, null, true) m;
        end if;
        if the_workflow is null and not exists (select from job j where j.id = ids[1] and j.schedule_id = s.id and j.tick_at = tick) then
            the_outcome := 'skipped';
            the_reason := concat_ws(': ', why, format('job %s holds its unique key', ids[1]));
        end if;
        if the_outcome <> 'skipped' then  -- (who holds the key is somebody else's: not to be waited for, nor cancelled)
            open_jobs := open_jobs || ids;
        end if;
    end if;
    insert into schedule_tick as x (schedule_id, tick_at, fired_at, outcome, job_id, workflow_id, reason)
    values (s.id, tick, t, the_outcome, case when the_outcome in ('made', 'queued') and the_workflow is null then ids[1] end, the_workflow, the_reason)
    on conflict (schedule_id, tick_at) do update
    set fired_at = excluded.fired_at, outcome = excluded.outcome, job_id = excluded.job_id, workflow_id = excluded.workflow_id, reason = excluded.reason;
    return jsonb_build_object('outcome', the_outcome, 'job_id', case when the_workflow is null and the_outcome <> 'skipped' then ids[1] end,
        'workflow_id', the_workflow, 'reason', the_reason, 'open', to_jsonb(open_jobs));
end
$$;
comment on function make_tick(schedule, timestamptz, timestamptz, text, text) is 'Makes one tick (internal).';

-- Makes the jobs of a schedule now, by hand, whether it is paused or not; overlap holds. Its next tick is not touched.
-- Answers {"outcome", "job_id", "workflow_id", "reason"}. Errors: PGS16; PGS05, PGS06 as enqueue_many.
create or replace function run_schedule_now(name text, app text default null) returns jsonb
language plpgsql security definer
set search_path from current
as $$
declare
    found schedule := schedule_named(name, app);
    t constant timestamptz := clock_timestamp();
    made jsonb;
begin
    found.jitter := '0';
    made := make_tick(found, t, t, format('by hand, by %s', session_user), found.overlap);
    update schedule s set open_jobs = case when s.overlap = 'allow' then '{}' else array(select jsonb_array_elements(made -> 'open')::bigint) end where s.id = found.id;
    return made - 'open';
end
$$;
comment on function run_schedule_now(text, text) is 'Makes the jobs of a schedule now, by hand.';

-- Makes ticks of the past that were not made: each of `ticks` (times at which it ticks, as whoever knows cron texts has found them, in
-- order) at most once, however often it is called. Answers of each tick {"tick_at", "outcome", "job_id", "workflow_id", "reason"};
-- outcome "there" is one that was made already. They wait for earlier runs and for each other, unless overlap is allow.
-- Errors: PGS16 more ticks than `at_most`; one that is not in the past, or whose history is pruned: it may have been made.
create or replace function backfill_schedule(name text, ticks timestamptz[], app text default null, at_most integer default 100) returns setof jsonb
language plpgsql security definer
set search_path from current
as $$
declare
    found schedule := schedule_named(name, app);
    t constant timestamptz := clock_timestamp();
    tick timestamptz;
    made jsonb;
begin
    if ticks is null or array_ndims(ticks) > 1 or array_position(ticks, null) is not null or at_most is null or at_most not between 1 and 10000 then
        perform refuse('PGS16', format('backfill of schedule %s: ticks must be an array of times, and at_most a number from 1 to 10000', shown(name)));
    end if;
    if cardinality(ticks) > at_most then
        perform refuse('PGS16', format('backfill of schedule %s would make %s ticks, more than %s', shown(name), cardinality(ticks), at_most), 'Take a shorter range, or raise at_most (up to 10000).');
    end if;
    tick := (select x from unnest(ticks) x where x > t or x <= found.pruned_until or not isfinite(x) order by 1 limit 1);
    if tick is not null then
        perform refuse('PGS16', format('backfill of schedule %s: %s', shown(name), case when tick <= found.pruned_until
            then format('the history is pruned up to %s: whether the tick at %s was made is not known', found.pruned_until, tick)
            else format('the tick at %s is not in the past', tick) end));
    end if;
    if found.next_tick_at <= any (ticks) and found.paused_at is null then
        perform refuse('PGS16', format('backfill of schedule %s: the tick at %s is the leader''s to make', shown(name), found.next_tick_at), 'End the range before it.');
    end if;
    found.jitter := '0';
    for tick in select distinct x from unnest(ticks) x order by 1 loop
        made := make_tick(found, tick, t, format('backfilled by %s', session_user), case found.overlap when 'allow' then 'allow' else 'queue' end);
        found.open_jobs := array(select jsonb_array_elements(made -> 'open')::bigint);
        return next (made - 'open') || jsonb_build_object('tick_at', tick);
    end loop;
    update schedule s set open_jobs = case when s.overlap = 'allow' then '{}' else found.open_jobs end where s.id = found.id;
end
$$;
comment on function backfill_schedule(text, timestamptz[], text, integer) is 'Makes ticks of the past that were not made, each at most once.';
