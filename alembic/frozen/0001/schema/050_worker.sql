-- Who works here. A worker lives as long as its sessions hold its advisory lock (its id, in shared mode);
-- this table only says who it is.

create table worker (
    id bigint primary key check (id > 0),
    token text not null,
    name text not null,
    host text not null,
    pid integer not null,
    app text not null,
    queues text[] not null,
    tasks text[],
    concurrency integer not null,
    protocol integer not null,
    version text not null,
    rescue_after interval not null,
    generation integer not null default 0,
    attached_at timestamptz not null default clock_timestamp(),
    attached_by text not null default session_user,
    stopped_at timestamptz,
    rescued_at timestamptz,
    rescue_reason text,
    died_with_suspects boolean
);
comment on table worker is 'Every worker that has attached. An identity is used once: a rescued or stopped worker never works again under it.';
comment on column worker.id is 'A random number, and the key of the advisory lock that its sessions hold.';
comment on column worker.token is 'What its sessions prove themselves by.';
comment on column worker.name is 'Its name, as its operator gave it.';
comment on column worker.host is 'The machine it runs on.';
comment on column worker.pid is 'Its process there.';
comment on column worker.app is 'The application whose tasks it runs.';
comment on column worker.queues is 'The queues it serves.';
comment on column worker.tasks is 'The tasks it knows; null: it takes any.';
comment on column worker.concurrency is 'How many jobs it runs at once.';
comment on column worker.protocol is 'The protocol number it speaks.';
comment on column worker.version is 'Its version of pgsched.';
comment on column worker.rescue_after is 'How long its lock must have been free before somebody else may take its jobs without its supervisor''s word.';
comment on column worker.generation is 'How often it has re-attached after a lost session.';
comment on column worker.attached_at is 'When it attached.';
comment on column worker.attached_by is 'The role of its sessions.';
comment on column worker.stopped_at is 'When it stopped by itself with nothing left running.';
comment on column worker.rescued_at is 'When its jobs were taken from it: its word counts no more.';
comment on column worker.rescue_reason is 'On what ground.';
comment on column worker.died_with_suspects is 'Whether a job that an earlier worker had died with had begun when it died: then only such jobs are charged.';
