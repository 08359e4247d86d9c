"""A body in `aws-chunked` encoding: chunks with or without a signature each, and trailers after the last.

    SIZE-IN-HEX[;chunk-signature=SIGNATURE]\r\n  DATA  \r\n  …  0[;chunk-signature=…]\r\n  [NAME:VALUE\r\n …]  \r\n

Data is passed on before its chunk's signature can be known, and the end is not: whoever stores what comes stores it only at the
end, which a wrong signature never reaches. So nothing is held, however long a chunk is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Collection

from tenure.data.s3.errors import S3Error
from tenure.data.s3.signature import EMPTY_SHA256, Signer

CHUNK_HEAD_BYTES_MAX = 256
SIZE_DIGITS_MAX = 12
TRAILER_BYTES_MAX = 8 * 1024
TRAILERS_MAX = 16
TRAILER_SIGNATURE = "x-amz-trailer-signature"


class ChunkedBody:
    """Decodes `source`. With a `signer` every chunk is signed; `trailers` are the names announced, of which `given` has the
    values when the end was reached. `announced_bytes` is how much content there has to be."""

    def __init__(
        self,
        source: AsyncIterator[bytes],
        announced_bytes: int,
        *,
        signer: Signer | None,
        trailers: Collection[str] = (),
        has_trailer: bool = False,
    ) -> None:
        self._feed = _Feed(source)
        self._announced = announced_bytes
        self._signer = signer
        self._previous = signer.signature if signer else ""
        self._trailers = frozenset(trailers)
        self._has_trailer = has_trailer
        self.given: dict[str, str] = {}

    async def content(self) -> AsyncGenerator[bytes]:
        """Raises `S3Error` for whatever is wrong, at the latest before it ends."""
        received = 0
        while True:
            size, signature = self._head(await self._feed.line(CHUNK_HEAD_BYTES_MAX))
            received += size
            if received > self._announced:
                raise S3Error("InvalidRequest", "There is more content than x-amz-decoded-content-length says.")
            digest = hashlib.sha256()
            async for piece in self._feed.take(size):
                if self._signer:
                    digest.update(piece)
                yield piece
            self._check_chunk(digest.hexdigest(), signature)
            if size == 0:
                break
            if await self._feed.line(2) != b"":
                raise _malformed("A chunk is followed by a line break.")
        if received < self._announced:
            raise S3Error("IncompleteBody", "There is less content than x-amz-decoded-content-length says.")
        await self._read_trailer()

    def _head(self, line: bytes) -> tuple[int, str]:
        digits, separator, rest = line.partition(b";")
        if not digits or len(digits) > SIZE_DIGITS_MAX or not all(char in b"0123456789abcdefABCDEF" for char in digits):
            raise _malformed("A chunk begins with its size in hex.")
        if self._signer is None:
            if separator:
                raise _malformed("Chunks of an unsigned body have no signature.")
            return int(digits, 16), ""
        name, _, value = rest.partition(b"=")
        if name != b"chunk-signature" or len(value) != 64:
            raise _malformed("A chunk of a signed body has a chunk-signature.")
        return int(digits, 16), value.decode("latin-1")

    def _check_chunk(self, sha256: str, signature: str) -> None:
        if self._signer is None:
            return
        signer = self._signer
        text = (
            f"AWS4-HMAC-SHA256-PAYLOAD\n{signer.timestamp}\n{signer.scope}\n{self._previous}\n{EMPTY_SHA256}\n{sha256}"
        )
        self._compare(text, signature, "chunk")

    def _compare(self, text: str, signature: str, what: str) -> None:
        assert self._signer is not None
        expected = self._signer.sign(text)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogateescape")):
            raise S3Error("SignatureDoesNotMatch", f"The signature of a {what} does not match.")
        self._previous = expected

    async def _read_trailer(self) -> None:
        signature = ""
        left = TRAILER_BYTES_MAX
        while (line := await self._feed.last_line(left)) is not None:
            left -= len(line)
            if line == b"":
                continue
            name, separator, value = line.decode("latin-1").partition(":")
            name = name.strip().lower()
            if not separator or not self._has_trailer or name in self.given or len(self.given) >= TRAILERS_MAX:
                raise _malformed("What follows the last chunk is no trailer that was announced.")
            if name == TRAILER_SIGNATURE and self._signer and not signature:
                signature = value.strip()
            elif name in self._trailers:
                self.given[name] = value.strip()
            else:
                raise _malformed(f"The trailer {name[:100]} was not announced in x-amz-trailer.")
        if missing := self._trailers - self.given.keys():
            raise _malformed(f"The trailer {min(missing)} is missing.")
        if self._signer and self._has_trailer:
            listed = "".join(f"{name}:{value}\n" for name, value in sorted(self.given.items()))
            digest = hashlib.sha256(listed.encode("latin-1")).hexdigest()
            signer = self._signer
            text = f"AWS4-HMAC-SHA256-TRAILER\n{signer.timestamp}\n{signer.scope}\n{self._previous}\n{digest}"
            self._compare(text, signature, "trailer")


class _Feed:
    """Lines and bytes of a stream of pieces."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._held = b""
        self._ended = False

    async def _more(self) -> bool:
        piece = await anext(self._source, None)
        if piece is None:
            self._ended = True
            return False
        self._held += piece
        return True

    async def line(self, bytes_max: int) -> bytes:
        """Up to CR LF, without it. Raises `S3Error` when there is none in so many bytes, or at all."""
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) > bytes_max + 2:
                raise _malformed("The head of a chunk is too long.")
            if not await self._more():
                raise S3Error("IncompleteBody", "The body ended within its chunks.")
        if end > bytes_max:
            raise _malformed("The head of a chunk is too long.")
        line, self._held = self._held[:end], self._held[end + 2 :]
        return line

    async def last_line(self, bytes_max: int) -> bytes | None:
        """As `line` in what follows the chunks: ends with LF, CR LF or the body; None at its end."""
        while (end := self._held.find(b"\n")) < 0 and not self._ended:
            if len(self._held) > bytes_max:
                break
            await self._more()
        if (len(self._held) if end < 0 else end) > bytes_max:
            raise _malformed("The trailer is too long.")
        if end < 0:
            line, self._held = self._held, b""
            return line.rstrip(b"\r") if line else None
        line, self._held = self._held[:end], self._held[end + 1 :]
        return line.rstrip(b"\r")

    async def take(self, count: int) -> AsyncGenerator[bytes]:
        """`count` bytes in pieces as they come. Raises `S3Error` when there are fewer."""
        while count > 0:
            if not self._held and not await self._more():
                raise S3Error("IncompleteBody", "The body ended within a chunk.")
            piece, self._held = self._held[:count], self._held[count:]
            count -= len(piece)
            if piece:
                yield piece


def _malformed(message: str) -> S3Error:
    return S3Error("InvalidRequest", f"The body is not in the aws-chunked encoding that its headers say. {message}")
