"""Members of an archive: a POSIX tar stream (pax), so that other programs can read one that is not encrypted.

    tenure/manifest.json    first: whose office it is, and what it takes to bring it back
    tenure/journal.jsonl    the agent's runs
    rootfs/… postgres/… objects/… postgres.secret    the office, each directory before what is in it
    tenure/end.json         last: counts, and the digest of all before it

pax records of our own: `TENURE.gone` (this path and all below it is not there any more) and `TENURE.patch` (only the parts
of the file that the map lists have changed). The map of a file with holes, or of a patch, is that of GNU's sparse format
1.0. Names are bytes; here they are text with surrogates.

Reading is by our own few lines: what is read may be hostile, and only what is written here needs to be understood.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tenure.errors import ArchiveError

BLOCK = tarfile.BLOCKSIZE
PAX_BYTES_MAX = 1024 * 1024
"""Of one member's records: its name, its extended attributes."""
PATH_BYTES_MAX = 4096
"""Linux's PATH_MAX; of a link's target, too."""
MAP_BYTES_MAX = 64 * 1024 * 1024
SEGMENTS_MAX = 1_000_000
SIZE_MAX = 2**62
XATTR = "SCHILY.xattr."
DAMAGED = "Fetch the archive again, or take another one: this one is damaged, or no archive of ours."


class Kind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard-link"
    CHARACTER_DEVICE = "character-device"
    BLOCK_DEVICE = "block-device"
    FIFO = "fifo"
    GONE = "gone"


_TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.HARD_LINK: tarfile.LNKTYPE,
    Kind.CHARACTER_DEVICE: tarfile.CHRTYPE,
    Kind.BLOCK_DEVICE: tarfile.BLKTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
    Kind.GONE: tarfile.REGTYPE,
}
_KINDS = {kind: name for name, kind in _TYPES.items() if name is not Kind.GONE}

Segments = list[tuple[int, int]]
"""(offset, length) of parts of a file, in order, not overlapping."""


@dataclass(frozen=True)
class Member:
    """`path` is relative. `segments` None means the whole file; otherwise only these parts follow, and the rest is a hole, or
    with `patch` what the file had before."""

    path: str
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: str = ""
    """Of a link."""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    segments: Segments | None = None
    patch: bool = False

    @property
    def stored_bytes(self) -> int:
        """How much of its content follows."""
        if self.kind is not Kind.FILE:
            return 0
        return self.size if self.segments is None else sum(length for _, length in self.segments)


def encode_member(member: Member) -> bytes:
    """What stands before the member's content."""
    info = tarfile.TarInfo(member.path)
    info.type = _TYPES[member.kind]
    info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
    info.mtime = member.mtime_ns // 10**9
    info.linkname = member.target
    info.devmajor, info.devminor = member.device
    records = {"mtime": _seconds(member.mtime_ns)}
    records |= {XATTR + name: value.decode("utf-8", "surrogateescape") for name, value in member.xattrs.items()}
    front = b""
    if member.kind is Kind.GONE:
        records["TENURE.gone"] = "1"
    elif member.kind is Kind.FILE:
        info.size = member.size
        if member.segments is not None:
            front = _map(member.segments)
            info.size = len(front) + member.stored_bytes
            records |= {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": member.path,
                "GNU.sparse.realsize": str(member.size),
            }
            if member.patch:
                records["TENURE.patch"] = "1"
    info.pax_headers = records
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + front


def padding(member: Member) -> bytes:
    """What stands behind the member's content."""
    return bytes(-member.stored_bytes % BLOCK)


END = bytes(2 * BLOCK)


def _seconds(ns: int) -> str:
    whole, rest = divmod(ns, 10**9)
    if whole < 0 and rest:  # -1.5 s is -2 s and 0.5 s
        whole, rest = whole + 1, 10**9 - rest
        return f"-{-whole}.{rest:09d}"
    return f"{whole}.{rest:09d}"


def _map(segments: Segments) -> bytes:
    text = "\n".join([str(len(segments)), *(f"{offset}\n{length}" for offset, length in segments)]) + "\n"
    return text.encode() + bytes(-len(text) % BLOCK)


# --- reading ----------------------------------------------------------------------------------------------------------
Read = Callable[[int], bytes]
"""`read(n)` returns exactly `n` bytes, or raises `ArchiveError`."""


class Members:
    """Reads members one after the other. Raises `ArchiveError` for whatever is not as we write it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left = 0
        self._padding = 0

    def next(self) -> Member | None:
        """The following member, or None at the end. What nobody read of the content before is skipped."""
        for _ in self.content():
            pass
        self._read(self._padding)
        self._padding = 0
        header = self._read(BLOCK)
        if header == bytes(BLOCK):
            if self._read(BLOCK) != bytes(BLOCK):
                raise _damaged("there is no end where it ends")
            return None
        records: dict[str, str] = {}
        if header[156:157] == tarfile.XHDTYPE:
            records = self._records(_header(header))
            header = self._read(BLOCK)
        return self._member(_header(header), records)

    def content(self, chunk_bytes: int = 1024 * 1024) -> Iterator[bytes]:
        """What is left of the member's content, in pieces of at most `chunk_bytes`."""
        while self._left:
            piece = self._read(min(self._left, chunk_bytes))
            self._left -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """The next `size` bytes of the member's content."""
        if size > self._left:
            raise _damaged("a member is shorter than it says")
        self._left -= size
        return self._read(size)

    def _records(self, info: tarfile.TarInfo) -> dict[str, str]:
        if not 0 < info.size <= PAX_BYTES_MAX:
            raise _damaged("a member's head is too large")
        data = self._read(info.size + -info.size % BLOCK)[: info.size]
        records: dict[str, bytes] = {}
        at = 0
        while at < len(data):
            space = data.find(b" ", at, at + 20)
            digits = data[at:space] if space > 0 else b""
            length = int(digits) if digits.isdigit() else 0
            record = data[space + 1 : at + length]
            name, equals, value = record.partition(b"=")
            if at + length > len(data) or length <= len(digits) or not equals or not value.endswith(b"\n"):
                raise _damaged("a member's head cannot be read")
            records[name.decode("utf-8", "surrogateescape")] = value[:-1]
            at += length
        return {name: value.decode("utf-8", "surrogateescape") for name, value in records.items()}

    def _member(self, info: tarfile.TarInfo, records: dict[str, str]) -> Member:
        kind = _KINDS.get(info.type)
        if kind is None:
            raise _damaged(f"a member is of the unknown kind {info.type!r}")
        size = _number(records, "size", info.size)
        if kind is not Kind.FILE and size:
            raise _damaged("a member that is no file has content")
        self._left, self._padding = size, -size % BLOCK
        segments: Segments | None = None
        real = size
        if "GNU.sparse.major" in records:
            real = _number(records, "GNU.sparse.realsize", -1)
            segments = self._segments(real)
        if "TENURE.gone" in records:
            kind = Kind.GONE
        path = records.get("GNU.sparse.name") or records.get("path") or info.name
        target = records.get("linkpath") or info.linkname
        for text in (path, target):
            if len(os.fsencode(text)) > PATH_BYTES_MAX or "\0" in text:
                raise _damaged("a name is longer than Linux allows")
        return Member(
            path=path.rstrip("/"),
            kind=kind,
            mode=info.mode,
            uid=_number(records, "uid", info.uid),
            gid=_number(records, "gid", info.gid),
            mtime_ns=_nanoseconds(records.get("mtime", str(info.mtime))),
            size=real,
            target=target,
            device=(info.devmajor, info.devminor),
            xattrs={
                name.removeprefix(XATTR): value.encode("utf-8", "surrogateescape")
                for name, value in records.items()
                if name.startswith(XATTR)
            },
            segments=segments,
            patch="TENURE.patch" in records,
        )

    def _segments(self, real: int) -> Segments:
        """The map at the front of the content."""
        read_bytes = 0
        text = b""
        numbers: list[int] = []
        wanted = 1
        while len(numbers) < wanted:
            read_bytes += BLOCK
            if read_bytes > MAP_BYTES_MAX:
                raise _damaged("the map of a file is too large")
            *lines, text = (text + self.take(BLOCK)).split(b"\n")
            for line in lines:
                if len(numbers) == wanted:
                    break
                if not line.isdigit() or len(line) > 19:
                    raise _damaged("the map of a file cannot be read")
                numbers.append(int(line))
                if len(numbers) == 1:
                    if numbers[0] > SEGMENTS_MAX:
                        raise _damaged("the map of a file is too large")
                    wanted = 1 + 2 * numbers[0]
        segments = list(zip(numbers[1::2], numbers[2::2], strict=True))
        at = 0
        for offset, length in segments:
            if offset < at or offset + length > real:
                raise _damaged("the map of a file leads out of it")
            at = offset + length
        # Whatever follows the numbers in their last block is filling.
        if sum(length for _, length in segments) != self._left:
            raise _damaged("a file is not as long as its map")
        self._padding = -self._left % BLOCK
        return segments


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damaged("a member's head cannot be read") from error
    if min(info.size, info.uid, info.gid, info.devmajor, info.devminor) < 0 or info.mode & ~0o7777:
        raise _damaged("a member's head has impossible numbers")
    return info


def _number(records: dict[str, str], name: str, otherwise: int) -> int:
    text = records.get(name, str(otherwise))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not 0 <= number <= SIZE_MAX:
        raise _damaged(f"a member's {name} is impossible")
    return number


def _nanoseconds(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    whole, _, rest = digits.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) < 12) or (
        rest and not (rest.isascii() and rest.isdigit())
    ):
        raise _damaged("a member's time is impossible")
    return sign * (int(whole) * 10**9 + int(rest[:9].ljust(9, "0") or 0))


def _damaged(what: str) -> ArchiveError:
    return ArchiveError(f"The archive is damaged: {what}.", hint=DAMAGED)
