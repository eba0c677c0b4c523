-- What SQL sees of a cron text. pgsched/crontext.py is the home of these rules, and says when such a text ticks; a test holds that
-- both accept the same texts. So one that is wrong is refused where it is given, also to a call from psql.

-- What is wrong with a cron text, or null.
create or replace function cron_problem(cron text) returns text
language plpgsql immutable
set search_path from current
as $$
declare
    names constant text[] := array['second', 'minute', 'hour', 'day of month', 'month', 'day of week'];
    lows constant integer[] := array[0, 0, 0, 1, 1, 0];
    highs constant integer[] := array[59, 59, 23, 31, 12, 7];
    written text := lower(btrim(cron, E' \t\r\n'));
    fields text[];
    item text;
    problem text;
    sets jsonb[] := '{}';
    one integer[];
    found integer[];
begin
    if cron is null then
        return null;
    end if;
    if length(cron) > 1000 then
        return format('cron %s is too long; 1000 characters is the most', shown(cron));
    end if;
    if cron ~ E'[^\t\n\r -~]' then
        return format('cron %s has a character that no cron text has; fields are divided by spaces', shown(cron));
    end if;
    if starts_with(written, '@') then
        written := case written when '@hourly' then '0 * * * *' when '@daily' then '0 0 * * *' when '@midnight' then '0 0 * * *'
            when '@weekly' then '0 0 * * 0' when '@monthly' then '0 0 1 * *' when '@yearly' then '0 0 1 1 *' when '@annually' then '0 0 1 1 *' end;
        if written is null then
            return format('cron %s is not known: of these there are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually', shown(cron));
        end if;
    end if;
    fields := array(select m[1] from regexp_matches(written, E'[^ \t\r\n]+', 'g') with ordinality x (m, n) order by n);
    if cardinality(fields) not in (5, 6) then
        return format('cron %s has %s fields; it takes five (minute, hour, day of month, month, day of week), or six with the second before them', shown(cron), cardinality(fields));
    end if;
    if cardinality(fields) = 5 then
        fields := array['0'] || fields;
    end if;
    for f in 1..6 loop
        found := '{}';
        foreach item in array string_to_array(fields[f], ',') loop
            one := cron_item(item, f, lows[f], highs[f]);
            if one is null then
                return format('cron %s: %s cannot be the %s; allowed are * and %s-%s%s, ranges (2-5), steps (*/2, 1-5/2), lists of these (1,3-5)',
                    shown(cron), shown(item), names[f], lows[f], highs[f], case f when 4 then ', L (the last day)' when 5 then ' or jan-dec'
                        when 6 then ' (0 and 7 are Sunday) or sun-sat, mon#2 (the second Monday)' else '' end);
            end if;
            found := found || one;
        end loop;
        sets := sets || to_jsonb(found);
    end loop;
    -- Whether any month, of any length that it has and beginning on any day of the week, has a day that matches.
    if not exists (
        select
        from (select m::integer as m from jsonb_array_elements(sets[5]) m) month
            cross join lateral (select unnest(case when month.m = 2 then array[28, 29] when month.m in (4, 6, 9, 11) then array[30] else array[31] end) as l) length
            cross join generate_series(0, 6) first
            cross join lateral generate_series(1, length.l) day
            cross join lateral (
                select sets[4] @> to_jsonb(day) or day = length.l and sets[4] @> '-1' as by_month,
                    sets[6] @> to_jsonb((first + day - 1) % 7) or sets[6] @> to_jsonb(10 * ((day + 6) / 7) + (first + day - 1) % 7) as by_week
            ) x
        where case when fields[4] like '*%' or fields[6] like '*%' then x.by_month and x.by_week else x.by_month or x.by_week end
    ) then
        return format('cron %s never fires: no month that it names has a day that it names', shown(cron));
    end if;
    return null;
end
$$;
comment on function cron_problem(text) is 'What is wrong with a cron text, or null (internal).';

-- What one item of a list in a field allows; null where it is wrong. -1 is the last day of a month, 10 * n + d the n-th day d of the
-- week. `field`: 1 second to 6 day of week.
create or replace function cron_item(item text, field integer, low integer, high integer) returns integer[]
language plpgsql immutable
set search_path from current
as $$
declare
    months constant text[] := array['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec'];
    days constant text[] := array['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'];
    parts text[];
    size constant integer := high - low + (field < 6)::integer;
    begins integer;
    ends integer;
    step integer := 1;
begin
    if field = 4 and item = 'l' then
        return array[-1];
    end if;
    if field = 6 and item ~ '#' then
        parts := regexp_match(item, '^([0-9]+|[a-z]{3})#([1-5])$');
        begins := (cron_item(parts[1], field, low, high))[1];
        return case when begins is not null then array[10 * parts[2]::integer + begins] end;
    end if;
    parts := regexp_match(item, '^(\*|([0-9]+|[a-z]{3})(?:-([0-9]+|[a-z]{3}))?)(?:/([0-9]+))?$');
    if parts is null then
        return null;
    end if;
    if parts[4] is not null then
        if ltrim(parts[4], '0') !~ '^[0-9]{1,2}$' or parts[4]::integer > size then
            return null;
        end if;
        step := parts[4]::integer;
    end if;
    if parts[1] = '*' then
        return array(select case when field = 6 then v % 7 else v end from generate_series(low, low + size - 1, step) v);
    end if;
    if parts[4] is not null and parts[3] is null then
        return null;
    end if;
    begins := case when parts[2] ~ '^[0-9]' then case when length(ltrim(parts[2], '0')) <= 2 then parts[2]::integer end
        when field = 5 then array_position(months, parts[2]) when field = 6 then array_position(days, parts[2]) - 1 end;
    if begins is null or begins not between low and high then
        return null;
    end if;
    if parts[3] is null then
        return array[case when field = 6 then begins % 7 else begins end];
    end if;
    ends := case when parts[3] ~ '^[0-9]' then case when length(ltrim(parts[3], '0')) <= 2 then parts[3]::integer end
        when field = 5 then array_position(months, parts[3]) when field = 6 then array_position(days, parts[3]) - 1 end;
    if ends is null or ends not between low and high then
        return null;
    end if;
    if field = 6 then
        begins := begins % 7;
        ends := ends % 7;
        if ends = 0 and (begins > 0 or (parts[3] = '7' and parts[2] <> '7')) then
            ends := 7;
        end if;
    end if;
    if begins > ends then
        return null;
    end if;
    return array(select case when field = 6 then v % 7 else v end from generate_series(begins, ends, step) v);
end
$$;
comment on function cron_item(text, integer, integer, integer) is 'What one item of a list in a field of a cron text allows, or null (internal).';

-- What is wrong with a zone's name, or null. Whether there is such a zone is told by the server's own zone database.
create or replace function zone_problem(zone text) returns text
language plpgsql stable
set search_path from current
as $$
declare
    meant constant jsonb := '{
        "EST": "America/New_York", "EDT": "America/New_York", "ET": "America/New_York", "EST5EDT": "America/New_York",
        "CST": "America/Chicago", "CDT": "America/Chicago", "CT": "America/Chicago", "CST6CDT": "America/Chicago",
        "MST": "America/Denver (America/Phoenix keeps it all year)", "MDT": "America/Denver", "MT": "America/Denver",
        "MST7MDT": "America/Denver", "PST": "America/Los_Angeles", "PDT": "America/Los_Angeles", "PT": "America/Los_Angeles",
        "PST8PDT": "America/Los_Angeles", "AKST": "America/Anchorage", "AKDT": "America/Anchorage",
        "HST": "Pacific/Honolulu", "AST": "America/Halifax", "ADT": "America/Halifax", "NST": "America/St_Johns",
        "NDT": "America/St_Johns", "BRT": "America/Sao_Paulo", "ART": "America/Argentina/Buenos_Aires",
        "BST": "Europe/London", "WET": "Europe/Lisbon", "WEST": "Europe/Lisbon", "CET": "Europe/Paris or Europe/Berlin",
        "CEST": "Europe/Paris or Europe/Berlin", "MEZ": "Europe/Berlin", "MESZ": "Europe/Berlin", "MET": "Europe/Brussels",
        "EET": "Europe/Athens or Europe/Helsinki", "EEST": "Europe/Athens or Europe/Helsinki", "MSK": "Europe/Moscow",
        "TRT": "Europe/Istanbul", "SAST": "Africa/Johannesburg", "CAT": "Africa/Maputo", "EAT": "Africa/Nairobi",
        "WAT": "Africa/Lagos", "GST": "Asia/Dubai", "PKT": "Asia/Karachi",
        "IST": "Asia/Kolkata (or Europe/Dublin, Asia/Jerusalem)", "WIB": "Asia/Jakarta", "ICT": "Asia/Bangkok",
        "SGT": "Asia/Singapore", "HKT": "Asia/Hong_Kong", "JST": "Asia/Tokyo", "KST": "Asia/Seoul",
        "AWST": "Australia/Perth", "ACST": "Australia/Adelaide (Australia/Darwin has no summer time)",
        "ACDT": "Australia/Adelaide", "AEST": "Australia/Sydney (Australia/Brisbane has no summer time)",
        "AEDT": "Australia/Sydney", "NZST": "Pacific/Auckland", "NZDT": "Pacific/Auckland", "Z": "UTC"
    }';
begin
    if zone = 'UTC' then
        return null;
    elsif meant ? upper(zone) then
        return format('timezone %s is an abbreviation, which says nothing about summer time or stands for several places; name a place: %s', shown(zone), meant ->> upper(zone));
    elsif zone !~ '^[A-Za-z][A-Za-z0-9_+/-]*$' or zone ~ '^(posix|right)/' or zone in ('Factory', 'localtime')
        or not exists (select from pg_timezone_names n where n.name = zone) then
        return format('timezone %s is unknown: it takes a name of the IANA zone database, such as America/New_York, or UTC', shown(zone));
    end if;
    return null;
end
$$;
comment on function zone_problem(text) is 'What is wrong with a zone''s name, or null (internal).';
