"""The gates that a request passes before any route sees it: host name, identity, number, size. All pure ASGI."""

from __future__ import annotations

import re
from collections import Counter

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenure.errors import Forbidden, ServerUnreachable, Unauthenticated
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.tokens import Tokens
from tenure.server.scopes import DOOR_KEY, PRINCIPAL_KEY, principal_of

PUBLIC_PATHS = frozenset({"/v1/health", "/openapi.json"})
"""Answer without a token: whether the server lives, and the description of the API. Nothing of the owner's."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
BODY_BYTES_MAX = 1024 * 1024
EXEC_BODY_BYTES_MAX = 24 * 1024 * 1024
"""`exec` carries stdin of up to `wire.STDIN_BYTES_MAX`, in base64."""
REQUESTS_MAX = 1024
OFFICE_REQUESTS_MAX = 64
"""In flight at once per principal: a busy office slows only itself."""


class HostGate:
    """On TCP the Host header must name this machine: else a web page whose name was made to point at 127.0.0.1 (DNS
    rebinding) would speak to us as if it were of the same origin."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.allowed = frozenset(f"{name}:{port}" for name in LOCAL_NAMES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        is_tcp = server is not None and server[1] is not None  # a UNIX socket has a path and no port
        if scope["type"] in ("http", "websocket") and is_tcp:
            headers = Headers(scope=scope)
            if headers.get("host", "").lower() not in self.allowed:
                raise Forbidden(
                    "The Host header does not name this server.",
                    hint="Use http://127.0.0.1:PORT (the port of `tenure status`) or the UNIX socket.",
                )
        await self.app(scope, receive, send)


class IdentityGate:
    """Finds the principal: of the door when the request came through one, else of the token."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope[PRINCIPAL_KEY] = self._find(scope)
        await self.app(scope, receive, send)

    def _find(self, scope: Scope) -> Principal | None:
        door = scope.get(DOOR_KEY)
        if isinstance(door, Principal):
            return door
        authorization = Headers(scope=scope).get("authorization")
        if authorization is not None:
            return self.tokens.principal(authorization)
        if scope["path"] in PUBLIC_PATHS:
            return None
        raise Unauthenticated("This needs a token: `Authorization: Bearer TOKEN`.")


class CrowdGate:
    """Bounds the requests in flight per principal."""

    def __init__(self, app: ASGIApp, requests_max: int = REQUESTS_MAX, office_max: int = OFFICE_REQUESTS_MAX) -> None:
        self.app, self.requests_max, self.office_max = app, requests_max, office_max
        self.in_flight: Counter[Principal | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        who = principal_of(scope)
        limit = self.office_max if _is_office(who) else self.requests_max
        if self.in_flight[who] >= limit:
            raise ServerUnreachable(
                f"{limit} requests of {who or 'nobody'} are in flight already.",
                hint="Wait for some of them to end and try again.",
            )
        self.in_flight[who] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight[who] -= 1
            if not self.in_flight[who]:
                del self.in_flight[who]


_STREAMED = re.compile(r"/v1/agents/[^/]+/(?:archive|objects/[^/]+/.+)\Z", re.DOTALL)
_LOADED = re.compile(r"/v1/(?:agents|databases)/[^/]+/loads\Z")


def _is_office(who: Principal | None) -> bool:
    return who is not None and who.kind is PrincipalKind.OFFICE


def body_bytes_max(method: str, path: str, *, office: bool = False) -> int | None:
    """How large a body may be; None for those that are streamed and never held. FastAPI reads a body before it asks whether
    the caller may send it, so an office gets no more than what it may do needs."""
    if method == "PUT" and _STREAMED.match(path):
        return None
    if method == "POST" and ((path == "/v1/imports" and not office) or _LOADED.match(path)):
        return None
    if method == "POST" and path.endswith("/exec") and not office:
        return EXEC_BODY_BYTES_MAX
    return BODY_BYTES_MAX


class SizeGate:
    """Bounds the body, whether its length was announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = None
        if scope["type"] == "http":
            limit = body_bytes_max(scope["method"], scope["path"], office=_is_office(principal_of(scope)))
        if limit is None:
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
            raise _too_large(limit)
        seen_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal seen_bytes
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, receive_bounded, send)


def _too_large(limit: int) -> HTTPException:
    # Not our TooLarge: FastAPI turns every other exception that is raised while it reads a body into a 400.
    return HTTPException(413, f"The body is larger than {limit} bytes.")
