-- Which job waits for which, and how that came out. An edge leads from a newer job to an older one, so there are no cycles.

create table workflow (
    id bigint generated always as identity (cache 1) primary key,
    name text collate "C" not null,
    jobs integer not null,
    shared integer not null default 0,
    deadline timestamptz,
    deadline_below bigint,
    deadline_over_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    created_by text not null default session_user,
    constraint workflow_name_is_a_name check (length(name) between 1 and 200),
    constraint workflow_jobs_is_a_count check (jobs >= 1),
    constraint workflow_shared_is_a_part check (shared between 0 and jobs),
    constraint workflow_deadline_is_finite check (deadline >= '0001-01-01 00:00+00' and deadline < '9999-01-01 00:00+00')
);
create index workflow_name on workflow (name, id);
create index workflow_deadline on workflow (deadline, id) where deadline is not null and deadline_over_at is null;
comment on table workflow is 'Jobs that were enqueued together under a name. Its jobs name it in job.workflow_id.';
comment on sequence workflow_id_seq is 'The numbers of workflows.';
comment on column workflow.id is 'Its number.';
comment on column workflow.name is 'Its name: many may have the same, one for each run.';
comment on column workflow.jobs is 'How many jobs it was made of.';
comment on column workflow.shared is 'For how many of them another job stands, with the same unique key: it belongs to whoever made it.';
comment on column workflow.deadline is 'What of it has not ended by then is cancelled; null: it has no deadline.';
comment on column workflow.deadline_below is 'The deadline has passed, and is at the jobs with ids below this one.';
comment on column workflow.deadline_over_at is 'When all that had not ended by the deadline had been cancelled: the deadline counts no more.';
comment on column workflow.created_at is 'When it was enqueued.';
comment on column workflow.created_by is 'The role that enqueued it.';

create table dependency (
    job_id bigint not null,
    depends_on_id bigint not null,
    condition text collate "C" not null default 'success',
    outcome text collate "C",
    inputs jsonb,
    primary key (depends_on_id, job_id),
    constraint dependency_is_older check (depends_on_id < job_id),
    constraint dependency_condition_is_known check (condition in ('success', 'failure', 'done')),
    constraint dependency_outcome_is_known check (outcome in ('succeeded', 'failed', 'cancelled', 'skipped')),
    constraint dependency_inputs_are_paths check (jsonb_typeof(inputs) = 'array')
) with (fillfactor = 43);
-- (Every row is written once more, with its outcome: there is room beside all of them for that, so that no index grows by it.)
-- (Without depends_on_id: who asks by that must find no way through this one.)
create index dependency_job on dependency (job_id);
-- (Plans are made once. Where they were made beside one job for which all others wait, or that waits for all others, they would look for
-- edges by the wrong end: so each job is taken to have one dependent and two dependencies, whatever is counted. Who knows both ends
-- then asks by the primary key.)
alter table dependency alter column job_id set (n_distinct = -0.5), alter column depends_on_id set (n_distinct = -1);
comment on table dependency is 'An edge: job_id waits for depends_on_id. Readiness is decided from these rows alone, so that ended jobs can be pruned.';
comment on column dependency.job_id is 'The job that waits.';
comment on column dependency.depends_on_id is 'The older job that it waits for.';
comment on column dependency.condition is 'By which end of it the edge is met: success (succeeded), failure (failed), done (any end).';
comment on column dependency.outcome is 'How it ended; null: not yet, or not noticed yet.';
comment on column dependency.inputs is 'Where in the arguments its result goes: an array of paths, each an array of keys and positions; null: nowhere.';

create table release_check (
    id bigint generated always as identity (cache 1) primary key,
    ended_id bigint,
    look_at_id bigint,
    above bigint not null default 0,
    constraint release_check_is_one_of_two check (num_nonnulls(ended_id, look_at_id) = 1)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
create index release_check_ended on release_check (ended_id) where ended_id is not null;
create index release_check_look on release_check (look_at_id) where look_at_id is not null;
comment on table release_check is 'What release() has to look at: a log, in which nothing is ever changed. A second end of a job is a second row.';
comment on sequence release_check_id_seq is 'The order of events. Cache 1.';
comment on column release_check.id is 'The order of entry.';
comment on column release_check.ended_id is 'This job has ended, or can no longer succeed: all that waits for it is looked at.';
comment on column release_check.above is 'Of the jobs that wait for ended_id those with larger ids: the others have been looked at.';
comment on column release_check.look_at_id is 'This job has got edges whose other ends may have ended unseen: it is looked at.';

create table release_floor (
    only_row boolean primary key default true check (only_row),
    first_id bigint not null,
    until_id bigint,
    writers text[]
);
comment on table release_floor is 'At most one row: where each pass of release() begins (see raise_floor).';
comment on column release_floor.only_row is 'Always true: the table has one row.';
comment on column release_floor.first_id is 'No event has a smaller id, and none ever will.';
comment on column release_floor.until_id is 'The floor is on its way up to what is left of the events up to this one; null: it is not.';
comment on column release_floor.writers is 'Transactions that may have drawn such an id: the floor waits for their end.';

-- Where release() goes on reading: sequences, so that no dead rows are made. (Set by setval; 1 stands for the beginning. A
-- sequence knows no rollback, so they say only in which order events are read, and nothing about what was done.)
create sequence release_at as bigint cache 1;
comment on sequence release_at is 'The event that release() looks at next.';
create sequence release_until as bigint cache 1;
comment on sequence release_until is 'The last event of this pass.';
