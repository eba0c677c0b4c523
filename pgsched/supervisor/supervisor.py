"""The loop of the supervisor: one look at every worker, 20 times a second, that nothing may hold up."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from pgsched.errors import UsageError, primary
from pgsched.exit_code import ExitCode
from pgsched.lease import now
from pgsched.loop import backoff
from pgsched.supervisor.board import HURRY
from pgsched.supervisor.child import FAMILY_S, Certificate, ChildWorker
from pgsched.supervisor.family import adopt_orphans, reap_orphans
from pgsched.supervisor.health import Health
from pgsched.supervisor.leading import Leading
from pgsched.supervisor.surroundings import logging_that_cannot_block, more_descriptors, resident_mb

log = logging.getLogger("pgsched.supervisor")

_LOOK_S = 0.05
_REAP_EVERY_S = 1.0
_HEALTHY_S = 3.0
"""A worker that lived so long after its start is followed by another at once, any other with backoff."""
_STILL_S, _BLIND_S = 2.0, 5.0
"""Where the supervisor itself has not looked for so long (its machine stood still), deaths are blamed on nobody for so long."""
_LAST_WORDS_S = 10.0
"""How long a stopping supervisor goes on presenting certificates; then the jobs wait for a leader."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a supervisor runs.

    command       the worker's command line after `pgsched`
    dsn           its database, where that is not the App's own
    processes     how many workers, 1 to 1000
    lead          whether this process also stands for leader
    recycle_jobs  a worker that has run so many jobs is followed by a fresh one; None: never
    recycle_mb    the same for one that holds so many megabytes of memory (Linux)

    Raises `UsageError` for a value out of range.
    """

    command: Sequence[str]
    dsn: str | None = None
    processes: int = 1
    lead: bool = True
    recycle_jobs: int | None = None
    recycle_mb: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.processes <= 1000:
            raise UsageError(f"processes is {self.processes}: it is a number from 1 to 1000")
        for name in ("recycle_jobs", "recycle_mb"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}: it must be at least 1")


@dataclass(slots=True)
class _Place:
    """Where one worker runs, and another after it."""

    child: ChildWorker
    waits: Iterator[float] = field(default_factory=backoff)
    start_at: float = 0.0
    ended_at: float | None = None
    retiring: bool = False
    running: bool = False
    doomed: bool = False
    tainted: list[int] = field(default_factory=list)
    """Processes that may be its worker's and could not be ended: no certificate for it."""

    @property
    def pid(self) -> int:
        """The process that runs here."""
        assert self.child.process is not None
        return self.child.process.pid


class Supervisor:
    """`Supervisor(plan).run()` in the main thread, until SIGTERM, SIGINT or SIGHUP; a second one hurries the workers."""

    def __init__(self, plan: Plan, health: Health | None = None) -> None:
        self._plan = plan
        self._health = health or Health()
        self._own: set[int] | None = None
        self._places: list[_Place] = []
        self._asked = 0
        self._forwarded = 0
        self._code: int = ExitCode.OK
        self._had_attached = False
        self._looked_at = 0.0
        self._blind_until = 0.0
        self._reaped_at = 0.0
        self._said = ""
        self._unkillable: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._certificates: list[Certificate] = []
        self._presenting: list[threading.Thread] = []
        self._over = threading.Event()
        self._leader: Leading | None = None

    def run(self) -> int:
        """Keep the workers running until it is told to stop; the worst of their exit codes.

        Where no worker could even attach and one has ended with an error, that error ends the supervisor too.
        """
        self._own = adopt_orphans()
        self._places += [self._place() for _ in range(self._plan.processes)]
        more_descriptors(self._plan.processes)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # (as nohup has it)
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._stop)
        # (Whoever has started this process may have ignored it, and then no child could be waited for.)
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            with logging_that_cannot_block(), self._health:
                if self._own is None:
                    log.warning(
                        "on this system a worker's processes are known by their group alone, and workers notice the end of this "
                        "one by a closed pipe: what leaves the group outlives its worker"
                    )
                self._watch()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._code

    def _stop(self, *_: int | FrameType | None) -> None:
        self._asked += 1

    def _watch(self) -> None:
        """One round after the other. What fails in one (no memory, no descriptors, no processes) is tried again in the next."""
        while not (self._asked and not any(place.running for place in self._places)):
            if 0.0 < self._looked_at < now() - _STILL_S:
                self._blind_until = now() + _BLIND_S
            self._looked_at = now()
            # Whoever must be killed, before all that may take longer.
            for step in (self._doom, self._tend):
                for place in list(self._places):
                    with self._trying():
                        step(place)
            for duty in (self._forward, self._hand_over, self._lead, self._reap, self._tell):
                with self._trying():
                    duty()
            dying = any(place.ended_at is not None for place in self._places)
            for key, _ in self._selector.select(0.002 if dying else _LOOK_S):
                self._forget(key.fd)
        self._end()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """What cannot be done at this moment is done in a later round: nothing ends the supervisor but its own decision."""
        try:
            yield
        except Exception as error:
            if (said := f"{type(error).__name__}: {error}") != self._said:
                log.error(
                    "the supervisor goes on after %s", said, exc_info=not isinstance(error, (OSError, RuntimeError))
                )
            self._said = said
            time.sleep(_LOOK_S / 5)

    def _reap(self) -> None:
        if now() - self._reaped_at > _REAP_EVERY_S:
            self._reaped_at = now()
            reap_orphans(self._workers(), self._own)

    # ---- One worker.

    def _place(self) -> _Place:
        return _Place(ChildWorker(self._plan.command, self._plan.dsn, quiet=self._plan.quiet, own=self._own))

    def _workers(self, but: _Place | None = None) -> dict[str, int]:
        return {place.child.tag: place.pid for place in self._places if place.running and place is not but}

    def _doom(self, place: _Place) -> None:
        """End what has outlived its lease."""
        if not place.running or place.child.has_ended():
            return
        if not place.doomed and (why := place.child.seen.doom(now())):
            place.doomed = True
            log.critical("worker process %s is killed: %s", place.pid, why)
        if place.doomed:
            place.child.kill()

    def _tend(self, place: _Place) -> None:
        """What else is to be done about one worker at this moment."""
        if not place.running:
            if place.retiring:
                self._places.remove(place)
            elif not self._asked and now() >= place.start_at:
                self._start(place)
        elif place.child.has_ended():
            self._bury(place)
        elif why := self._is_used_up(place):
            log.info("worker process %s is followed by a fresh one: %s", place.pid, why)
            place.retiring = True
            place.child.send(signal.SIGTERM)
            self._places.append(self._place())

    def _start(self, place: _Place) -> None:
        place.start_at = now() + next(place.waits)  # (should this try fail)
        place.child.start()
        place.tainted = []
        place.running, place.doomed, place.ended_at = True, False, None
        with contextlib.suppress(AttributeError, OSError):
            # Its end wakes this loop at once; where there is no such thing, the next look finds it.
            self._selector.register(os.pidfd_open(place.pid), selectors.EVENT_READ)

    def _forget(self, fd: int) -> None:
        self._selector.unregister(fd)
        os.close(fd)

    def _bury(self, place: _Place) -> None:
        """One step: what it left behind is killed; when nothing is left it is reaped, and its death certified."""
        place.ended_at = place.ended_at or now()
        left = [pid for pid in place.child.clear(self._workers(but=place)) if pid not in self._unkillable]
        if left and now() - place.ended_at < FAMILY_S:
            return
        # What cannot be ended must not keep every later death from being certified; but whoever runs now may be its maker.
        self._unkillable.update(left)
        for other in self._places if left else ():
            other.tainted += left
        left = place.tainted
        pid, has_attached = place.pid, place.child.seen.worker_id != 0
        code, certificate = place.child.bury(left, blind=now() < self._blind_until)
        lived = now() - place.child.started_at
        place.running, place.ended_at = False, None
        self._had_attached |= has_attached
        if certificate is not None:
            self._certificates.append(certificate)
        if self._asked or place.retiring:
            self._note(code, has_attached)
            return
        if not self._had_attached and code > 0:
            log.error("worker process %s could not start: exit code %s", pid, code)
            self._code = code
            self._asked += 1
            return
        wait = 0.0
        if has_attached and lived > _HEALTHY_S and not place.doomed:
            place.waits = backoff()
        else:
            wait = next(place.waits)
        place.start_at = now() + wait
        log.warning(
            "worker process %s has ended with %s after %.1f s; another starts in %.1f s", pid, code, lived, wait
        )

    def _note(self, code: int, has_attached: bool) -> None:
        """The exit code of a worker that was told to stop counts for ours."""
        if code < 0:  # a signal: one that was still starting had nothing to lose
            code = ExitCode.ERROR if has_attached else ExitCode.OK
        self._code = max(self._code, code)

    def _is_used_up(self, place: _Place) -> str | None:
        """Why it is time for a fresh one: one at a time, and not before it has done something."""
        jobs, memory = self._plan.recycle_jobs, self._plan.recycle_mb
        if (jobs is None and memory is None) or self._asked or any(other.retiring for other in self._places):
            return None
        ended = place.child.seen.ended
        if jobs is not None and ended >= jobs:
            return f"it has run {ended} jobs"
        if memory is not None and ended > 0 and (held := resident_mb(place.pid)) >= memory:
            return f"it holds {held} MB"
        return None

    def _hand_over(self) -> None:
        """Each certificate is presented by a thread of its own: the database may be away."""
        self._presenting = [thread for thread in self._presenting if thread.is_alive()]
        while self._certificates:
            thread = threading.Thread(
                target=self._present, args=(self._certificates[0],), name="pgsched-certificate", daemon=True
            )
            thread.start()
            self._presenting.append(thread)
            del self._certificates[0]

    def _present(self, certificate: Certificate) -> None:
        """Present it until the database has taken it; a stopping supervisor gives up after a while."""
        for wait in backoff(0.05, 5.0):
            try:
                if moved := certificate.present(over=self._over):
                    log.info("%s jobs of worker %s went back", moved, certificate.worker_id)
                return
            except Exception as error:  # (also: no descriptor, no memory at this moment)
                log.warning("worker %s is dead, but: %s", certificate.worker_id, primary(error))
            if self._over.wait(wait):
                return

    # ---- The whole.

    def _forward(self) -> None:
        """To every worker SIGTERM, and word to hurry when a second one has come."""
        if self._asked <= self._forwarded:
            return
        self._forwarded += 1
        if self._leader is not None:
            self._leader.stop()
        for place in self._places:
            if place.running:
                place.child.send(signal.SIGTERM if self._forwarded == 1 else HURRY)

    def _tell(self) -> None:
        """Say what is seen of the workers to whoever asks for their health."""
        if self._health.due():
            running = [place for place in self._places if place.running and not place.child.has_ended()]
            workers = [(place.child.seen, bool(place.retiring or self._asked)) for place in running]
            self._health.tell(workers, 1 if self._asked else self._plan.processes)

    def _lead(self) -> None:
        """Stand for leader, once a worker has said where the database is."""
        if self._leader is None and self._plan.lead and not self._asked:
            for place in self._places:
                if place.running and (target := place.child.target):
                    self._leader = Leading(*target)
                    return

    def _end(self) -> None:
        deadline = now() + _LAST_WORDS_S
        with self._trying():
            self._hand_over()
        for presenting in self._presenting:
            presenting.join(max(0.0, deadline - now()))
        self._over.set()
        if self._leader is not None:
            self._leader.stop()
            self._leader.join(5.0)
        self._selector.close()
