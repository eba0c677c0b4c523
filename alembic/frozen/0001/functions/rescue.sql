-- Takes the jobs of a dead worker and puts them back. A free lock alone proves nothing about the process, so there are two
-- grounds. `certified`: whoever calls has reaped the worker's process and all its children and says so. Or the session leads,
-- and its process has seen the worker's lock free, at the same `generation`, for `silent_s` seconds, at least the worker's own
-- rescue_after (counted from the answer of the first look, by a clock that does not stand still): a worker that lost its lease
-- for so long has ended all that it ran. `begun`: the claims whose handlers may have been the reason, where the caller knows;
-- null: those whose started_at is set. Only those are charged, to lost_attempts, and where some of them are suspects (a worker
-- had died with them before) only the suspects: whoever ran beside one by chance is not. A job whose workers died
-- max_lost_attempts times ends as failed. A job that was told to cancel ends as cancelled.
-- Each call moves at most `n` jobs with ids above `above`; answers {"moved": k, "left": m, "last": the last id it met}. One
-- job that cannot be moved does not stop the others, and one that somebody holds at this moment is left: go on with
-- above => last until "last" is null, then begin anew while "left" is not 0.
-- It looks at the rows of running, so it also finds those whose worker row is missing, or that came after a first rescue.
--
-- Locks: the worker's lock, exclusively, to the end of the transaction: that it can be taken proves that the server
-- has ended everything that the worker had sent. Then its running rows, skipping locked ones.
-- Errors: PGS07 the worker's sessions hold its lock, or it has attached again; PGS09 no ground; PGS11 not the leader.
create or replace function rescue(worker_id bigint, begun bigint[] default null, certified boolean default false, n integer default 1000, above bigint default 0,
    generation integer default null, silent_s double precision default null)
returns jsonb
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
    lost jsonb;
    one jsonb;
    moved integer := 0;
    patience interval;
    suspects boolean;
begin
    if certified is not true then
        if silent_s is null or silent_s = 'NaN' then
            perform refuse('PGS09', format('rescue: nobody certifies that worker %s is dead', worker_id),
                'A free lock alone proves nothing about the process: reap it with all its children, then pass certified => true.');
        end if;
        perform require_leader();
        patience := coalesce((select w.rescue_after from worker w where w.id = $1), interval '60 s');
        if not silent_s >= extract(epoch from patience) then
            perform refuse('PGS09', format('rescue: worker %s was seen silent for %s s, it has %s', worker_id, silent_s, patience),
                'Wait until its lock has been free for so long without a break.');
        end if;
    end if;
    if n is null or n < 1 then
        perform refuse('PGS09', format('rescue: n is %s, it must be at least 1', coalesce(n::text, 'null')), 'It is how many jobs one call may move.');
    end if;
    perform require_read_committed();
    if exists (select from lock_holders($1) pid where pid = pg_backend_pid()) then
        perform refuse('PGS07', format('rescue: this session is one of worker %s itself', $1),
            'Its own locks are no hindrance to it, so it can prove nothing: call from a session of your own.');
    end if;
    if not pg_try_advisory_xact_lock($1) then
        perform refuse('PGS07', format('rescue: sessions of worker %s still hold its lock (backends %s)', worker_id,
                (select string_agg(pid::text, ', ') from lock_holders($1) pid)),
            'Its process may be alive, or the server is still ending its sessions: try again in a moment.');
    end if;
    if certified is not true and exists (select from worker w where w.id = $1 and w.generation is distinct from rescue.generation) then
        perform refuse('PGS07', format('rescue: worker %s has attached again', worker_id), 'Its silence was broken: wait anew.');
    end if;
    perform force_durable();
    -- (Found once, before the first of them is moved.)
    suspects := coalesce(
        (select w.died_with_suspects from worker w where w.id = $1),
        (
            select true from running r
            where r.worker_id = $1 and r.lost_attempts > 0 and case when begun is null then r.started_at is not null else r.claim_id = any (begun) end
            limit 1
        ),
        false);
    update worker w
    set died_with_suspects = suspects, rescued_at = clock_timestamp(),
        rescue_reason = case when certified then 'its process was reaped' else format('its lock was free for %s s', round(silent_s::numeric, 1)) end
    where w.id = $1 and w.rescued_at is null;
    lost := (
        select jsonb_agg(jsonb_build_object('job_id', r.job_id, 'claim_id', r.claim_id, 'outcome', 'lost',
            'begun', r.started_at is not null,
            'charged', r.charged, 'queue', r.queue,
            'reason', format('worker %s died while it held the job (lost attempts: %s)', $1, r.lost_attempts::bigint + r.charged::integer)) order by r.job_id)
        from (
            select r.*, (not suspects or r.lost_attempts > 0) and case when begun is null then r.started_at is not null else r.claim_id = any (begun) end as charged
            from (
                select * from running r
                where r.worker_id = $1 and r.job_id > coalesce(above, 0)
                order by r.job_id
                limit n
                for update skip locked
            ) r
        ) r);
    if lost is not null then
        begin
            moved := (select count(*) from settle($1, lost, true));
        exception when others then
            raise warning 'pgsched: rescue of worker %: %; its jobs are moved one by one', $1, sqlerrm;
            for one in select * from jsonb_array_elements(lost) loop
                begin
                    moved := moved + (select count(*) from settle($1, jsonb_build_array(one), true));
                exception when others then
                    raise warning 'pgsched: rescue of job %: %', one ->> 'job_id', sqlerrm;
                end;
            end loop;
        end;
        perform wake(array(select l ->> 'queue' from jsonb_array_elements(lost) l));
    end if;
    return jsonb_build_object('moved', moved, 'left', (select count(*) from running r where r.worker_id = $1),
        'last', lost -> -1 -> 'job_id');
end
$$;
comment on function rescue(bigint, bigint[], boolean, integer, bigint, integer, double precision)
    is 'Takes the jobs of a dead worker, on the word of whoever reaped it or after its silence, and puts them back.';
