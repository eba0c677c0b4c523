-- Which functions and views each level may use, the one home of that rule. A level has those of the levels before it:
-- reader looks; client also enqueues and waits for results; worker also runs jobs. Everything else is its owner's.
create or replace function access_list() returns table (level text, kind text, name text)
language sql immutable
set search_path from current
as $$
values
    ('reader', 'view', 'jobs'), ('reader', 'view', 'queues'), ('reader', 'view', 'workers'), ('reader', 'view', 'job_errors'),
    ('reader', 'view', 'leader'), ('reader', 'view', 'blocked'), ('reader', 'view', 'workflows'), ('reader', 'view', 'schedules'), ('reader', 'view', 'schedule_ticks'),
    ('reader', 'function', 'list_jobs'), ('reader', 'function', 'list_failed'), ('reader', 'function', 'failed_groups'), ('reader', 'function', 'backoff'),
    ('reader', 'function', 'explain'), ('reader', 'function', 'subtasks'), ('reader', 'function', 'workflow_jobs'), ('reader', 'function', 'list_workflows'), ('reader', 'function', 'check_invariants'), ('reader', 'function', 'errors'),
    ('reader', 'function', 'protocol'), ('reader', 'function', 'waiting_state'), ('reader', 'function', 'masked'),
    ('client', 'function', 'enqueue'), ('client', 'function', 'enqueue_many'), ('client', 'function', 'enqueue_workflow'),
    ('client', 'function', 'cancel'), ('client', 'function', 'cancel_many'), ('client', 'function', 'cancel_workflow'), ('client', 'function', 'retry'), ('client', 'function', 'retry_failed'), ('client', 'function', 'rerun_workflow'),
    ('client', 'function', 'schedule'), ('client', 'function', 'put_schedule'), ('client', 'function', 'unschedule'), ('client', 'function', 'declare_schedules'),
    ('client', 'function', 'pause_schedule'), ('client', 'function', 'resume_schedule'), ('client', 'function', 'run_schedule_now'), ('client', 'function', 'backfill_schedule'),
    ('client', 'function', 'results'), ('client', 'function', 'ended_channel'),
    ('worker', 'function', 'attach'), ('worker', 'function', 'heartbeat'), ('worker', 'function', 'reattach'),
    ('worker', 'function', 'detach'), ('worker', 'function', 'open_session'), ('worker', 'function', 'reconcile'),
    ('worker', 'function', 'claim'), ('worker', 'function', 'finish'), ('worker', 'function', 'rescue'),
    ('worker', 'function', 'report_progress'),
    ('worker', 'function', 'lead'), ('worker', 'function', 'leader_beat'), ('worker', 'function', 'resign'),
    ('worker', 'function', 'ask_leader_to_resign'), ('worker', 'function', 'stage'), ('worker', 'function', 'release'), ('worker', 'function', 'enforce_deadlines'), ('worker', 'function', 'prune'), ('worker', 'function', 'channel'),
    ('worker', 'function', 'due_schedules'), ('worker', 'function', 'outdated_schedules'), ('worker', 'function', 'tick_schedules'),
    ('worker', 'function', 'stop_channel'), ('worker', 'function', 'stops'), ('worker', 'function', 'begin'),
    ('worker', 'function', 'begin_transaction'), ('worker', 'function', 'finish_transaction')
$$;
comment on function access_list() is 'Which functions and views each level may use: reader, client, worker.';

-- Lets a role use what its level may use, and remembers it, so that a migration grants what it adds.
-- Roles belong to the whole cluster: this creates none. Only the schema's owner may call it.
-- Errors: PGS09 no such level; 42704 no such role.
create or replace function grant_access(role_name name, level text) returns void
language plpgsql
set search_path from current
as $$
declare
    levels constant text[] := array['reader', 'client', 'worker'];
    rank constant integer := array_position(levels, level);
    target record;
begin
    if rank is null then
        perform refuse('PGS09', format('grant: there is no level %s', shown(level)), 'The levels are reader, client and worker.');
    end if;
    if role_name is null or not exists (select from pg_roles where rolname = role_name) then
        raise undefined_object using message = format('role %s does not exist', shown(role_name)),
            hint = 'Roles belong to the whole cluster: create it first (create role).';
    end if;
    execute format('grant usage on schema %I to %I', current_schema(), role_name);
    for target in
        select a.kind, a.name, p.oid::regprocedure::text as signature
        from access_list() a
            left join pg_proc p on a.kind = 'function' and p.proname = a.name and p.pronamespace = (select n.oid from pg_namespace n where n.nspname = current_schema())
        where array_position(levels, a.level) <= rank
    loop
        if target.kind = 'view' then
            execute format('grant select on %I.%I to %I', current_schema(), target.name, role_name);
        else
            execute format('grant execute on function %s to %I', target.signature, role_name);
        end if;
    end loop;
    insert into access (role_name, level) values (grant_access.role_name, grant_access.level) on conflict do nothing;
end
$$;
comment on function grant_access(name, text) is 'Lets a role use what its level may use: reader, client or worker.';
