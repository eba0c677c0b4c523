-- What people call a job that waits for this reason.
create or replace function waiting_state(reason text) returns text
language sql immutable
return case reason
    when 'scheduled' then 'scheduled'
    when 'retry' then 'retrying'
    when 'dependencies' then 'blocked'
    when 'subtasks' then 'parked'
    else 'held'
end;
comment on function waiting_state(text) is 'The state that people see for a reason to wait.';

-- Arguments as they may be shown: the secret ones masked.
create or replace function masked(args jsonb, secret text[]) returns jsonb
language sql immutable
set search_path from current
as $$
select case when secret is null then args
    else args || coalesce((select jsonb_object_agg(s, '***') from unnest(secret) s where args ? s), '{}') end
$$;
comment on function masked(jsonb, text[]) is 'Arguments as they may be shown: the secret ones masked.';

-- A text for an error message: quoted, and cut where it is long.
create or replace function shown(value text) returns text
language sql immutable
set search_path from current
as $$
select case when value is null then 'null'
    when length(value) > 60 then format('"%s..." (%s characters)', left(value, 60), length(value))
    else format('"%s"', value) end
$$;
comment on function shown(text) is 'A text for an error message, cut where it is long (internal).';
