-- Takes what the worker's running jobs say of how far they are: an array of {job_id, claim_id, fraction?, message?}. A
-- fraction is moved into 0 to 1 and a message cut to 1000 characters, so that no report stands in the way of another; what is
-- said of a claim that this worker does not run (any more) is ignored. Answers how many were taken.
-- Locks: none that anybody waits for.
-- Errors: PGS02, PGS03, PGS09 no array; a value that cannot be stored (class 22).
create or replace function report_progress(worker_id bigint, progress jsonb) returns integer
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
    taken integer;
begin
    perform session_of(worker_id);
    if jsonb_typeof($2) is distinct from 'array' then
        perform refuse('PGS09', 'report_progress: progress must be an array of objects',
            'For example [{"job_id": 1, "claim_id": 17592186044417, "fraction": 0.4, "message": "reading"}].');
    end if;
    with mine as materialized (
        select g.job_id, g.claim_id, least(greatest(g.fraction, 0), 1) as fraction, left(g.message, 1000) as message
        from jsonb_to_recordset($2) g (job_id bigint, claim_id bigint, fraction double precision, message text)
        where g.claim_id = (select r.claim_id from running r where r.job_id = g.job_id and r.worker_id + 0 = $1)
    ), entered as (
        insert into progress (claim_id, job_id, fraction, message) select claim_id, job_id, fraction, message from mine
    ), older as (
        -- (Those of this statement's own are not in its snapshot.)
        delete from progress where claim_id = any (array(select claim_id from mine))
    )
    select count(*) into taken from mine;
    return taken;
end
$$;
comment on function report_progress(bigint, jsonb) is 'Takes what the worker''s running jobs say of how far they are; answers how many were taken.';
