-- An App says which schedules its code has: `schedules` is an array as put_schedule takes them, all of application `app`.
-- With a number `deployment`, not below the highest that has declared: adds, changes and removes, so that afterwards the code's
-- schedules are these; a lower number changes nothing (an older version that still runs does not fight). Without a number: only adds
-- what is missing and never was removed; `apply` (a step of a deploy) changes and removes without a number too, and refuses a lower one.
-- What was made at run time is never touched. Whether a schedule is paused stays as it is.
-- Answers {"added", "changed", "removed", "kept", "older_than"}: names; kept are those that a worker without a number has left as they
-- were although its code says otherwise; older_than is the highest deployment, where this is an older one.
-- Locks: the application's row of schedule_deployment, so that two that start together declare one after the other.
-- Errors: PGS16 a value is refused, or a schedule of this name was made at run time: nothing is changed then.
create or replace function declare_schedules(app text, schedules jsonb, deployment integer default null, apply boolean default false, checked boolean default false) returns jsonb
language plpgsql security definer
set search_path from current
as $$
#variable_conflict use_column
declare
    given new_schedule[];
    one new_schedule;
    highest integer;
    taken text;
    was schedule;
    is_mine boolean;
    added text[] := '{}';
    changed text[] := '{}';
    kept text[] := '{}';
    removed text[];
begin
    perform require_read_committed();
    if $1 is null or length($1) not between 1 and 100 or jsonb_typeof($2) is distinct from 'array' then
        perform refuse('PGS16', 'declare_schedules: app must be a name of 1 to 100 characters, and schedules an array of objects', 'See put_schedule.');
    end if;
    if $3 not between 0 and 2147483646 then
        perform refuse('PGS16', format('deployment is %s: it is a whole number from 0 to 2147483646, higher at each deploy', $3));
    end if;
    given := read_schedules($2, $1, coalesce($5, false));
    taken := (select g.name from unnest(given) g group by g.name having count(*) > 1 limit 1);
    if taken is not null then
        perform refuse('PGS16', format('two schedules of application %s are named %s', shown($1), shown(taken)), 'Give one of them another name.');
    end if;
    insert into schedule_deployment (app) values ($1) on conflict do nothing;
    select d.deployment into highest from schedule_deployment d where d.app = $1 for update;
    if $3 < highest and $4 then
        perform refuse('PGS16', format('deployment %s of application %s is older than %s, which has declared its schedules', $3, shown($1), highest),
            'A rollback is a deploy, too: give it a number of its own.');
    elsif $3 < highest then
        return jsonb_build_object('added', '{}'::text[], 'changed', '{}'::text[], 'removed', '{}'::text[], 'kept', '{}'::text[], 'older_than', highest);
    end if;
    is_mine := $4 is true or $3 is not null;
    taken := (
        select s.name from schedule s
        where s.app = $1 and s.origin = 'runtime' and s.removed_at is null and s.name = any (array(select g.name from unnest(given) g)) limit 1);
    if taken is not null then
        perform refuse('PGS16', format('schedule %s of application %s was made at run time', shown(taken), shown($1)),
            'Remove it (unschedule), or give the one in the code another name.');
    end if;
    foreach one in array given loop
        was := null;
        select * into was from schedule s where s.app = one.app and s.name = one.name;
        if was.id is null then
            perform enter_schedule(one, 'code');
            added := added || one.name;
        elsif is_mine then
            case enter_schedule(one, 'code') when 'same' then null; else
                if was.removed_at is null then changed := changed || one.name; else added := added || one.name; end if;
            end case;
        elsif was.removed_at is not null or amended(was, one, 'code') is distinct from was then
            kept := kept || one.name;
        end if;
    end loop;
    with gone as (
        update schedule s
        set removed_at = clock_timestamp(), removed_by = session_user, version = s.version + 1, next_tick_at = null, next_local = null, next_nominal = null, plan_after = null
        where is_mine and s.app = $1 and s.origin = 'code' and s.removed_at is null and s.name <> all (array(select g.name from unnest(given) g))
        returning s.name
    )
    select coalesce(array_agg(g.name order by g.name), '{}') into removed from gone g;
    if $3 > coalesce(highest, -1) then
        update schedule_deployment d set deployment = $3, declared_at = clock_timestamp(), declared_by = session_user where d.app = $1;
    end if;
    return jsonb_build_object('added', added, 'changed', changed, 'removed', removed, 'kept', kept, 'older_than', null);
end
$$;
comment on function declare_schedules(text, jsonb, integer, boolean, boolean) is 'An App says which schedules its code has; answers what that has changed.';
