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
