"""Messages of the Agent Client Protocol over a program's streams: one JSON object per line, every size bounded."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Any, cast

from tenure.faultpoints import reach
from tenure.work.failures import tail
from tenure.work.hands import OpenProgram

LINE_BYTES_MAX = 16 * 1024 * 1024
"""Of one message: a whole file may be in it."""
STRAY_LINES_MAX = 1000
"""Lines that are no messages, such as a log that went to the wrong stream; with more it speaks another language."""
STRAY_CHARS_MAX = 500
STRAY_KEPT = 5
STDERR_BYTES_MAX = 16 * 1024
REQUESTS_MAX = 32
"""Of the program, that are being answered; more wait in its pipe."""


class NotSpoken(Exception):
    """What comes is not the protocol."""


class Transport:
    """A `Transport` of the library. `receive` returns None when nothing more will come; `exit_code` or `error` then says why."""

    def __init__(self, program: OpenProgram) -> None:
        self._program = program
        self._buffer = bytearray()
        self._sought = 0
        self._strays = 0
        self._stray_lines: deque[str] = deque(maxlen=STRAY_KEPT)
        self._stderr = bytearray()
        self._names: dict[tuple[str, str], str] = {}
        self._open = asyncio.Semaphore(REQUESTS_MAX)
        self._sending = asyncio.Lock()
        self.error: Exception | None = None
        self.heard_s = time.monotonic()
        """When the last message came."""

    @property
    def exit_code(self) -> int | None:
        return self._program.exit_code

    @property
    def evidence(self) -> str:
        """The last of what it printed that was no message."""
        strays = "".join(f"(stdout) {line}\n" for line in self._stray_lines)
        return tail(strays + self._stderr.decode("utf-8", "replace"))

    def done(self) -> None:
        """A message of the program was dealt with."""
        self._open.release()

    # --- the library's side ------------------------------------------------------------------------------------------
    async def send(self, message: dict[str, Any]) -> None:
        name = self._name(message, "ours")
        reach(f"acp.send.before/{name}")
        async with self._sending:
            await self._program.send(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        reach(f"acp.send.after/{name}")

    async def receive(self) -> dict[str, Any] | None:
        try:
            while (line := await self.line()) is not None:
                message = _message(line)
                if message is None:
                    self._stray(line)
                    continue
                self.heard_s = time.monotonic()
                reach(f"acp.received/{self._name(message, 'its')}")
                if "method" in message:
                    await self._open.acquire()
                return message
        except Exception as error:  # noqa: BLE001 - told by the one who waits for an answer
            self.error = error
        return None

    async def close(self) -> None:
        return

    # --- lines -------------------------------------------------------------------------------------------------------
    async def line(self) -> bytes | None:
        """The next line that is not empty, without its end; None when the program has ended. Raises `NotSpoken`, and what
        `OpenProgram.receive` raises."""
        while True:
            end = self._buffer.find(b"\n", self._sought)
            if end >= 0:
                line = bytes(self._buffer[:end]).strip()
                del self._buffer[: end + 1]
                self._sought = 0
                if line:
                    return line
                continue
            self._sought = len(self._buffer)
            if self._sought > LINE_BYTES_MAX:
                self._stray(bytes(self._buffer[:STRAY_CHARS_MAX]))
                raise NotSpoken(f"It sent a line of more than {LINE_BYTES_MAX} bytes.")
            if not await self._read():
                return None

    async def _read(self) -> bool:
        piece = await self._program.receive()
        if piece is None:
            return False
        if piece.stream == "stdout":
            self._buffer += piece.data
        else:
            self._stderr += piece.data
            del self._stderr[:-STDERR_BYTES_MAX]
        return True

    def _stray(self, line: bytes) -> None:
        self._strays += 1
        self._stray_lines.append(line[:STRAY_CHARS_MAX].decode("utf-8", "replace"))
        if self._strays > STRAY_LINES_MAX:
            raise NotSpoken(f"It printed {self._strays} lines that are no messages of the Agent Client Protocol.")

    def _name(self, message: dict[str, Any], whose: str) -> str:
        """What a message is about, for fault points: its method, or that of the request that it answers."""
        other = "its" if whose == "ours" else "ours"
        if "method" in message:
            name = str(message["method"])
            if "id" in message:
                self._names[whose, json.dumps(message["id"])] = name
            return name
        return "answer:" + self._names.pop((other, json.dumps(message.get("id"))), "?")


def _message(line: bytes) -> dict[str, Any] | None:
    """The JSON-RPC message in a line, if it is one."""
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    message = cast("dict[str, Any]", found)
    is_call = isinstance(message.get("method"), str)
    is_answer = "id" in message and ("result" in message or "error" in message)
    if "id" in message and not isinstance(message["id"], (str, int)):
        return None
    if "error" in message and not isinstance(message["error"], dict):
        return None
    return message if is_call or is_answer else None
