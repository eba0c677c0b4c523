-- The subtasks of a job's present life, oldest first: those that its last claim made (that which runs, that which waits for them, or
-- that which ended it). Errors: PGS05 no such job.
create or replace function subtasks(job_id bigint) returns setof jobs
language plpgsql stable security definer
set search_path from current
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    the_job constant bigint := $1;
begin
    if (select true from job j where j.id = the_job) is null then
        perform refuse('PGS05', format('there is no job %s', coalesce(the_job::text, 'null')), 'It was pruned, or never was.');
    end if;
    return query
    select s.*
    from (
        select coalesce(
            (select r.claim_id from running r where r.job_id = the_job),
            (select p.claim_id from parked p where p.job_id = the_job),
            (select f.claim_id from finished f where f.job_id = the_job)) as claim_id
    ) c
        cross join lateral (
            select j.id from job j where j.parent_id = the_job and j.parent_claim_id = c.claim_id order by j.parent_id, j.parent_claim_id, j.id
        ) j
        cross join lateral (select x.* from jobs x where x.id = j.id) s;
end
$$;
comment on function subtasks(bigint) is 'The subtasks that a job''s last claim made, oldest first, as the view jobs shows them.';
