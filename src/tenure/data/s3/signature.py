"""Signature Version 4, as AWS specifies it for S3: who a request says that it is from, and whether its signature says so too.

The canonical request is made of the bytes that were received, decoded once and encoded as the specification has it, so what is
signed is what is carried out: no part of a request has a second reading here. Pure: the clock and the secret are arguments.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote_to_bytes

from tenure.data.s3.errors import S3Error
from tenure.data.s3.request import S3Request

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "s3"
TERMINATOR = "aws4_request"
SKEW_MAX = timedelta(minutes=15)
"""Between a client's clock and ours, either way."""
EXPIRES_S_MAX = 7 * 24 * 3600
SIGNED_HEADERS_MAX = 100
CREDENTIAL_CHARS_MAX = 256
TOKEN_CHARS_MAX = 2048

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING = frozenset({SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER})
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

QUERY_NAMES = frozenset(
    {
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "X-Amz-Content-Sha256",
    }
)
"""Parameters of a presigned address. Each comes at most once."""

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_BASIC_TIME = re.compile(r"\d{8}T\d{6}Z\Z")
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+\Z")
_WORD = re.compile(r"[A-Za-z0-9_.+=-]+\Z")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_OTHER_ALGORITHM = "Only AWS4-HMAC-SHA256 is supported: set your client to Signature Version 4."


@dataclass(frozen=True)
class Claim:
    """What a request says of who signed it, and how. Nothing of it is believed before `verify`."""

    key_id: str
    scope_date: str
    region: str
    at: datetime
    signed_headers: tuple[str, ...]
    signature: str
    payload: str
    """The value of x-amz-content-sha256: a digest in hex, or how the body is sent."""
    token: str = ""
    """Of short-lived keys."""
    expires_s: int | None = None
    """Of a presigned address; None: the signature is in a header."""

    @property
    def scope(self) -> str:
        return f"{self.scope_date}/{self.region}/{SERVICE}/{TERMINATOR}"

    @property
    def timestamp(self) -> str:
        return f"{self.at:%Y%m%dT%H%M%SZ}"


@dataclass(frozen=True)
class Signer:
    """What a verified signature goes on with: the chunks of a body are signed each after the one before."""

    key: bytes
    timestamp: str
    scope: str
    signature: str

    def sign(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()


# --- what a request claims -----------------------------------------------------------------------------------------------------
def claim_of(request: S3Request) -> Claim | None:
    """Who it says that it is from; None for a request with no signature at all. Raises `S3Error` for one that is malformed,
    signed twice, or signed in another way."""
    headers = request.headers.getlist("authorization")
    in_query = any(name in QUERY_NAMES for name, _ in request.query)
    if len(headers) > 1:
        raise S3Error("InvalidArgument", "There is more than one Authorization header.")
    if request.has("AWSAccessKeyId") or (request.has("Signature") and request.has("Expires")):
        raise S3Error("InvalidRequest", _OTHER_ALGORITHM)
    if headers and in_query:
        raise S3Error("InvalidArgument", "Sign in the Authorization header or in the query, not in both.")
    if headers:
        return _of_header(request, headers[0].strip())
    return _of_query(request) if in_query else None


def _of_header(request: S3Request, value: str) -> Claim:
    algorithm, _, rest = value.partition(" ")
    if algorithm != ALGORITHM:
        if not value:
            raise S3Error("AccessDenied", "The Authorization header is empty.")
        raise S3Error("InvalidRequest", _OTHER_ALGORITHM)
    parts: dict[str, str] = {}
    for part in rest.split(","):
        name, separator, text = part.strip().partition("=")
        if not separator or name in parts or name not in ("Credential", "SignedHeaders", "Signature"):
            raise S3Error("AuthorizationHeaderMalformed")
        parts[name] = text
    if len(parts) != 3:
        raise S3Error("AuthorizationHeaderMalformed", "It has Credential, SignedHeaders and Signature.")
    malformed = "AuthorizationHeaderMalformed"
    key_id, scope_date, region = _credential(parts["Credential"], malformed)
    at = _time_of_headers(request)
    if f"{at:%Y%m%d}" != scope_date:
        raise S3Error(malformed, "The date in the credential is not the request's.")
    payload = _only(request, "x-amz-content-sha256")
    if not payload:
        raise S3Error("MissingSecurityHeader", "The header x-amz-content-sha256 is missing.")
    return Claim(
        key_id,
        scope_date,
        region,
        at,
        _signed_headers(parts["SignedHeaders"], malformed),
        _signature(parts["Signature"], malformed),
        _payload(payload),
        _token(_only(request, "x-amz-security-token")),
    )


def _of_query(request: S3Request) -> Claim:
    malformed = "AuthorizationQueryParametersError"
    given: dict[str, str] = {}
    for name, value in request.query:
        if name in QUERY_NAMES:
            if name in given:
                raise S3Error(malformed, f"{name} is there twice.")
            given[name] = value
    if given.get("X-Amz-Algorithm") != ALGORITHM:
        raise S3Error(malformed if "X-Amz-Algorithm" not in given else "InvalidRequest", _OTHER_ALGORITHM)
    for name in ("X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"):
        if name not in given:
            raise S3Error(malformed, f"{name} is missing.")
    key_id, scope_date, region = _credential(given["X-Amz-Credential"], malformed)
    at = _basic_time(given["X-Amz-Date"])
    if at is None or f"{at:%Y%m%d}" != scope_date:
        raise S3Error(malformed, "X-Amz-Date is a time like 20260131T120000Z, of the credential's day.")
    expires = given["X-Amz-Expires"]
    if not (expires.isascii() and expires.isdecimal() and len(expires) <= 6 and 1 <= int(expires) <= EXPIRES_S_MAX):
        raise S3Error(malformed, f"X-Amz-Expires is a number of seconds from 1 to {EXPIRES_S_MAX} (a week).")
    in_header = _only(request, "x-amz-content-sha256")
    payload = given.get("X-Amz-Content-Sha256") or in_header or UNSIGNED_PAYLOAD
    if in_header and in_header != payload:
        raise S3Error("InvalidRequest", "x-amz-content-sha256 in the query and in the headers differ.")
    if payload in (SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER):
        raise S3Error("InvalidRequest", "A presigned body has no signed chunks.")
    if _only(request, "x-amz-security-token"):
        raise S3Error("InvalidRequest", "A presigned address has its token in the query.")
    return Claim(
        key_id,
        scope_date,
        region,
        at,
        _signed_headers(given["X-Amz-SignedHeaders"], malformed),
        _signature(given["X-Amz-Signature"], malformed),
        _payload(payload),
        _token(given.get("X-Amz-Security-Token", "")),
        int(expires),
    )


def _only(request: S3Request, name: str) -> str:
    """The header's value, which must not be there twice: a second one would be read by somebody else."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise S3Error("InvalidRequest", f"The header {name} is there twice.")
    return values[0].strip() if values else ""


def _credential(text: str, malformed: str) -> tuple[str, str, str]:
    """Key, day, region."""
    parts = text.split("/")
    if len(text) > CREDENTIAL_CHARS_MAX or len(parts) != 5 or not all(_WORD.match(part) for part in parts):
        raise S3Error(malformed, "The credential is KEY/YYYYMMDD/REGION/s3/aws4_request.")
    key_id, day, region, service, terminator = parts
    if service != SERVICE or terminator != TERMINATOR:
        raise S3Error(malformed, f"The credential ends with /{SERVICE}/{TERMINATOR}.")
    return key_id, day, region


def _signed_headers(text: str, malformed: str) -> tuple[str, ...]:
    names = tuple(text.split(";"))
    if len(names) > SIGNED_HEADERS_MAX or not all(_HEADER_NAME.match(name) for name in names):
        raise S3Error(malformed, "SignedHeaders has names in lower case, separated by semicolons.")
    if list(names) != sorted(set(names)):
        raise S3Error(malformed, "SignedHeaders has each name once, in order.")
    return names


def _signature(text: str, malformed: str) -> str:
    if not _HEX64.match(text):
        raise S3Error(malformed, "The signature is 64 hex digits.")
    return text


def _payload(text: str) -> str:
    if text.startswith("STREAMING-AWS4-ECDSA"):
        raise S3Error("InvalidRequest", _OTHER_ALGORITHM)
    if text != UNSIGNED_PAYLOAD and text not in STREAMING and not _HEX64.match(text):
        raise S3Error("InvalidArgument", "x-amz-content-sha256 is a SHA-256 in hex, UNSIGNED-PAYLOAD or STREAMING-….")
    return text


def _token(text: str) -> str:
    if len(text) > TOKEN_CHARS_MAX:
        raise S3Error("InvalidToken")
    return text


def _time_of_headers(request: S3Request) -> datetime:
    if text := _only(request, "x-amz-date"):
        at = _basic_time(text)
    elif text := _only(request, "date"):
        at = _basic_time(text) or _http_time(text)
    else:
        raise S3Error("AccessDenied", "A signed request has a header x-amz-date or Date.")
    if at is None:
        raise S3Error("AccessDenied", "The request's time is not readable: 20260131T120000Z is how it is written.")
    return at


def _basic_time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if _BASIC_TIME.match(text) else None
    except ValueError:
        return None


def _http_time(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)  # "-0000" says UTC, too


# --- whether it is so ----------------------------------------------------------------------------------------------------------
def check_time(claim: Claim, now: datetime) -> None:
    """Raises `S3Error` when the request is too old, or from too far ahead."""
    if claim.expires_s is None:
        if abs(now - claim.at) > SKEW_MAX:
            raise S3Error(
                "RequestTimeTooSkewed",
                fields={
                    "RequestTime": claim.timestamp,
                    "ServerTime": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                    "MaxAllowedSkewMilliseconds": str(int(SKEW_MAX.total_seconds() * 1000)),
                },
            )
        return
    if claim.at - now > SKEW_MAX:
        raise S3Error("AccessDenied", "The address is not valid yet.")
    if now >= claim.at + timedelta(seconds=claim.expires_s):
        raise S3Error("AccessDenied", "Request has expired", fields={"X-Amz-Expires": str(claim.expires_s)})


def verify(request: S3Request, claim: Claim, secret: str) -> Signer:
    """Returns when `claim` was signed with `secret`, and over everything that matters: the host and every x-amz- header. Raises
    `S3Error`. Takes the same time for every wrong signature."""
    unsigned = [
        name
        for name in request.headers.keys()  # noqa: SIM118 (Headers)
        if (name == "host" or name.startswith("x-amz-")) and name not in claim.signed_headers
    ]
    if unsigned or "host" not in claim.signed_headers:
        names = ", ".join(sorted(set(unsigned)) or ["host"])
        raise S3Error(
            "AccessDenied", "There were headers present which were not signed.", fields={"HeadersNotSigned": names}
        )
    key = signing_key(secret, claim.scope_date, claim.region)
    canonical = canonical_request(request, claim)
    expected = hmac.new(key, string_to_sign(claim, canonical).encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, claim.signature):
        raise S3Error("SignatureDoesNotMatch", fields={"AWSAccessKeyId": claim.key_id})
    return Signer(key, claim.timestamp, claim.scope, claim.signature)


def signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for word in (day, region, SERVICE, TERMINATOR):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    return key


def string_to_sign(claim: Claim, canonical: bytes) -> str:
    return f"{ALGORITHM}\n{claim.timestamp}\n{claim.scope}\n{hashlib.sha256(canonical).hexdigest()}"


def canonical_request(request: S3Request, claim: Claim) -> bytes:
    """Raises `S3Error` when a header that was signed is not there."""
    lines = [
        request.method.encode(),
        canonical_path(request.raw_path),
        canonical_query(request.raw_query),
        *(_canonical_header(request, name) for name in claim.signed_headers),
        b"",
        ";".join(claim.signed_headers).encode(),
        claim.payload.encode(),
    ]
    return b"\n".join(lines)


def canonical_path(raw: bytes) -> bytes:
    """Decoded once and encoded strictly; neither `//` nor `..` is changed, for they are parts of keys."""
    return _encoded(_decoded(raw), keep="/")


def canonical_query(raw: bytes) -> bytes:
    """Sorted by name and value as encoded, without the signature itself. "+" is a space, as where parameters are read."""
    pairs: list[tuple[bytes, bytes]] = []
    for part in raw.split(b"&"):
        name, _, value = part.replace(b"+", b" ").partition(b"=")
        if part and (decoded := _decoded(name)) != b"X-Amz-Signature":
            pairs.append((_encoded(decoded), _encoded(_decoded(value))))
    return b"&".join(name + b"=" + value for name, value in sorted(pairs))


def _canonical_header(request: S3Request, wanted: str) -> bytes:
    """Values of equal headers joined in their order, white space folded."""
    name = wanted.encode()
    values = [b" ".join(value.split()) for one, value in request.headers.raw if one == name]
    if not values:
        raise S3Error("SignatureDoesNotMatch", f"The header {wanted} was signed and is not there.")
    return name + b":" + b",".join(values)


def _decoded(raw: bytes) -> bytes:
    if _BAD_ESCAPE.search(raw):
        raise S3Error("InvalidURI", "A % is followed by two hex digits.")
    return unquote_to_bytes(raw)


def _encoded(value: bytes, keep: str = "") -> bytes:
    return quote(value, safe=keep).encode()


# --- signing -------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Keys:
    """What signs: an access key, with the token of one that is short-lived."""

    key_id: str
    secret: str
    token: str = ""


def presign(
    method: str, base_url: str, path: Sequence[str], keys: Keys, *, now: datetime, expires_s: int, region: str
) -> str:
    """An address that does `method` on `path` (bucket and key, not encoded) at the server `base_url`, until `expires_s` from
    `now`."""
    host = base_url.partition("://")[2].rstrip("/")
    day, at = f"{now:%Y%m%d}", f"{now:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{region}/{SERVICE}/{TERMINATOR}"
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{keys.key_id}/{scope}",
        "X-Amz-Date": at,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.token:
        query["X-Amz-Security-Token"] = keys.token
    raw_path = "".join("/" + quote(part, safe="/") for part in path)
    raw_query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
    canonical = f"{method}\n{raw_path}\n{raw_query}\nhost:{host}\n\nhost\n{UNSIGNED_PAYLOAD}"
    text = f"{ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(signing_key(keys.secret, day, region), text.encode(), hashlib.sha256).hexdigest()
    return f"{base_url.rstrip('/')}{raw_path}?{raw_query}&X-Amz-Signature={signature}"
