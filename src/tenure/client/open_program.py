"""A program of an office with its streams, for asyncio: what `HttpHands.open_program` returns."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from tenure.client.attach import (
    CHUNK_BYTES,
    FRAME_BYTES_MAX,
    OPEN_S,
    REQUEST_BYTES_MAX,
    AttachRequest,
    Channel,
    refusal,
)
from tenure.client.endpoint import Endpoint
from tenure.errors import ServerUnreachable, TooLarge, from_payload
from tenure.names import check_name
from tenure.work.hands import OpenProgram, Piece

CLOSE_S = 2.0
FRAMES_AHEAD_MAX = 16
"""Received and not asked for yet; then the server waits, and with it the program."""
_STREAMS = {Channel.STDOUT: "stdout", Channel.STDERR: "stderr"}


async def open_program(endpoint: Endpoint, agent: str, request: AttachRequest) -> HttpProgram:
    """Connects and starts it. Raises `TooLarge`, `InvalidName`, `ServerUnreachable`, or what the server answered."""
    text = request.to_json()
    if len(text) > REQUEST_BYTES_MAX:
        raise TooLarge(
            f"The program's arguments and environment take {len(text)} bytes; at most {REQUEST_BYTES_MAX} are possible.",
            hint="Send long data through its standard input.",
        )
    websocket = await _connected(endpoint, f"/v1/agents/{check_name(agent)}/attach")
    try:
        await websocket.send(text)
    except ConnectionClosed as error:
        raise _broken() from error
    return HttpProgram(websocket)


class HttpProgram(OpenProgram):
    """Over the server's attach WebSocket, whose frames `Channel` describes."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._ws = websocket

    async def receive(self) -> Piece | None:
        while self.exit_code is None:
            try:
                frame = await self._ws.recv()
            except ConnectionClosed as error:
                raise _broken() from error
            if isinstance(frame, str):
                self._end(frame)
            elif len(frame) > 1:  # an empty one asks only whether we are here
                stream = _STREAMS.get(Channel(frame[0]))
                return Piece("stderr" if stream == "stderr" else "stdout", frame[1:])
        return None

    def _end(self, frame: str) -> None:
        message: dict[str, Any] = json.loads(frame)
        if message.get("error"):
            raise from_payload(message)
        if "exit_code" in message:
            self.exit_code = int(message["exit_code"])

    async def send(self, data: bytes) -> None:
        for at in range(0, len(data), CHUNK_BYTES):
            await self._send(Channel.STDIN, data[at : at + CHUNK_BYTES])

    async def signal(self, number: int) -> None:
        await self._send(Channel.SIGNAL, str(number).encode())

    async def _send(self, channel: Channel, data: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # `receive` is where that is told, with its reason
            await self._ws.send(bytes([channel]) + data)

    async def close(self) -> None:
        await self._ws.close()


async def _connected(endpoint: Endpoint, path: str) -> ClientConnection:
    options: dict[str, Any] = {
        "additional_headers": endpoint.headers,
        "compression": None,
        "max_size": FRAME_BYTES_MAX,
        "max_queue": FRAMES_AHEAD_MAX,
        "open_timeout": OPEN_S,
        "ping_interval": None,  # as in `attach`: one that is busy must not be taken for dead
        "close_timeout": CLOSE_S,
    }
    try:
        if endpoint.socket is not None:
            return await unix_connect(str(endpoint.socket), f"ws://tenure{path}", **options)
        address = urlsplit(endpoint.url)
        scheme = "wss" if address.scheme == "https" else "ws"
        return await connect(f"{scheme}://{address.netloc}{address.path}{path}", proxy=None, **options)
    except InvalidStatus as error:
        raise refusal(error, endpoint) from error
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise endpoint.unreachable(error) from error


def _broken() -> ServerUnreachable:
    return ServerUnreachable(
        "The connection to the program broke: the server or the office went away, and the program ends with it.",
        details={"sent": True},
    )
