-- A transactional job's handler writes in a transaction of its own, and the success of the job is part of that transaction:
-- both are there or neither is. Its session holds no lock of the worker; its fence is the row in running that it ends.
--
--   work session   begin(worker, claims)               committed first: from now on only the transaction can say "succeeded"
--   job session    begin_transaction(job, claim)       the first statement of the handler's transaction
--                  ... what the handler does ...
--                  finish_transaction(job, claim, result)
--                  COMMIT
--
-- Where the answer of COMMIT, or anything before it, is lost, the worker reports the claim as `broken` on a work session.
-- That settles it, whatever the server still executes of the lost session: either the report ends the claim, and
-- finish_transaction finds nothing to end and raises; or finish_transaction has ended it, and the report is told `busy` until
-- the transaction is over, then `already` (it was committed) or `accepted` (it was not: the job runs again).

-- The handlers of these claims are about to begin, each in a transaction of its own. `claims`: [{"job_id", "claim_id"}, ...].
-- Answers a verdict for each: accepted; cancelled (it was told to stop: it must not begin); busy (somebody holds the row at this
-- moment: ask again); stale (this claim is not, or no longer, this worker's).
-- Locks: its own running rows, skipping those that somebody else holds. Durable whatever the role's default.
-- Errors: PGS02, PGS03, PGS09.
create or replace function begin(worker_id bigint, claims jsonb)
returns table (job_id bigint, claim_id bigint, verdict text)
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    locked bigint[];
    jobs bigint[];
begin
    perform session_of(worker_id);
    perform force_durable();
    perform check_claims('begin', claims);
    select array_agg(r.job_id), coalesce(array_agg(r.claim_id), '{}') into jobs, locked
        from jsonb_to_recordset(claims) g (job_id bigint, claim_id bigint)
            cross join lateral (
                select r.job_id, r.claim_id from running r
                where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = $1
                for update skip locked
            ) r;
    update running r
    set transactional = true, started_at = coalesce(r.started_at, clock_timestamp())
    where r.job_id = any (jobs) and r.claim_id = any (locked) and r.stop_reason is distinct from 'cancel';
    return query
    select g.job_id, g.claim_id,
        coalesce(
            (
                select case
                    when r.claim_id <> all (locked) then 'busy'
                    when r.stop_reason = 'cancel' then 'cancelled'
                    else 'accepted' end
                from running r where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = $1
            ),
            'stale')
    from jsonb_to_recordset(claims) g (job_id bigint, claim_id bigint);
end
$$;
comment on function begin(bigint, jsonb) is 'The handlers of these claims are about to begin, each in a transaction of its own.';

-- Refuses what is not an array of jobs and their claims.
create or replace function check_claims(what text, claims jsonb) returns void
language plpgsql
set search_path from current
as $$
begin
    -- (Its good items are counted, as jsonpath says nothing of a member that is missing. And 1.0 is no whole number here, as it
    -- cannot be read as one.)
    if (jsonb_typeof(claims) = 'array' and jsonb_array_length(claims) = jsonb_array_length(jsonb_path_query_array(claims,
            '$[*] ? (@.job_id.type() == "number" && @.job_id.floor() == @.job_id && @.job_id >= 0 && @.job_id <= $most
                && @.claim_id.type() == "number" && @.claim_id.floor() == @.claim_id && @.claim_id >= 0 && @.claim_id <= $most)',
            '{"most": 9223372036854775807}')) and claims::text !~ '"(job|claim)_id": [0-9]+[.]') is not true then
        perform refuse('PGS09', format('%s: it takes an array of jobs and claims', what), 'For example [{"job_id": 1, "claim_id": 17592186044417}].');
    end if;
end
$$;
comment on function check_claims(text, jsonb) is 'Refuses what is not an array of jobs and their claims (internal).';

-- Marks this transaction as the one of this claim. It reads nothing, so that at SERIALIZABLE it conflicts with nobody.
create or replace function begin_transaction(job_id bigint, claim_id bigint) returns void
language plpgsql security definer
set search_path from current
as $$
begin
    perform set_config('pgsched.transaction', job_id || ':' || claim_id, true);
end
$$;
comment on function begin_transaction(bigint, bigint) is 'Marks this transaction as the one in which this claim''s handler works.';

-- Ends the claim as succeeded, as a part of this transaction, at any isolation level. Only COMMIT may follow: the server ends
-- the session when that does not come within the worker's rescue_after, as the row is held until then (a machine may lose its
-- power here). Raises where the success does not count, so that everything that the transaction has done is undone.
-- Locks: the job's running row; waits for whoever holds it (a cancel that has not committed).
-- Errors: PGS12 this is not the transaction that the handler began in: it has ended that itself; PGS13 the claim is not (or no
-- longer) valid, or not transactional; PGS14 the job was cancelled; PGS15 the result is too large; 40001 at REPEATABLE READ and above, where somebody has
-- changed the row meanwhile.
create or replace function finish_transaction(job_id bigint, claim_id bigint, result jsonb default null, lenient boolean default false) returns void
language plpgsql security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    mine running;
    verdict text;
begin
    if current_setting('pgsched.transaction', true) is distinct from job_id || ':' || claim_id then
        perform refuse('PGS12', format('job %s: its handler has ended the transaction by itself', job_id),
            'A transactional handler must not commit or roll back: what it writes is committed with its success.');
    end if;
    select * into mine from running r
    where r.job_id = finish_transaction.job_id and r.claim_id = finish_transaction.claim_id and r.transactional
    for update;
    if mine.job_id is null then
        perform refuse('PGS13', format('job %s: claim %s is not (or no longer) valid', job_id, claim_id),
            'Its worker was given up, or the claim has ended: what this transaction has done is rolled back.');
    end if;
    -- (What it has made is counted here, under the lock that a cancel would have waited for.)
    if coalesce(current_setting('pgsched.subtasks', true), '') <> '' then
        update running r set subtasks = r.subtasks + current_setting('pgsched.subtasks')::integer where r.job_id = mine.job_id;
    end if;
    perform force_durable();
    perform set_config('idle_in_transaction_session_timeout',
        (1000 * extract(epoch from coalesce((select w.rescue_after from worker w where w.id = mine.worker_id), interval '60 s')))::bigint::text, true);
    verdict := (
        select s.verdict
        from settle(mine.worker_id, jsonb_build_array(jsonb_build_object(
            'job_id', job_id, 'claim_id', claim_id, 'outcome', 'succeeded', 'result', result, 'lenient', lenient)), in_transaction => true) s);
    if verdict is distinct from 'accepted' then
        perform refuse('PGS14', format('job %s was cancelled', job_id), 'What this transaction has done is rolled back.');
    end if;
end
$$;
comment on function finish_transaction(bigint, bigint, jsonb, boolean) is 'Ends the claim as succeeded as a part of this transaction, or raises.';
