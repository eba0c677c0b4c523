"""Retries: a policy by type of error, an attempt that is not charged, and a failed job that runs again once its fault is mended.

Run it with PGSCHED_DSN set to a database that has the schema.
"""

import asyncio
from datetime import timedelta

import pgsched
from pgsched.worker import Settings, Worker

app = pgsched.App("deliveries")
moment = timedelta(milliseconds=20)
addresses = {"ann": "12 Hill Street"}
asked: list[str] = []


@app.task(
    retry=pgsched.Exponential(
        max_attempts=4, first=moment, on={KeyError: pgsched.never, ConnectionError: pgsched.Fixed(after=moment)}
    )
)
async def deliver(name: str) -> str:
    """Deliver to somebody: first nobody is at home, then the carrier is out of reach, then it works."""
    asked.append(name)
    address = addresses[name]
    if asked.count(name) == 1:
        raise pgsched.Snooze(moment, "nobody at home")
    if asked.count(name) == 2:
        raise ConnectionError("the carrier does not answer")
    return f"delivered to {address} in attempt {pgsched.current_job().attempt}"


async def main() -> None:
    """Deliver to one whose address is known, and to one whose address is not."""
    worker = Worker(app, Settings(concurrency=2))
    running = asyncio.create_task(worker.run())
    print("ann:", await (await deliver.aenqueue("ann")).aresult())
    job = await deliver.aenqueue("bob")
    try:
        await job.aresult()
    except pgsched.JobFailed as error:
        print("bob:", error.reason)
    for group in await app.failed(task=deliver).agroups():
        print(f"{group.jobs} of {group.task} failed of {group.error_type}")
    addresses["bob"] = "3 Lake Road"
    again = await app.failed(task=deliver, error="KeyError").aretry()
    assert job.id in again.retried
    print("bob:", await job.aresult())
    worker.stop()
    await running
    await app.aclose()


asyncio.run(main())
