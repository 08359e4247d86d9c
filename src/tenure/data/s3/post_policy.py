"""Uploads by a form of a web page: the policy in it says what may be uploaded, and who signed it. Pure.

Every field of the form has to be allowed by a condition of the policy, so that whoever fills in the form adds nothing else.
Names of fields count without case.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from tenure.data.s3.errors import S3Error
from tenure.data.s3.signature import ALGORITHM, SERVICE, TERMINATOR, signing_key

POLICY_CHARS_MAX = 20 * 1024
CONDITIONS_MAX = 100
_FREE = frozenset({"policy", "file", "x-amz-signature", "signature", "awsaccesskeyid"})
"""Fields that need no condition."""
_DAY = re.compile(r"\d{8}\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class FormClaim:
    """Who a form says that it is from. Not believed before `verify_form`."""

    key_id: str
    policy: str
    """As it was signed: base64."""
    signature: str
    day: str = ""
    region: str = ""
    token: str = ""
    old: bool = False
    """Signed as before Version 4: only the policy, by HMAC-SHA1. Forms of web pages still are."""


@dataclass(frozen=True)
class Allowed:
    """What the file of a form may be."""

    bytes_min: int = 0
    bytes_max: int | None = None


def form_claim(fields: Mapping[str, str]) -> FormClaim | None:
    """Of a form's `fields`, named in lower case; None for one without policy and signature. Raises `S3Error`."""
    policy = fields.get("policy", "")
    names = ("x-amz-signature", "x-amz-credential", "x-amz-algorithm", "x-amz-date")
    if "awsaccesskeyid" in fields or "signature" in fields:
        if any(name in fields for name in names):
            raise S3Error("InvalidArgument", "The form is signed in two ways.")
        key_id, signature = fields.get("awsaccesskeyid", ""), fields.get("signature", "")
        if not (policy and key_id and signature):
            raise S3Error("InvalidArgument", "A signed form has the fields AWSAccessKeyId, policy and signature.")
        return FormClaim(key_id, policy, signature, token=fields.get("x-amz-security-token", ""), old=True)
    if not policy and not any(name in fields for name in names):
        return None
    if not policy or not all(fields.get(name) for name in names):
        raise S3Error("InvalidArgument", f"A signed form has the fields policy, {', '.join(names)}.")
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise S3Error("InvalidRequest", "Only AWS4-HMAC-SHA256 is supported: sign the form with Signature Version 4.")
    parts = fields["x-amz-credential"].split("/")
    if len(parts) != 5 or parts[3:] != [SERVICE, TERMINATOR] or not _DAY.match(parts[1]):
        raise S3Error("InvalidArgument", "x-amz-credential is KEY/YYYYMMDD/REGION/s3/aws4_request.")
    if not _HEX64.match(fields["x-amz-signature"]) or not fields["x-amz-date"].startswith(parts[1]):
        raise S3Error("InvalidArgument", "x-amz-signature is 64 hex digits, and x-amz-date of the credential's day.")
    token = fields.get("x-amz-security-token", "")
    return FormClaim(parts[0], policy, fields["x-amz-signature"], parts[1], parts[2], token)


def verify_form(claim: FormClaim, secret: str) -> None:
    """Returns when the policy was signed with `secret`. Raises `S3Error`."""
    if claim.old:
        digest = hmac.new(secret.encode(), claim.policy.encode(), hashlib.sha1).digest()
        expected = base64.b64encode(digest).decode()
    else:
        key = signing_key(secret, claim.day, claim.region)
        expected = hmac.new(key, claim.policy.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), claim.signature.encode()):
        raise S3Error("SignatureDoesNotMatch", fields={"AWSAccessKeyId": claim.key_id})


def check_policy(policy: str, fields: Mapping[str, str], bucket: str, now: datetime) -> Allowed:
    """What the policy (base64) lets this form upload. `fields` are named in lower case, and `key` is final: its `${filename}` is
    replaced. Raises `S3Error` when the policy is none, has expired, or does not allow the form."""
    document = _document(policy)
    if now >= _expiration(document):
        raise S3Error("AccessDenied", "Invalid according to Policy: Policy expired.")
    given = {**{name.lower(): value for name, value in fields.items()}, "bucket": bucket}
    named: set[str] = set()
    allowed = Allowed()
    for condition in _conditions(document):
        operator, name, value = condition
        if operator == "content-length-range":
            low, high = _length(name), _length(value)
            at_most = high if allowed.bytes_max is None else min(high, allowed.bytes_max)
            allowed = Allowed(max(low, allowed.bytes_min), at_most)
            continue
        named.add(name)
        actual = given.get(name)
        holds = actual is not None and (actual.startswith(value) if operator == "starts-with" else actual == value)
        if not holds:
            raise S3Error("AccessDenied", f"Invalid according to Policy: Policy Condition failed: {list(condition)!r}")
    extra = [name for name in given if name not in named and name not in _FREE and not name.startswith("x-ignore-")]
    if extra:
        raise S3Error("AccessDenied", f"Invalid according to Policy: Extra input fields: {extra[0][:100]}")
    return allowed


def _document(policy: str) -> dict[str, Any]:
    if len(policy) > POLICY_CHARS_MAX:
        raise S3Error("InvalidPolicyDocument", f"A policy has at most {POLICY_CHARS_MAX} characters.")
    try:
        found: object = json.loads(base64.b64decode(policy, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise S3Error("InvalidPolicyDocument", "The policy is JSON in base64.") from None
    if not isinstance(found, dict):
        raise S3Error("InvalidPolicyDocument", "The policy is a JSON object.")
    return cast("dict[str, Any]", found)


def _expiration(document: dict[str, Any]) -> datetime:
    text = document.get("expiration")
    for pattern in ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ"):
        try:
            return datetime.strptime(str(text), pattern).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise S3Error("InvalidPolicyDocument", "The policy has an expiration like 2026-01-31T12:00:00Z.")


def _conditions(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(operator, field in lower case, value); of a content-length-range (operator, least, most)."""
    listed: object = document.get("conditions")
    if not isinstance(listed, list) or not listed or len(cast("list[object]", listed)) > CONDITIONS_MAX:
        raise S3Error("InvalidPolicyDocument", f"The policy has a list of 1 to {CONDITIONS_MAX} conditions.")
    found: list[tuple[str, str, str]] = []
    for one in cast("list[object]", listed):
        if isinstance(one, dict) and one:
            pairs = cast("dict[str, object]", one)
            found.extend(("eq", name.lower(), _text(value)) for name, value in pairs.items())
        elif isinstance(one, list) and len(cast("list[object]", one)) == 3:
            operator, name, value = cast("list[object]", one)
            found.append(_condition(_text(operator).lower(), name, value))
        else:
            raise S3Error("InvalidPolicyDocument", "A condition is an object or a list of three.")
    return found


def _condition(operator: str, name: object, value: object) -> tuple[str, str, str]:
    if operator == "content-length-range":
        return operator, str(_length(name)), str(_length(value))
    if operator not in ("eq", "starts-with") or not _text(name).startswith("$"):
        raise S3Error("InvalidPolicyDocument", 'A condition is ["eq" or "starts-with", "$field", "value"].')
    return operator, _text(name)[1:].lower(), _text(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise S3Error("InvalidPolicyDocument", "Names and values of conditions are text.")
    return value


def _length(value: object) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise S3Error("InvalidPolicyDocument", "content-length-range has two numbers of bytes.")
    return int(text)
