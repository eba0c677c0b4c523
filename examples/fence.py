"""An effect outside pgsched's tables, guarded by the fence: a write that an older claim of the same job cannot win.

The outside system here is a table of the application's own; the condition is the same for any store that can compare.
Run it with PGSCHED_DSN set to a database that has the schema.
"""

import asyncio
import os

import psycopg

import pgsched
from pgsched.worker import Settings, Worker

app = pgsched.App("fences")


@app.task
def write_balance(account: int, balance: int) -> str:
    """Write the balance unless a newer claim of this job has written."""
    fence = pgsched.current_job().fence
    with psycopg.connect(os.environ["PGSCHED_DSN"], autocommit=True) as connection:
        written = connection.execute(
            "insert into example_balance (account, balance, fence) values (%s, %s, %s) on conflict (account) do update "
            "set balance = excluded.balance, fence = excluded.fence where example_balance.fence < excluded.fence",
            (account, balance, fence),
        ).rowcount
    return "written" if written else "refused: a newer claim has written"


async def main() -> None:
    """Enqueue one job, run it, and show what it did."""
    job = await write_balance.aenqueue(1, 100)
    worker = Worker(app, Settings(concurrency=1))
    running = asyncio.create_task(worker.run())
    while (info := await job.ainfo()).state not in ("succeeded", "failed"):  # noqa: ASYNC110 (it asks the database)
        await asyncio.sleep(0.02)
    worker.stop()
    await running
    print(info.state, info.result)
    await app.aclose()


with psycopg.connect(os.environ["PGSCHED_DSN"], autocommit=True) as connection:
    connection.execute("create table if not exists example_balance (account int primary key, balance int, fence bigint)")
asyncio.run(main())
