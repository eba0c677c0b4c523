"""The worker: takes jobs, runs them, and reports how they ended.

`exchange` sends what has ended and takes what is ready, in one call; `executor` runs one job; `lifecycle` puts them
together and ends them in the right order.
"""

from pgsched.exit_code import ExitCode
from pgsched.worker.lifecycle import Worker
from pgsched.worker.process import run_worker
from pgsched.worker.settings import Settings

__all__ = ["ExitCode", "Settings", "Worker", "run_worker"]
