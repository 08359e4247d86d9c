"""Makes the tar stream of an archive from the copy of a volume."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tenure.offices.archives import members
from tenure.offices.archives.blocks import Blocks, data_segments, read_blocks
from tenure.offices.archives.index import IndexWriter, Row, read_rows
from tenure.offices.archives.manifest import END, JOURNAL, MANIFEST, Manifest, to_bytes
from tenure.offices.archives.members import Kind, Member, Segments
from tenure.offices.archives.walk import Entry, Walk, device_of, order

LEFT_AT_HOME = frozenset(
    f"postgres/{name}"
    for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf", "postmaster.pid", "postmaster.opts")
)  # fmt: skip
"""A database's configuration is the machine's: what it says is run on the host."""
_LINKS_IN = "rootfs/"
"""Only there a file's other names are kept: elsewhere nothing makes any."""


@dataclass(frozen=True)
class Base:
    """The export that is continued: its index, and the numbers of the inodes that changed since (None where the driver cannot
    tell, and files are compared by their digests)."""

    index: Path
    changed: frozenset[int] | None


@dataclass
class Tally:
    """Grows while an archive is made."""

    members: int = 0
    content_bytes: int = 0
    left_out: int = 0


@dataclass
class Packer:
    """`stream` may be iterated once. `index` gets what the volume has, for the next export."""

    volume: Path
    manifest: Manifest
    journal: Sequence[bytes]
    index: IndexWriter
    base: Base | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._leaders: dict[int, str] = {}
        self._written_leaders: set[str] = set()

    def stream(self) -> Iterator[bytes]:
        yield from _document(MANIFEST, to_bytes(self.manifest))
        yield from _document(JOURNAL, b"".join(self.journal))
        rows = read_rows(self.base.index) if self.base else iter(())
        row = next(rows, None)
        gone = ""
        walk = Walk(self.volume)
        for entry in walk:
            if entry.path in LEFT_AT_HOME:
                continue
            here = order(entry.path)
            while row is not None and order(row.path) < here:
                gone = yield from self._gone(row, gone)
                row = next(rows, None)
            before = None
            if row is not None and row.path == entry.path:
                before, row = row, next(rows, None)
            yield from self._entry(entry, before)
        while row is not None:
            gone = yield from self._gone(row, gone)
            row = next(rows, None)
        self.tally.left_out = walk.left_out
        yield from _document(END, json.dumps({"members": self.tally.members}).encode())
        yield members.END

    def _gone(self, row: Row, gone: str) -> Generator[bytes, None, str]:
        """Returns the topmost path that is gone by now, so that what was below it is not named."""
        if gone and row.path.startswith(gone + "/"):
            return gone
        yield from self._write(Member(row.path, Kind.GONE))
        return row.path

    def _write(self, member: Member) -> Iterator[bytes]:
        self.tally.members += 1
        yield members.encode_member(member)

    def _unchanged(self, entry: Entry, before: Row | None) -> bool:
        """Known without looking into it."""
        changed = self.base.changed if self.base else None
        inode = entry.status.st_ino
        return changed is not None and before is not None and before.inode == inode and inode not in changed

    def _entry(self, entry: Entry, before: Row | None) -> Iterator[bytes]:
        inode = entry.status.st_ino
        several = entry.kind is Kind.FILE and entry.status.st_nlink > 1 and entry.path.startswith(_LINKS_IN)
        if several and (leader := self._leaders.setdefault(inode, entry.path)) != entry.path:
            row = Row(entry.path, Kind.HARD_LINK, 0, 0, 0, 0, 0, inode, leader, (0, 0), "")
            self.index.add(row)
            if before is None or before.facts != row.facts or leader in self._written_leaders:
                yield from self._write(Member(entry.path, Kind.HARD_LINK, target=leader))
            return
        if before is not None and before.kind is entry.kind and self._unchanged(entry, before):
            self.index.add(before)
            return
        xattrs = entry.xattrs()
        row = _row(entry, xattrs)
        if entry.kind is Kind.FILE:
            yield from self._file(entry, before, row, xattrs)
            return
        self.index.add(row)
        if before is None or before.facts != row.facts:
            yield from self._write(_member(row, xattrs))

    def _file(self, entry: Entry, before: Row | None, row: Row, xattrs: dict[str, bytes]) -> Iterator[bytes]:
        file = entry.open()
        try:
            if entry.status.st_blocks * 512 >= row.size:
                segments: Segments = [(0, row.size)] if row.size else []
            else:
                segments = data_segments(file, row.size)
            blocks = Blocks()
            row = replace(row, blocks=blocks)
            if before is not None and before.kind is Kind.FILE and before.blocks is not None:
                for number, data in read_blocks(file, segments):
                    blocks.add(number, data)
                parts = blocks.differing(before.blocks, row.size)
                self.index.add(row)
                if not parts and row.facts == before.facts:
                    return
                self._written_leaders.add(entry.path)
                yield from self._content(file, _member(row, xattrs, parts, patch=True), parts, None)
            else:
                whole = segments in ([], [(0, row.size)]) and (row.size == 0 or bool(segments))
                self._written_leaders.add(entry.path)
                yield from self._content(file, _member(row, xattrs, None if whole else segments), segments, blocks)
                self.index.add(row)
        finally:
            os.close(file)

    def _content(self, file: int, member: Member, segments: Segments, blocks: Blocks | None) -> Iterator[bytes]:
        yield from self._write(member)
        for number, data in read_blocks(file, segments):
            if blocks is not None:
                blocks.add(number, data)
            self.tally.content_bytes += len(data)
            yield data
        yield members.padding(member)


def _row(entry: Entry, xattrs: dict[str, bytes]) -> Row:
    status, kind = entry.status, entry.kind
    digest = hashlib.blake2b(digest_size=16)
    for name, value in xattrs.items():
        digest.update(f"{len(name)}:{name}{len(value)}:".encode("utf-8", "surrogateescape") + value)
    is_device = kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
    return Row(
        path=entry.path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind is Kind.FILE else 0,
        inode=status.st_ino,
        target=entry.target() if kind is Kind.SYMLINK else "",
        device=device_of(status) if is_device else (0, 0),
        xattrs=digest.hexdigest() if xattrs else "",
    )


def _member(row: Row, xattrs: dict[str, bytes], segments: Segments | None = None, *, patch: bool = False) -> Member:
    return Member(
        path=row.path,
        kind=row.kind,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        mtime_ns=row.mtime_ns,
        size=row.size,
        target=row.target,
        device=row.device,
        xattrs=xattrs,
        segments=segments,
        patch=patch,
    )


def _document(path: str, content: bytes) -> Iterator[bytes]:
    member = Member(path, Kind.FILE, mode=0o600, mtime_ns=time.time_ns(), size=len(content))
    yield members.encode_member(member)
    yield content
    yield members.padding(member)
