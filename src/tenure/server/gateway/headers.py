"""Which headers cross a preview, either way. Pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tenure.server.gateway.passes import COOKIE_NAME

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Mean one connection, not the message: ours to the client and ours to the office are two."""
NOT_TO_OFFICE = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-proto",
    b"x-real-ip",
}
"""We write what belongs there ourselves; what a client claims of it is not passed on."""
NOT_TO_CLIENT = HOP_BY_HOP | {b"alt-svc", b"date", b"server"}
"""The last two our own HTTP layer writes."""
WITHOUT_BODY = (204, 304)


def value_of(headers: Iterable[Header], name: bytes) -> str | None:
    """The first one's, in latin-1 as HTTP has it."""
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def to_office(headers: Sequence[Header], host: str, *, websocket: bool = False) -> list[Header]:
    """The request's headers as the office's server gets them: with the preview's own host name (so that its checks of
    `Origin` hold), without the preview's cookie and what is no business of it. `headers` have lower-case names."""
    dropped = NOT_TO_OFFICE | _named_by_connection(headers)
    kept = [(b"host", host.encode("ascii"))]
    for name, value in headers:
        if name in dropped or (websocket and name.startswith(b"sec-websocket-")):
            continue
        if name == b"cookie":
            value = without_our_cookie(value)
            if not value:
                continue
        kept.append((name, value))
    return [*kept, (b"x-forwarded-host", host.encode("ascii")), (b"x-forwarded-proto", b"http")]


def framing(headers: Sequence[Header]) -> list[Header]:
    """How the request's body is delimited towards the office: as it came, or not at all."""
    if value_of(headers, b"transfer-encoding") is not None:
        return [(b"transfer-encoding", b"chunked")]
    length = value_of(headers, b"content-length")
    return [] if length is None else [(b"content-length", length.encode("latin-1"))]


def to_client(status: int, headers: Sequence[Header]) -> list[Header]:
    """The answer's headers as the client gets them. An office may set cookies of its own host only, and not ours."""
    dropped = NOT_TO_CLIENT | _named_by_connection(headers)
    if status in WITHOUT_BODY:
        dropped |= {b"content-length"}
    kept: list[Header] = []
    for name, value in headers:
        if name == b"set-cookie":
            value = without_domain(value)
        if name not in dropped and value is not None:
            kept.append((name, value))
    return kept


def _named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    return frozenset(
        name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")
    )


def our_cookies(headers: Iterable[Header]) -> list[str]:
    """All values of the preview's cookie."""
    return [
        value.decode("latin-1")
        for name, value in _cookies(value for key, value in headers if key == b"cookie")
        if name == COOKIE_NAME.encode()
    ]


def without_our_cookie(value: bytes) -> bytes:
    """A `Cookie` header's value; empty when nothing is left."""
    kept = [part.strip() for part in value.split(b";") if part.partition(b"=")[0].strip() != COOKIE_NAME.encode()]
    return b"; ".join(part for part in kept if part)


def _cookies(values: Iterable[bytes]) -> Iterable[tuple[bytes, bytes]]:
    for value in values:
        for part in value.split(b";"):
            name, _, content = part.partition(b"=")
            yield name.strip(), content.strip()


def without_domain(value: bytes) -> bytes | None:
    """A `Set-Cookie` header's value for this host alone; None for a cookie of the preview's name."""
    first, *attributes = value.split(b";")
    if first.partition(b"=")[0].strip() == COOKIE_NAME.encode():
        return None
    return b";".join([first, *(one for one in attributes if one.partition(b"=")[0].strip().lower() != b"domain")])
