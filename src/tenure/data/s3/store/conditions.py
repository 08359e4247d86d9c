"""Whether a change may happen, by what is there. Pure."""

from __future__ import annotations

from tenure.data.s3.errors import S3Error, no_such_key
from tenure.data.s3.store.base import Condition, Version


def check(condition: Condition, key: str, latest: Version | None) -> None:
    """`latest` is None, or a delete marker, where there is no object. Raises `S3Error`."""
    there = latest if latest is not None and not latest.is_marker else None
    if condition.if_none_match is not None and there is not None and _matches(condition.if_none_match, there):
        raise S3Error("PreconditionFailed", fields={"Condition": "If-None-Match"})
    if condition.if_match is not None:
        if there is None:
            raise no_such_key(key)
        if not _matches(condition.if_match, there):
            raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})
    if there is None:
        return
    if condition.size_bytes is not None and condition.size_bytes != there.size_bytes:
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-if-match-size"})
    if condition.modified_at is not None and condition.modified_at != there.modified_at.replace(microsecond=0):
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-if-match-last-modified-time"})


def _matches(wanted: str, version: Version) -> bool:
    return wanted == "*" or wanted == version.etag
