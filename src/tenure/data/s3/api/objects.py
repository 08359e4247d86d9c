"""One object: get, head, put, delete, attributes."""

from __future__ import annotations

import re
from dataclasses import replace

from starlette.responses import Response, StreamingResponse

from tenure.data.s3.api import conditions
from tenure.data.s3.api.call import MARKER, VERSION_ID, Call, empty, http_date, int_of, quoted, xml
from tenure.data.s3.api.described import (
    about,
    checksum_algorithm,
    checksum_headers,
    headers_of,
    overrides,
    plain_headers,
)
from tenure.data.s3.api.lock import check_unlocked, default_lock, lock_headers, lock_of
from tenure.data.s3.buckets import Bucket
from tenure.data.s3.errors import S3Error
from tenure.data.s3.store.base import NULL_VERSION, OBJECT_BYTES_MAX, OpenObject, Version
from tenure.data.s3.xml import Element, element

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
ATTRIBUTES = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")


async def get(call: Call) -> Response:
    """GET and HEAD."""
    request = call.request
    bucket = await call.bucket("object:read")
    wanted = overrides(request, is_signed=call.who.principal is not None)
    found = await open_version(call, bucket, request.key, request.param("versionId") or None)
    try:
        version = found.version
        headers = headers_of(version, versioning=await _keeps_versions(bucket)) | lock_headers(version)
        conditions.check_read(request.headers, version, headers)
        start, end, more = _part(call, version) if request.has("partNumber") else _range(call, version)
        headers |= more | wanted
        if request.header("x-amz-checksum-mode").upper() == "ENABLED" and end - start == version.size_bytes:
            headers |= checksum_headers(version)
        elif request.has("partNumber") and version.parts and version.checksum:
            part = version.parts[int(request.param("partNumber")) - 1]
            headers |= checksum_headers(replace(version, checksum=part.checksum))
        headers["content-length"] = str(end - start)
        status = 206 if "content-range" in headers else 200
        if request.method == "HEAD":
            found.close()
            return Response(status_code=status, headers=headers)
        return StreamingResponse(found.read(start, end), status, headers)
    except BaseException:
        found.close()
        raise


async def put(call: Call) -> Response:
    headers = plain_headers(call.request.headers)
    if call.is_plain and call.request.key:
        await _make_missing(call)
    bucket = await call.bucket("object:write")
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > OBJECT_BYTES_MAX:
        raise S3Error("EntityTooLarge")
    told = about(headers, checksum=checksum_algorithm(headers))
    lock = lock_of(headers) or await default_lock(bucket)
    if lock:
        told = replace(told, extra={"lock": lock})
    version = await bucket.backend.put(call.request.key, call.content, told, conditions.of_change(headers))
    call.tell_put(bucket, version)
    return empty(200, stored_headers(version))


async def delete(call: Call) -> Response:
    request = call.request
    bucket = await call.bucket("object:delete")
    version_id = request.param("versionId") or None
    condition = conditions.of_deletion(
        request.headers.get("if-match"),
        request.headers.get("x-amz-if-match-size"),
        request.headers.get("x-amz-if-match-last-modified-time"),
    )
    await check_unlocked(call, bucket, request.key, version_id)
    deleted = await bucket.backend.delete(request.key, version_id, condition)
    call.tell_deleted(bucket, request.key, deleted)
    headers = {VERSION_ID: deleted.version_id} if deleted.version_id else {}
    if deleted.is_marker:
        headers[MARKER] = "true"
    return empty(204, headers)


async def attributes(call: Call) -> Response:
    request = call.request
    bucket = await call.bucket("object:read")
    wanted = {part.strip() for part in request.header("x-amz-object-attributes").split(",") if part.strip()}
    if not wanted or not wanted <= set(ATTRIBUTES):
        raise S3Error("InvalidArgument", f"x-amz-object-attributes is one or more of {', '.join(ATTRIBUTES)}.")
    found = await open_version(call, bucket, request.key, request.param("versionId") or None)
    found.close()
    version = found.version
    headers = {"last-modified": http_date(version.modified_at)}
    if await _keeps_versions(bucket):
        headers[VERSION_ID] = version.version_id
    rows: list[Element | None] = [
        element("ETag", version.etag) if "ETag" in wanted else None,
        element("Checksum", *_checksum(version)) if "Checksum" in wanted and version.checksum else None,
        _parts(call, version) if "ObjectParts" in wanted and version.parts else None,
        element("StorageClass", "STANDARD") if "StorageClass" in wanted else None,
        element("ObjectSize", version.size_bytes) if "ObjectSize" in wanted else None,
    ]
    return xml(element("GetObjectAttributesResponse", *rows), headers=headers)


async def open_version(call: Call, bucket: Bucket, key: str, version_id: str | None) -> OpenObject:
    """To be closed. Raises `S3Error`, also for a delete marker."""
    found = await bucket.backend.open(key, version_id)
    if found.version.is_marker:
        found.close()
        modified = http_date(found.version.modified_at)
        headers = {MARKER: "true", VERSION_ID: found.version.version_id, "last-modified": modified, "allow": "DELETE"}
        raise S3Error("MethodNotAllowed", headers=headers)
    return found


def stored_headers(version: Version) -> dict[str, str]:
    """What answers a put."""
    headers = {"etag": quoted(version.etag), **checksum_headers(version)}
    if version.version_id != NULL_VERSION:
        headers[VERSION_ID] = version.version_id
    return headers


async def _keeps_versions(bucket: Bucket) -> bool:
    return (await bucket.backend.settings()).versioning != ""


async def _make_missing(call: Call) -> None:
    """An office that speaks plain HTTP has its bucket made at the first put."""
    try:
        await call.buckets.find(call.who.principal, call.request.bucket)
    except S3Error as error:
        if error.code != "NoSuchBucket":
            raise
        try:
            await call.buckets.create(call.principal, call.request.bucket, {})
        except S3Error as raced:
            if raced.code != "BucketAlreadyOwnedByYou":
                raise


def _range(call: Call, version: Version) -> tuple[int, int, dict[str, str]]:
    asked = call.request.header("range")
    if "if-range" in call.request.headers and call.request.header("if-range").strip('"') != version.etag:
        asked = ""
    found = parse_range(asked, version.size_bytes)
    if found is None:
        return 0, version.size_bytes, {}
    if not found:
        size = version.size_bytes
        raise S3Error(
            "InvalidRange",
            fields={"RangeRequested": asked[:100], "ActualObjectSize": str(size)},
            headers={"content-range": f"bytes */{size}"},
        )
    start, end = found
    return start, end, {"content-range": f"bytes {start}-{end - 1}/{version.size_bytes}"}


def _part(call: Call, version: Version) -> tuple[int, int, dict[str, str]]:
    number = int_of(call.request.param("partNumber"), "partNumber", 1, 10_000)
    if not version.parts:
        if number != 1:
            raise S3Error("InvalidPart", "The requested partnumber is not satisfiable", 400)
        return 0, version.size_bytes, {}
    if number > len(version.parts):
        raise S3Error("InvalidPart", "The requested partnumber is not satisfiable", 400)
    start = sum(part.size_bytes for part in version.parts[: number - 1])
    end = start + version.parts[number - 1].size_bytes
    headers = {"x-amz-mp-parts-count": str(len(version.parts))}
    if end > start:
        headers["content-range"] = f"bytes {start}-{end - 1}/{version.size_bytes}"
    return start, end, headers


def parse_range(header: str | None, size: int) -> tuple[int, int] | tuple[()] | None:
    """(start, end exclusive) of a `Range` header that asks for one range; () when it lies outside of the object; None
    for no header, or one that a server may ignore."""
    match = _RANGE.match(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
        return (start, end) if int(last) > 0 and size > 0 else ()
    start = int(first)
    end = size if last == "" else min(int(last) + 1, size)
    if last != "" and int(last) < start:
        return None
    return (start, end) if start < size else ()


def _checksum(version: Version) -> list[Element]:
    algorithm = version.about.checksum
    text = version.checksum
    return [
        element(f"Checksum{algorithm}", text),
        element("ChecksumType", version.about.checksum_type or "FULL_OBJECT"),
    ]


def _parts(call: Call, version: Version) -> Element:
    limit = int_of(call.request.header("x-amz-max-parts", "1000"), "x-amz-max-parts", 1, 1000)
    after = int_of(call.request.header("x-amz-part-number-marker", "0"), "x-amz-part-number-marker")
    left = [part for part in version.parts if part.number > after]
    shown = left[:limit]
    # Without checksums AWS tells the number of the parts and nothing of each.
    rows = [
        element(
            "Part",
            element("PartNumber", part.number),
            element("Size", part.size_bytes),
            element(f"Checksum{version.about.checksum}", part.checksum) if part.checksum else None,
        )
        for part in shown
    ]
    return element(
        "ObjectParts",
        element("PartsCount", len(version.parts)),
        element("PartNumberMarker", after),
        element("NextPartNumberMarker", shown[-1].number if shown else after),
        element("MaxParts", limit),
        element("IsTruncated", len(left) > limit),
        *rows,
    )
