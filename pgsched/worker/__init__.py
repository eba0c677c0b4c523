"""The worker: takes jobs, runs them, and reports how they ended.

`exchange` sends what has ended and takes what is ready, in one call; `executor` runs one job; `lifecycle` puts them
together and ends them in the right order; `process` makes a process of it, `embedding` a part of somebody else's.
"""

from pgsched.exit_code import ExitCode
from pgsched.worker.embedding import EmbeddedWorker
from pgsched.worker.lifecycle import Worker
from pgsched.worker.process import run_worker
from pgsched.worker.settings import Settings

__all__ = ["EmbeddedWorker", "ExitCode", "Settings", "Worker", "run_worker"]
