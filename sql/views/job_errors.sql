-- Every attempt that ended without a success, with its error, newest first when ordered by ended_at.
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
comment on view job_errors is 'Every attempt that ended without a success, with its error.';
