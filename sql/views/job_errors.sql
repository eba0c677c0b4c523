-- Every attempt that ended without a success (or whose job was run again since, state rerun), with its error, newest first when ordered by ended_at.
create or replace view job_errors as
select
    a.job_id,
    j.task,
    j.queue,
    a.attempt,
    a.state,
    a.error_type,
    a.error,
    a.traceback,
    a.claim_id,
    a.worker_id,
    a.started_at,
    a.ended_at
from attempt_log a
    left join job j on j.id = a.job_id;
comment on view job_errors is 'Every attempt that ended without a success, with its error; state rerun: it had succeeded, and its job was run again.';
comment on column job_errors.job_id is 'The job.';
comment on column job_errors.task is 'Its task.';
comment on column job_errors.queue is 'Its queue.';
comment on column job_errors.attempt is 'The number of the attempt.';
comment on column job_errors.state is 'How the claim ended.';
comment on column job_errors.error_type is 'The exception''s class.';
comment on column job_errors.error is 'Its message, or the reason.';
comment on column job_errors.traceback is 'Where it was raised.';
comment on column job_errors.claim_id is 'The claim.';
comment on column job_errors.worker_id is 'The worker.';
comment on column job_errors.started_at is 'When its handler began.';
comment on column job_errors.ended_at is 'When the claim ended.';
