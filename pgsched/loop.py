"""What everything that loops has in common: waiting for something or for a stop, and backing off after a failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator


def backoff(first: float = 0.1, cap: float = 10.0) -> Iterator[float]:
    """Waits in seconds, for ever: doubling up to `cap`, each drawn from its upper half so that a fleet spreads out."""
    wait = first
    while True:
        yield random.uniform(wait / 2, wait)
        wait = min(wait * 2, cap)


async def wait_any(*events: asyncio.Event, at_most: float | None = None) -> None:
    """Wait until one of the events is set, at most `at_most` seconds."""
    if any(event.is_set() for event in events):
        return
    if not events:
        await asyncio.sleep(at_most or 0)
        return
    waiters = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiters, timeout=at_most, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
