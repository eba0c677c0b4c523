-- The errors that these functions raise, by SQLSTATE. The one table of them; Python maps each to a class.
create or replace function errors() returns table (sqlstate text, name text, meaning text)
language sql immutable
set search_path from current
as $$
values
    ('PGS01', 'ProtocolMismatch', 'the worker and the schema speak different protocols: migrate, or install the matching version'),
    ('PGS02', 'NoSession', 'this session is not (or no longer) one of that worker''s: attach, reattach or open_session first'),
    ('PGS03', 'WorkerRescued', 'the worker''s jobs were taken from it: it must stop and attach under a new identity'),
    ('PGS04', 'NotAdopted', 'the database is a copy of another installation: adopt it if it shall work'),
    ('PGS05', 'InvalidJob', 'a value of the job is refused: the message names it'),
    ('PGS06', 'ArgumentsTooLarge', 'the arguments exceed the setting max_args_bytes'),
    ('PGS07', 'WorkerAlive', 'the worker still holds its lock, so its jobs cannot be taken'),
    ('PGS08', 'ReadOnlyServer', 'the server is a standby in recovery: no work is done there'),
    ('PGS09', 'InvalidCall', 'an argument of the call itself is refused: the message names it'),
    ('PGS10', 'KeyContended', 'a unique key changed hands again and again while it was asked for: try again'),
    ('PGS11', 'NotLeader', 'this session does not hold the leader''s lock (or no longer)'),
    ('PGS12', 'TransactionEnded', 'a transactional handler has committed or rolled back by itself'),
    ('PGS13', 'StaleClaim', 'the claim is not (or no longer) valid: what the transaction has done is rolled back'),
    ('PGS14', 'ClaimCancelled', 'the job was cancelled meanwhile: what the transaction has done is rolled back'),
    ('PGS15', 'ResultTooLarge', 'the result exceeds the setting max_result_bytes: what the transaction has done is rolled back'),
    ('PGS16', 'InvalidSchedule', 'a value of the schedule is refused: the message names it')
$$;
comment on function errors() is 'The errors that pgsched''s functions raise, by SQLSTATE, with their names and meanings.';

-- Raises; a function, so that an expression can refuse a value in its place.
create or replace function refuse(code text, message text, hint text default null) returns text
language plpgsql
set search_path from current
as $$
begin
    if hint is null then
        raise exception using errcode = code, message = refuse.message;
    end if;
    raise exception using errcode = code, message = refuse.message, hint = refuse.hint;
end
$$;
comment on function refuse(text, text, text) is 'Raises an error with this SQLSTATE, message and hint (internal).';
