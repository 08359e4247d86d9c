"""Back-pressure between a channel of SSH and the door: whoever reads slowly slows the writer at the other end, and nothing
grows here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

WAITING_BYTES_MAX = 256 * 1024
ITEM_BYTES = 64
"""What an item counts that is no data (the end of input, a size, a signal), so that their number is bounded, too."""

_unfinished: set[asyncio.Task[Any]] = set()


class Readable(Protocol):
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Inflow(Generic[T]):
    """What a client sent, in order, until the office takes it. When too much waits, the channel is read no further, so that
    the client's window stays shut."""

    def __init__(self, channel: Readable) -> None:
        self._channel = channel
        self._items: deque[tuple[T, int]] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._paused = False

    def put(self, item: T, size: int = 0) -> None:
        """Never waits. `size` is that of the data in `item`, in bytes."""
        self._items.append((item, size + ITEM_BYTES))
        self._waiting_bytes += size + ITEM_BYTES
        self._arrived.set()
        if self._waiting_bytes > WAITING_BYTES_MAX and not self._paused:
            self._paused = True
            self._channel.pause_reading()

    async def get(self) -> T:
        """The next one; waits for it."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        item, size = self._items.popleft()
        self._waiting_bytes -= size
        if self._paused and self._waiting_bytes <= WAITING_BYTES_MAX // 2:
            self._paused = False
            self._channel.resume_reading()
        return item


class Room:
    """Whether there is room to write: in a channel's window, in a connection's buffer."""

    def __init__(self) -> None:
        self._there = asyncio.Event()
        self._there.set()

    def pause_writing(self) -> None:
        self._there.clear()

    def resume_writing(self) -> None:
        self._there.set()

    async def wait(self) -> None:
        await self._there.wait()


async def whole(work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[object] | None]) -> T:
    """The result of `work`, which is carried to its end even when the caller is cancelled meanwhile: an office that is half
    awake is nobody's. Nobody wants the result then, so it is given to `undo`."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            to_the_end(_undone(task, undo))
        raise


def to_the_end(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begins `work`, which goes on whoever is cancelled: nobody has to hold the task."""
    task = asyncio.ensure_future(work)
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    return task


async def _undone(task: asyncio.Task[T], undo: Callable[[T], Awaitable[object] | None]) -> None:
    try:
        result = await task
    except Exception:  # noqa: BLE001 - there is nobody left to be told
        return
    if (undoing := undo(result)) is not None:
        await undoing
