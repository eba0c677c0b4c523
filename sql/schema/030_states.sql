-- State is location: a job is in exactly one of these tables, and every transition is one statement that deletes
-- here and inserts there. No table refers to job by a foreign key (it would cost a third of all claims):
-- check_invariants() guards what a key would.

create table waiting (
    job_id bigint primary key,
    queue text collate "C" not null,
    reason text collate "C" not null,
    run_at timestamptz,
    expires_at timestamptz,
    attempt integer not null default 0,
    lost_attempts integer not null default 0,
    constraint waiting_reason_is_known check (reason in
        ('scheduled', 'retry', 'unknown_task', 'signal', 'dependencies', 'subtasks', 'limit')),
    constraint waiting_for_time_has_a_time check (reason not in ('scheduled', 'retry', 'unknown_task') or run_at is not null),
    constraint waiting_for_subtasks_is_for_nothing_else check (reason <> 'subtasks' or (run_at is null and expires_at is null)),
    constraint waiting_run_at_is_finite check (run_at >= '0001-01-01 00:00+00' and run_at < '9999-01-01 00:00+00'),
    constraint waiting_queue_is_a_name check (length(queue) between 1 and 100),
    constraint waiting_attempt_is_a_count check (attempt between 0 and 2147483646 and lost_attempts between 0 and 2147483646)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
create index waiting_due on waiting (run_at, job_id) where reason in ('scheduled', 'retry', 'unknown_task', 'signal') and run_at is not null;
create index waiting_expiry on waiting (expires_at) where expires_at is not null;
create index waiting_list on waiting (queue, reason, job_id);
comment on table waiting is 'Jobs that may not run yet. The reason says who may move them.';
comment on column waiting.job_id is 'The job.';
comment on column waiting.queue is 'Its queue, as in job.';
comment on column waiting.reason is 'scheduled, retry, unknown_task and signal are moved by stage() when run_at is reached; dependencies and subtasks by release(); limit by whoever frees a slot.';
comment on column waiting.run_at is 'Not before this time; null: no time is waited for. Never infinite.';
comment on column waiting.expires_at is 'Not begun by then, the job ends as skipped; null: never.';
comment on column waiting.attempt is 'Attempts charged so far to the retry budget.';
comment on column waiting.lost_attempts is 'How many workers died while they ran it.';

create table ready (
    queue text collate "C" not null,
    priority smallint not null,
    "position" bigint generated always as identity (cache 1),
    job_id bigint not null,
    expires_at timestamptz,
    attempt integer not null default 0,
    lost_attempts integer not null default 0,
    primary key (queue, priority, "position"),
    constraint ready_holds_a_job_once unique (queue, job_id),
    constraint ready_priority_is_0_to_9 check (priority between 0 and 9),
    constraint ready_queue_is_a_name check (length(queue) between 1 and 100),
    constraint ready_attempt_is_a_count check (attempt between 0 and 2147483646 and lost_attempts between 0 and 2147483646)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
create index ready_suspects on ready (queue, priority, lost_attempts, "position") where lost_attempts > 0;
create index ready_expiry on ready (expires_at) where expires_at is not null;
comment on table ready is 'Jobs that may run now, and nothing else. A lane is one (queue, priority).';
comment on sequence ready_position_seq is 'The positions in ready, of all lanes. Cache 1, and drawn only by the INSERT.';
comment on column ready.queue is 'The queue, as in job.';
comment on column ready.priority is 'The priority, as in job; 0 runs first.';
comment on column ready."position" is 'The order within the lane: drawn by the INSERT itself, never given, so that whoever holds the table''s lock is known to have it still to come.';
comment on column ready.job_id is 'The job.';
comment on column ready.expires_at is 'Not begun by then, the job ends as skipped; null: never.';
comment on column ready.attempt is 'Attempts charged so far to the retry budget.';
comment on column ready.lost_attempts is 'How many workers died while they ran it.';

create sequence claim_number as bigint cache 1;
comment on sequence claim_number is 'The lower bits of claim ids. Cache 1: with more, a job''s second claim could get a smaller fence than its first.';

create table running (
    job_id bigint primary key,
    claim_id bigint not null,
    attempt integer not null,
    lost_attempts integer not null default 0,
    worker_id bigint not null,
    session_no integer not null,
    queue text collate "C" not null,
    expires_at timestamptz,
    claimed_at timestamptz not null,
    started_at timestamptz,
    transactional boolean not null default false,
    subtasks integer not null default 0,
    stop_requested_at timestamptz,
    stop_reason text,
    stop_note text,
    constraint running_attempt_is_a_count check (attempt >= 1 and lost_attempts between 0 and 2147483646 and subtasks >= 0),
    constraint running_stop_has_a_reason check ((stop_requested_at is null) = (stop_reason is null)),
    constraint running_stop_reason_is_known check (stop_reason in ('cancel', 'timeout'))
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
create index running_worker on running (worker_id, session_no);
create index running_stops on running (worker_id) where stop_requested_at is not null;
comment on table running is 'Jobs that a worker has claimed: the row stays until the handler has really ended.';
comment on column running.job_id is 'The job.';
comment on column running.claim_id is 'The fence: new at every claim, never repeats, only grows for a job. Only who presents it may end the claim.';
comment on column running.attempt is 'The number of this attempt in the retry budget, from 1.';
comment on column running.lost_attempts is 'How many workers died before while they ran it.';
comment on column running.worker_id is 'The worker that claimed it.';
comment on column running.session_no is 'Which of that worker''s work sessions claimed it.';
comment on column running.queue is 'Its queue, as in job.';
comment on column running.expires_at is 'Not begun by then, it ends as skipped; over once started_at is set.';
comment on column running.claimed_at is 'When it was claimed.';
comment on column running.started_at is 'When its handler began; null while the worker only holds it.';
comment on column running.transactional is 'Its success counts only through the handler''s own transaction.';
comment on column running.subtasks is 'How many subtasks this claim has made; also the lock between that and a cancel.';
comment on column running.stop_requested_at is 'When it was told to stop; the job shows as cancelling.';
comment on column running.stop_reason is 'cancel: however it ends, it ends as cancelled. timeout: it ends as its worker reports.';
comment on column running.stop_note is 'Why it was cancelled, in the words of who did it.';

create table finished (
    job_id bigint primary key,
    queue text collate "C" not null,
    state text collate "C" not null,
    reason text,
    claim_id bigint,
    attempt integer not null,
    worker_id bigint,
    started_at timestamptz,
    finished_at timestamptz not null,
    cause_job_id bigint,
    result jsonb,
    constraint finished_state_is_known check (state in ('succeeded', 'failed', 'cancelled', 'skipped'))
);
create index finished_list on finished (queue, state, job_id);
create index finished_time on finished using brin (finished_at) with (autosummarize = on);
comment on table finished is 'Jobs that have ended for good.';
comment on column finished.job_id is 'The job.';
comment on column finished.queue is 'Its queue, as in job.';
comment on column finished.state is 'succeeded, failed, cancelled or skipped.';
comment on column finished.reason is 'Why, in words; null for a success.';
comment on column finished.claim_id is 'The claim that ended it; null where it never ran.';
comment on column finished.attempt is 'Attempts charged to its retry budget.';
comment on column finished.worker_id is 'The worker that ended it.';
comment on column finished.started_at is 'When its last attempt began.';
comment on column finished.finished_at is 'When it ended.';
comment on column finished.cause_job_id is 'The dependency whose end made this one impossible; null where it ended by itself.';
comment on column finished.result is 'What its handler returned.';

create table attempt_log (
    job_id bigint not null,
    claim_id bigint not null,
    attempt integer not null,
    state text collate "C" not null,
    error_type text,
    error text,
    traceback text,
    worker_id bigint,
    started_at timestamptz,
    ended_at timestamptz not null,
    primary key (job_id, claim_id),
    constraint attempt_log_state_is_known check (state in
        ('failed', 'retried', 'snoozed', 'parked', 'given_back', 'cancelled', 'conflict', 'broken', 'lost', 'rerun'))
);
comment on table attempt_log is 'One row for every claim that ended without a success, and why; and for a success whose job was run again.';
comment on column attempt_log.job_id is 'The job.';
comment on column attempt_log.claim_id is 'The claim.';
comment on column attempt_log.attempt is 'The number of the attempt in the retry budget.';
comment on column attempt_log.state is 'How the claim ended: failed and cancelled ended the job; conflict: its transaction met another''s; broken: its transaction''s connection ended; lost: its worker died; rerun: it had succeeded, and rerun_workflow() has let its job run again.';
comment on column attempt_log.error_type is 'The exception''s class.';
comment on column attempt_log.error is 'Its message.';
comment on column attempt_log.traceback is 'Where it was raised.';
comment on column attempt_log.worker_id is 'The worker that had claimed it.';
comment on column attempt_log.started_at is 'When its handler began; null where it had not.';
comment on column attempt_log.ended_at is 'When the claim ended.';
