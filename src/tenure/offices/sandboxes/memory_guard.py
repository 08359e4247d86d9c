"""Ends the process that holds most of an office that has used up its memory, before the kernel has to choose.

What a process inside holds lies in a file of gVisor's: it is free not when that process is killed, but when gVisor has
noticed. Until then the control group is as full as before, and the kernel kills again: often gVisor itself, and the office
with it. So the group's limit leaves gVisor some room beside what is the office's (`oci.RUNTIME_BYTES`), and this ends whoever
fills the office's part. Where nobody looks (no server runs), or not fast enough, the kernel's choice is the backstop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from tenure.errors import TenureError
from tenure.offices.sandboxes.base import SandboxDriver

GROWTH_BYTES_PER_S = 1024**3
"""As fast as a process can take memory (measured: 1 GB/s)."""
LOOK_S_MIN = 0.02
LOOK_S_MAX = 1.0
SETTLE_S = 0.5
"""After one was ended: gVisor gives back what it held meanwhile."""
LEAST_BYTES = 16 * 1024**2
"""Who holds less is not ended: officed, and others whose end would free nothing (files in memory may hold what there is)."""
PAGE_BYTES = 4096
RUN_TIMEOUT_S = 2.0
FAILURE_PAUSE_S = 5.0

logger = logging.getLogger(__name__)


def next_look_s(left_bytes: int) -> float:
    """How long an office with so much memory left cannot have used it up. Pure."""
    return min(max(left_bytes / GROWTH_BYTES_PER_S, LOOK_S_MIN), LOOK_S_MAX)


END_LARGEST = f"""
most=0
for process in /proc/[0-9]*; do
    read -r _ pages _ < $process/statm || continue
    if [ "$pages" -gt "$most" ]; then most=$pages who=${{process#/proc/}}; fi
done 2> /dev/null
[ "$most" -ge {LEAST_BYTES // PAGE_BYTES} ] && kill -9 "$who" && echo $((most * {PAGE_BYTES}))
"""
"""A shell script for root of the office: ends the process that holds most, and prints how many bytes that were. From inside,
since gVisor does not always notice when the host ends what stands for a process (measured: it hung in 2 of 3 trials)."""


class MemoryGuard:
    """`run_inside` runs a script as root of an office that is awake, and returns what it printed. `ended` is told of each process
    that was ended: the sandbox's id and what it held, in bytes."""

    def __init__(
        self,
        sandboxes: SandboxDriver,
        run_inside: Callable[[str, str], Awaitable[str]],
        ended: Callable[[str, int], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sandboxes, self._run_inside, self._ended, self._clock = sandboxes, run_inside, ended, clock
        self._due_s: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await asyncio.sleep(await self.look())
            except Exception:
                logger.exception("looking after the memory of offices failed")
                await asyncio.sleep(FAILURE_PAUSE_S)

    async def look(self) -> float:
        """At every sandbox that is due; how long nobody has to look again."""
        now_s, running = self._clock(), self._sandboxes.limited()
        self._due_s = {name: self._due_s.get(name, 0.0) for name in running}
        due = [name for name, due_s in self._due_s.items() if due_s <= now_s]
        for name, wait_s in zip(due, await asyncio.gather(*map(self._look_at, due)), strict=True):
            self._due_s[name] = now_s + wait_s
        return min((due_s - now_s for due_s in self._due_s.values()), default=LOOK_S_MAX)

    async def _look_at(self, name: str) -> float:
        left_bytes = self._sandboxes.memory_left(name)
        if left_bytes is None:
            return LOOK_S_MAX
        if left_bytes > 0:
            return next_look_s(left_bytes)
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                held = (await self._run_inside(name, END_LARGEST)).strip()
        except (TimeoutError, OSError, TenureError) as error:
            logger.warning("%s has used up its memory, and nothing could be ended in it: %r", name, error)
            return SETTLE_S
        if held.isdigit():
            await self._ended(name, int(held))
        return SETTLE_S
