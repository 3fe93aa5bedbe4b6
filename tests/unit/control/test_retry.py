"""Tasks end when they are told to, also those that lose a cancellation."""

from __future__ import annotations

import asyncio
import contextlib

from foreshard.proxy.control.retry import end_tasks


async def test_a_task_that_loses_cancellations_is_ended_all_the_same() -> None:
    cancelled = 0

    async def go_round() -> None:
        nonlocal cancelled
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled += 1
                if cancelled == 3:
                    raise

    task = asyncio.create_task(go_round())
    await asyncio.sleep(0)
    await end_tasks()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (task.done(), cancelled) == (True, 3)
