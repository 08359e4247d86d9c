"""Locks: versions that nobody deletes before a time, or while they are held. They stand in the version itself, and their
default in the bucket's settings.

A retention of mode COMPLIANCE is shortened by nobody; one of GOVERNANCE, and a hold, by whoever may configure the bucket.
Deleting the office or the shared bucket as a whole is the owner's, and asks no lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from tenure.data.s3.api.call import Call, empty, iso, xml
from tenure.data.s3.buckets import CONFIGURE, Bucket, need
from tenure.data.s3.errors import S3Error
from tenure.data.s3.store.base import Version
from tenure.data.s3.xml import Element, element, parse, text_of

MODES = ("GOVERNANCE", "COMPLIANCE")
_PREFIX = "x-amz-object-lock-"


def lock_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Of the headers of a put. Raises `S3Error`."""
    mode, until = headers.get(_PREFIX + "mode", ""), headers.get(_PREFIX + "retain-until-date", "")
    hold = headers.get(_PREFIX + "legal-hold", "")
    if bool(mode) != bool(until):
        raise S3Error("InvalidArgument", "A retention has a mode and a time.")
    found: dict[str, str] = {}
    if mode:
        found |= {"mode": _mode(mode), "until": iso(_time(until))}
    if hold:
        found["hold"] = _hold(hold)
    return found


async def default_lock(bucket: Bucket) -> dict[str, str]:
    lock: Mapping[str, Any] = (await bucket.backend.settings()).values.get("lock") or {}
    rule: Mapping[str, Any] | None = lock.get("rule")
    if not rule:
        return {}
    until = datetime.now(UTC) + timedelta(days=rule["days"])
    return {"mode": rule["mode"], "until": iso(until)}


def lock_headers(version: Version) -> dict[str, str]:
    lock: Mapping[str, str] = version.about.extra.get("lock") or {}
    found = {_PREFIX + "mode": lock["mode"], _PREFIX + "retain-until-date": lock["until"]} if "mode" in lock else {}
    return found | ({_PREFIX + "legal-hold": lock["hold"]} if "hold" in lock else {})


async def check_unlocked(call: Call, bucket: Bucket, key: str, version_id: str | None) -> None:
    """Whether the version may be deleted. Raises `S3Error` AccessDenied."""
    if version_id is None or not (await bucket.backend.settings()).values.get("lock"):
        return  # a delete marker deletes nothing
    try:
        found = await bucket.backend.open(key, version_id)
    except S3Error as error:
        if error.status == 404:
            return
        raise
    found.close()
    lock: Mapping[str, str] = found.version.about.extra.get("lock") or {}
    if lock.get("hold") == "ON":
        raise S3Error("AccessDenied", "The version is held.")
    if lock.get("until") and _time(lock["until"]) > datetime.now(UTC) and not _bypasses(call, bucket, lock):
        raise S3Error("AccessDenied", "The version is locked until " + lock["until"])


async def get_configuration(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    lock = (await bucket.backend.settings()).values.get("lock")
    if not lock:
        raise S3Error("ObjectLockConfigurationNotFoundError")
    rule = lock.get("rule")
    retention: Element | None = None
    if rule:
        years = rule.get("years")
        length = element("Years", years) if years else element("Days", rule["days"])
        retention = element("Rule", element("DefaultRetention", element("Mode", rule["mode"]), length))
    enabled = element("ObjectLockEnabled", "Enabled")
    return xml(element("ObjectLockConfiguration", enabled, retention))


async def put_configuration(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    settings = await bucket.backend.settings()
    if settings.versioning != "Enabled":
        raise S3Error("InvalidBucketState", "Locks need versions: enable versioning first.")
    root = parse(await call.body(), "ObjectLockConfiguration")
    if text_of(root, "ObjectLockEnabled") != "Enabled":
        raise S3Error("MalformedXML")
    lock: dict[str, Any] = {}
    rule = root.find("Rule")
    if rule is not None:
        retention = rule.find("DefaultRetention")
        if retention is None:
            raise S3Error("MalformedXML")
        mode, days, years = (text_of(retention, name) for name in ("Mode", "Days", "Years"))
        if mode not in MODES or (days is None) == (years is None):
            raise S3Error("MalformedXML")
        number = days if days is not None else years or ""
        if not number.isdecimal() or not 1 <= int(number[:10]) <= 36500:
            raise S3Error("InvalidRetentionPeriod", "A default retention is 1 day or more.", 400)
        lock["rule"] = {"mode": mode, "days": int(number) * (1 if days is not None else 365)}
        if years is not None:
            lock["rule"]["years"] = int(number)
    await bucket.backend.change("lock", lock | {"enabled": True})
    return empty()


async def get_retention(call: Call) -> Response:
    lock = await _lock(call, "object:read")
    if "mode" not in lock:
        raise S3Error("NoSuchObjectLockConfiguration")
    return xml(element("Retention", element("Mode", lock["mode"]), element("RetainUntilDate", lock["until"])))


async def put_retention(call: Call) -> Response:
    root = parse(await call.body(), "Retention")
    mode, until = text_of(root, "Mode"), text_of(root, "RetainUntilDate")
    bucket = await _locking(call, "object:write")
    lock = await _lock(call, "object:write")
    if mode not in MODES or not until:
        raise S3Error("MalformedXML")
    wanted = {"mode": mode, "until": iso(_time(until))}
    if lock.get("until") and _time(lock["until"]) > datetime.now(UTC):
        weaker = _time(until) < _time(lock["until"]) or (lock["mode"] == "COMPLIANCE" and mode != "COMPLIANCE")
        changes = weaker or lock["mode"] != mode
        if changes and (lock["mode"] == "COMPLIANCE" or not _bypasses(call, bucket, lock)):
            raise S3Error("AccessDenied", "The version is locked until " + lock["until"])
    await _change(call, bucket, dict(lock) | wanted)
    return empty()


async def get_hold(call: Call) -> Response:
    lock = await _lock(call, "object:read")
    if "hold" not in lock:
        raise S3Error("NoSuchObjectLockConfiguration")
    return xml(element("LegalHold", element("Status", lock["hold"])))


async def put_hold(call: Call) -> Response:
    root = parse(await call.body(), "LegalHold")
    bucket = await _locking(call, CONFIGURE)
    hold = _hold(text_of(root, "Status") or "", "MalformedXML")
    await _change(call, bucket, dict(await _lock(call, "object:write")) | {"hold": hold})
    return empty()


async def _locking(call: Call, action: str) -> Bucket:
    bucket = await call.bucket(action)
    if not (await bucket.backend.settings()).values.get("lock"):
        raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
    return bucket


async def _lock(call: Call, action: str) -> Mapping[str, str]:
    bucket = await _locking(call, action)
    found = await bucket.backend.open(call.request.key, call.request.param("versionId") or None)
    found.close()
    return found.version.about.extra.get("lock") or {}


async def _change(call: Call, bucket: Bucket, lock: Mapping[str, str]) -> None:
    await bucket.backend.set_extra(call.request.key, "lock", lock, call.request.param("versionId") or None)


def _bypasses(call: Call, bucket: Bucket, lock: Mapping[str, str]) -> bool:
    if lock.get("mode") != "GOVERNANCE" or call.request.header("x-amz-bypass-governance-retention").lower() != "true":
        return False
    need(call.who, CONFIGURE, bucket)
    return True


def _mode(text: str) -> str:
    if text not in MODES:
        raise S3Error("InvalidArgument", "Unknown wormMode directive.")
    return text


def _hold(text: str, code: str = "InvalidArgument") -> str:
    if text not in ("ON", "OFF"):
        raise S3Error(code, "A legal hold is ON or OFF.")
    return text


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise S3Error("InvalidArgument", "A retention's time is like 2026-01-31T12:00:00Z.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
