-- How a claim ends: the one home of that rule. finish(), reconcile() and rescue() all come here.
--
-- `ended`: an array of {job_id, claim_id, outcome, ...}; outcome is one of
--   succeeded   {result, lenient?}   (failed, where the result is larger than the setting max_result_bytes)
--   failed      {reason?, error_type?, error?, traceback?}   ends the job whatever its retry budget
--   retry       {error_type?, error?, traceback?, policy?, after_s?}   waits, as next_attempt() says; failed, where it says so
--   snooze      {after_s, reason?}   waits, and the attempt is not charged
--   cancelled   {reason?}
--   give_back   {begun?}   back to ready at once, and the attempt is not charged
--   conflict    {error_type?, error?, traceback?}   its transaction met another's (40001, 40P01): it runs again after a moment
--               and the attempt is not charged; after max_conflicts of them in one attempt this is a retry as above
--   broken      {reason, last_session}   the connection of its transaction ended: back to ready at once, the attempt is not
--               charged; where the session that says so is older than the break (its number is at most last_session), or it
--               has happened max_conflicts times in this attempt (a handler may end the whole server), the handler may have
--               caused it, which is charged as its worker's death would be
--   lost        {reason, begun, charged}   its worker died (only rescue() may say so)
-- A job that has made subtasks waits for them first, whatever the outcome; where one of them failed, its success is a failure
-- (unless it is lenient).
-- `begun` says whether the handler had begun (else: where started_at is set): then expires_at is over.
-- A running job that was told to cancel ends as cancelled whatever is reported.
-- `in_transaction`: the caller is that claim's own transaction (see finish_transaction).
--
-- Answers a verdict for every claim that this worker held: accepted; cancelled (ended, but as cancelled);
-- rolled_back (nothing changed: the success of a transactional task counts only through its own transaction).
-- For any other claim it answers nothing.
-- Locks: its own running rows, skipping those that somebody else holds at this moment.
-- (Its plans are pinned by the settings of the functions that call it.)
create or replace function settle(the_worker bigint, ended jsonb, rescuing boolean default false, in_transaction boolean default false)
returns table (job_id bigint, claim_id bigint, verdict text)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
declare
    t timestamptz := clock_timestamp();
    my_session constant integer := nullif(split_part(current_setting('pgsched.session', true), ':', 3), '');
    plain_jobs bigint[];
    plain_claims bigint[];
    n integer;
begin
    -- The plain case first, by a statement with no more in it than that needs: successes that nothing stands in the way of.
    with given as materialized (
        select job_id, claim_id, result
        from jsonb_to_recordset(ended) g (job_id bigint, claim_id bigint, outcome text, result jsonb)
        where outcome = 'succeeded' and (result is null
            or pg_column_size(result) <= (select (value #>> '{}')::bigint from setting where name = 'max_result_bytes'))
    ),
    mine as materialized (
        select r.*, g.result
        from given g
            cross join lateral (
                select r.job_id, r.claim_id, r.queue, r.attempt, r.worker_id, r.started_at from running r
                where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = the_worker
                    and r.stop_reason is distinct from 'cancel' and r.subtasks = 0 and (in_transaction or not r.transactional)
                for update skip locked
            ) r
    ),
    gone as (
        delete from running
        where job_id = any (array(select job_id from mine))
        returning 1
    ),
    finally as (
        insert into finished (job_id, queue, state, claim_id, attempt, worker_id, started_at, finished_at, result)
        select job_id, queue, 'succeeded', claim_id, attempt, worker_id, started_at, t, result from mine
        on conflict (job_id) do nothing
    ),
    freed as (
        delete from job_key where job_id = any (array(select job_id from mine))
    )
    select array_agg(job_id), array_agg(claim_id), (select count(*) from gone) into plain_jobs, plain_claims, n from mine;
    if n < cardinality(plain_claims) then
        perform refuse('PGS09', format('finish: a claim stands twice in one call (one of %s)', plain_claims), 'Send one outcome a claim.');
    end if;
    return query select u.job_id, u.claim_id, 'accepted' from unnest(plain_jobs, plain_claims) u (job_id, claim_id);
    if n = jsonb_array_length(ended) then
        return;
    end if;
    return query
    with given as materialized (
        select *,
            -- (The setting is read where there is a result, and then once.)
            case when outcome = 'succeeded' and result is not null and
                pg_column_size(result) > (select (value #>> '{}')::bigint from setting where name = 'max_result_bytes')
            then format('its result takes %s bytes, the limit is %s: store it elsewhere and return its name, or raise the setting max_result_bytes',
                pg_column_size(result), (select value #>> '{}' from setting where name = 'max_result_bytes')) end as excess
        from jsonb_to_recordset(ended) g (job_id bigint, claim_id bigint, outcome text, result jsonb, reason text,
            error_type text, error text, traceback text, after_s double precision, policy jsonb, begun boolean, charged boolean,
            last_session integer, lenient boolean)
    ),
    mine as materialized (
        select g.*, r.queue, r.subtasks > 0 or (select true from job j where j.parent_id = r.job_id and j.parent_claim_id = r.claim_id limit 1) is not null as parks, r.attempt, r.lost_attempts, r.worker_id, r.started_at, r.expires_at, r.stop_note, d.died,
            coalesce(g.begun, r.started_at is not null) as had_begun,
            next.run_at as next_at, next.why as no_next,
            case
                when r.stop_reason = 'cancel' then 'cancelled'
                when g.outcome = 'conflict' and (
                        select count(*) from attempt_log a where a.job_id = g.job_id and a.claim_id > since_own_end(g.job_id) and a.state = 'conflict'
                    ) < (select (value #>> '{}')::integer from setting where name = 'max_conflicts') then 'conflict'
                when g.outcome in ('retry', 'conflict') then case when next.run_at is null then 'failed' else 'retry' end
                when g.outcome = 'lost' and rescuing or g.outcome = 'broken' then
                    case
                        when d.died and r.lost_attempts + 1 >= (select (value #>> '{}')::integer from setting where name = 'max_lost_attempts') then 'failed'
                        else 'give_back' end
                when g.excess is not null and in_transaction then refuse('PGS15', format('job %s: %s', g.job_id, g.excess))
                when g.excess is not null then 'failed'
                when g.outcome in ('succeeded', 'failed', 'snooze', 'cancelled', 'give_back') then g.outcome
                else refuse('PGS09', format('finish: outcome "%s" of claim %s is not known', g.outcome, g.claim_id),
                    'It is one of succeeded, failed, retry, snooze, cancelled, give_back, conflict, broken.')
            end as fate,
            case
                when r.transactional and g.outcome = 'succeeded' and not in_transaction then 'rolled_back'
                when r.stop_reason = 'cancel' then 'cancelled'
                else 'accepted'
            end as verdict
        from given g
            -- (A subquery with a lock keeps its place: the planner cannot turn the join round and walk all of running.
            -- And "+ 0" serves no index: by worker_id it would walk all that this worker runs, for each.)
            cross join lateral (
                select * from running r
                where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = the_worker
                for update skip locked
            ) r
            cross join lateral (
                select case g.outcome when 'lost' then coalesce(g.charged, false) when 'broken' then coalesce(my_session <= g.last_session, false) or (
                        select count(*) from attempt_log a where a.job_id = g.job_id and a.claim_id > since_own_end(g.job_id) and a.state = 'broken'
                    ) >= (select (value #>> '{}')::integer from setting where name = 'max_conflicts') else false end as died
            ) d
            -- (In a subquery that keeps its place: so it is called for these alone, and once.)
            left join lateral (
                select n.run_at, n.why from next_attempt(g.job_id, r.attempt, g.policy, g.after_s, t) n
                where g.outcome in ('retry', 'conflict')
                offset 0
            ) next on true
    ),
    settled as materialized (
        select m.*,
            case fate
                when 'succeeded' then null
                when 'cancelled' then coalesce(stop_note, reason, 'cancelled while running')
                else coalesce(excess, reason, nullif(concat_ws(': ', error_type, nullif(left(error, 500), '')), ''), 'failed')
                    || coalesce(' (' || no_next || ')', '')
            end as why,
            case fate
                when 'retry' then next_at
                when 'snooze' then t + seconds(after_s)
                when 'conflict' then t + seconds(random() * 0.1)  -- (so that the two do not meet again)
            end as run_at,
            case when fate in ('snooze', 'conflict', 'give_back') then attempt - 1 else attempt end as charged_attempts,
            -- (A handler that has come to its own end: whatever its former workers died of, it is no suspect any more.)
            case fate when 'give_back' then lost_attempts + died::integer else 0 end as charged_losses
        from mine m where verdict <> 'rolled_back'
    ),
    gone as (
        delete from running
        where job_id = any (array(select job_id from settled))
        returning 1
    ),
    finally as (
        insert into finished (job_id, queue, state, reason, claim_id, attempt, worker_id, started_at, finished_at, result)
        select job_id, queue, fate, why, claim_id, attempt, worker_id, started_at, t, case fate when 'succeeded' then result end
        from settled where not parks and fate in ('succeeded', 'failed', 'cancelled')
        on conflict (job_id) do nothing
    ),
    freed as (
        delete from job_key
        where job_id = any (array(select job_id from settled where not parks and fate in ('succeeded', 'failed', 'cancelled')))
    ),
    later as (
        insert into waiting (job_id, queue, reason, run_at, expires_at, attempt, lost_attempts)
        select job_id, queue, case when parks then 'subtasks' when fate = 'snooze' then 'scheduled' else 'retry' end,
            case when not parks then run_at end, null, charged_attempts, charged_losses
        from settled where parks or fate in ('retry', 'snooze', 'conflict')
        on conflict (job_id) do nothing
    ),
    -- (One that has made subtasks waits for them first: resume_parked() goes on with it.)
    pending as (
        insert into parked (job_id, claim_id, outcome, lenient, reason, result, run_at, worker_id, started_at, ended_at)
        select job_id, claim_id, fate, coalesce(lenient, false), why, case fate when 'succeeded' then result end, run_at, worker_id, started_at, t
        from settled where parks
        on conflict (job_id) do update
        set (claim_id, outcome, lenient, reason, result, run_at, worker_id, started_at, ended_at, above) = (
            excluded.claim_id, excluded.outcome, excluded.lenient, excluded.reason, excluded.result, excluded.run_at, excluded.worker_id,
            excluded.started_at, excluded.ended_at, 0)
    ),
    back as (
        insert into ready (queue, priority, job_id, expires_at, attempt, lost_attempts)
        select s.queue, coalesce((select j.priority from job j where j.id = s.job_id), 5), s.job_id,
            case when not s.had_begun then s.expires_at end, s.charged_attempts, s.charged_losses
        from settled s where s.fate = 'give_back' and not s.parks
        on conflict (queue, job_id) do nothing
    ),
    logged as (
        insert into attempt_log (job_id, claim_id, attempt, state, error_type, error, traceback, worker_id, started_at, ended_at)
        select job_id, claim_id, attempt,
            case
                when outcome in ('lost', 'broken') then outcome
                else case fate when 'retry' then 'retried' when 'snooze' then 'snoozed' when 'give_back' then 'given_back' else fate end
            end,
            error_type, coalesce(error, excess, reason), traceback, worker_id, started_at, t
        from settled where fate <> 'succeeded'
        on conflict (job_id, claim_id) do nothing
    )
    select job_id, claim_id,
        case
            when (select count(*) from gone) <> (select count(*) from settled) then
                refuse('PGS09', format('finish: a claim stands twice in one call (one of %s)', (select array_agg(claim_id) from mine)),
                    'Send one outcome a claim.')
            else verdict
        end
    from mine;
end
$$;
comment on function settle(bigint, jsonb, boolean, boolean) is 'How a claim ends: the one home of that rule (internal).';

-- The last claim of a job that its handler has brought to an end of its own, 0 where there is none: what other things befell it before
-- does not count any more.
create or replace function since_own_end(the_job bigint) returns bigint
language sql stable
return coalesce((
    select a.claim_id from attempt_log a
    where a.job_id = the_job and a.state in ('failed', 'cancelled', 'rerun', 'retried', 'snoozed')
    order by a.job_id desc, a.claim_id desc
    limit 1), 0);
comment on function since_own_end(bigint) is 'The last claim of a job that its handler has brought to an end of its own (internal).';

-- Ends claims of the calling worker; with `want`, claims in the same transaction (see claim).
-- `results`: see settle. Answers one row with a verdict for each result, then the rows of the claim (verdict null).
--   accepted     ended as reported
--   cancelled    ended, but as cancelled: it had been told to stop
--   already      an earlier call has ended this claim (a resend after a lost answer)
--   busy         somebody holds the row at this moment: nothing changed, send it again
--   rolled_back  nothing changed: see settle
--   stale        this claim is not (or no longer) this worker's: nothing changed
-- With want {"only_new": true} it claims only where what has ended here has made something ready.
-- What waited for the one success of this call and for nothing else comes along without a position (see hand_over).
-- A row without a verdict and a job is a note, as in claim: extra {"release": true} says that others wait for what has ended
-- here, so that it is worth while to call release() at once.
-- So it is idempotent, and it raises for no job of a batch. Durable whatever the role's default.
-- Errors: PGS02, PGS03, PGS09 (an unknown outcome, a claim twice in one call); a value that cannot be stored (class 22).
create or replace function finish(worker_id bigint, results jsonb, want jsonb default null)
returns table (verdict text, lane integer, "position" bigint, job_id bigint, claim_id bigint, attempt integer, task text, args jsonb, "timeout" interval, extra jsonb)
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
#variable_conflict use_column
declare
    me record;
    jobs bigint[];
    claims bigint[];
    verdicts text[];
    woken text[];
    taken integer;
    claimed integer;
    handed bigint;
    room integer;
begin
    select * into me from session_of(worker_id);
    perform force_durable();
    if jsonb_typeof(results) is distinct from 'array' then
        perform refuse('PGS09', 'finish: results must be an array of outcomes',
            'For example [{"job_id": 1, "claim_id": 17592186044417, "outcome": "succeeded"}].');
    end if;
    if want <> 'null' then
        perform check_want(want);
        room := coalesce(nullif(want -> 'max_jobs', 'null')::integer, 1);
        perform set_config('pgsched.woken', '{}', true);
        -- (See tell_dependents: what it lets run may be claimed there and then.)
        perform set_config('pgsched.taker', case when (clock_timestamp() < me.not_before) is not true then jsonb_build_object(
            'worker_id', $1, 'session_no', me.session_no, 'epoch', me.epoch, 'lanes', want -> 'lanes',
            'room', least(room, coalesce(nullif(want -> 'free_slots', 'null')::integer, room)))::text else '' end, true);
    end if;
    select array_agg(s.job_id), array_agg(s.claim_id), array_agg(s.verdict) into jobs, claims, verdicts
    from settle($1, results) s;
    return query
    select u.verdict, null::integer, null::bigint, u.job_id, u.claim_id, null::integer, null::text, null::jsonb, null::interval, null::jsonb
    from unnest(verdicts, jobs, claims) u (verdict, job_id, claim_id);
    if jsonb_array_length(results) > coalesce(cardinality(claims), 0) then
        -- A later statement than the one that skipped them: whoever held a row then may have committed by now.
        return query
        -- (Scalar subqueries, each by its index: an EXISTS here may be planned as a hash of the whole table.)
        select
            coalesce(
                -- Who was given up (rescued, or given back by reconcile) did not end it himself.
                (
                    select case
                        when a.worker_id <> $1 or a.state = 'lost' or (a.state = 'given_back' and g.outcome <> 'give_back') then 'stale'
                        else 'already' end
                    from attempt_log a where a.job_id = g.job_id and a.claim_id = g.claim_id
                ),
                (select 'already' from finished f where f.job_id = g.job_id and f.claim_id = g.claim_id and f.worker_id = $1),
                (select 'already' from parked p where p.job_id = g.job_id and p.claim_id = g.claim_id and p.worker_id = $1),
                (select 'busy' from running r where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = $1),
                'stale'),
            null::integer, null::bigint, g.job_id, g.claim_id, null::integer, null::text, null::jsonb, null::interval, null::jsonb
        from jsonb_to_recordset(results) g (job_id bigint, claim_id bigint, outcome text)
        where not exists (select from unnest(jobs, claims) u (job_id, claim_id) where u.job_id = g.job_id and u.claim_id = g.claim_id);
    end if;
    if current_setting('pgsched.events', true) = 'yes' then
        return query select null::text, null::integer, null::bigint, null::bigint, null::bigint, null::integer, null::text, null::jsonb,
            null::interval, jsonb_build_object('release', true);
    end if;
    if want <> 'null' then
        woken := current_setting('pgsched.woken')::text[];
        handed := nullif(current_setting('pgsched.taker', true), '')::jsonb -> 'job';
        perform set_config('pgsched.woken', '', true), set_config('pgsched.taker', '', true);
        taken := (handed is not null)::integer;
        if handed is not null then
            return query
            select null::text,
                (
                    select l.n::integer - 1 from jsonb_array_elements(want -> 'lanes') with ordinality l (lane, n)
                    where l.lane ->> 'queue' = j.queue and (l.lane -> 'priority')::smallint = j.priority
                    limit 1),
                null::bigint, r.job_id, r.claim_id, r.attempt, j.task, j.args, j.timeout, beside(j.id, 0, j.takes_results, j.tick_at)
            from running r join job j on j.id = r.job_id
            where r.job_id = handed;
        end if;
        if taken < room and (woken <> '{}' or want -> 'only_new' is distinct from 'true') then
            return query
            select null::text, c.lane, c."position", c.job_id, c.claim_id, c.attempt, c.task, c.args, c.timeout, c.extra
            from claim_as($1, me.session_no, me.epoch, me.not_before, me.tasks, case when taken = 0 then want else want || jsonb_build_object(
                'max_jobs', room - taken, 'free_slots', greatest(0, coalesce(nullif(want -> 'free_slots', 'null')::integer, room) - taken)) end) c;
            get diagnostics claimed = row_count;
            taken := taken + claimed;
        end if;
        if woken <> '{}' then
            -- (Where it has taken less than it may, nothing is left in its lanes that it could see. Others look when they poll.)
            perform wake(array(
                select q from unnest(woken) q
                where taken >= room
                    or not exists (select from jsonb_array_elements(want -> 'lanes') l where l ->> 'queue' = q)));
        end if;
    end if;
end
$$;
comment on function finish(bigint, jsonb, jsonb) is 'Ends claims of the calling worker, a verdict each, and with want claims in the same transaction.';

-- Gives back, uncharged, what the worker's ended work sessions claimed and the worker does not know: the answer of such
-- a claim was lost with its session. `ended_session_nos`: sessions that the worker has closed, never one that it uses.
-- `claim_ids`: every claim that the worker knows. Answers how many went back. A claim that commits after this call is
-- found by the next one, so the worker repeats it.
-- Errors: PGS02, PGS03.
create or replace function reconcile(worker_id bigint, ended_session_nos integer[], claim_ids bigint[]) returns integer
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
#variable_conflict use_column
declare
    unknown jsonb;
    me record;
begin
    select * into me from session_of(worker_id);
    if me.session_no = any (ended_session_nos) or ended_session_nos is null or claim_ids is null then
        perform refuse('PGS09', format('reconcile: ended_session_nos is %s, this session is %s', ended_session_nos, me.session_no),
            'Name sessions that have been closed, and every claim that the worker knows.');
    end if;
    perform force_durable();
    unknown := (
        select jsonb_agg(jsonb_build_object('job_id', r.job_id, 'claim_id', r.claim_id, 'outcome', 'give_back',
            'begun', false, 'reason', 'the claim''s answer was lost with its session'))
        from running r
        where r.worker_id = $1 and r.session_no = any (ended_session_nos) and not r.claim_id = any (claim_ids));
    return (select count(*) from settle($1, coalesce(unknown, '[]')));
end
$$;
comment on function reconcile(bigint, integer[], bigint[]) is 'Gives back what the worker''s ended sessions claimed and the worker does not know.';

-- A span of time from a number of seconds, whatever the number: 0 to 100 years.
create or replace function seconds(s double precision) returns interval
language sql immutable
return make_interval(secs => least(greatest(coalesce(nullif(s, 'NaN'), 0), 0), 3155760000));
comment on function seconds(double precision) is 'A span of time from any number of seconds, clamped to 0 to 100 years (internal).';
