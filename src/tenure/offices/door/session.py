"""An attached command: what `Door.attach` returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from tenure.errors import (
    DiskFull,
    DoorClosed,
    DoorError,
    InvalidArgument,
    SandboxError,
    TenureError,
)
from tenure.offices.door import frames

STDOUT_CHANNEL = 1
STDERR_CHANNEL = 2
EXIT_CODE_MAX = 255
FRAMES_IN_A_ROW_MAX = 64
"""Then others have their turn: half a megabyte of the smallest frames is waiting in one buffer."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Exit:
    """How a command ended: `code` is 128 + signal after a signal; 127 and 126 as in a shell when it could not start."""

    code: int
    timed_out: bool = False


class DialledReader(asyncio.StreamReader):
    """Knows whether the office spoke before it was asked, and keeps what arrived before a reset: an office that has said
    everything may close while something of ours is still on its way, which the kernel makes a reset of."""

    asked = False
    spoke_unasked = False

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.spoke_unasked |= not self.asked
        super().feed_data(data)

    def set_exception(self, exc: BaseException) -> None:
        self.feed_eof()


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next frame of an office. Raises `DoorClosed` when the connection ended, `DoorError` on nonsense."""
    try:
        kind, size = frames.HEADER.unpack(await reader.readexactly(frames.HEADER.size))
        if size > frames.FRAME_BYTES_MAX:
            raise DoorError(f"The office sent a frame of {size} bytes; {frames.FRAME_BYTES_MAX} are allowed.")
        return kind, await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise DoorClosed("The office's door closed while it was in use.") from error


def error_of(payload: bytes) -> TenureError:
    """The error that an office's `!` frame means."""
    kind, _, text = payload.decode("utf-8", "replace").partition(": ")
    match kind:
        case "user" | "cwd" | "key" | "tty" | "address" | "program":
            return InvalidArgument(f"The office cannot start this: {text}.")
        case "disk":
            return DiskFull(f"The office's disk is full: {text}.")
        case "fork" | "memory" | "setup" | "busy":
            return SandboxError(
                f"The office has no room for another command: {text}.",
                hint="Its process, memory or file limit is reached: end something in it, or `tenure sleep` and `tenure wake` it.",
            )
        case _:
            return DoorError(f"The office answered: {text or kind}.")


class Session:
    """A running command with its streams. Leaving it (`close`) ends the command: SIGHUP, five seconds later SIGKILL.

    Iterate for `(channel, data)` pairs until the command has ended and all of its output was read; then `exit` is set.
    Reading slowly slows the command down: nothing is buffered beyond the sockets.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.exit: Exit | None = None

    async def started(self) -> None:
        """Waits until the command runs. A program that does not exist ends the session with 127 and a line on stderr, as a
        shell would; raises `InvalidArgument`, `DiskFull`, `SandboxError`, `DoorError` when the office could not start it."""
        kind, payload = await read_frame(self._reader)
        if kind == frames.ERROR:
            if not payload.startswith(b"program: "):
                raise error_of(payload)
            self._early = payload.removeprefix(b"program: ") + b"\n"
            self.exit = Exit(126 if b"Permission denied" in payload else 127)
        elif kind != frames.STARTED:
            raise DoorError("The office's door spoke out of turn.")

    _early: bytes = b""

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        if self._early:
            yield STDERR_CHANNEL, self._early
        frames_read = 0
        while self.exit is None:
            kind, payload = await read_frame(self._reader)
            frames_read += 1
            if frames_read % FRAMES_IN_A_ROW_MAX == 0:
                await asyncio.sleep(0)
            if kind == frames.STDOUT:
                if payload:  # an empty one asks only whether we are here
                    yield STDOUT_CHANNEL, payload
            elif kind == frames.STDERR:
                yield STDERR_CHANNEL, payload
            elif kind == frames.EXIT:
                self.exit = _parse_exit(payload)
            elif kind == frames.ERROR:
                raise error_of(payload)
            else:
                raise DoorError("The office's door spoke out of turn.")

    async def _send(self, kind: bytes, payload: bytes = b"") -> None:
        if self.exit is not None:
            return
        try:
            self._writer.write(frames.frame(kind, payload))
            await self._writer.drain()
        except ConnectionError:
            return  # the command ended meanwhile; the reading side says how

    async def send_stdin(self, data: bytes) -> None:
        """Writes to the command's standard input; waits while it does not read."""
        for at in range(0, len(data), frames.STDIN_CHUNK_BYTES):
            await self._send(frames.STDIN, data[at : at + frames.STDIN_CHUNK_BYTES])

    async def send_eof(self) -> None:
        """Ends standard input (on a terminal: types Ctrl-D)."""
        await self._send(frames.STDIN_END)

    async def resize(self, rows: int, cols: int) -> None:
        """Tells a terminal's new size; ignored without one."""
        await self._send(frames.RESIZE, f"{rows} {cols}".encode())

    async def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        await self._send(frames.SIGNAL, str(number).encode())

    async def wait(self) -> int:
        """Reads and drops what is left of the output; the exit code."""
        async for _ in self:
            pass
        assert self.exit is not None
        return self.exit.code

    async def close(self) -> None:
        """Leaves; ends the command if it still runs. What it has not read of its input is dropped: a plain close would first
        send that, and a command that reads nothing would never learn that it is to end."""
        self._writer.transport.abort()


def _parse_exit(payload: bytes) -> Exit:
    try:
        code, timed_out = payload.split()
        if not 0 <= int(code) <= EXIT_CODE_MAX:
            raise ValueError("no exit code")
        return Exit(int(code), timed_out == b"1")
    except ValueError as error:
        raise DoorError("The office's door sent a malformed exit.") from error
