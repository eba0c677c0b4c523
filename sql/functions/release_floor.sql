-- Begins the next passes behind events that are gone. A snapshot that somebody keeps (a report, a dump) keeps vacuum from removing
-- those, and each pass would walk over all of them. Below the floor nothing can appear any more, whoever commits late with a low
-- number: whoever enters an event has locked the table before he draws its number, and holds that lock until he ends. So:
--   1. the number that was drawn last; in a new statement, who holds such a lock: the number and they are noted (and whoever is prepared
--      for a commit in two phases: one of them may do that meanwhile, and has another name then)
--   2. once all who were noted have ended, in a new statement, which sees what they have committed: the first event that is left
-- The next call looks again where somebody has not ended; where it finds nothing new it writes nothing (the floor would have dead versions
-- of its own, just where the events have them). What this transaction deletes is still there at this point, and the floor is
-- rolled back with it.
create or replace function raise_floor() returns void
language plpgsql
set search_path from current
as $$
declare
    known release_floor;
    former release_floor;
begin
    select * into former from release_floor f where f.only_row;
    known := former;
    if known.until_id is null then
        known.until_id := (select case when s.is_called then s.last_value else 0 end from release_check_id_seq s);
        known.writers := array(select event_writers()) || 'prepared'::text;
    end if;
    if known.writers && array(select event_writers()) is false then
        known.first_id := coalesce((
            select e.id from release_check e
            where e.id between coalesce(known.first_id, 1) and known.until_id
            order by e.id
            limit 1), known.until_id + 1);
        known.until_id := null;
        known.writers := null;
    end if;
    insert into release_floor
    select true, coalesce(known.first_id, 1), known.until_id, known.writers where known is distinct from former
    on conflict (only_row) do update set first_id = excluded.first_id, until_id = excluded.until_id, writers = excluded.writers;
end
$$;
comment on function raise_floor() is 'Begins the next passes of release() behind events that are gone (internal).';

-- Those other transactions that may have drawn an event's number and not ended, as pg_locks names them; 'prepared' for each that
-- is prepared for a commit in two phases.
create or replace function event_writers() returns setof text
language sql stable
set search_path from current
as $$
select case when l.pid is null then 'prepared' else l.virtualtransaction end
from pg_locks l
where l.locktype = 'relation' and l.granted
    and l.database = (select d.oid from pg_database d where d.datname = current_database()) and l.relation = 'release_check'::regclass
    and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    and l.pid is distinct from pg_backend_pid()
$$;
comment on function event_writers() is 'Those other transactions that may have drawn an event''s number and not ended (internal).';
