"""Archives as a client sends them: one body, read by a thread while it comes.

    u32 length, JSON {"key": text or null, "count": n}, then n times: u64 length, the archive

Numbers are big-endian. The archives come in the order in which they are read.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from tenure.errors import ArchiveError, CommandTimeout, InvalidArgument
from tenure.export_keys import Key, parse_key

FRONT_BYTES_MAX = 64 * 1024
SILENCE_S = 120.0
"""A client that sends nothing for so long is given up."""
COUNT_MAX = 1000


class Inflow:
    """`begin`, then each of `archives` to its end, in a thread; `abort` from elsewhere ends its waiting."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks, self._loop = chunks, loop
        self._held: bytes = b""
        self._count = 0
        self._aborted = False
        self._waiting: concurrent.futures.Future[bytes] | None = None

    def begin(self) -> Key | None:
        """The key that came. Raises `InvalidArgument`."""
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > FRONT_BYTES_MAX:
            raise InvalidArgument("The body is not that of an import.")
        try:
            facts: Any = json.loads(self._exactly(length))
            self._count = int(facts["count"])
            key: Any = facts.get("key")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InvalidArgument("The body is not that of an import.") from None
        if not 1 <= self._count <= COUNT_MAX:
            raise InvalidArgument(f"An import takes 1 to {COUNT_MAX} archives.")
        return None if key is None else parse_key(str(key))

    def archives(self) -> Iterator[Callable[[int], bytes]]:
        """Each one's `read`."""
        for _ in range(self._count):
            (left,) = struct.unpack(">Q", self._exactly(8))

            def read(size: int) -> bytes:
                nonlocal left
                piece = self._exactly(min(size, left))
                left -= len(piece)
                return piece

            yield read
            if left:
                raise ArchiveError("Something follows the end of an archive.")

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            if not self._held:
                self._held = self._more()
            part = self._held[:size]
            self._held = self._held[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _more(self) -> bytes:
        while not self._aborted:
            self._waiting = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            try:
                piece = self._waiting.result()
            except concurrent.futures.CancelledError:
                break
            if piece:
                return piece
        raise InvalidArgument("The import was broken off.")

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await anext(self._chunks)
        except StopAsyncIteration:
            raise InvalidArgument("The body ends before the archives in it.") from None
        except TimeoutError:
            raise CommandTimeout(f"Nothing came for {SILENCE_S:g} s.") from None

    def abort(self) -> None:
        self._aborted = True
        if self._waiting is not None:
            self._waiting.cancel()
