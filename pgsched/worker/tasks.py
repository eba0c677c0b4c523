"""The event loop's tasks in which handlers run, and those that handlers make."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from pgsched.context import _current

_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


def begun(loop: asyncio.AbstractEventLoop, coro: Any, name: str) -> asyncio.Task[Any]:
    """A task for one handler. From Python 3.12 on its first step is taken at once, so a handler that waits for nothing has ended
    when this returns, without another turn of the loop."""
    if loop.get_task_factory() not in (None, contained):  # (the application's own, around a worker that is embedded)
        return loop.create_task(coro, name=name)
    return asyncio.Task(coro, loop=loop, name=name, **_EAGER)


def contained(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """A factory of tasks: sys.exit() in a task of a handler's own ends that task, not the event loop and with it the worker."""
    if _current.get(None) is not None:
        coro = _without_exit(coro)
    return asyncio.Task(coro, loop=loop, **options)


async def _without_exit(coro: Any) -> Any:
    try:
        return await coro
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"{type(error).__name__} in a task of a handler: {error}") from error
