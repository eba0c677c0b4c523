-- Lets run what waits for this success, the only end that a call tells, and for nothing else: a chain's next job, for which no other
-- edge has to be looked at. Whether it did; else nothing is changed, and all is left to tell_dependents(), whose case this is the simplest of.
-- Where the call claims, too (see finish), and nothing is ready in its lanes, the job is claimed at once and never is in ready. (Anybody
-- may have set pgsched.taker, so it counts only in a session that is proven, see session_of, and for this session.)
-- Locks: the row in waiting, by a try. (Nobody else writes its one edge: who would, holds that row, or the running job's.)
create or replace function hand_over(ended bigint) returns boolean
language plpgsql
set search_path from current
as $$
declare
    taker constant jsonb := nullif(current_setting('pgsched.taker', true), '');
    child record;
begin
    select w.job_id, w.queue, w.expires_at, w.attempt, w.lost_attempts, j.priority, j.task into child
    from (select min(d.job_id) as id, count(*) as n from (select d.job_id from dependency d where d.depends_on_id = ended limit 2) d) one
        cross join lateral (
            select w.* from waiting w
            where w.job_id = one.id and w.reason || '' = 'dependencies' and (w.run_at > clock_timestamp()) is not true
            for update skip locked
        ) w
        cross join lateral (select j.priority, j.task, j.parent_id from job j where j.id = w.job_id offset 0) j
    where one.n = 1 and j.parent_id is null  -- (a subtask may have to end with its parent)
        and (select count(*) from (select from dependency d where d.job_id = one.id limit 2) d) = 1;
    if not found then
        return false;
    end if;
    update dependency d
    set outcome = 'succeeded'
    where d.depends_on_id = ended and d.job_id = child.job_id and d.outcome is null and d.condition <> 'failure';
    if not found then
        return false;
    end if;
    delete from waiting w where w.job_id = child.job_id;
    if (taker -> 'room')::integer > 0 and child.expires_at is null and child.lost_attempts = 0
        and taker -> 'lanes' @> jsonb_build_array(jsonb_build_object('queue', child.queue, 'priority', child.priority))
        and (
            select w.tasks is null or child.task = any (w.tasks)
            from worker w
            where w.id = (taker -> 'worker_id')::bigint and (taker -> 'epoch')::bigint = (select i.epoch from installation i)
                and current_setting('pgsched.session', true) = w.id || ':' || w.token || ':' || (taker ->> 'session_no') and (
                select true
                from jsonb_array_elements(taker -> 'lanes') l
                    cross join lateral (
                        select from ready r where r.queue = l ->> 'queue' and r.priority = (l -> 'priority')::smallint limit 1
                    ) r
                limit 1) is null) then
        insert into running (job_id, claim_id, attempt, worker_id, session_no, queue, claimed_at, started_at)
        values (child.job_id, new_claim_id((taker -> 'epoch')::bigint), child.attempt + 1, (taker -> 'worker_id')::bigint,
            (taker -> 'session_no')::integer, child.queue, clock_timestamp(), clock_timestamp())
        on conflict (job_id) do nothing;
        if found then  -- (one that runs already, against the rules, is only dropped, as by a claim)
            perform set_config('pgsched.taker', (taker || jsonb_build_object('room', 0, 'job', child.job_id))::text, true);
        end if;
    else
        insert into ready (queue, priority, job_id, expires_at, attempt, lost_attempts)
        values (child.queue, child.priority, child.job_id, child.expires_at, child.attempt, child.lost_attempts)
        on conflict (queue, job_id) do nothing;
        perform wake(array[child.queue]);
    end if;
    return true;
end
$$;
comment on function hand_over(bigint) is 'Lets run what waits for this success and for nothing else (internal).';
