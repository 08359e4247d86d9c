"""Lists: of buckets, of objects (both versions of the call), of versions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from starlette.responses import Response

from tenure.data.s3.api.call import Call, int_of, iso, owner_element, quoted, url_encoded, xml
from tenure.data.s3.buckets import Bucket
from tenure.data.s3.errors import S3Error, invalid_argument
from tenure.data.s3.store.base import PAGE_MAX, Page, Version, Wanted
from tenure.data.s3.xml import Element, element

BUCKETS_MAX = 10_000


async def list_buckets(call: Call) -> Response:
    principal = call.principal
    if not call.who.allows("object:list", ""):
        raise S3Error("AccessDenied", "The access key is not for lists of buckets.")
    request = call.request
    limit = int_of(request.param("max-buckets", str(BUCKETS_MAX)), "max-buckets", 1, BUCKETS_MAX)
    prefix, after = request.param("prefix"), _token(request.param("continuation-token"))
    found = [
        one
        for one in await call.buckets.list(principal)
        if one.name.startswith(prefix) and one.name > after and call.who.allows("object:list", one.name)
    ]
    shown = found[:limit]
    more = len(found) > limit
    rows = [element("Bucket", element("Name", one.name), element("CreationDate", iso(one.created_at))) for one in shown]
    return xml(
        element(
            "ListAllMyBucketsResult",
            owner_element(str(principal)),
            element("Buckets", *rows),
            element("Prefix", prefix) if prefix else None,
            element("ContinuationToken", _as_token(shown[-1].name)) if more else None,
        )
    )


async def list_objects(call: Call) -> Response:
    """The first version of the call: pages begin past a marker."""
    bucket = await call.bucket("object:list", key=False)
    listing = _Listing(call, bucket)
    marker = call.request.param("marker")
    page = await listing.page(after=marker)
    return xml(
        element(
            "ListBucketResult",
            element("Name", bucket.name),
            element("Prefix", listing.prefix),  # as it came: clients decode everything but this
            element("Marker", listing.encoded(marker)),
            element("NextMarker", listing.encoded(page.next_after)) if page.is_truncated else None,
            element("MaxKeys", listing.limit),
            *listing.common(page),
            *(listing.content(version, owner=True) for version in page.versions),
            *listing.prefixes(page),
        )
    )


async def list_objects_v2(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    listing, request = _Listing(call, bucket), call.request
    token, start_after = request.param("continuation-token"), request.param("start-after")
    page = await listing.page(after=_token(token) if token else start_after)
    with_owner = request.param("fetch-owner").lower() == "true"
    return xml(
        element(
            "ListBucketResult",
            element("Name", bucket.name),
            element("Prefix", listing.encoded(listing.prefix)),
            element("MaxKeys", listing.limit),
            element("KeyCount", len(page.versions) + len(page.prefixes)),
            element("StartAfter", listing.encoded(start_after)) if request.has("start-after") else None,
            element("ContinuationToken", token) if request.has("continuation-token") else None,
            element("NextContinuationToken", _as_token(page.next_after)) if page.is_truncated else None,
            *listing.common(page),
            *(listing.content(version, owner=with_owner) for version in page.versions),
            *listing.prefixes(page),
        )
    )


async def list_versions(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    listing, request = _Listing(call, bucket), call.request
    key, version_id = request.param("key-marker"), request.param("version-id-marker")
    if version_id and not key:
        raise invalid_argument("version-id-marker", version_id, "A version-id marker needs a key marker.")
    page = await listing.page(after=key, after_version=version_id, versions=True)
    return xml(
        element(
            "ListVersionsResult",
            element("Name", bucket.name),
            element("Prefix", listing.encoded(listing.prefix)),
            element("KeyMarker", listing.encoded(key)),
            element("VersionIdMarker", version_id),
            element("NextKeyMarker", listing.encoded(page.next_after)) if page.is_truncated else None,
            element("NextVersionIdMarker", page.next_version) if page.is_truncated and page.next_version else None,
            element("MaxKeys", listing.limit),
            *listing.common(page),
            *(listing.version(version) for version in page.versions),
            *listing.prefixes(page),
        )
    )


class _Listing:
    """What the three lists have in common."""

    def __init__(self, call: Call, bucket: Bucket) -> None:
        request = call.request
        self._bucket = bucket
        self.prefix, self.delimiter = request.param("prefix"), request.param("delimiter")
        encoding = request.param("encoding-type")
        if encoding not in ("", "url"):
            raise invalid_argument("encoding-type", encoding, "The encoding type is url, or none.")
        self.encoding = encoding
        self.encoded: Callable[[str], str] = url_encoded if encoding else str
        self.limit = int_of(request.param("max-keys", "") or str(PAGE_MAX), "max-keys")

    async def page(self, *, after: str, after_version: str = "", versions: bool = False) -> Page:
        wanted = Wanted(
            self.prefix,
            self.delimiter,
            after,
            after_version,
            min(self.limit, PAGE_MAX),
            versions,
            self._bucket.prefix,
        )
        return await self._bucket.backend.page(wanted)

    def common(self, page: Page) -> list[Element]:
        found = [element("IsTruncated", page.is_truncated)]
        if self.delimiter:
            found.append(element("Delimiter", self.encoded(self.delimiter)))
        if self.encoding:
            found.append(element("EncodingType", self.encoding))
        return found

    def prefixes(self, page: Page) -> list[Element]:
        return [element("CommonPrefixes", element("Prefix", self.encoded(prefix))) for prefix in page.prefixes]

    def content(self, version: Version, *, owner: bool) -> Element:
        return element("Contents", *self._facts(version), owner_element(self._bucket.owner_id) if owner else None)

    def version(self, version: Version) -> Element:
        ids = (element("VersionId", version.version_id), element("IsLatest", version.is_latest))
        owner = owner_element(self._bucket.owner_id)
        if version.is_marker:
            key, modified = element("Key", self.encoded(version.key)), element("LastModified", iso(version.modified_at))
            return element("DeleteMarker", key, *ids, modified, owner)
        return element("Version", *self._facts(version), *ids, owner)

    def _facts(self, version: Version) -> list[Element | None]:
        return [
            element("Key", self.encoded(version.key)),
            element("LastModified", iso(version.modified_at)),
            element("ETag", quoted(version.etag)),
            element("ChecksumAlgorithm", version.about.checksum) if version.checksum else None,
            element("ChecksumType", version.about.checksum_type or "FULL_OBJECT") if version.checksum else None,
            element("Size", version.size_bytes),
            element("StorageClass", "STANDARD"),
        ]


def _as_token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _token(text: str) -> str:
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise invalid_argument("continuation-token", text, "The continuation token provided is incorrect") from None
