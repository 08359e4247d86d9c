"""A form of a web page uploads what its policy allows, by the key that signed it, until its time, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.auth import S3SigV4PostAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from s3_requests import KEY_ID, SECRET
from tenure.data.s3.errors import S3Error
from tenure.data.s3.post_policy import Allowed, check_policy, form_claim, verify_form

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATER = "2026-05-01T13:00:00Z"
FIELDS = {"key": "in/a.txt", "acl": "private", "content-type": "text/plain"}
CONDITIONS: list[Any] = [
    {"bucket": "b"},
    ["starts-with", "$key", "in/"],
    {"acl": "private"},
    ["eq", "$Content-Type", "text/plain"],
    ["content-length-range", 1, 1024],
]


def encoded(conditions: Any = CONDITIONS, expiration: Any = LATER, **more: Any) -> str:
    document = {"expiration": expiration, "conditions": conditions, **more}
    return base64.b64encode(json.dumps(document).encode()).decode()


def check(
    fields: dict[str, str] = FIELDS, policy: str | None = None, bucket: str = "b", now: datetime = NOW
) -> Allowed:
    policy = encoded() if policy is None else policy
    return check_policy(policy, {**fields, "policy": policy}, bucket, now)


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(S3Error) as caught:
        check(*args, **kwargs)
    return caught.value.code


def test_a_form_that_fits_its_policy_is_allowed() -> None:
    assert check() == Allowed(1, 1024)
    assert check({name.upper(): value for name, value in FIELDS.items()}) == Allowed(1, 1024)
    assert check(FIELDS | {"x-ignore-me": "1", "file": "x"}) == Allowed(1, 1024)
    assert check({"key": "any"}, encoded([{"bucket": "b"}, ["starts-with", "$key", ""]])) == Allowed(0, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "out/a.txt"},
        {"acl": "public-read"},
        {"content-type": "text/plain; charset=x"},
        {"x-amz-meta-extra": "1"},
        {"success_action_status": "201"},
    ],
)
def test_a_field_that_is_other_than_allowed_is_refused(changed: dict[str, str]) -> None:
    assert refusal(FIELDS | changed) == "AccessDenied"


@pytest.mark.parametrize("missing", FIELDS)
def test_a_field_that_the_policy_wants_has_to_be_there(missing: str) -> None:
    assert refusal({name: value for name, value in FIELDS.items() if name != missing}) == "AccessDenied"


def test_a_policy_is_for_its_bucket_and_its_time() -> None:
    assert refusal(bucket="other") == "AccessDenied"
    assert refusal(policy=encoded(CONDITIONS[1:])) == "AccessDenied"
    assert refusal(now=NOW + timedelta(hours=1)) == "AccessDenied"
    check(now=NOW + timedelta(minutes=59))


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "no base64!",
        base64.b64encode(b"no json").decode(),
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b'{"EXPIRATION": "2026-05-01T13:00:00Z", "conditions": []}').decode(),
        base64.b64encode(b"[" * 5000).decode(),
        encoded(expiration="tomorrow"),
        encoded(expiration=None),
        encoded([]),
        encoded({}),
        encoded(None),
        encoded([{}]),
        encoded([["eq", "$key"]]),
        encoded([["like", "$key", "a"]]),
        encoded([["eq", "key", "a"]]),
        encoded([["eq", "$key", 5]]),
        encoded([{"acl": None}]),
        encoded([["content-length-range", 0]]),
        encoded([["content-length-range", -1, 5]]),
        encoded([["content-length-range", "a", 5]]),
        encoded([["content-length-range", True, 5]]),
        encoded([{"bucket": "b"}] * 101),
        encoded([{"bucket": "b" * 20000}]),
    ],
)
def test_a_policy_that_is_none_is_told_so(policy: str) -> None:
    assert refusal(policy=policy) == "InvalidPolicyDocument"


def test_several_ranges_of_length_all_hold() -> None:
    more = [*CONDITIONS, ["content-length-range", "5", "100"], ["content-length-range", 0, 2000]]
    assert check(policy=encoded(more)) == Allowed(5, 100)


# --- who signed it -----------------------------------------------------------------------------------
def posted(token: str | None = None) -> dict[str, str]:
    """The fields of a form as botocore signs it."""
    request = AWSRequest(method="POST", url="http://s3:9000/b")
    fields: dict[str, str] = dict(FIELDS)
    request.context["s3-presign-post-fields"] = fields
    request.context["s3-presign-post-policy"] = {"expiration": LATER, "conditions": list(CONDITIONS)}
    S3SigV4PostAuth(Credentials(KEY_ID, SECRET, token), "s3", "us-east-1").add_auth(request)
    return {name.lower(): value for name, value in fields.items()}


@pytest.mark.parametrize("token", [None, "a-token"])
def test_a_form_that_botocore_signs_is_accepted(token: str | None) -> None:
    fields = posted(token)
    claim = form_claim(fields)
    assert claim is not None
    assert (claim.key_id, claim.token, claim.old) == (KEY_ID, token or "", False)
    verify_form(claim, SECRET)
    assert check_policy(claim.policy, fields, "b", NOW) == Allowed(1, 1024)


def verify_fields(fields: dict[str, str]) -> None:
    claim = form_claim(fields)
    assert claim is not None
    verify_form(claim, SECRET if claim.key_id == KEY_ID else "the secret of somebody else")


@given(st.sampled_from(["policy", "x-amz-signature", "x-amz-credential"]), st.data())
def test_no_character_of_what_is_signed_can_be_another(field: str, data: st.DataObject) -> None:
    fields = posted()
    at = data.draw(st.integers(0, len(fields[field]) - 1))
    char = data.draw(st.sampled_from("aA0/+=").filter(lambda char: char != fields[field][at]))
    fields[field] = fields[field][:at] + char + fields[field][at + 1 :]
    with pytest.raises(S3Error):
        verify_fields(fields)


def test_a_form_signed_the_old_way_is_accepted_with_its_secret_only() -> None:
    policy = encoded()
    signature = base64.b64encode(hmac.new(SECRET.encode(), policy.encode(), hashlib.sha1).digest()).decode()
    claim = form_claim(FIELDS | {"policy": policy, "signature": signature, "awsaccesskeyid": KEY_ID})
    assert claim is not None
    verify_form(claim, SECRET)
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        verify_form(claim, "other")


def test_a_form_without_policy_and_signature_is_nobodys() -> None:
    assert form_claim(FIELDS) is None


@pytest.mark.parametrize("missing", ["policy", "x-amz-signature", "x-amz-credential", "x-amz-algorithm", "x-amz-date"])
def test_half_a_signature_is_none(missing: str) -> None:
    with pytest.raises(S3Error):
        form_claim({name: value for name, value in posted().items() if name != missing})


def test_a_form_is_signed_in_one_way() -> None:
    with pytest.raises(S3Error, match="InvalidArgument"):
        form_claim(posted() | {"awsaccesskeyid": KEY_ID, "signature": "x"})
    with pytest.raises(S3Error, match="InvalidRequest"):
        form_claim(posted() | {"x-amz-algorithm": "AWS4-ECDSA-P256-SHA256"})
