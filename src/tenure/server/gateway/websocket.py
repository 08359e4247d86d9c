"""One WebSocket carried to a port of the office, message by message: both ends speak the protocol on their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from starlette.types import Receive, Scope, Send
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage
from websockets.frames import EXTERNAL_CLOSE_CODES, Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tenure.errors import DoorError
from tenure.offices.door.session import Stream
from tenure.server.gateway.headers import to_client, to_office
from tenure.server.listeners import WS_MESSAGE_BYTES_MAX

CHUNK_BYTES = 64 * 1024
HANDSHAKE_S = 30.0
GOING_AWAY, INVALID_TEXT, BROKEN = 1001, 1007, 1011
_OWN_HEADERS = frozenset({"host", "upgrade", "connection"})
"""Of the handshake: the library writes them."""
_quiet = logging.getLogger("tenure.preview.websocket")
_quiet.setLevel(logging.WARNING)  # the library would log every frame


async def carry(scope: Scope, receive: Receive, send: Send, stream: Stream, host: str) -> None:
    """From the handshake to the end. What the office's server refuses, and how it closes, the client learns; and the other
    way round. Raises `DoorError` when it answers with no HTTP. Closes nothing."""
    one = _Carried(scope, receive, send, stream, host)
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            accepted = await one.shake_hands()
    except TimeoutError:
        raise DoorError(f"The office's server did not answer the WebSocket's handshake in {HANDSHAKE_S:g} s.") from None
    if not accepted:
        return
    both = [asyncio.create_task(one.to_client()), asyncio.create_task(one.to_server())]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


class _Carried:
    def __init__(self, scope: Scope, receive: Receive, send: Send, stream: Stream, host: str) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._reader, self._writer = stream
        self._protocol = ClientProtocol(
            parse_uri(f"ws://{host}/"),
            subprotocols=[Subprotocol(name) for name in scope["subprotocols"]] or None,
            max_size=WS_MESSAGE_BYTES_MAX,
            logger=_quiet,
        )
        self._host = host
        self._kind: Opcode = Opcode.BINARY
        self._pieces: list[bytes] = []
        self._early: list[Any] = []

    # --- beginning ---------------------------------------------------------------------------------------------------------
    async def shake_hands(self) -> bool:
        """Whether both ends have accepted."""
        request = self._protocol.connect()
        request.path = self._scope["raw_path"].decode("ascii")
        if self._scope["query_string"]:
            request.path += "?" + self._scope["query_string"].decode("ascii")
        for name, value in to_office(self._scope["headers"], self._host, websocket=True):
            if (text := name.decode("ascii")) not in _OWN_HEADERS:
                request.headers[text] = value.decode("latin-1")
        self._protocol.send_request(request)
        await self._flush()
        while not (events := self._protocol.events_received()):
            if self._protocol.handshake_exc is not None:
                raise DoorError(
                    "What listens there does not speak WebSocket.", hint="Is it another kind of server, or did it end?"
                ) from self._protocol.handshake_exc
            await self._take_in()
        response, *self._early = events
        assert isinstance(response, Response)
        if isinstance(self._protocol.handshake_exc, InvalidMessage):
            raise DoorError("What listens there does not speak WebSocket.")
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.raw_items()]
        headers = to_client(response.status_code, raw)
        if self._protocol.handshake_exc is not None:
            await self._refuse(response, headers)
            return False
        headers = [(name, value) for name, value in headers if not name.startswith(b"sec-websocket-")]
        accepted = {"type": "websocket.accept", "subprotocol": self._protocol.subprotocol, "headers": headers}
        await self._send(accepted)
        return True

    async def _refuse(self, response: Response, headers: list[tuple[bytes, bytes]]) -> None:
        status = response.status_code if response.status_code >= 300 else 502
        kept = [(name, value) for name, value in headers if name not in (b"content-length", b"content-encoding")]
        body = bytes(response.body)
        kept.append((b"content-length", str(len(body)).encode()))
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": kept})
        await self._send({"type": "websocket.http.response.body", "body": body})

    # --- both ways -----------------------------------------------------------------------------------------------------------
    async def to_client(self) -> None:
        """Ends when the office's server has closed, or broke off."""
        events = self._early
        while True:
            for event in events:
                if isinstance(event, Frame):
                    await self._pass_on(event)
            await self._flush()  # pongs, and the answer to a close
            if self._protocol.close_expected() or self._protocol.parser_exc is not None:
                break
            await self._take_in()
            events = self._protocol.events_received()
        closed = self._protocol.close_rcvd or self._protocol.close_sent
        code = closed.code if closed is not None else BROKEN
        reason = closed.reason if closed is not None else "the office's server went away"
        await self._close(code, reason)

    async def _pass_on(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._kind, self._pieces = frame.opcode, [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._pieces.append(bytes(frame.data))
        else:
            return
        if not frame.fin:
            return
        data, self._pieces = b"".join(self._pieces), []
        if self._kind is Opcode.BINARY:
            await self._send({"type": "websocket.send", "bytes": data})
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self._protocol.fail(INVALID_TEXT, "not UTF-8")
            return
        await self._send({"type": "websocket.send", "text": text})

    async def to_server(self) -> None:
        """Ends when the client has closed."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code")
                self._protocol.send_close(code if _can_be_sent(code) else GOING_AWAY, message.get("reason") or "")
                await self._flush()
                return
            if (text := message.get("text")) is not None:
                self._protocol.send_text(text.encode())
            else:
                self._protocol.send_binary(message["bytes"])
            await self._flush()

    async def _close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code if _can_be_sent(code) else BROKEN, "reason": reason})

    # --- bytes ---------------------------------------------------------------------------------------------------------------
    async def _take_in(self) -> None:
        try:
            data = await self._reader.read(CHUNK_BYTES)
        except ConnectionError:
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
        with contextlib.suppress(ConnectionError):  # reading says how it ended
            await self._writer.drain()


def _can_be_sent(code: int | None) -> bool:
    return code is not None and (code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000)
