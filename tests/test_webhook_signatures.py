"""Signatures of webhooks: good ones hold, whoever made them, and nothing else does. Signed here as the senders publish it."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.data.webhooks import signatures
from tenure.data.webhooks.signatures import (
    DEDUPE_CHARS_MAX,
    TOLERANCE_S,
    Refused,
    check_scheme,
    check_secret,
    dedupe_of,
    new_secret,
    parsed,
    sign,
    verify,
)
from tenure.errors import InvalidArgument

NOW = 1_795_000_000
KEY = base64.b64encode(b"standard webhooks take bytes").decode()
Headers = dict[str, str]


def _mac(secret: bytes, data: bytes, algorithm: str = "sha256") -> hmac.HMAC:
    return hmac.new(secret, data, algorithm)


def standard(secret: str, body: bytes, at: int = NOW) -> Headers:
    """https://www.standardwebhooks.com: v1 is base64(HMAC-SHA256(key, id.timestamp.body)), the key is base64 after whsec_."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b"msg_1." + str(at).encode() + b"." + body
    value = base64.b64encode(_mac(key, signed).digest()).decode()
    return {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": f"v1a,AAAA v1,{value}"}


def github(secret: str, body: bytes, at: int = NOW) -> Headers:
    """X-Hub-Signature-256: sha256=hex(HMAC-SHA256(secret, body))."""
    return {"x-github-delivery": "msg_1", "x-hub-signature-256": "sha256=" + _mac(secret.encode(), body).hexdigest()}


def stripe(secret: str, body: bytes, at: int = NOW) -> Headers:
    """Stripe-Signature: t=…,v1=hex(HMAC-SHA256(secret, "t.body")); v0 is of test mode, and to be ignored."""
    value = _mac(secret.encode(), f"{at}.".encode() + body).hexdigest()
    return {"stripe-signature": f"t={at},v0={'0' * 64},v1={value}"}


def slack(secret: str, body: bytes, at: int = NOW) -> Headers:
    """X-Slack-Signature: v0=hex(HMAC-SHA256(secret, "v0:t:body"))."""
    value = _mac(secret.encode(), b"v0:" + str(at).encode() + b":" + body).hexdigest()
    return {"x-slack-request-timestamp": str(at), "x-slack-signature": f"v0={value}"}


def shopify(secret: str, body: bytes, at: int = NOW) -> Headers:
    """X-Shopify-Hmac-Sha256: base64(HMAC-SHA256(secret, body))."""
    value = base64.b64encode(_mac(secret.encode(), body).digest()).decode()
    return {"x-shopify-webhook-id": "msg_1", "x-shopify-hmac-sha256": value}


def custom(secret: str, body: bytes, at: int = NOW) -> Headers:
    return {"x-acme-sign": _mac(secret.encode(), body, "sha512").hexdigest()}


SCHEMES: dict[str, Callable[..., Headers]] = {
    "standard": standard,
    "github": github,
    "stripe": stripe,
    "slack": slack,
    "shopify": shopify,
    "hmac:X-Acme-Sign:sha512:hex": custom,
}
TIMED = ("standard", "stripe", "slack")
each = pytest.mark.parametrize(("scheme", "made"), SCHEMES.items())


def holds(scheme: str, keys: list[str], headers: Headers, body: bytes, now: float = NOW) -> bool:
    try:
        verify(scheme, keys, headers, body, now)
    except Refused:
        return False
    return True


@each
@given(body=st.binary(max_size=200))
def test_what_the_sender_signed_holds_and_ours_is_as_theirs(
    scheme: str, made: Callable[..., Headers], body: bytes
) -> None:
    assert holds(scheme, [KEY], made(KEY, body), body)
    assert holds(scheme, [KEY], sign(scheme, KEY, "msg_1", body, NOW), body)
    theirs, ours = made(KEY, body), sign(scheme, KEY, "msg_1", body, NOW)
    for name, value in ours.items():
        if name in theirs and "signature" not in name:
            assert theirs[name] == value


@each
@given(body=st.binary(min_size=1, max_size=200), data=st.data())
def test_nothing_that_was_changed_holds(
    scheme: str, made: Callable[..., Headers], body: bytes, data: st.DataObject
) -> None:
    headers = made(KEY, body)
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([body[at] ^ data.draw(st.integers(1, 255))]) + body[at + 1 :]
    assert not holds(scheme, [KEY], headers, changed)
    assert not holds(scheme, [KEY], headers, body + b"\n")
    assert not holds(scheme, [base64.b64encode(b"of somebody else....").decode()], headers, body)
    for name in headers:
        if "delivery" in name or ("webhook-id" in name and scheme != "standard"):
            continue  # not signed by these
        assert not holds(scheme, [KEY], headers | {name: ""}, body)
        assert not holds(scheme, [KEY], {k: v for k, v in headers.items() if k != name}, body)
    if scheme == "standard":
        assert not holds(scheme, [KEY], headers | {"webhook-id": "msg_2"}, body)


@pytest.mark.parametrize("scheme", TIMED)
def test_a_recorded_delivery_is_good_for_minutes_only(scheme: str) -> None:
    body = b"{}"
    for off in (-TOLERANCE_S, 0, TOLERANCE_S):
        assert holds(scheme, [KEY], SCHEMES[scheme](KEY, body, NOW + off), body)
    for off in (-TOLERANCE_S - 1, TOLERANCE_S + 1, -(10**6)):
        assert not holds(scheme, [KEY], SCHEMES[scheme](KEY, body, NOW + off), body)
    for name, value in SCHEMES[scheme](KEY, body).items():
        if "timestamp" in name or name == "stripe-signature":
            for wrong in ("soon", "-1", "1e9", "９", "9" * 400, value.replace(str(NOW), "")):
                assert not holds(scheme, [KEY], SCHEMES[scheme](KEY, body) | {name: wrong}, body)


@each
def test_of_two_secrets_either_is_good(scheme: str, made: Callable[..., Headers]) -> None:
    old = base64.b64encode(b"the one before this..").decode()
    assert holds(scheme, [KEY, old], made(old, b"x"), b"x")
    assert holds(scheme, [KEY, old], made(KEY, b"x"), b"x")
    assert not holds(scheme, [KEY], made(old, b"x"), b"x")


def test_of_several_signatures_one_is_enough_and_many_are_not_looked_at() -> None:
    headers = standard(KEY, b"x")
    good = headers["webhook-signature"].split(" ")[1]
    for filler, result in ((0, True), (5, True), (50, False)):
        value = " ".join(["v1,AAAA"] * filler + [good])
        assert holds("standard", [KEY], headers | {"webhook-signature": value}, b"x") is result


def test_every_key_and_signature_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def noted(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr(signatures.hmac, "compare_digest", noted)
    headers = standard(KEY, b"x")
    value = headers["webhook-signature"].split(" ")[1]
    assert holds("standard", [KEY, KEY], headers | {"webhook-signature": f"{value} v1,B v1,C"}, b"x")
    assert len(compared) == 6, "it stopped at the first that fits"


@given(
    st.dictionaries(st.sampled_from([*standard(KEY, b""), *slack(KEY, b""), "stripe-signature"]), st.text(max_size=80))
)
def test_whatever_a_stranger_sends_is_refused_and_breaks_nothing(headers: Headers) -> None:
    for scheme in SCHEMES:
        assert not holds(scheme, [KEY], headers, b"body")


# --- ids -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scheme", "headers", "body", "wanted"),
    [
        ("standard", {"webhook-id": "m"}, None, "m"),
        ("github", {"x-github-delivery": "g", "webhook-id": "m"}, None, "g"),
        ("shopify", {"x-shopify-webhook-id": "s"}, None, "s"),
        ("stripe", {"webhook-id": "m"}, {"id": "evt_1"}, "evt_1"),
        ("stripe", {}, {"id": 5}, None),
        ("stripe", {}, ["id"], None),
        ("slack", {}, {"event_id": "Ev1"}, "Ev1"),
        ("none", {"idempotency-key": "k"}, None, "k"),
        ("none", {}, {"id": "x"}, None),
        ("none", {"webhook-id": "a\0b"}, None, "a\ufffdb"),
        ("stripe", {}, {"id": "\ud800"}, "?"),
    ],
)
def test_the_senders_id_is_found(scheme: str, headers: Headers, body: object, wanted: str | None) -> None:
    assert dedupe_of(scheme, headers, body) == wanted


def test_a_long_id_is_told_apart_in_few_characters() -> None:
    found = {dedupe_of("none", {"webhook-id": "x" * 5000 + end}, None) for end in ("a", "b")}
    assert len(found) == 2
    assert all(one is not None and len(one) <= DEDUPE_CHARS_MAX for one in found)


def test_json_is_told_from_what_is_none() -> None:
    assert parsed(b'{"a": [1, null]}') == {"a": [1, None]}
    for wrong in (b"", b"{", b"\xff", b"NaN", b'{"a": Infinity}', b"[" * 100_000, b"[" * 300 + b"]" * 300):
        assert parsed(wrong) is None
    assert parsed(json.dumps("x").encode()) == "x"


# --- names and secrets ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "scheme", ["", "svix", "hmac:X-A:md5:hex", "hmac:X A:sha256:hex", "hmac:X-A:sha256:hex\n", "hmac::sha256:hex"]
)
def test_an_unknown_kind_of_signature_is_refused(scheme: str) -> None:
    with pytest.raises(InvalidArgument):
        check_scheme(scheme)


def test_a_secret_that_was_made_is_one_that_is_taken() -> None:
    for scheme in SCHEMES:
        made = new_secret(scheme)
        assert check_secret(scheme, made) == made
        assert made != new_secret(scheme)
    assert len(base64.b64decode(new_secret("standard").removeprefix("whsec_"))) == 32
    for wrong in ("short", "x" * 2000, "with\nline-break", "whsec_not base64!"):
        with pytest.raises(InvalidArgument):
            check_secret("standard", wrong)
