"""Take each guard away and see its test fail: `make guards` (or `python tests/guards.py NAME ...`).

A guard is a piece of text in sql/ or pgsched/ that a finding of the design's reviews put there. Each is replaced in a copy of
the tree, and the test named beside it must fail there. tests/README.md has the same table in words, and is held equal by a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Guard:
    """What is guarded, where, how it is taken away, and the test that fails without it."""

    name: str
    file: str
    old: str
    new: str
    test: str


GUARDS = [
    Guard(
        "claims and finishes are durable (R2)",
        "sql/functions/attach.sql",
        "perform set_config('synchronous_commit', 'on', true);",
        "null;",
        "tests/races/test_claims.py::test_claims_and_finishes_are_durable_whatever_the_roles_default",
    ),
    Guard(
        "a new timeline raises the epoch (R2)",
        "sql/functions/identity.sql",
        "if here.timeline is not null and home.timeline is distinct from here.timeline then",
        "if false then",
        "tests/races/test_rescue.py::test_a_new_timeline_raises_the_epoch_and_lets_claims_wait",
    ),
    Guard(
        "claims wait on a new epoch (R2)",
        "sql/functions/claim.sql",
        "if t < me.not_before then",
        "if false then",
        "tests/races/test_rescue.py::test_a_new_timeline_raises_the_epoch_and_lets_claims_wait",
    ),
    Guard(
        "a finish presents its claim's number (R3)",
        "sql/functions/finish.sql",
        "where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = the_worker",
        "where r.job_id = g.job_id and r.worker_id + 0 = the_worker",
        "tests/races/test_claims.py::test_a_resent_retry_is_known_although_the_job_runs_again",
    ),
    Guard(
        "a finish comes from the claim's own worker (R3)",
        "sql/functions/finish.sql",
        "and r.claim_id = g.claim_id and r.worker_id + 0 = the_worker",
        "and r.claim_id = g.claim_id",
        "tests/races/test_claims.py::test_another_workers_finish_is_stale",
    ),
    Guard(
        "a told job ends as cancelled (R4)",
        "sql/functions/finish.sql",
        "when r.stop_reason = 'cancel' then 'cancelled'\n                when g.outcome = 'conflict' and",
        "when g.outcome = 'conflict' and",
        "tests/races/test_claims.py::test_a_cancelled_job_ends_as_cancelled_whatever_is_reported_and_a_timed_out_one_as_reported",
    ),
    Guard(
        "a row that is newer than the snapshot is still deleted",
        "sql/functions/finish.sql",
        "delete from running\n        where job_id = any (array(select job_id from settled))",
        "delete from running\n        where ctid = any (array(select r.ctid from running r join settled s on s.job_id = r.job_id))",
        "tests/races/test_claims.py::test_a_finish_sees_a_cancel_that_commits_between_its_snapshot_and_its_lock",
    ),
    Guard(
        "a claim without its definition ends as failed (R11)",
        "sql/functions/claim.sql",
        "insert into finished (job_id, queue, state, reason, claim_id, attempt, worker_id, finished_at)\n"
        "        select job_id, queue, 'failed'",
        "insert into finished (job_id, queue, state, reason, claim_id, attempt, worker_id, finished_at)\n"
        "        select job_id, queue, 'failed' where false union all select job_id, queue, 'skipped'",
        "tests/races/test_claims.py::test_one_bad_row_of_each_kind_never_stops_its_neighbours",
    ),
    Guard(
        "a doubled job is dropped, not fatal (R14)",
        "sql/functions/claim.sql",
        "from picked\n            on conflict (job_id) do nothing",
        "from picked",
        "tests/races/test_claims.py::test_one_bad_row_of_each_kind_never_stops_its_neighbours",
    ),
    Guard(
        "a retry's wait cannot overflow (R14)",
        "sql/functions/finish.sql",
        "power(2::double precision, least(greatest(attempt, 1) - 1, 60))",
        "power(2::double precision, attempt - 1)",
        "tests/behaviour/test_incident.py::test_retry_backoff_for_attempt_over_50_does_not_wait_forever",
    ),
    Guard(
        "rescue steps over a held row (R14)",
        "sql/functions/rescue.sql",
        "for update skip locked\n            ) r\n        ) r);",
        "for update nowait\n            ) r\n        ) r);",
        "tests/races/test_rescue.py::test_a_held_row_is_left_for_the_next_rescue_and_stops_no_other",
    ),
    Guard(
        "rescue falls back to one by one (R14)",
        "sql/functions/rescue.sql",
        "for one in select * from jsonb_array_elements(lost) loop",
        "for one in select * from jsonb_array_elements(lost) where false loop",
        "tests/races/test_rescue.py::test_a_row_that_raises_does_not_stop_the_rescue_of_the_others",
    ),
    Guard(
        "an outcome that cannot be stored is isolated (R14)",
        "pgsched/worker/exchange.py",
        "except psycopg.DataError:\n            await self._isolate(results)\n            return",
        "except psycopg.DataError:\n            return",
        "tests/behaviour/test_worker.py::test_what_cannot_be_stored_fails_the_job_with_that_reason_and_harms_no_neighbour",
    ),
    Guard(
        "a resent finish says already (R15)",
        "sql/functions/finish.sql",
        "(select 'already' from finished f where f.job_id = g.job_id and f.claim_id = g.claim_id and f.worker_id = $1),",
        "",
        "tests/races/test_claims.py::test_second_finish_of_a_claim_changes_nothing",
    ),
    Guard(
        "a held row is busy, not stale (R15)",
        "sql/functions/finish.sql",
        "(select 'busy' from running r where r.job_id = g.job_id and r.claim_id = g.claim_id and r.worker_id + 0 = $1),",
        "",
        "tests/races/test_claims.py::test_a_finish_steps_over_a_held_row_and_says_busy",
    ),
    Guard(
        "a success of a transactional task is not accepted here (R30)",
        "sql/functions/finish.sql",
        "when r.transactional and g.outcome = 'succeeded' and not in_transaction then 'rolled_back'",
        "",
        "tests/races/test_claims.py::test_a_transactional_success_is_not_accepted_from_a_work_session",
    ),
    Guard(
        "keys are taken in sorted order (R16)",
        "sql/functions/enqueue.sql",
        "order by g.task, g.unique_key, g.ordinality",
        "order by g.ordinality",
        "tests/races/test_enqueue_waits_for_nobody.py::test_keys_are_taken_in_sorted_order_so_that_batches_do_not_deadlock",
    ),
    Guard(
        "the wait for a key is bounded, and the caller's bound kept (R16)",
        "sql/functions/enqueue.sql",
        "if patience::interval = '0' or patience::interval > '5s' then",
        "if true then",
        "tests/races/test_enqueue_waits_for_nobody.py::test_the_wait_for_a_key_is_bounded_and_the_callers_own_bound_is_kept",
    ),
    Guard(
        "only begun jobs are charged for a death (R20)",
        "sql/functions/rescue.sql",
        "case when begun is null then r.started_at is not null else r.claim_id = any (begun) end",
        "true",
        "tests/races/test_rescue.py::test_only_jobs_that_had_begun_are_charged_and_none_costs_an_attempt",
    ),
    Guard(
        "a claim hands out one suspect at a time (R20)",
        "sql/functions/claim.sql",
        """ and "position" >= a_lane.first and lost_attempts = 0""",
        """ and "position" >= a_lane.first""",
        "tests/races/test_rescue.py::test_where_suspects_had_begun_only_they_are_charged",
    ),
    Guard(
        "where suspects had begun, only they are charged (R20)",
        "sql/functions/rescue.sql",
        "(not suspects or r.lost_attempts > 0) and case",
        "case",
        "tests/races/test_rescue.py::test_where_suspects_had_begun_only_they_are_charged",
    ),
    Guard(
        "a new session does not wait for the handlers' threads",
        "pgsched/worker/process.py",
        "        loop.set_default_executor(threads)\n",
        "",
        "tests/faults/test_slow_dns.py::test_a_slow_name_server_costs_neither_the_lease_nor_a_handler",
    ),
    Guard(
        "a copy is refused (R21)",
        "sql/functions/identity.sql",
        "if home.database_oid is distinct from here.database_oid",
        "if false",
        "tests/races/test_rescue.py::test_a_copy_of_the_database_is_refused_until_it_is_adopted",
    ),
    Guard(
        "a changed prepared statement is survived (R25)",
        "pgsched/session.py",
        "    psycopg.NotSupportedError,\n",
        "",
        "tests/races/test_claims.py::test_a_migration_that_changes_what_a_statement_answers_is_survived",
    ),
    Guard(
        "another protocol number is refused (R25)",
        "sql/functions/attach.sql",
        "if theirs is distinct from protocol() then",
        "if false then",
        "tests/races/test_rescue.py::test_another_protocol_number_is_refused_with_both_numbers",
    ),
    Guard(
        "a lost answer's claim goes back (R29)",
        "sql/functions/finish.sql",
        "where r.worker_id = $1 and r.session_no = any (ended_session_nos) and not r.claim_id = any (claim_ids)",
        "where false and r.worker_id = $1 and r.session_no = any (ended_session_nos) and not r.claim_id = any (claim_ids)",
        "tests/races/test_rescue.py::test_a_claim_whose_answer_was_lost_goes_back_uncharged",
    ),
    Guard(
        "reconcile goes by the ended sessions (R46)",
        "sql/functions/finish.sql",
        "and r.session_no = any (ended_session_nos) and",
        "and",
        "tests/races/test_rescue.py::test_reconcile_takes_nothing_that_another_session_has_claimed",
    ),
    Guard(
        "pg_temp is named, last (R37)",
        "pgsched/migrate.py",
        'f"set local search_path = {name}, pg_temp"',
        'f"set local search_path = {name}"',
        "tests/races/test_enqueue_waits_for_nobody.py::test_a_temp_table_named_like_ours_in_the_callers_session_has_no_effect",
    ),
    Guard(
        "the claim's plan is pinned (R13, R38)",
        "sql/functions/claim.sql",
        "set enable_seqscan = off\nset enable_bitmapscan = off\nset enable_sort = off\n",
        "",
        "tests/sql/test_plans.py",
    ),
    Guard(
        "sequences hand out one number at a time (R39)",
        "sql/schema/030_states.sql",
        "create sequence claim_number as bigint cache 1;",
        "create sequence claim_number as bigint cache 100;",
        "tests/races/test_enqueue_waits_for_nobody.py::test_sequences_hand_out_one_number_at_a_time",
    ),
    Guard(
        "a leader proves its lock, not its memory (R19)",
        "sql/functions/lead.sql",
        "if mine is null or not exists (select from leader l where l.backend_pid = pg_backend_pid())",
        "if mine is null",
        "tests/races/test_leader.py::test_a_leader_whose_session_has_ended_cannot_write_and_the_next_leads",
    ),
    Guard(
        "silence lasts as long as the worker said (R7)",
        "sql/functions/rescue.sql",
        "if not silent_s >= extract(epoch from patience) then",
        "if false then",
        "tests/races/test_leader.py::test_rescue_after_silence_is_the_leaders_alone_and_waits_as_long_as_the_worker_said",
    ),
    Guard(
        "another generation breaks a silence (R10)",
        "sql/functions/rescue.sql",
        "w.generation is distinct from rescue.generation",
        "false",
        "tests/races/test_leader.py::test_a_worker_that_attached_again_is_not_rescued_on_its_former_silence",
    ),
    Guard(
        "a silent work session says something now and then (R42)",
        "pgsched/worker/exchange.py",
        "            until = min(until, self._spoke_at + self._ping)\n",
        "",
        "tests/behaviour/test_stopping.py::test_a_worker_that_drains_keeps_its_sessions_although_it_has_nothing_to_say",
    ),
    Guard(
        "a leader believes only as long as the server must keep its session (R7)",
        "pgsched/leader/election.py",
        " and now() - self._answered < BELIEF_S",
        "",
        "tests/behaviour/test_incident.py::test_both_nodes_believe_they_are_the_leader_never_in_and_after_a_partition",
    ),
    Guard(
        "the supervisor kills what outlives its lease (R46)",
        "pgsched/supervisor/supervisor.py",
        "            place.child.kill()\n",
        "            pass\n",
        "tests/faults/test_supervisor.py::test_a_frozen_worker_is_killed_and_its_job_never_runs_twice_at_once",
    ),
    Guard(
        "grandchildren go with their worker (R20)",
        "pgsched/supervisor/family.py",
        "found = list(_tagged(tag.encode(), group) if own is None else _orphans(group, workers or {}, own))",
        "found: list[int] = []",
        "tests/faults/test_supervisor.py::test_every_grandchild_goes_with_its_worker",
    ),
    Guard(
        "an outage is charged to nobody (R46)",
        "pgsched/supervisor/board.py",
        "if self.sent_at and (self.is_good(died_at) or not self.moves(died_at)) else []",
        "",
        "tests/faults/test_supervisor.py::test_an_outage_is_nobodys_fault_even_where_a_handler_has_to_be_killed",
    ),
    Guard(
        "a worker runs one suspect at a time (R20)",
        "pgsched/worker/exchange.py",
        "return self.suspect is None and not self.suspect_asked",
        "return True",
        "tests/faults/test_supervisor.py::test_a_job_that_crashes_its_worker_fails_after_its_limit_and_harms_no_neighbour",
    ),
    Guard(
        "a heartbeat is a commit (R1)",
        "sql/functions/attach.sql",
        "    perform pg_logical_emit_message(true, 'pgsched', '');\n",
        "",
        "tests/faults/test_replication.py::test_what_a_deposed_primary_runs_has_ended_before_the_new_one_gives_it_out",
    ),
    Guard(
        "an answer with a warning is none (R1, R36)",
        "pgsched/session.py",
        'if notice.severity_nonlocalized == "WARNING":',
        "if False:",
        "tests/faults/test_replication.py::test_an_answer_whose_wait_for_the_standby_was_cancelled_is_no_answer",
    ),
    Guard(
        "a lease lasts for all of its time (R8)",
        "pgsched/lease.py",
        "if age < self.times.client.total_seconds():",
        "if age < self.times.client.total_seconds() / 3:",
        "tests/faults/test_replication.py::test_a_standby_that_is_missing_for_less_than_client_harms_no_handler",
    ),
    Guard(
        "a server with an older epoch is refused (R46)",
        "pgsched/session.py",
        "if epoch < self.epoch:",
        "if False:",
        "tests/faults/test_replication.py::test_an_old_primary_that_comes_back_unfenced_cannot_keep_a_worker_that_has_left_it",
    ),
    Guard(
        "claims that a fail-over forgot are stopped (R46)",
        "pgsched/worker/lifecycle.py",
        "forgotten = [job for job in known if not job.has_ended]",
        "forgotten: list[Claimed] = []",
        "tests/faults/test_replication.py::test_after_an_asynchronous_fail_over_forgotten_claims_are_stopped_and_forgotten_finishes_run_again",
    ),
    Guard(
        "the end of a job is told to who waits",
        "sql/functions/results.sql",
        "select count(pg_notify(ended_channel(), job_id::text)) into n from told;",
        "select count(*) into n from told;",
        "tests/races/test_results.py::test_every_way_to_end_a_job_tells_who_waits",
    ),
    Guard(
        "who begins to wait is not made to wait",
        "sql/schema/070_waiter.sql",
        "primary key (job_id, n)",
        "primary key (job_id, n), unique (job_id)",
        "tests/races/test_results.py::test_who_begins_to_wait_in_an_open_transaction_stops_neither_another_nor_the_end",
    ),
    Guard(
        "a poll finds the end that nobody told",
        "pgsched/results.py",
        "poll_at = now + _POLL_S",
        "poll_at = now + 3600",
        "tests/races/test_results.py::test_a_job_that_ends_as_somebody_begins_to_wait_is_found_by_the_poll",
    ),
    Guard(
        "what JSON would change is no result",
        "pgsched/returned.py",
        "if not same:",
        "if False:",
        "tests/behaviour/test_results.py::test_what_json_would_make_something_else_of_fails_the_job_and_says_what_to_do",
    ),
    Guard(
        "a result has a limit",
        "sql/functions/finish.sql",
        "when g.excess is not null then 'failed'",
        "",
        "tests/behaviour/test_results.py::test_a_result_above_the_limit_fails_the_job_with_its_size_and_what_to_do",
    ),
    Guard(
        "progress is taken from the claim's own worker",
        "sql/functions/progress.sql",
        "where r.job_id = g.job_id and r.worker_id + 0 = $1)",
        "where r.job_id = g.job_id)",
        "tests/behaviour/test_results.py::test_reports_keep_one_row_a_claim_and_only_of_the_workers_own",
    ),
    Guard(
        "a report replaces the ones before",
        "sql/functions/progress.sql",
        "delete from progress where claim_id = any (array(select claim_id from mine))",
        "select 1",
        "tests/behaviour/test_results.py::test_reports_keep_one_row_a_claim_and_only_of_the_workers_own",
    ),
    Guard(
        "a list by state and queue goes by its index (R40)",
        "sql/schema/030_states.sql",
        "create index finished_list on finished (queue, state, job_id);",
        "create index finished_list on finished (state);",
        "tests/sql/test_plans.py",
    ),
    Guard(
        "a pooler is refused before any lock (R9)",
        "pgsched/pooler.py",
        "    return mine == again == after and mine != theirs",
        "    return True",
        "tests/behaviour/test_pooler.py::test_a_worker_and_a_leader_are_refused_and_leave_nothing_on_the_pooled_backends",
    ),
    Guard(
        "a transaction ends its own row or raises (R30)",
        "sql/functions/transactional.sql",
        "    if mine.job_id is null then\n        perform refuse('PGS13'",
        "    if mine.job_id is null then\n        return;\n        perform refuse('PGS13'",
        "tests/races/test_transactions.py::test_a_finish_that_arrives_after_the_report_finds_nothing_and_raises",
    ),
    Guard(
        "a transaction that its handler has ended cannot finish (R30)",
        "sql/functions/transactional.sql",
        "is distinct from job_id || ':' || claim_id then",
        "is null and false then",
        "tests/races/test_transactions.py::test_a_handler_that_has_ended_its_transaction_cannot_finish",
    ),
    Guard(
        "a machine without power holds its row no longer than a rescue waits (R46, H13)",
        "sql/functions/transactional.sql",
        "perform set_config('idle_in_transaction_session_timeout',\n        (1000 * extract(epoch from coalesce((select w.rescue_after from worker w where w.id = mine.worker_id), interval '60 s')))::bigint::text, true);",
        "",
        "tests/races/test_transactions.py::test_a_machine_that_loses_its_power_before_the_commit_holds_the_row_no_longer_than_a_rescue_waits",
    ),
    Guard(
        "a broken connection is charged only by an older session (R46, H9)",
        "sql/functions/finish.sql",
        "when 'broken' then coalesce(my_session <= g.last_session, false) or (",
        "when 'broken' then true or (",
        "tests/races/test_transactions.py::test_a_broken_connection_is_charged_only_where_the_reporting_session_is_older",
    ),
    Guard(
        "a timeout leaves the outcome as reported (R47)",
        "sql/functions/finish.sql",
        "when r.stop_reason = 'cancel' then 'cancelled'\n                when g.outcome = 'conflict' and",
        "when r.stop_reason is not null then 'cancelled'\n                when g.outcome = 'conflict' and",
        "tests/races/test_transactions.py::test_a_timed_out_transaction_that_ends_well_after_all_is_believed",
    ),
    Guard(
        "a cancel replaces a timeout (R49)",
        "sql/functions/cancel.sql",
        "            if r.stop_reason = 'cancel' then",
        "            if r.stop_reason is not null then",
        "tests/behaviour/test_executors.py::test_a_cancel_replaces_a_timeout_and_never_the_reverse",
    ),
    Guard(
        "a cancel decides at READ COMMITTED only (R12)",
        "sql/functions/cancel.sql",
        "begin\n    perform require_read_committed();\n    if job_ids",
        "begin\n    if job_ids",
        "tests/races/test_cancel.py::test_a_cancel_at_another_isolation_level_is_refused",
    ),
    Guard(
        "a handler is cut off from its session when it ends",
        "pgsched/worker/attempt.py",
        "if left_open := not connection.cut_off():",
        "if left_open := False:",
        "tests/behaviour/test_transactional_under_attack.py::test_a_coroutine_that_a_job_left_behind_cannot_write_in_the_transaction_of_the_next",
    ),
    Guard(
        "a session is reset before the next job",
        "pgsched/worker/transaction.py",
        "execute(_RESET)",
        'execute("select 1")',
        "tests/behaviour/test_transactional_under_attack.py::test_what_one_job_leaves_on_the_session_is_not_met_by_the_next",
    ),
    Guard(
        "a copy that a handler has forked ends",
        "pgsched/worker/attempt.py",
        "        if os.getpid() != pid:\n            os._exit(0)",
        "        pass",
        "tests/behaviour/test_executors_under_attack.py::test_the_copy_of_a_transactional_handler_commits_nothing",
    ),
    Guard(
        "answers outlive their process",
        "pgsched/worker/processes/outlet.py",
        "kept = self._page.log(pickle.dumps(answer))",
        "kept = True",
        "tests/behaviour/test_executors_under_attack.py::test_what_ended_well_in_a_chunk_before_its_process_died_has_succeeded",
    ),
    Guard(
        "a process is killed after its grace (R4)",
        "pgsched/worker/processes/pool.py",
        "                    member.kill_soon(claim)",
        "                    pass",
        "tests/behaviour/test_executors.py::test_a_cancelled_job_in_a_process_ends_within_its_grace_whatever_it_does",
    ),
    Guard(
        "a cancel is found by the poll, too",
        "pgsched/worker/listener.py",
        "await wait_any(self._stops, at_most=self._poll_s)",
        "await self._stops.wait()",
        "tests/behaviour/test_executors.py::test_a_cancel_whose_notification_is_lost_is_found_by_the_poll",
    ),
]


def result(test_names: list[str], guard: Guard | None = None) -> int:
    """pytest's exit code for these tests in a copy of the tree, with `guard` taken away there if one is given."""
    with tempfile.TemporaryDirectory(prefix="pgsched-guards-") as folder:
        copy = Path(folder) / "tree"
        copy.mkdir()
        for part in ("pgsched", "sql", "alembic", "tests", "README.md", "examples", "docs", "pyproject.toml"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        if guard is not None:
            take_away(guard, copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", *test_names]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if guard is None and ran.returncode != 0:
            print(ran.stdout[-4000:])
        return ran.returncode


def take_away(guard: Guard, tree: Path) -> None:
    """Replace the guard's text, also in what the revisions have frozen."""
    changed = 0
    for path in {tree / guard.file, *tree.glob(f"alembic/frozen/*/{guard.file.removeprefix('sql/')}")}:
        text = path.read_text()
        changed += guard.old in text
        path.write_text(text.replace(guard.old, guard.new))
    if not changed:
        raise SystemExit(f'guard "{guard.name}": its text is not in {guard.file}')


def main(names: list[str]) -> int:
    """Try each guard whose name contains one of `names` (all without any); how many tests did not notice."""
    blind = 0
    chosen = [g for g in GUARDS if not names or any(n in g.name for n in names)]
    if result(sorted({guard.test for guard in chosen})) != 0:
        raise SystemExit("the tests fail in a copy with every guard in place: what follows would prove nothing")
    for guard in chosen:
        noticed = result([guard.test], guard) == 1
        blind += not noticed
        print(f"{'seen  ' if noticed else 'UNSEEN'}  {guard.name}", flush=True)
    print(f"{len(chosen) - blind} passed, {blind} failed")
    return blind


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
