-- What running jobs say of how far they are. A report inserts a row and deletes the older ones of its claim: a row that was
-- updated every second would pile up versions under an old snapshot, each of which a reader walks over. Here he reads the
-- newest by the index downwards, and stops.

create table progress (
    claim_id bigint not null,
    n bigint generated always as identity (cache 1),
    job_id bigint not null,
    fraction double precision,
    message text,
    at timestamptz not null default clock_timestamp(),
    primary key (claim_id, n),
    constraint progress_fraction_is_0_to_1 check (fraction between 0 and 1)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
comment on table progress is 'How far running jobs are, as their handlers said: the row with the largest n of a claim counts. Those of ended claims go with prune().';
comment on sequence progress_n_seq is 'The order of reports. Cache 1: with more, an older report could look newer.';
comment on column progress.claim_id is 'The claim.';
comment on column progress.n is 'The order of its reports.';
comment on column progress.job_id is 'The job.';
comment on column progress.fraction is '0 to 1; null: not said.';
comment on column progress.message is 'In words, at most 1000 characters.';
comment on column progress.at is 'When the report came in.';
