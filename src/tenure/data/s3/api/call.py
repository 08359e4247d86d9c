"""What every operation gets, and what they answer with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.responses import Response

from tenure.data.s3.buckets import Bucket, BucketSource, need
from tenure.data.s3.errors import S3Error
from tenure.data.s3.events import ObjectEvent, ObjectEvents
from tenure.data.s3.request import Authenticated, S3Request
from tenure.data.s3.store.base import Deleted, Version
from tenure.data.s3.xml import XML_BYTES_MAX, Element, element, render
from tenure.identity.authorize import Principal, PrincipalKind

XML_TYPE = "application/xml"
VERSION_ID = "x-amz-version-id"
MARKER = "x-amz-delete-marker"


@dataclass(frozen=True)
class Call:
    """One request of somebody who is known, or anonymous."""

    request: S3Request
    who: Authenticated
    buckets: BucketSource
    events: ObjectEvents

    @property
    def principal(self) -> Principal:
        """Raises `S3Error` AccessDenied for the anonymous."""
        if self.who.principal is None:
            raise S3Error("AccessDenied", "This needs a signature.")
        return self.who.principal

    @property
    def is_plain(self) -> bool:
        """Sent by an office without any signature, as by `curl`: it need not know how S3 is spoken."""
        request = self.request
        is_signed = bool(request.header("authorization")) or request.has("X-Amz-Signature") or request.has("Signature")
        return not is_signed and self.who.principal is not None and self.who.principal.kind is PrincipalKind.OFFICE

    async def bucket(self, action: str, *, key: bool = True) -> Bucket:
        """The bucket of the request, where whoever asks may do `action` to it, or with `key` to the key of the request."""
        return await self.bucket_named(self.request.bucket, action, self.request.key if key else "")

    async def bucket_named(self, name: str, action: str, key: str = "") -> Bucket:
        owner = self.request.header("x-amz-expected-bucket-owner")
        bucket = await self.buckets.find(self.who.principal, name)
        need(self.who, action, bucket, key)
        if owner and owner != bucket.owner_id:
            raise S3Error("AccessDenied", "The bucket is of another owner than the one that was expected.")
        return bucket

    async def body(self, bytes_max: int = XML_BYTES_MAX) -> bytes:
        """All of the content. Raises `S3Error`."""
        found = bytearray()
        async for chunk in self.who.body:
            found += chunk
            if len(found) > bytes_max:
                raise S3Error("MalformedXML", f"The body is larger than {bytes_max} bytes.")
        return bytes(found)

    @property
    def content(self) -> AsyncIterator[bytes]:
        return self.who.body

    def tell_put(self, bucket: Bucket, version: Version) -> None:
        self.events.tell(ObjectEvent("put", bucket.owner, bucket.name, version.key, version.etag, version.size_bytes))

    def tell_deleted(self, bucket: Bucket, key: str, deleted: Deleted) -> None:
        self.events.tell(ObjectEvent("delete", bucket.owner, bucket.name, key))


def xml(root: Element, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(render(root), status, dict(headers or {}), XML_TYPE)


def empty(status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(b"", status, dict(headers or {}))


def iso(moment: datetime) -> str:
    """As XML has it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def http_date(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def owner_element(owner_id: str, name: str = "Owner") -> Element:
    return element(name, element("ID", owner_id), element("DisplayName", owner_id))


def quoted(etag: str) -> str:
    return f'"{etag}"'


def unquoted(etag: str) -> str:
    """Of one ETag in a header; also of a weak one."""
    text = etag.strip()
    return text.removeprefix("W/").strip('"')


def url_encoded(text: str) -> str:
    return quote(text, safe="/")


def check_header(value: str) -> str:
    """A value that becomes a header of an answer. Raises `S3Error` for what would become two, or none."""
    if any((ord(char) < 32 and char != "\t") or ord(char) == 127 or ord(char) > 255 for char in value):
        raise S3Error("InvalidArgument", "A value has characters that a header cannot have.")
    return value


def int_of(text: str, name: str, low: int = 0, high: int = 2**31 - 1) -> int:
    """Raises `S3Error` InvalidArgument."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and low <= int(text) <= high):
        raise S3Error("InvalidArgument", f"{name} is a number from {low} to {high}.", fields={"ArgumentName": name})
    return int(text)
