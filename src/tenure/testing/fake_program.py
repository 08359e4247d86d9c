"""A program of `FakeHands` with its streams attached: a process of this machine that ends with the one that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from tenure.errors import DoorClosed
from tenure.work.hands import OpenProgram, Piece

CHUNK_BYTES = 64 * 1024
PIECES_AHEAD_MAX = 16
GRACE_S = 5.0
COMMAND_NOT_FOUND = 127
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""A worker that is killed takes the program with it, as the connection to an office would. (util-linux)"""


async def open_fake_program(argv: tuple[str, ...], env: dict[str, str], cwd: Path) -> FakeProgram:
    process = await asyncio.create_subprocess_exec(
        *DIE_WITH_PARENT, *argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, cwd=cwd, start_new_session=True
    )
    return FakeProgram(process)


class FakeProgram(OpenProgram):
    def __init__(self, process: Process) -> None:
        self._process = process
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue(PIECES_AHEAD_MAX)
        self.breaks_with: Exception = DoorClosed("The office's door closed while it was in use.")
        """What `break_off` makes `receive` raise."""
        self._broken = False
        assert process.stdout is not None
        assert process.stderr is not None
        self._pumps = [
            asyncio.create_task(self._pump(process.stdout, "stdout")),
            asyncio.create_task(self._pump(process.stderr, "stderr")),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    def break_off(self) -> None:
        """As when the door closes: the program is killed, and who reads is told that the connection broke."""
        self._broken = True
        self._kill(signal.SIGKILL)

    async def _pump(self, reader: asyncio.StreamReader, name: str) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._pieces.put(Piece("stderr" if name == "stderr" else "stdout", data))
        await self._pieces.put(None)

    async def receive(self) -> Piece | None:
        while any(not pump.done() for pump in self._pumps) or not self._pieces.empty():
            piece = await self._pieces.get()
            if piece is not None and not self._broken:
                return piece
        if self._broken:
            raise self.breaks_with
        code = await self._process.wait()
        self.exit_code = code if code >= 0 else 128 - code
        return None

    async def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    async def signal(self, number: int) -> None:
        self._kill(number)

    def _kill(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._kill(signal.SIGHUP)
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_S)
        except TimeoutError:
            self._kill(signal.SIGKILL)
            await self._process.wait()
