"""Previews: what an office serves on one of its ports, in the owner's browser, at `http://PORT--AGENT.localhost:7800/`.

What comes from there is an agent's, so it is taken for hostile. Each preview is an origin of its own; a browser shows a
cookie that is good for this host alone (`passes`), never the API's token. A request from any other page is refused, unless a
person navigates. On a preview's host there is nothing of the API, and on the API's hosts nothing of a preview.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from html import escape
from urllib.parse import parse_qs, quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from tenure.errors import (
    DoorError,
    Forbidden,
    InternalError,
    InvalidArgument,
    NotFound,
    ServerUnreachable,
    TenureError,
    Unauthenticated,
    UsageError,
)
from tenure.identity.authorize import Principal, Resource, authorize, principal_from
from tenure.identity.tokens import Tokens
from tenure.names import NAME_CHARS_MAX, check_name
from tenure.server.failures import shorten
from tenure.server.gateway.exchange import BrokenAnswer, exchange
from tenure.server.gateway.flow import whole
from tenure.server.gateway.headers import Header, our_cookies, value_of
from tenure.server.gateway.pages import answer, answer_error, answer_page
from tenure.server.gateway.passes import COOKIE_NAME, COOKIE_S, Place
from tenure.server.gateway.websocket import carry
from tenure.server.services import Services

log = logging.getLogger("tenure.preview")

OPEN_PATH = "/.tenure/open"
"""Where a ticket is given for the cookie: the one path of a preview that the office never sees."""
IN_FLIGHT_MAX = 128
"""Per agent, WebSockets included: the office's door has 512 sessions for all that it does."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
TARGET_CHARS_MAX = 8192
_HOST = re.compile(rf"([1-9][0-9]{{0,4}})--([a-z0-9-]{{1,{NAME_CHARS_MAX}}})\.localhost(?::([0-9]{{1,5}}))?\Z")
_ANY_HOST = re.compile(r"[^:]*\.localhost(?::[0-9]*)?\Z")


def host_of(place: Place, port: int) -> str:
    """The host name of a preview, as in a URL."""
    return f"{place.port}--{place.agent}.localhost:{port}"


def ticket_url(place: Place, port: int, secret: str, path: str) -> str:
    """Where a browser gets its cookie for `place` and goes on to `path`, which begins with '/'."""
    return f"http://{host_of(place, port)}{OPEN_PATH}?ticket={quote(secret, safe='')}&to={quote(path, safe='')}"


def place_of(host: str, port: int) -> Place:
    """What the preview host `host` shows. Raises `NotFound`, and `Forbidden` for a port that is not ours."""
    found = _HOST.match(host.lower())
    if found is None or int(found[1]) > 65535:
        raise NotFound(
            "This is no preview's address.",
            hint="They look like http://8000--analyst.localhost:7800; see `tenure preview`.",
        )
    if int(found[3] or 80) != port:
        raise Forbidden("The Host header does not name this server.", hint="`tenure preview` prints the whole address.")
    return Place(check_name(found[2]), int(found[1]))


def with_previews(app: ASGIApp, services: Services, tokens: Tokens) -> ASGIApp:
    """What the TCP listener serves: previews on their host names, `app` on all others."""
    return Previews(app, services, tokens)


class Previews:
    """Holds nothing but how many requests of each agent are in flight."""

    def __init__(self, app: ASGIApp, services: Services, tokens: Tokens) -> None:
        self._app, self._services, self._tokens = app, services, tokens
        self._port = services.settings.port
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers: list[Header] = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if not any(_ANY_HOST.match(host) for host in hosts):
            await self._app(scope, receive, send)
            return
        answering = _Answering({**scope, "headers": headers}, send)
        try:
            if scope["type"] == "websocket":
                await receive()  # "websocket.connect"
            await self._serve(answering, receive, hosts)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            await answering.fail(error)

    async def _serve(self, answering: _Answering, receive: Receive, hosts: list[str]) -> None:
        scope, send = answering.scope, answering.send
        if len(hosts) != 1:
            raise InvalidArgument("The request has more than one Host header.")
        place = place_of(hosts[0], self._port)
        if scope["type"] == "http" and scope["path"] == OPEN_PATH:
            await self._open(scope, send, place)
            return
        self._check(scope, place)
        if self._in_flight[place.agent] >= IN_FLIGHT_MAX:
            raise ServerUnreachable(
                f"{IN_FLIGHT_MAX} requests to {place.agent} are in flight already.",
                hint="Wait for some of them to end.",
            )
        self._in_flight[place.agent] += 1
        try:
            reader, writer = await whole(self._dial(place), lambda dialled: dialled[1].close())
            try:
                into = carry if scope["type"] == "websocket" else exchange
                await into(scope, receive, send, (reader, writer), host_of(place, self._port))
            finally:
                writer.close()
        finally:
            self._in_flight[place.agent] -= 1
            if not self._in_flight[place.agent]:
                del self._in_flight[place.agent]

    async def _dial(self, place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await self._services.offices.dial(place.agent, f"127.0.0.1:{place.port}")
        except DoorError as error:
            if type(error) is not DoorError:  # the door itself is closed
                raise
            raise DoorError(
                f"Nothing answers on port {place.port} in the office of {place.agent}.",
                hint=f"Start a server there that listens on 127.0.0.1:{place.port} or on all addresses, and load this again.",
            ) from error

    # --- who may pass ------------------------------------------------------------------------------------------------------
    def _check(self, scope: Scope, place: Place) -> None:
        """Raises `UsageError`, `Forbidden`, `Unauthenticated`."""
        if scope.get("method", "GET") not in METHODS:
            raise UsageError("A preview does not carry this method.")
        if len(scope["raw_path"]) + len(scope["query_string"]) > TARGET_CHARS_MAX:
            raise InvalidArgument("The address is too long.")
        self._refuse_tokens(scope["headers"])
        check_origin(scope, f"http://{host_of(place, self._port)}")
        authorize(
            self._principal(scope, place), "agent:preview", Resource("agent", owner=place.agent, name=place.agent)
        )

    def _refuse_tokens(self, headers: list[Header]) -> None:
        for name, value in headers:
            if name == b"authorization":
                try:
                    self._tokens.principal(value.decode("latin-1"))
                except Unauthenticated:
                    continue  # the office's own business
                raise Forbidden(
                    "The API's token does not belong here: an office would get to see it.",
                    hint="`tenure preview AGENT PORT` prints a link that sets a cookie for this preview alone.",
                )

    def _principal(self, scope: Scope, place: Place) -> Principal:
        found = self._services.gateway.passes.principal(our_cookies(scope["headers"]), place)
        if found is None:
            raise Unauthenticated(
                f"This shows port {place.port} of the office of {place.agent} to its owner only.",
                hint=f"`tenure preview {place.agent} {place.port}` prints a link that lets you in. If it did already, and you "
                "came here from another page: load this page again.",
            )
        return principal_from(found)

    # --- getting in --------------------------------------------------------------------------------------------------------
    async def _open(self, scope: Scope, send: Send, place: Place) -> None:
        """Gives the cookie for a ticket and goes on to the page that was asked for."""
        headers = scope["headers"]
        if scope["method"] != "GET":
            raise UsageError("This address takes GET only.")
        if "prefetch" in (value_of(headers, b"sec-purpose") or ""):
            raise Unauthenticated("A ticket is good once, so it is not fetched ahead.")
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        passes = self._services.gateway.passes
        cookie = passes.redeem(asked.get("ticket", [""])[0], place)
        if cookie is None and passes.principal(our_cookies(headers), place) is None:
            raise Unauthenticated(
                "This link was used already, or is too old.",
                hint=f"`tenure preview {place.agent} {place.port}` prints a fresh one.",
            )
        extra: list[Header] = []
        if cookie is not None:
            attributes = f"Path=/; Max-Age={int(COOKIE_S)}; HttpOnly; SameSite=Strict"
            extra.append((b"set-cookie", f"{COOKIE_NAME}={cookie}; {attributes}".encode()))
        to = asked.get("to", ["/"])[0]
        path = quote(to if to.startswith("/") else "/", safe="/?#[]@!$&'()*+,;=:%-._~")
        location = f"http://{host_of(place, self._port)}{path}"
        # A browser that follows a link from another page keeps a strict cookie back for the whole chain of redirects: it gets
        # a page of ours, from which the way on is within one site.
        if value_of(headers, b"sec-fetch-site") in ("cross-site", "same-site"):
            onward = f'<meta http-equiv="refresh" content="0; url={escape(location)}">'
            await answer_page(scope, send, "One moment", "On to the preview.", onward, extra)
        else:
            await answer(scope, send, 303, "", b"text/plain", [*extra, (b"location", location.encode())])


def check_origin(scope: Scope, own: str) -> None:
    """Raises `Forbidden` when another page is behind the request, unless it only leads there. The cookie is strict already; this
    holds where a browser takes two previews for one site."""
    headers: list[Header] = scope["headers"]
    if any(value.decode("latin-1").lower() != own for name, value in headers if name == b"origin"):
        raise Forbidden("This request comes from a page of another origin.", hint="Previews do not answer other pages.")
    if value_of(headers, b"sec-fetch-site") in (None, "same-origin", "none"):
        return
    navigates = (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and value_of(headers, b"sec-fetch-mode") == "navigate"
        and value_of(headers, b"sec-fetch-dest") == "document"
    )
    if not navigates:
        raise Forbidden("This request comes from a page of another site.", hint="Previews do not answer other pages.")


class _Answering:
    """A request, and how far its answer has come."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self._begun = self._ended = False

    async def send(self, message: Message) -> None:
        self._begun = True
        self._ended |= message["type"] == "websocket.close"
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answers with the error, where it is not too late for that."""
        where = f"{self.scope.get('method', 'WS')} {shorten(value_of(self.scope['headers'], b'host') or '', 80)}"
        if isinstance(error, (ClientDisconnect, WebSocketDisconnect)) or (self._begun and isinstance(error, OSError)):
            return  # nobody is there to be told
        if not isinstance(error, (TenureError, BrokenAnswer)):
            log.error("%s failed", where, exc_info=error)
        if self._begun:
            log.info("%s broke off: %s", where, shorten(str(error)))
            if self.scope["type"] == "websocket" and not self._ended:
                await self._send({"type": "websocket.close", "code": 1011, "reason": "the preview broke off"})
            return  # an answer without its end makes the HTTP layer cut the connection, as it should
        shown = error if isinstance(error, TenureError) else InternalError("Something in the preview broke.")
        log.info("%s -> %d: %s", where, shown.http_status, shorten(shown.message))
        await answer_error(self.scope, self._send, shown, 405 if type(shown) is UsageError else None)
