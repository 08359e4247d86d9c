"""What serves one connection to one office: a listener in its doorway, with what all kinds have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import TenureError, TooLarge
from tenure.secrets.egress.dial import STREAM_BYTES
from tenure.use import Flow, Use

CONNECTIONS_MAX = 32
"""Of one office through one connection, at once."""
LISTEN_BACKLOG = 64
IDLE_TIMEOUT_S = 3600.0
"""Without a byte in either direction; pools keep connections for long."""
READ_BYTES = 256 * 1024
CLOSE_GRACE_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guard:
    """`permit` raises when the office may not use the connection now; `tell` writes a line into its log."""

    permit: Callable[[], Awaitable[None]]
    tell: Callable[[str], None]


@dataclass
class Moved:
    """Bytes as seen from the office."""

    sent: int = 0
    received: int = 0

    def __str__(self) -> str:
        return f"{self.sent} bytes out, {self.received} bytes in"


class ServedConnection(ABC):
    """Listens at a socket of a doorway; a subclass says what is done with a client."""

    def __init__(self, name: str, guard: Guard, use: Use) -> None:
        self.name, self._guard, self._use = name, guard, use
        self.moved = Moved()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, path: Path) -> ServedConnection:
        """Listens at `path`, replacing what a killed server left there; returns at once."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self.handle, str(path), limit=STREAM_BYTES, backlog=LISTEN_BACKLOG
        )
        path.chmod(0o666)  # who can reach the directory is the office
        self._path = path
        return self

    async def close(self) -> None:
        """Listens no more and breaks what is connected. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        for task, writer in list(self._open.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client; as `asyncio.start_server` wants it, so that a test can listen on TCP."""
        task = asyncio.current_task()
        assert task is not None
        flow, began, moved = self._use.flow(), time.monotonic(), Moved()
        try:
            if len(self._open) >= CONNECTIONS_MAX:
                raise TooLarge(f"This office has {CONNECTIONS_MAX} connections to {self.name}, which is the limit.")
            self._open[task] = writer
            await self._guard.permit()
            await self.run(reader, writer, flow, moved)
        except TenureError as error:
            self._guard.tell(f"{self.name}: refused: {error.message}")
            with contextlib.suppress(OSError, RuntimeError):
                self.refuse(writer, error)
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # either side went away, or `close` ends this task, which nobody else awaits
        except Exception:  # one client's trouble must not be another's
            log.exception("the connection %s failed", self.name)
        finally:
            self._open.pop(task, None)
            flow.closed()
            self.moved.sent += moved.sent
            self.moved.received += moved.received
            if moved.sent or moved.received:
                self._guard.tell(f"{self.name}: closed after {time.monotonic() - began:.1f} s; {moved}")
            writer.close()
            asyncio.get_running_loop().call_later(CLOSE_GRACE_S, writer.transport.abort)

    @abstractmethod
    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: Flow, moved: Moved) -> None:
        """One client, to its end. A `TenureError` is told to it by `refuse`."""

    def refuse(self, writer: asyncio.StreamWriter, error: TenureError) -> None:
        """Says why, in the client's own protocol, where that has words for it; else it hangs up."""
        writer.transport.abort()

    def tell(self, text: str) -> None:
        """A line for the office's log."""
        self._guard.tell(f"{self.name}: {''.join(c if c.isprintable() else '?' for c in text)}")


async def pass_on(
    inside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    outside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    flow: Flow,
    moved: Moved,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> None:
    """Bytes both ways until both ends are done, one breaks, or nothing moves for `idle_timeout_s`."""
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, outward: bool) -> None:
        nonlocal last
        while data := await source.read(READ_BYTES):
            last = loop.time()
            if outward:
                flow.asked()
                moved.sent += len(data)
            else:
                flow.answered()
                moved.received += len(data)
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
        else:
            target.close()  # TLS knows no half

    ways = {
        asyncio.ensure_future(copy(inside[0], outside[1], True)),
        asyncio.ensure_future(copy(outside[0], inside[1], False)),
    }
    try:
        while (left_s := last + idle_timeout_s - loop.time()) > 0:
            done, going = await asyncio.wait(ways, timeout=left_s, return_when=asyncio.FIRST_EXCEPTION)
            if not going or any(way.exception() for way in done):
                return
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        outside[1].transport.abort()
