"""An HTTP API under a name of the office's: the server adds the credential on the way out and takes its echoes out of the answer.

HTTP is read and written by h11, so that what we understand and what we pass on cannot differ. Where a request goes is fixed: the
client chooses a path below the connection's own and nothing else. Redirects are the client's to follow, by its own means.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

import h11

from tenure.data.connections.dial import Reach
from tenure.data.connections.scrub import Scrubber
from tenure.data.connections.served import READ_BYTES, Guard, Moved, ServedConnection
from tenure.data.connections.targets import Auth, Target
from tenure.errors import EgressUnreachable, InvalidArgument, TenureError, TooLarge
from tenure.secrets.egress.dial import Line
from tenure.secrets.egress.exchange import end_to_end
from tenure.use import Flow, Use

HEAD_BYTES_MAX = 64 * 1024
HEAD_TIMEOUT_S = 60.0
"""From connecting, or from the end of the request before, to a whole request head."""
ANSWER_TIMEOUT_S = 900.0
"""Without a byte of the answer; long enough for an API that thinks."""
TARGET_BYTES_MAX = 16 * 1024
_TARGET = re.compile(rb"/[\x21-\x22\x24-\x5b\x5d-\x7e]*\Z")
"""Printable ASCII, without a fragment and without backslashes, which some servers take for slashes."""
NOT_PASSED_ON = frozenset(
    b"authorization proxy-authorization forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip "
    b"accept-encoding expect content-length transfer-encoding host".split()
)
"""What the server says itself, or nobody does. Without accept-encoding answers come as they are, and can be looked into."""

Header = tuple[bytes, bytes]


def credential_header(target: Target, secret: str) -> Header | None:
    """What carries the credential."""
    match target.auth:
        case Auth.BEARER:
            return b"authorization", f"Bearer {secret}".encode()
        case Auth.BASIC:
            return b"authorization", b"Basic " + base64.b64encode(f"{target.user}:{secret}".encode())
        case Auth.HEADER:
            return target.header.lower().encode(), secret.encode()
        case _:
            return None


def scrubber(target: Target, secret: str) -> Scrubber:
    """Knows the secret in every form in which an API could repeat it."""
    forms = [secret.encode(), quote(secret, safe="").encode(), base64.b64encode(secret.encode())]
    if target.auth is Auth.BASIC:
        forms.append(base64.b64encode(f"{target.user}:{secret}".encode()))
    return Scrubber(forms if secret else [])


def path_of(target: Target, asked: bytes, own_host: str) -> bytes:
    """The path and query to ask for. Raises `InvalidArgument` for what leads, or might lead, anywhere else."""
    for own in (f"http://{own_host}".encode(), f"http://{own_host}:80".encode()):
        if asked.startswith(own + b"/"):
            asked = asked[len(own) :]
    if len(asked) > TARGET_BYTES_MAX or not _TARGET.match(asked):
        raise InvalidArgument(
            "This connection leads to one API: ask for a path of it.", hint=f"For example: http://{own_host}/path"
        )
    path = asked.partition(b"?")[0]
    decoded = unquote_to_bytes(unquote_to_bytes(path)).replace(b"\\", b"/")
    if asked.startswith(b"//") or any(part.partition(b";")[0] in (b".", b"..") for part in decoded.split(b"/")):
        raise InvalidArgument("The path leads upwards, or elsewhere.", hint="Write it without . and .. in it.")
    return target.path.encode() + asked


def request_headers(headers: Iterable[Header], target: Target, credential: Header | None) -> list[Header]:
    """The client's headers as the API gets them. Raises `InvalidArgument` when a body could be read in two ways."""
    headers = list(headers)
    lengths = [value for name, value in headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if chunked and lengths:
        raise InvalidArgument("The request says in two ways how long it is.")
    dropped = NOT_PASSED_ON | frozenset([_plain(credential[0])] if credential else [])
    kept = [(name, value) for name, value in end_to_end(headers, request=True) if _plain(name) not in dropped]
    framing = [(b"transfer-encoding", b"chunked")] if chunked else [(b"content-length", one) for one in lengths[:1]]
    return [
        (b"host", _host(target)),
        *kept,
        *framing,
        *([credential] if credential else []),
        (b"accept-encoding", b"identity"),
        (b"connection", b"close"),
    ]


def answer_headers(headers: Iterable[Header], target: Target, own_host: str, scrub: Scrubber) -> list[Header]:
    """The API's headers as the client gets them: an address of its own is told as the office knows it."""
    kept: list[Header] = []
    for name, value in end_to_end(headers, request=False):
        if name == b"location":
            value = _location(value, target, own_host)
        kept.append((scrub.scrub(name), scrub.scrub(value)))
    return kept


def _location(value: bytes, target: Target, own_host: str) -> bytes:
    base = target.path.encode()
    scheme = b"https" if target.tls.is_verified else b"http"
    for host in {_host(target), target.authority.encode()}:
        origin = scheme + b"://" + host
        if value.startswith(origin + base + b"/"):
            return b"http://" + own_host.encode() + value[len(origin + base) :]
    if base and value.startswith(base + b"/"):
        return value[len(base) :]
    return value


def _host(target: Target) -> bytes:
    name = f"[{target.host}]" if ":" in target.host else target.host
    return (name if target.port == (443 if target.tls.is_verified else 80) else target.authority).encode()


def _plain(name: bytes) -> bytes:
    """Many servers take an underscore for a dash: a header is the same with either."""
    return name.lower().replace(b"_", b"-")


class ServedHttp(ServedConnection):
    """`host` is the office's name for it."""

    def __init__(self, name: str, host: str, reach: Reach, secret: str, guard: Guard, use: Use) -> None:
        super().__init__(name, guard, use)
        self.host, self.reach, self._secret, self._dialer = host, reach, secret, reach.dialer()
        self.credential = credential_header(reach.target, secret)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: Flow, moved: Moved) -> None:
        await _Conversation(self, reader, writer, flow, moved).run()

    async def connect(self) -> Line:
        return await self.reach.protect(await self.reach.line(self._dialer))

    def scrubber(self) -> Scrubber:
        return scrubber(self.reach.target, self._secret)

    def refuse(self, writer: asyncio.StreamWriter, error: TenureError) -> None:
        writer.write(_refusal(h11.Connection(h11.SERVER), error))

    async def permit(self) -> None:
        await self._guard.permit()


class _Conversation:
    """Requests of one client, one after the other."""

    def __init__(
        self,
        served: ServedHttp,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flow: Flow,
        moved: Moved,
    ) -> None:
        self._served, self._reader, self._writer, self._flow, self._moved = served, reader, writer, flow, moved
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(HEAD_TIMEOUT_S):
                    request = await self._event()
                if not isinstance(request, h11.Request):
                    return
                await self._served.permit()
                await self._forward(request)
            except h11.RemoteProtocolError as error:
                await self._refuse(InvalidArgument(f"The request is not HTTP as it should be: {error}."))
                return
            except TenureError as error:
                self._served.tell(f"refused: {error.message}")
                await self._refuse(error)
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _forward(self, request: h11.Request) -> None:
        served, target = self._served, self._served.reach.target
        if request.method == b"CONNECT":
            raise InvalidArgument("This is an API and no proxy.", hint=f"Ask for http://{served.host}/path")
        if sum(len(name) + len(value) for name, value in request.headers) > HEAD_BYTES_MAX:
            raise TooLarge(f"The head of the request is larger than {HEAD_BYTES_MAX} bytes.")
        path = path_of(target, request.target, served.host)
        headers = request_headers(request.headers, target, served.credential)
        self._flow.asked()
        line = await served.connect()
        upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        what = f"{request.method.decode('ascii')} {path.partition(b'?')[0].decode('ascii')[:200]}"
        try:
            line.writer.write(upstream.send(h11.Request(method=request.method, target=path, headers=headers)) or b"")
            if self._http.they_are_waiting_for_100_continue:
                self._send(h11.InformationalResponse(status_code=100, headers=[]))
            body = asyncio.create_task(self._send_body(upstream, line))
            try:
                status = await self._receive_answer(upstream, line)
            finally:
                body.cancel()
                await asyncio.gather(body, return_exceptions=True)
            served.tell(f"{what}: {status}")
        except h11.ProtocolError as error:
            raise EgressUnreachable(f"{target.authority} does not speak HTTP as it should: {error}.") from error
        except (OSError, TimeoutError):
            raise EgressUnreachable(f"{target.authority} hung up, or did not answer.") from None
        finally:
            self._flow.answered()
            line.writer.transport.abort()

    async def _send_body(self, upstream: h11.Connection, line: Line) -> None:
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                self._moved.sent += len(event.data)
                self._flow.asked()
                line.writer.write(upstream.send(h11.Data(data=event.data)) or b"")
                await line.writer.drain()
            elif isinstance(event, h11.EndOfMessage):  # its trailers stay here
                line.writer.write(upstream.send(h11.EndOfMessage()) or b"")
                return
            else:
                raise EOFError

    async def _receive_answer(self, upstream: h11.Connection, line: Line) -> int:
        target, scrub, status = self._served.reach.target, self._served.scrubber(), 0
        while True:
            event = upstream.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    data = await line.reader.read(READ_BYTES)
                if not data and upstream.their_state is h11.SEND_RESPONSE:
                    raise h11.RemoteProtocolError("it hung up without an answer")
                upstream.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                continue
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = answer_headers(event.headers, target, self._served.host, scrub)
                self._send(h11.Response(status_code=status, headers=headers, reason=scrub.scrub(event.reason)))
            elif isinstance(event, h11.Data):
                self._moved.received += len(event.data)
                self._flow.answered()
                await self._send_data(scrub.feed(bytes(event.data)))
            else:  # the end of the message, or of the connection
                await self._send_data(scrub.rest())
                if isinstance(event, h11.EndOfMessage):
                    self._send(h11.EndOfMessage())
                    await self._writer.drain()
                return status

    async def _send_data(self, data: bytes) -> None:
        if data:
            self._send(h11.Data(data=data))
            await self._writer.drain()

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._reader.read(READ_BYTES))

    def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")

    async def _refuse(self, error: TenureError) -> None:
        """One whose answer has begun is cut off: it must not be taken for whole."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._writer.transport.abort()
            return
        self._writer.write(_refusal(self._http, error))
        await self._writer.drain()


def _refusal(http: h11.Connection, error: TenureError) -> bytes:
    body = f"Tenure: {error.message}\n{error.hint}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    status = 400 if isinstance(error, InvalidArgument) else error.http_status
    data = http.send(h11.Response(status_code=status, headers=headers)) or b""
    return data + (http.send(h11.Data(data=body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
