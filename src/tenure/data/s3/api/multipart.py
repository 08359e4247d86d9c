"""Uploads in parts."""

from __future__ import annotations

from dataclasses import replace

from starlette.responses import Response

from tenure.data.s3.api import conditions
from tenure.data.s3.api.call import Call, empty, int_of, iso, owner_element, quoted, unquoted, url_encoded, xml
from tenure.data.s3.api.described import CHECKSUM, about, checksum_algorithm, plain_headers
from tenure.data.s3.api.lock import default_lock, lock_of
from tenure.data.s3.api.objects import stored_headers
from tenure.data.s3.checksums import ALGORITHMS, COMPOSITE, FULL_OBJECT
from tenure.data.s3.errors import S3Error, invalid_argument
from tenure.data.s3.store.base import OBJECT_BYTES_MAX, PARTS_MAX, Part, Upload
from tenure.data.s3.xml import Element, children, element, parse, text_of

PAGE_MAX = 1000


async def create(call: Call) -> Response:
    headers = plain_headers(call.request.headers)
    bucket = await call.bucket("object:write")
    algorithm = checksum_algorithm(headers)
    kind = headers.get("x-amz-checksum-type", "").upper()
    if kind and (kind not in (COMPOSITE, FULL_OBJECT) or not algorithm):
        raise S3Error("InvalidRequest", "The checksum type is COMPOSITE or FULL_OBJECT, with an algorithm.")
    if algorithm and not kind:
        kind = FULL_OBJECT if algorithm == "CRC64NVME" else COMPOSITE
    if (kind == FULL_OBJECT and algorithm.startswith("SHA")) or (kind == COMPOSITE and algorithm == "CRC64NVME"):
        raise S3Error("InvalidRequest", f"The {kind} checksum type cannot be used with {algorithm}.")
    told = about(headers, checksum=algorithm)
    lock = lock_of(headers) or await default_lock(bucket)
    told = replace(told, checksum_type=kind, extra={"lock": lock} if lock else {})
    upload_id = await bucket.backend.uploads.begin(call.request.key, told)
    answer = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind} if algorithm else {}
    names = element("Bucket", bucket.name), element("Key", call.request.key)
    return xml(element("InitiateMultipartUploadResult", *names, element("UploadId", upload_id)), headers=answer)


async def put_part(call: Call) -> Response:
    request, headers = call.request, plain_headers(call.request.headers)
    bucket = await call.bucket("object:write")
    number = int_of(request.param("partNumber"), "partNumber", 1, PARTS_MAX)
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > OBJECT_BYTES_MAX:
        raise S3Error("EntityTooLarge")
    upload = await bucket.backend.uploads.get(request.key, request.param("uploadId"))
    algorithm = checksum_algorithm(headers)
    if upload.about.checksum and algorithm and algorithm != upload.about.checksum:
        raise S3Error(
            "InvalidRequest",
            f"Checksum Type mismatch occurred, expected checksum Type: {upload.about.checksum.lower()}, "
            f"actual checksum Type: {algorithm.lower()}",
        )
    part = await bucket.backend.uploads.put(request.key, upload.upload_id, number, call.content)
    answer = {"etag": quoted(part.etag)}
    if part.checksum:
        answer[CHECKSUM + upload.about.checksum.lower()] = part.checksum
    return empty(200, answer)


async def complete(call: Call) -> Response:
    request, headers = call.request, plain_headers(call.request.headers)
    bucket = await call.bucket("object:write")
    root = parse(await call.body(), "CompleteMultipartUpload")
    parts: list[Part] = []
    for one in children(root, "Part"):
        number, etag = text_of(one, "PartNumber") or "", text_of(one, "ETag") or ""
        if not number.isdecimal() or len(number) > 9 or not etag:
            raise S3Error("MalformedXML")
        given = (text_of(one, f"Checksum{algorithm}") for algorithm in ALGORITHMS)
        parts.append(Part(int(number), 0, unquoted(etag), None, next((text for text in given if text), "")))
    checksum = next((headers[name] for name in (CHECKSUM + one.lower() for one in ALGORITHMS) if name in headers), "")
    size = headers.get("x-amz-mp-object-size")
    version = await bucket.backend.uploads.complete(
        request.key,
        request.param("uploadId"),
        parts,
        conditions.of_change(headers),
        checksum=checksum,
        size_bytes=None if size is None else int_of(size, "x-amz-mp-object-size", 0, 2**63),
    )
    call.tell_put(bucket, version)
    answer = stored_headers(version)
    answer.pop("etag")
    algorithm = version.about.checksum
    host = request.header("host")
    return xml(
        element(
            "CompleteMultipartUploadResult",
            element("Location", f"http://{host}/{bucket.name}/{url_encoded(request.key)}"),
            element("Bucket", bucket.name),
            element("Key", request.key),
            element("ETag", quoted(version.etag)),
            element(f"Checksum{algorithm}", version.checksum) if version.checksum else None,
            element("ChecksumType", version.about.checksum_type) if version.checksum else None,
        ),
        headers={name: value for name, value in answer.items() if not name.startswith("x-amz-checksum")},
    )


async def abort(call: Call) -> Response:
    bucket = await call.bucket("object:write")
    await bucket.backend.uploads.abort(call.request.key, call.request.param("uploadId"))
    return empty(204)


async def list_parts(call: Call) -> Response:
    request = call.request
    bucket = await call.bucket("object:write")
    limit = int_of(request.param("max-parts", str(PAGE_MAX)), "max-parts")
    after = int_of(request.param("part-number-marker", "0") or "0", "part-number-marker")
    upload = await bucket.backend.uploads.get(request.key, request.param("uploadId"))
    found = [part for part in await bucket.backend.uploads.parts(request.key, upload.upload_id) if part.number > after]
    shown = found[: min(limit, PAGE_MAX)]
    algorithm = upload.about.checksum
    return xml(
        element(
            "ListPartsResult",
            element("Bucket", bucket.name),
            element("Key", request.key),
            element("UploadId", upload.upload_id),
            owner_element(bucket.owner_id, "Initiator"),
            owner_element(bucket.owner_id),
            element("StorageClass", "STANDARD"),
            element("ChecksumAlgorithm", algorithm) if algorithm else None,
            element("ChecksumType", upload.about.checksum_type) if algorithm else None,
            element("PartNumberMarker", after),
            element("NextPartNumberMarker", shown[-1].number if shown else after),
            element("MaxParts", limit),
            element("IsTruncated", len(found) > len(shown)),
            *(_part(part, algorithm) for part in shown),
        )
    )


async def list_uploads(call: Call) -> Response:
    request = call.request
    bucket = await call.bucket("object:list", key=False)
    limit = min(int_of(request.param("max-uploads", str(PAGE_MAX)), "max-uploads"), PAGE_MAX)
    prefix, delimiter = request.param("prefix"), request.param("delimiter")
    marker = (request.param("key-marker"), request.param("upload-id-marker"))
    encoding = request.param("encoding-type")
    if encoding not in ("", "url"):
        raise invalid_argument("encoding-type", encoding)
    encoded = url_encoded if encoding else str
    there = [
        one
        for one in await bucket.backend.uploads.list()
        if one.key.startswith(prefix) and one.key.startswith(bucket.prefix) and _is_past(one, *marker)
    ]
    shown, prefixes, is_truncated = list[Upload](), list[str](), False
    for one in there:
        place = one.key.find(delimiter, len(prefix)) if delimiter else -1
        common = one.key[: place + len(delimiter)] if place >= 0 else ""
        if common and common in prefixes:
            continue
        if len(shown) + len(prefixes) >= limit:
            is_truncated = True
            break
        if common:
            prefixes.append(common)
        else:
            shown.append(one)
    return xml(
        element(
            "ListMultipartUploadsResult",
            element("Bucket", bucket.name),
            element("KeyMarker", encoded(marker[0])),
            element("UploadIdMarker", marker[1]),
            element("NextKeyMarker", encoded(shown[-1].key)) if shown and is_truncated else None,
            element("NextUploadIdMarker", shown[-1].upload_id) if shown and is_truncated else None,
            element("Prefix", encoded(prefix)),
            element("Delimiter", encoded(delimiter)) if delimiter else None,
            element("EncodingType", encoding) if encoding else None,
            element("MaxUploads", limit),
            element("IsTruncated", is_truncated),
            *(
                element(
                    "Upload",
                    element("Key", encoded(one.key)),
                    element("UploadId", one.upload_id),
                    owner_element(bucket.owner_id, "Initiator"),
                    owner_element(bucket.owner_id),
                    element("StorageClass", "STANDARD"),
                    element("Initiated", iso(one.begun_at)),
                    element("ChecksumAlgorithm", one.about.checksum) if one.about.checksum else None,
                )
                for one in shown
            ),
            *(element("CommonPrefixes", element("Prefix", encoded(one))) for one in prefixes),
        )
    )


def _is_past(upload: Upload, key: str, upload_id: str) -> bool:
    if upload.key != key or not upload_id:
        return upload.key > key
    return upload.upload_id > upload_id


def _part(part: Part, algorithm: str) -> Element:
    assert part.modified_at is not None
    return element(
        "Part",
        element("PartNumber", part.number),
        element("LastModified", iso(part.modified_at)),
        element("ETag", quoted(part.etag)),
        element("Size", part.size_bytes),
        element(f"Checksum{algorithm}", part.checksum) if part.checksum else None,
    )
