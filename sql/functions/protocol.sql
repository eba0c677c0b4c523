-- The number of the protocol that these functions speak. A worker says its own when it attaches; a change that an
-- older worker could not live with raises it.
create or replace function protocol() returns integer
language sql immutable
set search_path from current
as $$ select 1 $$;
comment on function protocol() is 'The number of the protocol that these functions speak.';
