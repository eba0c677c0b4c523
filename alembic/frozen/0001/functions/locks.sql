-- The map of advisory locks, its one home.
--
--   one-number form    <worker id>       shared: a session of that worker lives; exclusive: its jobs are being taken
--   two-number form    (lock_class, 1)   the leader
--                      (lock_class, 2)   the releaser
--                      (lock_class, 3)   stage()
--                      (lock_class, 4)   prune()
--   one-number form    hash of 'pgsched.migrate.<schema>'   a migration (alembic/env.py)
--
-- lock_class is a random number of the installation, so that two schemas or applications in one database do not meet.
create or replace function lock_class() returns integer
language sql stable
set search_path from current
as $$ select lock_class from installation $$;
comment on function lock_class() is 'The class of this installation''s advisory locks: 1 leader, 2 releaser, 3 stage, 4 prune; a worker''s lock is its id.';

-- The backends that hold a worker's lock at this moment (in either mode), as pg_locks has it.
create or replace function lock_holders(the_worker bigint) returns setof integer
language sql stable
set search_path from current
as $$
select l.pid from pg_locks l
where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = the_worker
$$;
comment on function lock_holders(bigint) is 'The backends that hold a worker''s lock (internal).';

-- What decides over rows that others write must see what they have committed: a lock, then a new statement. At other
-- isolation levels a new statement sees the old snapshot, and a job could be lost without any error.
create or replace function require_read_committed() returns void
language plpgsql stable
set search_path from current
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        perform refuse('PGS09', format('this transaction is %s: pgsched decides at READ COMMITTED only', current_setting('transaction_isolation')),
            'Call it in a READ COMMITTED transaction (enqueue works at any level).');
    end if;
end
$$;
comment on function require_read_committed() is 'Refuses other isolation levels (internal).';
