"""Ending a process with all that it has started, so that its death may be certified.

On Linux a supervisor is the subreaper of its workers: whatever loses its parent becomes a child of the supervisor, however it was
started. So once a worker has ended, all that is left of it hangs below *children* of the supervisor that are neither its workers
nor its own. Entries of that list go only when this process reaps them, so a look that finds none proves that there is none: no
process can slip through between two looks, as it could through a list of all processes. A tag in the environment tells whose
an orphan is; one that has cleared its environment belongs to whichever worker ends next. A process that was started with an
*empty* tag is left alone.

A parent that is no subreaper (and any on other systems) goes by the process group, and on Linux by the tag.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

TAG = "PGSCHED_WORKER"
"""The variable that carries a worker's tag."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_DESCENDANTS_S = 1.0
_IS_LINUX = sys.platform == "linux"


def adopt_orphans() -> set[int] | None:
    """From now on processes whose parent ends become children of this one. The children that it has already; None: not here."""
    if not _IS_LINUX or not Path("/proc/self/task", str(os.getpid()), "children").exists():
        return None  # (a kernel may be built without that list)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return None
    return set(_children())


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends (Linux); if it has ended already, this process ends now."""
    if _IS_LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_family(
    tag: str, group: int, workers: Mapping[str, int] | None = None, own: set[int] | None = None
) -> list[int]:
    """Kill all that a worker has left behind. Again, until it finds nothing: then nothing is left. What it found.

    The worker itself (the head of `group`) has ended and has not been reaped, so that its number means nobody else.
    `workers`: this process's other workers, by their tags. `own`: what `adopt_orphans` has answered, and what is to be left
    alone besides; None: this process adopts nobody. Raises `OSError` where this cannot be found out at the moment.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    found = list(_tagged(tag.encode(), group) if own is None else _orphans(group, workers or {}, own))
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        if own is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return found


def end_descendants(pid: int) -> None:
    """Kill all that the process `pid` has started, whoever else has forked in between; it is stopped meanwhile.

    `pid` is a child of this process that has not been reaped, and a subreaper: so nothing below it can leave. (On other systems
    nothing is done: the process group is all there is.)
    """
    if not _IS_LINUX:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _DESCENDANTS_S
    while (found := [*_living_below(pid)]) and time.monotonic() < deadline:
        for each in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.001)


def end_tagged(variable: str, value: str) -> None:
    """Kill every process that has this variable in its environment, again until none is left (Linux; elsewhere nothing)."""
    if not _IS_LINUX:
        return
    wanted = f"{variable}={value}".encode()
    deadline = time.monotonic() + _DESCENDANTS_S
    while time.monotonic() < deadline:
        found = 0
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if wanted in Path(entry.path, "environ").read_bytes().split(b"\0") and state_of(
                    int(entry.name)
                ) not in ("Z", "X"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    found += 1
        if not found:
            return


def state_of(pid: int) -> str | None:
    """The kernel's letter for what a process does: T stopped, Z ended and not reaped; None: there is no such process."""
    try:
        return Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def _living_below(pid: int) -> Iterator[int]:
    """The descendants of a process that have not ended."""
    for child in _children_of(pid):
        yield from _living_below(child)
        if state_of(child) not in (None, "Z", "X"):
            yield child


def _children_of(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(task.path, "children").read_text().split())
    return found


def reap_orphans(workers: Mapping[str, int], own: set[int] | None) -> None:
    """Orphans that have ended go; this process's own children and workers are left to whoever waits for them."""
    if own is None:
        return
    children = set(_children())
    own &= children
    for pid in children - own - set(workers.values()):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _orphans(group: int, workers: Mapping[str, int], own: set[int]) -> Iterator[int]:
    """Children of this process that are nobody else's; also those that have ended and were not reaped, as their children may
    have become ours meanwhile."""
    others = {each.encode() for each in workers}
    known = own | {group, *workers.values()}
    for pid in _children():
        if pid not in known and (tag := _tag(pid)) not in others and tag != b"":
            yield pid


def _children() -> Iterator[int]:
    """The children of this process. One that exists when this begins is among them."""
    for task in os.scandir("/proc/self/task"):
        try:
            yield from map(int, Path(task.path, "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            if task.name == str(os.getpid()):
                raise  # (any other thread may have ended)


def _tagged(tag: bytes, group: int) -> Iterator[int]:
    """The processes of a worker, as far as its tag and its group tell."""
    if not _IS_LINUX:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, 0)
            yield group
        return
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), group):
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # (The second field is the name, which may hold anything and is closed by the last bracket.)
            fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
            state, its_group, threads = fields[0], int(fields[2]), int(fields[17])
            is_over = state in "ZX" and threads <= 1  # (a main thread that has ended may leave others)
            if not is_over and (its_group == group or _tag(int(entry.name)) == tag):
                yield int(entry.name)


def _tag(pid: int) -> bytes | None:
    """The tag in a process's environment; None: it has none, it has ended, or nobody may look."""
    try:
        environment = Path("/proc", str(pid), "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    _, found, rest = (b"\0" + environment).partition(b"\0" + TAG.encode() + b"=")
    return rest.partition(b"\0")[0] if found else None
