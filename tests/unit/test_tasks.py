"""The tasks of handlers: what holds from their first step on, which from Python 3.12 on is taken at once."""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar
from typing import Any

import pytest

from pgsched.context import JobContext, _current
from pgsched.worker.tasks import begun, contained

seen: ContextVar[int] = ContextVar("seen", default=0)


def test_each_handler_has_a_task_and_a_context_of_its_own() -> None:
    found: list[tuple[int, str]] = []

    async def handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        found.append((seen.get(), task.get_name()))
        seen.set(1)

    async def main() -> None:
        mine, loop = asyncio.current_task(), asyncio.get_running_loop()
        tasks = [begun(loop, handler(), name) for name in ("a", "b")]
        if sys.version_info >= (3, 12):
            assert all(task.done() for task in tasks), "what waits for nothing has ended"
        assert asyncio.current_task() is mine and seen.get() == 0
        await asyncio.wait(tasks)
        assert found == [(0, "a"), (0, "b")]

    asyncio.run(main())


def test_timeouts_groups_and_cancelling_work_from_the_first_step_on() -> None:
    async def handler() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        async with asyncio.TaskGroup() as group:
            one = group.create_task(asyncio.sleep(0, "one"))
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return f"{one.result()}, cancelled"
        return "nothing"

    async def main() -> None:
        task = begun(asyncio.get_running_loop(), handler(), "handler")
        await asyncio.sleep(0.1)
        task.cancel()
        assert await task == "one, cancelled"

    asyncio.run(main())


def test_sys_exit_in_a_task_that_a_first_step_has_made_is_contained() -> None:
    async def leaves() -> None:
        sys.exit(3)

    async def handler() -> None:
        _current.set(JobContext(1, "task", 1, 1))
        with pytest.raises(RuntimeError, match="SystemExit in a task of a handler"):
            await asyncio.create_task(leaves())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(contained)
        await begun(loop, handler(), "handler")

    asyncio.run(main())


def test_an_applications_own_factory_makes_the_tasks_of_a_worker_that_is_embedded() -> None:
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro.__name__)
        return asyncio.Task(coro, loop=loop, **options)

    async def handler() -> None: ...

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        await begun(loop, handler(), "handler")
        assert made == ["handler"]

    asyncio.run(main())
