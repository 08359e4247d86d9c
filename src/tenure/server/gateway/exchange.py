"""One HTTP request carried to a port of the office: both bodies as streams, both ways at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import h11
from starlette.types import Receive, Scope, Send

from tenure.errors import DoorError
from tenure.offices.door.session import Stream
from tenure.server.gateway.headers import framing, to_client, to_office

CHUNK_BYTES = 64 * 1024
HEAD_BYTES_MAX = 64 * 1024
"""Of an answer."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def exchange(scope: Scope, receive: Receive, send: Send, stream: Stream, host: str) -> None:
    """Raises `DoorError` when the office's server answers with no HTTP before anything was sent to the client, and
    `BrokenAnswer` after that. Returns when the client left. Closes nothing."""
    one = _Exchange(scope, receive, send, stream, host)
    asking = asyncio.create_task(one.ask())
    answering = asyncio.create_task(one.answer())
    try:
        await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and isinstance(asking.exception(), ClientLeft):
            return
        await answering
    finally:
        asking.cancel()
        answering.cancel()
        await asyncio.gather(asking, answering, return_exceptions=True)


class BrokenAnswer(Exception):
    """The office's server broke off in the middle of its answer."""


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, stream: Stream, host: str) -> None:
        self._scope, self._receive, self._send, self._host = scope, receive, send, host
        self._reader, self._writer = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)

    # --- the request -------------------------------------------------------------------------------------------------------
    async def ask(self) -> None:
        """Sends the request, then watches the client. Raises `ClientLeft`; nothing else ends it."""
        with contextlib.suppress(ConnectionError):  # it may answer before it has read everything, and close
            await self._send_request()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientLeft

    async def _send_request(self) -> None:
        headers = self._scope["headers"]
        target = self._scope["raw_path"]
        if self._scope["query_string"]:
            target += b"?" + self._scope["query_string"]
        sent = [*to_office(headers, self._host), *framing(headers), (b"connection", b"close")]
        await self._write(h11.Request(method=self._scope["method"], target=target, headers=sent))
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            if data := message.get("body"):
                await self._write(h11.Data(data=data))
            if not message.get("more_body"):
                break
        await self._write(h11.EndOfMessage())

    async def _write(self, event: Any) -> None:
        if data := cast(bytes | None, self._http.send(event)):
            self._writer.write(data)
            await self._writer.drain()

    # --- the answer --------------------------------------------------------------------------------------------------------
    async def answer(self) -> None:
        started = False
        try:
            while True:
                event = await self._next_event()
                if isinstance(event, h11.Response):
                    headers = to_client(event.status_code, list(event.headers))
                    started = True
                    await self._send({"type": "http.response.start", "status": event.status_code, "headers": headers})
                elif isinstance(event, h11.Data):
                    await self._send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                elif isinstance(event, h11.EndOfMessage):
                    await self._send({"type": "http.response.body", "body": b""})
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    raise h11.RemoteProtocolError("it closed the connection without an answer")
        except (h11.RemoteProtocolError, ConnectionError) as error:
            if started:
                raise BrokenAnswer(str(error)) from error
            raise DoorError(
                f"What listens there does not answer as HTTP does: {error}.",
                hint="Is it another kind of server, or one that wants https? It may have ended, too.",
            ) from error

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(CHUNK_BYTES))
        return event
