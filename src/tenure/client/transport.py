"""Carries a `Call` out, blocking or async, and turns everything that can go wrong into `tenure.errors`."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

# httpx brings a command line tool of its own and imports it (with pygments, 60 ms) where rich is installed.
# Our commands pay that at every start, so it is kept out unless someone has loaded it already.
if "httpx" not in sys.modules:
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    import httpx

    del sys.modules["httpx._main"]
else:
    import httpx

from tenure.client.calls import Call
from tenure.client.endpoint import Endpoint
from tenure.errors import CommandTimeout, InternalError, ServerUnreachable, TenureError, from_payload

T = TypeVar("T")

CONNECT_S = 5.0
CONNECTIONS_MAX = 100
ERROR_BYTES_MAX = 64 * 1024
"""An error's body is read up to here."""


def _arguments(call: Call[Any]) -> dict[str, Any]:
    """`call` as httpx takes it."""
    headers: dict[str, str] = {}
    content: Any = call.content
    if call.body is not None:
        content = call.body.model_dump_json(exclude_none=True).encode()
        headers["Content-Type"] = "application/json"
    elif call.content_type is not None:
        headers["Content-Type"] = call.content_type
    return {
        "method": call.method,
        "url": call.path,
        "params": call.params,
        "content": content,
        "headers": headers,
        "timeout": httpx.Timeout(call.timeout_s, connect=CONNECT_S),
    }


def error_from(status: int, body: bytes, endpoint: Endpoint) -> TenureError:
    """The error that a non-2xx answer stands for."""
    payload = _json_object(body)
    if isinstance(payload.get("error"), dict):
        return from_payload(payload)
    text = body[:200].decode("utf-8", "replace").strip()
    return InternalError(
        f"{endpoint} answered with HTTP {status}" + (f": {text}" if text else "."),
        hint="Is it a Tenure server of the same version? `tenure status` says; else its log (`tenure logs --server`).",
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        payload: Any = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", payload) if isinstance(payload, dict) else {}


@contextmanager
def _translated(call: Call[Any], endpoint: Endpoint) -> Generator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise endpoint.unreachable(error) from error
    except httpx.TimeoutException as error:
        raise CommandTimeout(
            f"The server did not answer {call.method} {call.path} within {call.timeout_s:.0f} s.",
            hint="`tenure status` says whether it is alive; `tenure logs --server` what it does.",
        ) from error
    except httpx.TransportError as error:
        raise ServerUnreachable(
            f"The server at {endpoint} went away while it answered {call.method} {call.path}.",
            details={"sent": True},
        ) from error
    except httpx.InvalidURL as error:
        raise ServerUnreachable(f"{endpoint} is not an address: {error}.", details={"sent": False}) from error


def _parse(call: Call[T], response: httpx.Response, endpoint: Endpoint) -> T:
    if not response.is_success:
        raise error_from(response.status_code, response.content, endpoint)
    try:
        return call.parse(response.content)
    except ValueError as error:
        raise InternalError(
            f"The answer to {call.method} {call.path} is not of the expected shape.",
            hint="Are client and server of the same version? `tenure status` shows the server's.",
        ) from error


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=20)


class Transport:
    """Blocking. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        uds = str(endpoint.socket) if endpoint.socket else None
        self._http = httpx.Client(
            base_url=endpoint.url,
            headers=endpoint.headers,
            transport=httpx.HTTPTransport(uds=uds, limits=_limits()),
            trust_env=False,  # A proxy of the environment must not come between us and a socket of this machine.
        )

    def send(self, call: Call[T]) -> T:
        """The parsed answer. Raises the server's error, `ServerUnreachable`, `CommandTimeout` or `InternalError`."""
        with _translated(call, self.endpoint):
            response = self._http.request(**_arguments(call))
        return _parse(call, response, self.endpoint)

    @contextmanager
    def stream(self, call: Call[Any]) -> Generator[httpx.Response]:
        """The answer as it comes. Raises like `send`, also while the body of the `with` reads from it."""
        with _translated(call, self.endpoint), self._http.stream(**_arguments(call)) as response:
            if not response.is_success:
                raise error_from(response.status_code, _head(response), self.endpoint)
            yield response

    def close(self) -> None:
        self._http.close()


class AsyncTransport:
    """For one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        uds = str(endpoint.socket) if endpoint.socket else None
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers=endpoint.headers,
            transport=httpx.AsyncHTTPTransport(uds=uds, limits=_limits()),
            trust_env=False,
        )

    async def send(self, call: Call[T]) -> T:
        """Like `Transport.send`."""
        with _translated(call, self.endpoint):
            response = await self._http.request(**_arguments(call))
        return _parse(call, response, self.endpoint)

    @asynccontextmanager
    async def stream(self, call: Call[Any]) -> AsyncGenerator[httpx.Response]:
        """Like `Transport.stream`."""
        with _translated(call, self.endpoint):
            async with self._http.stream(**_arguments(call)) as response:
                if not response.is_success:
                    raise error_from(response.status_code, await _ahead(response), self.endpoint)
                yield response

    async def close(self) -> None:
        await self._http.aclose()


def _head(response: httpx.Response) -> bytes:
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) >= ERROR_BYTES_MAX:
            break
    return body


async def _ahead(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= ERROR_BYTES_MAX:
            break
    return body
