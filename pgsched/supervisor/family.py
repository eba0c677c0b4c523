"""Ending a process with all that it has started, so that its death may be certified.

Linux: every process of a worker carries the worker's tag in its environment, is in its process group, or, when it has cleared the
one and left the other, becomes a child of this process once its own parent is gone (subreaper). A worker dies with its parent
(parent-death signal). Elsewhere only the process group is known, and the worker notices its parent's end by a closed pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

TAG = "PGSCHED_WORKER"
"""The variable that carries a worker's tag."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IS_LINUX = sys.platform == "linux"


def adopt_orphans() -> frozenset[int] | None:
    """From now on processes whose parent ends become children of this one. The children that it has already; None: not here."""
    if not _IS_LINUX:
        return None
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return frozenset(pid for pid, _, parent, _ in _processes() if parent == os.getpid())


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends (Linux); if it has ended already, this process ends now."""
    if _IS_LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_family(tag: str, group: int, living: Iterable[str] = (), own: frozenset[int] | None = None) -> list[int]:
    """Kill all that a worker has left behind. Call it until it finds nothing; what it found.

    The worker itself has ended, and has not been reaped yet, so that its number means nobody else. `living`: the tags of this
    process's other workers. `own`: what `adopt_orphans` has answered; None: orphans are not ours.
    """
    found = list(_members(tag.encode(), group, {each.encode() for each in living}, own))
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found


def reap_orphans(workers: Container[int], own: frozenset[int] | None) -> None:
    """Orphans that became this process's children and have ended go; its own children and workers are left to whoever waits."""
    if own is None:
        return
    me = os.getpid()
    for pid, state, parent, _ in _processes():
        if state == "Z" and parent == me and pid not in own and pid not in workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _members(tag: bytes, group: int, others: set[bytes], own: frozenset[int] | None) -> Iterator[int]:
    """The processes of a worker that still run."""
    if not _IS_LINUX:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        return
    me = os.getpid()
    for pid, state, parent, its_group in _processes():
        if state in "ZX" or pid in (me, group):
            continue
        its_tag = _tag(pid)
        is_orphan = own is not None and parent == me and pid not in own and its_tag not in others
        if its_tag == tag or its_group == group or is_orphan:
            yield pid


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """Every process: its number, state, parent and group."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                # (The second field is the name, which may hold anything and is closed by the last bracket.)
                fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
                yield int(entry.name), fields[0], int(fields[1]), int(fields[2])


def _tag(pid: int) -> bytes | None:
    """The tag in a process's environment; None: it has none, or nobody may look."""
    try:
        environment = Path("/proc", str(pid), "environ").read_bytes()
    except OSError:
        return None
    _, found, rest = (b"\0" + environment).partition(b"\0" + TAG.encode() + b"=")
    return rest.partition(b"\0")[0] if found else None
