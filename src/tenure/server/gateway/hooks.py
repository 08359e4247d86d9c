"""`POST /hooks/ADDRESS` on the server's web listener: the one place where strangers may send something.

They need no token and no Host of ours, since the address is the secret, and what they send is bounded: by its size, by its time,
and per hook by number and rate. Nothing else of the API is behind this, and nobody learns which addresses there are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from tenure.data.webhooks.hooks import Webhooks
from tenure.data.webhooks.receiver import Outcome
from tenure.data.webhooks.signatures import parsed
from tenure.data.webhooks.store import Hook
from tenure.errors import NotFound, ServerUnreachable

log = logging.getLogger("tenure.webhooks")

PREFIX = "/hooks/"
BODY_BYTES_MAX = 1024 * 1024
HEADER_BYTES_MAX = 16 * 1024
HEADERS_MAX = 100
BODY_WAIT_S = 15.0
"""All of a body has come by then."""
IN_FLIGHT_MAX = 64
HOOK_IN_FLIGHT_MAX = 16
RATE_PER_S, BURST = 50.0, 200
"""Per hook."""
STRANGERS_PER_S, STRANGERS_BURST = 20.0, 100
"""Requests for addresses that there are not, all together."""
RETRY_AFTER_S = 10
_ADDRESS = re.compile(r"/hooks/([0-9a-f]{40})\Z")


class Bucket:
    """So many a second, and `burst` at once after a rest. Pure but for what it remembers."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = float(burst), 0.0

    def take(self, now_s: float) -> bool:
        """Whether there is room for one more now."""
        self._left = min(self._burst, self._left + (now_s - self._at) * self._per_s) if self._at else float(self._burst)
        self._at = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class TooSlow(Exception):
    pass


class TooLong(Exception):
    pass


class Gone(Exception):
    """Who sent it hung up."""


def with_hooks(app: ASGIApp, webhooks: Webhooks) -> ASGIApp:
    """Hooks at their addresses, `app` at all others."""
    return HookGate(app, webhooks)


class HookGate:
    """Holds how many deliveries are in flight, and how many came."""

    def __init__(self, app: ASGIApp, webhooks: Webhooks) -> None:
        self._app, self._webhooks = app, webhooks
        self._in_flight: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}
        self._strangers = Bucket(STRANGERS_PER_S, STRANGERS_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            status, said, extra = await self._serve(scope, receive)
        except Gone:
            return
        except Exception:
            log.exception("a delivery could not be received")
            status, said, extra = 503, {"error": "it could not be kept"}, _again(RETRY_AFTER_S)
        await _answer(send, status, said, extra)

    async def _serve(self, scope: Scope, receive: Receive) -> tuple[int, object, list[tuple[bytes, bytes]]]:
        found = _ADDRESS.match(scope["path"])
        try:
            hook = await self._webhooks.at(found[1]) if found else None
        except ServerUnreachable:
            return 503, {"error": "the server cannot look it up now"}, _again(RETRY_AFTER_S)
        now_s = time.monotonic()
        if hook is None:
            if not self._strangers.take(now_s):
                return 429, {"error": "too many requests"}, _again(RETRY_AFTER_S)
            return 404, {"error": "not found"}, []
        if scope["method"] != "POST":
            return 405, {"error": "POST only"}, [(b"allow", b"POST")]
        if not self._buckets.setdefault(hook.id, Bucket(RATE_PER_S, BURST)).take(now_s):
            return 429, {"error": "too many requests"}, _again(1)
        if self._in_flight[hook.id] >= HOOK_IN_FLIGHT_MAX or self._in_flight.total() >= IN_FLIGHT_MAX:
            return 503, {"error": "too many requests at once"}, _again(1)
        self._in_flight[hook.id] += 1
        try:
            return await self._take(hook, scope, receive)
        finally:
            self._in_flight[hook.id] -= 1
            if not self._in_flight[hook.id]:
                del self._in_flight[hook.id]

    async def _take(self, hook: Hook, scope: Scope, receive: Receive) -> tuple[int, object, list[tuple[bytes, bytes]]]:
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        if len(raw) > HEADERS_MAX or sum(len(name) + len(value) for name, value in raw) > HEADER_BYTES_MAX:
            return 431, {"error": "too many headers"}, []
        headers: dict[str, str] = {}
        for name, value in raw:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        try:
            body = await read_body(headers.get("content-length", ""), receive)
        except TooLong:
            return 413, {"error": f"a delivery has {BODY_BYTES_MAX} bytes at most"}, [(b"connection", b"close")]
        except TooSlow:
            return 408, {"error": "the body did not come in time"}, [(b"connection", b"close")]
        try:
            outcome = await self._webhooks.receive(hook, headers, body)
        except NotFound:
            log.error("the secret of the webhook %s of %s is gone: rotate it", hook.name, hook.agent)
            return 503, {"error": "it could not be checked"}, _again(RETRY_AFTER_S)
        match outcome:
            case Outcome.STORED | Outcome.REPEATED:
                return 200, _challenge(hook, body) or {"stored": True}, []
            case Outcome.SPOOLED:
                return 202, _challenge(hook, body) or {"stored": True}, []
            case Outcome.REFUSED:
                return 401, {"error": "the signature does not hold"}, []
            case Outcome.FULL:
                return 503, {"error": "it could not be kept"}, _again(RETRY_AFTER_S)


async def read_body(announced: str, receive: Receive) -> bytes:
    """Raises `TooLong`, `TooSlow`, `Gone`."""
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > BODY_BYTES_MAX:
        raise TooLong
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > BODY_BYTES_MAX:
                    raise TooLong
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise TooSlow from None


def _challenge(hook: Hook, body: bytes) -> object:
    """What Slack wants to hear when it is told of an address."""
    if hook.signature != "slack":
        return None
    found = parsed(body)
    if isinstance(found, dict) and found.get("type") == "url_verification":  # pyright: ignore[reportUnknownMemberType]
        return {"challenge": str(found.get("challenge", ""))}  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return None


def _again(seconds: int) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", str(seconds).encode())]


async def _answer(send: Send, status: int, said: object, extra: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps(said).encode() + b"\n"
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
