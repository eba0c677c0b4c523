-- What becomes of a job whose subtasks have still to end.

create table subtask_made (
    made_at timestamptz not null default clock_timestamp()
);
comment on table subtask_made is 'Has a row as soon as a subtask was ever made (a few, where several were the first): where there is none, nobody needs to ask whose subtask a job is.';
comment on column subtask_made.made_at is 'When.';

create table parked (
    job_id bigint primary key,
    claim_id bigint not null,
    outcome text collate "C" not null,
    lenient boolean not null default false,
    reason text,
    result jsonb,
    run_at timestamptz,
    worker_id bigint not null,
    started_at timestamptz,
    ended_at timestamptz not null,
    above bigint not null default 0,
    constraint parked_outcome_is_known check (outcome in ('succeeded', 'failed', 'cancelled', 'retry', 'snooze', 'conflict', 'give_back')),
    constraint parked_run_at_is_for_later check ((outcome in ('retry', 'snooze', 'conflict')) = (run_at is not null)),
    constraint parked_result_is_of_a_success check (result is null or outcome = 'succeeded')
) with (fillfactor = 70);
comment on table parked is 'Claims that have ended while subtasks which they made have not: what becomes of their jobs then. The job itself stands in waiting, for subtasks.';
comment on column parked.job_id is 'The job.';
comment on column parked.claim_id is 'The claim that has ended: its subtasks are waited for.';
comment on column parked.outcome is 'What becomes of the job once all its subtasks have ended. Where it is not succeeded, those that have not ended are cancelled.';
comment on column parked.lenient is 'Whether a success stays one where subtasks have failed.';
comment on column parked.reason is 'Why, in words; null for a success.';
comment on column parked.result is 'What its handler returned.';
comment on column parked.run_at is 'Not before this time, where it runs again.';
comment on column parked.worker_id is 'The worker that ended the claim.';
comment on column parked.started_at is 'When its handler began.';
comment on column parked.ended_at is 'When its handler ended.';
comment on column parked.above is 'Its subtasks with ids up to this one have all ended.';
