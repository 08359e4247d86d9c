"""One client's connection to the egress proxy: what it asks for, and the bytes both ways.

HTTP is read by h11, so that what we understand and what we pass on cannot differ: requests are written anew, never
copied. A CONNECT becomes a tunnel, in which the name that a TLS client asks for has to be allowed too: else one allowed
name at a content network would open every site there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11

from tenure.errors import EgressDenied, InvalidArgument, TenureError
from tenure.secrets.egress import tls
from tenure.secrets.egress.dial import Line
from tenure.secrets.egress.rules import normalise_host, parse_authority

if TYPE_CHECKING:
    from tenure.secrets.egress.proxy import EgressProxy

HEAD_BYTES_MAX = 64 * 1024
HEAD_TIMEOUT_S = 60.0
"""From connecting, or from the end of the request before, to a whole request head."""
IDLE_TIMEOUT_S = 900.0
"""Without a byte in either direction; long enough for a server that thinks."""
HELLO_TIMEOUT_S = 60.0
CLOSE_GRACE_S = 30.0
"""For a client to take what was written to it."""
READ_BYTES = 256 * 1024
TARGET_CHARS_MAX = 16 * 1024

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)


class Exchange:
    """Reads requests from one client until it or we hang up."""

    def __init__(self, proxy: EgressProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self.flow = proxy.use.flow()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._line: Line | None = None
        self.target: tuple[str, int] | None = None
        """Host and port that this client is connected to now."""

    def abort(self) -> None:
        """Breaks both connections at once, after what was already written to the client could leave."""
        if self._line is not None:
            self._line.writer.transport.abort()
        self._writer.close()
        asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self._writer.transport.abort)

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(HEAD_TIMEOUT_S):
                    request = await self._event()
            except h11.RemoteProtocolError as error:
                await self.refuse(error.error_status_hint, f"This is an HTTP proxy; the request is not HTTP: {error}.")
                return
            if not isinstance(request, h11.Request):
                return
            if sum(len(name) + len(value) for name, value in request.headers) > HEAD_BYTES_MAX:
                await self.refuse(431, f"The head of the request is larger than {HEAD_BYTES_MAX} bytes.")
                return
            try:
                if request.method == b"CONNECT":
                    await self._connect(request)
                    return
                await self._forward(request)
            except TenureError as error:
                await self.refuse(_status(error), error.message, error.hint)
                return
            self.target = None
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def refuse(self, status: int, message: str, hint: str = "") -> None:
        """Answers with `message` as plain text and as the reason, the only part that many clients show."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"Tenure: {message}\n{hint}\n".encode()
        reason = message.encode("ascii", "replace").replace(b"\r", b" ").replace(b"\n", b" ")[:200]
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        with contextlib.suppress(OSError, h11.LocalProtocolError):
            self._send(h11.Response(status_code=status, headers=headers, reason=reason))
            self._send(h11.Data(data=body))
            self._send(h11.EndOfMessage())
            await self._writer.drain()

    # --- tunnels ----------------------------------------------------------------------------------------------------
    async def _connect(self, request: h11.Request) -> None:
        if not isinstance(self._http.next_event(), h11.EndOfMessage):
            raise InvalidArgument("A CONNECT request has no body.")
        host, port = parse_authority(_text(request.target))
        rule = self._proxy.decide("CONNECT", host, port)
        self._line = line = await self._proxy.dial("CONNECT", host, port, rule, "https")
        self.target = (host, port)
        self._send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        early, _ = self._http.trailing_data
        first = await self._first_bytes(early, host, port)
        self._count(len(first), outward=True)
        line.writer.write(first)
        await self._pump(line)

    async def _first_bytes(self, data: bytes, host: str, port: int) -> bytes:
        """What the client sends first, once it is clear that it asks for a server it may reach. A client that waits for
        the server to speak first is let through: it is no TLS client."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                while True:
                    try:
                        name = tls.server_name(data)
                    except tls.Incomplete:
                        if len(data) > tls.HELLO_BYTES_MAX:
                            raise EgressDenied(f"The TLS greeting to {host}:{port} is too long.") from None
                        more = await self._first_read(waiting=data != b"")
                        if more is None:
                            return data
                        data += more
                        continue
                    if name is not None and ":" not in host and not host.replace(".", "").isdecimal():
                        self._proxy.decide("TLS", normalise_host(name), port)
                    return data
        except TimeoutError:
            raise EgressDenied(f"The TLS greeting to {host}:{port} did not arrive.") from None

    async def _first_read(self, *, waiting: bool) -> bytes | None:
        """More from the client; None when it said nothing and the server speaks first, or when it hung up."""
        assert self._line is not None
        if waiting:
            return await self._reader.read(READ_BYTES) or None
        client = asyncio.ensure_future(self._reader.read(READ_BYTES))
        server = asyncio.ensure_future(self._line.reader.read(READ_BYTES))
        try:
            await asyncio.wait({client, server}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pending in (client, server):
                if not pending.done():
                    pending.cancel()
                    await asyncio.gather(pending, return_exceptions=True)
        if not server.cancelled():
            spoken = server.result()
            self._count(len(spoken), outward=False)
            self._writer.write(spoken)
            if not spoken:
                raise EOFError
        return (client.result() or None) if not client.cancelled() else None

    async def _pump(self, line: Line) -> None:
        """Both ways until both sides have finished, one breaks, or nothing moves for `IDLE_TIMEOUT_S`."""
        loop = asyncio.get_running_loop()
        moved = loop.time()

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, outward: bool) -> None:
            nonlocal moved
            while data := await source.read(READ_BYTES):
                moved = loop.time()
                self._count(len(data), outward)
                target.write(data)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()

        ways = {
            asyncio.ensure_future(copy(self._reader, line.writer, True)),
            asyncio.ensure_future(copy(line.reader, self._writer, False)),
        }
        try:
            while (left_s := moved + IDLE_TIMEOUT_S - loop.time()) > 0:
                done, going = await asyncio.wait(ways, timeout=left_s, return_when=asyncio.FIRST_EXCEPTION)
                if not going or any(way.exception() for way in done):
                    return
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def _count(self, size: int, outward: bool) -> None:
        if outward:
            self.flow.asked()
            self._proxy.counters.bytes_sent += size
        else:
            self.flow.answered()
            self._proxy.counters.bytes_received += size

    # --- plain HTTP -------------------------------------------------------------------------------------------------
    async def _forward(self, request: h11.Request) -> None:
        self.flow.asked()
        what = _text(request.method)
        host, port, path = _split(request.target)
        rule = self._proxy.decide(what, host, port)
        line = await self._proxy.dial(what, host, port, rule, "http")
        self._line, self.target = line, (host, port)
        upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        authority = _authority(host, port)
        headers = [(b"Host", authority), *end_to_end(request.headers, request=True), (b"Connection", b"close")]
        if line.through is not None:
            path = b"http://" + authority + path
            if line.through.authorization:
                headers.append((b"Proxy-Authorization", line.through.authorization.encode("ascii")))
        try:
            line.writer.write(upstream.send(h11.Request(method=request.method, target=path, headers=headers)) or b"")
            body = asyncio.create_task(self._send_body(upstream, line))
            try:
                await self._receive_answer(upstream, line)
            finally:
                body.cancel()
                await asyncio.gather(body, return_exceptions=True)
        except h11.ProtocolError as error:
            await self.refuse(502, f"{host}:{port} does not speak HTTP as it should: {error}.")
            raise EOFError from error
        finally:
            self.flow.answered()
            line.writer.transport.abort()

    async def _send_body(self, upstream: h11.Connection, line: Line) -> None:
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                self._count(len(event.data), outward=True)
                line.writer.write(upstream.send(event) or b"")
                await line.writer.drain()
            elif isinstance(event, h11.EndOfMessage):
                line.writer.write(upstream.send(h11.EndOfMessage()) or b"")
                return
            else:
                raise EOFError

    async def _receive_answer(self, upstream: h11.Connection, line: Line) -> None:
        while True:
            event = upstream.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    data = await line.reader.read(READ_BYTES)
                if not data and upstream.their_state is h11.SEND_RESPONSE:
                    raise h11.RemoteProtocolError("it hung up without an answer")
                upstream.receive_data(data)
                continue
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 100 and self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Response):
                headers = end_to_end(event.headers, request=False)
                self._send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
            elif isinstance(event, h11.Data):
                self._count(len(event.data), outward=False)
                self._send(h11.Data(data=event.data))
                await self._writer.drain()
            else:  # the end of the message, or of the connection
                if isinstance(event, h11.EndOfMessage):
                    self._send(h11.EndOfMessage())
                    await self._writer.drain()
                return

    # --- the client's side --------------------------------------------------------------------------------------------
    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._reader.read(READ_BYTES))

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)


def _split(target: bytes) -> tuple[str, int, bytes]:
    """Host, port and path of an absolute `http://` target. Raises `InvalidArgument`."""
    text = _text(target)
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.netloc:
        raise InvalidArgument(
            f"{text[:100]!r} is no http:// address.", hint="This is an HTTP proxy: https goes through it by CONNECT."
        )
    host, port = parse_authority(parts.netloc, default_port=80)
    path = text[len("http://") + len(parts.netloc) :].partition("#")[0]
    return host, port, (path if path.startswith("/") else "/" + path).encode("ascii")


def _text(data: bytes) -> str:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidArgument("The request is not ASCII.") from None
    if len(text) > TARGET_CHARS_MAX:
        raise InvalidArgument("The address is too long.")
    return text


def _authority(host: str, port: int) -> bytes:
    name = f"[{host}]" if ":" in host else host
    return (name if port == 80 else f"{name}:{port}").encode("ascii")


def end_to_end(headers: Iterable[tuple[bytes, bytes]], *, request: bool) -> list[tuple[bytes, bytes]]:
    """The headers that are not about one connection only; the body's framing stays ours to write."""
    headers = list(headers)
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
    dropped = _HOP_BY_HOP | named | frozenset([b"host"] if request else [])
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if chunked:
        dropped |= {b"content-length"}  # two lengths are read in two ways: that is how requests are smuggled
    kept = [(name, value) for name, value in headers if name not in dropped]
    if request and chunked:
        kept.append((b"transfer-encoding", b"chunked"))
    return kept


def _status(error: TenureError) -> int:
    return 400 if isinstance(error, InvalidArgument) else error.http_status
