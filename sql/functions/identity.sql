-- What server and database this is, as far as the server tells: a managed one may withhold a function, and then the
-- answer is null and the promise that rests on it weaker.
create or replace function server_identity(out system_identifier bigint, out database_oid oid, out timeline integer)
language plpgsql stable
set search_path from current
as $$
begin
    database_oid := (select oid from pg_database where datname = current_database());
    begin
        system_identifier := (select c.system_identifier from pg_control_system() c);
    exception when insufficient_privilege or undefined_function then
        system_identifier := null;
    end;
    begin
        timeline := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer;
    exception when insufficient_privilege or undefined_function or object_not_in_prerequisite_state then
        timeline := null;
    end;
end
$$;
comment on function server_identity() is 'System identifier, database oid and timeline of this server; null where it withholds one.';

-- Makes this database the home of the queue that it holds: at the first installation, after pg_upgrade, and after a
-- restore or clone that shall work. Raises the epoch, so that no claim id of the original is ever given again.
create or replace function adopt() returns bigint
language plpgsql security definer
set search_path from current
as $$
declare
    here record;
    new_epoch bigint;
begin
    select * into here from server_identity();
    insert into installation (system_identifier, database_oid, timeline, lock_class)
    values (here.system_identifier, here.database_oid, here.timeline, floor(random() * 4294967296 - 2147483648)::bigint::integer)
    on conflict (only_row) do update set
        system_identifier = excluded.system_identifier,
        database_oid = excluded.database_oid,
        timeline = excluded.timeline,
        epoch = installation.epoch + 1,
        not_before = null
    returning epoch into new_epoch;
    return new_epoch;
end
$$;
comment on function adopt() is 'Makes this database the home of the queue that it holds (first installation, pg_upgrade, a restore that shall work); answers the new epoch.';

-- Refuses a copy and a standby; on a new timeline raises the epoch and lets claims wait for `wait`, because a standby
-- that was promoted may have forgotten claims whose handlers still run. `wait`: how long at least; null: as long as the workers
-- it knows need, 60 s where it knows none. Answers the epoch.
-- Locks: the row of installation, only where it changes.
create or replace function check_installation(wait interval) returns bigint
language plpgsql
set search_path from current
as $$
declare
    here record;
    home installation;
begin
    if pg_is_in_recovery() then
        perform refuse('PGS08', 'this server is a standby in recovery; pgsched works on the primary only',
            'Connect with target_session_attrs=read-write, or name the primary.');
    end if;
    select * into here from server_identity();
    select * into home from installation;
    if not found then
        perform refuse('PGS04', 'this schema has no installation row', 'Run "pgsched adopt".');
    end if;
    if home.database_oid is distinct from here.database_oid
        or (home.system_identifier is not null and here.system_identifier is not null
            and home.system_identifier <> here.system_identifier) then
        perform refuse('PGS04', format(
            'database "%s" is a copy: its queue was installed in database %s of system %s, this is database %s of system %s',
            current_database(), home.database_oid, home.system_identifier, here.database_oid, here.system_identifier),
            'If this copy shall run the jobs it holds, and the original no longer does, run "pgsched adopt".');
    end if;
    if here.timeline is not null and home.timeline is distinct from here.timeline then
        update installation
        set timeline = here.timeline,
            epoch = epoch + 1,
            not_before = clock_timestamp() + coalesce(greatest(wait, (
                select max(rescue_after) from worker where rescued_at is null and stopped_at is null)), interval '60 s')
        where timeline is distinct from here.timeline;
    end if;
    return (select epoch from installation);
end
$$;
comment on function check_installation(interval) is 'Refuses a copy and a standby, notices a new timeline, answers the epoch (internal).';
