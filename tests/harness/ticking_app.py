"""An App whose schedules tick each second, with a task in each place where handlers run."""

from __future__ import annotations

from datetime import timedelta

import pgsched

app = pgsched.App("ticking", deployment=3)


def _tick() -> str | None:
    tick = pgsched.current_job().tick_at
    return None if tick is None else tick.isoformat()


@app.task
async def on_the_loop() -> str | None:
    return _tick()


@app.task
def in_a_thread(where: str) -> str | None:
    return _tick()


@app.task(executor="process")
def in_a_process() -> str | None:
    return _tick()


@app.task
async def after(tick: str | None) -> str | None:
    return tick


flow = app.workflow("flow")
flow.add(after, flow.add(on_the_loop).result)

every = pgsched.every(timedelta(seconds=1))
app.schedule("loop", on_the_loop, every)
app.schedule("thread", in_a_thread.bind("eu"), "* * * * * *", "Asia/Kathmandu")
app.schedule("process", in_a_process.using(priority=1), every, catch_up="all")
app.schedule("flow", flow, every, overlap="queue")
