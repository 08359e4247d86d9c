"""What the server does now and then by itself: each chore in a loop of its own, which one failure does not end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

log = logging.getLogger("tenure.server")

FAILURE_PAUSE_FACTOR_MAX = 10
"""A chore that fails again and again comes less often, down to this part of its rate."""


@dataclass(frozen=True)
class Chore:
    """`work` is called `every_s` seconds after its last call ended, and given up after `timeout_s`."""

    name: str
    every_s: float
    work: Callable[[], Awaitable[object]]
    timeout_s: float = 300.0

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            await asyncio.sleep(self.every_s * min(1 + failures, FAILURE_PAUSE_FACTOR_MAX))
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self.work()
                failures = 0
            except Exception:
                failures += 1
                log.exception("%s failed (%d in a row)", self.name, failures)


@asynccontextmanager
async def doing(chores: Sequence[Chore]) -> AsyncGenerator[None]:
    """Does them all meanwhile."""
    tasks = [asyncio.create_task(chore.run(), name=chore.name) for chore in chores]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
