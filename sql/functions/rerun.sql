-- Lets jobs of a workflow run again, and all that comes after them in that workflow: also what has succeeded. Counters start
-- anew, as in retry; each claim has a larger number than all before. A job that runs again has no result until it ends again; its
-- former success stays in attempt_log, with state rerun.
--
-- A named job that has run runs at once, and keeps the outcomes under which it ran, unless it comes after another named one; what
-- comes after waits for its rule, which is judged anew. What somebody cancelled on purpose (or a deadline has) stays
-- cancelled unless it is named, and with it what comes after it alone. Jobs elsewhere that depend on these: those that had
-- ended because they could not run wait again, as after a retry; those that wait go on waiting; those that have run stay as they are.
--
-- All or nothing: refused where one of these jobs is ready or running or waits for a time (one that waits for its dependencies waits
-- on), where one takes the result of a job that was pruned, where a unique key has another holder, and where a job elsewhere
-- that has not ended would take a result that is gone.
-- Answers every job that this changes and what it was. `dry_run` gives the same answer and changes nothing (it locks the
-- rows while it looks).
--
-- Which jobs come after which never changes within a workflow, so they are found at once; then all are locked, looked for in finished
-- and in waiting in turn until two looks find nothing new: a row that one look waits for may have gone to where the other one looks.
-- Locks: rows of finished and waiting, each in the order of ids, job (key share) and edges; waits for who holds one. A rerun that
-- crosses a cancel or a retry may deadlock (40P01): repeating is safe.
-- Errors: PGS05 no such workflow or job in it; PGS09 names malformed, a job that cannot run again (the message names it and says why),
-- not READ COMMITTED; PGS10 a unique key belongs to another job.
create or replace function rerun_workflow(workflow_id bigint, from_names text[], dry_run boolean default false)
returns table (job_id bigint, was text)
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
    the_workflow constant bigint := $1;
    roots bigint[];
    around bigint[];
    held bigint[] := '{}';
    left_over bigint[];
    met bigint[];
    quiet integer := 0;
    run bigint[];
    begun bigint[];
    at_once bigint[];
    a_key record;
    below record;
    woken text[];
    jobs bigint[] := '{}';
    states text[] := '{}';
begin
    perform require_read_committed();
    if not exists (select from workflow w where w.id = the_workflow) then
        perform refuse('PGS05', format('there is no workflow %s', coalesce(the_workflow::text, 'null')), 'It was pruned, or never was.');
    end if;
    roots := named_jobs(the_workflow, from_names);
    around := come_after(the_workflow, roots, false);
    begin
        while quiet < 2 loop
            left_over := array(select unnest(around) except select unnest(held));
            -- (The index is read in the order of ids, whatever the order of the array.)
            met := array(select f.job_id from finished f where f.job_id = any (left_over) for update);
            left_over := array(select unnest(left_over) except select unnest(met));
            met := met || array(select w.job_id from waiting w where w.job_id = any (left_over) and w.reason || '' = 'dependencies' for update);
            held := held || met;
            quiet := case when met = '{}' then quiet + 1 else 0 end;
        end loop;
        run := come_after(the_workflow, roots, true);
        perform hold_dependencies(run);
        perform refuse_rerun(the_workflow, roots, run, held);

        select array_agg(f.job_id), array_agg(f.state) into jobs, states from finished f where f.job_id = any (run);
        for a_key in
            select j.id, j.task, j.unique_key from job j
            where j.id = any (jobs) and j.unique_key is not null
            order by j.task, j.unique_key
        loop
            if not take_key_again(a_key.id) then
                perform refuse('PGS10', format('rerun: the unique key of %s is held by job %s', label(a_key.id),
                    (select k.job_id from job_key k where k.task = a_key.task and k.unique_key = a_key.unique_key)), 'Wait for its end, or cancel it.');
            end if;
        end loop;
        begun := array(
            select f.job_id from finished f
            where f.job_id = any (jobs) and (f.claim_id is not null or (
                select true from attempt_log a where a.job_id = f.job_id and a.started_at is not null limit 1)));
        at_once := array(
            select unnest(roots)
            except select d.job_id from dependency d where d.depends_on_id = any (run)
            except select unnest(must_wait(roots)));
        insert into attempt_log (job_id, claim_id, attempt, state, error, worker_id, started_at, ended_at)
        select f.job_id, f.claim_id, f.attempt, 'rerun', 'it had succeeded, and was let run again', f.worker_id, f.started_at, f.finished_at
        from finished f where f.job_id = any (jobs) and f.state = 'succeeded';
        delete from finished f where f.job_id = any (jobs);
        with entered as (
            insert into ready (queue, priority, job_id)
            select j.queue, j.priority, j.id from job j where j.id = any (at_once)
            returning queue
        )
        select array_agg(distinct queue) into woken from entered;
        perform wake(woken);
        -- (Whose time to begin counts: those that never began, and are not named.)
        perform wait_again(array(select unnest(jobs) except select unnest(at_once) except select unnest(begun) except select unnest(roots)), true, run);
        perform wait_again(array((select unnest(begun) union select unnest(roots)) except select unnest(at_once)), false, run);
        select * into below from reopen_below(run, jobs);
        jobs := jobs || below.jobs;
        states := states || below.states;
        perform refuse_takers(run);
        if dry_run is distinct from false then
            raise exception using errcode = 'PGDRY', message = 'dry run';
        end if;
    exception when sqlstate 'PGDRY' then
        null;
    end;
    return query select * from unnest(jobs, states);
end
$$;
comment on function rerun_workflow(bigint, text[], boolean) is 'Lets jobs of a workflow, by name, and all that comes after them run again; answers which this changes and what they were.';

-- The jobs of a workflow with these names. Errors: see rerun_workflow.
create or replace function named_jobs(the_workflow bigint, names text[]) returns bigint[]
language plpgsql stable
set search_path from current
as $$
declare
    ids bigint[];
    missing text;
    a_subtask record;
begin
    if coalesce(cardinality(names), 0) = 0 or array_ndims(names) > 1 or array_position(names, null) is not null then
        perform refuse('PGS09', 'rerun: from_names must be an array of jobs'' names, at least one and none of them null', 'For example array[''extract''].');
    end if;
    ids := array(select j.id from job j where j.workflow_id = the_workflow and j.name = any (names) and j.parent_id is null);
    missing := (
        select min(x.name) from (
            select unnest(names) collate "C" except select j.name from job j where j.id = any (ids)) x (name));
    if missing is not null then
        select j.id, j.parent_id into a_subtask from job j where j.workflow_id = the_workflow and j.name = missing limit 1;
        if found then
            perform refuse('PGS09', format('rerun: %s is a subtask of %s', label(a_subtask.id), label(a_subtask.parent_id)), 'Name that one: it makes its subtasks anew.');
        end if;
        perform refuse('PGS05', format('workflow %s has no job named %s', the_workflow, shown(missing)),
            'It was pruned, or never was; or another job, with the same unique key, stands for it: rerun that one''s workflow.');
    end if;
    return ids;
end
$$;
comment on function named_jobs(bigint, text[]) is 'The jobs of a workflow with these names (internal).';

-- Jobs of a workflow and all in it that comes after them. `not_past_cancelled`: not what somebody has cancelled on purpose, nor what comes
-- after that alone (the caller holds their rows).
create or replace function come_after(the_workflow bigint, roots bigint[], not_past_cancelled boolean) returns bigint[]
language sql stable
set search_path from current
as $$
with recursive below (id) as (
    select unnest(roots)
    union
    select x.job_id
    from below b
        cross join lateral (
            select d.job_id from dependency d
            where d.depends_on_id = b.id
                and (select j.workflow_id from job j where j.id = d.job_id) = the_workflow
                and not (not_past_cancelled and coalesce((
                    -- (Skipped without a cause: it expired, or had ended by a cause and was cancelled then.)
                    select f.cause_job_id is null and (f.state = 'cancelled' or f.state = 'skipped' and f.reason <> 'expired')
                    from finished f where f.job_id = d.job_id), false))
            offset 0
        ) x
)
select array(select b.id from below b)
$$;
comment on function come_after(bigint, bigint[], boolean) is 'Jobs of a workflow and all in it that comes after them (internal).';

-- Refuses a rerun that cannot be, and names the job that is in the way. `held`: the rows that the caller has locked.
create or replace function refuse_rerun(the_workflow bigint, roots bigint[], run bigint[], held bigint[]) returns void
language plpgsql
set search_path from current
as $$
declare
    bad bigint;
    cause bigint;
    state text;
    missing bigint;
begin
    bad := (select min(x.id) from (select unnest(run) except select unnest(held)) x (id));
    if bad is null then
        bad := (select min(w.job_id) from waiting w where w.job_id = any (roots));
    end if;
    if bad is not null then
        state := (select s.state from jobs s where s.id = bad);
        perform refuse('PGS09', format('rerun: %s has not ended: it is %s', label(bad), coalesce(state, 'between two states, or pruned at this moment')),
            'Wait for its end, or cancel it.');
    end if;
    select f.job_id, f.cause_job_id into bad, cause from finished f
    where f.job_id = any (roots) and f.cause_job_id is not null and f.cause_job_id <> all (run)
        and coalesce((select c.state from finished c where c.job_id = f.cause_job_id), 'gone') in ('failed', 'cancelled', 'skipped')
    limit 1;
    if found then
        perform refuse('PGS09', format('rerun: %s ended because of %s', label(bad), label(cause)), 'Rerun from that one, or retry it: this one then waits for its dependencies again.');
    end if;
    bad := (select min(l.id) from unnest(lack_input(run)) l (id));
    if bad is not null then
        perform refuse('PGS09', format('rerun: %s takes the result of a job that was pruned', label(bad)), 'Enqueue the workflow anew.');
    end if;
    -- (In a statement after the locks: what is there now stays. An edge goes with the job that it leads from.)
    missing := (select w.jobs - w.shared from workflow w where w.id = the_workflow)
        - (select count(*) from job j where j.workflow_id = the_workflow and j.parent_id is null);
    if missing > 0 then
        perform refuse('PGS09', format('rerun: %s of the jobs of workflow %s were pruned, and perhaps came after these', missing, the_workflow),
            'Enqueue the workflow anew.');
    end if;
end
$$;
comment on function refuse_rerun(bigint, bigint[], bigint[], bigint[]) is 'Refuses a rerun that cannot be, and names the job that is in the way (internal).';

-- Refuses a rerun of jobs whose results somebody may be about to take: a job elsewhere that has not ended and does not wait for them.
create or replace function refuse_takers(run bigint[]) returns void
language plpgsql
set search_path from current
as $$
declare
    bad record;
begin
    select d.job_id, d.depends_on_id into bad from dependency d
    where d.depends_on_id = any (run) and d.inputs is not null
        and (select f.job_id from finished f where f.job_id = d.job_id) is null
        and (select w.reason from waiting w where w.job_id = d.job_id) is distinct from 'dependencies'
    limit 1;
    if found then
        perform refuse('PGS09', format('rerun: %s takes the result of %s, and has not ended', label(bad.job_id), label(bad.depends_on_id)),
            'Wait for its end, or cancel it.');
    end if;
end
$$;
comment on function refuse_takers(bigint[]) is 'Refuses a rerun of jobs whose results somebody may be about to take (internal).';
