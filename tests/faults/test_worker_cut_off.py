"""Workers that are cut off, killed with their supervisor, or frozen: another takes the job in time, and never do both run it.

Short form every day, one round in which each kind of cut has a site of its own; PGSCHED_CAMPAIGN=1 runs many. Skipped, with the
reason, where no network namespaces can be made.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.checker import Execution, executions, worst_overlap
from harness.network import Link, NoLinksError
from harness.protocol import enqueue
from harness.running import wait_until
from harness.server import Server
from harness.sites import Site, until

from pgsched.exit_code import ExitCode
from pgsched.lease import LeaseTimes, now
from pgsched.migrate import upgrade

FULL = bool(os.environ.get("PGSCHED_CAMPAIGN"))
ROUNDS, BOTH_ROUNDS = (20, 34) if FULL else (1, 1)

LEASE = LeaseTimes(timedelta(seconds=2), timedelta(seconds=3))
SHORTER = LeaseTimes(timedelta(seconds=1), timedelta(seconds=2))
NOISE_S = 4.0
"""What a busy machine may add to it."""


def in_time(lease: LeaseTimes) -> float:
    """The server ends the silent sessions (client), the leader waits (rescue), and its rounds are a second apart."""
    return lease.client.total_seconds() + lease.rescue.total_seconds() + 1


CUTS: dict[str, dict[str, bool]] = {
    "both directions": {},
    "what it sends": {"incoming": False},
    "what it is sent": {"outgoing": False},
}

# A job that a worker was lost with runs alone in its process (docs/decisions/0006): each needs one of its own.
THREE = ("--processes", "3", "--concurrency", "1")

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


@pytest.fixture(scope="module")
def links() -> Iterator[list[Link]]:
    """Three links, or none where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            made = [stack.enter_context(Link()) for _ in CUTS]
        except NoLinksError as error:
            print(f"skipped: {error}")
            made = []
        yield made


@pytest.fixture(scope="module")
def linked(server: Server, links: list[Link]) -> Iterator[Server]:
    """A server of this module's own, which listens on the links and may be crashed."""
    with Server(server.binaries, links=tuple(link.here for link in links)) as running:
        yield running


@pytest.fixture
def dsn(linked: Server) -> Iterator[str]:
    """A fresh database on it."""
    fresh = linked.database()
    upgrade(fresh)
    yield fresh
    linked.drop(fresh)


class Bed:
    """Sites on one database, and jobs that run until they are told to end."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self.sites: list[Site] = []
        self._gates = 0

    def site(self, name: str, *options: str, lease: LeaseTimes = LEASE, link: Link | None = None) -> Site:
        """A site that has not been started."""
        times = ("--lease", str(lease.client.total_seconds()), "--kill", str(lease.kill.total_seconds()))
        self.sites.append(Site(name, self.dsn, self.folder, *times, *options, link=link))
        return self.sites[-1]

    def query(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """The rows, on a session of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(query, params).fetchall()

    def enqueue(self, n: int) -> tuple[list[int], Path]:
        """n jobs, and the gate that lets them end."""
        self._gates += 1
        gate = self.folder / f"gate-{self._gates}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return enqueue(connection, n, task="until_told", queue="faulty", args={"gate": str(gate)}), gate

    def runs(self, job: int) -> list[Execution]:
        """The executions of a job, in the order of their claims."""
        return executions(self.folder).get(job, [])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds."""
        until(condition, what, self.sites)

    def until_running(self, jobs: list[int], times: int = 1) -> None:
        """Wait until each of the jobs has begun so often."""
        self.until(lambda: all(len(self.runs(job)) >= times for job in jobs), f"jobs {jobs} begin {times} times")

    def holders(self, jobs: list[int]) -> dict[int, str]:
        """The site that holds each of the jobs."""
        query = "select r.job_id, w.name from pgsched.running r join pgsched.workers w on w.id = r.worker_id where r.job_id = any (%s)"
        return dict(self.query(query, jobs))

    def alive(self) -> dict[str, int]:
        """How many workers each site has that are alive by the server's word."""
        return dict(self.query("select name, count(*) from pgsched.workers where state = 'alive' group by 1"))

    def until_alive(self, *sites: Site) -> None:
        """Wait until each site has a worker that is alive."""
        names = [site.name for site in sites]
        self.until(lambda: all(self.alive().get(name) for name in names), f"{names} are alive")

    def until_led(self) -> None:
        """Wait until somebody leads."""
        wait_until(self.dsn, "exists (select from pgsched.leader)")

    def end(self, jobs: list[int], gate: Path) -> None:
        """Let the jobs end, and wait until they have: each as succeeded, and no attempt was charged."""
        gate.touch()
        query = "select id, state, attempt from pgsched.jobs where id = any (%s) order by 1"
        self.until(lambda: all(row[1] == "succeeded" for row in self.query(query, jobs)), f"jobs {jobs} succeed")
        assert self.query(query, jobs) == [(job, "succeeded", 1) for job in sorted(jobs)]

    def ended_by(self, job: int) -> int:
        """The claim that ended a job."""
        return int(self.query("select claim_id from pgsched.finished where job_id = %s", job)[0][0])


@pytest.fixture
def bed(dsn: str, tmp_path: Path) -> Iterator[Bed]:
    made = Bed(dsn, tmp_path)
    yield made
    for site in made.sites:
        site.kill()


@pytest.fixture
def behind_links(bed: Bed, links: list[Link]) -> Iterator[list[Site]]:
    """A site with one slot behind each link."""
    if not links:
        pytest.skip("network namespaces cannot be made here")
    made = [
        bed.site(f"far-{number}", "--no-leader", "--concurrency", "1", link=link) for number, link in enumerate(links)
    ]
    for site in made:
        site.start()
    yield made
    for link in links:
        link.restore()


def show(name: str, times: list[float]) -> None:
    least, median, most = min(times), statistics.median(times), max(times)
    print(f"{name}: {least:.2f} / {median:.2f} / {most:.2f} s (least, median, most of {len(times)})")


@pytest.mark.campaign
def test_a_job_of_a_worker_that_is_cut_off_runs_elsewhere_in_time_and_never_twice_at_once(
    bed: Bed, behind_links: list[Site]
) -> None:
    took: dict[str, list[float]] = defaultdict(list)
    near = bed.site("near", *THREE)
    for _ in range(ROUNDS):
        jobs, gate = bed.enqueue(len(CUTS))  # each far site has one slot: each takes one
        bed.until_running(jobs)
        held_by = bed.holders(jobs)
        assert sorted(held_by.values()) == sorted(site.name for site in behind_links)
        near.start()
        bed.until_alive(near)
        bed.until_led()
        cut_at = {}
        for site, (what, directions) in zip(behind_links, CUTS.items(), strict=True):
            time.sleep(random.uniform(0, LEASE.heartbeat.total_seconds()))
            assert site.link is not None
            cut_at[site.name] = (what, now())
            site.link.cut(**directions)
        bed.until_running(jobs, 2)
        for job in jobs:
            what, at = cut_at[held_by[job]]
            old, new = bed.runs(job)
            took[what].append(new.began - at)
            took["of them, between the last note and the first"].append(new.began - old.ended)
        claims = bed.query("select job_id, claim_id from pgsched.running where job_id = any (%s)", jobs)
        for site in behind_links:
            assert site.link is not None
            site.link.restore()
        # Its worker has learnt that it was rescued, and another has followed it.
        bed.until_alive(*behind_links)
        assert bed.query("select job_id, claim_id from pgsched.running where job_id = any (%s)", jobs) == claims
        bed.end(jobs, gate)
        for job in jobs:
            old, new = bed.runs(job)
            assert bed.ended_by(job) == new.fence and old.how != "done"
            ends = bed.query("select claim_id, state from pgsched.attempt_log where job_id = %s", job)
            assert ends == [(old.fence, "lost")], "the late report changes nothing"
        assert near.stop() == ExitCode.OK
    jobs, gate = bed.enqueue(len(CUTS))
    bed.until_running(jobs)
    assert sorted(bed.holders(jobs).values()) == sorted(site.name for site in behind_links), "all work again"
    bed.end(jobs, gate)
    print(f"cut off (rescue after {LEASE.rescue.total_seconds():.2f} s), from the cut until the job ran elsewhere:")
    for name, times in took.items():
        show(f"  {name}", times)
    assert worst_overlap(executions(bed.folder)) < 0
    worst = max(max(took[what]) for what in CUTS)
    bound = in_time(LEASE)
    assert worst < bound + NOISE_S, f"a job ran elsewhere {worst:.2f} s after the cut; the bound is {bound:.2f} s"


@pytest.mark.campaign
def test_sessions_that_end_and_a_server_that_crashes_while_links_are_cut_never_let_a_job_run_twice_at_once(
    bed: Bed, behind_links: list[Site], linked: Server
) -> None:
    near = bed.site("near", *THREE)
    again = 0
    for _ in range(BOTH_ROUNDS):
        jobs, gate = bed.enqueue(len(CUTS))
        bed.until_running(jobs)
        near.start()
        bed.until_alive(near)
        for site in behind_links:
            time.sleep(random.uniform(0, 1))
            assert site.link is not None
            site.link.cut(**random.choice([*CUTS.values()]))
            bed.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched lease %%'"
            )
        time.sleep(random.uniform(0, 2))
        linked.crash()
        linked.restart()
        # Anywhere around the moment at which their jobs are taken; one of them surely after it.
        crashed_at = now()
        sites = random.sample(behind_links, len(behind_links))
        waits = sorted(random.uniform(0, 1.5 * in_time(LEASE)) for _ in sites[1:])
        for site, wait in zip(sites, [*waits, 1.5 * in_time(LEASE)], strict=True):
            time.sleep(max(0.0, crashed_at + wait - now()))
            assert site.link is not None
            site.link.restore()
        bed.until_alive(near, *behind_links)
        bed.until_running(jobs)
        bed.end(jobs, gate)
        again += sum(len(bed.runs(job)) - 1 for job in jobs)
        for job in jobs:
            assert bed.ended_by(job) == bed.runs(job)[-1].fence
        assert near.stop() == ExitCode.OK
    worst = worst_overlap(executions(bed.folder))
    print(f"{BOTH_ROUNDS * len(CUTS)} cuts: {again} executions were followed by another, the closest by {-worst:.2f} s")
    assert worst < 0


@pytest.mark.campaign
def test_a_lease_session_that_ends_and_a_server_that_crashes_harm_no_running_job(bed: Bed, linked: Server) -> None:
    site = Site("near", bed.dsn, bed.folder, "--concurrency", "10")  # with the default lease
    with site:
        bed.sites.append(site)
        for _ in range(10 if FULL else 1):
            jobs, gate = bed.enqueue(5)
            bed.until_running(jobs)
            for _ in range(3):
                ended: list[Any] = []
                bed.until(  # (it may be between two sessions)
                    lambda: bool(ended.extend(bed.query(  # noqa: B023
                        "select pid, pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched lease %%'"
                    )) or ended),  # noqa: B023
                    "there is a lease session to end",
                )
                bed.until(
                    lambda: bool(bed.query(  # (the one that was told to end may still be there for a moment)
                        "select 1 from pg_stat_activity where application_name like 'pgsched lease %%' and pid <> all (%s)",
                        [pid for pid, _ in ended],  # noqa: B023
                    )),
                    "it attaches again",
                )
            linked.crash()
            linked.restart()
            bed.until_alive(site)
            went_on_at = now()
            bed.until(lambda: all(bed.runs(job)[-1].ended > went_on_at for job in jobs), "the handlers go on")  # noqa: B023
            bed.end(jobs, gate)
            for job in jobs:
                assert [(each.fence, each.how) for each in bed.runs(job)] == [(bed.ended_by(job), "done")]
        assert bed.query("select * from pgsched.attempt_log") == []
        assert site.stop() == ExitCode.OK


@pytest.mark.campaign
def test_a_job_whose_worker_and_supervisor_are_killed_together_runs_elsewhere_in_time(bed: Bed) -> None:
    doomed = bed.site("doomed", "--no-leader", "--concurrency", "3", lease=SHORTER)
    near = bed.site("near", *THREE)
    took = []
    for _ in range(ROUNDS):
        doomed.start()
        jobs, gate = bed.enqueue(3)
        bed.until_running(jobs)
        near.start()
        bed.until_alive(near)
        bed.until_led()
        killed_at = now()
        doomed.send(signal.SIGKILL, workers=True)
        doomed.kill()
        bed.until_running(jobs, 2)
        took += [bed.runs(job)[1].began - killed_at for job in jobs]
        bed.end(jobs, gate)
        assert near.stop() == ExitCode.OK
    show(f"killed together (rescue after {SHORTER.rescue.total_seconds():.2f} s)", took)
    assert worst_overlap(executions(bed.folder)) < 0
    assert max(took) < in_time(SHORTER) + NOISE_S


@pytest.mark.campaign
def test_nothing_of_a_worker_that_was_frozen_with_its_supervisor_is_accepted_when_it_goes_on(bed: Bed) -> None:
    """The one hole (docs/leases.md): nobody is left to end it. How long it still runs when it goes on is measured."""
    residue = []
    frozen = bed.site("frozen", "--no-leader", "--concurrency", "3", lease=SHORTER)
    near = bed.site("near", *THREE)
    frozen.start()
    for _ in range(ROUNDS):
        jobs, gate = bed.enqueue(3)
        bed.until_running(jobs)
        near.start()
        bed.until_alive(near)
        bed.until_led()
        # (The supervisor first, and last to go on: at no time does it see a worker that does not move.)
        everybody = [frozen.process.pid, *frozen.workers()] if frozen.process else []
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        stopped_at = now()
        bed.until_running(jobs, 2)
        took = max(bed.runs(job)[1].began for job in jobs) - stopped_at
        time.sleep(max(0.0, 3 * SHORTER.rescue.total_seconds() - (now() - stopped_at)))
        went_on_at = now()
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)
        bed.until_alive(frozen)
        time.sleep(0.5)
        assert set(bed.holders(jobs).values()) == {"near"}
        last = [bed.runs(job)[0].ended for job in jobs]
        bed.end(jobs, gate)
        for job in jobs:
            old, new = bed.runs(job)
            assert bed.ended_by(job) == new.fence and old.how != "done"
        residue += [at - went_on_at for at in last]
        assert bed.query("select distinct state from pgsched.attempt_log") == [("lost",)]
        print(f"frozen with its supervisor: its jobs ran elsewhere {took:.2f} s after")
        assert near.stop() == ExitCode.OK
    show("residue: from SIGCONT to its handlers' last note, beside the new execution", residue)
    assert max(residue) < 5.0, "it was not stopped"
