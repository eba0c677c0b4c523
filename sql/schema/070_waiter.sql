-- Who waits for the end of a job, so that a NOTIFY, which takes a lock of the whole server at its commit, is sent only where
-- somebody listens.

create table waiter (
    job_id bigint not null,
    n bigint generated always as identity (cache 1),
    primary key (job_id, n)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
comment on table waiter is 'Jobs whose end somebody waits for: whoever ends one deletes its rows and notifies. A hint: who waits also polls.';
comment on sequence waiter_n_seq is 'Tells the rows of one job apart.';
comment on column waiter.job_id is 'The job.';
comment on column waiter.n is 'Tells its rows apart. A job may have several: a unique one would let those who wait for a job wait for each other''s transactions.';
