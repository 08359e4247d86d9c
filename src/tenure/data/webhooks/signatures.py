"""Who sent a delivery: signatures over its raw bytes, as different senders make them. Pure; compared in constant time.

`standard` is Standard Webhooks (standardwebhooks.com), symmetric. Where a scheme signs a time, it must be within `TOLERANCE_S` of
ours; GitHub, Shopify and a plain HMAC sign none, so a delivery of theirs that somebody recorded stays good: what keeps it from
being taken twice is its id, where the sender's id is the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tenure.errors import InvalidArgument

TOLERANCE_S = 300
"""How far a signed time may be from ours, in either direction."""
SIGNATURES_MAX = 10
"""Looked at in one request: a sender that rotates its secret signs with two."""
SECRET_CHARS_MIN, SECRET_CHARS_MAX = 8, 1024
DEDUPE_CHARS_MAX = 200
NAMED = ("standard", "github", "stripe", "slack", "shopify", "none")
_STANDARD_PREFIX = "whsec_"
_CUSTOM = re.compile(r"hmac:([A-Za-z0-9-]{1,80}):(sha1|sha256|sha512):(hex|base64)\Z")
_ID_HEADERS = ("webhook-id", "x-github-delivery", "x-shopify-webhook-id", "idempotency-key")

Headers = Mapping[str, str]
"""By name in lower case."""


class Refused(Exception):
    """The signature does not hold. `reason` is for the owner; who sent it hears nothing of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Custom:
    """An HMAC of the body in a header of any name."""

    header: str
    algorithm: str
    encoding: str


def check_scheme(scheme: str) -> str:
    """The scheme itself. Raises `InvalidArgument`."""
    if scheme not in NAMED and _CUSTOM.match(scheme) is None:
        raise InvalidArgument(
            f"{scheme[:60]!r} is no kind of signature.",
            hint=f"One of: {', '.join(NAMED)}, or hmac:HEADER:sha1|sha256|sha512:hex|base64.",
        )
    return scheme.lower() if scheme in NAMED else scheme


def check_secret(scheme: str, secret: str) -> str:
    """The secret itself, as its scheme takes it. Raises `InvalidArgument`."""
    if not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX or not secret.isprintable():
        raise InvalidArgument(
            f"A secret has {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} characters that can be printed, and no line break."
        )
    if scheme == "standard":
        try:
            _key("standard", secret)
        except (ValueError, binascii.Error):
            raise InvalidArgument(
                "A secret of Standard Webhooks is base64, usually after 'whsec_'.", hint="Or let one be made."
            ) from None
    return secret


def new_secret(scheme: str) -> str:
    """One that nobody guesses."""
    if scheme == "standard":
        return _STANDARD_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)


def verify(scheme: str, keys: Sequence[str], headers: Headers, body: bytes, now: float) -> None:
    """Returns when one of `keys` made the signature over exactly these bytes, at about `now` (seconds since 1970) where the
    scheme says when. Raises `Refused`."""
    if scheme == "none":
        return
    signed, given, encoding, algorithm = _expected(scheme, headers, body, now)
    found = False
    for key in keys:
        mac = hmac.new(_key(scheme, key), signed, algorithm).digest()
        wanted = mac.hex() if encoding == "hex" else base64.b64encode(mac).decode()
        for one in given[:SIGNATURES_MAX]:
            candidate = one.lower() if encoding == "hex" else one
            # No early end: how long it takes says nothing about which of them was near.
            found |= hmac.compare_digest(candidate.encode("utf-8", "replace"), wanted.encode())
    if not found:
        raise Refused("the signature is not of this secret and these bytes")


def _expected(scheme: str, headers: Headers, body: bytes, now: float) -> tuple[bytes, list[str], str, str]:
    """(what was signed, the signatures that were given, their encoding, the hash)"""
    if scheme == "standard":
        sent_id, at = _need(headers, "webhook-id"), _need(headers, "webhook-timestamp")
        _check_time(at, now)
        given = [one[3:] for one in _need(headers, "webhook-signature").split(" ") if one.startswith("v1,")]
        return f"{sent_id}.{at}.".encode() + body, given, "base64", "sha256"
    if scheme == "github":
        return body, [_need(headers, "x-hub-signature-256").removeprefix("sha256=")], "hex", "sha256"
    if scheme == "stripe":
        pairs = [part.strip().partition("=") for part in _need(headers, "stripe-signature").split(",")]
        at = next((value for name, _, value in pairs if name == "t"), "")
        _check_time(at, now)
        given = [value for name, _, value in pairs if name == "v1"]
        return f"{at}.".encode() + body, given, "hex", "sha256"
    if scheme == "slack":
        at = _need(headers, "x-slack-request-timestamp")
        _check_time(at, now)
        given = [_need(headers, "x-slack-signature").removeprefix("v0=")]
        return f"v0:{at}:".encode() + body, given, "hex", "sha256"
    if scheme == "shopify":
        return body, [_need(headers, "x-shopify-hmac-sha256")], "base64", "sha256"
    custom = custom_of(scheme)
    value = _need(headers, custom.header).removeprefix(f"{custom.algorithm}=")
    return body, [value], custom.encoding, custom.algorithm


def custom_of(scheme: str) -> Custom:
    found = _CUSTOM.match(scheme)
    assert found is not None, scheme
    return Custom(found[1].lower(), found[2], found[3])


def _need(headers: Headers, name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise Refused(f"there is no header {name}")
    return value


def _check_time(at: str, now: float) -> None:
    if not (at.isascii() and at.isdigit() and len(at) <= 12):
        raise Refused("it does not say when it was signed")
    if abs(now - int(at)) > TOLERANCE_S:
        raise Refused(f"it was signed more than {TOLERANCE_S} s before or after now")


def _key(scheme: str, secret: str) -> bytes:
    if scheme == "standard":
        return base64.b64decode(secret.removeprefix(_STANDARD_PREFIX), validate=True)
    return secret.encode()


def dedupe_of(scheme: str, headers: Headers, body: Any) -> str | None:
    """What the sender calls this delivery, the same when it is sent again; None when it has no name. `body` is parsed JSON."""
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    if scheme == "stripe":
        found = fields.get("id")
    elif scheme == "slack":
        found = fields.get("event_id")
    else:
        names = {"standard": _ID_HEADERS[:1], "github": _ID_HEADERS[1:2], "shopify": _ID_HEADERS[2:3]}
        found = next((headers[name] for name in names.get(scheme, _ID_HEADERS) if headers.get(name)), None)
    if not isinstance(found, str) or not found:
        return None
    if len(found) > DEDUPE_CHARS_MAX:
        return "sha256:" + hashlib.sha256(found.encode("utf-8", "replace")).hexdigest()
    return found.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def sign(scheme: str, secret: str, delivery_id: str, body: bytes, now: float) -> dict[str, str]:
    """The headers by which `body` is good now: what a test delivery is sent with."""
    at = str(int(now))

    def mac(signed: bytes, algorithm: str = "sha256") -> bytes:
        return hmac.new(_key(scheme, secret), signed, algorithm).digest()

    match scheme:
        case "none":
            return {"webhook-id": delivery_id}
        case "standard":
            signature = base64.b64encode(mac(f"{delivery_id}.{at}.".encode() + body)).decode()
            return {"webhook-id": delivery_id, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}
        case "github":
            return {"x-github-delivery": delivery_id, "x-hub-signature-256": f"sha256={mac(body).hex()}"}
        case "stripe":
            return {"stripe-signature": f"t={at},v1={mac(f'{at}.'.encode() + body).hex()}"}
        case "slack":
            signature = mac(f"v0:{at}:".encode() + body).hex()
            return {"x-slack-request-timestamp": at, "x-slack-signature": f"v0={signature}"}
        case "shopify":
            return {
                "x-shopify-webhook-id": delivery_id,
                "x-shopify-hmac-sha256": base64.b64encode(mac(body)).decode(),
            }
        case _:
            custom = custom_of(scheme)
            made = mac(body, custom.algorithm)
            value = made.hex() if custom.encoding == "hex" else base64.b64encode(made).decode()
            return {"webhook-id": delivery_id, custom.header: value}


def parsed(body: bytes, depth_max: int = 100) -> Any:
    """The JSON that the body is; None for what is none, or is nested deeper than databases like."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    level: list[Any] = [found]
    for _ in range(depth_max):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return found
    return None


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are no JSON
