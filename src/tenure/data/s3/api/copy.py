"""Copies of objects, whole or as parts of an upload."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from starlette.responses import Response

from tenure.data.s3.api import conditions
from tenure.data.s3.api.call import VERSION_ID, Call, int_of, iso, quoted, xml
from tenure.data.s3.api.described import about, checksum_algorithm, parse_tags, plain_headers
from tenure.data.s3.api.lock import default_lock, lock_of
from tenure.data.s3.api.objects import open_version, stored_headers
from tenure.data.s3.buckets import Bucket
from tenure.data.s3.errors import S3Error
from tenure.data.s3.store.base import OBJECT_BYTES_MAX, PARTS_MAX, NewObject, OpenObject
from tenure.data.s3.xml import element

SOURCE = "x-amz-copy-source"
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})\Z")


@dataclass(frozen=True)
class Source:
    """What a header says is to be copied."""

    bucket: str
    key: str
    version_id: str | None


async def copy(call: Call) -> Response:
    request, headers = call.request, plain_headers(call.request.headers)
    bucket = await call.bucket("object:write")
    source = parse_source(headers[SOURCE])
    replacing, tagging = _directive(headers, "metadata"), _directive(headers, "tagging")
    found, source_bucket = await _open(call, source)
    try:
        version = found.version
        conditions.check_copy(headers, version)
        is_same = (source_bucket.name, source_bucket.owner, source.key) == (bucket.name, bucket.owner, request.key)
        if is_same and source.version_id is None and not replacing and not tagging:
            raise S3Error(
                "InvalidRequest",
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's "
                "metadata, storage class, website redirect location or encryption attributes.",
            )
        if version.size_bytes > OBJECT_BYTES_MAX:
            raise S3Error("InvalidRequest", "A copy is of at most 5 GiB: copy it in parts.")
        wanted = checksum_algorithm(headers) or version.about.checksum
        told = about(headers, checksum=wanted)  # refuses what it has to in any case
        if not replacing:
            told = NewObject(version.about.headers, version.about.user, told.tags, wanted)
        tags = parse_tags(headers.get("x-amz-tagging", "")) if tagging else version.about.tags
        lock = lock_of(headers) or await default_lock(bucket)
        told = replace(told, tags=tags, extra={"lock": lock} if lock else {})
        stored = await bucket.backend.put(request.key, found.read(), told, conditions.of_change(headers))
    finally:
        found.close()
    call.tell_put(bucket, stored)
    answer = stored_headers(stored)
    answer.pop("etag")
    if version.version_id != "null" or source.version_id:
        answer["x-amz-copy-source-version-id"] = version.version_id
    checksum = element(f"Checksum{stored.about.checksum}", stored.checksum) if stored.checksum else None
    modified, etag = element("LastModified", iso(stored.modified_at)), element("ETag", quoted(stored.etag))
    return xml(element("CopyObjectResult", modified, etag, checksum), headers=answer)


async def copy_part(call: Call) -> Response:
    request, headers = call.request, plain_headers(call.request.headers)
    bucket = await call.bucket("object:write")
    number = int_of(request.param("partNumber"), "partNumber", 1, PARTS_MAX)
    source = parse_source(headers[SOURCE])
    found, _ = await _open(call, source)
    try:
        conditions.check_copy(headers, found.version)
        start, end = _range(headers.get("x-amz-copy-source-range", ""), found.version.size_bytes)
        chunks: AsyncGenerator[bytes] = found.read(start, end)
        part = await bucket.backend.uploads.put(request.key, request.param("uploadId"), number, chunks)
    finally:
        found.close()
    assert part.modified_at is not None
    modified, etag = element("LastModified", iso(part.modified_at)), element("ETag", quoted(part.etag))
    answer = {"x-amz-copy-source-version-id": found.version.version_id} if source.version_id else {}
    answer.pop(VERSION_ID, None)
    return xml(element("CopyPartResult", modified, etag), headers=answer)


def parse_source(header: str) -> Source:
    """Of `/bucket/key?versionId=…`, percent-encoded. Raises `S3Error`."""
    path, _, query = header.partition("?versionId=")
    try:
        bucket, _, key = unquote_to_bytes(path.encode("latin-1")).decode().removeprefix("/").partition("/")
    except (UnicodeDecodeError, UnicodeEncodeError):
        bucket, key = "", ""
    if not bucket or not key:
        raise S3Error("InvalidArgument", "x-amz-copy-source is /BUCKET/KEY, percent-encoded.")
    return Source(bucket, key, query or None)


async def _open(call: Call, source: Source) -> tuple[OpenObject, Bucket]:
    bucket = await call.bucket_named(source.bucket, "object:read", source.key)
    try:
        return await open_version(call, bucket, source.key, source.version_id), bucket
    except S3Error as error:
        if error.code == "MethodNotAllowed":
            raise S3Error("InvalidRequest", "A delete marker cannot be the source of a copy.") from None
        raise


def _directive(headers: dict[str, str], name: str) -> bool:
    """Whether what the source has is to be replaced."""
    text = headers.get(f"x-amz-{name}-directive", "COPY").upper()
    if text not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"Unknown {name} directive.")
    return text == "REPLACE"


def _range(header: str, size: int) -> tuple[int, int]:
    if not header:
        return 0, size
    match = _RANGE.match(header)
    if match is None:
        raise S3Error("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last")
    start, end = int(match[1]), int(match[2]) + 1
    if start >= end or end > size:
        raise S3Error("InvalidRange", f"Range specified is not valid for source object of size: {size}")
    return start, end
