-- The wait after failed attempt number `attempt` (from 1) by a policy:
--   {"kind": "fixed", "after_s"}
--   {"kind": "linear", "first_s", "step_s", "cap_s"}         first, then step more each time, at most cap
--   {"kind": "exponential", "first_s", "factor", "cap_s"}    first, then factor times as long each time, at most cap
-- What is left out, or is no number, is 1 s, a step as large as first, the factor 2, a cap of 1 hour; what is out of range is
-- clamped: spans to 0 to 100 years, the factor to 1.01 to 1000. Any other kind, and no policy at all, is exponential.
-- "jitter": with `random` (0 to below 1) "full" takes a wait between 0 and that one, "equal" between its half and that one; any
-- other, or no `random`: that one itself.
-- It never raises, and before jitter the wait never falls as the attempt grows, up to the cap: finite for any number, as nothing
-- is computed that could overflow. pgsched/retry.py has the same for those who preview, and the same number to the microsecond:
-- spans are whole microseconds, and a power is made by multiplying alone, which is the same on every machine.
create or replace function backoff(policy jsonb, attempt bigint, random double precision default null) returns interval
language plpgsql immutable security definer
set search_path from current
as $$
declare
    kind constant text := coalesce(policy ->> 'kind', '');
    before bigint := greatest(attempt, 1) - 1;
    first constant double precision := micros(policy -> 'first_s', 1000000);
    cap constant double precision := micros(policy -> 'cap_s', 3600000000);
    share constant double precision := least(greatest(coalesce(nullif(random, 'NaN'), 0), 0), 1);
    factor double precision;
    power double precision := 1;
    wait double precision;
begin
    if kind = 'fixed' then
        wait := micros(policy -> 'after_s', 1000000);
    elsif kind = 'linear' then
        wait := least(cap, first + micros(policy -> 'step_s', first) * least(before, 4611686018427387904)::double precision);
    else
        factor := case when jsonb_typeof(policy -> 'factor') = 'number' then least(greatest((policy ->> 'factor')::numeric, 1.01), 1000) else 2 end;
        while before > 0 and power < 1e100 loop
            if before % 2 = 1 then
                power := least(power * factor, 1e100);
            end if;
            factor := least(factor * factor, 1e100);
            before := before / 2;
        end loop;
        wait := least(cap, first * power);
    end if;
    if random is not null then
        wait := case policy ->> 'jitter' when 'full' then wait * share when 'equal' then wait / 2 + wait / 2 * share else wait end;
    end if;
    return interval '1 microsecond' * round(wait);
end
$$;
comment on function backoff(jsonb, bigint, double precision) is 'The wait after a failed attempt by a policy: capped, finite for any number of attempts.';

-- A number of seconds as whole microseconds, clamped to 0 to 100 years; `otherwise` where it is no number (internal).
create or replace function micros(s jsonb, otherwise double precision) returns double precision
language sql immutable
return case when jsonb_typeof(s) = 'number' then round(least(greatest((s #>> '{}')::numeric, 0), 3155760000) * 1000000)::double precision else otherwise end;
comment on function micros(jsonb, double precision) is 'A number of seconds as whole microseconds, clamped to 0 to 100 years (internal).';

-- When the next attempt of a job may begin whose attempt number `attempt` failed at `t`; `run_at` is null where there is none, and
-- `why` says so in words where the error alone does not. `after_s`: the handler's own wish, in place of the policy's wait.
-- The policy's "max_attempts" is for this error only: the job's own holds too. Its "max_age_s" counts from when the job was
-- enqueued, or from its run_at then.
create or replace function next_attempt(the_job bigint, attempt integer, policy jsonb, after_s double precision, t timestamptz,
    out run_at timestamptz, out why text)
language plpgsql
set search_path from current
as $$
#variable_conflict use_variable
declare
    j record;
    most constant numeric := case when jsonb_typeof(policy -> 'max_attempts') = 'number' then (policy ->> 'max_attempts')::numeric end;
    wait interval;
    age interval;
begin
    select x.max_attempts, coalesce(x.run_at, x.created_at) as since into j from job x where x.id = the_job;
    if attempt >= least(j.max_attempts, most) then
        why := case when most < j.max_attempts then format('attempt %s of %s for this error', attempt, most) end;
        return;
    end if;
    wait := case when after_s is null then backoff(policy, attempt, random()) else seconds(after_s) end;
    if jsonb_typeof(policy -> 'max_age_s') = 'number' then
        age := interval '1 microsecond' * micros(policy -> 'max_age_s', 0);
        if t + wait > j.since + age then
            why := format('the next attempt would be due more than max_age, %s, after it was enqueued or due first', age);
            return;
        end if;
    end if;
    run_at := t + wait;
end
$$;
comment on function next_attempt(bigint, integer, jsonb, double precision, timestamptz) is 'When the next attempt of a job may begin, or why there is none (internal).';
