"""Tasks for tests of workflows."""

from __future__ import annotations

import time
from typing import Any

import pgsched

app = pgsched.App("flows")


@app.task
def extract(region: str, n: int = 3) -> list[int]:
    return [len(region)] * n


@app.task
async def transform(rows: list[int], factor: int = 2) -> list[int]:
    return [row * factor for row in rows]


@app.task
def merge(parts: list[list[int]], title: str) -> dict[str, int]:
    return {title: sum(map(sum, parts))}


@app.task(executor="process")
def in_process(total: dict[str, int], nothing: None, *, plus: int) -> int:
    assert nothing is None
    return sum(total.values()) + plus


@app.task
def fails(*, message: str = "no") -> None:
    raise ValueError(message)


@app.task
async def passes(value: Any = None) -> Any:
    return value


@app.task
def takes_text(text: str) -> str:
    return text


@app.task
def sleeps(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pgsched.current_job().raise_if_stopping()
        time.sleep(0.01)
