-- Decides over jobs that wait for dependencies or for their subtasks (see resume_parked), a chunk at a time: whose rule is met becomes ready (or scheduled, where its
-- time lies ahead), whose rule can no longer be met ends without running. It reads at most `n` events of release_check, and
-- looks at about `n` jobs. Answers {"ready", "ended", "more", "kept"}: "more" says that it is worth while to call again at
-- once, "kept" how many events of this chunk could not be dealt with, because somebody holds a row at this moment.
-- {"busy": true} where somebody else is releasing. Anybody may call it, as often as he likes; it waits for nobody.
--
-- It is level-triggered: an event only says where to look, and stays until what it is about is settled. Each line is a statement
-- of its own, and sees what was committed before it:
--   1. the next events; the ended jobs are locked (for key share: who retries one waits)
--   2. the jobs that wait for an end (of one with many, some: another event stands for the rest); outcomes are written on the edges
--   3. which events are settled is found before, not after, the decision: what comes in between keeps them
--   4. every waiting job that an event is about is locked, not only those whose edge was just written
--   5. the decision, from the edges alone
-- Locks, all of them by a try and skipping what others hold: the releaser's lock; finished; dependency; waiting. And, given
-- back at once (settled_looks), running, ready and waiting.
-- Errors: PGS09 n below 1, not READ COMMITTED, or in a transaction that has written something: what nobody else can see yet
-- would pass for settled.
create or replace function release(n integer default 1000) returns jsonb
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_memoize = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    many constant integer := 8;
    slow constant interval := '5 ms';
    t timestamptz;
    first bigint;
    until bigint;
    is_new boolean := false;
    is_void boolean;
    is_last boolean;
    events bigint[];
    ended bigint[];
    looks bigint[];
    aboves bigint[];
    pair_events bigint[];
    pair_ended bigint[];
    pair_jobs bigint[];
    pair_edges tid[];
    pair_conditions text[];
    held bigint[];
    states text[];
    settled bigint[];
    candidates bigint[];
    locked bigint[];
    left_out bigint[];
    again bigint[];
    below bigint[];
    moved record;
    parked_ready integer := 0;
    parked_ended integer := 0;
    parked_more boolean := false;
    parked_kept integer := 0;
    is_full boolean := false;
begin
    if n is null or n < 1 then
        perform refuse('PGS09', format('release: n is %s, it must be at least 1', coalesce(n::text, 'null')), 'It is how many events one call may read.');
    end if;
    perform require_read_committed();
    if pg_current_xact_id_if_assigned() is not null then
        perform refuse('PGS09', 'release: this transaction has written something', 'Call it in a transaction of its own.');
    end if;
    if not pg_try_advisory_xact_lock(lock_class(), 2) then
        return '{"busy": true}';
    end if;
    first := (select last_value - 1 from release_at);
    until := (select last_value - 1 from release_until);
    if first > until or first = 0 then
        is_new := true;
        until := (select case when s.is_called then s.last_value else 0 end from release_check_id_seq s);
        select f.first_id, greatest(f.first_id, f.until_id + 1) > until + 1 into first, is_void from release_floor f where f.only_row;
        if is_void then
            -- (The numbers begin anew, as where a logical replica takes over, which has no sequences: it is a floor of others.)
            delete from release_floor;
            first := 1;
        end if;
        first := coalesce(first, 1);
    end if;

    t := clock_timestamp();
    select array_agg(e.id), array_agg(e.ended_id), array_agg(e.look_at_id), array_agg(e.above) into events, ended, looks, aboves
    from (select * from release_check e where e.id between first and until order by e.id limit n::bigint + 1) e;
    if is_new and clock_timestamp() - t > slow then
        perform raise_floor();
    end if;
    if events is null then
        if not is_new then  -- (a pass that was rolled back may have read on; a crash may have set the sequences back)
            perform setval('release_at', until + 2);
        end if;
        return jsonb_build_object('ready', 0, 'ended', 0, 'more', not is_new, 'kept', 0);
    end if;
    is_last := cardinality(events) <= n;
    looks := looks[:n];
    ended := ended[:n];
    aboves := aboves[:n];
    events := events[:n];
    select array_agg(f.job_id), array_agg(f.state) into held, states
    from (select f.job_id, f.state from finished f where f.job_id = any (ended) for key share skip locked) f;
    -- (The lateral subquery runs once for each event, in their order: the plan has no other choice. An edge that says how its
    -- job has ended need not be found again.)
    select array_agg(p.event), array_agg(p.ended_id), array_agg(p.job_id), array_agg(p.edge), array_agg(p.condition)
    into pair_events, pair_ended, pair_jobs, pair_edges, pair_conditions
    from (
        select e.event, e.ended_id, d.*
        from unnest(events, ended, aboves) e (event, ended_id, above)
            cross join lateral (
                select d.job_id, case when d.outcome is null then d.ctid end as edge, d.condition from dependency d
                where d.depends_on_id = e.ended_id and d.job_id > e.above
                order by d.job_id
                limit n
            ) d
        limit n
    ) p;
    if coalesce(cardinality(pair_jobs), 0) = n then
        -- The last event has perhaps more dependents, and what comes after it has to wait.
        is_full := true;
        looks := looks[:array_position(events, pair_events[n])];
        ended := ended[:array_position(events, pair_events[n])];
        events := events[:array_position(events, pair_events[n])];
    end if;

    again := write_outcomes(pair_edges, pair_jobs, pair_ended, held, states);
    -- (An end stays where somebody holds it, who may bring the job back; where there is none the job runs again, and will end again.)
    settled := array(
        select e.event
        from unnest(events, ended) e (event, ended_id)
        where e.ended_id is not null
            and ((e.ended_id in (select unnest(held))) is true or (select true from finished f where f.job_id = e.ended_id) is null));
    if array_remove(looks, null) <> '{}' then
        settled := settled || settled_looks(events, looks);
    end if;
    if is_full and pair_events[n] = any (settled) then
        insert into release_check (ended_id, above) values (pair_ended[n], pair_jobs[n]);
    end if;

    candidates := pair_jobs || array_remove(looks, null);
    locked := array(
        select w.job_id from waiting w
        where w.job_id = any (candidates) and w.reason || '' = 'dependencies'
        for update skip locked);
    -- Whom or whose edge somebody holds, is looked at again.
    if cardinality(locked) < cardinality(candidates) then
        left_out := array(select distinct c from unnest(candidates) c where (c in (select unnest(locked))) is not true);
        again := again || array(select w.job_id from waiting w where w.job_id = any (left_out) and w.reason || '' = 'dependencies');
    end if;
    -- (Only where an event that names it goes: else each call would add a look while somebody holds both ends of an edge.)
    if again <> '{}' then
        insert into release_check (look_at_id)
        select a from unnest(again) a
        intersect
        select x.job_id
        from (
            select e.event, e.job_id from unnest(events, looks) e (event, job_id)
            union all select p.event, p.job_id from unnest(pair_events, pair_jobs) p (event, job_id)
        ) x
        where (x.event in (select unnest(settled))) is true;
    end if;

    if array_remove(looks, null) <> '{}' then
        select p.became_ready, p.ended, p.more, p.kept into parked_ready, parked_ended, parked_more, parked_kept
        from resume_parked(array_remove(looks, null), n) p;
    end if;
    -- What needs all of its dependencies, and has got nothing but successes of many at once, is not decided over while it waits for
    -- another: each chunk would read all of its edges. (Whatever else came was an event of its own, which has it decided over.)
    left_out := case when cardinality(pair_jobs) >= many then array(
        select u.job_id
        from unnest(pair_jobs, pair_ended, pair_conditions) u (job_id, ended_id, condition)
        group by u.job_id
        having count(*) >= many and bool_and(
            u.condition = 'success'
            and (u.ended_id in (select h.id from unnest(held, states) h (id, state) where h.state = 'succeeded')) is true)
        except select unnest(looks)) end;
    if left_out <> '{}' then
        left_out := lack_an_end(left_out);
        locked := array(select l from unnest(locked) l where (l in (select unnest(left_out))) is not true);
    end if;
    select * into moved from carry_out(locked);
    -- What has ended without running has dependents, too: on down, level by level, as far as one call should go. (Their events
    -- are there, and stay for the next one: this only saves it a call for each level.)
    below := moved.ended_jobs;
    while below <> '{}' and moved.ended < n loop
        select array_agg(p.ended_id), array_agg(p.job_id), array_agg(p.edge) into pair_ended, pair_jobs, pair_edges
        from (
            select b.id as ended_id, d.job_id, d.edge
            from unnest(below) b (id)
                cross join lateral (
                    select d.job_id, d.ctid as edge from dependency d where d.depends_on_id = b.id order by d.job_id limit n
                ) d
            limit n
        ) p;
        locked := array(
            select w.job_id from waiting w
            where w.job_id = any (pair_jobs) and w.reason || '' = 'dependencies'
            for update skip locked);
        select array_agg(f.job_id), array_agg(f.state) into held, states from finished f where f.job_id = any (below);
        perform write_outcomes(array_agg(u.edge), array_agg(u.job_id), array_agg(u.ended_id), held, states)
        from unnest(pair_edges, pair_jobs, pair_ended) u (edge, job_id, ended_id) where (u.job_id in (select unnest(locked))) is true;
        select moved.became_ready + c.became_ready, moved.ended + c.ended, c.ended_jobs into moved.became_ready, moved.ended, below from carry_out(locked) c;
    end loop;
    delete from release_check where id = any (settled);
    perform setval('release_until', until + 1);
    perform setval('release_at', case when is_last and not is_full then until else events[cardinality(events)] end + 2);
    return jsonb_build_object('ready', moved.became_ready + parked_ready, 'ended', moved.ended + parked_ended,
        'more', is_full or parked_more or not is_last or moved.ended + parked_ended > 0,
        'kept', cardinality(events) - cardinality(settled) + parked_kept);
end
$$;
comment on function release(integer) is 'Decides over jobs that wait for dependencies: they become ready, or end without running.';

-- Writes how jobs ended on edges that do not say so yet, as far as nobody holds them: that are those at `edges` (null: no edge), from
-- `jobs` to `ended`. (An edge that was moved meanwhile is not met by its place, which may have become that of another.) `held`,
-- `states`: ended jobs, whose rows in finished the caller holds. Answers the jobs with edges that still say nothing.
create or replace function write_outcomes(edges tid[], jobs bigint[], ended bigint[], held bigint[], states text[]) returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    a_state text;
    places tid[];
    froms bigint[];
    tos bigint[];
    written bigint;
    silent bigint[] := '{}';
begin
    for a_state in select distinct s from unnest(states) s loop
        select array_agg(u.edge), array_agg(u.job_id), array_agg(u.ended_id) into places, froms, tos
        from unnest(edges, jobs, ended) u (edge, job_id, ended_id)
        where u.edge is not null and (u.ended_id in (select h.id from unnest(held, states) h (id, state) where h.state = a_state)) is true;
        continue when places is null;
        -- (Locked first, by a try: who cancels another job may hold an edge whose job he does not, and waits for that one next.)
        update dependency d
        set outcome = a_state
        where d.ctid = any (array(
            select e.ctid
            from unnest(places, froms, tos) u (edge, job_id, ended_id)
                cross join lateral (
                    select d.ctid from dependency d
                    where d.ctid = u.edge and d.job_id = u.job_id and d.depends_on_id = u.ended_id and d.outcome is null
                    for update skip locked
                ) e));
        get diagnostics written = row_count;
        if written < cardinality(places) then
            -- (Of rows: by equality it may be planned by the index of job_id alone, and read all edges of a job for each of them.)
            silent := silent || array(
                select u.job_id
                from unnest(froms, tos) u (job_id, ended_id)
                    cross join lateral (
                        select from dependency d
                        where (d.depends_on_id, d.job_id) >= (u.ended_id, u.job_id) and (d.depends_on_id, d.job_id) <= (u.ended_id, u.job_id)
                            and d.outcome is null
                        offset 0
                    ) d);
        end if;
    end loop;
    return silent;
end
$$;
comment on function write_outcomes(tid[], bigint[], bigint[], bigint[], text[]) is 'Writes how jobs ended on edges that do not say so yet (internal).';

-- ("(... in ...) is true", here and elsewhere: by a hash, made once. With "= any" each would be compared with all, and a plain "in"
-- is a join.)
-- Which of these events of the kind "look at this job" are settled; outcomes that nobody had noticed are written. One is, when
-- its job no longer waits for dependencies, or when each edge either has its outcome or leads to a job that has not ended and
-- that nobody is ending at this moment: whoever ends that later sees the edge. That is known by its row, which is locked and
-- given back at once (a finish that meets the lock answers busy). What is neither, stays for the next pass.
create or replace function settled_looks(events bigint[], looks bigint[]) returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    over bigint[];
    jobs bigint[];
    depends_on bigint[];
    edges tid[];
    held bigint[];
    states text[];
    alive bigint[];
    stopped bigint[];
    still bigint[];
begin
    over := array(
        select e.event from unnest(events, looks) e (event, job_id)
        where e.job_id is not null and (select true from waiting w where w.job_id = e.job_id and w.reason || '' = 'dependencies') is null);
    select array_agg(u.ctid), array_agg(u.job_id), array_agg(u.depends_on_id) into edges, jobs, depends_on
    from (
        select d.ctid, d.job_id, d.depends_on_id
        from (select distinct l from unnest(looks) l where l is not null) l (job_id)
            cross join lateral (
                select d.ctid, d.job_id, d.depends_on_id from dependency d where d.job_id = l.job_id and d.outcome is null offset 0
            ) d
    ) u;
    select array_agg(f.job_id), array_agg(f.state) into held, states
    from (select f.job_id, f.state from finished f where f.job_id = any (depends_on) for key share skip locked) f;
    perform write_outcomes(edges, jobs, depends_on, held, states);
    begin
        alive := array(select r.job_id from running r where r.job_id = any (depends_on) for share skip locked);
        alive := alive
            || array(select r.job_id from unnest(depends_on) u (id) join ready r on r.job_id = u.id and r.queue = (select j.queue from job j where j.id = u.id) for key share of r skip locked)
            || array(select w.job_id from waiting w where w.job_id = any (depends_on) for key share skip locked);
        stopped := array(
            select r.job_id from running r where r.job_id = any (alive) and r.stop_reason = 'cancel'
            union all
            select p.job_id from parked p where p.job_id = any (alive) and p.outcome = 'cancelled');
        raise exception using errcode = 'PGDRY', message = 'the locks are given back';
    exception when sqlstate 'PGDRY' then
        null;
    end;
    if stopped <> '{}' then
        -- It can end as cancelled only. Looked at again, under a lock that is kept: it may have ended and run again meanwhile.
        still := array(select r.job_id from running r where r.job_id = any (stopped) and r.stop_reason = 'cancel' for share skip locked)
            || array(
                select w.job_id from waiting w
                where w.job_id = any (stopped) and w.reason || '' = 'subtasks' and (select p.outcome from parked p where p.job_id = w.job_id) = 'cancelled'
                for key share skip locked);
        alive := array(select a from unnest(alive) a where a <> all (stopped) or a = any (still));  -- (what is held now, is in between)
        update dependency d
        set outcome = 'cancelled'
        where d.ctid = any (array(
            select e.ctid
            from unnest(jobs, depends_on) u (job_id, id)
                cross join lateral (
                    select d.ctid from dependency d
                    where d.job_id = u.job_id and d.depends_on_id = u.id and d.outcome is null and d.condition <> 'done'
                    for update skip locked
                ) e
            where u.id = any (still)));
    end if;
    -- (A scalar subquery, by the index: NOT EXISTS may be planned as a hash of the whole table.)
    return over || array(
        select e.event from unnest(events, looks) e (event, job_id)
        where e.job_id is not null and e.event <> all (over) and (
            select true from dependency d
            where d.job_id = e.job_id and d.outcome is null and (d.depends_on_id in (select unnest(alive))) is not true limit 1) is null);
end
$$;
comment on function settled_looks(bigint[], bigint[]) is 'Which events of the kind "look at this job" are settled (internal).';
