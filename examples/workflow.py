"""A workflow: results are passed on, one job fails and is repaired, and what was skipped because of it runs after all;
then a part of it is run again.

Run it with PGSCHED_DSN set to a database that has the schema.
"""

import asyncio
from datetime import timedelta

import pgsched
from pgsched.worker import Settings, Worker

app = pgsched.App("reports")
is_down = [True]


@app.task
async def extract(region: str) -> list[int]:
    """The rows of a region."""
    if region == "usa" and is_down[0]:
        raise ConnectionError("the region does not answer")
    return [len(region)] * 3


@app.task
async def total(parts: list[list[int]]) -> int:
    """All rows together."""
    return sum(map(sum, parts))


async def main() -> None:
    """Enqueue it, see it fail, repair it, run a part of it again."""
    report = app.workflow("report")
    regions = report.map(extract, ["eu", "usa"])
    together = report.add(total, regions.results)
    run = await report.aenqueue(deadline=timedelta(hours=1))
    worker = Worker(app, Settings(concurrency=2))
    running = asyncio.create_task(worker.run())
    try:
        await run.aresult(timedelta(seconds=30))
    except pgsched.WorkflowFailed as failed:
        print("failed:", *failed.failed, "-", (await run[together].ainfo()).state)
    is_down[0] = False
    await run.jobs["extract usa"].aretry()
    print("total:", (await run.aresult(timedelta(seconds=30)))["total"])
    again = await run.arerun(from_="extract eu")
    print("run again:", *again.values(), "- total:", (await run.aresult(timedelta(seconds=30)))["total"])
    worker.stop()
    await running
    await app.aclose()


asyncio.run(main())
