"""Digests of a file's blocks: which parts of a file differ from what an earlier export had of it."""

from __future__ import annotations

import base64
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tenure.errors import VolumeError
from tenure.offices.archives.members import SEGMENTS_MAX, Segments

BLOCK_BYTES = 64 * 1024
DIGEST_BYTES = 16


@dataclass
class Blocks:
    """Of one file, without those that are holes: runs of (first number, count), and the digests of all, one after the other."""

    runs: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    digests: bytearray = field(default_factory=bytearray)

    def add(self, number: int, data: bytes) -> None:
        """The next block: numbers grow."""
        if self.runs and sum(self.runs[-1]) == number:
            self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + 1)
        else:
            self.runs.append((number, 1))
        self.digests += hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        at = 0
        for first, count in self.runs:
            for number in range(first, first + count):
                yield number, bytes(self.digests[at : at + DIGEST_BYTES])
                at += DIGEST_BYTES

    def differing(self, earlier: Blocks, size: int) -> Segments:
        """The parts of a file of `size` bytes with these blocks that differ from one with the `earlier` ones."""
        before = _Lookup(earlier)
        numbers = [number for number, digest in self.numbered() if before.get(number) != digest]
        now = _Lookup(self)
        numbers += [
            number for number, _ in earlier.numbered() if number * BLOCK_BYTES < size and now.get(number) is None
        ]
        return merged(sorted(numbers), size)

    def to_json(self) -> list[Any]:
        return [self.runs, base64.b64encode(self.digests).decode()]

    @classmethod
    def from_json(cls, value: list[Any]) -> Blocks:
        return cls([(first, count) for first, count in value[0]], bytearray(base64.b64decode(value[1])))


class _Lookup:
    def __init__(self, blocks: Blocks) -> None:
        self._digests = blocks.digests
        self._firsts = [first for first, _ in blocks.runs]
        self._runs: list[tuple[int, int, int]] = []
        at = 0
        for first, count in blocks.runs:
            self._runs.append((first, count, at))
            at += count * DIGEST_BYTES

    def get(self, number: int) -> bytes | None:
        place = bisect_right(self._firsts, number) - 1
        if place < 0:
            return None
        first, count, at = self._runs[place]
        if number >= first + count:
            return None
        start = at + (number - first) * DIGEST_BYTES
        return bytes(self._digests[start : start + DIGEST_BYTES])


def merged(numbers: list[int], size: int) -> Segments:
    """Blocks as segments of a file of `size` bytes."""
    found: Segments = []
    for number in numbers:
        start, end = number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, size)
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], end - found[-1][0])
        else:
            found.append((start, end - start))
    return found


def data_segments(file: int, size: int) -> Segments:
    """The parts of a file that are no holes, widened to whole blocks; all of it when there are too many."""
    found: Segments = []
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            break
        end = os.lseek(file, start, os.SEEK_HOLE)
        start -= start % BLOCK_BYTES
        end = min(end + -end % BLOCK_BYTES, size)
        if found and sum(found[-1]) >= start:
            found[-1] = (found[-1][0], end - found[-1][0])
        else:
            found.append((start, end - start))
        if len(found) > SEGMENTS_MAX:
            return [(0, size)]
        at = end
    return found


def read_blocks(file: int, segments: Segments) -> Iterator[tuple[int, bytes]]:
    """(number, data) of each block of `segments`, which begin at blocks' beginnings."""
    for offset, length in segments:
        for at in range(offset, offset + length, BLOCK_BYTES):
            wanted = min(BLOCK_BYTES, offset + length - at)
            data = os.pread(file, wanted, at)
            if len(data) != wanted:
                raise VolumeError("A file of the office became shorter while it was exported.")
            yield at // BLOCK_BYTES, data
