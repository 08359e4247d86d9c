"""One request of S3's protocol, as it came, and what names a bucket and a key in it.

A bucket is named by the path (`/bucket/key`) or by the host (`bucket.s3.example/key`). Bytes are kept as they were received,
since a signature is over those; keys are decoded once and never normalised, so `..` and `//` are parts of names.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from tenure.data.s3.errors import S3Error
from tenure.identity.authorize import Principal

QUERY_MAX = 100
"""Parameters of one request."""


@dataclass(frozen=True)
class S3Request:
    """`raw_path` and `raw_query` are bytes as received, `query` is decoded, in its order; a parameter with no value has "".
    `body` is as received: signed chunks are still in it. It is read once."""

    method: str
    raw_path: bytes
    raw_query: bytes
    bucket: str
    """Empty: the service itself is asked."""
    key: str
    """Empty: the bucket itself is asked."""
    query: Sequence[tuple[str, str]]
    headers: Headers
    body: AsyncIterator[bytes]
    request_id: str
    client: str = ""
    """Address that it came from; empty for a socket."""

    def has(self, name: str) -> bool:
        """Whether the query has the parameter, with or without a value."""
        return any(name == one for one, _ in self.query)

    def param(self, name: str, default: str = "") -> str:
        """The first value of the query's parameter."""
        return next((value for one, value in self.query if one == name), default)

    def header(self, name: str, default: str = "") -> str:
        """The first value of the header. Trimmed."""
        return (self.headers.get(name) or default).strip()


def anything(action: str, bucket: str) -> bool:
    return True


@dataclass(frozen=True)
class Authenticated:
    """`principal` None is anonymous. `body` is the content: chunks decoded, and raised in (`S3Error`) before its end is accepted
    when a digest or signature over it is wrong, so whoever stores it stores nothing."""

    principal: Principal | None
    body: AsyncIterator[bytes]
    allows: Callable[[str, str], bool] = anything
    """Whether what was signed with may be used for an action ("object:read") on a bucket; "" is the list of buckets. Asked beside
    `authorize`: a key may be for less than its principal."""


Authenticate = Callable[[S3Request], Awaitable[Authenticated]]
"""Who asks. Raises `S3Error`. Does not read the body, but for what the answer's `body` reads."""


def new_request_id() -> str:
    return secrets.token_hex(8).upper()


def request_of(scope: Scope, receive: Receive, hosts: Sequence[str] = (), request_id: str = "") -> S3Request:
    """The request of an ASGI scope. `hosts` are the names of this server, without port: in `BUCKET.NAME` the bucket is in the
    host. Raises `S3Error` for what is no request."""
    headers = Headers(scope=scope)
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    raw_query: bytes = scope.get("query_string", b"")
    bucket, key = _named(raw_path, headers.get("host", ""), hosts)
    client = scope.get("client")
    return S3Request(
        scope["method"],
        raw_path,
        raw_query,
        bucket,
        key,
        parse_query(raw_query),
        headers,
        _received(receive),
        request_id or new_request_id(),
        client[0] if client else "",
    )


def parse_query(raw: bytes) -> tuple[tuple[str, str], ...]:
    """Decoded, in order. "+" is a space, as S3 has it. Raises `S3Error`."""
    parts = [part for part in raw.split(b"&") if part]
    if len(parts) > QUERY_MAX:
        raise S3Error("InvalidURI", f"A query has at most {QUERY_MAX} parameters.")
    found: list[tuple[str, str]] = []
    for part in parts:
        name, _, value = part.replace(b"+", b" ").partition(b"=")
        found.append((_decoded(name), _decoded(value)))
    return tuple(found)


def _named(raw_path: bytes, host: str, hosts: Sequence[str]) -> tuple[str, str]:
    if not raw_path.startswith(b"/"):
        raise S3Error("InvalidURI")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    for base in hosts:
        if name.lower().endswith("." + base):
            return name[: -len(base) - 1].lower(), _decoded(raw_path[1:])
    bucket, _, key = raw_path[1:].partition(b"/")
    return _decoded(bucket), _decoded(key)


def _decoded(raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "Names are UTF-8, percent-encoded.") from None


async def _received(receive: Receive) -> AsyncIterator[bytes]:
    """The body's bytes. A client that goes away in the middle ends it with `IncompleteBody`: what came so far is not the body."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise S3Error("IncompleteBody", "The client went away before the body had ended.")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return
