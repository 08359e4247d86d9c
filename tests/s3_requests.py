"""Requests of S3's protocol as clients send them, without a network: signed by botocore, seen by our verification."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from starlette.datastructures import Headers

from tenure.data.s3.request import S3Request, parse_query

KEY_ID, SECRET = "TNKTESTKEYOFTHETESTS", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
HOST = "s3:9000"


@dataclass(frozen=True)
class Sent:
    """What goes over the wire. `seen` is how the server sees it."""

    method: str
    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    def seen(self, piece_bytes: int = 65536) -> S3Request:
        bucket, _, key = self.path[1:].partition(b"/")
        return S3Request(
            self.method,
            self.path,
            self.query,
            bucket.decode("latin-1"),
            key.decode("latin-1"),
            parse_query(self.query),
            Headers(raw=list(self.headers)),
            pieces(self.body, piece_bytes),
            "REQUEST",
        )

    def header(self, name: str, value: str | None) -> Sent:
        """With the header's value replaced, or the header removed."""
        kept = tuple(one for one in self.headers if one[0] != name.encode())
        return replace(self, headers=kept if value is None else (*kept, (name.encode(), value.encode())))

    def also(self, name: str, value: str) -> Sent:
        """With one more header."""
        return replace(self, headers=(*self.headers, (name.encode(), value.encode())))

    def get(self, name: str) -> str:
        return dict(self.headers)[name.encode()].decode()


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def signed(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    token: str | None = None,
    key_id: str = KEY_ID,
    secret: str = SECRET,
    region: str = "us-east-1",
    expires_s: int | None = None,
) -> Sent:
    """By botocore: in a header, or with `expires_s` in the query."""
    request = AWSRequest(method=method, url=url, headers=dict(headers or {}), data=body)
    request.context["client_config"] = None
    credentials = Credentials(key_id, secret, token)
    if expires_s is None:
        S3SigV4Auth(credentials, "s3", region).add_auth(request)
    else:
        S3SigV4QueryAuth(credentials, "s3", region, expires=expires_s).add_auth(request)
    parts = urlsplit(request.prepare().url)
    sent = [
        (name.lower().encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in request.headers.items()
    ]
    if "host" not in {name.decode() for name, _ in sent}:
        sent.append((b"host", parts.netloc.encode()))
    return Sent(method, parts.path.encode(), parts.query.encode(), tuple(sent), body)


def now() -> datetime:
    return datetime.now(UTC)
