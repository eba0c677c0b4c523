-- Notes that jobs have ended for which others wait, or whose subtasks they are: the one home of that, whoever inserts into finished.
-- What is simple is decided here and at once, so that a chain needs no second transaction: a dependent that may run now, all of whose other edges are
-- decided, and whose row nobody holds. (Not one that can never run: its own end would come back here, as deep as the graph.)
-- The edges are read in a later statement than the one that ended the jobs: it sees all that was committed before. At other
-- isolation levels nothing of the kind can be known, so each end is noted.
create or replace function tell_dependents() returns trigger
language plpgsql
set search_path from current
as $$
declare
    most constant integer := 8;
    few constant integer := 32;
    most_parents constant integer := 256;
    parents bigint[];
    succeeded boolean;
    is_fan_in boolean;
    children bigint[];
    ends bigint[];
    states text[];
begin
    if (select true from subtask_made limit 1) then
        insert into release_check (look_at_id)
        select distinct p.id from ended e cross join lateral (select j.parent_id as id from job j where j.id = e.job_id) p where p.id is not null;
        if found then
            perform set_config('pgsched.events', 'yes', true);
        end if;
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        insert into release_check (ended_id) select e.job_id from ended e;
        return null;
    end if;
    -- (Where one job waits for all of these and for many more, as it seems from the first dependent of each, nothing here is simple.)
    select array_agg(p.job_id), bool_and(p.state = 'succeeded'),
        min(p.child) = max(p.child) and (select count(*) from (select from dependency o where o.job_id = min(p.child) limit few + 1) o) > few
    into parents, succeeded, is_fan_in
    from (
        select e.job_id, e.state, d.job_id as child
        from ended e cross join lateral (select d.job_id from dependency d where d.depends_on_id = e.job_id limit 1) d
        limit most_parents + 1
    ) p;
    if parents is null then
        return null;
    end if;
    if succeeded and not is_fan_in and cardinality(parents) = 1 and hand_over(parents[1]) then
        return null;
    end if;
    -- (Of so many that end at once the releaser takes care: here each edge would be compared with each of them.)
    if cardinality(parents) > most_parents then
        parents := array(select e.job_id from ended e);
        -- (A cancel has written on all their edges, and nobody behind them waits: that is seen without a look for each of them.)
        if (select true from dependency d where d.depends_on_id = any (parents) and d.outcome is null limit 1) is null
            and (
                select true from waiting w
                where w.job_id = any (array(select d.job_id from dependency d where d.depends_on_id = any (parents))) and w.reason || '' = 'dependencies'
                limit 1) is null then
            return null;
        end if;
    end if;
    children := case when cardinality(parents) <= most_parents and not is_fan_in then array(
        select c.id
        from (
            select distinct d.job_id as id
            from unnest(parents) p (id)
                cross join lateral (
                    select d.job_id from dependency d where d.depends_on_id = p.id and d.outcome is null order by d.job_id limit most
                ) d
        ) c
        -- (Of one that waits for many, as far as it takes to know that: each of its dependencies would read all the others' edges.)
        where (
            select count(*) <= few and bool_and(o.outcome is not null or (o.depends_on_id in (select unnest(parents))) is true)
            from (select x.outcome, x.depends_on_id from dependency x where x.job_id = c.id limit few + 1) o)) else '{}' end;
    if children <> '{}' then
        children := array(
            select w.job_id from waiting w
            where w.job_id = any (children) and w.reason || '' = 'dependencies'
            for update skip locked);
        select array_agg(e.job_id), array_agg(e.state) into ends, states from ended e;
        perform write_outcomes(array_agg(d.ctid), array_agg(d.job_id), array_agg(d.depends_on_id), ends, states)
        from unnest(children) c (id) cross join lateral (
            select d.ctid, d.job_id, d.depends_on_id from dependency d where d.job_id = c.id and d.outcome is null offset 0) d;
        perform carry_out(children, only_met => true);
    end if;
    insert into release_check (ended_id)
    select p.id from unnest(parents) p (id)
    where (
        select true from dependency d
        where d.depends_on_id = p.id and (
            d.outcome is null or (select true from waiting w where w.job_id = d.job_id and w.reason || '' = 'dependencies'))
        limit 1);
    if found then
        perform set_config('pgsched.events', 'yes', true);
    end if;
    return null;
end
$$;
comment on function tell_dependents() is 'Notes that jobs have ended for which others wait, and decides what is simple (internal: a trigger of finished).';

create or replace trigger tell_dependents after insert on finished
referencing new table as ended
for each statement execute function tell_dependents();
comment on trigger tell_dependents on finished is 'What waits for these jobs is looked at.';
