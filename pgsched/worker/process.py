"""A worker as a process: signals in, an exit code out."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

from pgsched.exit_code import ExitCode
from pgsched.worker.lifecycle import Worker
from pgsched.worker.settings import Settings

if TYPE_CHECKING:
    from pgsched.app import App
    from pgsched.supervisor.child import Parent


def run_worker(
    app: App,
    settings: Settings | None = None,
    *,
    parent: Parent | None = None,
    restore_signals: bool = True,
    **options: Any,
) -> int:
    """Run a worker in this process until SIGTERM or SIGINT (a second one cancels what runs); its exit code.

    `options` are those of `Settings`; `parent` is for a supervisor's child. When a handler still runs at the end (a thread that
    does not return), the process is ended without waiting for it, with `ExitCode.STILL_RUNNING`. `restore_signals` False leaves
    both signals ignored afterwards, for a process that ends with this code.
    """
    worker_settings = settings or Settings(**options)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    async def main() -> ExitCode:
        worker = Worker(app, worker_settings, parent)
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, worker.stop)
        try:
            code = await worker.run()
        finally:
            # It has stopped: one more signal shall not change its exit code.
            for number in signals:
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
        if worker.ledger.running():
            # Whatever the reason for the end: a thread that still runs must not outlive the watchdog, since its job may be
            # given to another worker.
            os._exit(code)
        return code

    try:
        return int(asyncio.run(main()))
    finally:
        for number, handler in before.items() if restore_signals else ():
            signal.signal(number, handler)
