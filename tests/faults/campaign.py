"""The campaign: many jobs, several supervisors, and every second one more fault. `make faults`, or with options

    PYTHONPATH=tests python -m faults.campaign --seconds 600 --jobs 100000 --seed 1

A worker or a supervisor is killed, a worker is frozen for some seconds, sessions are ended, a link is cut for some seconds, the
server crashes and comes back. Some supervisors live behind links of their own, where network namespaces can be made. A supervisor
that was killed is started again a moment later, as an init system would; nothing else is helped along.

At the end the handlers' own notes are laid beside the tables (`harness.checker`). Exit code 1 where anything is violated. With the
same seed the same faults are drawn at the same times (whom they meet depends on the machine too).
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from harness.checker import Execution, executions, overlap, violations
from harness.network import Link, NoLinksError
from harness.protocol import enqueue
from harness.running import ENDED
from harness.server import Server, installations
from harness.sites import Site

from pgsched.lease import now
from pgsched.migrate import upgrade

LEASE = ("--lease", "2", "--kill", "3")
FAULTS = {
    "worker killed": 3,
    "supervisor killed": 1,
    "worker frozen": 3,
    "sessions ended": 3,
    "link cut": 3,
    "server crashed": 1,
}
"""The kinds of faults, and how often each is drawn relative to the others."""

_LENGTHS = {(0.02, 0.3): 93, (1, 3): 5, (7, 11): 2}
"""How long jobs take, least and most, and how many in a hundred do."""
_LONG_S = 5.0
_BATCH_S = 0.25
_RECOVERY_S = 180.0


@dataclass
class Report:
    """What a campaign has seen."""

    seed: int
    seconds: float = 0.0
    recovery_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    runs: dict[int, list[Execution]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    history: str = ""
    """How the claims ended of the job that waited longest for its next execution."""
    violations: list[str] = field(default_factory=list)

    def again(self) -> list[tuple[Execution, Execution]]:
        """The executions that followed another of the same job."""
        return [pair for mine in self.runs.values() for pair in itertools.pairwise(mine)]

    def longest_wait(self) -> Execution | None:
        """The execution that was longest without its next one."""
        return max(self.again(), key=lambda pair: pair[1].began - pair[0].ended, default=(None,))[0]

    def __str__(self) -> str:
        again = self.again()
        ends = sorted(each.ended for mine in self.runs.values() for each in mine if each.how == "done")
        waits = [two.began - one.ended for one, two in again]
        how = Counter(each.how for mine in self.runs.values() for each in mine)
        lines = [
            f"seed {self.seed}: {self.seconds:.0f} s of faults, and {self.recovery_s:.1f} s until the last job had ended",
            f"faults: {sum(self.faults.values())} ({', '.join(f'{kind} {n}' for kind, n in self.faults.most_common())})",
            f"jobs: {self.jobs}; executions: {sum(how.values())} ({', '.join(f'{kind} {n}' for kind, n in how.most_common())})",
            f"executions that followed another of the same job: {len(again)}; ended claims by the table: {dict(self.attempts)}",
        ]
        if again:
            closest = -max(overlap(mine) for mine in self.runs.values())
            between = f"{closest:.3f} s the closest, {max(waits):.1f} s the longest wait ({self.history})"
            lines.append(f"between two executions of a job: {between}")
        if ends:
            gap = max((b - a for a, b in itertools.pairwise(ends)), default=0.0)
            lines.append(f"worst gap in which no job came to its end anywhere: {gap:.1f} s")
        lines.append(f"violations: {len(self.violations)}")
        return "\n".join([*lines, *self.violations[:50]])


class Campaign:
    """One campaign on a server of its own; `run` is all of it."""

    def __init__(self, folder: Path, seconds: float, jobs: int, seed: int, *, every_s: float = 1.0) -> None:
        self._folder = folder
        self._seconds = seconds
        self._jobs = jobs
        self._every_s = every_s
        self._random = random.Random(seed)
        self._report = Report(seed, seconds)
        self._sites: list[Site] = []
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._promised: list[int] = []
        self._cut: set[str] = set()

    def run(self) -> Report:
        """Let it all happen, heal, wait for the last job, and check."""
        with contextlib.ExitStack() as stack:
            links = _links(stack)
            self._server = stack.enter_context(Server(installations()[0], links=tuple(link.here for link in links)))
            self._dsn = self._server.conninfo()
            upgrade(self._dsn)
            self._pardon()
            for number, link in enumerate([*links, None, None]):
                options = ("--processes", "2", "--concurrency", "30", *LEASE)
                site = Site(f"site-{number}", self._dsn, self._folder, *options, link=link)
                self._sites.append(stack.enter_context(site))
            self._await_workers()
            self._rage()
            self._heal()
            self._check()
        return self._report

    def _pardon(self) -> None:
        """Here workers die by our hand: a job that was with three of them is innocent, and must not fail for it."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("update pgsched.setting set value = '1000' where name = 'max_lost_attempts'")

    def _rage(self) -> None:
        """Feed jobs evenly over the time, and draw one fault after the other."""
        began = now()
        fault_at = began + self._every_s
        while (at := now()) < began + self._seconds or len(self._promised) < self._jobs:
            due = min(self._jobs, int(self._jobs * (at - began) / self._seconds) + 1)
            if due > len(self._promised):
                self._feed(due - len(self._promised))
            if at >= fault_at and at < began + self._seconds:
                fault_at += self._every_s
                self._fault()
            self._act(at)
            time.sleep(max(0.0, min(_BATCH_S, fault_at - now())))

    def _feed(self, n: int) -> None:
        """Enqueue n jobs: most are short, some still run when their worker's jobs are taken.

        Those of a call that was not answered are promised to nobody.
        """
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._dsn, autocommit=True) as connection:
            while n > 0:
                seconds = self._random.uniform(*self._random.choices([*_LENGTHS], [*_LENGTHS.values()])[0])
                few = min(n, 5)
                # (The long ones first: one that is taken from its worker must not wait behind all others until that has ended.)
                options = {"args": {"seconds": round(seconds, 3)}, "priority": 0 if seconds > _LONG_S else 5}
                self._promised += enqueue(connection, few, task="noted", queue="faulty", **options)
                n -= few

    # ---- Faults.

    def _fault(self) -> None:
        kind = self._random.choices([*FAULTS], [*FAULTS.values()])[0]
        sites = [site for site in self._sites if site.link or kind != "link cut"] or self._sites
        site, seconds, part = self._random.choice(sites), self._random.uniform(1, 12), self._random.random()
        if getattr(self, "_" + kind.replace(" ", "_"))(site, seconds, part):
            self._report.faults[kind] += 1

    def _worker_killed(self, site: Site, seconds: float, part: float) -> bool:
        return self._signal(site, part, signal.SIGKILL) is not None

    def _worker_frozen(self, site: Site, seconds: float, part: float) -> bool:
        process = self._signal(site, part, signal.SIGSTOP)
        if process is None:
            return False

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGCONT)
            os.close(process)

        self._do_later(seconds, go_on)
        return True

    def _signal(self, site: Site, part: float, number: signal.Signals) -> int | None:
        """A signal to one worker of the site; its pidfd, or None where there is no worker now."""
        workers = sorted(site.workers())
        if not workers:
            return None
        try:
            process = os.pidfd_open(workers[int(part * len(workers))])
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            return None
        if number is signal.SIGKILL:
            os.close(process)
        return process

    def _supervisor_killed(self, site: Site, seconds: float, part: float) -> bool:
        if not site.alive:
            return False
        site.kill()
        self._do_later(seconds / 6, site.start)
        return True

    def _sessions_ended(self, site: Site, seconds: float, part: float) -> bool:
        query = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsched %%' and random() < %s"
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(query, (part,)).rowcount > 0
        return False

    def _link_cut(self, site: Site, seconds: float, part: float) -> bool:
        if (link := site.link) is None or site.name in self._cut:
            return False
        link.cut(outgoing=part < 0.75, incoming=part > 0.25)
        self._cut.add(site.name)

        def restore() -> None:
            link.restore()
            self._cut.discard(site.name)

        self._do_later(seconds, restore)
        return True

    def _server_crashed(self, site: Site, seconds: float, part: float) -> bool:
        self._server.crash()
        self._server.restart()
        return True

    # ---- What comes after a fault.

    def _do_later(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._later, (now() + seconds, next(self._count), action))

    def _act(self, at: float) -> None:
        while self._later and self._later[0][0] <= at:
            heapq.heappop(self._later)[2]()

    def _heal(self) -> None:
        """Every fault ends; then every job must end."""
        self._act(float("inf"))
        began = now()
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not connection.execute(f"select {ENDED}").fetchone()[0]:  # type: ignore[index]
                if now() - began > _RECOVERY_S:
                    self._report.violations.append(f"jobs have not ended {_RECOVERY_S:.0f} s after the last fault")
                    break
                time.sleep(0.02)
        self._report.recovery_s = now() - began
        for site in self._sites:
            if not site.alive:
                self._report.violations.append(f"{site.name}: the supervisor has ended by itself")
            elif code := site.stop():
                self._report.violations.append(f"{site.name} has ended with {code}")

    def _check(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            report = self._report
            report.violations += violations(connection, self._folder, self._promised)
            report.violations += [
                f"broken invariant: {row}" for row in connection.execute("select * from pgsched.check_invariants()")
            ]
            report.runs = executions(self._folder)
            if longest := report.longest_wait():
                query = "select string_agg(state, ', ' order by claim_id) from pgsched.attempt_log where job_id = %s"
                report.history = f"job {longest.job}: {connection.execute(query, (longest.job,)).fetchone()[0]}"  # type: ignore[index]
            report.jobs = len(connection.execute("select id from pgsched.job").fetchall())
            report.attempts = Counter(
                dict(connection.execute("select state, count(*) from pgsched.attempt_log group by 1").fetchall())
            )

    def _await_workers(self) -> None:
        deadline = time.monotonic() + 60
        query = "select count(distinct name) from pgsched.workers where state = 'alive'"
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while connection.execute(query).fetchone() != (len(self._sites),):
                if time.monotonic() > deadline:
                    raise RuntimeError("the sites do not start:\n" + "\n".join(site.log[-1000:] for site in self._sites))
                time.sleep(0.05)


def _links(stack: contextlib.ExitStack) -> list[Link]:
    """Two links, or none where there can be none."""
    try:
        return [stack.enter_context(Link()) for _ in range(2)]
    except NoLinksError as error:
        print(f"without links: {error}", flush=True)
        return []


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where notes and logs go: the folder that is to be kept, or one that goes with this process."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="pgsched-campaign-") as name:
        yield Path(name)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Jobs under random faults, checked by the handlers' own notes.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults go on")
    parser.add_argument("--jobs", type=int, default=100_000, help="how many jobs are enqueued over that time")
    parser.add_argument("--seed", type=int, default=None, help="repeats the faults of a former campaign")
    parser.add_argument("--keep", type=Path, default=None, help="an empty folder for the notes and logs")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}, {given.jobs} jobs, {given.seconds:.0f} s", flush=True)
    with _folder(given.keep) as folder:
        report = Campaign(folder, given.seconds, given.jobs, seed).run()
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
