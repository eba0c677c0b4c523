"""Whose the server is: the lock that makes one process its owner, and the ways in which it ends with that process.

The other modules take the lock, launch, and unwind. That a watcher waits on a pipe, which descriptors a forked child has
to give up, how a left-over server is told from a stranger's process, and how long a server is asked to stop before it is
forced to: all that is decided here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from pgsched.embedded.account import Account
from pgsched.embedded.binaries import Binaries
from pgsched.embedded.place import PORT, Data
from pgsched.errors import EmbeddedPostgresError

_logger = logging.getLogger(__name__)

_SHUTDOWN = (("SIGINT", 20.0), ("SIGQUIT", 10.0), ("SIGKILL", 5.0))  # seconds; fast, immediate, last resort
_LOG_BYTES = 16 * 2**20
# A line on its standard input means "stopped in good order", the end of input that the owner is dead.
_WATCHER = 'read -r _ || kill -INT "$1"'

_held: set[int] = set()  # the descriptors that must end with this process: a forked child gives them up


def _hold(descriptor: int) -> int:
    _held.add(descriptor)
    return descriptor


def let_go(descriptor: int) -> None:
    """Close a descriptor that this process held: the lock of `try_lock`, or the watcher's pipe."""
    _held.discard(descriptor)
    os.close(descriptor)


def _after_fork() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def try_lock(place: Data) -> int | None:
    """The descriptor that holds the lock on the data, or None while another process holds it."""
    import fcntl  # not on Windows

    # O_NOFOLLOW here and for the log: root must not be led elsewhere by a link in a folder that another account owns.
    lock = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return _hold(lock)


def _postmaster(place: Data) -> int | None:
    """The process id of a server that runs on the data, if one does. Call it with the lock held.

    Removes a postmaster.pid whose process id belongs to some other program by now (usual after the restart of a
    container): Postgres would take that program for a server, and refuse to start.
    """
    pid_file = place.cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, 0)
    except (OSError, ValueError, IndexError):  # no file, an empty one, or a dead process: Postgres copes
        return None
    if _is_postgres(pid, place.cluster):
        return pid
    pid_file.unlink(missing_ok=True)
    return None


def _is_postgres(pid: int, cluster: Path) -> bool:
    process = Path("/proc", str(pid))
    if process.is_dir():
        try:
            return (process / "comm").read_text().strip() == "postgres" and (process / "cwd").samefile(cluster)
        except PermissionError:  # root without CAP_SYS_PTRACE, in a container, cannot read cwd: the name must do
            return True
        except OSError:  # gone, or a zombie
            return False
    command = ["ps", "-o", "comm=", "-p", str(pid)]
    return "postgres" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def stop_leftover(place: Data) -> None:
    """Shut down a server whose owner is dead.

    Used as it is, it might be going down this very moment, because the watcher noticed the death too.
    """
    pid = None
    for name, seconds in _SHUTDOWN:
        deadline = time.monotonic() + seconds
        while (pid := _postmaster(place)) is not None and time.monotonic() < deadline:
            # Again and again: it is harmless, and lost when the server is just starting.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[name])
            time.sleep(0.05)
        if pid is None:
            return
    raise EmbeddedPostgresError(
        f"a left-over server, process {pid}, on {place.cluster} does not stop: stop it yourself"
    )


def launch(place: Data, binaries: Binaries, sockets: Path, undo: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Run the server; `undo` learns how to shut it down."""
    settings = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": '"{}"'.format(str(sockets).replace('"', '""')),
        "logging_collector": "off",
        "log_destination": "stderr",
        "lc_messages": "C",
        "max_connections": "200",
        "cluster_name": "pgsched",
    }
    command = [str(binaries.bindir / "postgres"), "-D", str(place.cluster)]
    command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    if place.log.exists() and place.log.stat().st_size > _LOG_BYTES:
        place.log.replace(place.log.with_suffix(".log.1"))
    with os.fdopen(os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab") as output:
        process = _spawn(command, place.account, subprocess.DEVNULL, output)
        undo.callback(_shut_down, process)
        watched, pipe = os.pipe()
        undo.callback(let_go, _hold(pipe))
        try:
            watcher = _spawn(["/bin/sh", "-c", _WATCHER, "sh", str(process.pid)], place.account, watched, output)
        finally:
            os.close(watched)
    undo.callback(_dismiss, watcher, pipe)
    return process


def _spawn(command: list[str], account: Account, stdin: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C at the terminal is for the owner, who still needs the server to end in order.
    return subprocess.Popen(
        command, stdin=stdin, stdout=output, stderr=output, start_new_session=True, **account.spawn()
    )


def _dismiss(watcher: subprocess.Popen[bytes], pipe: int) -> None:
    """End the watcher before its server ends: it must never signal a process id that is free for others."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, b"\n")
    watcher.wait()


def _shut_down(process: subprocess.Popen[bytes]) -> None:
    for name, seconds in _SHUTDOWN:
        process.send_signal(signal.Signals[name])
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            _logger.warning("the embedded Postgres, process %s, ignores %s", process.pid, name)
