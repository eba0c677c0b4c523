-- What this installation is, and the few numbers that an operator may change.

create table setting (
    name text primary key,
    value jsonb not null,
    description text not null,
    constraint setting_value_is_a_count check
        (jsonb_typeof(value) = 'number' and (value #>> '{}')::numeric = trunc((value #>> '{}')::numeric) and (value #>> '{}')::numeric between 0 and 2147483647)
);
comment on table setting is 'Numbers that an operator may change with UPDATE; read by the functions at each call.';
comment on column setting.name is 'The setting''s name, as the documentation spells it.';
comment on column setting.value is 'Its value, as JSON.';
comment on column setting.description is 'What it does, its unit and its default.';

insert into setting (name, value, description) values
    ('max_args_bytes', '1048576', 'Largest size of one job''s arguments in bytes, as stored (jsonb). Default 1048576 (1 MiB).'),
    ('max_result_bytes', '1048576', 'Largest size of what one job''s handler returned in bytes, as stored (jsonb). Default 1048576 (1 MiB).'),
    ('max_lost_attempts', '3', 'How many workers may die while they run one job before the job ends as failed. Default 3.'),
    ('max_conflicts', '100', 'How often one attempt may be repeated uncharged because its transaction met another''s (40001, 40P01), or its connection ended. Default 100.');

create table installation (
    only_row boolean primary key default true check (only_row),
    system_identifier bigint,
    database_oid oid not null,
    timeline integer,
    epoch bigint not null default 1 check (epoch between 1 and 524287),
    not_before timestamptz,
    lock_class integer not null,
    created_at timestamptz not null default clock_timestamp()
);
comment on table installation is 'One row: which server and database this queue belongs to, and its epoch. A restored or cloned copy does not match it and is refused until adopted.';
comment on column installation.only_row is 'Always true: the table has one row.';
comment on column installation.system_identifier is 'The cluster''s system identifier; null where the server withholds it.';
comment on column installation.database_oid is 'The database''s oid within its cluster.';
comment on column installation.timeline is 'The timeline of the write-ahead log last seen; null where the server withholds it.';
comment on column installation.epoch is 'Raised at each new timeline and at each adoption; the upper bits of every claim id, so that claim ids never repeat.';
comment on column installation.not_before is 'No claim is given out before this time (null: at once): a standby that was promoted may have forgotten claims whose handlers still run.';
comment on column installation.lock_class is 'A random number: the class of this installation''s advisory locks. locks() has the map.';
comment on column installation.created_at is 'When the schema was made.';

create table access (
    role_name name not null,
    level text not null check (level in ('reader', 'client', 'worker')),
    granted_at timestamptz not null default clock_timestamp(),
    primary key (role_name, level)
);
comment on table access is 'Which roles were granted which level by grant_access(), so that a migration can grant what it adds.';
comment on column access.role_name is 'The role.';
comment on column access.level is 'reader looks, client looks and enqueues, worker does both and runs jobs.';
comment on column access.granted_at is 'When it was granted.';
