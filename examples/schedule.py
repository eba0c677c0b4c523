"""Schedules: nine o'clock in New York, and one that ticks each second, so that something can be seen in a moment.

Run it with PGSCHED_DSN set to a database that has the schema.
"""

import asyncio
from datetime import datetime, timedelta

import pgsched

app = pgsched.App("reports", deployment=1)
seen: list[datetime] = []
enough = asyncio.Event()


@app.task
async def refresh() -> None:
    """What shall be done each morning."""


@app.task
async def count(where: str) -> None:
    """A job that asks for which tick it is, which is not when it happens to run."""
    tick = pgsched.current_job().tick_at
    if tick is not None:
        seen.append(tick)
        print(f"{where}: the tick of {tick:%H:%M:%S} UTC")
    if len(seen) == 3:
        enough.set()


app.schedule("refresh", refresh, "0 9 * * *", "America/New_York", catch_up="last", overlap="skip")
app.schedule("count", count.bind("eu"), pgsched.every(timedelta(seconds=1)), catch_up="all", overlap="queue")


async def main() -> None:
    """Work until three ticks have come, and show when the next ones are."""
    async with app.worker():
        await enough.wait()
        for row in await app.schedules.aall():
            print(f"{row['name']}: next at {row['next_local']} in {row['timezone']}, {row['next_tick_at']}")
    await app.aclose()


asyncio.run(main())
