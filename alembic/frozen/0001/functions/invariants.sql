-- Every violation of what must always hold, one row each: none, always. STABLE, so that all of it reads one snapshot
-- (otherwise a job on its way from one table to the next would be seen in none). It reads every table whole.
create or replace function check_invariants() returns table (invariant text, job_id bigint, detail text)
language sql stable security definer
set search_path from current
as $$
with place as (
    select job_id, 'waiting' as location, queue from waiting
    union all select job_id, 'ready', queue from ready
    union all select job_id, 'running', queue from running
    union all select job_id, 'finished', queue from finished
), placed as (
    select job_id, count(*) as n, string_agg(location, ', ') as locations, min(queue) as queue from place group by job_id
), verdict as (
    select d.* from decide(array(select j.id from job j where j.rule is not null)) d
)
select 'a job is in exactly one state table', j.id, 'in ' || coalesce(p.locations, 'none')
from job j left join placed p on p.job_id = j.id
where p.n is distinct from 1
union all
select 'a job that has not ended has its definition', p.job_id, 'in ' || p.locations
from placed p
where p.locations <> 'finished' and not exists (select from job j where j.id = p.job_id)
union all
select 'a state row says the queue of its definition', p.job_id, format('%s, not %s', p.queue, j.queue)
from placed p join job j on j.id = p.job_id
where p.n = 1 and p.queue <> j.queue
union all
select 'a ready row says the priority of its definition', r.job_id, format('%s, not %s', r.priority, j.priority)
from ready r join job j on j.id = r.job_id
where r.priority <> j.priority
union all
select 'a job that has not ended holds its unique key', j.id, j.unique_key
from job j
where j.unique_key is not null and not exists (select from finished f where f.job_id = j.id)
    and not exists (select from job_key k where k.job_id = j.id and k.task = j.task and k.unique_key = j.unique_key)
union all
select 'a unique key is held by a job that has not ended', k.job_id, k.unique_key
from job_key k
where not exists (select from job j where j.id = k.job_id) or exists (select from finished f where f.job_id = k.job_id)
union all
select 'a claim ends once', a.job_id, format('claim %s is in attempt_log and in running', a.claim_id)
from attempt_log a join running r on r.job_id = a.job_id and r.claim_id = a.claim_id
union all
select 'a claim that ended without a success is in attempt_log', f.job_id, format('claim %s', f.claim_id)
from finished f
where f.state <> 'succeeded' and f.claim_id is not null
    and not exists (select from attempt_log a where a.job_id = f.job_id and a.claim_id = f.claim_id)
union all
select 'a job is claimed by its fence: claims only grow', a.job_id, format('claim %s ended before, now %s', a.claim_id, r.claim_id)
from attempt_log a join running r on r.job_id = a.job_id
where a.claim_id >= r.claim_id
union all
select 'a claim that succeeded is not in attempt_log', f.job_id, format('claim %s', f.claim_id)
from finished f join attempt_log a on a.job_id = f.job_id and a.claim_id = f.claim_id
where f.state = 'succeeded'
union all
select 'an attempt belongs to a job', a.job_id, format('claim %s', a.claim_id)
from attempt_log a
where not exists (select from job j where j.id = a.job_id) and not exists (select from finished f where f.job_id = a.job_id)
union all
select 'a claim id is given once', min(c.job_id), format('claim %s stands %s times', c.claim_id, count(*))
from (
    select job_id, claim_id from running union all select job_id, claim_id from parked
    union all select job_id, claim_id from finished where claim_id is not null) c
group by c.claim_id
having count(*) > 1
union all
select 'a worker that has stopped runs nothing', r.job_id, format('worker %s', r.worker_id)
from running r join worker w on w.id = r.worker_id
where w.stopped_at is not null
union all
select 'a running job is within its retry budget', r.job_id, format('attempt %s of %s', r.attempt, j.max_attempts)
from running r join job j on j.id = r.job_id
where r.attempt > j.max_attempts
union all
select 'a claim''s epoch is not above the installation''s', r.job_id, format('claim %s', r.claim_id)
from running r
where r.claim_id >> 44 > (select epoch from installation)
union all
select 'a job waits, ready or not, within its retry budget', x.job_id, format('attempt %s of %s', x.attempt, j.max_attempts)
from (select job_id, attempt from waiting where reason <> 'subtasks' union all select job_id, attempt from ready) x join job j on j.id = x.job_id
where x.attempt >= j.max_attempts
union all
select 'a job that waits for dependencies has a rule and edges', w.job_id, coalesce('rule ' || j.rule, 'no rule')
from waiting w left join job j on j.id = w.job_id
where w.reason = 'dependencies' and (j.rule is null or not exists (select from dependency d where d.job_id = w.job_id))
union all
select 'a job runs only when its rule is met', v.job_id, format('it is %s', v.verdict)
from verdict v
where v.verdict <> 'met' and (
    v.job_id in (select r.job_id from ready r union all select r.job_id from running r union all select w.job_id from waiting w where w.reason <> 'dependencies')
    or v.job_id in (select f.job_id from finished f where f.claim_id is not null))
union all
select 'a job ends by a cause only when its rule can no longer be met', v.job_id, format('it is %s', v.verdict)
from verdict v join finished f on f.job_id = v.job_id
where f.cause_job_id is not null and v.verdict in ('met', 'open')
union all
select 'whose rule is decided does not wait without being looked at', w.job_id, format('it is %s', v.verdict)
from waiting w join verdict v on v.job_id = w.job_id
where w.reason = 'dependencies'
    and (v.verdict <> 'open' or exists (
        select from dependency d
        where d.job_id = w.job_id and d.outcome is null and (
            exists (select from finished f where f.job_id = d.depends_on_id)
            or d.condition <> 'done' and exists (select from running r where r.job_id = d.depends_on_id and r.stop_reason = 'cancel')
            or d.condition <> 'done' and exists (select from parked p where p.job_id = d.depends_on_id and p.outcome = 'cancelled'))))
    and not exists (select from release_check e where e.look_at_id = w.job_id)
    and not exists (select from release_check e join dependency d on d.depends_on_id = e.ended_id where d.job_id = w.job_id)
union all
select 'the edges of a job that waits say how its dependencies ended', w.job_id, format('job %s: %s', d.depends_on_id, d.outcome)
from waiting w join dependency d on d.job_id = w.job_id join job p on p.id = d.depends_on_id
where w.reason = 'dependencies' and d.outcome is not null
    and d.outcome is distinct from (select f.state from finished f where f.job_id = d.depends_on_id)
    and not (d.outcome = 'cancelled' and (exists (select from running r where r.job_id = d.depends_on_id and r.stop_reason = 'cancel')
        or exists (select from parked k where k.job_id = d.depends_on_id and k.outcome = 'cancelled')))
union all
select 'an edge leads to a job that is there, or says how it ended', d.job_id, format('job %s', d.depends_on_id)
from dependency d
where d.outcome is null and not exists (select from job j where j.id = d.depends_on_id) and not exists (select from finished f where f.job_id = d.job_id)
union all
select 'what waits for subtasks has its outcome pending', coalesce(w.job_id, p.job_id), coalesce(w.reason, 'does not wait')
from (select * from waiting where reason = 'subtasks') w full join parked p on p.job_id = w.job_id
where w.job_id is null or p.job_id is null
union all
select 'no subtask outlives the claim that made it', j.id, format('claim %s of job %s', j.parent_claim_id, j.parent_id)
from job j
where j.parent_id is not null and not exists (select from finished f where f.job_id = j.id)
    and not exists (select from running r where r.job_id = j.parent_id and r.claim_id = j.parent_claim_id)
    and not exists (select from parked p where p.job_id = j.parent_id and p.claim_id = j.parent_claim_id)
union all
select 'subtasks of what was cancelled are cancelled', j.id, format('claim %s of job %s', j.parent_claim_id, j.parent_id)
from job j join running r on r.job_id = j.parent_id and r.claim_id = j.parent_claim_id and r.stop_reason = 'cancel'
where not exists (select from finished f where f.job_id = j.id)
    and not exists (select from running s where s.job_id = j.id and s.stop_reason = 'cancel')
    and not exists (select from parked s where s.job_id = j.id and s.outcome = 'cancelled')
    and not exists (select from release_check e where e.look_at_id = j.parent_id)
union all
select 'subtasks of what has not succeeded end with it, or it is looked at', j.id, format('claim %s of job %s', j.parent_claim_id, j.parent_id)
from job j join parked p on p.job_id = j.parent_id and p.claim_id = j.parent_claim_id and p.outcome <> 'succeeded'
where not exists (select from finished f where f.job_id = j.id)
    and not exists (select from running s where s.job_id = j.id and s.stop_reason = 'cancel')
    and not exists (select from parked s where s.job_id = j.id and s.outcome = 'cancelled')
    and not exists (select from release_check e where e.look_at_id = j.parent_id)
union all
select 'a claim knows that it has made subtasks', j.parent_id, format('job %s', j.id)
from job j join running r on r.job_id = j.parent_id and r.claim_id = j.parent_claim_id
where r.subtasks = 0
union all
select 'whose subtasks have all ended does not wait without being looked at', p.job_id, p.outcome
from parked p
where not exists (select from open_subtasks(p.job_id, p.claim_id, 0)) and not exists (select from release_check e where e.look_at_id = p.job_id)
union all
select 'what a job has left behind as ended has ended', p.job_id, format('a subtask with an id up to %s has not', p.above)
from parked p
where exists (select from open_subtasks(p.job_id, p.claim_id, 0) s (id) where s.id <= p.above)
union all
select 'an edge does not leave the subtasks of one job', d.job_id, format('job %s', d.depends_on_id)
from dependency d join job j on j.id = d.job_id join job p on p.id = d.depends_on_id
where j.parent_id is distinct from p.parent_id
union all
select 'a tick is made once', min(j.id), format('schedule %s at %s: %s jobs', j.schedule_id, j.tick_at, count(*))
from job j
where j.schedule_id is not null and j.workflow_id is null
group by j.schedule_id, j.tick_at
having count(*) > 1
union all
select 'a tick is made once', min(j.id), format('schedule %s at %s: %s workflows', j.schedule_id, j.tick_at, count(distinct j.workflow_id))
from job j
where j.schedule_id is not null and j.workflow_id is not null
group by j.schedule_id, j.tick_at
having count(distinct j.workflow_id) > 1
union all
select 'what a tick has made says so', x.job_id, format('schedule %s at %s', x.schedule_id, x.tick_at)
from schedule_tick x join job j on j.id = x.job_id
where (j.schedule_id, j.tick_at) is distinct from (x.schedule_id, x.tick_at)
union all
select 'a job of a schedule is in the history of its ticks', j.id, format('schedule %s at %s', j.schedule_id, j.tick_at)
from job j join schedule s on s.id = j.schedule_id
where not exists (select from schedule_tick x where x.schedule_id = j.schedule_id and x.tick_at = j.tick_at and x.outcome in ('made', 'queued'))
    and not (j.tick_at <= s.pruned_until)
union all
select 'a schedule that is to tick has a next tick, is to be planned, or says why not', null, format('schedule %s: %s of %s', s.id, s.name, s.app)
from schedule s
where s.next_tick_at is null and s.plan_after is null and s.removed_at is null and s.ends_at is null and s.last_tick_at is null
union all
select 'ids come from the sequence', max(j.id), format('job_id_seq stands at %s', (select last_value from job_id_seq))
from job j
having max(j.id) > (select last_value from job_id_seq)
union all
select 'no event lies below the floor', coalesce(e.ended_id, e.look_at_id), format('event %s', e.id)
from release_check e
where e.id < (select f.first_id from release_floor f)
union all
select 'events come from the sequence', null, format('release_check_id_seq stands at %s, event %s is there', (select last_value from release_check_id_seq), max(e.id))
from release_check e
having max(e.id) > (select last_value from release_check_id_seq)
union all
select 'positions come from the sequence', null, format('ready_position_seq stands at %s, position %s is there', (select last_value from ready_position_seq), max(r."position"))
from ready r
having max(r."position") > (select last_value from ready_position_seq)
union all
select 'claims come from the sequence', null, format('claim_number stands at %s, claim %s is there', (select last_value from claim_number), max(r.claim_id))
from running r
having max(r.claim_id & ((1::bigint << 44) - 1)) > (select last_value from claim_number)
$$;
comment on function check_invariants() is 'Every violation of what must always hold; none, always.';
