"""From a tar stream to the bytes of an archive, and back: compressed, then encrypted or at least checked.

An archive that is not encrypted ends with the digest of all before it (again in a frame that zstd skips), so that neither a
shortened nor a damaged one is taken for whole.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import zstandard

from tenure.archive_head import Head, encode_head, read_head
from tenure.errors import ArchiveError
from tenure.export_keys import Key
from tenure.offices.archives.seal import check_key, seal, sealed_head, unseal

PIECE_BYTES = 256 * 1024
LEVEL = 3
WINDOW_BYTES_MAX = 8 * 1024 * 1024
"""What reading an archive may take of memory. Writing uses 2 MiB at this level."""
_TAIL = struct.Struct("<II32s")
_SKIPPABLE = 0x184D2A5F
CUT_OFF = "Fetch the archive again, or take another one: this one was cut off, changed or damaged on its way."

RawRead = Callable[[int], bytes]
"""`read(n)` returns less than `n` bytes at the end only."""


def write_frames(pieces: Iterable[bytes], head: Head, key: Key | None) -> Iterator[bytes]:
    """The bytes of an archive whose content is the tar stream `pieces`."""
    if key is not None:
        head = sealed_head(head, key)
        yield encode_head(head)
        yield from seal(_compressed(pieces), head, key)
        return
    digest = hashlib.sha256()
    for piece in _all(encode_head(head), _compressed(pieces)):
        digest.update(piece)
        yield piece
    yield _TAIL.pack(_SKIPPABLE, digest.digest_size, digest.digest())


def _all(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
    held = bytearray()
    for piece in pieces:
        held += compressor.compress(piece)
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held) + compressor.flush()


class Frames:
    """Reads an archive: its head at once, then the tar stream by `read`. Raises `ArchiveError`, also for a wrong key."""

    def __init__(self, read: RawRead, key: Key | None) -> None:
        self._digest = hashlib.sha256()
        self._raw = read
        self.head = read_head(self._counted)
        check_key(self.head, key)
        if self.head.key_id is None:
            self._chunks = self._checked()
        else:
            assert key is not None
            self._chunks = unseal(read, self.head, key)
        self._rest = b""
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        self._reader = decompressor.stream_reader(cast("Any", self), read_size=PIECE_BYTES)
        self._source = self._pull

    def read_exactly(self, size: int) -> bytes:
        """The next `size` bytes of the tar stream."""
        parts: list[bytes] = []
        left = size
        while left:
            try:
                part = self._reader.read(min(left, PIECE_BYTES))
            except zstandard.ZstdError as error:
                raise ArchiveError(
                    f"The archive {self.head.id} cannot be decompressed: {error}.", hint=CUT_OFF
                ) from error
            if not part:
                raise ArchiveError(f"The archive {self.head.id} ends in the middle.", hint=CUT_OFF)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """To be called at the end of the tar stream: nothing may follow, and the whole archive must have come."""
        try:
            more = self._reader.read(1)
        except zstandard.ZstdError as error:
            raise ArchiveError(f"The archive {self.head.id} cannot be decompressed: {error}.", hint=CUT_OFF) from error
        for _ in self._chunks:
            more = more or b"?"
        if more:
            raise ArchiveError(f"Something follows the end of the archive {self.head.id}.", hint=CUT_OFF)

    def read(self, size: int) -> bytes:
        """For the decompressor: compressed bytes."""
        return self._source(size)

    def _pull(self, size: int) -> bytes:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def _counted(self, size: int) -> bytes:
        data = self._raw(size)
        self._digest.update(data)
        return data

    def _checked(self) -> Iterator[bytes]:
        """All but the digest at the end, which is compared."""
        held = b""
        while piece := self._raw(PIECE_BYTES):
            held += piece
            ready, held = held[: -_TAIL.size], held[-_TAIL.size :]
            if ready:
                self._digest.update(ready)
                yield ready
        expected = _TAIL.pack(_SKIPPABLE, self._digest.digest_size, self._digest.digest())
        if not hmac.compare_digest(held, expected):
            raise ArchiveError(f"The archive {self.head.id} is not whole.", hint=CUT_OFF)
