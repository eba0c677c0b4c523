-- The worker's sessions: one lease session (attach, heartbeat, reattach, detach) and one or two work sessions
-- (open_session) hold the worker's lock, its id, in shared mode. That the lock can be taken exclusively proves that
-- the server has ended everything that the worker had sent.

-- Registers a worker and makes this session its lease.
-- `info`: protocol, name, host, pid, app, queues, tasks (null: any), concurrency, version, rescue_after_s.
-- Errors: PGS01 other protocol, PGS04 this database is a copy, PGS08 a standby, PGS09 a value is missing or wrong.
-- Locks: the new worker's own, shared, for the session.
create or replace function attach(info jsonb, out worker_id bigint, out token text, out epoch bigint)
language plpgsql security definer
set search_path from current
as $$
declare
    theirs integer;
    wait interval;
    missing text;
begin
    if jsonb_typeof(info) is distinct from 'object' or whole_number(info -> 'protocol', -2147483648) is false
        or whole_number(info -> 'pid', 0) is false or whole_number(info -> 'concurrency', 1) is false
        or jsonb_typeof(info -> 'rescue_after_s') <> 'number' then
        perform refuse('PGS09', 'attach: info must be an object with whole numbers "protocol", "pid" and "concurrency" and a number "rescue_after_s"');
    end if;
    theirs := nullif(info -> 'protocol', 'null')::integer;
    if theirs is distinct from protocol() then
        perform refuse('PGS01', format('this worker speaks protocol %s, the schema "%s" speaks %s',
            coalesce(theirs::text, 'null'), current_schema(), protocol()),
            case when theirs > protocol() then 'The schema is older: run "pgsched migrate".'
                else 'The worker is older: install the pgsched version that the schema was migrated with.' end);
    end if;
    select string_agg(field, ', ') into missing
    from unnest(array['name', 'host', 'pid', 'app', 'queues', 'concurrency', 'version', 'rescue_after_s']) field
    where info ->> field is null;
    if missing is not null then
        perform refuse('PGS09', format('attach: %s missing', missing), 'Every field of a worker must be given.');
    end if;
    if not names_only(info -> 'queues') or info -> 'queues' = '[]'
        or not names_only(coalesce(nullif(info -> 'tasks', 'null'), '[]')) then
        perform refuse('PGS09', 'attach: queues must be an array of at least one name, tasks an array of names (or null: any task)');
    end if;
    if (info ->> 'concurrency')::numeric not between 1 and 1000000 or (info ->> 'rescue_after_s')::numeric not between 1 and 86400 then
        perform refuse('PGS09', format('attach: concurrency is %s and rescue_after_s is %s', info ->> 'concurrency', info ->> 'rescue_after_s'),
            'They lie between 1 and 1000000, and 1 and 86400.');
    end if;
    wait := make_interval(secs => (info ->> 'rescue_after_s')::double precision);
    epoch := check_installation(wait);
    perform force_durable();
    worker_id := ('x' || replace(left(gen_random_uuid()::text, 18), '-', ''))::bit(64)::bigint & 9223372036854775807;
    token := gen_random_uuid()::text;
    perform pg_advisory_lock_shared(worker_id);
    insert into worker (id, token, name, host, pid, app, queues, tasks, concurrency, protocol, version, rescue_after)
    values (worker_id, token, info ->> 'name', info ->> 'host', (info -> 'pid')::integer, info ->> 'app',
        array(select jsonb_array_elements_text(info -> 'queues')),
        case when jsonb_typeof(info -> 'tasks') = 'array' then array(select jsonb_array_elements_text(info -> 'tasks')) end,
        (info -> 'concurrency')::integer, theirs, info ->> 'version', wait);
    perform set_config('pgsched.session', worker_id || ':' || token || ':0', false);
end
$$;
comment on function attach(jsonb) is 'Registers a worker and makes this session its lease; answers its id, its token and the epoch.';

-- Proves that this session is one of the worker's, and reads what its calls need in one go.
-- Errors: PGS02 it is not, PGS03 the worker was rescued.
create or replace function session_of(the_worker bigint, out session_no integer, out tasks text[], out epoch bigint, out not_before timestamptz)
language plpgsql stable
set search_path from current
as $$
declare
    proof constant text := current_setting('pgsched.session', true);
    the_token text;
    rescued timestamptz;
    stopped timestamptz;
begin
    perform require_read_committed();
    select w.token, w.rescued_at, w.stopped_at, w.tasks, i.epoch, i.not_before, substr(proof, length(w.id || ':' || w.token || ':') + 1)::integer
    into the_token, rescued, stopped, tasks, epoch, not_before, session_no
    from worker w, installation i
    where w.id = the_worker and starts_with(proof, w.id || ':' || w.token || ':');
    if the_token is null then
        perform refuse('PGS02', format('this session (backend %s) is not one of worker %s', pg_backend_pid(), the_worker),
            'The connection was replaced, or a pooler hands it around: attach, reattach or open_session on a connection of its own.');
    end if;
    if rescued is not null then
        perform refuse('PGS03', format('worker %s was rescued at %s: its jobs are no longer its own', the_worker, rescued),
            'Stop all handlers, then attach again: an identity is used once.');
    end if;
    if stopped is not null then
        perform refuse('PGS02', format('worker %s has said at %s that it ended', the_worker, stopped), 'Attach again: an identity is used once.');
    end if;
end
$$;
comment on function session_of(bigint) is 'Proves that this session is one of the worker''s (internal).';

-- Takes the worker's lock for this session and proves, in a statement that began after the lock was taken, that the
-- worker has not been rescued meanwhile. 55P03: a rescuer is looking at this moment; try again.
create or replace function join_worker(the_worker bigint, the_token text, the_session_no integer) returns void
language plpgsql
set search_path from current
as $$
declare
    w worker;
begin
    perform require_read_committed();
    if the_worker is null or the_token is null then
        perform refuse('PGS02', 'a worker''s id and its token must be given', 'attach() answers both.');
    end if;
    if not pg_try_advisory_lock_shared(the_worker) then
        raise exception using errcode = 'lock_not_available',
            message = format('worker %s: its lock is held exclusively at this moment', the_worker),
            hint = 'Somebody looks whether it is dead: try again.';
    end if;
    select * into w from worker where id = the_worker;
    if w.id is null or w.token <> the_token or w.rescued_at is not null or w.stopped_at is not null then
        perform pg_advisory_unlock_shared(the_worker);
        if w.id is null or w.token <> the_token then
            perform refuse('PGS02', format('worker %s: no such worker, or not its token', the_worker),
                'attach() answers both; they belong together.');
        elsif w.stopped_at is not null then
            perform refuse('PGS02', format('worker %s has said at %s that it ended', the_worker, w.stopped_at), 'Attach again: an identity is used once.');
        end if;
        perform refuse('PGS03', format('worker %s ("%s") was rescued at %s', w.id, w.name, w.rescued_at),
            'Stop all handlers, then attach again: an identity is used once.');
    end if;
    perform set_config('pgsched.session', the_worker || ':' || the_token || ':' || the_session_no, false);
end
$$;
comment on function join_worker(bigint, text, integer) is 'Takes the worker''s lock for this session and proves that it was not rescued (internal).';

-- Makes this session a work session of the worker. `session_no` is new each time, from 1: claims are stamped with it.
-- Answers the epoch: where it differs from the lease's, the two sessions are on different servers.
-- Errors: PGS02 wrong token, PGS03 rescued, PGS08 a standby, 55P03 try again.
create or replace function open_session(worker_id bigint, token text, session_no integer) returns bigint
language plpgsql security definer
set search_path from current
as $$
declare
    epoch bigint;
begin
    if session_no is null or session_no < 1 then
        perform refuse('PGS09', format('open_session: session_no is %s, it must be at least 1', coalesce(session_no::text, 'null')),
            'Number the work sessions of a worker from 1, each number once.');
    end if;
    epoch := check_installation((select w.rescue_after from worker w where w.id = worker_id));
    perform join_worker(worker_id, token, session_no);
    return epoch;
end
$$;
comment on function open_session(bigint, text, integer) is 'Makes this session a work session of the worker; answers the epoch.';

-- Makes this session the worker's lease again, after its old one was lost. `claim_ids`: the claims whose handlers run.
-- Answers those of them that the server does not know (an asynchronous fail-over forgot them): their handlers must end.
-- Errors: as open_session. Afterwards generation is one higher, so that a rescuer starts its wait anew.
create or replace function reattach(worker_id bigint, token text, claim_ids bigint[]) returns setof bigint
language plpgsql security definer
set search_path from current
as $$
begin
    perform check_installation((select w.rescue_after from worker w where w.id = worker_id));
    perform join_worker(worker_id, token, 0);
    perform force_durable();
    update worker w set generation = generation + 1 where w.id = worker_id and w.rescued_at is null;
    if not found then
        perform pg_advisory_unlock_shared(worker_id);
        perform refuse('PGS03', format('worker %s was rescued', worker_id), 'Stop all handlers, then attach again.');
    end if;
    return query
    select c.id from unnest(claim_ids) c (id)
    where not exists (select from running r where r.worker_id = reattach.worker_id and r.claim_id = c.id);
end
$$;
comment on function reattach(bigint, text, bigint[]) is 'Makes this session the worker''s lease again after a lost one; answers the claims that the server does not know.';

-- A heartbeat is a commit: a server that was deposed answers reads for ever, but cannot commit without its quorum.
-- Answers {"generation", "epoch", "backend"}: a backend that is not the one attached on tells of a pooler that hands it around.
-- Errors: PGS02, PGS03. Writes a message of no effect to the write-ahead log: no table, no bloat.
create or replace function heartbeat(worker_id bigint) returns jsonb
language plpgsql security definer
set search_path from current
as $$
begin
    perform session_of(worker_id);
    perform force_durable();
    perform pg_logical_emit_message(true, 'pgsched', '');
    return (select jsonb_build_object('generation', w.generation, 'epoch', i.epoch, 'backend', pg_backend_pid()) from worker w, installation i where w.id = worker_id);
end
$$;
comment on function heartbeat(bigint) is 'Proves the lease by a commit of no effect.';

-- The worker says, on its lease session and with its work sessions closed, that it has ended. Where nothing of it is left in
-- running, its identity is over; answers how many are.
-- Locks: the worker's lock, exclusively, by a try: so no claim of it is on its way.
-- Errors: PGS02, PGS03, PGS07 another session of the worker lives.
create or replace function detach(worker_id bigint) returns integer
language plpgsql security definer
set search_path from current
as $$
declare
    left_running integer;
begin
    perform session_of(worker_id);
    if not pg_try_advisory_xact_lock(worker_id) then
        perform refuse('PGS07', format('detach: another session of worker %s lives', worker_id), 'Close its work sessions first.');
    end if;
    left_running := (select count(*) from running r where r.worker_id = detach.worker_id);
    if left_running = 0 then
        update worker w set stopped_at = clock_timestamp() where w.id = worker_id;
    end if;
    return left_running;
end
$$;
comment on function detach(bigint) is 'The worker says that it has ended; answers how many of its jobs are still in running.';

-- What is acknowledged must survive a crash, whatever the role's or database's default. (A function's SET clause
-- would be undone before the commit.)
create or replace function force_durable() returns void
language plpgsql
set search_path from current
as $$
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end
$$;
comment on function force_durable() is 'Makes the commit of this transaction wait for the disk and the quorum (internal).';

-- Whether a value is a JSON number, whole, at least `at_least` and an integer of Postgres'; null where there is no value.
create or replace function whole_number(value jsonb, at_least bigint) returns boolean
language sql immutable
return case coalesce(jsonb_typeof(value), 'null')
    when 'null' then null
    when 'number' then value::numeric = trunc(value::numeric) and value::numeric between at_least and 2147483647
    else false end;
comment on function whole_number(jsonb, bigint) is 'Whether a value is a whole number within bounds; null for none (internal).';

-- Whether a value is a JSON array of texts.
create or replace function names_only(value jsonb) returns boolean
language sql immutable
set search_path from current
as $$
select jsonb_typeof(value) is not distinct from 'array'
    and not exists (select from jsonb_array_elements(case jsonb_typeof(value) when 'array' then value else '[]' end) e where jsonb_typeof(e) <> 'string')
$$;
comment on function names_only(jsonb) is 'Whether a value is a JSON array of texts (internal).';
