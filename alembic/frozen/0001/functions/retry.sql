-- See retry.
create or replace function retry_one(the_job bigint, dry_run boolean) returns table (job_id bigint, was text)
language plpgsql
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
    f finished;
    holder bigint;
    waits boolean;
    below record;
    jobs bigint[] := '{}';
    states text[] := '{}';
begin
    perform require_read_committed();
    begin
        select * into f from finished x where x.job_id = the_job for update;
        if f.job_id is null then
            if not exists (select from job j where j.id = the_job) then
                perform refuse('PGS05', format('there is no job %s', coalesce(the_job::text, 'null')), 'It was pruned, or never was.');
            end if;
            perform refuse('PGS09', format('retry: job %s has not ended: it is %s', the_job,
                coalesce((select s.state from jobs s where s.id = the_job), 'between two states')), 'Only what has ended can run again.');
        elsif (select j.parent_id from job j where j.id = the_job) is not null then
            perform refuse('PGS09', format('retry: job %s is a subtask of job %s', the_job, (select j.parent_id from job j where j.id = the_job)),
                'Retry that one: it makes its subtasks anew.');
        elsif f.state = 'succeeded' then
            perform refuse('PGS09', format('retry: job %s has succeeded', the_job), 'rerun_workflow() does it again with all that comes after it; or enqueue a new job.');
        elsif f.cause_job_id is not null and coalesce((select c.state from finished c where c.job_id = f.cause_job_id), 'gone') in ('failed', 'cancelled', 'skipped') then
            perform refuse('PGS09', format('retry: job %s was %s because of job %s', the_job, f.state, f.cause_job_id),
                format('Retry job %s: this one then waits for its dependencies again.', f.cause_job_id));
        end if;
        perform hold_dependencies(array[the_job]);
        if lack_input(array[the_job]) <> '{}' then
            perform refuse('PGS09', format('retry: job %s takes the result of a job that was pruned', the_job), 'Enqueue a new job with that as an argument.');
        end if;
        if not take_key_again(the_job) then
            holder := (select k.job_id from job j join job_key k on k.task = j.task and k.unique_key = j.unique_key where j.id = the_job);
            perform refuse('PGS10', format('retry: the unique key of job %s is held by job %s', the_job, holder), 'Wait for its end, or cancel it.');
        end if;
        jobs := array[the_job];
        states := array[f.state];
        waits := the_job = any (must_wait(array[the_job]));
        delete from finished x where x.job_id = the_job;
        if waits then
            perform wait_again(array[the_job], false);
        else
            insert into ready (queue, priority, job_id)
            select f.queue, coalesce((select j.priority from job j where j.id = the_job), 5), the_job;
            perform wake(array[f.queue]);
        end if;
        select * into below from reopen_below(array[the_job], array[the_job]);
        jobs := jobs || below.jobs;
        states := states || below.states;
        if dry_run is distinct from false then
            raise exception using errcode = 'PGDRY', message = 'dry run';
        end if;
    exception when sqlstate 'PGDRY' then
        null;
    end;
    return query select * from unnest(jobs, states);
end
$$;
comment on function retry_one(bigint, boolean) is 'Lets a job run again; see retry (internal).';

-- Lets a job run again that has failed, was cancelled, or expired: its counters start anew, and what had ended because it could
-- no longer run (finished.cause_job_id, whichever job that names) waits again, level by level. What somebody cancelled on
-- purpose stays cancelled; so stays a job whose unique key another one has taken since, or whose input was pruned. An edge under which a job has really
-- run keeps its outcome; a job that never began waits for its rule again.
-- Answers every job that this changes and what it was. `dry_run` gives the same answer and changes nothing (it locks the
-- rows while it looks).
-- Each level is locked, first those that wait, then, in a new statement, those that have ended by a cause, again and again until
-- a look finds nothing new: a row that was waited for may have been moved by another retry. A look event for each makes the
-- releaser decide anew.
-- Locks: rows of finished, waiting, job (key share) and edges; waits for who holds one. Retries that cross may deadlock (40P01):
-- repeating is safe.
-- Errors: PGS05 no such job; PGS09 it is a subtask, has not ended, has succeeded, ended because of another (the message names that), or its
-- input was pruned, not READ COMMITTED; PGS10 its unique key belongs to another job.
create or replace function retry(job_id bigint, dry_run boolean default false) returns table (job_id bigint, was text)
language sql security definer
set search_path from current
as $$ select * from retry_one(job_id, dry_run) $$;
comment on function retry(bigint, boolean) is 'Lets a job run again, and what had ended because of it wait again; answers which it changed and what they were.';

-- Below jobs that run again (`level`): what had ended because it could no longer run waits again, and what still waits forgets how
-- they ended; so on down, level by level. `back`: jobs that have been brought back already. Answers which it has brought back, and
-- what they were. A level is looked at again and again until nothing new is found: a row that one look waits for may have gone to
-- where the other one looks. So each look, of those that wait and of those that have ended, comes after the other.
create or replace function reopen_below(level bigint[], back bigint[], out jobs bigint[], out states text[])
language plpgsql
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
    next_level bigint[];
    reopened bigint[];
    opened bigint[];
    seen bigint[];
    quiet integer;
    lacking bigint[];
begin
    jobs := '{}';
    states := '{}';
    while level <> '{}' loop
        next_level := '{}';
        seen := back;
        quiet := 0;
        while quiet < 2 loop
            reopened := array(
                select x.job_id from finished x
                where x.cause_job_id is not null
                    and x.job_id = any (array(select d.job_id from dependency d where d.depends_on_id = any (level) except select unnest(seen)))
                for update);
            perform hold_dependencies(reopened);
            lacking := lack_input(reopened);
            reopened := array(select r.id from unnest(reopened) r (id) where r.id <> all (lacking) and take_key_again(r.id));
            jobs := jobs || reopened;
            states := states || array(select x.state from unnest(reopened) with ordinality r (id, n) join finished x on x.job_id = r.id order by r.n);
            delete from finished x where x.job_id = any (reopened);
            perform wait_again(reopened, true);
            next_level := next_level || reopened;
            opened := array(
                select w.job_id from waiting w
                where w.reason || '' = 'dependencies'
                    and w.job_id = any (array(select d.job_id from dependency d where d.depends_on_id = any (level) except select unnest(seen)))
                for update);
            with undone as (
                update dependency d
                set outcome = null
                where d.job_id = any (opened) and d.depends_on_id = any (level) and d.outcome is not null
                returning d.job_id
            )
            insert into release_check (look_at_id) select distinct u.job_id from undone u;
            quiet := case when opened = '{}' then quiet + 1 else 0 end;
            seen := seen || opened;
        end loop;
        level := next_level;
    end loop;
end
$$;
comment on function reopen_below(bigint[], bigint[]) is 'What had ended because of jobs that run again waits again, and so on down (internal).';

-- Which of these jobs, which have ended, wait for their dependencies again before they run: those that never began; those whose edges do
-- not say that the rule was met (a rerun had begun anew); those that take the result of a job that has none any more. The others
-- keep the outcomes under which they ran.
create or replace function must_wait(jobs bigint[]) returns bigint[]
language sql stable
set search_path from current
as $$
select coalesce(array_agg(u.id), '{}')
from unnest(jobs) u (id)
    cross join lateral (select x.claim_id from finished x where x.job_id = u.id offset 0) f
where (select j.rule from job j where j.id = u.id) is not null and (
    f.claim_id is null and (select true from attempt_log a where a.job_id = u.id and a.started_at is not null limit 1) is null
    or (select d.verdict from decide(array[u.id]) d) <> 'met'
    or (
        select true from dependency d
        where d.job_id = u.id and d.inputs is not null and d.outcome = 'succeeded'
            and (select x.state from finished x where x.job_id = d.depends_on_id) is distinct from 'succeeded'
            and (select true from job j where j.id = d.depends_on_id)
        limit 1))
$$;
comment on function must_wait(bigint[]) is 'Which of these jobs, which have ended, wait for their dependencies again before they run (internal).';

-- Takes the definitions of what these jobs depend on, and the ends of that whose results they take: none of it is pruned, and none of
-- these results goes with a rerun, from here to the end of the transaction. (Somebody who has ended protects nothing; whoever
-- brings him back takes this first, and looks then. A rerun that comes later finds who takes its result, and is refused.)
create or replace function hold_dependencies(ids bigint[]) returns void
language plpgsql
set search_path from current
as $$
begin
    perform from job j
    where j.id = any (array(select d.depends_on_id from dependency d where d.job_id = any (ids))) for key share;
    perform from finished f
    where f.job_id = any (array(select d.depends_on_id from dependency d where d.job_id = any (ids) and d.inputs is not null)) for key share;
end
$$;
comment on function hold_dependencies(bigint[]) is 'Takes what these jobs depend on, so that none of it is pruned or goes with a rerun (internal).';

-- Jobs that never began wait for their dependencies again: they forget how those ended (but for those that are gone), and are
-- looked at. The caller holds their dependencies. `expires`: whether the time counts after which they are not to begin. `together`: jobs
-- that this transaction lets run again and holds: who depends on those alone need not be looked at, they will end later. (All their
-- edges are updated, also those that say nothing: so nobody writes on one before this is committed.)
create or replace function wait_again(ids bigint[], expires boolean, together bigint[] default '{}') returns void
language plpgsql
set search_path from current
as $$
begin
    insert into waiting (job_id, queue, reason, run_at, expires_at)
    select j.id, j.queue, 'dependencies', j.run_at, case when expires then j.expires_at end from job j where j.id = any (ids);
    update dependency d
    set outcome = case when (select true from job j where j.id = d.depends_on_id) then null else d.outcome end
    where d.job_id = any (ids);
    insert into release_check (look_at_id)
    select distinct x.job_id
    from (
        select d.job_id, d.depends_on_id from dependency d where d.job_id = any (ids)
        except select d.job_id, d.depends_on_id from dependency d where d.depends_on_id = any (together)
    ) x;
end
$$;
comment on function wait_again(bigint[], boolean, bigint[]) is 'Jobs that never began wait for their dependencies again (internal).';

-- Which of these jobs take the result of another one that is gone.
create or replace function lack_input(jobs bigint[]) returns bigint[]
language sql stable
set search_path from current
as $$
select coalesce(array_agg(distinct d.job_id), '{}')
from dependency d
where d.job_id = any (jobs) and d.inputs is not null and d.outcome is not null and (select true from job j where j.id = d.depends_on_id) is null
$$;
comment on function lack_input(bigint[]) is 'Which of these jobs take the result of another one that is gone (internal).';

-- Takes the unique key of a job that has ended, where it has one. False: another job holds it.
create or replace function take_key_again(the_job bigint) returns boolean
language plpgsql
set search_path from current
as $$
begin
    insert into job_key (task, unique_key, job_id)
    select j.task, j.unique_key, j.id from job j where j.id = the_job and j.unique_key is not null
    on conflict (task, unique_key) do nothing;
    return found or (select j.unique_key from job j where j.id = the_job) is null;
end
$$;
comment on function take_key_again(bigint) is 'Takes the unique key of a job that has ended, where it has one (internal).';
