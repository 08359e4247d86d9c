"""The checksums that S3 knows beside MD5: CRC32, CRC32C, CRC64NVME, SHA1, SHA256.

CRC32C and CRC64NVME are in no library that we stand on, so they are made here, without a loop over bytes: a block is cut into
lanes, all lanes are stepped at once by table look-ups over whole strings of bytes, and their remainders are put together. About
as fast as a disk; the plain table walk is a hundred times slower.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from tenure.data.s3.errors import S3Error

ALGORITHMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
FULL_OBJECT, COMPOSITE = "FULL_OBJECT", "COMPOSITE"

_CRC32 = (32, 0xEDB88320)
_CRC32C = (32, 0x82F63B78)
_CRC64NVME = (64, 0x9A6C9329AC4BC9B5)
_POLYNOMIALS = {"CRC32": _CRC32, "CRC32C": _CRC32C, "CRC64NVME": _CRC64NVME}
"""Width and reflected polynomial. All begin with ones and are inverted at the end."""
_LANE_BYTES = 256
_BLOCK_BYTES_MIN = 16 * 1024
"""Below it the plain walk is as fast."""
_SIZES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


def digest_of(algorithm: str) -> Digest:
    """An empty one. Raises `KeyError` for an algorithm that there is not."""
    makers: dict[str, Callable[[], Digest]] = {
        "MD5": lambda: hashlib.md5(usedforsecurity=False),
        "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
        "SHA256": hashlib.sha256,
        "CRC32": _Crc32,
        "CRC32C": lambda: _Crc(*_CRC32C),
        "CRC64NVME": lambda: _Crc(*_CRC64NVME),
    }
    return makers[algorithm]()


def text_of(digest: bytes) -> str:
    """As it stands in headers."""
    return base64.b64encode(digest).decode()


def check_text(algorithm: str, text: str) -> bytes:
    """The digest of a header. Raises `S3Error` InvalidRequest."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != _SIZES[algorithm]:
        raise S3Error("InvalidRequest", f"Value for x-amz-checksum-{algorithm.lower()} header is invalid.")
    return found


def full_of_parts(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """The checksum of the whole of the (checksum, size) of its parts in order, for a CRC."""
    width, polynomial = _POLYNOMIALS[algorithm]
    whole = 0
    for text, size in parts:
        whole = _shift(width, polynomial, whole, size) ^ int.from_bytes(check_text(algorithm, text), "big")
    return text_of(whole.to_bytes(width // 8, "big"))


def composite(algorithm: str, parts: Sequence[str]) -> str:
    """The checksum of the checksums of the parts, with their number."""
    digest = digest_of(algorithm)
    for part in parts:
        digest.update(check_text(algorithm, part))
    return f"{text_of(digest.digest())}-{len(parts)}"


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class _Crc:
    def __init__(self, width: int, polynomial: int) -> None:
        self._width, self._polynomial = width, polynomial
        self._register = (1 << width) - 1

    def update(self, data: bytes, /) -> None:
        whole = len(data) - len(data) % _LANE_BYTES if len(data) >= _BLOCK_BYTES_MIN else 0
        if whole:
            self._register = _block(self._width, self._polynomial, data[:whole], self._register)
        table, register = _table(self._polynomial), self._register
        for byte in data[whole:]:
            register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
        self._register = register

    def digest(self) -> bytes:
        return (self._register ^ ((1 << self._width) - 1)).to_bytes(self._width // 8, "big")


@cache
def _table(polynomial: int) -> tuple[int, ...]:
    found: list[int] = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ polynomial if value & 1 else value >> 1
        found.append(value)
    return tuple(found)


@cache
def _planes(width: int, polynomial: int) -> tuple[bytes, ...]:
    """The table cut into bytes: plane n has byte n of each entry, for `bytes.translate`."""
    return tuple(bytes(value >> 8 * plane & 0xFF for value in _table(polynomial)) for plane in range(width // 8))


def _block(width: int, polynomial: int, data: bytes, register: int) -> int:
    """The register after `data`, whose length is a multiple of `_LANE_BYTES`."""
    lanes, planes, size = len(data) // _LANE_BYTES, _planes(width, polynomial), width // 8
    state = [0] * size  # byte n of all lanes' registers, as one integer each
    for step in range(_LANE_BYTES):
        column = int.from_bytes(data[step::_LANE_BYTES], "little") ^ state[0]
        looked_up = column.to_bytes(lanes, "little")
        shifted = [*state[1:], 0]
        state = [int.from_bytes(looked_up.translate(planes[n]), "little") ^ shifted[n] for n in range(size)]
    columns = [part.to_bytes(lanes, "little") for part in state]
    advance = _matrix(width, polynomial, _LANE_BYTES)
    for lane in range(lanes):
        remainder = 0
        for n in range(size):
            remainder |= columns[n][lane] << 8 * n
        register = _apply(advance, register) ^ remainder
    return register


def _shift(width: int, polynomial: int, value: int, size: int) -> int:
    """`value` after `size` zero bytes."""
    power = 0
    while size >> power:
        if size >> power & 1:
            value = _apply(_matrix(width, polynomial, 1 << power), value)
        power += 1
    return value


@cache
def _matrix(width: int, polynomial: int, size: int) -> tuple[tuple[int, ...], ...]:
    """What `size` (a power of two) zero bytes do to a register: for each of its bytes, by value."""
    if size == 1:
        table = _table(polynomial)

        def step(value: int) -> int:
            return table[value & 0xFF] ^ (value >> 8)
    else:
        half = _matrix(width, polynomial, size // 2)

        def step(value: int) -> int:
            return _apply(half, _apply(half, value))

    bits = [step(1 << bit) for bit in range(width)]
    found: list[tuple[int, ...]] = []
    for byte in range(width // 8):
        row = [0] * 256
        for value in range(1, 256):
            low = value & -value
            row[value] = row[value ^ low] ^ bits[8 * byte + low.bit_length() - 1]
        found.append(tuple(row))
    return tuple(found)


def _apply(matrix: tuple[tuple[int, ...], ...], value: int) -> int:
    found = 0
    for row in matrix:
        found ^= row[value & 0xFF]
        value >>= 8
    return found
