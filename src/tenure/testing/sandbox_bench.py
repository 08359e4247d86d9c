"""What the clauses of `sandbox_conformance` stand on: a bench to make sandboxes on, and patience."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tenure.errors import TenureError
from tenure.offices.sandboxes.base import SandboxDriver, SandboxLimits, SandboxSpec
from tenure.testing.office_probe import OfficeProbe

EVENT_TIMEOUT_S = 60.0
STILLNESS_S = 0.3
LIMITS = SandboxLimits(cpus=1.0, memory_bytes=512 * 1024**2, processes_max=96)


@dataclass(frozen=True)
class SandboxBench:
    """What a clause needs: `make_driver` gives a driver on the same state each time (as after a restart of the server),
    `make_root` a fresh root directory with `python3`, `unique_name` ids that nobody else uses; `directory` is empty and
    its path short (sockets are made in it); `officed` is the real program, static."""

    make_driver: Callable[[], SandboxDriver]
    make_root: Callable[[str], Awaitable[Path]]
    unique_name: Callable[[str], str]
    directory: Path
    officed: Path

    async def office(
        self, label: str = "a", *, limits: SandboxLimits = LIMITS, forwards: tuple[tuple[str, str], ...] = ()
    ) -> AbstractAsyncContextManager[OfficeProbe]:
        """A sandbox that is not started yet; leaving the context stops it."""
        name = self.unique_name(label)
        spec = SandboxSpec(
            id=name,
            root=await self.make_root(name),
            doorway=self.directory / f"{label}-door",
            officed_dir=self.directory / f"{label}-bin",
            hostname=f"host-{label}",
            limits=limits,
            forwards=forwards,
        )
        return OfficeProbe(self.make_driver(), spec)


ErrorT = TypeVar("ErrorT", bound=TenureError)
Contract = Callable[[SandboxBench], Awaitable[None]]


async def refused(call: Awaitable[object], error: type[ErrorT]) -> ErrorT:
    """The error that `call` raised."""
    try:
        await call
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while not await holds():
        assert time.monotonic() < deadline, f"{holds} did not come to hold in {EVENT_TIMEOUT_S:.0f} s"
        await asyncio.sleep(0.02)
