"""A command that runs nothing: a coroutine with the streams, the exit code and the back-pressure of a real session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from tenure.errors import DoorClosed
from tenure.server.services import STDERR, STDOUT

QUEUE_FRAMES_MAX = 4
"""Both directions hold at most this many frames, as the sockets of a real session hold a bounded number of bytes."""
SPEW_FRAME_BYTES = 64 * 1024
EXIT_NOT_FOUND = 127
EXIT_HANGUP = 129

Program = Callable[["FakeSession", Sequence[str]], Awaitable[int]]


class FakeSession:
    """See `tenure.server.services.Session`. Tests look at `frames_made`, `signals`, `sizes` and `closed`."""

    def __init__(self, program: Program, argv: Sequence[str]) -> None:
        self._out: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(QUEUE_FRAMES_MAX)
        self._in: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_FRAMES_MAX)
        self._task = asyncio.create_task(self._run(program, argv))
        self.frames_made = 0
        self.signals: list[int] = []
        self.signalled = asyncio.Event()
        self.sizes: list[tuple[int, int]] = []
        self.closed = False

    async def _run(self, program: Program, argv: Sequence[str]) -> int:
        try:
            return await program(self, argv)
        finally:
            if not self.closed:
                await self._out.put(None)

    # --- what a program uses ---------------------------------------------------------------------------------------
    async def write(self, data: bytes, channel: int = STDOUT) -> None:
        await self._out.put((channel, data))
        self.frames_made += 1

    async def read(self) -> bytes:
        """The next piece of stdin; empty at its end."""
        return await self._in.get() or b""

    # --- what the server uses ----------------------------------------------------------------------------------------
    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self._out.get()) is not None:
            yield item
        if self.closed:
            raise DoorClosed("The office's door closed while it was in use.")

    async def send_stdin(self, data: bytes) -> None:
        putting = asyncio.ensure_future(self._in.put(data))
        await asyncio.wait([putting, self._task], return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()

    async def send_eof(self) -> None:
        putting = asyncio.ensure_future(self._in.put(None))
        await asyncio.wait([putting, self._task], return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()

    async def resize(self, rows: int, cols: int) -> None:
        self.sizes.append((rows, cols))

    async def signal(self, number: int) -> None:
        self.signals.append(number)
        self.signalled.set()

    async def wait(self) -> int:
        with contextlib.suppress(asyncio.CancelledError):
            return await asyncio.shield(self._task)
        return EXIT_HANGUP

    async def close(self) -> None:
        self.closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while not self._out.empty():
            self._out.get_nowait()
        self._out.put_nowait(None)  # whoever still reads learns of it


# --- programs ------------------------------------------------------------------------------------------------------------
async def _echo(io: FakeSession, argv: Sequence[str]) -> int:
    await io.write(" ".join(argv[1:]).encode() + b"\n")
    return 0


async def _cat(io: FakeSession, argv: Sequence[str]) -> int:
    del argv
    while data := await io.read():
        await io.write(data)
    return 0


async def _spew(io: FakeSession, argv: Sequence[str]) -> int:
    """Writes as many bytes as its argument says, of every value."""
    left = int(argv[1])
    frame = bytes(range(256)) * (SPEW_FRAME_BYTES // 256)
    while left > 0:
        await io.write(frame[:left])
        left -= len(frame)
    return 0


async def _complain(io: FakeSession, argv: Sequence[str]) -> int:
    await io.write(" ".join(argv[1:]).encode() + b"\n", STDERR)
    return 1


async def _exit(io: FakeSession, argv: Sequence[str]) -> int:
    del io
    return int(argv[1])


async def _hang(io: FakeSession, argv: Sequence[str]) -> int:
    """Reads nothing, writes nothing, and waits for a signal."""
    del argv
    await io.signalled.wait()
    return 128 + io.signals[0]


async def not_found(io: FakeSession, argv: Sequence[str]) -> int:
    await io.write(f"{argv[0]}: command not found\n".encode(), STDERR)
    return EXIT_NOT_FOUND


PROGRAMS: dict[str, Program] = {
    "echo": _echo,
    "cat": _cat,
    "spew": _spew,
    "complain": _complain,
    "exit": _exit,
    "hang": _hang,
}


def host_program(root: str) -> Program:
    """Runs a command on the host, in `root`: for the scripts of `office_files` only, which tests give harmless paths."""

    async def program(io: FakeSession, argv: Sequence[str]) -> int:
        child = await asyncio.create_subprocess_exec(
            *argv,
            cwd=root,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None

        async def feed(stdin: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await io.read():
                    stdin.write(data)
                    await stdin.drain()
            stdin.close()

        async def drain(stream: asyncio.StreamReader, channel: int) -> None:
            while data := await stream.read(SPEW_FRAME_BYTES):
                await io.write(data, channel)

        feeding = asyncio.create_task(feed(child.stdin))
        try:
            await asyncio.gather(drain(child.stdout, STDOUT), drain(child.stderr, STDERR))
            return await child.wait()
        finally:
            feeding.cancel()
            if child.returncode is None:
                child.kill()
                await asyncio.gather(child.stdout.read(), child.stderr.read())  # so that its pipes are seen to end
                await child.wait()

    return program
