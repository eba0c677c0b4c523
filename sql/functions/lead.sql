-- Leadership: a session-level advisory lock. No key with a time to live, no clock decides who leads. All that only a leader
-- may do goes through the very session that holds the lock, so a leader that lost its session cannot write.

-- Tries to become the leader; answers the term, or null where somebody else leads. `info`: name, host, pid. It returns at
-- once and holds no snapshot while a standby waits (a blocking wait would stop vacuum).
-- Locks: the leader's lock, by a try, for the session. Errors: PGS04, PGS08, PGS09.
create or replace function lead(info jsonb) returns bigint
language plpgsql security definer
set search_path from current
as $$
declare
    the_term bigint;
begin
    perform require_read_committed();
    if jsonb_typeof(info -> 'name') is distinct from 'string' or jsonb_typeof(info -> 'host') is distinct from 'string'
        or whole_number(info -> 'pid', 0) is not true then
        perform refuse('PGS09', 'lead: info must have texts "name" and "host" and a whole number "pid"');
    end if;
    -- (First of all the try, so that hundreds of standbys cost next to nothing.)
    if not pg_try_advisory_lock(lock_class(), 1) then
        return null;
    end if;
    -- A session that has the lock gets it again, and would have to give it back twice: once more, to know.
    perform pg_advisory_unlock(lock_class(), 1);
    if exists (select from leader l where l.backend_pid = pg_backend_pid()) then
        perform refuse('PGS09', 'lead: this session leads already', 'Call it once a term; resign() ends one.');
    end if;
    if not pg_try_advisory_lock(lock_class(), 1) then
        return null;
    end if;
    begin
        perform check_installation(null);
        perform force_durable();
        update leader_term set ended_at = clock_timestamp(), end_reason = 'its session ended' where ended_at is null;
        insert into leader_term (name, host, pid, backend_pid)
        values (info ->> 'name', info ->> 'host', (info -> 'pid')::integer, pg_backend_pid())
        returning term into the_term;
    exception when others or query_canceled then
        perform pg_advisory_unlock(lock_class(), 1);
        raise;
    end;
    perform set_config('pgsched.term', the_term::text, false);
    return the_term;
end
$$;
comment on function lead(jsonb) is 'Tries to become the leader; answers the term, or null where somebody else leads.';

-- Proves that this session leads; answers the term. Errors: PGS11 it does not.
create or replace function require_leader() returns bigint
language plpgsql stable
set search_path from current
as $$
declare
    mine constant bigint := nullif(current_setting('pgsched.term', true), '')::bigint;
begin
    if mine is null or not exists (select from leader l where l.backend_pid = pg_backend_pid())
        or not exists (select from leader_term t where t.term = mine and t.ended_at is null) then
        perform refuse('PGS11', format('this session (backend %s) does not lead', pg_backend_pid()), 'Call lead() on it, and go on when it answers a term.');
    end if;
    return mine;
end
$$;
comment on function require_leader() is 'Proves that this session leads (internal).';

-- The leader's heartbeat, a commit, and what it must know: {"term", "silent": [{"worker_id", "generation", "rescue_after_s"}]}.
-- Silent are workers that hold jobs while nobody holds their lock at this moment. The generation is read first (by the
-- statement's snapshot), the lock after it, so that a worker which attaches in between shows an old generation: the safe side.
-- Errors: PGS11.
create or replace function leader_beat() returns jsonb
language plpgsql security definer
set search_path from current
as $$
declare
    the_term constant bigint := require_leader();
begin
    perform force_durable();
    perform pg_logical_emit_message(true, 'pgsched', '');
    return jsonb_build_object('term', the_term, 'silent', coalesce((
        select jsonb_agg(jsonb_build_object('worker_id', h.worker_id, 'generation', w.generation,
            'rescue_after_s', extract(epoch from coalesce(w.rescue_after, interval '60 s'))))
        from (select distinct r.worker_id from running r) h
            left join worker w on w.id = h.worker_id
        where not exists (select from lock_holders(h.worker_id))), '[]'));
end
$$;
comment on function leader_beat() is 'The leader''s heartbeat; answers which workers hold jobs and hold no lock.';

-- Ends the term and gives the lock back; standbys are woken at once. Errors: PGS11.
create or replace function resign(reason text default 'it resigned') returns bigint
language plpgsql security definer
set search_path from current
as $$
declare
    the_term constant bigint := require_leader();
begin
    update leader_term set ended_at = clock_timestamp(), end_reason = coalesce(reason, 'it resigned') where term = the_term;
    perform set_config('pgsched.term', '', false);
    perform pg_advisory_unlock(lock_class(), 1);
    perform pg_notify(channel() || '_leader', 'vacant');
    return the_term;
end
$$;
comment on function resign(text) is 'Ends this session''s term and gives the leader''s lock back.';

-- Asks whoever leads to resign; answers the term asked, null where nobody leads.
create or replace function ask_leader_to_resign() returns bigint
language plpgsql security definer
set search_path from current
as $$
begin
    perform pg_notify(channel() || '_leader', 'resign');
    return (select l.term from leader l);
end
$$;
comment on function ask_leader_to_resign() is 'Asks whoever leads to resign.';
