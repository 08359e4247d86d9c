"""Lets changes of one directory pass, and holds them while the directory itself is replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from tenure.errors import Conflict


class Gate:
    """Of one event loop. `passage` counts how often the gate was closed: what began before then belongs to what is gone."""

    def __init__(self) -> None:
        self.passage = 0
        self._inside = 0
        self._emptied = asyncio.Event()
        self._opened: asyncio.Event | None = None
        """While it is closed."""

    async def enter(self) -> int:
        """Waits until the gate is open; the number to show when what begins now is to become visible."""
        while self._opened is not None:
            await self._opened.wait()
        return self.passage

    def check(self, passage: int) -> None:
        """Raises `Conflict` when the gate was closed since."""
        if passage != self.passage:
            raise Conflict("The office was restored meanwhile: nothing was stored.", hint="Send it again.")

    @contextlib.asynccontextmanager
    async def passing(self, passage: int | None = None) -> AsyncGenerator[None]:
        """A change, which is over before the gate closes. Raises `Conflict` when it was closed since `passage`."""
        now = await self.enter()
        self.check(now if passage is None else passage)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._emptied.set()

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncGenerator[None]:
        """Nothing changes meanwhile. One at a time."""
        opened = self._opened = asyncio.Event()
        try:
            while self._inside:
                self._emptied.clear()
                await self._emptied.wait()
            self.passage += 1
            yield
        finally:
            self._opened = None
            opened.set()
