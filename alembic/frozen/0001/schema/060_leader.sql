-- Who leads is told by an advisory lock that a session holds (locks() has the map); this table keeps the history.

create table leader_term (
    term bigint generated always as identity (cache 1) primary key,
    name text not null,
    host text not null,
    pid integer not null,
    backend_pid integer not null,
    began_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    end_reason text,
    constraint leader_term_end_has_a_reason check ((ended_at is null) = (end_reason is null))
);
create unique index leader_term_open on leader_term ((true)) where ended_at is null;
comment on table leader_term is 'Every term of leadership. Who leads now is told by the lock, not by this table: the view leader reads it.';
comment on column leader_term.term is 'The term''s number; it only grows.';
comment on sequence leader_term_term_seq is 'The numbers of terms.';
comment on column leader_term.name is 'The leader''s name.';
comment on column leader_term.host is 'Its machine.';
comment on column leader_term.pid is 'Its process there.';
comment on column leader_term.backend_pid is 'Its session''s backend.';
comment on column leader_term.began_at is 'When it took the lock.';
comment on column leader_term.ended_at is 'When it resigned, or when the next leader found that its session had ended.';
comment on column leader_term.end_reason is 'Why it ended.';
