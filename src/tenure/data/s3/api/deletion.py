"""Many deletions in one request."""

from __future__ import annotations

import xml.etree.ElementTree as Tree

from starlette.responses import Response

from tenure.data.s3.api import conditions
from tenure.data.s3.api.call import Call, xml
from tenure.data.s3.api.lock import check_unlocked
from tenure.data.s3.buckets import Bucket, need
from tenure.data.s3.errors import S3Error, from_tenure
from tenure.data.s3.xml import Element, children, element, parse, text_of
from tenure.errors import TenureError

KEYS_MAX = 1000


async def delete_many(call: Call) -> Response:
    bucket = await call.buckets.find(call.principal, call.request.bucket)
    root = parse(await call.body(), "Delete")
    wanted = list(children(root, "Object"))
    if not 1 <= len(wanted) <= KEYS_MAX:
        raise S3Error("MalformedXML", f"1 to {KEYS_MAX} objects are deleted at once.")
    is_quiet = (text_of(root, "Quiet") or "").lower() == "true"
    rows: list[Element] = []
    for one in wanted:
        key = one.findtext("Key") or ""
        version_id = text_of(one, "VersionId") or None
        try:
            if not key:
                raise S3Error("MalformedXML", "An object has a key.")
            found = await _delete(call, bucket, key, version_id, one)
        except (S3Error, TenureError) as failed:
            error = from_tenure(failed) if isinstance(failed, TenureError) else failed
            version = element("VersionId", version_id) if version_id else None
            told = element("Code", error.code), element("Message", error.message)
            rows.append(element("Error", element("Key", key), version, *told))
            continue
        if not is_quiet:
            rows.append(found)
    return xml(element("DeleteResult", *rows))


async def _delete(call: Call, bucket: Bucket, key: str, version_id: str | None, asked: Tree.Element) -> Element:
    need(call.who, "object:delete", bucket, key)
    condition = conditions.of_deletion(
        text_of(asked, "ETag"), text_of(asked, "Size"), text_of(asked, "LastModifiedTime")
    )
    await check_unlocked(call, bucket, key, version_id)
    deleted = await bucket.backend.delete(key, version_id, condition)
    call.tell_deleted(bucket, key, deleted)
    version = element("VersionId", version_id) if version_id else None
    marker: tuple[Element | None, ...] = ()
    if deleted.is_marker:
        marker = element("DeleteMarker", True), element("DeleteMarkerVersionId", deleted.version_id)
    return element("Deleted", element("Key", key), version, *marker)
