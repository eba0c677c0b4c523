"""A task whose module takes its time to be imported by an executor process."""

from __future__ import annotations

import os
import time

from harness.apps import record
from harness.executing import app
from pgsched.worker.processes.page import TAG

if TAG in os.environ:
    record(f"imports {os.getpid()}", 0)
    time.sleep(20)


@app.task(executor="process")
def comes_late() -> None:
    pass
