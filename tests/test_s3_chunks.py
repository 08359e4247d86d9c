"""A body is what its signature, its chunks, its trailers and its digests say, or its end is never reached."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import zlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_requests import Sent
from tenure.data.s3.body import CheckedBody
from tenure.data.s3.checksums import digest_of, text_of
from tenure.data.s3.errors import S3Error
from tenure.data.s3.signature import (
    EMPTY_SHA256,
    SIGNED_CHUNKS,
    SIGNED_CHUNKS_TRAILER,
    UNSIGNED_CHUNKS_TRAILER,
    Claim,
    Signer,
    canonical_request,
    signing_key,
    string_to_sign,
    verify,
)

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
AT = datetime(2013, 5, 24, tzinfo=UTC)
BASE_HEADERS = (
    (b"host", b"s3.amazonaws.com"),
    (b"x-amz-date", b"20130524T000000Z"),
    (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
    (b"content-encoding", b"aws-chunked"),
)


def signer_of(sent: Sent, payload: str) -> Signer:
    """Of the request's own signature."""
    names = sorted(name.decode() for name, _ in sent.headers)
    claim = Claim("AKID", "20130524", "us-east-1", AT, tuple(names), "", payload)
    key = signing_key(SECRET, claim.scope_date, claim.region)
    text = string_to_sign(claim, canonical_request(sent.seen(), claim))
    claim = dataclasses.replace(claim, signature=hmac.new(key, text.encode(), hashlib.sha256).hexdigest())
    return verify(sent.seen(), claim, SECRET)


def request_of(payload: str, length: int, *headers: tuple[bytes, bytes]) -> Sent:
    told = (
        *BASE_HEADERS,
        (b"x-amz-content-sha256", payload.encode()),
        (b"x-amz-decoded-content-length", str(length).encode()),
        *headers,
    )
    return Sent("PUT", b"/examplebucket/chunkObject.txt", b"", tuple(sorted(told)))


def chunked(signer: Signer | None, chunks: list[bytes], trailer: bytes = b"", *, has_trailer: bool = False) -> bytes:
    """As a client encodes it."""
    body, previous = b"", signer.signature if signer else ""
    for data in [*chunks, b""]:
        body += f"{len(data):x}".encode()
        if signer:
            digest = hashlib.sha256(data).hexdigest()
            previous = signer.sign(
                f"AWS4-HMAC-SHA256-PAYLOAD\n{signer.timestamp}\n{signer.scope}\n{previous}\n{EMPTY_SHA256}\n{digest}"
            )
            body += b";chunk-signature=" + previous.encode()
        body += b"\r\n" + data + (b"\r\n" if data else b"")
    if has_trailer:
        body += trailer + b"\r\n"
        if signer:
            digest = hashlib.sha256(trailer + b"\n").hexdigest()
            text = f"AWS4-HMAC-SHA256-TRAILER\n{signer.timestamp}\n{signer.scope}\n{previous}\n{digest}"
            body += b"x-amz-trailer-signature:" + signer.sign(text).encode() + b"\r\n"
    return body + b"\r\n"


def read(
    sent: Sent,
    payload: str,
    signer: Signer | None,
    piece_bytes: int = 65536,
    is_welcome: Callable[[], bool] = lambda: True,
) -> tuple[bytes, dict[str, str]]:
    async def reading() -> tuple[bytes, dict[str, str]]:
        body = CheckedBody(sent.seen(piece_bytes), payload, signer, is_welcome)
        content = b"".join([piece async for piece in body])
        return content, body.checksums

    return asyncio.run(reading())


def refused(sent: Sent, payload: str, signer: Signer | None = None, piece_bytes: int = 65536) -> str:
    with pytest.raises(S3Error) as caught:
        read(sent, payload, signer, piece_bytes)
    return caught.value.code


# --- AWS's own example ---------------------------------------------------------------------------
def test_the_example_of_the_specification() -> None:
    """From "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks"."""
    sent = request_of(SIGNED_CHUNKS, 66560, (b"content-length", b"66824"))
    signer = signer_of(sent, SIGNED_CHUNKS)
    assert signer.signature == "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    body = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
    )
    assert len(body) == 66824
    content, _ = read(dataclasses.replace(sent, body=body), SIGNED_CHUNKS, signer)
    assert content == b"a" * 66560


def test_the_example_with_a_trailer() -> None:
    """From "Signature Calculations for trailing headers"."""
    sent = request_of(SIGNED_CHUNKS_TRAILER, 66560, (b"x-amz-trailer", b"x-amz-checksum-crc32c"))
    signer = signer_of(sent, SIGNED_CHUNKS_TRAILER)
    assert signer.signature == "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
    body = (
        b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
        + b"x-amz-checksum-crc32c:sOO8/Q==\n\r\n"
        + b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
    )
    content, checksums = read(dataclasses.replace(sent, body=body), SIGNED_CHUNKS_TRAILER, signer)
    assert content == b"a" * 66560
    assert checksums == {"CRC32C": "sOO8/Q=="}


# --- what is encoded is decoded, however it comes in pieces ----------------------------------------
CHUNKS = st.lists(st.binary(min_size=1, max_size=60), max_size=5)


@given(CHUNKS, st.integers(1, 200), st.sampled_from([SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER]))
def test_chunks_are_put_together_whatever_the_pieces(chunks: list[bytes], piece_bytes: int, payload: str) -> None:
    sent, signer, content = valid(chunks, payload)
    got, checksums = read(sent, payload, signer, piece_bytes)
    assert got == content
    assert bool(checksums) == (payload != SIGNED_CHUNKS)


def valid(chunks: list[bytes], payload: str) -> tuple[Sent, Signer | None, bytes]:
    content = b"".join(chunks)
    has_trailer = payload != SIGNED_CHUNKS
    headers = ((b"x-amz-trailer", b"x-amz-checksum-crc32"),) if has_trailer else ()
    sent = request_of(payload, len(content), *headers)
    signer = signer_of(sent, payload)
    trailer = b"x-amz-checksum-crc32:" + crc32(content)
    inner = None if payload == UNSIGNED_CHUNKS_TRAILER else signer
    body = chunked(inner, chunks, trailer, has_trailer=has_trailer)
    return dataclasses.replace(sent, body=body), signer, content


def crc32(content: bytes) -> bytes:
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big"))


@given(CHUNKS, st.data(), st.sampled_from([SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER]))
def test_no_byte_of_the_content_can_be_another(chunks: list[bytes], data: st.DataObject, payload: str) -> None:
    sent, signer, content = valid([b"begin", *chunks], payload)
    at = data.draw(st.integers(0, len(sent.body) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != sent.body[at]))
    changed = dataclasses.replace(sent, body=sent.body[:at] + bytes([byte]) + sent.body[at + 1 :])
    try:
        got, _ = read(changed, payload, signer)
    except S3Error:
        return
    assert got == content  # a line break at the very end, a digit in capitals


@given(CHUNKS, st.data(), st.sampled_from([SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER]))
def test_a_body_that_is_cut_is_never_whole(chunks: list[bytes], data: st.DataObject, payload: str) -> None:
    sent, signer, content = valid([b"begin", *chunks], payload)
    at = data.draw(st.integers(0, len(sent.body) - 1))
    try:
        got, _ = read(dataclasses.replace(sent, body=sent.body[:at]), payload, signer)
    except S3Error:
        return
    assert got == content
    assert len(sent.body) - at <= 4  # nothing but the last line breaks is missing


@given(st.binary(max_size=400), st.sampled_from([SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER]))
def test_no_bytes_break_the_decoder(body: bytes, payload: str) -> None:
    sent = request_of(payload, 10, (b"x-amz-trailer", b"x-amz-checksum-crc32"))
    refused(dataclasses.replace(sent, body=body), payload, signer_of(sent, payload))


def test_chunks_cannot_change_places_or_be_left_out() -> None:
    sent, signer, _ = valid([b"first", b"other"], SIGNED_CHUNKS)
    one, two = sent.body[:91], sent.body[91:182]
    assert (one[-7:-2], two[-7:-2]) == (b"first", b"other")
    rest = sent.body[182:]
    for body in (two + one + rest, one + one + rest):
        assert refused(dataclasses.replace(sent, body=body), SIGNED_CHUNKS, signer) == "SignatureDoesNotMatch"
    short = dataclasses.replace(sent, body=one + rest)
    assert refused(short, SIGNED_CHUNKS, signer) == "SignatureDoesNotMatch"
    assert refused(dataclasses.replace(sent, body=sent.body + b"more"), SIGNED_CHUNKS, signer) == "InvalidRequest"


def test_a_trailer_is_what_was_announced_and_signed() -> None:
    payload = SIGNED_CHUNKS_TRAILER
    sent, signer, content = valid([b"content"], payload)
    good = b"x-amz-checksum-crc32:" + crc32(content)
    wrong = b"x-amz-checksum-crc32:" + crc32(b"other")
    for body, code in [
        (sent.body.replace(good, wrong), "SignatureDoesNotMatch"),
        (chunked(signer, [content], wrong, has_trailer=True), "BadDigest"),
        (chunked(signer, [content], good), "InvalidRequest"),  # neither trailer nor its signature
        (chunked(signer, [content], b"x-amz-meta-a:b", has_trailer=True), "InvalidRequest"),
        (chunked(signer, [content], good + b"\r\nx-amz-checksum-sha1:x", has_trailer=True), "InvalidRequest"),
        (sent.body.replace(b"x-amz-trailer-signature", b"x-amz-trailer-signaturf"), "InvalidRequest"),
    ]:
        assert body != sent.body
        assert refused(dataclasses.replace(sent, body=body), payload, signer) == code
    endless = sent.body.replace(good, b"x-amz-checksum-crc32:" + b"a" * 20000)
    assert refused(dataclasses.replace(sent, body=endless), payload, signer) == "InvalidRequest"


@pytest.mark.parametrize("head", [b"1" * 300, b"0x5", b"-5", b"5 ", b"", b"5;x=y", b"fffffffffffff", b"5_0"])
def test_the_head_of_a_chunk_has_a_form_and_a_limit(head: bytes) -> None:
    sent = request_of(UNSIGNED_CHUNKS_TRAILER, 5)
    body = head + b"\r\nhello\r\n0\r\n\r\n"
    assert refused(dataclasses.replace(sent, body=body), UNSIGNED_CHUNKS_TRAILER) == "InvalidRequest"


def test_a_head_without_an_end_is_not_collected() -> None:
    sent = dataclasses.replace(request_of(UNSIGNED_CHUNKS_TRAILER, 5), body=b"1" * 10_000_000)
    taken = 0

    async def reading() -> None:
        nonlocal taken
        request = sent.seen(1000)

        async def counted():
            nonlocal taken
            async for piece in request.body:
                taken += len(piece)
                yield piece

        body = CheckedBody(dataclasses.replace(request, body=counted()), UNSIGNED_CHUNKS_TRAILER)
        async for _ in body:
            pass

    with pytest.raises(S3Error):
        asyncio.run(reading())
    assert taken <= 2000


def test_more_or_less_than_announced_is_refused() -> None:
    for length, code in ((6, "InvalidRequest"), (8, "IncompleteBody")):
        sent, _, _ = valid([b"content"], UNSIGNED_CHUNKS_TRAILER)
        sent = sent.header("x-amz-decoded-content-length", str(length))
        assert refused(sent, UNSIGNED_CHUNKS_TRAILER) == code
    sent, _, _ = valid([b"content"], UNSIGNED_CHUNKS_TRAILER)
    assert refused(sent.header("x-amz-decoded-content-length", None), UNSIGNED_CHUNKS_TRAILER) == "MissingContentLength"
    assert refused(sent.header("x-amz-decoded-content-length", "7.0"), UNSIGNED_CHUNKS_TRAILER) == "InvalidArgument"


def test_signed_chunks_of_an_unsigned_request_are_refused() -> None:
    for payload in (SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER):
        sent, _, _ = valid([b"content"], payload)
        assert refused(sent, payload, None) == "InvalidRequest"


# --- digests ---------------------------------------------------------------------------------------
def plain(body: bytes, *headers: tuple[bytes, bytes]) -> Sent:
    return Sent("PUT", b"/bucket/key", b"", headers, body)


def test_the_digest_in_the_signature_is_the_bodys() -> None:
    sha256 = hashlib.sha256(b"body").hexdigest()
    assert read(plain(b"body"), sha256, None)[0] == b"body"
    for body in (b"Body", b"body2", b"bod", b""):
        assert refused(plain(body), sha256) == "XAmzContentSHA256Mismatch"


def test_content_md5_is_the_bodys() -> None:
    md5 = base64.b64encode(hashlib.md5(b"body").digest())
    assert read(plain(b"body", (b"content-md5", md5)), "UNSIGNED-PAYLOAD", None)[0] == b"body"
    assert refused(plain(b"other", (b"content-md5", md5)), "UNSIGNED-PAYLOAD") == "BadDigest"
    for value in (b"", b"short", b"!" * 24, md5[:-4]):
        assert refused(plain(b"body", (b"content-md5", value)), "UNSIGNED-PAYLOAD") == "InvalidDigest"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_a_checksum_is_the_bodys(algorithm: str) -> None:
    body = bytes(range(256)) * 400
    digest = digest_of(algorithm)
    digest.update(body)
    name, value = f"x-amz-checksum-{algorithm.lower()}".encode(), text_of(digest.digest())
    assert read(plain(body, (name, value.encode())), "UNSIGNED-PAYLOAD", None) == (body, {algorithm: value})
    assert refused(plain(body + b"x", (name, value.encode())), "UNSIGNED-PAYLOAD") == "BadDigest"
    assert refused(plain(body, (name, b"bad")), "UNSIGNED-PAYLOAD") == "BadDigest"


def test_two_checksums_are_refused() -> None:
    two = ((b"x-amz-checksum-crc32", b"a"), (b"x-amz-checksum-sha1", b"b"))
    assert refused(plain(b"body", *two), "UNSIGNED-PAYLOAD") == "InvalidRequest"


def test_the_checksum_of_an_object_that_is_put_together_is_not_the_bodys() -> None:
    sent = dataclasses.replace(
        plain(b"<xml/>", (b"x-amz-checksum-crc32", b"AAAAAA==")), method="POST", query=b"uploadId=1"
    )
    assert read(sent, "UNSIGNED-PAYLOAD", None)[0] == b"<xml/>"


def test_a_key_that_is_revoked_meanwhile_stores_nothing() -> None:
    answers = iter([True, True, False])
    with pytest.raises(S3Error, match="revoked"):
        read(plain(b"a" * 300), "UNSIGNED-PAYLOAD", None, 100, lambda: next(answers))
    answers = iter([True, True, True, False])
    with pytest.raises(S3Error, match="revoked"):
        read(plain(b"a" * 300), "UNSIGNED-PAYLOAD", None, 100, lambda: next(answers))
