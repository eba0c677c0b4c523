"""Handlers in processes of their own, which can be killed: `pool` feeds them, `member` is one of them, `child` is its inside.

A process runs one job at a time and is used again for the next. Jobs that are known to be short are sent in chunks, so that the
way to the process and back is paid once for many. What a process was running when it ended is known from a page of memory that
it shares with the worker: that attempt has failed, and the rest of its chunk goes to another process.
"""

from pgsched.worker.processes.pool import ProcessPool

__all__ = ["ProcessPool"]
