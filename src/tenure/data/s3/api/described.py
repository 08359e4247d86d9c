"""What a request says of an object in headers, and how an object is told in the headers of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

from starlette.datastructures import Headers

from tenure.data.s3.api.call import VERSION_ID, check_header, http_date, quoted
from tenure.data.s3.checksums import ALGORITHMS
from tenure.data.s3.errors import S3Error, not_implemented
from tenure.data.s3.request import S3Request
from tenure.data.s3.store.base import NULL_VERSION, NewObject, Version

KEPT = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
)
OVERRIDES = {
    "response-content-type": "content-type",
    "response-cache-control": "cache-control",
    "response-content-disposition": "content-disposition",
    "response-content-encoding": "content-encoding",
    "response-content-language": "content-language",
    "response-expires": "expires",
}
USER = "x-amz-meta-"
CHECKSUM = "x-amz-checksum-"
TYPE_DEFAULT = "binary/octet-stream"
USER_BYTES_MAX = 2048
HEADERS_BYTES_MAX = 8192
TAGS_MAX = 10
BUCKET_TAGS_MAX = 50
TAG_KEY_CHARS_MAX = 128
TAG_VALUE_CHARS_MAX = 256


def about(headers: Mapping[str, str], *, checksum: str = "") -> NewObject:
    """What the headers of a put, or the fields of a form, say. Raises `S3Error`."""
    refuse_encryption(headers)
    kept = {name: check_header(headers[name]) for name in KEPT if headers.get(name)}
    encoding = [part.strip() for part in kept.pop("content-encoding", "").split(",")]
    if encoding := [part for part in encoding if part and part != "aws-chunked"]:  # which is gone when it is stored
        kept["content-encoding"] = ", ".join(encoding)
    user = user_metadata(headers.items())
    if sum(len(name) + len(value) for name, value in kept.items()) > HEADERS_BYTES_MAX:
        raise S3Error("MetadataTooLarge", f"The headers of an object are at most {HEADERS_BYTES_MAX} bytes.")
    tags = parse_tags(headers.get("x-amz-tagging", ""))
    storage_class = headers.get("x-amz-storage-class", "STANDARD") or "STANDARD"
    if storage_class != "STANDARD":
        raise S3Error("InvalidStorageClass", "There is one storage class here: STANDARD.", 400)
    return NewObject(kept, user, tags, checksum)


def user_metadata(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Several values of one name become one, with commas."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name.lower().startswith(USER):
            found.setdefault(name.lower()[len(USER) :], []).append(check_header(value.strip()))
    joined = {name: ",".join(values) for name, values in found.items()}
    if sum(len(name.encode()) + len(value.encode()) for name, value in joined.items()) > USER_BYTES_MAX:
        raise S3Error("MetadataTooLarge")
    return joined


def checksum_algorithm(headers: Mapping[str, str]) -> str:
    """Which checksum is to be kept; empty for none. Raises `S3Error`."""
    named = [name for name in ALGORITHMS if headers.get(CHECKSUM + name.lower())]
    if len(named) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header")
    wanted = (
        headers.get("x-amz-sdk-checksum-algorithm", "")
        or headers.get("x-amz-checksum-algorithm", "")
        or headers.get("x-amz-trailer", "").lower().removeprefix(CHECKSUM)
    ).upper()
    if named and wanted in ALGORITHMS and wanted != named[0]:
        raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    if not named and wanted and wanted not in ALGORITHMS:
        raise S3Error("InvalidRequest", "Checksum algorithm provided is unsupported.")
    return named[0] if named else wanted


def refuse_encryption(headers: Mapping[str, str]) -> None:
    """What we do not do, we do not let pass as done."""
    for name in headers:
        if name.lower().startswith("x-amz-server-side-encryption"):
            raise not_implemented("Encryption by S3's headers")


def parse_tags(text: str) -> dict[str, str]:
    """Of the header x-amz-tagging. Raises `S3Error`."""
    pairs = parse_qsl(text, keep_blank_values=True)
    return check_tags(pairs, TAGS_MAX)


def check_tags(pairs: Iterable[tuple[str, str]], count_max: int) -> dict[str, str]:
    pairs = list(pairs)
    tags = dict(pairs)
    if len(tags) != len(pairs):
        raise S3Error("InvalidTag", "There is one tag of each key.")
    if len(tags) > count_max:
        raise S3Error("InvalidTag", f"There are at most {count_max} tags.")
    for key, value in tags.items():
        if not 1 <= len(key) <= TAG_KEY_CHARS_MAX or len(value) > TAG_VALUE_CHARS_MAX:
            raise S3Error("InvalidTag", "A tag's key has 1 to 128 characters, its value at most 256.")
    return tags


def headers_of(version: Version, *, versioning: bool) -> dict[str, str]:
    """Those of a GET, a HEAD."""
    headers = {
        "etag": quoted(version.etag),
        "last-modified": http_date(version.modified_at),
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "content-type": TYPE_DEFAULT,
    }
    headers |= dict(version.about.headers)
    headers |= {USER + name: value for name, value in version.about.user.items()}
    if version.about.tags:
        headers["x-amz-tagging-count"] = str(len(version.about.tags))
    if versioning or version.version_id != NULL_VERSION:
        headers[VERSION_ID] = version.version_id
    return headers


def checksum_headers(version: Version) -> dict[str, str]:
    if not version.checksum:
        return {}
    return {
        CHECKSUM + version.about.checksum.lower(): version.checksum,
        "x-amz-checksum-type": version.about.checksum_type or "FULL_OBJECT",
    }


def overrides(request: S3Request, *, is_signed: bool) -> dict[str, str]:
    """What the query wants the answer's headers to be. Raises `S3Error` for the anonymous."""
    found = {header: check_header(request.param(name)) for name, header in OVERRIDES.items() if request.has(name)}
    if found and not is_signed:
        raise S3Error("InvalidRequest", "Only signed requests may name headers of the answer.")
    return found


def plain_headers(headers: Headers) -> dict[str, str]:
    """Each once, values of the same name with commas between."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        found[name] = f"{found[name]},{value}" if name in found else value
    return found
