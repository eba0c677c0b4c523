"""A transactional task: what it writes is committed with the job's success or not at all, however often the job has to run.

Run it with PGSCHED_DSN set to a database that has the schema.
"""

import asyncio
import os

import psycopg

import pgsched
from pgsched.worker import Settings, Worker

app = pgsched.App("ledgers")


@app.task(transactional=True, retry=pgsched.Exponential(max_attempts=3))
async def book(account: int, amount: int) -> int:
    """Book an amount; the first attempt fails after it has written."""
    job = pgsched.current_job()
    await job.connection.execute("insert into example_ledger (account, amount) values (%s, %s)", (account, amount))
    if job.attempt == 1:
        raise ConnectionError("the first attempt fails, and what it has written is undone")
    found = await job.connection.execute("select sum(amount) from example_ledger where account = %s", (account,))
    return int((await found.fetchone())[0])


async def main() -> None:
    """Enqueue one job, run it, and show what is in the ledger."""
    job = await book.aenqueue(1, 100)
    worker = Worker(app, Settings(concurrency=1))
    running = asyncio.create_task(worker.run())
    print("balance:", await job.aresult(), "after attempt", (await job.ainfo()).attempt)
    worker.stop()
    await running
    await app.aclose()


with psycopg.connect(os.environ["PGSCHED_DSN"], autocommit=True) as connection:
    connection.execute("create table if not exists example_ledger (account int, amount int)")
    connection.execute("delete from example_ledger")
asyncio.run(main())
