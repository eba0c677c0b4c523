-- What list_failed() and failed_groups() answer. (Types of their own, as their columns are named like the filters.)

create type failed_job as (
    job_id bigint,
    task text,
    queue text,
    error_type text,
    error text,
    attempt integer,
    finished_at timestamptz
);
comment on type failed_job is 'A job that has failed for good, and the error of its last attempt.';

create type failed_group as (
    task text,
    queue text,
    error_type text,
    error text,
    jobs bigint,
    first_at timestamptz,
    last_at timestamptz,
    job_id bigint,
    looked_at bigint
);
comment on type failed_group is 'Failed jobs that failed of the same: how many, since when, the newest one and its error.';
