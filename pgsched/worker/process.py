"""A worker as a process: signals in, an exit code out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pgsched.errors import UsageError
from pgsched.exit_code import ExitCode
from pgsched.supervisor.board import HURRY
from pgsched.worker.lifecycle import Worker
from pgsched.worker.processes import child
from pgsched.worker.settings import Settings
from pgsched.worker.tasks import contained

if TYPE_CHECKING:
    from pgsched.app import App
    from pgsched.supervisor.child import Parent

log = logging.getLogger("pgsched.worker")

_LEFT_BEHIND_S = 5.0


def run_worker(
    app: App,
    settings: Settings | None = None,
    *,
    parent: Parent | None = None,
    restore_signals: bool = True,
    **options: Any,
) -> int:
    """Run a worker in this process until SIGTERM or SIGINT (a second one cancels what runs, where there is no parent); its exit
    code.

    `options` are those of `Settings`; `parent` is for a supervisor's child. When a handler still runs at the end (a thread that
    does not return), the process is ended without waiting for it, with `ExitCode.STILL_RUNNING`. `restore_signals` False leaves
    both signals ignored afterwards, for a process that ends with this code.
    """
    if child.inside == os.getpid():
        raise UsageError(
            "run_worker() was called while the main module is imported by one of the worker's own processes: "
            'put it under if __name__ == "__main__":'
        )
    worker_settings = settings or Settings(**options)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # (else no process of its own could be waited for)
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    async def main() -> ExitCode:
        worker = Worker(app, worker_settings, parent)
        # Handlers that wait in asyncio.to_thread must not keep a new session from finding the server's address.
        threads = ThreadPoolExecutor(worker_settings.concurrency + 32, thread_name_prefix="pgsched-loop")
        loop = asyncio.get_running_loop()
        loop.set_default_executor(threads)
        loop.set_task_factory(contained)
        for number in signals:
            loop.add_signal_handler(number, worker.stop if parent is None else worker.drain)
        if parent is not None:
            loop.add_signal_handler(HURRY, worker.stop)
        try:
            code = await worker.run()
        finally:
            # It has stopped: one more signal shall not change its exit code.
            for number in signals if parent is None else (*signals, HURRY):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
        if worker.ledger.running():
            # Whatever the reason for the end: a thread that still runs must not outlive the watchdog, since its job may be
            # given to another worker.
            os._exit(code)
        leaving.append(_end_within(code))
        return code

    # (What is there now stays to the end: the garbage collector need not go through it again and again.)
    gc.collect()
    gc.freeze()
    leaving: list[threading.Timer] = []
    try:
        code = int(asyncio.run(main()))
        if restore_signals:
            leaving[0].cancel()
        return code
    finally:
        for number, handler in before.items() if restore_signals else ():
            signal.signal(number, handler)


def _end_within(code: ExitCode) -> threading.Timer:
    """The process ends soon, whatever a handler has left behind in asyncio.to_thread: that would be waited for, for ever."""

    def end() -> None:
        log.error("threads that handlers have left behind do not end: the process ends without them")
        os._exit(code)

    timer = threading.Timer(_LEFT_BEHIND_S, end)
    timer.daemon = True
    timer.start()
    return timer
