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


def check_deletion(condition: Condition, latest: Version | None) -> None:
    """As `check`, but what is not there may be deleted in any case, and a delete marker is something. Raises `S3Error`."""
    if latest is None:
        return
    size, modified_at = condition.size_bytes, condition.modified_at
    if condition.if_match is not None and not _matches(condition.if_match, latest):
        raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})
    if size is not None and (size != latest.size_bytes or latest.is_marker):
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-if-match-size"})
    if modified_at is not None and modified_at != latest.modified_at.replace(microsecond=0):
        raise S3Error("PreconditionFailed", fields={"Condition": "x-amz-if-match-last-modified-time"})


def _matches(wanted: str, version: Version) -> bool:
    return wanted == "*" or wanted == version.etag
