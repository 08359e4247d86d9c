"""What botocore signs is accepted, whatever is in it; whatever is changed of it afterwards is not."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_requests import HOST, KEY_ID, SECRET, Sent, now, signed
from tenure.data.s3.errors import S3Error
from tenure.data.s3.signature import (
    EXPIRES_S_MAX,
    Claim,
    Keys,
    canonical_path,
    canonical_query,
    check_time,
    claim_of,
    presign,
    verify,
)

BASE = f"http://{HOST}"
METHODS = st.sampled_from(["GET", "PUT", "HEAD", "POST", "DELETE"])
KEYS = st.one_of(
    st.sampled_from(
        ["a b/é+=&.txt", "..", "a//b", "%2F", "a%20b", "+", "~-_.", "';:@,!$&()*", "..%2f..", "\U0001f980/", "ü?#"]
    ),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40),
)
PARAMETERS = st.lists(st.tuples(KEYS, st.one_of(st.just(""), KEYS)), max_size=4)
META = st.dictionaries(
    st.sampled_from(["x-amz-meta-a", "x-amz-meta-b", "content-type", "x-amz-acl", "range"]),
    st.text(st.sampled_from("abc xyz,;=/+%ß"[:-1]), max_size=20),
    max_size=3,
)
BODIES = st.binary(max_size=50)


def url_of(key: str, parameters: list[tuple[str, str]]) -> str:
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters)
    return f"{BASE}/bucket/{quote(key, safe='/~')}" + (f"?{query}" if query else "")


def accept(sent: Sent, secret: str = SECRET, at: datetime | None = None, key_id: str = KEY_ID) -> Claim:
    request = sent.seen()
    claim = claim_of(request)
    assert claim is not None
    check_time(claim, at or now())
    verify(request, claim, secret if claim.key_id == key_id else "the secret of somebody else")
    return claim


def refusal(sent: Sent, secret: str = SECRET, at: datetime | None = None) -> str:
    with pytest.raises(S3Error) as caught:
        accept(sent, secret, at)
    return caught.value.code


# --- what botocore signs ---------------------------------------------------------------------------
@given(METHODS, KEYS, PARAMETERS, META, BODIES, st.sampled_from([None, "a/token+of=some"]))
def test_what_botocore_signs_in_a_header_is_accepted(
    method: str, key: str, parameters: list[tuple[str, str]], meta: dict[str, str], body: bytes, token: str | None
) -> None:
    claim = accept(signed(method, url_of(key, parameters), headers=meta, body=body, token=token))
    assert (claim.key_id, claim.token) == (KEY_ID, token or "")
    assert claim.expires_s is None


@given(METHODS, KEYS, PARAMETERS, st.integers(1, EXPIRES_S_MAX), st.sampled_from([None, "a/token+of=some"]))
def test_what_botocore_presigns_is_accepted(
    method: str, key: str, parameters: list[tuple[str, str]], expires_s: int, token: str | None
) -> None:
    claim = accept(signed(method, url_of(key, parameters), expires_s=expires_s, token=token))
    assert (claim.key_id, claim.expires_s, claim.token) == (KEY_ID, expires_s, token or "")


@given(METHODS, KEYS, st.integers(1, EXPIRES_S_MAX), st.sampled_from(["", "a/token+of=some"]))
def test_what_we_presign_is_what_botocore_presigns(method: str, key: str, expires_s: int, token: str) -> None:
    theirs = signed(method, url_of(key, []), expires_s=expires_s, token=token or None)
    at = datetime.strptime(dict(theirs.seen().query)["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    keys = Keys(KEY_ID, SECRET, token)
    ours = presign(method, BASE, ["bucket", key], keys, now=at, expires_s=expires_s, region="us-east-1")
    path, _, query = ours.removeprefix(BASE).partition("?")
    assert path.encode() == theirs.path
    assert sorted(query.encode().split(b"&")) == sorted(theirs.query.split(b"&"))


def test_a_date_header_stands_for_x_amz_date() -> None:
    sent = signed("GET", f"{BASE}/bucket/key", headers={"Date": "whatever, botocore writes it anew"})
    assert b"x-amz-date" not in dict(sent.headers)
    accept(sent)


def test_equal_headers_and_white_space_are_folded_as_signed() -> None:
    sent = signed("PUT", f"{BASE}/bucket/key", headers={"x-amz-meta-a": "one  two,three"})
    accept(sent.header("x-amz-meta-a", None).also("x-amz-meta-a", "  one two ").also("x-amz-meta-a", "three"))
    assert refusal(sent.header("x-amz-meta-a", None).also("x-amz-meta-a", "three").also("x-amz-meta-a", "one two"))


def test_a_path_has_one_reading() -> None:
    assert canonical_path(b"/b/a%20b") == canonical_path(b"/b/a b") == b"/b/a%20b"
    assert canonical_path(b"/b/%2520") == b"/b/%2520" != canonical_path(b"/b/%20")
    assert canonical_path(b"/b/../x//y/./") == b"/b/../x//y/./"
    assert canonical_path(b"/b/%c3%a9%7e") == b"/b/%C3%A9~"
    assert canonical_query(b"b=2&a=&a&c=x+y&b=1") == b"a=&a=&b=1&b=2&c=x%20y"
    assert canonical_query(b"acl") == b"acl="
    for raw in (b"/b/%", b"/b/%4", b"/b/%zz"):
        with pytest.raises(S3Error, match="InvalidURI"):
            canonical_path(raw)


# --- whatever is changed ---------------------------------------------------------------------------
HEADERS = {"x-amz-meta-a": "value", "content-type": "text/plain"}


def in_header() -> Sent:
    return signed("PUT", f"{BASE}/bucket/a%20key?tagging=&versionId=7", headers=HEADERS, body=b"content", token="token")


def authorization(sent: Sent, old: str, new: str) -> Sent:
    value = sent.get("authorization")
    assert old in value
    return sent.header("authorization", value.replace(old, new))


def shifted(sent: Sent, by: timedelta) -> Sent:
    at = datetime.strptime(sent.get("x-amz-date"), "%Y%m%dT%H%M%SZ") + by
    return sent.header("x-amz-date", f"{at:%Y%m%dT%H%M%SZ}")


MUTATIONS = {
    "method": lambda sent: dataclasses.replace(sent, method="DELETE"),
    "path": lambda sent: dataclasses.replace(sent, path=sent.path + b"2"),
    "bucket": lambda sent: dataclasses.replace(sent, path=sent.path.replace(b"bucket", b"bucket2")),
    "slash": lambda sent: dataclasses.replace(sent, path=sent.path.replace(b"/a", b"//a")),
    "dots": lambda sent: dataclasses.replace(sent, path=sent.path.replace(b"/a", b"/./a")),
    "double encoding": lambda sent: dataclasses.replace(sent, path=sent.path.replace(b"%20", b"%2520")),
    "parameter added": lambda sent: dataclasses.replace(sent, query=sent.query + b"&acl="),
    "parameter dropped": lambda sent: dataclasses.replace(sent, query=sent.query.replace(b"&versionId=7", b"")),
    "parameter changed": lambda sent: dataclasses.replace(sent, query=sent.query.replace(b"7", b"8")),
    "parameter twice": lambda sent: dataclasses.replace(sent, query=sent.query + b"&versionId=7"),
    "signed header changed": lambda sent: sent.header("x-amz-meta-a", "other"),
    "signed header dropped": lambda sent: sent.header("x-amz-meta-a", None),
    "signed header twice": lambda sent: sent.also("x-amz-meta-a", "value"),
    "signed content type": lambda sent: sent.header("content-type", "text/html"),
    "amz header added": lambda sent: sent.also("x-amz-copy-source", "/other/secret"),
    "host": lambda sent: sent.header("host", "elsewhere:9000"),
    "digest of the body": lambda sent: sent.header("x-amz-content-sha256", hashlib.sha256(b"other").hexdigest()),
    "unsigned payload": lambda sent: sent.header("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
    "token": lambda sent: sent.header("x-amz-security-token", "other"),
    "token dropped": lambda sent: sent.header("x-amz-security-token", None),
    "second": lambda sent: shifted(sent, timedelta(seconds=1)),
    "day": lambda sent: shifted(sent, timedelta(days=1)),
    "key id": lambda sent: authorization(sent, KEY_ID, KEY_ID[:-1] + "X"),
    "region": lambda sent: authorization(sent, "us-east-1", "eu-west-1"),
    "service": lambda sent: authorization(sent, "/s3/", "/ec2/"),
    "terminator": lambda sent: authorization(sent, "aws4_request", "aws4_reques"),
    "headers not signed": lambda sent: authorization(sent, "x-amz-meta-a;", "").header("x-amz-meta-a", "other"),
    "host not signed": lambda sent: authorization(sent, "host;", ""),
    "order of headers": lambda sent: authorization(sent, "content-type;host", "host;content-type"),
    "signature": lambda sent: sent.header("authorization", flipped(sent.get("authorization"))),
    "signature in capitals": lambda sent: sent.header(
        "authorization", sent.get("authorization")[:-64] + sent.get("authorization")[-64:].upper() + ""
    ),
    "signature cut": lambda sent: sent.header("authorization", sent.get("authorization")[:-1]),
    "two of one kind": lambda sent: sent.header("authorization", sent.get("authorization") + ",Signature=" + "0" * 64),
}


def flipped(value: str) -> str:
    return value[:-1] + ("0" if value[-1] != "0" else "1")


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_single_change_of_a_signed_request_is_refused(mutation: str) -> None:
    sent = in_header()
    accept(sent)
    changed = MUTATIONS[mutation](sent)
    assert changed != sent
    assert refusal(changed) in {
        "SignatureDoesNotMatch",
        "AccessDenied",
        "AuthorizationHeaderMalformed",
        "RequestTimeTooSkewed",
    }


@given(st.data())
def test_no_byte_of_what_is_signed_can_be_another(data: st.DataObject) -> None:
    sent = in_header()
    where = data.draw(st.sampled_from(["path", "query", "authorization"]))
    value = sent.get("authorization").encode() if where == "authorization" else getattr(sent, where)
    at = data.draw(st.integers(1, len(value) - 1))
    byte = data.draw(st.integers(33, 126).filter(lambda byte: byte != value[at]))
    changed = value[:at] + bytes([byte]) + value[at + 1 :]
    try:
        same = {"path": canonical_path, "query": canonical_query}[where](changed) == canonical_path(value)
    except (KeyError, S3Error):
        same = False
    if where == "query":
        try:
            same = canonical_query(changed) == canonical_query(value)
        except S3Error:
            same = False
    if same:
        return  # as of `%2f` and `%2F`: the same thing, written otherwise
    if where == "authorization":
        refusal(sent.header("authorization", changed.decode()))
    else:
        refusal(dataclasses.replace(sent, **{where: changed}))


def presigned() -> Sent:
    return signed("GET", f"{BASE}/bucket/key?response-content-type=text%2Fplain", expires_s=3600, token="token")


def parameter(sent: Sent, old: bytes, new: bytes) -> Sent:
    assert old in sent.query
    return dataclasses.replace(sent, query=sent.query.replace(old, new))


QUERY_MUTATIONS = {
    "used to put": lambda sent: dataclasses.replace(sent, method="PUT"),
    "used for HEAD": lambda sent: dataclasses.replace(sent, method="HEAD"),
    "other key": lambda sent: dataclasses.replace(sent, path=b"/bucket/other"),
    "longer life": lambda sent: parameter(sent, b"X-Amz-Expires=3600", b"X-Amz-Expires=3601"),
    "endless life": lambda sent: parameter(sent, b"X-Amz-Expires=3600", b"X-Amz-Expires=604801"),
    "negative life": lambda sent: parameter(sent, b"X-Amz-Expires=3600", b"X-Amz-Expires=-1"),
    "no life": lambda sent: parameter(sent, b"X-Amz-Expires=3600", b"X-Amz-Expires="),
    "life twice": lambda sent: dataclasses.replace(sent, query=sent.query + b"&X-Amz-Expires=3600"),
    "signature twice": lambda sent: dataclasses.replace(sent, query=sent.query + b"&X-Amz-Signature=" + b"0" * 64),
    "type": lambda sent: parameter(sent, b"text%2Fplain", b"text%2Fhtml"),
    "type dropped": lambda sent: parameter(sent, b"response-content-type=text%2Fplain&", b""),
    "parameter added": lambda sent: dataclasses.replace(sent, query=sent.query + b"&versionId=1"),
    "token": lambda sent: parameter(sent, b"X-Amz-Security-Token=token", b"X-Amz-Security-Token=nekot"),
    "token dropped": lambda sent: parameter(sent, b"&X-Amz-Security-Token=token", b""),
    "region": lambda sent: parameter(sent, b"us-east-1", b"us-east-2"),
    "key id": lambda sent: parameter(sent, KEY_ID.encode(), b"OTHER"),
    "host": lambda sent: sent.header("host", "localhost:9000"),
    "header added": lambda sent: sent.also("x-amz-copy-source", "/other/secret"),
    "algorithm": lambda sent: parameter(sent, b"AWS4-HMAC-SHA256", b"AWS4-HMAC-SHA1"),
    "no algorithm": lambda sent: parameter(sent, b"X-Amz-Algorithm=AWS4-HMAC-SHA256&", b""),
    "headers not signed": lambda sent: parameter(sent, b"X-Amz-SignedHeaders=host", b"X-Amz-SignedHeaders="),
}


@pytest.mark.parametrize("mutation", QUERY_MUTATIONS)
def test_every_single_change_of_a_presigned_address_is_refused(mutation: str) -> None:
    sent = presigned()
    accept(sent)
    changed = QUERY_MUTATIONS[mutation](sent)
    assert changed != sent
    code = refusal(changed)
    assert code == "AuthorizationQueryParametersError" or "twice" not in mutation


# --- time ---------------------------------------------------------------------------
def test_a_clock_may_be_wrong_by_a_quarter_of_an_hour() -> None:
    sent = in_header()
    at = now()
    for good in (timedelta(minutes=14), -timedelta(minutes=14)):
        accept(sent, at=at + good)
    for bad in (timedelta(minutes=16), -timedelta(minutes=16)):
        assert refusal(sent, at=at + bad) == "RequestTimeTooSkewed"


def test_a_presigned_address_ends_with_its_time_and_begins_with_it() -> None:
    sent = presigned()
    accept(sent, at=now() + timedelta(seconds=3590))
    assert refusal(sent, at=now() + timedelta(seconds=3601)) == "AccessDenied"
    assert refusal(sent, at=now() - timedelta(minutes=16)) == "AccessDenied"


# --- other ways of signing ---------------------------------------------------------------------------
def bare(*headers: tuple[str, str], query: bytes = b"") -> Sent:
    sent = Sent("GET", b"/bucket/key", query, ((b"host", HOST.encode()),))
    for name, value in headers:
        sent = sent.also(name, value)
    return sent


def test_what_is_not_signed_at_all_has_no_claim() -> None:
    assert claim_of(bare().seen()) is None


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (bare(("authorization", "AWS AKID:c2ln")), "InvalidRequest"),
        (bare(query=b"AWSAccessKeyId=AKID&Signature=c2ln&Expires=1"), "InvalidRequest"),
        (bare(("authorization", "AWS4-ECDSA-P256-SHA256 Credential=x")), "InvalidRequest"),
        (bare(("authorization", "Bearer token")), "InvalidRequest"),
        (bare(("authorization", "")), "AccessDenied"),
        (bare(("authorization", "AWS4-HMAC-SHA256")), "AuthorizationHeaderMalformed"),
        (bare(("authorization", "AWS4-HMAC-SHA256 Credential=a,,b")), "AuthorizationHeaderMalformed"),
        (bare(query=b"X-Amz-Signature=0"), "AuthorizationQueryParametersError"),
        (in_header().also("authorization", in_header().get("authorization")), "InvalidArgument"),
        (in_header().also("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), "InvalidRequest"),
        (in_header().also("x-amz-security-token", "token"), "InvalidRequest"),
        (in_header().also("x-amz-date", "20260101T000000Z"), "InvalidRequest"),
        (in_header().header("x-amz-date", "yesterday"), "AccessDenied"),
        (in_header().header("x-amz-date", None), "AccessDenied"),
        (in_header().header("x-amz-content-sha256", None), "MissingSecurityHeader"),
        (in_header().header("x-amz-content-sha256", "0" * 63), "InvalidArgument"),
        (in_header().header("x-amz-content-sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), "InvalidRequest"),
        (presigned().also("authorization", in_header().get("authorization")), "InvalidArgument"),
        (presigned().also("x-amz-security-token", "token"), "InvalidRequest"),
        (presigned().also("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), "InvalidRequest"),
    ],
)
def test_other_signatures_and_two_at_once_are_refused_by_their_code(sent: Sent, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        claim_of(sent.seen())
    assert caught.value.code == code


@given(st.text(max_size=200))
def test_no_authorization_header_breaks_the_server(value: str) -> None:
    sent = in_header().header("authorization", None)
    sent = dataclasses.replace(sent, headers=(*sent.headers, (b"authorization", value.encode())))
    refusal(sent)


# --- AWS's own examples ---------------------------------------------------------------------------
def test_the_examples_of_the_specification() -> None:
    """From "Authenticating Requests: Using the Authorization Header" and "… Using Query Parameters"."""
    secret, host = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "examplebucket.s3.amazonaws.com"
    at = datetime(2013, 5, 24, tzinfo=UTC)
    empty = hashlib.sha256(b"").hexdigest()
    credential = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
    get = Sent(
        "GET",
        b"/test.txt",
        b"",
        (
            (b"host", host.encode()),
            (b"range", b"bytes=0-9"),
            (b"x-amz-content-sha256", empty.encode()),
            (b"x-amz-date", b"20130524T000000Z"),
            (
                b"authorization",
                f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
                "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41".encode(),
            ),
        ),
    )
    accept(get, secret, at, "AKIAIOSFODNN7EXAMPLE")
    query = (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="
        + credential.replace("/", "%2F")
        + "&X-Amz-Date=20130524T000000Z"
        "&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    accept(Sent("GET", b"/test.txt", query.encode(), ((b"host", host.encode()),)), secret, at, "AKIAIOSFODNN7EXAMPLE")
