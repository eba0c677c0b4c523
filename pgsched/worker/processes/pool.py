"""The executor processes of one worker: a queue in front of them, chunks of what is short, and the end of what must end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pgsched.errors import ProcessDied
from pgsched.lease import now
from pgsched.supervisor.board import Board
from pgsched.worker.attempt import Work
from pgsched.worker.processes.child import STOPPED, Locator
from pgsched.worker.processes.member import Kind, Member
from pgsched.worker.processes.outlet import Answer

_CHUNK_S = 0.005
_MOST_IN_CHUNK = 64
_MOST_TRIES = 3


@dataclass(slots=True, eq=False)
class Queued:
    """One job on its way to a process and back."""

    work: Work
    locator: Locator
    ended: Callable[[str | ProcessDied], None]
    """Called in the event loop, once, with the outcome's text (see child.STOPPED), or with the death of its process."""
    timeout_s: float | None
    late: Callable[[], None]
    """Called in the event loop when it has used up its time."""
    report: Callable[[float | None, str | None], None]
    """Called in the member's thread with what it says of its progress."""
    tries: int = 0
    grace_s: float | None = None
    """It is to end: so long after its handler was told its process is killed."""
    told_at: float | None = None


class ProcessPool:
    """At most `size` processes, started when they are needed. Called in the event loop where not said otherwise."""

    def __init__(self, size: int, kind: Kind, board: Board | None) -> None:
        self._size = size
        self._kind = kind
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._members: list[Member] = []
        self._idle = 0
        self._closed = False
        self._condition = threading.Condition()
        self._queue: deque[Queued] = deque()
        self._seconds: dict[str, float] = {}
        """How long a job of each task takes: a mean in which the last ones count most, and a slow one at once."""

    def submit(self, queued: Queued) -> None:
        """Run it when a process is free."""
        with self._condition:
            self._queue.append(queued)
            self._condition.notify()
            if len(self._queue) <= self._idle:
                return
        if len(self._members) < self._size:
            self._members.append(Member(self, self._kind, self._board))

    def stop(self, queued: Queued, grace_s: float) -> bool:
        """It is to end: at once where it has not been sent yet (then True, and `ended` is not called), else its process is told,
        and killed after `grace_s`."""
        with self._condition:
            if queued in self._queue:
                self._queue.remove(queued)
                return True
        if queued.grace_s is None:
            queued.grace_s = grace_s
        self.look()
        return False

    def look(self) -> bool:
        """Tell and kill what must end, and find what is late; whether there may be something to look at again soon."""
        again = False
        at = now()
        for member in list(self._members):
            claim, since = member.page.claim, member.page.since
            for queued in list(member.chunk):
                if queued.timeout_s is None and queued.grace_s is None:
                    continue
                again = True
                if queued.work.claim_id != claim:
                    continue  # (it waits in its chunk, or has just ended)
                if queued.grace_s is None:
                    if at - since >= (queued.timeout_s or 0.0):
                        queued.late()
                elif queued.told_at is None:
                    queued.told_at = at
                    member.tell(claim)
                elif at - queued.told_at >= queued.grace_s:
                    member.kill_soon(claim)
        return again or any(queued.timeout_s is not None for queued in self._queue)

    def gone(self, member: Member) -> None:
        """This one has come to its end before its time. Called in its thread."""
        with contextlib.suppress(ValueError):
            self._members.remove(member)

    def close(self, timeout_s: float = 0.0) -> None:
        """Let the processes end; those that do not within `timeout_s` are killed."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        until = now() + timeout_s
        for member in list(self._members):
            if not member.join(max(0.0, until - now())):
                member.kill()
                member.join(1.0)

    @property
    def pids(self) -> list[int]:
        """The processes that there are now."""
        return [pid for member in self._members if (pid := member.pid) is not None]

    # ---- In the members' threads.

    def take(self, member: Member) -> list[Queued] | None:
        """Wait for work: one job, or as many as are known to be short. None when it is over."""
        with self._condition:
            self._idle += 1
            self._condition.wait_for(lambda: self._queue or self._closed)
            self._idle -= 1
            if not self._queue:
                return None
            member.chunk = chunk = [self._queue.popleft()]
            share = len(self._queue) // max(1, len(self._members))
            spent = self._seconds.get(chunk[0].locator[0], _CHUNK_S)
            while self._queue and len(chunk) < min(_MOST_IN_CHUNK, share):
                spent += self._seconds.get(self._queue[0].locator[0], _CHUNK_S)
                if spent > _CHUNK_S:
                    break
                chunk.append(self._queue.popleft())
            return chunk

    def answered(self, answers: Sequence[tuple[Queued, Answer]]) -> None:
        """These have ended."""
        for queued, (_, _, seconds) in answers:
            name = queued.locator[0]
            before = self._seconds.get(name, seconds)
            self._seconds[name] = max(seconds, before) if seconds > 4 * before else before + (seconds - before) / 8

        def tell() -> None:
            for queued, (_, text, _) in answers:
                queued.ended(text)

        self._post(tell)

    def died(self, lost: Sequence[Queued], current: int, how: str) -> None:
        """The process ended while `current` ran; what else had begun has ended without its answer being heard."""

        def tell() -> None:
            for queued in lost:
                if queued.work.claim_id == current:
                    queued.ended(ProcessDied(f"the process in which it ran has ended under it: {how}"))
                else:
                    queued.ended(ProcessDied(f"it had run, but its process ended before it could say how: {how}"))

        if lost:
            self._post(tell)

    def again(self, unbegun: Sequence[Queued], how: str, *, in_vain: bool) -> None:
        """These had not begun: another process runs them, unless too many have ended before anything could begin in them."""
        for queued in reversed(unbegun):
            queued.tries += in_vain
            if queued.grace_s is not None:
                self._post(partial(queued.ended, STOPPED))
                continue
            if queued.tries >= _MOST_TRIES:
                error = ProcessDied(
                    f"{queued.tries} processes ended before it could begin in them, the last one: {how}"
                )
                self._post(partial(queued.ended, error))
                continue
            with self._condition:
                self._queue.appendleft(queued)
                self._condition.notify()

    def _post(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # (the loop has been closed: nobody is there to hear it)
            return
