"""Every failure leaves the server as the payload of a `TenureError`, over HTTP and WebSocket, with a request id."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from tenure.errors import (
    Forbidden,
    InternalError,
    InvalidArgument,
    NotFound,
    TenureError,
    TooLarge,
    Unauthenticated,
    UsageError,
)
from tenure.server.scopes import principal_of

log = logging.getLogger("tenure.api")

REQUEST_ID_KEY = "tenure.request_id"
FIELDS_SHOWN_MAX = 10
SHOWN_CHARS_MAX = 200
LONG_DATA_HINT = "Put long data into a file of the office (`tenure cp`) or into its object storage."
WS_NORMAL_CLOSE = 1000


def shorten(text: str, chars_max: int = SHOWN_CHARS_MAX) -> str:
    """`text` as it may appear in a message: one line, not longer than `chars_max`."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return line if len(line) <= chars_max else line[: chars_max - 3] + "..."


def from_validation(errors: Sequence[Any]) -> TenureError:
    """The `InvalidArgument` that names each wrong field; what was sent is not repeated (it may be a secret)."""
    fields = [_field(error) for error in errors[:FIELDS_SHOWN_MAX]]
    first = fields[0] if fields else {"field": "body", "problem": "is not valid"}
    message = f"{first['field']}: {first['problem']}"
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more)"
    return InvalidArgument(
        message, hint="`GET /openapi.json` describes what each request takes.", details={"fields": fields}
    )


def _field(error: Any) -> dict[str, str]:
    where = [str(part) for part in error.get("loc", ())]
    if len(where) > 1 and where[0] in ("body", "query", "path", "header"):
        where = where[1:]
    if error.get("type") == "json_invalid":
        return {"field": "body", "problem": "is not valid JSON"}
    problem = str(error.get("msg", "is not valid")).removeprefix("Value error, ")
    return {"field": shorten(".".join(where) or "body"), "problem": shorten(problem)}


def to_tenure_error(exc: Exception, request_id: str) -> TenureError:
    """What the caller is told of `exc`. Nothing of an unforeseen one but the id under which the log has it."""
    match exc:
        case TenureError():
            return exc
        case RequestValidationError() | WebSocketRequestValidationError():
            return from_validation(exc.errors())
        case HTTPException(status_code=404):
            return NotFound("There is nothing at this address.", hint="`GET /openapi.json` lists what there is.")
        case HTTPException(status_code=405):
            return UsageError("This address does not take that method.", hint="See `GET /openapi.json`.")
        case HTTPException(status_code=413):
            return TooLarge(shorten(str(exc.detail)), hint=LONG_DATA_HINT)
        case HTTPException(status_code=401):
            return Unauthenticated(shorten(str(exc.detail)))
        case HTTPException(status_code=403):
            return Forbidden(shorten(str(exc.detail)))
        case HTTPException() if exc.status_code < 500:
            return InvalidArgument(shorten(str(exc.detail)))
        case _:
            return InternalError("Something in the server broke.", details={"request_id": request_id})


def http_status(exc: Exception, error: TenureError) -> int:
    """405 has no error class of its own; all else has its status from the class."""
    return 405 if isinstance(exc, HTTPException) and exc.status_code == 405 else error.http_status


def payload_bytes(error: TenureError) -> bytes:
    """JSON text; details that are not JSON become text."""
    return json.dumps(error.to_payload(), default=str).encode("utf-8", "replace")


class Failures:
    """Outermost of our ASGI layers: gives each request an id, logs it, and turns exceptions into answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self.app(scope, receive, answer.send)
        except (ClientDisconnect, WebSocketDisconnect):
            answer.status = 499  # nobody is there to be told
        except Exception as exc:  # noqa: BLE001 - the last line of defence
            await answer.fail(exc)
        finally:
            answer.log_it()


class _Answer:
    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.request_id = f"req_{secrets.token_hex(8)}"
        self.started_s = time.monotonic()
        self.status = 0
        self.ended = False
        scope[REQUEST_ID_KEY] = self.request_id

    @property
    def is_websocket(self) -> bool:
        return self.scope["type"] == "websocket"

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = int(message["status"])
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        elif kind == "websocket.accept":
            self.status = 101
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        elif kind == "websocket.close":
            if self.status == 0:  # only the router refuses by closing: for an address that it does not know
                raise HTTPException(404)
            self.ended = True
        await self._send(message)

    async def fail(self, exc: Exception) -> None:
        error = to_tenure_error(exc, self.request_id)
        if isinstance(error, InternalError) or (error is not exc and error.http_status >= 500):
            log.error("%s %s failed", self.request_id, self.described(), exc_info=exc)
        if self.is_websocket and self.status == 101:
            if not self.ended:
                await self._send({"type": "websocket.send", "text": payload_bytes(error).decode()})
                await self.send({"type": "websocket.close", "code": WS_NORMAL_CLOSE, "reason": error.code})
        elif self.status:
            # Too late for a status: returning without the end of the body makes the HTTP layer cut the connection, so
            # that the client sees a broken answer and not a short one that looks complete.
            log.warning("%s %s broke off: %s", self.request_id, self.described(), error.message)
        else:
            await self._send_payload(error, http_status(exc, error))

    async def _send_payload(self, error: TenureError, status: int) -> None:
        prefix = "websocket.http.response" if self.is_websocket else "http.response"
        body = payload_bytes(error)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if isinstance(error, Unauthenticated):
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(error, TooLarge):
            headers.append((b"connection", b"close"))  # the rest of the body is not worth reading
        await self.send({"type": f"{prefix}.start", "status": status, "headers": headers})
        await self._send({"type": f"{prefix}.body", "body": body})

    def described(self) -> str:
        method = self.scope.get("method", "WS")
        return f"{principal_of(self.scope) or 'nobody'} {method} {shorten(self.scope['path'])}"

    def log_it(self) -> None:
        """Changes and failures; reads would bury them (followers and workers poll)."""
        duration_ms = (time.monotonic() - self.started_s) * 1000
        is_read = self.scope.get("method") in ("GET", "HEAD") and self.status < 500
        log.log(
            logging.DEBUG if is_read else logging.INFO,
            "%s %s -> %d in %.1f ms",
            self.request_id,
            self.described(),
            self.status,
            duration_ms,
        )
