"""Conditional requests: the headers of RFC 9110 on reads and copies, and conditions of changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tenure.data.s3.api.call import unquoted
from tenure.data.s3.errors import S3Error
from tenure.data.s3.store.base import Condition, Version

COPY = "x-amz-copy-source-"


def check_read(headers: Mapping[str, str], version: Version, answer: Mapping[str, str]) -> None:
    """Raises `S3Error` PreconditionFailed, or NotModified, which is answered with the headers of `answer`."""
    failed = _failed(headers, version)
    if failed == "":
        return
    if failed in ("if-none-match", "if-modified-since"):
        kept = {name: answer[name] for name in ("etag", "last-modified", "cache-control", "expires") if name in answer}
        raise S3Error("NotModified", "Not modified.", 304, headers=kept)
    raise S3Error("PreconditionFailed", fields={"Condition": failed})


def check_copy(headers: Mapping[str, str], source: Version) -> None:
    """Raises `S3Error` PreconditionFailed."""
    named = {name[len(COPY) :]: value for name, value in headers.items() if name.startswith(COPY + "if-")}
    if failed := _failed(named, source):
        raise S3Error("PreconditionFailed", fields={"Condition": COPY + failed})


def _failed(headers: Mapping[str, str], version: Version) -> str:
    """The first condition that does not hold; empty when all do."""
    modified_at = version.modified_at.replace(microsecond=0)
    if "if-match" in headers:
        if not _matches(headers["if-match"], version):
            return "if-match"
    elif (since := _date(headers.get("if-unmodified-since"))) and modified_at > since:
        return "if-unmodified-since"
    if "if-none-match" in headers:
        if _matches(headers["if-none-match"], version):
            return "if-none-match"
    elif (since := _date(headers.get("if-modified-since"))) and modified_at <= since:
        return "if-modified-since"
    return ""


def of_change(headers: Mapping[str, str]) -> Condition:
    """Of a put, a completion, a copy's target."""
    if_match, if_none_match = headers.get("if-match"), headers.get("if-none-match")
    return Condition(
        if_match=None if if_match is None else unquoted(if_match),
        if_none_match=None if if_none_match is None else unquoted(if_none_match),
    )


def of_deletion(etag: str | None, size: str | None, modified_at: str | None) -> Condition:
    """Raises `S3Error`."""
    moment = _date(modified_at) or _iso(modified_at)
    if modified_at and moment is None:
        raise S3Error("InvalidArgument", "The time of a condition is not valid.")
    if size and not (size.isascii() and size.isdecimal() and len(size) < 20):
        raise S3Error("InvalidArgument", "The size of a condition is a number.")
    return Condition(
        if_match=unquoted(etag) if etag else None, size_bytes=int(size) if size else None, modified_at=moment
    )


def _matches(header: str, version: Version) -> bool:
    return any(unquoted(one) in ("*", version.etag) for one in header.split(","))


def _date(text: str | None) -> datetime | None:
    """None for what is no date, which is as if it had not been said."""
    try:
        found = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _iso(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).replace(microsecond=0)
