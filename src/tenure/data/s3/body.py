"""The content of a request, checked against all that its headers, its signature and its trailers say of it.

What does not match is raised (`S3Error`) before the content's end: whoever stores it as it comes must not have committed by then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import AsyncGenerator, Callable, Mapping

from tenure.data.s3.checksums import ALGORITHMS, Digest, digest_of, text_of
from tenure.data.s3.chunked import ChunkedBody
from tenure.data.s3.errors import S3Error
from tenure.data.s3.request import S3Request
from tenure.data.s3.signature import (
    SIGNED_CHUNKS_TRAILER,
    STREAMING,
    UNSIGNED_CHUNKS_TRAILER,
    UNSIGNED_PAYLOAD,
    Signer,
)

PREFIX = "x-amz-checksum-"
_SLOW = frozenset({"CRC32C", "CRC64NVME"})
IN_THREAD_BYTES_MIN = 16 * 1024
"""Made in Python, these would hold up the loop."""
LENGTH_DIGITS_MAX = 16


def always() -> bool:
    return True


class CheckedBody:
    """Iterate once. `checksums` are those that the client gave, by algorithm ("CRC32", …); at the end all are checked."""

    def __init__(
        self, request: S3Request, payload: str, signer: Signer | None = None, is_welcome: Callable[[], bool] = always
    ) -> None:
        """`payload` is what x-amz-content-sha256 says. `is_welcome` is asked at each piece: a key that was revoked meanwhile
        stores nothing. Raises `S3Error` for headers that are wrong in themselves."""
        self.checksums: dict[str, str] = {}
        self._is_welcome = is_welcome
        self._sha256 = "" if payload in STREAMING or payload == UNSIGNED_PAYLOAD else payload
        self._md5 = _md5_of(request)
        self._expected = _checksums_of(request)
        self._chunked: ChunkedBody | None = None
        self._source = request.body
        trailers = _trailers_of(request)
        if payload in STREAMING:
            if signer is None and payload != UNSIGNED_CHUNKS_TRAILER:
                raise S3Error("InvalidRequest", "The chunks are signed and the request is not.")
            has_trailer = payload in (SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER)
            self._chunked = ChunkedBody(
                request.body,
                _decoded_length(request),
                signer=None if payload == UNSIGNED_CHUNKS_TRAILER else signer,
                trailers=trailers if has_trailer else (),
                has_trailer=has_trailer,
            )
            self._source = self._chunked.content()
        wanted = set(self._expected)
        if self._chunked is not None:
            wanted |= {name[len(PREFIX) :].upper() for name in trailers}
        self._digests: Mapping[str, Digest] = {name: digest_of(name) for name in wanted}
        self._content = self._read()

    def __aiter__(self) -> CheckedBody:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._content)

    async def aclose(self) -> None:
        await self._content.aclose()

    async def _read(self) -> AsyncGenerator[bytes]:
        sha256 = hashlib.sha256() if self._sha256 else None
        md5 = hashlib.md5(usedforsecurity=False) if self._md5 else None
        async for piece in self._source:
            if not self._is_welcome():
                raise S3Error("InvalidAccessKeyId", "The access key was revoked meanwhile: nothing was stored.")
            for digest in (sha256, md5):
                if digest is not None:
                    digest.update(piece)
            for name, digest in self._digests.items():
                if name in _SLOW and len(piece) >= IN_THREAD_BYTES_MIN:
                    await asyncio.to_thread(digest.update, piece)
                else:
                    digest.update(piece)
            yield piece
        if not self._is_welcome():
            raise S3Error("InvalidAccessKeyId", "The access key was revoked meanwhile: nothing was stored.")
        if sha256 is not None and not hmac.compare_digest(sha256.hexdigest(), self._sha256):
            raise S3Error("XAmzContentSHA256Mismatch")
        if md5 is not None and md5.digest() != self._md5:
            raise S3Error("BadDigest")
        self._check_checksums()

    def _check_checksums(self) -> None:
        expected = dict(self._expected)
        if self._chunked is not None:
            for name, value in self._chunked.given.items():
                if name.startswith(PREFIX):
                    expected[name[len(PREFIX) :].upper()] = value
        for name, value in expected.items():
            if text_of(self._digests[name].digest()) != value:
                raise S3Error("BadDigest", f"The {name} you specified did not match what we received.")
        self.checksums = expected


def _md5_of(request: S3Request) -> bytes:
    if "content-md5" not in request.headers:
        return b""
    try:
        digest = base64.b64decode(request.header("content-md5"), validate=True)
    except (binascii.Error, ValueError):
        raise S3Error("InvalidDigest") from None
    if len(digest) != 16:
        raise S3Error("InvalidDigest")
    return digest


def _checksums_of(request: S3Request) -> dict[str, str]:
    found: dict[str, str] = {}
    if request.method == "POST" and request.has("uploadId"):
        return found  # of the object that is put together, not of this body
    for name in ALGORITHMS:
        if value := request.header(PREFIX + name.lower()):
            found[name] = value
    if len(found) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header")
    return found


def _trailers_of(request: S3Request) -> list[str]:
    text = ",".join(request.headers.getlist("x-amz-trailer"))
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if len(names) > 1 or not all(
        name.startswith(PREFIX) and name[len(PREFIX) :].upper() in ALGORITHMS for name in names
    ):
        raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    return names


def _decoded_length(request: S3Request) -> int:
    text = request.header("x-amz-decoded-content-length")
    if not text:
        raise S3Error("MissingContentLength", "The header x-amz-decoded-content-length is missing.")
    if not (text.isascii() and text.isdecimal() and len(text) <= LENGTH_DIGITS_MAX):
        raise S3Error("InvalidArgument", "x-amz-decoded-content-length is a number of bytes.")
    return int(text)
